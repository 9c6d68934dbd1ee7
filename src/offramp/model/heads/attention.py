"""Attention: a narrow self-attention over the tokens, then a two-layer classifier on the first token.

Liu et al., "FastBERT: a Self-distilling BERT with Adaptive Inference Time", ACL 2020, arXiv 2004.02178. Only the first
token's output is read, so only its query is computed: the cost grows with the length and not with its square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from offramp.errors import KnobError
from offramp.model.heads.base import Head, HeadOutput, Reader, Surroundings, make_dropout
from offramp.model.pooling import in_blocks, padding_of
from offramp.settings import check_number

__all__ = ["Attention"]


class Attention(Head):
    """Linear + tanh per token, multi-head self-attention, linear + tanh on the first token, linear.

    It reads the tokens themselves, so the pooling chosen for the model does not matter to it.

    Args:
        width: of everything between the hidden states and the logits.
        heads: of the attention; they share the width.
        dropout: of the attention weights, while training; None: the backbone's own.
    """

    reads_tokens = True

    def __init__(self, around: Surroundings, *, width: int = 128, heads: int = 2, dropout: float | None = None) -> None:
        check_number("head.width", width, low=1, whole=True)
        check_number("head.heads", heads, low=1, whole=True)
        if width % heads:
            raise KnobError(f"head.width must be a multiple of head.heads ({heads}), not {width!r}")
        super().__init__()
        self.heads = heads
        self.narrow = nn.Linear(around.hidden_size, width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.mix = nn.Linear(width, width)
        self.dropout = make_dropout(around, dropout)
        self.dense = nn.Linear(width, width)
        self.classifier = nn.Linear(width, around.num_outputs)

    def inherit(self, pooler: nn.Linear | None) -> None:
        """Begin wider than drawn: through four narrow layers of N(0, 0.02) next to nothing of a token arrives.

        Many classes were not learned from there in thousands of steps.
        """
        for linear in (self.narrow, self.query, self.key, self.value, self.mix, self.dense):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, hidden: Tensor, lengths: Tensor, reader: Reader, memory: Mapping[str, Tensor]
    ) -> tuple[HeadOutput, Mapping[str, Tensor]]:
        # masked_fill and not a weight of 0: padding may hold anything, and 0 * inf is not 0.
        tokens = torch.tanh(self.narrow(hidden.masked_fill(padding_of(hidden, lengths)[:, :, None], 0.0)))
        tokens = in_blocks(tokens, 0.0)
        first = torch.tanh(self.dense(self.mix(self._attend(tokens, padding_of(tokens, lengths)))))
        return HeadOutput(self.classifier(first)), memory

    def _attend(self, tokens: Tensor, padding: Tensor) -> Tensor:
        """What the first token gathers from all unpadded ones: [B, L, W], [B, L] -> [B, W]."""
        # [B, heads, 1, d] @ [B, heads, d, L]. No shape is spelled out: exported graphs take any number of rows.
        query = self.query(tokens[:, 0]).unflatten(-1, (self.heads, -1))[:, :, None]
        key = self.key(tokens).unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1)
        value = self.value(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = query @ key / math.sqrt(query.shape[-1])
        weights = self.dropout(scores.masked_fill(padding[:, None, None], -math.inf).softmax(dim=-1))
        mixed: Tensor = (weights @ value).flatten(1)
        return mixed
