"""RoBERTa and XLM-R: BERT's layers; positions are counted from the token ids; the head is dense + tanh + Linear."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from offramp.model.backbones.bert import BertLayers

__all__ = ["RobertaCut"]


class RobertaCut(BertLayers):
    """``RobertaForSequenceClassification``, ``XLMRobertaForSequenceClassification``."""

    model_types: ClassVar[tuple[str, ...]] = ("roberta", "xlm-roberta")

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        classifier = self.model.classifier
        return torch.tanh(classifier.dense(classifier.dropout(hidden[:, 0])))

    def pooler(self) -> nn.Linear | None:
        dense: nn.Linear = self.model.classifier.dense
        return dense

    def head(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        logits: Tensor = self.model.classifier(hidden)
        return logits
