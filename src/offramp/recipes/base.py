"""What a recipe is: one paper's heads, training and criterion, put together from named parts.

Recipe files import without torch, so that a served model can find its criterion: a head or an objective is named
here, and looked up (``offramp.model.heads``, ``offramp.objectives``) when training needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from typing import Any, Literal

from offramp.criteria import Criterion
from offramp.errors import KnobError, UnsupportedError
from offramp.types import Pooling, ProblemType

__all__ = ["Part", "Phase", "Recipe", "part"]


@dataclass(frozen=True)
class Part:
    """A head or an objective by name, with its settings."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, settings: Mapping[str, Any]) -> Part:
        """The same part with some settings replaced."""
        return replace(self, settings={**self.settings, **settings})

    def to_json(self) -> dict[str, Any]:
        """As it stands in a run folder's config.json."""
        return {"name": self.name, "settings": dict(self.settings)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Part:
        """The inverse of ``to_json``."""
        return cls(str(value["name"]), dict(value["settings"]))


def part(name: str, **settings: Any) -> Part:
    """A part by name: ``part("linear", dropout=0.1)``."""
    return Part(name, settings)


_MOVES = {
    "all": "the encoder and all exits learn",
    "heads": "only the exits learn; the encoder stands still",
    "backbone": "only the encoder and its own head learn",
}


@dataclass(frozen=True)
class Phase:
    """One run of the optimiser."""

    objective: Part
    train: str = "all"
    """Whose parameters move: ``all``; ``heads``, the exits' only; ``backbone``, the encoder's and its own head's only;
    any other name: the exits' submodules of that name (``policy``). A frozen encoder runs without dropout."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Training arguments (transformers' names) of this phase that differ from the recipe's."""
    fixed: bool = False
    """Settings that an objective is changed with (``--set objective.by=depth``) are not meant for this phase's."""
    firm: bool = False
    """Its arguments win over those given for the training as a whole."""

    @property
    def moves(self) -> str:
        """What learns, in words."""
        return _MOVES.get(self.train, f"only the exits' `{self.train}` learns")


@dataclass(frozen=True)
class Recipe:
    """One paper's method."""

    summary: str
    """One line for people."""
    source: str
    """Authors, title, venue, address."""
    head: Part
    training: tuple[Phase, ...]
    criteria: Mapping[ProblemType, Criterion]
    """The rule it leaves by, for each problem type it serves."""
    fit: str | None = None
    """What of its criterion is learned from the trace of dev, by its name in ``offramp.calibration.fitting``; only
    where texts have one class each."""
    exits: Literal["all", "last"] = "all"
    """Exits after every layer, or none but the last."""
    shared: bool = False
    """One head for all early exits."""
    members: tuple[float, ...] = ()
    """Smaller complete models that answer before the full one, in place of exits: shares of its layers, rising."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Training arguments (transformers' names) that differ from ``offramp.training.arguments``'s defaults."""
    pooling: Pooling | None = None
    """What its early exits read, unless a training says otherwise; None: as the encoder was pretrained to be read. Of
    ``offramp train``, and of no paper: the comparison gives every recipe the same."""
    exit_epochs: float = 0.0
    """Epochs that its exits learn alone afterwards, on the frozen encoder, unless a training says otherwise; of many
    rows fewer. Of ``offramp train``, and of no paper: the comparison does without."""

    def criterion(self, problem_type: ProblemType) -> Criterion:
        """The criterion for a problem type.

        Raises:
            UnsupportedError: the recipe does not serve it.
        """
        if problem_type not in self.criteria:
            raise UnsupportedError(
                f"this recipe serves {', '.join(self.criteria)} and the data is {problem_type}: "
                f"choose one that does ({', '.join(_able(problem_type))})"
            )
        return self.criteria[problem_type]

    def learns(self, problem_type: ProblemType) -> str | None:
        """The name of what of its criterion is learned from a trace, for a problem type; None: nothing."""
        return self.fit if problem_type == "single_label_classification" else None

    def changed(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe with settings replaced: ``{"head.width": 64, "objective.alpha": 1.0, "criterion.lam": 5}``.

        An objective's setting goes to those phases that name it, and to all phases where none does.

        Raises:
            KnobError: a name that does not begin with head, objective or criterion, or a setting that the recipe's
                criterion does not have (those of heads and objectives are checked when they are built).
        """
        groups: dict[str, dict[str, Any]] = {"head": {}, "objective": {}, "criterion": {}}
        for name, value in settings.items():
            group, dot, key = name.partition(".")
            if group not in groups or not dot:
                raise KnobError(f"setting {name!r} must begin with head., objective. or criterion.")
            groups[group][key] = value
        return replace(
            self,
            head=self.head.changed(groups["head"]),
            training=tuple(self._changed_phase(phase, groups["objective"]) for phase in self.training),
            criteria=self._changed_criteria(groups["criterion"]),
        )

    def _changed_phase(self, phase: Phase, settings: Mapping[str, Any]) -> Phase:
        """Objectives differ by phase: one that a setting is not meant for would refuse it."""
        named = {name for each in self.training if not each.fixed for name in each.objective.settings}
        if phase.fixed:
            return phase
        meant = {k: v for k, v in settings.items() if k in phase.objective.settings or k not in named}
        return replace(phase, objective=phase.objective.changed(meant))

    def _changed_criteria(self, settings: Mapping[str, Any]) -> dict[ProblemType, Criterion]:
        """Each criterion with those settings that it has; every setting must be one of some criterion's."""
        known = {kind: {f.name for f in fields(rule)} - {"problem_type"} for kind, rule in self.criteria.items()}
        every = set().union(*known.values())
        for name in settings:
            if name not in every:
                has = f"only {', '.join(sorted(every))}" if every else "none at all"
                raise KnobError(f"this recipe's criterion has no setting {name!r}, {has}")
        try:
            return {
                kind: replace(rule, **{name: settings[name] for name in settings if name in known[kind]})
                for kind, rule in self.criteria.items()
            }
        except TypeError as error:
            given = ", ".join(f"criterion.{name}={value!r}" for name, value in settings.items())
            raise KnobError(f"{given}: {error}") from None


def _able(problem_type: ProblemType) -> list[str]:
    """Names of the recipes that serve a problem type, found as ``offramp.recipes`` finds them."""
    recipes = import_module("offramp.recipes")  # which imports this file
    return [name for name in recipes.available() if problem_type in recipes.load_recipe(name).criteria]
