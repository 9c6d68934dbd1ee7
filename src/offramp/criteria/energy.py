"""Energy: leave where the logits as a whole are large.

COSEE, AAAI 2025, arXiv 2412.13236: the energy E = -log sum exp(logits), brought to [0, 1] as 1 / (1 + exp(-E)).
Unlike entropy it depends on the logits' common level, which cross-entropy leaves free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from offramp.criteria.base import Knob, Scored, log_sigmoid
from offramp.types import Array, ExitOutput, ProblemType, Stage

__all__ = ["Energy"]


@dataclass(frozen=True, kw_only=True)
class Energy(Scored):
    """Leave where 1 / (1 + exp(-E)) < threshold, E = -log sum exp(logits): 1 / (1 + sum of exp(logits))."""

    name: ClassVar[str] = "energy"
    summary: ClassVar[str] = "energy of the logits is low (COSEE)"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {"threshold": Knob(0.1, 0.0, 1.01, faster="up")}

    def score(self, stage: Stage, output: ExitOutput) -> Array:
        xp = array_namespace(output.logits)
        top = xp.max(output.logits, axis=-1, keepdims=True)
        log_sum = top + xp.log(xp.sum(xp.exp(output.logits - top), axis=-1, keepdims=True))
        return xp.exp(log_sigmoid(-log_sum))[:, 0]
