"""A suite as data: tasks x recipes x seeds, in the order they are worth running.

A *cell* is a recipe on a task with a seed. Recipes that differ only in the criterion share a *training*: the cells
have one key, and the model is trained once. Nothing here trains or reads data: ``bench.suite_run`` does.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from offramp.calibration.fitting import Fitted
from offramp.criteria import Criterion, make
from offramp.errors import DataError, KnobError
from offramp.recipes import Recipe, load_recipe
from offramp.types import PROBLEM_TYPES, Pooling, ProblemType

__all__ = ["Cell", "Entry", "Suite", "SuiteTask", "Tier", "changed_fields", "load_suite"]

NOT_OF_TRAINING = ("summary", "source", "criteria", "fit", "pooling", "exit_epochs")
"""Fields of a recipe that a trained model does not depend on: of the last two, a row has its own."""


@dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """A data set, and what is done with it."""

    name: str
    folder: str
    """Under the root of the data: holds ``train.*`` and ``dev.*`` (or ``validation.*``, ``test.*``)."""
    metric: str | None = None
    """Thresholds are chosen and scored by it; None: the task's main one."""
    problem_type: ProblemType = "single_label_classification"
    train_rows: int | None = None
    """At most so many training rows, drawn by the seed; None: all."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Training arguments that differ from the suite's."""
    get: str = "put train.jsonl and dev.jsonl there"
    """What to do where the folder is missing."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the tables: a recipe file with changes."""

    name: str
    recipe: str
    """Name of the file in recipes/."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """As ``Plan.settings``."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Training arguments; they win over everything else."""
    num_layers: int | None = None
    """Only the encoder's first layers, so many of them; None: all."""
    pooling: Pooling | None = None
    """As ``Plan.pooling``; None: as the encoder was pretrained to be read, whatever the recipe says."""
    exit_epochs: float | Literal["recipe"] = 0.0
    """As ``Plan.exit_epochs``; ``recipe``: as the recipe says."""
    criterion: str | None = None
    """A criterion by name, with its defaults; None: the recipe's own."""

    def loaded(self) -> Recipe:
        """The recipe with its changes.

        Raises:
            KnobError: no such recipe, or a setting that it does not have.
        """
        return load_recipe(self.recipe).changed(self.settings)

    def rule(self, problem_type: ProblemType) -> Criterion | Fitted:
        """The criterion this row leaves by, or the one whose settings are to be learned.

        Raises:
            KnobError: no such recipe, setting or criterion.
            UnsupportedError: it does not serve the problem type.
        """
        recipe = self.loaded()
        own = recipe.criterion(problem_type)
        rule = own if self.criterion is None else make(self.criterion, problem_type=problem_type)
        fit = rule.fit or (recipe.learns(problem_type) if self.criterion is None else None)
        return rule if fit is None else Fitted(rule, fit)


@dataclass(frozen=True, kw_only=True)
class Tier:
    """Recipes that are run alike."""

    name: str
    recipes: tuple[str, ...]
    seeds: Mapping[str, int]
    """Task -> how many seeds: 0, 1, ..."""


@dataclass(frozen=True, order=True)
class Cell:
    """A recipe on a task with a seed."""

    task: str
    recipe: str
    """Name of an entry."""
    seed: int
    tier: str = field(compare=False, default="")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What ``benchmarks/suite.toml`` says."""

    name: str
    encoder: str
    """Hub name or folder."""
    tasks: Mapping[str, SuiteTask]
    entries: Mapping[str, Entry]
    tiers: tuple[Tier, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Training arguments of every cell, where task, recipe or entry say nothing else."""
    max_length: int | None = None
    baseline: str = "joint"
    """The entry whose static exits and oracle are shown."""
    targets: tuple[float, ...] = (1.5, 2.0, 3.0)
    """Layer speed-ups."""
    splits: int = 50
    resamples: int = 1000
    unions: tuple[tuple[str, ...], ...] = ()
    """Tasks over which rows are averaged, a table each."""

    def cells(self) -> list[Cell]:
        """Every cell once, the most useful first: seed 0 of every tier, task by task, then further seeds."""
        found: dict[Cell, None] = {}
        most = max((count for tier in self.tiers for count in tier.seeds.values()), default=0)
        for seed in range(most):
            for tier in self.tiers:
                for task in self.tasks:
                    if seed < tier.seeds.get(task, 0):
                        found |= dict.fromkeys(Cell(task, recipe, seed, tier.name) for recipe in tier.recipes)
        return list(found)

    def plan_arguments(self, cell: Cell) -> dict[str, Any]:
        """Training arguments of a cell: the suite's, over them the task's, over them the entry's.

        What a recipe or one of its phases sets for itself is left to it, unless the entry sets it.

        Raises:
            KnobError: as ``Entry.loaded``.
        """
        entry = self.entries[cell.recipe]
        recipe = entry.loaded()
        own = set(recipe.arguments).union(*(phase.arguments for phase in recipe.training))
        shared = {**self.arguments, **self.tasks[cell.task].arguments}
        kept = {name: value for name, value in shared.items() if name not in own}
        return {**kept, **entry.arguments, "seed": cell.seed}

    def key(self, cell: Cell) -> str:
        """What is trained, as 16 hexadecimal digits: cells with one key share the model.

        Raises:
            KnobError: as ``Entry.loaded``.
        """
        entry = self.entries[cell.recipe]
        recipe = entry.loaded()
        exit_epochs = ["recipe", recipe.exit_epochs] if entry.exit_epochs == "recipe" else entry.exit_epochs
        said = {
            "arguments": self.plan_arguments(cell),
            "recipe": {name: value for name, value in changed_fields(recipe).items() if name not in NOT_OF_TRAINING},
            **({"pooling": entry.pooling} if entry.pooling else {}),
            **({"exit_epochs": exit_epochs} if exit_epochs else {}),
        }
        return self.digest(cell, said)

    def digest(self, cell: Cell, said: Mapping[str, Any]) -> str:
        """16 hexadecimal digits of what is said of a training, and of the encoder and rows that it begins with."""
        task = self.tasks[cell.task]
        said = {
            **said,
            "encoder": self.encoder,
            "num_layers": self.entries[cell.recipe].num_layers,
            "max_length": self.max_length,
            "task": [task.name, task.folder, task.problem_type, task.train_rows],
        }
        return hashlib.sha256(json.dumps(_plain(said), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """As results keep it."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Suite:
        """The inverse of ``to_json``.

        Raises:
            DataError: something is missing, unknown or of the wrong kind.
        """
        rest = dict(value)
        tasks = {n: _made(SuiteTask, one, f"task {n}") for n, one in _table(rest.pop("tasks", None), "tasks").items()}
        entries = {n: _made(Entry, one, f"recipe {n}") for n, one in _table(rest.pop("entries", {}), "recipes").items()}
        tiers = []
        for one in rest.pop("tiers", None) or []:
            tier = _made(Tier, _table(one, "tiers"), f"tier {one.get('name')}")
            tiers.append(Tier(name=tier.name, recipes=tuple(tier.recipes), seeds=dict(tier.seeds)))
        suite = _made(cls, rest | {"tasks": tasks, "entries": entries, "tiers": tuple(tiers)}, "the suite")
        object.__setattr__(suite, "targets", tuple(float(target) for target in suite.targets))
        object.__setattr__(suite, "unions", _unions(suite.unions))
        _check(suite)
        return suite


def load_suite(path: str | Path) -> Suite:
    """Read a suite's TOML file: see benchmarks/suite.toml.

    A recipe that a tier names and ``[recipes]`` does not is the recipe file of that name as it is. Whether there is
    such a file is not asked: a suite may name what is yet to be written.

    Raises:
        DataError: no such file, not TOML, or something in it is missing, unknown or of the wrong kind.
    """
    path = Path(path)
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no suite {path}: benchmarks/suite.toml is one") from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not TOML: {error}") from None
    tiers = given.get("tiers") or []
    if not isinstance(tiers, list):
        raise DataError(f"{path}: tiers must be written as [[tiers]]")
    recipes = _table(given.pop("recipes", {}), "recipes")
    named = dict.fromkeys([*recipes, *(name for tier in tiers for name in tier.get("recipes", ()))])
    given["entries"] = {name: {"name": name, "recipe": name, **recipes.get(name, {})} for name in named}
    given["tasks"] = {
        name: {"name": name, "folder": name, **one} for name, one in _table(given.get("tasks"), "tasks").items()
    }
    given.setdefault("name", path.stem)
    return Suite.from_json(given)


_Made = TypeVar("_Made", SuiteTask, Entry, Tier, Suite)


def _made(kind: type[_Made], values: Mapping[str, Any], what: str) -> _Made:
    """A dataclass of plain values, or a DataError that names what is unknown or missing."""
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(values) - known):
        known = {"recipes" if name == "entries" else name for name in known}  # as the file calls them
        raise DataError(f"{what} has {unknown[0]!r}, which means nothing here: it may have {', '.join(sorted(known))}")
    try:
        return kind(**values)
    except TypeError as error:  # Python's own words name what is missing
        raise DataError(f"{what}: {str(error).partition('__init__() ')[2] or error}") from None


def _table(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"a suite needs {what}: write [{what}.NAME]")
    return value


def _unions(value: Any) -> tuple[tuple[str, ...], ...]:
    lists = isinstance(value, list | tuple) and all(isinstance(union, list | tuple) for union in value)
    if not lists or not all(isinstance(task, str) for union in value for task in union):
        raise DataError(f'unions are lists of tasks, such as [["mrpc", "sst2"]], not {value!r}')
    return tuple(tuple(union) for union in value)


def _check_union(union: Sequence[str], suite: Suite) -> None:
    """Raise DataError where a mean over these tasks would say nothing."""
    for task in union:
        if task not in suite.tasks:
            raise DataError(f"unions name the task {task!r}, and no task is called that")
    if not union or len(set(union)) < len(union):
        raise DataError(f"a union needs tasks, each of them once: {list(union)}")
    # Their gaps are against different rows of the tables: entropy, or a static exit.
    if len({suite.tasks[task].problem_type == "regression" for task in union}) > 1:
        raise DataError(f"a union is of regression or of classification, not of both: {list(union)}")


def _check(suite: Suite) -> None:
    """Raise DataError where parts do not fit each other."""
    if not suite.tiers:
        raise DataError("a suite needs a tier: write [[tiers]] with name, recipes and seeds")
    for tier in suite.tiers:
        for task, count in tier.seeds.items():
            if task not in suite.tasks:
                raise DataError(f"tier {tier.name} has seeds for {task!r}, and no task is called that")
            if not isinstance(count, int) or count < 0:
                raise DataError(f"tier {tier.name}: seeds of {task} is a whole number of 0 or more, not {count!r}")
    for union in suite.unions:
        _check_union(union, suite)
    for entry in suite.entries.values():
        if entry.exit_epochs != "recipe" and not isinstance(entry.exit_epochs, int | float):
            raise DataError(f'recipe {entry.name}: exit_epochs is a number or "recipe", not {entry.exit_epochs!r}')
    for one in suite.tasks.values():
        if one.problem_type not in PROBLEM_TYPES:
            raise DataError(f"task {one.name}: problem_type must be one of {', '.join(PROBLEM_TYPES)}")
    if any(not target >= 1 for target in suite.targets) or not suite.targets:
        raise DataError("targets of a suite are layer speed-ups of 1 or more")


def select(cells: Sequence[Cell], *, tasks: Sequence[str] = (), recipes: Sequence[str] = ()) -> list[Cell]:
    """Those cells whose task and recipe are named; nothing named: all of them.

    Raises:
        KnobError: a name that no cell has.
    """
    for what, names, known in (
        ("task", tasks, {cell.task for cell in cells}),
        ("recipe", recipes, {cell.recipe for cell in cells}),
    ):
        for name in names:
            if name not in known:
                raise KnobError(f"the suite has no {what} {name!r}, only {', '.join(sorted(known))}")
    return [cell for cell in cells if (not tasks or cell.task in tasks) and (not recipes or cell.recipe in recipes)]


def changed_fields(value: Any) -> Any:
    """As JSON has it, without fields that are at their defaults: a field that recipes gain later changes no key."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: (getattr(value, f.name), f) for f in fields(value)}
        return {name: changed_fields(part) for name, (part, f) in parts.items() if part != _default(f)}
    if isinstance(value, list | tuple):
        return [changed_fields(item) for item in value]
    return _plain(value)


def _default(declared: Field[Any]) -> Any:
    return declared.default if declared.default_factory is MISSING else declared.default_factory()


def _plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
