"""Entropy first, then a trend over the last exits.

ELBERT, ICASSP 2021. The released code follows the probability of class 0, which serves two classes; for
any number of them the trend is, by our choice, that of the predicted class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from array_api_compat import array_namespace, device

from offramp.criteria.base import Criterion, Knob, log_softmax
from offramp.criteria.entropy import normalised_entropy
from offramp.settings import check_choice, check_number
from offramp.types import Array, Decision, ExitOutput, Knobs, ProblemType, Stage, State

__all__ = ["Rule", "Window"]

Rule = Literal["same", "rising", "steady"]


@dataclass(frozen=True, kw_only=True)
class Window(Criterion):
    """Leave where normalised entropy < threshold, or where the last ``window`` exits, this one included, show a trend.

    With a threshold of 0 and the rule ``same`` it is ``patience`` with one less than ``window``.
    """

    rule: Rule = "same"
    """The trend: ``same``, all predict the same class (bias_1); ``rising``, and none is less confident than the one
    before it (bias_2); ``steady``, and their largest probabilities lie within ``spread`` (bias_3)."""
    spread: float = 0.1
    """Of rule ``steady``: largest less smallest confidence, from 0 to 1."""

    name: ClassVar[str] = "window"
    summary: ClassVar[str] = "entropy is low, or the last few exits show a trend (ELBERT)"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {
        "threshold": Knob(0.1, 0.0, 1.01, faster="up"),
        "window": Knob(4, 2, 1000, faster="down", integer=True),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rule", self.rule, get_args(Rule))
        check_number("spread", self.spread, low=0, high=1)

    def start(self, units: Array) -> State:
        xp = array_namespace(units)
        n, where = units.shape[0], device(units)
        state = {
            "length": xp.zeros(n, dtype=xp.int64, device=where),  # exits in the run that ends here
            "answer": xp.full((n,), -1, dtype=xp.int64, device=where),
        }
        if self.rule != "same":  # confidence: of the exit before, or of all exits passed
            state["tops"] = xp.zeros((n, int(self.rule == "rising")), dtype=xp.float32, device=where)
        return state

    def compared(self, stage: Stage, output: ExitOutput, state: State) -> Array:
        return normalised_entropy(output.logits)

    def step(self, stage: Stage, output: ExitOutput, state: State, knobs: Knobs) -> tuple[Decision, State]:
        sure = self.compared(stage, output, state) < knobs["threshold"]
        trend, state = self._trend(output, state, knobs["window"])
        return Decision(sure | trend, output.logits), state

    def _trend(self, output: ExitOutput, state: State, window: Array) -> tuple[Array, State]:
        """Whether the rule holds over the last ``window`` exits, and the state after this one."""
        xp = array_namespace(output.logits)
        answer = xp.astype(xp.argmax(output.logits, axis=-1), xp.int64)
        goes_on = answer == state["answer"]
        after = {"answer": answer}
        if self.rule != "same":
            top = xp.exp(xp.max(log_softmax(output.logits), axis=-1, keepdims=True))
            after["tops"] = top = xp.astype(top, xp.float32)
        if self.rule == "rising":
            goes_on = goes_on & (top >= state["tops"])[:, 0]
        after["length"] = xp.where(goes_on, state["length"] + 1, xp.ones_like(state["length"]))
        trend = after["length"] >= window
        if self.rule == "steady":
            after["tops"] = xp.concat([state["tops"], top], axis=1)
            trend = trend & (_range(after["tops"], window) <= self.spread)
        return trend, after


def _range(values: Array, number: Array) -> Array:
    """Largest less smallest of each row's last ``number`` values: [B, K], [B] -> [B]."""
    xp = array_namespace(values)
    age = xp.arange(values.shape[1] - 1, -1, -1, dtype=xp.int64, device=device(values))
    inside = age < number[:, None]
    high = xp.max(xp.where(inside, values, xp.zeros_like(values)), axis=-1)
    return high - xp.min(xp.where(inside, values, xp.ones_like(values)), axis=-1)
