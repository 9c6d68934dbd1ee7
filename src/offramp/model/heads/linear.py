"""Linear: pooled vector, dropout, one linear layer. The exit head of most papers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from offramp.model.heads.base import Head, HeadOutput, Reader, Surroundings, make_dropout

__all__ = ["Linear"]


class Linear(Head):
    """One linear classifier on the pooled vector.

    Args:
        dropout: before the classifier, while training; None: the backbone's own.
    """

    def __init__(self, around: Surroundings, *, dropout: float | None = None) -> None:
        super().__init__()
        self.dropout = make_dropout(around, dropout)
        self.classifier = nn.Linear(around.pooled_size, around.num_outputs)

    def forward(
        self, hidden: Tensor, lengths: Tensor, reader: Reader, memory: Mapping[str, Tensor]
    ) -> tuple[HeadOutput, Mapping[str, Tensor]]:
        return HeadOutput(self.classifier(self.dropout(reader.pool(hidden, lengths)))), memory
