"""Linear: pooled vector, dropout, one linear layer. The exit head of most papers.

The null-space share is that of He et al., "Improving Prediction Certainty Estimation for Reliable Early Exiting via
Null Space Projection", IJCAI 2025, arXiv 2506.17249.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offramp.errors import KnobError
from offramp.model.heads.base import Head, HeadOutput, Reader, Surroundings, make_dropout

__all__ = ["Linear", "null_space_share"]


@dataclass(frozen=True, eq=False)
class _Span:
    """What a classifier can see, and the weights that it was computed from."""

    weight: Tensor
    bias: Tensor
    basis: Tensor
    """[H, C]: an orthonormal basis of the span of the weights' rows, and columns of zeros."""
    shift: Tensor
    """[H]: pinv(W) b."""

    def fits(self, weight: Tensor, bias: Tensor) -> bool:
        """Whether these are still the weights. By value: fused optimisers change weights without a trace.

        Where the host would have to wait for an answer, they are taken to be: training forgets the span anyway.
        """
        if (weight.device, weight.dtype) != (self.weight.device, self.weight.dtype):
            return False
        return weight.device.type != "cpu" or (torch.equal(weight, self.weight) and torch.equal(bias, self.bias))


def _span(weight: Tensor, bias: Tensor) -> _Span:
    """From the singular values, in float64, so that weights without full rank (all 0, a class twice) do no harm."""
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    # Weights come in float32 at best: smaller singular values than its rounding are none.
    seen = s > s.max() * max(weight.shape) * torch.finfo(torch.float32).eps
    vt = torch.where(seen[:, None], vt, 0.0)  # not vt[seen]: the host would have to wait for how many that are
    shift = (bias.double() @ u / torch.where(seen, s, 1.0)) @ vt
    return _Span(weight.clone(), bias.clone(), vt.T.float().contiguous(), shift.float())


def null_space_share(pooled: Tensor, basis: Tensor, shift: Tensor) -> Tensor:
    """Share of a vector that a classifier cannot see: s = |x' - P x'| / |x'| with x' = x + pinv(W) b.

    The same as sqrt(1 - |P x'|^2 / |x'|^2) without the digits that this loses near 0. A vector of length 0 has no
    parts; it gets 1, the cautious answer.

    Args:
        pooled: x, [B, H] float32.
        basis: [H, C], orthonormal columns that span the rows of W, and columns of zeros.
        shift: pinv(W) b, [H].

    Returns:
        [B] in [0, 1].
    """
    moved = pooled + shift
    length = torch.linalg.vector_norm(moved, dim=-1)
    outside = torch.linalg.vector_norm(moved - moved @ basis @ basis.T, dim=-1)
    share = outside / length.clamp(min=torch.finfo(length.dtype).tiny)
    return torch.where(length > 0, share, 1.0).clamp(max=1.0)


class Linear(Head):
    """One linear classifier on the pooled vector.

    Args:
        dropout: before the classifier, while training; None: the backbone's own.
        null_space: also give ``null_space`` [B]: the share of the pooled vector that the classifier cannot see; not
            while training. With as many classes as the vector has numbers there is nothing that it cannot see.
        detach: the exit's loss does not reach the encoder, which learns from the last exit alone.
    """

    def __init__(
        self, around: Surroundings, *, dropout: float | None = None, null_space: bool = False, detach: bool = False
    ) -> None:
        for name, value in (("null_space", null_space), ("detach", detach)):
            if not isinstance(value, bool):
                raise KnobError(f"head.{name} must be true or false, not {value!r}")
        super().__init__()
        self.dropout = make_dropout(around, dropout)
        self.classifier = nn.Linear(around.pooled_size, around.num_outputs)
        self.null_space, self.detach = null_space, detach
        # Not a buffer: it follows from the weights.
        self._span: _Span | None = None

    def extras(self) -> dict[str, int]:
        return {"null_space": 0} if self.null_space else {}

    def train(self, mode: bool = True) -> Linear:
        if mode:
            self._span = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # torch's own hook: also of a whole model's
        self._span = None
        super()._load_from_state_dict(*args, **kwargs)

    def forward(
        self, hidden: Tensor, lengths: Tensor, reader: Reader, memory: Mapping[str, Tensor]
    ) -> tuple[HeadOutput, Mapping[str, Tensor]]:
        pooled = reader.pool(hidden, lengths)
        # After pooling: the pooler may be the encoder's own.
        pooled = pooled.detach() if self.detach else pooled
        logits = self.classifier(self.dropout(pooled))
        if self.training or not self.null_space:
            return HeadOutput(logits), memory
        return HeadOutput(logits, {"null_space": self._outside(pooled)}), memory

    @torch.no_grad()
    def _outside(self, pooled: Tensor) -> Tensor:
        """[B] float32, whatever autocast says. The decomposition is kept until the weights change."""
        weight, bias = self.classifier.weight, self.classifier.bias
        with torch.autocast(pooled.device.type, enabled=False):
            span = self._span
            if span is None or not span.fits(weight, bias):
                span = self._span = _span(weight, bias)
            return null_space_share(pooled.float(), span.basis, span.shift)
