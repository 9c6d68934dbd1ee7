"""Learned stopping: leave where going on is not worth its price.

Ours. A trace teaches, for every exit, the probability that its answer is right (or, without labels, that it is what the
last exit will say) from what is seen there: how sure it is, what the exit before thought of the same class, whether
the two agree, and how the text lies between the class prototypes. Backward induction over the trace then gives, for
every price of a layer, the probability above which to stop (``offramp.calibration.stopping``). Running it is a dot
product and a look into a small table; nothing here learns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace, device

from offramp.criteria.base import Knob, Scored, log_softmax
from offramp.criteria.distance import distance_ratio
from offramp.errors import KnobError
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
        try:  # JSON has only lists
            for name in ("weights", "stops"):
                object.__setattr__(self, name, tuple(tuple(float(x) for x in row) for row in getattr(self, name)))
            object.__setattr__(self, "prices", tuple(float(x) for x in self.prices))
        except (TypeError, ValueError):
            raise KnobError("learned_stopping takes tables of numbers: let `fit_stopping` make them") from None
        signals = 5 if self.ratio else 4
        fits = len(self.weights) == len(self.stops) and all(len(row) == signals for row in self.weights)
        if not fits or any(len(row) != len(self.prices) for row in self.stops):
            raise KnobError("the tables of learned_stopping do not fit each other: fit them again on a trace")

    def start(self, units: Array) -> State:
        xp = array_namespace(units)
        return {"before": xp.zeros((units.shape[0], 1), dtype=xp.float32, device=device(units))}

    def score(self, stage: Stage, output: ExitOutput) -> Array:
        return self.follow(stage, output, self.start(output.logits))[0]

    def follow(self, stage: Stage, output: ExitOutput, state: State) -> tuple[Array, State]:
        log_p = log_softmax(output.logits)
        after = {"before": array_namespace(log_p).astype(log_p, array_namespace(log_p).float32)}
        if not self.weights:
            return _doubt(log_p), after
        right = self.probability(stage, output, state)
        return self._price(right, stage), after

    def probability(self, stage: Stage, output: ExitOutput, state: State) -> Array:
        """[B]: of being right at this exit; 1 at the last, where nothing is decided any more."""
        xp = array_namespace(output.logits)
        if stage.index >= len(self.weights):
            return xp.ones_like(output.logits[:, 0])
        constant, *weights = self.weights[stage.index]
        signals = self.signals(stage, output, state)
        log_odds = constant + sum(w * signal for w, signal in zip(weights, signals, strict=True))
        return 1 / (1 + xp.exp(-xp.clip(log_odds, -50.0, 50.0)))

    def signals(self, stage: Stage, output: ExitOutput, state: State) -> list[Array]:
        """What the probability of being right is judged by, [B] each.

        Log-odds of the class this exit says; log-odds that the exit before gave that class; whether it said the same;
        and, where ``ratio`` is set, the distance ratio from -1 (at its own class) to 1.
        """
        xp = array_namespace(output.logits)
        log_p = log_softmax(output.logits)
        said = xp.argmax(log_p, axis=-1, keepdims=True)
        first = state["before"].shape[-1] != log_p.shape[-1]  # no exit came before
        zero = xp.zeros_like(log_p[:, 0])
        before = zero if first else _log_odds(_of_class(state["before"], said))
        same = zero if first else xp.astype(xp.argmax(state["before"], axis=-1) == said[:, 0], log_p.dtype)
        found = [_log_odds(_of_class(log_p, said)), xp.astype(before, log_p.dtype), same]
        if self.ratio:
            distances = self.extra(output, "distances")
            found.append(xp.astype(2 * distance_ratio(distances, output.logits) - 1, log_p.dtype))
        return found

    def _price(self, right: Array, stage: Stage) -> Array:
        """[B]: the lowest price at which a unit so likely right stops, read between the columns of the table."""
        xp = array_namespace(right)
        if stage.index >= len(self.stops):
            return xp.zeros_like(right)
        where: dict[str, Any] = {"dtype": right.dtype, "device": device(right)}
        stops = xp.asarray(self.stops[stage.index], **where)
        prices = xp.asarray([0.0, *self.prices, 1.0], **where)
        # How many prices are too low for stopping; between two columns the price falls as the probability rises.
        above = xp.asarray([1.0], **where)
        below = xp.asarray([0.0], **where)
        edges = xp.concat([above, stops, below])
        place = xp.sum(xp.astype(right[:, None] < stops[None, :], xp.int64), axis=-1)
        high, low = xp.take(edges, place), xp.take(edges, place + 1)
        share = (high - right) / xp.maximum(high - low, xp.full_like(high, 1e-9))
        share = xp.clip(share, 0.0, 1.0)
        return xp.take(prices, place) + share * (xp.take(prices, place + 1) - xp.take(prices, place))


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


def _doubt(log_p: Array) -> Array:
    xp = array_namespace(log_p)
    return -xp.expm1(xp.max(log_p, axis=-1))
