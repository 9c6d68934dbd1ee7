"""Patience over certainty: leave when several exits in a row are sure, whatever they say.

PCEE-BERT, Findings of NAACL 2022. With ``patience`` 1 it is the entropy criterion. Unlike ``patience`` the
exits need not agree and the first one counts, so the earliest exit is number ``patience``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from array_api_compat import array_namespace, device

from offramp.criteria.base import Criterion, Knob, in_a_row, log_probabilities, log_softmax
from offramp.criteria.entropy import uncertainty
from offramp.settings import check_choice
from offramp.types import Array, Decision, ExitOutput, Knobs, ProblemType, Stage, State

__all__ = ["Ensemble", "PatienceEntropy"]

Ensemble = Literal["last", "run", "all"]


@dataclass(frozen=True, kw_only=True)
class PatienceEntropy(Criterion):
    """Leave at the exit that ends ``patience`` exits in a row with normalised entropy < threshold.

    An exit that is not sure starts the count again. Multi-label: the entropy of the least sure label.
    """

    ensemble: Ensemble = "last"
    """Who answers: ``last``, the exit that is left at; ``run``, the mean of the probabilities over the sure exits in a
    row that end here (none: this exit alone); ``all``, the mean over all exits passed. The last exit too answers so."""

    name: ClassVar[str] = "patience_entropy"
    summary: ClassVar[str] = "several exits in a row are sure (PCEE-BERT)"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification", "multi_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {
        "threshold": Knob(0.2, 0.0, 1.01, faster="up"),
        "patience": Knob(2, 1, 1000, faster="down", integer=True),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("ensemble", self.ensemble, get_args(Ensemble))

    def start(self, units: Array) -> State:
        xp = array_namespace(units)
        n, where = units.shape[0], device(units)
        state = {"streak": xp.zeros(n, dtype=xp.int64, device=where)}
        if self.ensemble != "last":  # log of a sum of no probabilities
            state["total"] = xp.full((n, 1), -float("inf"), dtype=xp.float32, device=where)
        return state

    def compared(self, stage: Stage, output: ExitOutput, state: State) -> Array:
        return uncertainty(output.logits, self.problem_type)

    def step(self, stage: Stage, output: ExitOutput, state: State, knobs: Knobs) -> tuple[Decision, State]:
        sure = self.compared(stage, output, state) < knobs["threshold"]
        streak, leave = in_a_row(sure, state, knobs)
        if self.ensemble == "last":
            return Decision(leave, output.logits), {"streak": streak}
        xp = array_namespace(output.logits)
        # Sums are kept as logarithms: no probability underflows to an answer of minus infinity.
        own = xp.astype(log_probabilities(output.logits, self.problem_type), xp.float32)
        total = shown = xp.logaddexp(state["total"], own)
        if self.ensemble == "run":
            shown = xp.where(sure[:, None], total, own)
            total = xp.where(sure[:, None], total, xp.full_like(total, -float("inf")))
        answer = xp.astype(self._mean(shown), output.logits.dtype)
        return Decision(leave, answer), {"streak": streak, "total": total}

    def _mean(self, total: Array) -> Array:
        """Logits [B, C] of the mean distribution: how many were summed cancels."""
        if self.problem_type == "single_label_classification":
            return log_softmax(total)
        labels = total.shape[-1] // 2
        return total[:, :labels] - total[:, labels:]
