"""ModernBERT: global and local layers, each with a mask and rotary table of its own; norms stand before the blocks.

So the hidden states between two layers have passed no norm yet: exits need one (``exit_norm``).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

from offramp.model.backbones.base import Context, Cut, lengths_to_mask

__all__ = ["ModernBertCut"]


class ModernBertCut(Cut):
    """``ModernBertForSequenceClassification``."""

    model_types: ClassVar[tuple[str, ...]] = ("modernbert",)

    def embed(self, tokens: Tensor, lengths: Tensor, token_types: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.encoder.embeddings(input_ids=tokens)
        return hidden

    def context(self, hidden: Tensor, lengths: Tensor) -> Context:
        arguments = self.mask_arguments(hidden, lengths)
        everything = create_bidirectional_mask(**arguments)
        window = create_bidirectional_sliding_window_mask(**arguments)
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotary = {kind: self.encoder.rotary_emb(hidden, positions, kind) for kind in set(self.config.layer_types)}
        masks = {"full_attention": everything, "sliding_attention": window}
        return Context(everything, {"masks": masks, "rotary": rotary})

    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        module = self.encoder.layers[index]
        hidden = module(
            hidden,
            attention_mask=context.extras["masks"][module.attention_type],
            position_embeddings=context.extras["rotary"][module.attention_type],
        )
        if index == self.num_layers - 1:
            hidden = self.encoder.final_norm(hidden)
        return hidden

    def summary(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        if self.config.classifier_pooling == "cls":
            return hidden[:, 0]
        padding = ~lengths_to_mask(lengths, hidden.shape[1])[..., None]
        return hidden.masked_fill(padding, 0).sum(dim=1) / lengths[:, None]

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        pooled: Tensor = self.model.head(self.summary(hidden, lengths))
        return pooled

    def pooler(self) -> nn.Linear | None:
        dense: nn.Linear = self.model.head.dense
        return dense

    def head(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        logits: Tensor = self.model.classifier(self.model.drop(self.pool(hidden, lengths)))
        return logits

    def exit_norm(self) -> nn.LayerNorm | None:
        norm: nn.LayerNorm = self.encoder.final_norm
        return norm
