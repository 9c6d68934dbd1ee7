"""Confidence: leave where the largest probability is high.

Kaya et al., "Shallow-Deep Networks", ICML 2019; Schwartz et al., "The Right Tool for the Job", ACL 2020. The score is
the *doubt* 1 - max p, so that, as for every scored criterion, lower is surer and a higher threshold is faster.
Schwartz et al. calibrate each exit with a temperature: ``temperatures``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace, device

from offramp.criteria.base import Knob, Scored, at_exit, check_by_exit, log_sigmoid, log_softmax
from offramp.types import Array, ExitOutput, ProblemType, Stage

__all__ = ["Confidence", "doubt"]


def doubt(logits: Array, problem_type: ProblemType) -> Array:
    """[B, C] -> [B]: 1 - max p; multi-label: max over labels of min(p, 1 - p)."""
    xp = array_namespace(logits)
    if problem_type == "multi_label_classification":
        return xp.max(xp.exp(log_sigmoid(-xp.abs(logits))), axis=-1)
    # Sum the other probabilities instead of subtracting from 1: no cancellation near certainty.
    p = xp.exp(log_softmax(logits))
    top = xp.argmax(logits, axis=-1, keepdims=True)
    others = xp.arange(p.shape[-1], dtype=top.dtype, device=device(p)) != top
    return xp.sum(xp.where(others, p, xp.zeros_like(p)), axis=-1)


@dataclass(frozen=True, kw_only=True)
class Confidence(Scored):
    """Leave where 1 - max p < threshold; multi-label: max over labels of min(p, 1 - p).

    The answer is the exit's own: a temperature changes how sure it is, not what it says.
    """

    temperatures: tuple[float, ...] = ()
    """One number above 0 for each exit, which its logits are divided by; empty: 1 for all."""

    name: ClassVar[str] = "confidence"
    summary: ClassVar[str] = "largest probability is high (doubt 1 - max p is low)"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification", "multi_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {"threshold": Knob(0.1, 0.0, 1.01, faster="up")}
    measure: ClassVar[str] = "doubt"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "temperatures", check_by_exit("temperatures", self.temperatures))

    @property
    def by_exit(self) -> bool:
        return bool(self.temperatures)

    def score(self, stage: Stage, output: ExitOutput) -> Array:
        return doubt(output.logits / at_exit("temperatures", self.temperatures, stage), self.problem_type)
