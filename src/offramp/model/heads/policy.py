"""Policy: a linear classifier, and beside it a small network that says whether to leave here.

Zeng et al., "ConsistentEE", AAAI 2024, https://arxiv.org/abs/2312.11882: Linear, GELU, Linear, sigmoid on the pooled
vector is the probability of leaving.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from offramp.model.heads.base import Head, HeadOutput, Reader, Surroundings, make_dropout
from offramp.settings import check_number

__all__ = ["Policy"]


class Policy(Head):
    """One linear classifier on the pooled vector, and a policy. Gives ``gate`` [B]: the probability of going on.

    Args:
        width: of the policy's hidden layer.
        dropout: before the classifier, while training; None: the backbone's own. The policy reads without it.
    """

    def __init__(self, around: Surroundings, *, width: int = 32, dropout: float | None = None) -> None:
        check_number("head.width", width, low=1, whole=True)
        super().__init__()
        self.dropout = make_dropout(around, dropout)
        self.classifier = nn.Linear(around.pooled_size, around.num_outputs)
        self.policy = nn.Sequential(nn.Linear(around.pooled_size, width), nn.GELU(), nn.Linear(width, 1))

    def extras(self) -> dict[str, int]:
        return {"gate": 0}

    def forward(
        self, hidden: Tensor, lengths: Tensor, reader: Reader, memory: Mapping[str, Tensor]
    ) -> tuple[HeadOutput, Mapping[str, Tensor]]:
        pooled = reader.pool(hidden, lengths)
        logits = self.classifier(self.dropout(pooled))
        # float32 whatever autocast says: near 1 bfloat16 knows no probability between .996 and 1.
        gate = torch.sigmoid(-self.policy(pooled).squeeze(-1).float())
        return HeadOutput(logits, {"gate": gate}), memory
