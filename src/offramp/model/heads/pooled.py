"""Pooled: a pooler of the exit's own (dense, tanh), dropout, one linear layer.

Xin et al., "DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference", ACL 2020, arXiv 2004.12993. Every exit's
pooler starts as a copy of the pretrained encoder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from offramp.model.heads.base import Head, HeadOutput, Reader, Surroundings, copy_pooler, make_dropout

__all__ = ["Pooled"]


class Pooled(Head):
    """Own pooler and classifier.

    The pooler reads the first token's vector, or, where the model is set to mean pooling, the mean over tokens.

    Args:
        dropout: between pooler and classifier, while training; None: the backbone's own.
    """

    own_pooler: ClassVar[bool] = True

    def __init__(self, around: Surroundings, *, dropout: float | None = None) -> None:
        super().__init__()
        self.pooler = nn.Linear(around.hidden_size, around.hidden_size)
        self.dropout = make_dropout(around, dropout)
        self.classifier = nn.Linear(around.hidden_size, around.num_outputs)

    def inherit(self, pooler: nn.Linear | None) -> None:
        copy_pooler(self.pooler, pooler)

    def forward(
        self, hidden: Tensor, lengths: Tensor, reader: Reader, memory: Mapping[str, Tensor]
    ) -> tuple[HeadOutput, Mapping[str, Tensor]]:
        pooled = torch.tanh(self.pooler(reader.pool(hidden, lengths)))
        return HeadOutput(self.classifier(self.dropout(pooled))), memory
