"""Adding a recipe touches one file: a toy one is dropped where recipes are found, and everything else knows it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import offramp.recipes
from offramp.cli import main

NAME = "toy_for_this_test"
FILE = '''"""Toy: prototypes that two phases train, and patience decides.

Nobody et al., "No paper at all", nowhere.

## Formula

None.

## What we do differently

Everything.
"""

from offramp.criteria.confidence import Confidence
from offramp.criteria.patience import Patience
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="a toy",
    source="nobody",
    head=part("prototypical", width=8),
    training=(
        Phase(part("weighted_sum", by="depth"), train="backbone"),
        Phase(part("distance_aware", alpha=0.5), train="heads", arguments={"weight_decay": 0.0}),
    ),
    criteria={
        "single_label_classification": Patience(),
        "multi_label_classification": Confidence(problem_type="multi_label_classification"),
    },
    arguments={"num_train_epochs": 1.0},
)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The file, in a folder that ``offramp.recipes`` also looks into."""
    folder = tmp_path / "more_recipes"
    folder.mkdir()
    (folder / f"{NAME}.py").write_text(FILE)
    monkeypatch.setattr(offramp.recipes, "__path__", [*offramp.recipes.__path__, str(folder)])
    yield NAME
    sys.modules.pop(f"offramp.recipes.{NAME}", None)
    vars(offramp.recipes).pop(NAME, None)


@pytest.fixture
def offramp_says(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``offramp_says("predict", run, "text")``: what the command line prints, where all goes well."""

    def call(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        done = capsys.readouterr()
        assert not left.value.code, done.err
        return done.out

    return call


def test_one_file_is_enough(
    toy: str,
    offramp_says: Callable[..., str],
    tiny_encoder: str,
    toy_data: Callable[..., str],
    tmp_path: Path,
) -> None:
    run, data = tmp_path / "run", toy_data()
    listed = {entry["name"]: entry for entry in json.loads(offramp_says("recipes", "--json"))}
    assert listed[toy]["serves"] == ["single_label_classification", "multi_label_classification"]
    assert listed[toy]["knobs"].keys() == {"patience", "confidence"}
    assert f"--recipe {toy}" in offramp_says("recipes", toy)

    words = ["--max_steps", 6, "--learning_rate", "5e-3", "--bf16", "false", "--pooling", "mean"]
    offramp_says("train", "--model", tiny_encoder, "--data", data, "--recipe", toy, "--out", run, *words)
    history = json.loads((run / "training.json").read_text())["history"]
    assert {entry["phase"] for entry in history} == {1, 2}

    offramp_says("record", run, "--data", data, "--out", tmp_path / "trace")
    compared = json.loads(offramp_says("compare", run, "--trace", tmp_path / "trace", "--json"))
    assert {"patience", "edr"} <= {row["name"] for row in compared["rows"]}

    answers = [json.loads(line) for line in offramp_says("predict", run, "a gem", "--knob", "patience=1").splitlines()]
    assert answers[0]["label"] in ("good", "bad", "odd")
    clf = offramp.load(run)
    assert clf("a gem", knobs={"patience": 1}).label == answers[0]["label"]


def test_a_file_that_holds_no_recipe_is_named(toy: str, tmp_path: Path) -> None:
    (tmp_path / "more_recipes" / f"{NAME}.py").write_text("recipe = 3\n")
    with pytest.raises(AssertionError, match=f"{NAME}.py must define `recipe`"):
        offramp.recipes.load_recipe(toy)


def test_it_is_gone_when_the_file_is_gone() -> None:
    assert NAME not in offramp.recipes.available()


def test_who_serves_what_is_read_from_the_files(toy: str) -> None:
    """A recipe that cannot do a task names those that can: the toy is among them where it can."""
    from offramp.errors import UnsupportedError

    cases: list[tuple[Any, bool]] = [("multi_label_classification", True), ("regression", False)]
    for kind, able in cases:
        with pytest.raises(UnsupportedError, match=f"the data is {kind}") as refused:
            offramp.recipes.load_recipe("de3bert").criterion(kind)
        assert (toy in str(refused.value)) == able
        assert "joint" in str(refused.value)
