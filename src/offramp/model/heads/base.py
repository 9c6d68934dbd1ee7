"""What an exit head is: hidden states in, what the exit says out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from offramp.model.pooling import AttentionPool
from offramp.settings import check_number
from offramp.types import ProblemType

__all__ = ["Head", "HeadOutput", "Reader", "Surroundings", "copy_pooler", "make_dropout"]


@dataclass(frozen=True)
class Surroundings:
    """What a head must know of the model it stands in."""

    hidden_size: int
    pooled_size: int
    """Width of the vector that ``pool`` returns."""
    num_outputs: int
    problem_type: ProblemType
    dropout: float
    """The backbone's own classifier dropout, unless a head's settings say otherwise."""
    place: int = 0
    """Of this exit among the model's exits, from 0."""


@dataclass(frozen=True)
class Reader:
    """What a head may use of the model around it, call by call."""

    pool: Callable[[Tensor, Tensor], Tensor]
    """(hidden [B, L, H], lengths [B]) -> [B, pooled size]: the pooling chosen for this model."""
    own: Callable[[Tensor, Tensor], Tensor] | None = None
    """(hidden, lengths) -> [B, C]: the model's own head, whole."""
    common: nn.Module | None = None
    """What all heads of the model share: ``Head.common``."""


def make_dropout(around: Surroundings, dropout: float | None) -> nn.Dropout:
    """The dropout that a head's settings ask for; None: the backbone's own.

    Raises:
        KnobError: it is no probability.
    """
    if dropout is not None:
        check_number("head.dropout", dropout, low=0, high=1)
    return nn.Dropout(around.dropout if dropout is None else dropout)


@torch.no_grad()
def copy_pooler(own: nn.Linear, pooler: nn.Linear | None) -> None:
    """Start a head's own pooler from the backbone's; where there is none, or one of another width, it stays fresh."""
    if pooler is None or pooler.weight.shape != own.weight.shape:
        return
    own.weight.copy_(pooler.weight)
    if pooler.bias is not None:
        own.bias.copy_(pooler.bias)


@dataclass(frozen=True)
class HeadOutput:
    """What one exit says while training or running."""

    logits: Tensor
    """[B, C]."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """What criteria may read, such as ``distances`` [B, C]."""
    embedded: Tensor | None = None
    """[B, width] in the metric space, for the prototypes."""


class Head(nn.Module, ABC):
    """An internal classifier after a layer."""

    remembers: ClassVar[bool] = False
    """It reads ``memory``, so that no exit before it may be skipped."""

    own_pooler: ClassVar[bool] = False
    """It has a pooler of its own, so the model hands it the first token's vector instead of the backbone's pooling."""

    reads_tokens: bool = False
    """It reads the hidden states of all tokens, or the lengths, and not only what ``reader.pool`` makes of them."""

    attention: AttentionPool | None
    """How it weighs tokens, where pooling is ``attention``: every head learns that for itself. ``Exits`` gives it."""

    @classmethod
    def common(cls, around: Surroundings) -> nn.Module | None:
        """A module that all exits of a model share; it is made once and comes with every call."""
        return None

    def inherit(self, pooler: nn.Linear | None) -> None:
        """Begin from other weights than those drawn, such as the pretrained encoder's. Called once, after drawing.

        Args:
            pooler: the dense layer of the backbone's own pooler; None where the family has none.
        """

    def extras(self) -> dict[str, int]:
        """Names of the extras it gives -> their width (0: one number a text)."""
        return {}

    def learn(self, output: HeadOutput, labels: Tensor) -> None:
        """Take in a training batch besides the gradient (class sums of prototypes). Called once per forward."""

    def advance(self) -> None:
        """Apply what ``learn`` took in; called once per optimiser step."""

    @property
    def pending(self) -> bool:
        """Whether ``advance`` has anything to do."""
        return False

    @abstractmethod
    def forward(
        self, hidden: Tensor, lengths: Tensor, reader: Reader, memory: Mapping[str, Tensor]
    ) -> tuple[HeadOutput, Mapping[str, Tensor]]:
        """What this exit says.

        Args:
            hidden: [B, L, H] after the layer; padding on the right may hold anything.
            lengths: [B].
            reader: the pooling chosen for this model, and what else of it a head may use.
            memory: what heads before it left for it, name -> first axis the row.
        """
