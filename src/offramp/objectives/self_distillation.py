"""Self-distillation: early exits learn to say what the last exit says; labels are not used.

Liu et al., "FastBERT: a Self-distilling BERT with Adaptive Inference Time", ACL 2020, arXiv 2004.02178. The direction
is that of the released code, KL(teacher || student); the paper's own is unconfirmed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offramp.errors import UnsupportedError
from offramp.model.heads.base import HeadOutput
from offramp.objectives.base import ANY_TIME, Moment
from offramp.types import ProblemType

__all__ = ["SelfDistillation", "distance_to_teacher"]


def distance_to_teacher(student: Tensor, teacher: Tensor, problem_type: ProblemType) -> Tensor:
    """How far a student is from its teacher, mean over the batch; no gradient reaches the teacher.

    One class a text: KL(softmax(teacher) || softmax(student)) in nats. Multi-label: the mean over labels of the KL
    between the two yes-or-no distributions. Regression: squared difference.

    Args:
        student: logits [B, C].
        teacher: logits [B, C].
        problem_type: as in transformers.
    """
    student, teacher = student.float(), teacher.detach().float()
    if problem_type == "regression":
        return nn.functional.mse_loss(student, teacher)
    if problem_type == "single_label_classification":
        return _kl(teacher.log_softmax(dim=-1), student.log_softmax(dim=-1)).sum(dim=-1).mean()
    log = nn.functional.logsigmoid
    return (_kl(log(teacher), log(student)) + _kl(log(-teacher), log(-student))).mean()


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Terms of KL(p || q), elementwise; finite where p underflows to 0."""
    return log_p.exp() * (log_p - log_q)


@dataclass(frozen=True)
class SelfDistillation:
    """Mean over the early exits of their distance to the last exit.

    Raises:
        UnsupportedError: there is no early exit to teach.
    """

    def __call__(
        self,
        outputs: Sequence[HeadOutput],
        layers: Sequence[int],
        labels: Tensor,
        problem_type: ProblemType,
        moment: Moment = ANY_TIME,
    ) -> Tensor:
        teacher = outputs[-1].logits
        if len(outputs) == 1:
            raise UnsupportedError(
                "self-distillation teaches early exits, and this model has none: give it some (--exits)"
            )
        return torch.stack([distance_to_teacher(o.logits, teacher, problem_type) for o in outputs[:-1]]).mean()
