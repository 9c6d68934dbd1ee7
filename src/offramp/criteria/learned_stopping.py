"""Learned stopping: leave where going on is not worth its price.

Ours. A trace teaches, for every exit, the probability that its answer is right (or, without labels, that it is what the
last exit will say) from what is seen there: how sure it is, what the exit before thought of the same class, whether
the two agree, how long the text is, and how it lies between the class prototypes. Backward induction over the trace
then gives, for every price of a layer, the probability above which to stop (``offramp.calibration.stopping``). Running
it is a dot product and a look into a small table; nothing here learns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from array_api_compat import array_namespace, device

from offramp.criteria.base import Knob, Scored, log_softmax
from offramp.criteria.confidence import doubt
from offramp.criteria.distance import distance_ratio
from offramp.errors import KnobError, UnsupportedError
from offramp.types import Array, ExitOutput, ProblemType, Stage, State

__all__ = ["LearnedStopping"]

_CLIP = 10.0
"""Log-odds beyond this say the same."""

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class LearnedStopping(Scored):
    """Leave where the price of a layer at which stopping pays is below the threshold.

    Settings come from ``calibration.stopping.fit_stopping``. Without them it leaves where 1 - max p < threshold.
    """

    weights: Table = ()
    """[E - 1, F + 1]: for each early exit a constant and the weight of each signal in the log-odds of being right."""
    stops: Table = ()
    """[E - 1, K]: the probability of being right from which on to stop, for each price; falling."""
    prices: tuple[float, ...] = ()
    """[K]: of a layer, in units of an answer being right; rising."""
    ratio: bool = False
    """The distance ratio is among the signals."""

    name: ClassVar[str] = "learned_stopping"
    summary: ClassVar[str] = "going on is not worth the price of a layer, as learned from a trace"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {"threshold": Knob(0.01, 0.0, 1.01, faster="up")}
    fit: ClassVar[str | None] = "stopping"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weights", "stops"):  # JSON has only lists
            rows = _listed(name, getattr(self, name))
            object.__setattr__(self, name, tuple(_numbers(f"each row of {name}", row) for row in rows))
        object.__setattr__(self, "prices", _numbers("prices", self.prices))
        if (problem := _problem(self)) is not None:
            raise KnobError(f"{problem}: let `fit_stopping` make the tables of learned_stopping from a trace")

    def start(self, units: Array) -> State:
        xp = array_namespace(units)
        return {"before": xp.zeros((units.shape[0], 1), dtype=xp.float32, device=device(units))}

    def score(self, stage: Stage, output: ExitOutput) -> Array:
        return self.follow(stage, output, self.start(output.logits))[0]

    def follow(self, stage: Stage, output: ExitOutput, state: State) -> tuple[Array, State]:
        log_p = log_softmax(output.logits)
        xp = array_namespace(log_p)
        after = {"before": xp.astype(log_p, xp.float32)}
        if not self.weights:
            return doubt(output.logits, self.problem_type), after
        right = self.probability(stage, output, state)
        return (xp.zeros_like(right) if stage.is_last else self._price(right, stage)), after

    def probability(self, stage: Stage, output: ExitOutput, state: State) -> Array:
        """[B]: of being right at this exit; 1 at the last, where nothing is decided any more.

        Raises:
            KnobError: nothing was learned yet, or for another number of exits.
            UnsupportedError: the exit does not give what a signal is made of.
        """
        xp = array_namespace(output.logits)
        known, early = len(self.weights), stage.index + (not stage.is_last)
        if known < early or (stage.is_last and known > early):
            raise KnobError(
                f"learned_stopping was fitted on {known} early exits, and this model has {early}"
                f"{'' if stage.is_last else ' or more'}: fit it again on a trace of this model"
            )
        if stage.is_last:
            return xp.ones_like(output.logits[:, 0])
        constant, *weights = self.weights[stage.index]
        log_odds = constant + sum(w * s for w, s in zip(weights, self.signals(output, state), strict=True))
        return 1 / (1 + xp.exp(-xp.clip(log_odds, -50.0, 50.0)))

    def signals(self, output: ExitOutput, state: State) -> list[Array]:
        """What the probability of being right is judged by, [B] each.

        Log-odds of the class this exit says; log-odds that the exit before gave that class; whether it said the same
        (both 0 at the first exit); log(1 + number of tokens); and, where ``ratio`` is set, the distance ratio
        from -1 (at its own class) to 1.
        """
        if output.lengths is None:
            raise UnsupportedError(
                "criterion 'learned_stopping' reads how long each text is, and nobody said: give ExitOutput its lengths"
            )
        log_p, before = log_softmax(output.logits), state["before"]
        xp = array_namespace(log_p)
        said = xp.argmax(log_p, axis=-1, keepdims=True)
        then = same = xp.zeros_like(log_p[:, 0])
        if before.shape[-1] == log_p.shape[-1]:  # else no exit came before
            then = xp.astype(_log_odds(_of_class(before, said)), log_p.dtype)
            same = xp.astype(xp.argmax(before, axis=-1) == said[:, 0], log_p.dtype)
        found = [_log_odds(_of_class(log_p, said)), then, same, xp.log1p(xp.astype(output.lengths, log_p.dtype))]
        if self.ratio:
            ratio = distance_ratio(self.extra(output, "distances"), output.logits)
            found.append(xp.astype(2 * ratio - 1, log_p.dtype))
        return found

    def _price(self, right: Array, stage: Stage) -> Array:
        """[B]: the lowest price at which a unit so likely right stops, read between the columns of the table."""
        xp = array_namespace(right)
        where: dict[str, Any] = {"dtype": right.dtype, "device": device(right)}
        edges = xp.asarray([1.0, *self.stops[stage.index], 0.0], **where)
        prices = xp.asarray([0.0, *self.prices, 1.0], **where)
        # How many prices are too low for stopping; between two columns the price rises as the probability falls.
        place = xp.sum(xp.astype(right[:, None] < edges[None, 1:-1], xp.int64), axis=-1)
        high, low = xp.take(edges, place), xp.take(edges, place + 1)
        cheap, dear = xp.take(prices, place), xp.take(prices, place + 1)
        apart = high > low  # always, but for a probability of 1
        share = (high - right) / xp.where(apart, high - low, xp.ones_like(high))
        return cheap + xp.clip(share, 0.0, 1.0) * (dear - cheap)


def _listed(name: str, values: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(values, list | tuple):
        raise KnobError(f"{name} must be a list, not {values!r}: let `fit_stopping` make it from a trace")
    return values


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    """A list of finite numbers as a tuple."""
    for value in _listed(name, values):
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise KnobError(f"{name} must hold finite numbers, not {value!r}: let `fit_stopping` make it from a trace")
    return tuple(float(value) for value in values)


def _problem(rule: LearnedStopping) -> str | None:
    """What is wrong with tables that hold numbers; None: nothing."""
    numbers, early = 6 if rule.ratio else 5, len(rule.weights)
    if rule.ratio not in (True, False):
        return f"ratio must be true or false, not {rule.ratio!r}"
    if early != len(rule.stops):
        return f"weights are for {early} early exits and stops for {len(rule.stops)}"
    if any(len(row) != numbers for row in rule.weights):
        which = "with" if rule.ratio else "without"
        return f"each row of weights must hold {numbers} numbers, {which} the distance ratio"
    if any(len(row) != len(rule.prices) for row in rule.stops) or bool(early) != bool(rule.prices):
        return "each row of stops must hold one number for each of the prices"
    if any(b <= a for a, b in pairwise((0.0, *rule.prices, 1.0))) and early:
        return "prices must rise, between 0 and 1"
    if any(b > a for row in rule.stops for a, b in pairwise(row)):
        return "stops must never rise with the price"
    return None


def _of_class(log_p: Array, said: Array) -> Array:
    """[B, C] and [B, 1] -> [B]: the entry of one class in each row."""
    xp = array_namespace(log_p)
    chosen = xp.arange(log_p.shape[-1], dtype=said.dtype, device=device(log_p)) == said
    return xp.sum(xp.where(chosen, log_p, xp.zeros_like(log_p)), axis=-1)


def _log_odds(log_p: Array) -> Array:
    """Of one event, from the logarithm of its probability; clipped."""
    xp = array_namespace(log_p)
    against = xp.maximum(-xp.expm1(log_p), xp.full_like(log_p, 1e-12))
    return xp.clip(log_p - xp.log(against), -_CLIP, _CLIP)
