"""What every adapter gives: an encoder as embedding, layers, pooling and head, each callable on its own.

A cut refers to the modules of a model and registers none, so the model's ``state_dict`` stays as it was. Build one
where it is needed: that costs microseconds, and a model that was copied is cut anew.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

__all__ = ["Context", "Cut", "lengths_to_mask"]


def lengths_to_mask(lengths: Tensor, width: int) -> Tensor:
    """[B] int64 -> [B, width] bool: true where there is a token, false where there is padding (on the right)."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


@dataclass(frozen=True)
class Context:
    """What the layers of one stage share. Made from (hidden, lengths) and the weights, so it is never compacted."""

    mask: Tensor | None
    """The attention mask in the form that the family's layers take; None where nothing needs masking."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """What a family needs beside it: position bias, rotary tables, a second mask."""


class Cut(ABC):
    """An encoder for sequence classification, cut into layers. Subclasses are one family each.

    Shapes: tokens [B, L] int64; lengths [B] int64, the tokens that are not padding (padding is on the right);
    hidden [B, L, H]. At padding positions hidden states may hold any finite number, and L may be any width that
    holds the longest row. Training mode, autocast and gradient checkpointing work as in the untouched model.
    """

    model_types: ClassVar[tuple[str, ...]]
    """The ``config.model_type`` it serves."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config = model.config
        self.encoder: Any = model.base_model

    @property
    def num_layers(self) -> int:
        """Layers of the full-depth model."""
        count: int = self.config.num_hidden_layers
        return count

    @property
    def hidden_size(self) -> int:
        """H: width of the hidden states."""
        width: int = self.config.hidden_size
        return width

    @property
    def pooled_size(self) -> int:
        """Width of what ``pool`` returns."""
        return self.hidden_size

    @abstractmethod
    def embed(self, tokens: Tensor, lengths: Tensor, token_types: Tensor | None = None) -> Tensor:
        """[B, L] -> [B, L, H]: ``hidden_states[0]`` of the untouched model, what its first layer is given.

        ``token_types`` [B, L] are ignored by families that have none; None means all zero.
        """

    def context(self, hidden: Tensor, lengths: Tensor) -> Context:
        """What the layers share, for the batch as it is now. Cheap; call it once per stage."""
        return Context(create_bidirectional_mask(**self.mask_arguments(hidden, lengths)))

    def mask_arguments(self, hidden: Tensor, lengths: Tensor) -> dict[str, Any]:
        """What transformers makes an attention mask from."""
        return {
            "config": self.config,
            "inputs_embeds": hidden,
            "attention_mask": lengths_to_mask(lengths, hidden.shape[1]),
            # Whether anything is padded, and a mask is needed at all, is known at once on a CPU only: elsewhere the
            # host would have to wait for all that is queued.
            "allow_is_bidirectional_skip": hidden.device.type == "cpu",
        }

    @abstractmethod
    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        """[B, L, H] -> [B, L, H]: one layer, counted from 0.

        Gives ``hidden_states[index + 1]`` of the untouched model; so the last one gives ``last_hidden_state``, with
        the final norm of families that have one.
        """

    def summary(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, H] -> [B, H]: all that ``pool`` and ``head`` read of the tokens; here the first token's vector.

        Both give the same for this vector as a text of one token.
        """
        return hidden[:, 0]

    @abstractmethod
    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, H] -> [B, pooled_size]: the backbone's own pooling.

        ``head`` is the model's last Linear over this; in training with one more dropout between the two. Hidden
        states of an earlier layer go through ``exit_norm`` first, where there is one.
        """

    @abstractmethod
    def head(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """[B, L, H] of the last layer -> logits [B, C]: the model's own head, whole, its dropouts included."""

    def pooler(self) -> nn.Linear | None:
        """The dense layer of ``pool``, from which exits with a pooler of their own may start; None: there is none."""
        return None

    def exit_norm(self) -> nn.LayerNorm | None:
        """The model's norm that hidden states of earlier layers need before an exit reads them (pre-norm families).

        ``layer`` has already applied it after the last layer. None: every layer ends in a norm of its own.
        """
        return None
