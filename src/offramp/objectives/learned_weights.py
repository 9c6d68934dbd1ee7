"""Weighted sum of the exits' losses whose weights are learned. Xie et al., "ELBERT", ICASSP 2021."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from offramp.model.heads.base import HeadOutput
from offramp.objectives.base import ANY_TIME, Moment, exit_loss
from offramp.settings import check_number
from offramp.types import ProblemType

__all__ = ["LearnedWeights"]


class LearnedWeights(nn.Module):
    """sum_i w_i loss_i with w_i = sigmoid(t_i) / L at the early exits, and at the last what is left of 1.

    Args:
        num_exits: L.
        initial: every t_i at the start; 4.0 makes all weights nearly the same.
        learning_rate: of the t_i.
    """

    def __init__(self, num_exits: int, *, initial: float = 4.0, learning_rate: float = 1e-2) -> None:
        check_number("objective.initial", initial, low=-20, high=20)
        check_number("objective.learning_rate", learning_rate, low=0)
        super().__init__()
        self.learning_rate = learning_rate
        self.levels = nn.Parameter(torch.full((num_exits - 1,), float(initial)))

    def weights(self) -> Tensor:
        """Of every exit: [L] float32, summing to 1, the last at least 1/L."""
        early = torch.sigmoid(self.levels.float())
        exits = len(early) + 1
        return torch.cat([early, (exits - early.sum())[None]]) / exits

    def forward(
        self,
        outputs: Sequence[HeadOutput],
        layers: Sequence[int],
        labels: Tensor,
        problem_type: ProblemType,
        moment: Moment = ANY_TIME,
    ) -> Tensor:
        """The loss of a batch: see ``offramp.objectives.base.Objective``."""
        losses = torch.stack([exit_loss(output.logits, labels, problem_type) for output in outputs])
        return (self.weights() * losses).sum()
