"""ELECTRA: BERT's layers over embeddings that may be narrower; the head is dense + GELU + Linear."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from offramp.model.backbones.bert import BertLayers

__all__ = ["ElectraCut"]


class ElectraCut(BertLayers):
    """``ElectraForSequenceClassification``."""

    model_types: ClassVar[tuple[str, ...]] = ("electra",)

    def embed(self, tokens: Tensor, lengths: Tensor, token_types: Tensor | None = None) -> Tensor:
        hidden = super().embed(tokens, lengths, token_types)
        if self.config.embedding_size != self.config.hidden_size:
            hidden = self.encoder.embeddings_project(hidden)
        return hidden

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        classifier = self.model.classifier
        pooled: Tensor = classifier.activation(classifier.dense(classifier.dropout(hidden[:, 0])))
        return pooled

    def pooler(self) -> nn.Linear | None:
        dense: nn.Linear = self.model.classifier.dense
        return dense

    def head(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        logits: Tensor = self.model.classifier(hidden)
        return logits
