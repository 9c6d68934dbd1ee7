"""MPNet: one relative position bias, computed once, goes to every layer; the head is dense + tanh + Linear."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from offramp.model.backbones.base import Context, Cut

__all__ = ["MPNetCut"]


class MPNetCut(Cut):
    """``MPNetForSequenceClassification``."""

    model_types: ClassVar[tuple[str, ...]] = ("mpnet",)

    def embed(self, tokens: Tensor, lengths: Tensor, token_types: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.encoder.embeddings(input_ids=tokens)
        return hidden

    def context(self, hidden: Tensor, lengths: Tensor) -> Context:
        bias = self.encoder.encoder.compute_position_bias(hidden)
        return Context(super().context(hidden, lengths).mask, {"position_bias": bias})

    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        outputs = self.encoder.encoder.layer[index](hidden, context.mask, context.extras["position_bias"])
        hidden = outputs[0]
        return hidden

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        classifier = self.model.classifier
        return torch.tanh(classifier.dense(classifier.dropout(hidden[:, 0])))

    def pooler(self) -> nn.Linear | None:
        dense: nn.Linear = self.model.classifier.dense
        return dense

    def head(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        logits: Tensor = self.model.classifier(hidden)
        return logits
