"""By turns the last exit's loss and the sum of all exits'; and a gate that learns where an exit is wrong.

Xin et al., "BERxiT", EACL 2021 (alternating fine-tuning, learning to exit).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from offramp.errors import UnsupportedError
from offramp.model.heads.base import HeadOutput
from offramp.objectives.base import ANY_TIME, Moment, exit_loss
from offramp.settings import check_choice, check_number
from offramp.types import ProblemType

__all__ = ["Alternating", "Steps", "gate_target"]

Steps = Literal["alternate", "joint"]


def gate_target(logits: Tensor, labels: Tensor, problem_type: ProblemType) -> Tensor:
    """What a gate ought to say of an exit's answers: [B, C] and labels [B] -> [B] in [0, 1], without gradient.

    0 where the answer is the label and 1 where it is not; for a number, |tanh(answer - label)|.

    Raises:
        UnsupportedError: several labels a text.
    """
    logits = logits.detach().float()
    if problem_type == "single_label_classification":
        return (logits.argmax(dim=-1) != labels).float()
    if problem_type == "regression":
        return torch.tanh(logits.squeeze(-1) - labels.float()).abs()
    raise UnsupportedError(
        f"a gate learns from answers that are right or wrong, or from numbers; this is {problem_type}"
    )


@dataclass(frozen=True, kw_only=True)
class Alternating:
    """Even steps: the last exit's loss; odd steps, and on dev: the sum of all. Both with the gates' squared error.

    The gates' error is the mean over the exits that give a ``gate``, and over rows.
    """

    steps: Steps = "alternate"
    """``joint``: the sum of all exits' losses at every step."""
    gate: float = 1.0
    """Weight of the gates' error."""

    def __post_init__(self) -> None:
        check_choice("objective.steps", self.steps, get_args(Steps))
        check_number("objective.gate", self.gate, low=0)

    def __call__(
        self,
        outputs: Sequence[HeadOutput],
        layers: Sequence[int],
        labels: Tensor,
        problem_type: ProblemType,
        moment: Moment = ANY_TIME,
    ) -> Tensor:
        last_only = self.steps == "alternate" and moment.training and moment.step % 2 == 0
        asked = outputs[-1:] if last_only else outputs
        loss = torch.stack([exit_loss(output.logits, labels, problem_type) for output in asked]).sum()
        gated = [output for output in outputs if "gate" in output.extras]
        if self.gate and gated:
            loss = loss + self.gate * _gate_loss(gated, labels, problem_type)
        return loss


def _gate_loss(outputs: Sequence[HeadOutput], labels: Tensor, problem_type: ProblemType) -> Tensor:
    """Mean over exits and rows of (gate - target)^2."""
    gates = torch.stack([output.extras["gate"].float() for output in outputs])
    targets = torch.stack([gate_target(output.logits, labels, problem_type) for output in outputs])
    return (gates - targets).square().mean()
