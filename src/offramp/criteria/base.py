"""What a criterion is: a rule that says, exit by exit, who leaves.

A criterion is a frozen dataclass of *settings* (fixed when an operating point is made) whose *knobs* (settable per
request) arrive with every call. It keeps nothing: state goes in and comes back. The same ``step`` serves live
traffic and replays a trace, on numpy and torch arrays alike.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

from array_api_compat import array_namespace

from offramp.errors import KnobError, UnsupportedError
from offramp.settings import check_number, is_number
from offramp.types import Array, Decision, ExitOutput, Knobs, ProblemType, Stage, State

__all__ = ["MAX_LAYERS", "Criterion", "Knob", "Scored", "score_name"]


@dataclass(frozen=True)
class Knob:
    """A number that a request may set."""

    default: float
    low: float
    high: float
    faster: Literal["up", "down"]
    """Direction in which units leave earlier (never later): the knob is monotone."""
    integer: bool = False
    counts: Literal["exits", "layers"] = "exits"
    """What a whole number counts."""

    def check(self, name: str, value: float) -> None:
        """Raise KnobError where the value is outside the knob's range, or is no number."""
        if not is_number(value):
            raise KnobError(f"{name} must be a number, not {value!r}")
        if not self.low <= value <= self.high:
            raise KnobError(f"{name} must be between {self.low:g} and {self.high:g}, not {value!r}")
        if self.integer and value != int(value):
            raise KnobError(f"{name} must be a whole number, not {value!r}")


MAX_LAYERS = Knob(1000, 1, 1000, faster="down", integer=True, counts="layers")
"""The engine's own knob ``max_layers``, beside every criterion's: leave at the first exit after this many layers or
more, whatever the criterion says."""


@dataclass(frozen=True, kw_only=True)
class Criterion(ABC):
    """Who leaves. Subclasses are final; tweak by wrapping."""

    problem_type: ProblemType = "single_label_classification"

    name: ClassVar[str]
    """Name on the command line and in operating points."""
    summary: ClassVar[str]
    """One line for people."""
    serves: ClassVar[frozenset[ProblemType]]
    """Problem types it is defined for."""
    knobs: ClassVar[Mapping[str, Knob]]
    """What a request may set."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Names of the extras it reads from an exit's output."""
    fit: ClassVar[str | None] = None
    """Where its settings are learned from a trace: the name of that in ``offramp.calibration.fitting``."""

    def __post_init__(self) -> None:
        if self.problem_type not in self.serves:
            raise UnsupportedError(
                f"criterion {self.name!r} is not defined for {self.problem_type}: "
                f"it serves {', '.join(sorted(self.serves))}; `offramp compare` lists those that fit"
            )

    @abstractmethod
    def start(self, units: Array) -> State:
        """State of units that have passed no exit yet. ``units``: any array whose first axis is the unit."""

    @abstractmethod
    def step(self, stage: Stage, output: ExitOutput, state: State, knobs: Knobs) -> tuple[Decision, State]:
        """Decide at one exit.

        Args:
            stage: where the units are; at ``stage.is_last`` the engine lets everyone leave whatever is decided.
            output: logits [B, C] and extras.
            state: of these units, as ``start`` or the step before returned it.
            knobs: name -> [B].

        Returns:
            The decision, and the state of *all* B units (the engine keeps those that stay).

        Raises:
            UnsupportedError: the exit does not give an extra that the criterion needs.
        """

    def foresees(self, stage: Stage, knobs: Knobs) -> Array | None:
        """[B] bool: who leaves at an exit, where that is known without asking it; None: the exit must be run.

        An engine need not run an exit at which nobody leaves (a full-depth model should not pay for its exits).
        """
        return None

    @property
    def by_exit(self) -> bool:
        """It remembers the exits passed, or has a setting for each: an exit left out would change what it does."""
        return True

    def compared(self, stage: Stage, output: ExitOutput, state: State) -> Array | None:
        """[B]: the number that an exit holds against the criterion's fractional knob; None: it has no such knob.

        Which values of the knob are worth trying is read off these. Infinite where there is nothing to compare with;
        never NaN. Arguments as for ``step``.
        """
        return None

    def extra(self, output: ExitOutput, name: str) -> Array:
        """An extra of an exit's output, or an error that says what is missing."""
        if name not in output.extras:
            raise UnsupportedError(
                f"criterion {self.name!r} needs {name!r} at every exit, and this model's exits do not give it: train "
                "with a recipe that does (`offramp recipes` lists them; `--recipe de3bert` gives distances), or choose "
                "another criterion"
            )
        return output.extras[name]


class Scored(Criterion):
    """A criterion that leaves where one number falls below a threshold: ``score < threshold``.

    The score does not depend on the threshold, so a whole trace is scored once and every threshold is read off it.
    Lower scores are surer; a score is never NaN. Most scores know nothing of the exits before; one that does overrides
    ``follow`` and ``start``.

    An exit that has computed the score already (an exported stage, in its graph) hands it over as the extra
    ``score_name(criterion)``, and nothing but the comparison is left to do.
    """

    measure: ClassVar[str] = ""
    """What people read the score as, where the criterion's own name would say the opposite; empty: as its name."""

    @property
    def by_exit(self) -> bool:
        return type(self).follow is not Scored.follow

    @abstractmethod
    def score(self, stage: Stage, output: ExitOutput) -> Array:
        """[B]: how unsure the exit at the end of a stage is, taken by itself."""

    def follow(self, stage: Stage, output: ExitOutput, state: State) -> tuple[Array, State]:
        """The score of units that came through the exits before, and their state after this one."""
        known = output.extras.get(score_name(self)) if output.extras else None
        return (self.score(stage, output) if known is None else known), state

    def start(self, units: Array) -> State:
        return {}

    def compared(self, stage: Stage, output: ExitOutput, state: State) -> Array | None:
        return self.follow(stage, output, state)[0]

    def step(self, stage: Stage, output: ExitOutput, state: State, knobs: Knobs) -> tuple[Decision, State]:
        score, state = self.follow(stage, output, state)
        return Decision(score < knobs["threshold"], output.logits), state


@lru_cache(maxsize=256)
def score_name(criterion: Scored) -> str:
    """Name of the extra that holds what ``criterion.score`` says: the criterion's own, and its settings."""
    return f"score.{criterion.name} {json.dumps(asdict(criterion), sort_keys=True)}"


def log_softmax(logits: Array) -> Array:
    """[B, C] -> [B, C], safe for any finite logits."""
    xp = array_namespace(logits)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def log_sigmoid(logits: Array) -> Array:
    """Elementwise log of the logistic function, safe for any finite logit."""
    xp = array_namespace(logits)
    return xp.minimum(logits, xp.zeros_like(logits)) - xp.log1p(xp.exp(-xp.abs(logits)))


def log_probabilities(logits: Array, problem_type: ProblemType) -> Array:
    """Log-probability of every event: [B, C] of the classes; multi-label [B, 2 C]: each label's yes, each one's no."""
    if problem_type != "multi_label_classification":
        return log_softmax(logits)
    return array_namespace(logits).concat([log_sigmoid(logits), log_sigmoid(-logits)], axis=-1)


def in_a_row(holds: Array, state: State, knobs: Knobs) -> tuple[Array, Array]:
    """How many times in a row something held (``streak``, kept in the state), and whether ``patience`` is reached."""
    xp = array_namespace(holds)
    streak = xp.where(holds, state["streak"] + 1, xp.zeros_like(state["streak"]))
    return streak, streak >= knobs["patience"]


def check_by_exit(name: str, values: Any) -> tuple[float, ...]:
    """A setting with a number above 0 for each exit, or empty, as a tuple (JSON has only lists).

    Raises:
        KnobError: it is no list of such numbers.
    """
    if not isinstance(values, list | tuple):
        raise KnobError(f"{name} must be a list with a number for each exit, or empty, not {values!r}")
    for value in values:
        check_number(f"each of {name}", value, low=0)
        if value == 0:
            raise KnobError(f"each of {name} must be above 0, not {value!r}")
    return tuple(float(value) for value in values)


def at_exit(name: str, values: tuple[float, ...], stage: Stage) -> float:
    """The number of a stage's exit in a setting with one for each exit; 1 where the setting is empty.

    Raises:
        KnobError: there are not as many as exits (too many are noticed at the last exit).
    """
    if not values:
        return 1.0
    exits = stage.index + 1
    if len(values) < exits or (stage.is_last and len(values) > exits):
        more = "" if stage.is_last else " or more"
        raise KnobError(f"{name} holds {len(values)} numbers and this model has {exits}{more} exits: give one for each")
    return values[stage.index]
