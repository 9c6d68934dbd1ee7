"""Own: the model's own head, whole, after every layer. Xie et al., "ELBERT", ICASSP 2021."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from offramp.model.heads.base import Head, HeadOutput, Reader, Surroundings

__all__ = ["Own"]


class Own(Head):
    """The head that answers at full depth, asked earlier. It has no parameters of its own."""

    reads_tokens = True  # as the family's head pools, which need not be as the exits' settings say

    def __init__(self, around: Surroundings) -> None:
        super().__init__()

    def forward(
        self, hidden: Tensor, lengths: Tensor, reader: Reader, memory: Mapping[str, Tensor]
    ) -> tuple[HeadOutput, Mapping[str, Tensor]]:
        assert reader.own is not None
        return HeadOutput(reader.own(hidden, lengths)), memory
