"""From hidden states to one vector a text.

Attention with one learned query is that of Yang et al., "Hierarchical Attention Networks for Document Classification",
NAACL 2016, section 2.2, without their layer before the query.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from offramp.errors import KnobError
from offramp.types import Pooling

__all__ = ["AttentionPool", "check_pooling", "pool_tokens", "weighed"]


def check_pooling(pooling: str) -> None:
    """Raise KnobError where the name is none of ``Pooling``."""
    if pooling not in get_args(Pooling):
        raise KnobError(f"pooling must be one of {', '.join(get_args(Pooling))}, not {pooling!r}")


def pool_tokens(hidden: Tensor, lengths: Tensor, pooling: Literal["cls", "mean"]) -> Tensor:
    """``cls`` or ``mean`` pooling: [B, L, H] -> [B, H]. Padding is on the right."""
    if pooling == "cls":
        return hidden[:, 0]
    hidden, _ = _without_padding(hidden, lengths)
    return hidden.sum(dim=1) / lengths[:, None].to(hidden.dtype)


class AttentionPool(nn.Module):
    """A weighted mean over unpadded tokens: softmax of each token's product with a learned query.

    The query begins at 0, where this is the plain mean.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, H], [B] -> [B, H]. Padding is on the right."""
        return weighed(hidden, (hidden @ self.query[:, None]).squeeze(-1), lengths)


def weighed(hidden: Tensor, scores: Tensor, lengths: Tensor) -> Tensor:
    """The mean over unpadded tokens, weighed by the softmax of their scores: [B, L, H], [B, L], [B] -> [B, H]."""
    hidden, padding = _without_padding(hidden, lengths)
    weights = scores.masked_fill(padding, -math.inf).softmax(dim=-1)
    pooled: Tensor = (weights[:, None] @ hidden).squeeze(1)
    return pooled


def _without_padding(hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states with zeros for padding, and where that is: [B, L]."""
    padding = torch.arange(hidden.shape[1], device=hidden.device) >= lengths[:, None]
    # masked_fill and not a weight of 0: padding may hold anything, and 0 * inf is not 0.
    return hidden.masked_fill(padding[:, :, None], 0.0), padding
