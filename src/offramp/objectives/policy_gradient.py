"""Policy gradient: exits are sampled, and the policy learns from what each sample was worth.

Zeng et al., "ConsistentEE", AAAI 2024, https://arxiv.org/abs/2312.11882. Their public code leaves out both the
sampling and the depth term of the reward; here are both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from offramp.errors import KnobError, UnsupportedError
from offramp.model.heads.base import HeadOutput
from offramp.objectives.base import ANY_TIME, Moment
from offramp.settings import check_number
from offramp.types import ProblemType

__all__ = ["PolicyGradient", "advantages", "log_exits", "rewards"]

_NEVER = 1e-6
"""Probabilities are kept so far from 0 and 1, where their logarithms are finite."""


def log_exits(gates: Sequence[Tensor]) -> Tensor:
    """Log-probability of leaving at each exit: of going on at all before it, and leaving there.

    Args:
        gates: [B] probability of going on, of every exit but the last.

    Returns:
        [B, E]; its exponentials sum to 1 over the exits.
    """
    on = torch.stack(list(gates), dim=1).clamp(_NEVER, 1 - _NEVER)
    passed = nn.functional.pad(on.log().cumsum(dim=1), (1, 0))
    return passed + nn.functional.pad(torch.log1p(-on), (0, 1))


def rewards(losses: Tensor, layers: Tensor, hardness: Tensor | None, alpha: float) -> Tensor:
    """What leaving at each exit is worth: -loss - alpha * layers * (1 - m / L).

    Args:
        losses: [B, E] cross-entropy of every row at every exit.
        layers: [E] cumulative layers; the last is L.
        hardness: [B] memorised layer m of each row; None: every row pays for its depth in full.
        alpha: price of a layer.

    Returns:
        [B, E].
    """
    easy = losses.new_ones(len(losses)) if hardness is None else 1 - hardness.to(losses) / layers[-1]
    return -losses - alpha * layers * easy[:, None]


def advantages(reward: Tensor) -> Tensor:
    """[B, K] rewards of a row's samples, less the row's mean: its sum over the samples is 0."""
    return reward - reward.mean(dim=1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """REINFORCE over exits sampled by the policy, each row's mean reward its baseline.

    Its value is the mean cost (-reward) of the samples, so that it can be watched falling; its gradient is the policy
    gradient, and with ``classify`` also that of the cross-entropy at the sampled exits. On dev: the mean cross-entropy.
    """

    alpha: float = 0.04
    """Price of a layer in nats for the easiest of rows; a row that only the last exit knows pays nothing."""
    samples: int = 8
    """Exits drawn for each row."""
    classify: bool = False
    """Also train the classifier at the sampled exits."""

    needs: ClassVar[str] = "memorised_layer"

    def __post_init__(self) -> None:
        check_number("objective.alpha", self.alpha, low=0)
        check_number("objective.samples", self.samples, low=2, whole=True)
        if not isinstance(self.classify, bool):
            raise KnobError(f"objective.classify must be true or false, not {self.classify!r}")

    def __call__(
        self,
        outputs: Sequence[HeadOutput],
        layers: Sequence[int],
        labels: Tensor,
        problem_type: ProblemType,
        moment: Moment = ANY_TIME,
    ) -> Tensor:
        if problem_type != "single_label_classification":
            raise UnsupportedError(f"the memorised layer needs one class a text; the data is {problem_type}")
        losses = torch.stack([_row_losses(output.logits, labels) for output in outputs], dim=1)
        if not moment.training or len(outputs) == 1:
            return losses.mean()
        chances = log_exits([output.extras["gate"] for output in outputs[:-1]])
        drawn = torch.multinomial(chances.detach().exp(), self.samples, replacement=True)
        worth = rewards(losses.detach(), torch.tensor(layers).to(losses), moment.hardness, self.alpha)
        worth = worth.gather(1, drawn)
        moving = -(advantages(worth) * chances.gather(1, drawn)).mean()
        if self.classify:
            moving = moving + losses.gather(1, drawn).mean()
        return moving - moving.detach() - worth.mean()


def _row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] cross-entropy of each row in float32."""
    return nn.functional.cross_entropy(logits.float(), labels, reduction="none")
