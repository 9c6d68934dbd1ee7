"""Mixing: a linear classifier on a learned mix of the vectors of all exits so far.

Schwartz et al., "The Right Tool for the Job", ACL 2020. That the mix is a softmax whose weights train, and over the
exits' layers only, are our choices: recipes/righttool.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from offramp.errors import KnobError
from offramp.model.heads.base import Head, HeadOutput, Reader, Surroundings, make_dropout
from offramp.settings import check_choice, check_number

__all__ = ["Mixing", "Reads"]

Reads = Literal["layers_so_far", "this_layer"]


class Mixing(Head):
    """One linear classifier on sum_j w_j x_j, x_j the vector at exit j up to this one, w a softmax of weights.

    Neither a pooler nor tanh: where the model's pooling is the backbone's own, x_j is the first token's vector.
    Leaves ``pooled`` [B, exits so far, H] in memory.

    Args:
        reads: ``layers_so_far``, or ``this_layer`` alone.
        pace: how many times faster than its other weights the mix moves: w = softmax(pace * a). One step of AdamW
            moves each number by about the learning rate, which for a pretrained encoder is too small to be seen in w.
        dropout: before the classifier, while training; None: the backbone's own.
    """

    remembers: ClassVar[bool] = True
    own_pooler: ClassVar[bool] = True

    def __init__(
        self,
        around: Surroundings,
        *,
        reads: Reads = "layers_so_far",
        pace: float = 100.0,
        dropout: float | None = None,
    ) -> None:
        check_choice("head.reads", reads, get_args(Reads))
        check_number("head.pace", pace, low=0)
        super().__init__()
        self.place, self.reads, self.pace = around.place, reads, pace
        mixes = reads == "layers_so_far" and around.place > 0  # the first exit has nothing to weigh
        self.mixing = nn.Parameter(torch.zeros(around.place + 1)) if mixes else None
        self.dropout = make_dropout(around, dropout)
        self.classifier = nn.Linear(around.pooled_size, around.num_outputs)

    def weights(self) -> Tensor:
        """What each exit so far counts in the mix: [place + 1] float32, summing to 1."""
        if self.mixing is None:
            return torch.ones(1, device=self.classifier.weight.device)
        return (self.pace * self.mixing.float()).softmax(dim=0)

    def forward(
        self, hidden: Tensor, lengths: Tensor, reader: Reader, memory: Mapping[str, Tensor]
    ) -> tuple[HeadOutput, Mapping[str, Tensor]]:
        vector = reader.pool(hidden, lengths)
        if self.reads == "this_layer":
            return HeadOutput(self.classifier(self.dropout(vector))), memory
        so_far = vector[:, None]
        if "pooled" in memory:
            so_far = torch.cat([memory["pooled"], so_far], dim=1)
        if so_far.shape[1] != self.place + 1:
            raise KnobError("every exit mixes by weights of its own: the mixing head cannot be shared by all exits")
        # Row by row, and no matrix product over the batch.
        mixed = (so_far * self.weights().to(vector.dtype)[:, None]).sum(dim=1)
        return HeadOutput(self.classifier(self.dropout(mixed))), {**memory, "pooled": so_far}
