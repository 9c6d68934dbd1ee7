"""Confidence with a fallback: where no exit was sure enough, answer with the one that was surest.

Kaya et al., "Shallow-Deep Networks", ICML 2019. Plain ``confidence`` answers with the last exit there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace, device

from offramp.criteria.base import Criterion, Knob
from offramp.criteria.confidence import doubt
from offramp.types import Array, Decision, ExitOutput, Knobs, ProblemType, Stage, State

__all__ = ["ConfidenceFallback"]

_ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True)
class ConfidenceFallback(Criterion):
    """Leave where 1 - max p < threshold, as ``confidence`` does.

    Who leaves without that - at the last exit, or because a request allows no more layers - gets the answer of the
    surest exit it passed, this one included; the earliest of equals.
    """

    name: ClassVar[str] = "confidence_fallback"
    summary: ClassVar[str] = "as confidence; where no exit is sure enough, the surest one answers (Shallow-Deep)"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification", "multi_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {"threshold": Knob(0.1, 0.0, 1.01, faster="up")}

    def start(self, units: Array) -> State:
        xp = array_namespace(units)
        n, where = units.shape[0], device(units)
        return {
            "doubt": xp.full((n,), float("inf"), dtype=xp.float32, device=where),
            "answer": xp.zeros((n, 1), dtype=xp.float32, device=where),  # never read: any exit is surer than this
        }

    def compared(self, stage: Stage, output: ExitOutput, state: State) -> Array:
        return doubt(output.logits, self.problem_type)

    def step(self, stage: Stage, output: ExitOutput, state: State, knobs: Knobs) -> tuple[Decision, State]:
        xp = array_namespace(output.logits)
        found = self.compared(stage, output, state)
        now = xp.astype(found, xp.float32)
        # The last bit of a probability must not choose between exits that are equally sure.
        surer = now < state["doubt"] * (1 - _ROUNDING)
        best = xp.where(surer[:, None], output.logits, state["answer"])
        leave = found < knobs["threshold"]
        answer = xp.where(leave[:, None], output.logits, best)
        return Decision(leave, answer), {"doubt": xp.where(surer, now, state["doubt"]), "answer": best}
