"""BERT: a norm ends each block; the pooler is dense + tanh over the first token."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from offramp.model.backbones.base import Context, Cut

__all__ = ["BertCut", "BertLayers"]


class BertLayers(Cut):
    """Embedding and layers as BERT has them, which several families share; pooling and head are theirs."""

    def embed(self, tokens: Tensor, lengths: Tensor, token_types: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.encoder.embeddings(input_ids=tokens, token_type_ids=token_types)
        return hidden

    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        hidden = self.encoder.encoder.layer[index](hidden, context.mask)
        return hidden


class BertCut(BertLayers):
    """``BertForSequenceClassification``."""

    model_types: ClassVar[tuple[str, ...]] = ("bert",)

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        pooled: Tensor = self.encoder.pooler(hidden)
        return pooled

    def pooler(self) -> nn.Linear | None:
        dense: nn.Linear = self.encoder.pooler.dense
        return dense

    def head(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        logits: Tensor = self.model.classifier(self.model.dropout(self.pool(hidden, lengths)))
        return logits
