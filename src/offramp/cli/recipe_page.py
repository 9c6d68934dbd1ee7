"""A recipe as a page: what its file says, and how its parts are set. For ``offramp recipes NAME`` and docs/recipes/.

The text is the docstring of the recipe's file; everything in tables is read off the recipe's objects, and what a
setting takes is what its own error says that it takes. Pages need torch, because heads and objectives do.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

from offramp.criteria import Criterion
from offramp.errors import KnobError
from offramp.recipes import Part, Phase, Recipe, available, load_recipe
from offramp.types import ProblemType

__all__ = ["index", "page", "serves"]

KINDS: Mapping[ProblemType, str] = {
    "single_label_classification": "one label a text",
    "multi_label_classification": "several labels a text",
    "regression": "a number",
}


@dataclass(frozen=True)
class Setting:
    """A row of a table: name as ``--set`` takes it, the recipe's value, what it takes, what it means."""

    name: str
    value: Any
    takes: str
    note: str


def page(name: str) -> str:
    """The page of a recipe, as Markdown.

    Raises:
        KnobError: there is no such recipe.
    """
    recipe = load_recipe(name)
    title, text = _docstring(name, recipe)
    blocks = [
        f"# {title}",
        text,
        f"## Settings\n\nProblems it serves: {serves(recipe)}. `--set NAME=X` changes a setting in the tables.",
        *_exits(recipe),
        *_training(recipe),
        *_leaving(recipe),
        _commands(name),
    ]
    return "\n\n".join(blocks) + "\n"


def index() -> str:
    """The page that lists all recipes, as Markdown."""
    rows = []
    for name in available():
        recipe = load_recipe(name)
        rules = ", ".join(dict.fromkeys(rule.name for rule in recipe.criteria.values()))
        title = _docstring(name, recipe)[0]
        rows.append([f"[`{name}`]({name}.md)", title, recipe.summary, serves(recipe), rules])
    table = _table(["recipe", "method", "what it does", "problems", "leaves by"], rows)
    return (
        "# Recipes\n\nOne file a method in `src/offramp/recipes/`; each page here is written from that file by `python "
        "benchmarks/recipe_pages.py`. Which to take: [choosing a criterion](../choosing-a-criterion.md).\n\n"
        f"{table}\n"
    )


def serves(recipe: Recipe) -> str:
    """The problem types of a recipe, in words."""
    return ", ".join(KINDS[kind] for kind in recipe.criteria)


def _docstring(name: str, recipe: Recipe) -> tuple[str, str]:
    """The method's name, and what the recipe's file says of it."""
    said = inspect.getdoc(importlib.import_module(f"offramp.recipes.{name}")) or f"{name}: {recipe.summary}."
    first, _, rest = said.partition("\n")
    title, _, sentence = first.partition(": ")
    return title, f"{sentence[:1].upper()}{sentence[1:]}\n{rest}".strip().replace("``", "`")


def _exits(recipe: Recipe) -> list[str]:
    """What stands where."""
    from offramp.model.heads import Surroundings, head_class

    if recipe.exits == "last":
        return ["### Exits\n\nNone but the model's own head after the last layer."]
    head = recipe.head
    around = Surroundings(
        hidden_size=8, pooled_size=8, num_outputs=3, problem_type="single_label_classification", dropout=0.1
    )
    rows = _settings("head", head_class(head.name), head.settings, lambda **s: head_class(head.name)(around, **s))
    shared = "one for all exits" if recipe.shared else "one for each exit"
    if recipe.members:
        shares = ", ".join(str(Fraction(share).limit_denominator(100)) for share in recipe.members)
        places = f"Smaller complete models answer first, with {shares} of the full model's layers; in each stands"
    else:
        places = "After every layer but the last stands"
    said = _lower(_first_line(head_class(head.name)))
    return [
        f"### Exits\n\n{places} `{head.name}`, {shared}: {said} After the last layer stands the model's own head.",
        *_setting_table(rows),
    ]


def _training(recipe: Recipe) -> list[str]:
    """Its phases, and the settings of what they minimise."""
    blocks = ["### Training\n\n" + "\n".join(_phase(n, p, recipe) for n, p in enumerate(recipe.training, start=1))]
    if recipe.arguments:
        blocks.append(f"Training arguments that differ from `offramp train`'s own: {_arguments(recipe.arguments)}.")
    by_name: dict[str, dict[int, Part]] = {}
    for number, phase in enumerate(recipe.training, start=1):
        by_name.setdefault(phase.objective.name, {})[number] = phase.objective
    for name, phases in by_name.items():
        rows = _objective_rows(phases)
        if rows and len(by_name) > 1:
            blocks.append(f"Settings of `{name}`:")
        blocks += _setting_table(rows)
    return blocks


def _phase(number: int, phase: Phase, recipe: Recipe) -> str:
    from offramp.objectives import make_objective

    moves = phase.moves
    if recipe.exits == "last" or (recipe.members and phase.train == "all"):
        moves = "all models learn" if recipe.members else "the whole model learns"
    objective = make_objective(phase.objective.name, phase.objective.settings, num_exits=3)
    line = f"{number}. {moves[0].upper()}{moves[1:]}. Minimises `{phase.objective.name}`: "
    line += _lower(_first_line(type(objective)))
    return line + (f" Training arguments: {_arguments(phase.arguments)}." if phase.arguments else "")


def _objective_rows(phases: Mapping[int, Part]) -> list[Setting]:
    """Settings of one objective; where phases differ, with the value of each."""
    from offramp.objectives import make_objective

    def rows(objective: Part) -> list[Setting]:
        kind = type(make_objective(objective.name, objective.settings, num_exits=3))
        return _settings(
            "objective", kind, objective.settings, lambda **s: make_objective(objective.name, s, num_exits=3)
        )

    merged = []
    for same in zip(*(rows(objective) for objective in phases.values()), strict=True):
        values = [_shown(row.value) for row in same]
        told = [f"{value} in phase {number}" for number, value in zip(phases, values, strict=True)]
        merged.append(same[0] if len(set(values)) == 1 else replace(same[0], value=", ".join(told)))
    return merged


def _leaving(recipe: Recipe) -> list[str]:
    """The rules it leaves by, with knobs and settings; problem types with the same rule stand together."""
    rules: dict[str, tuple[Criterion, list[ProblemType]]] = {}
    for kind, criterion in recipe.criteria.items():
        same = repr({**asdict(criterion), "problem_type": criterion.name})
        rules.setdefault(same, (criterion, []))[1].append(kind)
    blocks = ["### Leaving"]
    for criterion, kinds in rules.values():
        where = "" if len(rules) == 1 else f" ({', '.join(KINDS[kind] for kind in kinds)})"
        blocks.append(f"By `{criterion.name}`{where}: {criterion.summary}.")
        blocks.append(_knob_table(criterion))
        blocks += _setting_table(_criterion_rows(criterion))
    blocks.append("A trained run has a default operating point, its knobs chosen on dev; `--knob NAME=X` sets others.")
    return blocks


def _knob_table(criterion: Criterion) -> str:
    rows = []
    for name, knob in criterion.knobs.items():
        values = f"{_number(knob.low)} to {_number(knob.high)}" + ", whole" * knob.integer
        rows.append([f"`{name}`", _number(knob.default), values, "higher" if knob.faster == "up" else "lower"])
    return _table(["knob", "default", "range", "faster"], rows)


def _criterion_rows(criterion: Criterion) -> list[Setting]:
    values = {f.name: getattr(criterion, f.name) for f in fields(criterion) if f.name != "problem_type"}
    return _settings("criterion", type(criterion), values, lambda **s: replace(criterion, **s))


def _commands(name: str) -> str:
    lines = [f"offramp train --model MODEL --data DATA --recipe {name} --out runs/x"]
    lines += ["offramp compare runs/x --data DATA", 'offramp predict runs/x "a text"']
    return "## Command line\n\n```\n" + "\n".join(lines) + "\n```"


def _settings(group: str, kind: type, given: Mapping[str, Any], build: Callable[..., object]) -> list[Setting]:
    """Every setting of a part, with the recipe's value or the part's own default."""
    notes = _notes(kind)
    return [
        Setting(f"{group}.{p.name}", given.get(p.name, p.default), _takes(build, p), notes.get(p.name, ""))
        for p in inspect.signature(kind).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name != "problem_type"
    ]


def _takes(build: Callable[..., object], parameter: inspect.Parameter) -> str:
    """What a setting takes, in the words of the error that refuses what it does not; else its type."""
    kind = str(parameter.annotation)
    if kind == "bool":
        return "true or false"
    try:
        build(**{parameter.name: "no such value"})
    except KnobError as error:
        if said := re.search(r" must be (.+), not ", str(error)):
            return said[1] + (", or null" if "None" in kind else "")
    except (TypeError, ValueError):  # it does not check this one
        pass
    return kind


def _notes(kind: type) -> dict[str, str]:
    """Setting -> what it means: from the docstring's ``Args``, or from the string under a dataclass's field."""
    arguments = (inspect.getdoc(kind) or "").partition("\nArgs:\n")[2]
    found = {m[1]: m[2] for m in re.finditer(r"^    (\w+): (.+(?:\n {8,}.+)*)", arguments, re.MULTILINE)}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    for one, text in pairwise(tree.body):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(text, ast.Expr):
            found[one.target.id] = str(ast.literal_eval(text.value))
    return {name: " ".join(text.replace("``", "`").split()) for name, text in found.items()}


def _setting_table(rows: Sequence[Setting]) -> list[str]:
    """A list of one table, or of none where there are no settings; without a column that would be empty."""
    if not rows:
        return []
    lines = [["setting", "default", "takes", "meaning"]]
    lines += [[f"`{row.name}`", _shown(row.value), row.takes, row.note] for row in rows]
    head, *body = lines if any(row.note for row in rows) else [line[:-1] for line in lines]
    return [_table(head, body)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |".replace("| --- ", "|---").replace("|--- |", "|---|") for line in lines)


def _arguments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`--{name} {_shown(value)}`" for name, value in values.items())


def _shown(value: Any) -> str:
    """A value as ``--set`` would take it."""
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: float) -> str:
    return "no limit" if math.isinf(value) else f"{value:g}"


def _first_line(kind: type) -> str:
    line = (inspect.getdoc(kind) or "").partition("\n")[0].replace("``", "`")
    return line if line.endswith((".", "!", "?")) else f"{line}."


def _lower(sentence: str) -> str:
    """To go on after a colon; acronyms stay."""
    return sentence if sentence[:2].isupper() else sentence[:1].lower() + sentence[1:]
