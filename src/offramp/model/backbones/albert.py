"""ALBERT: few layers, used again and again; the pooler is dense + tanh over the first token.

The layers of a group are called in turn (``inner_group_num``, 1 in every published model), and each call counts as a
layer, as it does in ``output_hidden_states``.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from offramp.model.backbones.base import Context, Cut

__all__ = ["AlbertCut"]


class AlbertCut(Cut):
    """``AlbertForSequenceClassification``."""

    model_types: ClassVar[tuple[str, ...]] = ("albert",)

    @property
    def num_layers(self) -> int:
        """Layers executed at full depth, however few there are weights for."""
        count: int = self.config.num_hidden_layers * self.config.inner_group_num
        return count

    def embed(self, tokens: Tensor, lengths: Tensor, token_types: Tensor | None = None) -> Tensor:
        narrow = self.encoder.embeddings(input_ids=tokens, token_type_ids=token_types)
        hidden: Tensor = self.encoder.encoder.embedding_hidden_mapping_in(narrow)
        return hidden

    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        together = self.config.inner_group_num
        passes, inner = index // together, index % together  # torch.compile knows no divmod
        group = passes * self.config.num_hidden_groups // self.config.num_hidden_layers
        hidden = self.encoder.encoder.albert_layer_groups[group].albert_layers[inner](hidden, context.mask)
        return hidden

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        pooled: Tensor = self.encoder.pooler_activation(self.encoder.pooler(hidden[:, 0]))
        return pooled

    def pooler(self) -> nn.Linear | None:
        dense: nn.Linear = self.encoder.pooler
        return dense

    def head(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        logits: Tensor = self.model.classifier(self.model.dropout(self.pool(hidden, lengths)))
        return logits
