"""CAP: leave where little of the text's vector lies outside what the classifier can see, and the logits are large.

NSP, IJCAI 2025, arXiv 2506.17249. The exit head gives s, the share of the pooled vector in the null space of the
classifier's weights; alpha * s joins the logits as one more class, and its probability is the doubt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from offramp.criteria.base import Knob, Scored, log_softmax
from offramp.settings import check_number
from offramp.types import Array, ExitOutput, ProblemType, Stage

__all__ = ["CAP"]


@dataclass(frozen=True, kw_only=True)
class CAP(Scored):
    """Leave where the probability of the class "outside" < threshold: softmax over [logits, alpha * s], last entry.

    Needs ``null_space`` [B] in [0, 1]: s = sqrt(1 - |P x'|^2 / |x'|^2), where x' is the pooled vector plus the bias
    taken back through the weights' pseudo-inverse, and P projects on the span of the weights.
    """

    alpha: float = 0.1
    """Weight of the null-space share, 0 or more; 0.1 is what the paper's scripts use."""

    name: ClassVar[str] = "cap"
    summary: ClassVar[str] = "null-space share as one more class has a low probability (NSP)"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {"threshold": Knob(0.1, 0.0, 1.01, faster="up")}
    needs: ClassVar[frozenset[str]] = frozenset({"null_space"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, low=0)

    def score(self, stage: Stage, output: ExitOutput) -> Array:
        xp = array_namespace(output.logits)
        outside = xp.astype(self.extra(output, "null_space"), output.logits.dtype)
        return xp.exp(log_softmax(xp.concat([output.logits, self.alpha * outside[:, None]], axis=-1)))[:, -1]
