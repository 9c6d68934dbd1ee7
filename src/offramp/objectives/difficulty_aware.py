"""Cross-entropy of several models plus difficulty-aware regularisation (DAR) of the smallest.

Li et al., "CascadeBERT", Findings of EMNLP 2021, https://arxiv.org/abs/2012.14682: the small model should be less
sure of hard rows than of easy ones, since its confidence decides who goes on to a larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from offramp.errors import UnsupportedError
from offramp.model.heads.base import HeadOutput
from offramp.objectives.base import ANY_TIME, Moment, exit_loss
from offramp.settings import check_number
from offramp.types import ProblemType

__all__ = ["DifficultyAware", "ranking"]


def ranking(confidence: Tensor, hard: Tensor, margin: float) -> Tensor:
    """Mean over all pairs of an easy and a hard row of max(0, margin - (confidence of easy - confidence of hard)).

    Args:
        confidence: [B], the largest probability.
        hard: [B] bool.
        margin: by which an easy row should be surer.

    Returns:
        A scalar; 0 where the batch lacks one kind.
    """
    if not bool(hard.any()) or bool(hard.all()):
        return confidence.new_zeros(())
    apart = confidence[~hard][:, None] - confidence[hard][None, :]
    return (margin - apart).clamp(min=0).mean()


@dataclass(frozen=True, kw_only=True)
class DifficultyAware:
    """sum_m CE_m + beta * ranking of the smallest model's confidences; on dev the sum alone."""

    beta: float = 0.5
    margin: float = 0.3

    needs: ClassVar[str] = "difficulty"

    def __post_init__(self) -> None:
        check_number("objective.beta", self.beta, low=0)
        check_number("objective.margin", self.margin, low=0, high=1)

    def __call__(
        self,
        outputs: Sequence[HeadOutput],
        layers: Sequence[int],
        labels: Tensor,
        problem_type: ProblemType,
        moment: Moment = ANY_TIME,
    ) -> Tensor:
        if problem_type != "single_label_classification":
            raise UnsupportedError(f"the difficulty of rows needs one class a text; the data is {problem_type}")
        loss = torch.stack([exit_loss(output.logits, labels, problem_type) for output in outputs]).sum()
        if moment.hardness is None:
            return loss
        confidence = outputs[0].logits.float().softmax(dim=-1).amax(dim=-1)
        return loss + self.beta * ranking(confidence, moment.hardness > 0.5, self.margin)
