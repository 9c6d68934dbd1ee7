"""What training minimises: a function of what every exit says and of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from offramp.model.heads.base import HeadOutput
from offramp.types import ProblemType

__all__ = ["ANY_TIME", "Moment", "Objective", "Weights", "exit_loss", "exit_weights"]

Weights = Literal["equal", "depth", "last", "shallow"]
"""Every exit counts the same; the exit after layer m counts m (PABEE, Zhou et al., NeurIPS 2020); the last exit counts
alone; or from 1.0 at the first exit evenly down to 0.3 at the last (BranchyNet, Teerapittayanon et al., ICPR 2016)."""


@dataclass(frozen=True)
class Moment:
    """Where in its training a model is, and what else is known of a batch."""

    training: bool = False
    """Whether this loss is to be minimised, and not only looked at."""
    step: int = 0
    """Optimiser steps taken since the phase began."""
    progress: float = 1.0
    """Share of the phase's steps that are done; 1 where the trainer does not say."""
    hardness: Tensor | None = None
    """[B]: how hard each row is, where the objective ``needs`` it; None on dev."""
    heads: Sequence[nn.Parameter] = ()
    """Parameters of the exits that are trained."""


ANY_TIME = Moment()
"""Nothing is known of the moment."""


class Objective(Protocol):
    """A callable with settings of its own.

    One with parameters is an ``nn.Module`` whose first argument is the number of exits; it is saved with the model,
    and learns at its own ``learning_rate``, where it has that attribute. One whose class has an attribute ``needs``
    ("memorised_layer" or "difficulty") is given that of each training row (``offramp.training.hardness``).
    """

    def __call__(
        self,
        outputs: Sequence[HeadOutput],
        layers: Sequence[int],
        labels: Tensor,
        problem_type: ProblemType,
        moment: Moment = ANY_TIME,
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            outputs: of every exit, shallow to deep.
            layers: cumulative layers of every exit.
            labels: [B] class ids, [B, C] zeros and ones, or [B] numbers.
            problem_type: as in transformers.
            moment: where in its training the model is.
        """


def exit_loss(logits: Tensor, labels: Tensor, problem_type: ProblemType) -> Tensor:
    """One exit's own loss, mean over the batch: cross-entropy, binary cross-entropy, or squared error."""
    logits = logits.float()
    if problem_type == "single_label_classification":
        return nn.functional.cross_entropy(logits, labels)
    if problem_type == "multi_label_classification":
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    return nn.functional.mse_loss(logits.squeeze(-1), labels.float())


def exit_weights(layers: Sequence[int], by: Weights) -> Tensor:
    """Weights of the exits, summing to 1: [E]."""
    if by == "last":
        weights = torch.tensor([0.0] * (len(layers) - 1) + [1.0])
    elif by == "shallow":
        weights = torch.linspace(1.0, 0.3, len(layers))
    else:
        weights = torch.tensor([float(m) if by == "depth" else 1.0 for m in layers])
    return weights / weights.sum()
