"""``offramp recipes``, the pages in docs/recipes/, and the form of the recipe files that both are made from."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from offramp.recipes import available, load_recipe
from offramp.types import PROBLEM_TYPES

ROOT = Path(__file__).parents[2]
Cli = Callable[..., Any]
every_recipe = pytest.mark.parametrize("name", available())


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """benchmarks/recipe_pages.py, which is no package."""
    spec = importlib.util.spec_from_file_location("recipe_pages", ROOT / "benchmarks" / "recipe_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generator: ModuleType) -> dict[str, str]:
    made: dict[str, str] = generator.pages()
    return made


@every_recipe
def test_the_form_of_a_recipe_file(name: str) -> None:
    said = inspect.getdoc(importlib.import_module(f"offramp.recipes.{name}"))
    assert said
    first, empty, *rest = said.splitlines()
    assert re.fullmatch(r"[A-Z][\w -]+: [^ ].+\.", first), "Name: what it does in one sentence."
    assert empty == ""
    source, _, text = "\n".join(rest).partition("\n\n")
    assert re.search(r'"[^"]+",\s', source), 'authors, "title", venue, address'
    assert re.search(r"https://\S+$", source), "the source ends with an address"
    headings = re.findall(r"^#+ .+", text, re.MULTILINE)
    assert headings == ["## Formula", "## What we do differently"]
    for part in re.split(r"^#+ .+", text, flags=re.MULTILINE):
        assert part.strip()


@every_recipe
def test_a_recipe_sums_itself_up_in_a_line(name: str) -> None:
    summary = load_recipe(name).summary
    assert "\n" not in summary
    assert len(summary) <= 110
    assert not summary.endswith(".")


def test_pages_say_what_the_recipes_say(generator: ModuleType, pages: dict[str, str]) -> None:
    """If this fails: python benchmarks/recipe_pages.py."""
    there = {path.name: path.read_text(encoding="utf-8") for path in generator.FOLDER.glob("*.md")}
    assert sorted(there) == sorted(pages) == ["README.md", *(f"{name}.md" for name in available())]
    assert there == pages


@every_recipe
def test_a_page_holds_all_that_can_be_set(name: str, pages: dict[str, str]) -> None:
    from offramp.cli.recipe_page import serves
    from offramp.model.heads import head_class

    page, recipe = pages[f"{name}.md"], load_recipe(name)
    for criterion in recipe.criteria.values():
        for knob, what in criterion.knobs.items():
            faster = "higher" if what.faster == "up" else "lower"
            assert re.search(rf"^\| `{knob}` \| {what.default:g} \| {what.low:g} to .* \| {faster} \|$", page, re.M)
    given = {f"objective.{key}" for phase in recipe.training for key in phase.objective.settings}
    if recipe.exits == "all":
        given |= {
            f"head.{key}" for key in inspect.signature(head_class(recipe.head.name)).parameters if key != "around"
        }
    for setting in given:
        assert f"| `{setting}` | " in page
    assert f"--recipe {name}" in page
    assert f"Problems it serves: {serves(recipe)}. " in page


@every_recipe
def test_a_page_says_what_every_setting_takes(name: str, pages: dict[str, str]) -> None:
    """In words, as its error does: a type means that a wrong value is not refused."""
    for setting, takes in re.findall(r"^\| `(\w+\.\w+)` \| [^|]* \| ([^|]+) \|", pages[f"{name}.md"], re.M):
        if re.match(r"(head|objective|criterion)\.", setting) and "`" not in takes:
            words = ("number", "one of", "true or false", "list", "or more")
            assert any(word in takes for word in words), f"{setting} takes {takes}"


def test_tables_on_pages_are_tables(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        lines = re.sub(r"```.*?```", "", page, flags=re.DOTALL).splitlines()
        for is_table, table in groupby(lines, key=lambda line: line.startswith("|")):
            if is_table:
                widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
                assert len(widths) == 1, name


def test_links_on_pages_lead_somewhere(pages: dict[str, str], generator: ModuleType) -> None:
    for name, page in pages.items():
        for target in re.findall(r"\]\(([^)#]+)\)", page):
            if not target.startswith("http"):
                assert (generator.FOLDER / target).exists() or target in pages, f"{name}: {target}"


def test_the_check_notices_what_is_stale(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "FOLDER", tmp_path)
    monkeypatch.setattr(generator, "pages", lambda: {"README.md": "list", "one.md": "new"})
    (tmp_path / "one.md").write_text("old")
    (tmp_path / "gone.md").write_text("no recipe")
    monkeypatch.setattr(sys, "argv", ["recipe_pages.py", "--check"])
    with pytest.raises(SystemExit, match=r"README.md, gone.md, one.md not as the recipes say"):
        generator.main()
    assert (tmp_path / "one.md").read_text() == "old"
    monkeypatch.setattr(sys, "argv", ["recipe_pages.py"])
    generator.main()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"README.md": "list", "one.md": "new"}
    monkeypatch.setattr(sys, "argv", ["recipe_pages.py", "--check"])
    generator.main()


def test_the_list(cli: Cli) -> None:
    lines = cli("recipes").out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == available()
    assert all(load_recipe(line.split()[0]).summary in line for line in lines)


def test_the_list_as_json(cli: Cli) -> None:
    listed = cli("recipes", "--json").json
    assert [entry["name"] for entry in listed] == available()
    for entry in listed:
        recipe = load_recipe(entry["name"])
        assert entry.keys() == {"name", "summary", "source", "serves", "criterion", "knobs"}
        assert (entry["summary"], entry["source"]) == (recipe.summary, recipe.source)
        assert entry["serves"] == list(recipe.criteria) == list(entry["criterion"])
        assert set(entry["serves"]) <= set(PROBLEM_TYPES)
        assert set(entry["criterion"].values()) == entry["knobs"].keys()
        for criterion in recipe.criteria.values():
            said = entry["knobs"][criterion.name]
            assert {name: (knob["default"], knob["faster"]) for name, knob in said.items()} == {
                name: (knob.default, knob.faster) for name, knob in criterion.knobs.items()
            }
    assert cli("recipes", "joint", "--json").json == next(entry for entry in listed if entry["name"] == "joint")


def test_one_recipe(cli: Cli, pages: dict[str, str]) -> None:
    done = cli("recipes", "joint")
    assert (done.status, done.err) == (0, "")
    assert done.out == pages["joint.md"].partition("\n")[2]
    assert max(map(len, done.out.splitlines())) < 500


@pytest.mark.parametrize("words", [["recipes", "de3brt"], ["recipes", "de3brt", "--json"]])
def test_a_name_that_is_none(cli: Cli, words: list[str]) -> None:
    assert "no recipe is called 'de3brt': did you mean de3bert" in cli(*words).error


def test_training_by_a_name_that_is_none(cli: Cli, toy_data: Callable[..., str], tmp_path: Path) -> None:
    words = ["train", "--model", "m", "--data", toy_data(), "--out", tmp_path / "run", "--recipe", "Joint"]
    assert "no recipe is called 'Joint': did you mean joint?" in cli(*words).error
    assert not list(tmp_path.iterdir())


def test_one_recipe_where_torch_is_missing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list needs none; a page does, because heads and objectives do."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli("recipes", "--json").status == 0
    assert "this needs torch, which is not installed: pip install 'offramp[train]'" in cli("recipes", "joint").error
    assert "did you mean joint?" in cli("recipes", "joimt").error


@pytest.mark.parametrize("recipe", ["de3bert", "joint"])
def test_what_a_recipe_cannot_do(cli: Cli, recipe: str, toy_data: Callable[..., str], tmp_path: Path) -> None:
    data, out = toy_data("regression"), tmp_path / "run"
    if recipe == "joint":  # it serves numbers, but not by entropy: those settings are another rule's
        words = ["--recipe", recipe, "--set", "criterion.lam=2"]
        assert "has no setting 'lam'" in cli("train", "--model", "m", "--data", data, "--out", out, *words).error
    else:
        error = cli("train", "--model", "m", "--data", data, "--out", out, "--recipe", recipe).error
        able = [name for name in available() if "regression" in load_recipe(name).criteria]
        assert error.startswith("this recipe serves single_label_classification and the data is regression")
        assert error.endswith(f"choose one that does ({', '.join(able)})")
    assert not list(tmp_path.iterdir())


def test_entropy_of_a_number() -> None:
    from offramp.criteria import make
    from offramp.errors import UnsupportedError

    with pytest.raises(UnsupportedError, match="'entropy' is not defined for regression: it serves multi_label"):
        make("entropy", problem_type="regression")


def test_the_guide_says_of_each_criterion_what_is_so() -> None:
    """docs/choosing-a-criterion.md: which knobs, which way is faster, which problems, which extras."""
    guide = (ROOT / "docs" / "choosing-a-criterion.md").read_text(encoding="utf-8")
    table = guide.partition("## All of them\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "| `" in line]
    criteria = importlib.import_module("offramp.criteria").available()
    assert sorted(row[0] for row in rows) == sorted(f"`{name}`" for name in criteria)
    for name, _, knobs, *serves, needs in rows:
        criterion = criteria[name.strip("`")]
        faster = {"up": "higher", "down": "lower"}
        assert knobs == ", ".join(f"`{knob}` {faster[what.faster]}" for knob, what in criterion.knobs.items()), name
        assert serves == ["yes" if kind in criterion.serves else "no" for kind in PROBLEM_TYPES], name
        assert needs == (", ".join(f"`{extra}`" for extra in sorted(criterion.needs)) or "nothing"), name


def test_the_guide_names_recipes_and_pages_that_exist() -> None:
    guide = (ROOT / "docs" / "choosing-a-criterion.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", guide):
        assert (ROOT / "docs" / target).exists(), target
    costs = guide.partition("## What it costs\n")[2].partition("\n## ")[0]
    named = {row.split("|")[2].strip(" `") for row in costs.splitlines() if row.startswith("| ") and "`" in row}
    assert named <= {*available(), "any recipe with exits"}
