"""Gated: a pooler and a linear classifier of its own, and a gate that all exits share.

Xin et al., "BERxiT", EACL 2021: the learning-to-exit module is one linear layer with a sigmoid on the exit's pooled
vector after dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from offramp.model.heads.base import Head, HeadOutput, Reader, Surroundings, copy_pooler, make_dropout

__all__ = ["Gated"]


class Gated(Head):
    """Dense and tanh, dropout, one linear classifier; gives ``gate`` [B], the probability to go on.

    The pooler starts as a copy of the pretrained one, where the family has one of the same width.

    Args:
        dropout: before the classifier and the gate, while training; None: the backbone's own.
    """

    own_pooler: ClassVar[bool] = True

    def __init__(self, around: Surroundings, *, dropout: float | None = None) -> None:
        super().__init__()
        self.pooler = nn.Linear(around.pooled_size, around.pooled_size)
        self.dropout = make_dropout(around, dropout)
        self.classifier = nn.Linear(around.pooled_size, around.num_outputs)

    @classmethod
    def common(cls, around: Surroundings) -> nn.Module:
        """The learning-to-exit module: [B, pooled size] -> [B, 1], before the sigmoid."""
        return nn.Linear(around.pooled_size, 1)

    def inherit(self, pooler: nn.Linear | None) -> None:
        copy_pooler(self.pooler, pooler)

    def extras(self) -> dict[str, int]:
        return {"gate": 0}

    def forward(
        self, hidden: Tensor, lengths: Tensor, reader: Reader, memory: Mapping[str, Tensor]
    ) -> tuple[HeadOutput, Mapping[str, Tensor]]:
        assert reader.common is not None
        pooled = self.dropout(torch.tanh(self.pooler(reader.pool(hidden, lengths))))
        # float32: what trained well lies close to 0, where thresholds are set.
        gate = torch.sigmoid(reader.common(pooled).float()).squeeze(-1)
        return HeadOutput(self.classifier(pooled), {"gate": gate}), memory
