"""DistilBERT: BERT's layers without token types; dense + ReLU over the first token stands for the pooler."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from offramp.model.backbones.base import Context, Cut

__all__ = ["DistilBertCut"]


class DistilBertCut(Cut):
    """``DistilBertForSequenceClassification``."""

    model_types: ClassVar[tuple[str, ...]] = ("distilbert",)

    def embed(self, tokens: Tensor, lengths: Tensor, token_types: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.encoder.embeddings(tokens)
        return hidden

    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        hidden = self.encoder.transformer.layer[index](hidden, context.mask)
        return hidden

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        return torch.relu(self.model.pre_classifier(hidden[:, 0]))

    def pooler(self) -> nn.Linear | None:
        dense: nn.Linear = self.model.pre_classifier
        return dense

    def head(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        logits: Tensor = self.model.classifier(self.model.dropout(self.pool(hidden, lengths)))
        return logits
