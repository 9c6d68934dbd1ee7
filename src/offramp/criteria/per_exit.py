"""A threshold of its own at every exit, for any criterion that leaves where a score is low.

BranchyNet (2016), DeeBERT and BERxiT allow each exit its own threshold. Here they are one knob times a fixed number for
each exit, so that a request still turns one knob. ``offramp.calibration.thresholds`` learns the numbers from a trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from offramp.criteria import make
from offramp.criteria.base import Knob, Scored, at_exit, check_by_exit
from offramp.errors import KnobError, UnsupportedError
from offramp.types import Array, ExitOutput, ProblemType, Stage, State

__all__ = ["PerExit"]


@dataclass(frozen=True, kw_only=True)
class PerExit(Scored):
    """Leave exit e where another criterion's score < threshold * scale[e]."""

    of: str = "entropy"
    """Name of the criterion that scores."""
    options: tuple[tuple[str, Any], ...] = ()
    """Its settings, as pairs of name and value."""
    scale: tuple[float, ...] = ()
    """One number above 0 for each exit; empty: 1 for all."""

    name: ClassVar[str] = "per_exit"
    summary: ClassVar[str] = "another criterion's score, with a threshold of its own at each exit"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification", "multi_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {"threshold": Knob(0.3, 0.0, 1.01, faster="up")}
    fit: ClassVar[str | None] = "thresholds"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", check_by_exit("scale", self.scale))
        object.__setattr__(self, "options", _pairs(self.options))
        inner = make(self.of, problem_type=self.problem_type, **dict(self.options))
        if not isinstance(inner, Scored) or isinstance(inner, PerExit):
            raise UnsupportedError(
                f"criterion {self.of!r} leaves by no score of its own: name one that does, such as entropy"
            )
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "needs", inner.needs)

    @property
    def inner(self) -> Scored:
        """The criterion that scores."""
        found: Scored = vars(self)["_inner"]
        return found

    def start(self, units: Array) -> State:
        return self.inner.start(units)

    def score(self, stage: Stage, output: ExitOutput) -> Array:
        return self.inner.score(stage, output) / at_exit("scale", self.scale, stage)

    def follow(self, stage: Stage, output: ExitOutput, state: State) -> tuple[Array, State]:
        score, state = self.inner.follow(stage, output, state)
        return score / at_exit("scale", self.scale, stage), state


def _pairs(given: Any) -> tuple[tuple[str, Any], ...]:
    """Pairs as tuples: JSON has only lists."""
    if isinstance(given, Mapping):
        given = list(given.items())
    if not isinstance(given, list | tuple) or any(not isinstance(p, list | tuple) or len(p) != 2 for p in given):
        raise KnobError(f"options must be pairs of a setting's name and its value, not {given!r}")
    return tuple((str(name), _frozen(value)) for name, value in given)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
