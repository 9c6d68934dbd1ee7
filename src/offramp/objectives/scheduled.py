"""Scheduled weights: early exits begin with almost no say in the loss and gain it as training goes on.

Kaya et al., "Shallow-Deep Networks: Understanding and Mitigating Network Overthinking", ICML 2019, arXiv 1810.07052.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.model.heads.base import HeadOutput
from offramp.objectives.base import ANY_TIME, Moment, exit_loss
from offramp.settings import check_number
from offramp.types import ProblemType

__all__ = ["Scheduled", "scheduled_weight"]


def scheduled_weight(share: float, progress: float, *, start: float = 0.01) -> float:
    """Tau = min(share, start + share * progress): the weight of an early exit.

    Args:
        share: of the full model's layers that the exit stands after, the most that it ever counts.
        progress: share of the training that is done.
        start: what it counts at the very beginning.
    """
    return min(share, start + share * progress)


@dataclass(frozen=True, kw_only=True)
class Scheduled:
    """loss_last + sum_i tau_i(progress) loss_i over the early exits.

    A loss that is only looked at (dev) has the weights of the end of training, so that checkpoints can be compared.
    """

    start: float = 0.01
    """Weight of an early exit when training begins."""

    def __post_init__(self) -> None:
        check_number("objective.start", self.start, low=0, high=1)

    def __call__(
        self,
        outputs: Sequence[HeadOutput],
        layers: Sequence[int],
        labels: Tensor,
        problem_type: ProblemType,
        moment: Moment = ANY_TIME,
    ) -> Tensor:
        progress = moment.progress if moment.training else 1.0
        weights = [scheduled_weight(m / layers[-1], progress, start=self.start) for m in layers[:-1]]
        losses = [exit_loss(output.logits, labels, problem_type) for output in outputs]
        return torch.stack([w * loss for w, loss in zip([*weights, 1.0], losses, strict=True)]).sum()
