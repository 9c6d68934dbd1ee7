"""Gate: leave where the exit's own head, trained for it, says so.

BERxiT, EACL 2021: a learned uncertainty u, one module shared by all exits. ConsistentEE, AAAI 2024, arXiv 2312.11882:
a policy's probability q of leaving, where u = 1 - q. What the gate means is the recipe's business; here it is only
held against the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from offramp.criteria.base import Knob, Scored
from offramp.types import PROBLEM_TYPES, Array, ExitOutput, ProblemType, Stage

__all__ = ["Gate"]


@dataclass(frozen=True, kw_only=True)
class Gate(Scored):
    """Leave where the gate < threshold. Needs ``gate`` [B] in [0, 1]: the head's own probability to go on."""

    name: ClassVar[str] = "gate"
    summary: ClassVar[str] = "the exit's learned gate says leave (BERxiT, ConsistentEE)"
    serves: ClassVar[frozenset[ProblemType]] = frozenset(PROBLEM_TYPES)
    knobs: ClassVar[Mapping[str, Knob]] = {"threshold": Knob(0.5, 0.0, 1.01, faster="up")}
    needs: ClassVar[frozenset[str]] = frozenset({"gate"})

    def score(self, stage: Stage, output: ExitOutput) -> Array:
        return self.extra(output, "gate")
