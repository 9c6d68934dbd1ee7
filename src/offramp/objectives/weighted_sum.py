"""Weighted sum of the exits' own losses.

Zhou et al., "BERT Loses Patience", NeurIPS 2020 (weights by depth); Teerapittayanon et al., "BranchyNet", ICPR 2016
(larger weights at shallow exits). The last exit alone is an ordinary fine-tune, the first stage of DeeBERT and
FastBERT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from offramp.model.heads.base import HeadOutput
from offramp.objectives.base import ANY_TIME, Moment, Weights, exit_loss, exit_weights
from offramp.settings import check_choice
from offramp.types import ProblemType

__all__ = ["WeightedSum"]


@dataclass(frozen=True, kw_only=True)
class WeightedSum:
    """sum_i w_i loss_i with weights that sum to 1."""

    by: Weights = "equal"

    def __post_init__(self) -> None:
        check_choice("objective.by", self.by, get_args(Weights))

    def __call__(
        self,
        outputs: Sequence[HeadOutput],
        layers: Sequence[int],
        labels: Tensor,
        problem_type: ProblemType,
        moment: Moment = ANY_TIME,
    ) -> Tensor:
        weights = exit_weights(layers, self.by).tolist()
        # An exit without weight is left out, not multiplied by 0: backward need not go through it.
        losses = [w * exit_loss(o.logits, labels, problem_type) for w, o in zip(weights, outputs, strict=True) if w]
        total: Tensor = sum(losses, losses[0].new_zeros(()))
        return total
