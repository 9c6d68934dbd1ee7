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

__all__ = ["BLOCK", "AttentionPool", "check_pooling", "in_blocks", "padding_of", "pool_tokens", "weighed"]

BLOCK = 16
"""Numbers in a vector of AVX-512, and a multiple of those in narrower ones."""


def check_pooling(pooling: str) -> None:
    """Raise KnobError where the name is none of ``Pooling``."""
    if pooling not in get_args(Pooling):
        raise KnobError(f"pooling must be one of {', '.join(get_args(Pooling))}, not {pooling!r}")


def pool_tokens(hidden: Tensor, lengths: Tensor, pooling: Literal["cls", "mean"]) -> Tensor:
    """``cls`` or ``mean`` pooling: [B, L, H] -> [B, H]. Padding is on the right."""
    if pooling == "cls":
        return hidden[:, 0]
    hidden = _without(padding_of(hidden, lengths), hidden)
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
    padding = padding_of(hidden, lengths)
    weights = in_blocks(scores.masked_fill(padding, -math.inf), -math.inf).softmax(dim=-1)[:, : scores.shape[1]]
    if _may_look(hidden):
        # A copy of all hidden states is most of what an exit costs here, and padding is seldom anything but finite.
        pooled = _mean(weights, hidden)
        if math.isfinite(pooled.sum()):  # no finite sum has a part that is not
            return pooled
    return _mean(weights, _without(padding, hidden))


def padding_of(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Where padding is: [B, L]."""
    return torch.arange(hidden.shape[1], device=hidden.device) >= lengths[:, None]


def in_blocks(x: Tensor, value: float) -> Tensor:
    """In a graph: padded along the tokens to whole blocks, [B, L, ...] -> [B, L', ...]; elsewhere as it is.

    Whoever adds up in vectors of a block's numbers adds the same ones in the same order then, however wide the batch
    is, and a text's answer is the same to the last bit in any company.
    """
    if not _tracing():
        return x
    width = x.shape[1]
    more = (width + BLOCK - 1) // BLOCK * BLOCK - width
    return nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, more), value=value)


def _mean(weights: Tensor, hidden: Tensor) -> Tensor:
    mean: Tensor = (weights[:, None] @ hidden).squeeze(1)
    return mean


def _may_look(hidden: Tensor) -> bool:
    """Whether looking at a number makes nobody wait, and comes into no graph."""
    if _tracing() or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return hidden.device.type == "cpu"


def _tracing() -> bool:
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return traced


def _without(padding: Tensor, hidden: Tensor) -> Tensor:
    """Hidden states with zeros for padding."""
    # masked_fill and not a weight of 0: padding may hold anything, and 0 * inf is not 0.
    return hidden.masked_fill(padding[:, :, None], 0.0)
