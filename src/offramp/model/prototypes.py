"""Class prototypes: moving averages of class means in a metric space.

He et al., "DE3-BERT", arXiv 2402.05948: prototypes are not learned by gradient but follow the class means,
``p_k <- (1 - rate) p_k + rate * mean of class k``. The rate, the first value (the first batch's mean) and that a class
absent from a batch is left alone are our choices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from offramp.settings import check_number

__all__ = ["Prototypes"]


class Prototypes(nn.Module):
    """One prototype a class, in float32.

    ``gather`` takes class sums and counts of a micro-batch (summed over processes where there are several) and
    ``advance`` moves the prototypes by all that was gathered: k micro-batches, or k processes, give what one batch of
    all their rows gives.

    Args:
        num_classes: C.
        width: of the metric space.
        rate: weight of the newest class mean, above 0 and at most 1; the paper's gamma.
    """

    means: Tensor
    seen: Tensor

    def __init__(self, num_classes: int, width: int, *, rate: float = 0.1) -> None:
        check_number("the prototypes' rate", rate, low=1e-6, high=1)
        super().__init__()
        self.rate = rate
        self.register_buffer("means", torch.zeros(num_classes, width, dtype=torch.float32))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        # Not a buffer: what is pending belongs to an optimiser step under way and is never saved.
        self._pending: tuple[Tensor, Tensor] | None = None

    @property
    def pending(self) -> bool:
        """Rows were gathered that the prototypes have not followed yet."""
        return self._pending is not None

    @torch.no_grad()
    def gather(self, embedded: Tensor, labels: Tensor) -> None:
        """Add one micro-batch: ``embedded`` [B, width], ``labels`` [B] class ids. A collective call under DDP."""
        embedded = embedded.detach().float()
        sums = torch.zeros_like(self.means, dtype=torch.float32).index_add_(0, labels, embedded)
        counts = torch.bincount(labels, minlength=self.means.shape[0]).float()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            packed = torch.cat([sums, counts[:, None]], dim=1)
            torch.distributed.all_reduce(packed)
            sums, counts = packed[:, :-1], packed[:, -1]
        if self._pending is not None:
            sums, counts = sums + self._pending[0], counts + self._pending[1]
        self._pending = (sums, counts)

    @torch.no_grad()
    def advance(self) -> None:
        """Follow what was gathered; once per optimiser step. Does nothing where nothing was."""
        if self._pending is None:
            return
        sums, counts = self._pending
        self._pending = None
        present = counts > 0
        batch_means = sums / counts.clamp(min=1)[:, None]
        # A class met for the first time takes its batch mean whole.
        rate = torch.where(self.seen, self.rate, 1.0)[:, None]
        moved = torch.lerp(self.means.float(), batch_means, rate)
        self.means.copy_(torch.where(present[:, None], moved, self.means.float()))
        self.seen.logical_or_(present)
