"""Patience: leave when several exits in a row agree.

Zhou et al., "BERT Loses Patience", NeurIPS 2020, arXiv 2006.04152. The count is kept per text, so a batch need not
agree to leave. Agreement: the same class; the same set of labels; numbers closer than ``delta``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace, device

from offramp.criteria.base import Criterion, Knob, in_a_row
from offramp.types import Array, Decision, ExitOutput, Knobs, ProblemType, Stage, State

__all__ = ["Patience", "PatienceDelta"]


@dataclass(frozen=True, kw_only=True)
class Patience(Criterion):
    """Leave at the first exit that agrees with the ``patience`` exits before it: ``patience + 1`` equal answers."""

    name: ClassVar[str] = "patience"
    summary: ClassVar[str] = "several exits in a row give the same answer"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification", "multi_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {"patience": Knob(3, 1, 1000, faster="down", integer=True)}

    def start(self, units: Array) -> State:
        xp = array_namespace(units)
        n, where = units.shape[0], device(units)
        # -1 is no class: the first exit has nothing to agree with.
        return {
            "streak": xp.zeros(n, dtype=xp.int64, device=where),
            "answer": xp.full((n, 1), -1, dtype=xp.int64, device=where),
        }

    def step(self, stage: Stage, output: ExitOutput, state: State, knobs: Knobs) -> tuple[Decision, State]:
        xp = array_namespace(output.logits)
        if self.problem_type == "single_label_classification":
            answer = xp.argmax(output.logits, axis=-1, keepdims=True)
        else:
            answer = xp.astype(output.logits > 0, xp.int64)
        streak, leave = in_a_row(xp.all(answer == state["answer"], axis=-1), state, knobs)
        return Decision(leave, output.logits), {"streak": streak, "answer": xp.astype(answer, xp.int64)}


@dataclass(frozen=True, kw_only=True)
class PatienceDelta(Criterion):
    """Regression: leave when ``patience`` steps in a row moved the number by less than ``delta``."""

    problem_type: ProblemType = "regression"

    name: ClassVar[str] = "patience_delta"
    summary: ClassVar[str] = "the number hardly moves from exit to exit (regression)"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"regression"})
    knobs: ClassVar[Mapping[str, Knob]] = {
        "delta": Knob(0.1, 0.0, float("inf"), faster="up"),
        "patience": Knob(1, 1, 1000, faster="down", integer=True),
    }

    def start(self, units: Array) -> State:
        xp = array_namespace(units)
        n, where = units.shape[0], device(units)
        # Nothing is within delta of infinity: the first exit has nothing to agree with.
        return {
            "streak": xp.zeros(n, dtype=xp.int64, device=where),
            "answer": xp.full((n,), float("inf"), dtype=xp.float32, device=where),
        }

    def compared(self, stage: Stage, output: ExitOutput, state: State) -> Array:
        return array_namespace(output.logits).abs(_number(output) - state["answer"])

    def step(self, stage: Stage, output: ExitOutput, state: State, knobs: Knobs) -> tuple[Decision, State]:
        streak, leave = in_a_row(self.compared(stage, output, state) < knobs["delta"], state, knobs)
        return Decision(leave, output.logits), {"streak": streak, "answer": _number(output)}


def _number(output: ExitOutput) -> Array:
    xp = array_namespace(output.logits)
    return xp.astype(output.logits[:, 0], xp.float32)
