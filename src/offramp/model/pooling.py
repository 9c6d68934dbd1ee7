"""From hidden states to one vector a text."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from offramp.errors import KnobError

__all__ = ["Pooling", "check_pooling", "pool_tokens"]

Pooling = Literal["cls", "mean", "backbone"]
"""The first token's vector, the mean over unpadded tokens, or the backbone's own (its pooler or head's first layer)."""


def check_pooling(pooling: str) -> None:
    """Raise KnobError where the name is none of ``Pooling``."""
    if pooling not in get_args(Pooling):
        raise KnobError(f"pooling must be one of {', '.join(get_args(Pooling))}, not {pooling!r}")


def pool_tokens(hidden: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """``cls`` or ``mean`` pooling: [B, L, H] -> [B, H]. Padding is on the right."""
    if pooling == "cls":
        return hidden[:, 0]
    mask = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    # masked_fill and not a product: padding may hold anything, and 0 * inf is not 0.
    total = hidden.masked_fill(~mask[:, :, None], 0.0).sum(dim=1)
    return total / lengths[:, None].to(hidden.dtype)
