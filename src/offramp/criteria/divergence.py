"""Patience over divergence: leave when several exits in a row hardly changed the distribution.

F-PABEE, ICASSP 2023, arXiv 2305.11916: patience that counts an exit whose distribution is close to the one before,
which gives a fine knob where plain patience has only as many settings as there are exits. The divergences are true
ones; what the released code computes in place of Jensen-Shannon is there as ``mean_entropy``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from array_api_compat import array_namespace, device

from offramp.criteria.base import Criterion, Knob, in_a_row, log_probabilities
from offramp.settings import check_choice
from offramp.types import Array, Decision, ExitOutput, Knobs, ProblemType, Stage, State

__all__ = ["Divergence", "Kind", "divergence"]

Kind = Literal["js", "kl", "reverse_kl", "symmetric_kl", "mean_entropy"]


def divergence(before: Array, now: Array, *, kind: Kind = "js") -> Array:
    """How far two distributions are apart, in nats: log-probabilities [B, K], [B, K] -> [B], 0 or more.

    ``js`` is Jensen-Shannon, at most ln 2; ``kl`` is KL(before || now), ``reverse_kl`` KL(now || before), and
    ``symmetric_kl`` their sum; ``mean_entropy`` is no divergence but the entropy of the mean of the two, large for two
    equal flat distributions. Several binary distributions side by side give the sum of theirs.
    """
    xp = array_namespace(before, now)
    terms = xp.sum(_TERMS[kind](before, now), axis=-1)
    # Rounding must not make equal distributions closer than equal: nothing is below a threshold of 0.
    return xp.maximum(terms, xp.zeros_like(terms))


def _to_mean(before: Array, now: Array) -> Array:
    """Log of ((p + q) / 2) / p, from log p and log q: exactly 0 where they are equal, finite where p underflows."""
    xp = array_namespace(before, now)
    step = now - before
    return xp.maximum(step, xp.zeros_like(step)) + xp.log1p(xp.expm1(-xp.abs(step)) / 2)


def _kl(before: Array, now: Array) -> Array:
    return array_namespace(before, now).exp(before) * (before - now)


def _js(before: Array, now: Array) -> Array:
    xp = array_namespace(before, now)
    return -0.5 * (xp.exp(before) * _to_mean(before, now) + xp.exp(now) * _to_mean(now, before))


def _mean_entropy(before: Array, now: Array) -> Array:
    log_mean = before + _to_mean(before, now)
    return -array_namespace(before, now).exp(log_mean) * log_mean


_TERMS: Mapping[str, Callable[[Array, Array], Array]] = {
    "js": _js,
    "kl": _kl,
    "reverse_kl": lambda before, now: _kl(now, before),
    "symmetric_kl": lambda before, now: _kl(before, now) + _kl(now, before),
    "mean_entropy": _mean_entropy,
}


@dataclass(frozen=True, kw_only=True)
class Divergence(Criterion):
    """Leave at the exit that ends ``patience`` steps in a row, each of divergence < threshold from the exit before.

    The first exit has nothing to be compared with, so the earliest exit is number ``patience + 1``. Multi-label: the
    sum over labels of the divergence between yes or no and yes or no. Numbers have ``patience_delta``.
    """

    divergence: Kind = "js"

    name: ClassVar[str] = "divergence"
    summary: ClassVar[str] = "the distribution hardly changes from exit to exit (F-PABEE)"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification", "multi_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {
        "threshold": Knob(0.02, 0.0, math.inf, faster="up"),
        "patience": Knob(1, 1, 1000, faster="down", integer=True),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("divergence", self.divergence, get_args(Kind))

    def start(self, units: Array) -> State:
        xp = array_namespace(units)
        n, where = units.shape[0], device(units)
        return {
            "streak": xp.zeros(n, dtype=xp.int64, device=where),
            "passed": xp.zeros(n, dtype=xp.bool, device=where),
            "before": xp.zeros((n, 1), dtype=xp.float32, device=where),  # means something once an exit is passed
        }

    def compared(self, stage: Stage, output: ExitOutput, state: State) -> Array:
        xp = array_namespace(output.logits)
        found = divergence(state["before"], self._now(output), kind=self.divergence)
        return xp.where(state["passed"], found, xp.full_like(found, math.inf))

    def step(self, stage: Stage, output: ExitOutput, state: State, knobs: Knobs) -> tuple[Decision, State]:
        xp = array_namespace(output.logits)
        streak, leave = in_a_row(self.compared(stage, output, state) < knobs["threshold"], state, knobs)
        passed = xp.ones_like(state["passed"])
        return Decision(leave, output.logits), {"streak": streak, "passed": passed, "before": self._now(output)}

    def _now(self, output: ExitOutput) -> Array:
        xp = array_namespace(output.logits)
        return xp.astype(log_probabilities(output.logits, self.problem_type), xp.float32)
