"""DeBERTa-v2 and v3: disentangled attention over relative positions; in some, a convolution beside the first layer."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from offramp.model.backbones.base import Context, Cut, lengths_to_mask

__all__ = ["DebertaV2Cut"]


class DebertaV2Cut(Cut):
    """``DebertaV2ForSequenceClassification``."""

    model_types: ClassVar[tuple[str, ...]] = ("deberta-v2",)

    def embed(self, tokens: Tensor, lengths: Tensor, token_types: Tensor | None = None) -> Tensor:
        mask = lengths_to_mask(lengths, tokens.shape[1])
        hidden: Tensor = self.encoder.embeddings(input_ids=tokens, token_type_ids=token_types, mask=mask)
        return hidden

    def context(self, hidden: Tensor, lengths: Tensor) -> Context:
        encoder = self.encoder.encoder
        tokens = lengths_to_mask(lengths, hidden.shape[1])
        extras = {
            "tokens": tokens,
            "relative_pos": encoder.get_rel_pos(hidden),
            "rel_embeddings": encoder.get_rel_embedding(),
        }
        return Context(encoder.get_attention_mask(tokens.to(torch.int64)), extras)

    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        encoder, extras = self.encoder.encoder, context.extras
        outputs = encoder.layer[index](
            hidden,
            context.mask,
            relative_pos=extras["relative_pos"],
            rel_embeddings=extras["rel_embeddings"],
        )
        after: Tensor = outputs[0]
        if index > 0 or encoder.conv is None:
            return after
        # The convolution looks past the end of a row, and expects zeros there, as the embedding leaves them.
        clean = hidden.masked_fill(~extras["tokens"][..., None], 0)
        after = encoder.conv(clean, after, extras["tokens"].to(torch.int64))
        return after

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        pooled: Tensor = self.model.pooler(hidden)
        return pooled

    def pooler(self) -> nn.Linear | None:
        dense: nn.Linear = self.model.pooler.dense
        return dense

    def head(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        logits: Tensor = self.model.classifier(self.model.dropout(self.pool(hidden, lengths)))
        return logits
