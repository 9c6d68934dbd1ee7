"""The exits of a model: where they stand, what stands there, and how they were set up (config.json's section)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from offramp.errors import KnobError
from offramp.model.heads import Head, HeadOutput, Surroundings, head_class, make_head
from offramp.model.pooling import AttentionPool, check_pooling
from offramp.types import Pooling, Stage

__all__ = ["ExitSettings", "Exits", "make_stages"]


@dataclass(frozen=True)
class ExitSettings:
    """Everything needed to build the exits again; kept in config.json."""

    head: str = "linear"
    head_settings: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    """Layers after which an exit stands, from 1, rising; None: after every layer. The last layer always has one."""
    pooling: Pooling = "cls"
    shared: bool = False
    """One head for all early exits."""
    last_exit: Literal["model", "head"] = "model"
    """The last exit is the model's own head, whole, or a head like the others."""
    members: tuple[int, ...] = ()
    """Layers of smaller complete models that answer before this one, small to large; there are no other exits then."""
    objective: str = "weighted_sum"
    objective_settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_pooling(self.pooling)
        if self.last_exit not in ("model", "head"):
            raise KnobError(f"last_exit must be model or head, not {self.last_exit!r}")
        if self.members and self.layers is not None:
            raise KnobError("exits stand after layers of the model, or smaller models answer first: not both")
        if self.members and self.pooling == "attention":
            raise KnobError(
                "smaller complete models answer with heads of their own: pooling must be cls, mean or backbone"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values for config.json."""
        return {
            "head": self.head,
            "head_settings": dict(self.head_settings),
            "layers": None if self.layers is None else list(self.layers),
            "pooling": self.pooling,
            "shared": self.shared,
            "last_exit": self.last_exit,
            "members": list(self.members),
            "objective": self.objective,
            "objective_settings": dict(self.objective_settings),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ExitSettings:
        """The inverse of ``to_json``; ignores the other things that stand in the section."""
        known = {key: value[key] for key in cls.__dataclass_fields__ if key in value}
        if known.get("layers") is not None:
            known["layers"] = tuple(int(layer) for layer in known["layers"])
        known["members"] = tuple(int(layers) for layers in known.get("members", ()))
        if not isinstance(known.get("head", ""), str) or not isinstance(known.get("head_settings", {}), Mapping):
            raise ValueError("a head must have a name, and settings by name")
        return cls(**known)


def make_stages(num_layers: int, layers: Sequence[int] | None, members: Sequence[int] = ()) -> tuple[Stage, ...]:
    """Stages of a model with exits after the given layers, or after smaller complete models with so many layers.

    Raises:
        KnobError: a layer that the model does not have, or layers that do not rise.
    """
    if members:
        return _cascade(num_layers, members)
    ends = list(range(1, num_layers + 1)) if layers is None else list(layers)
    if sorted(set(ends)) != ends or (ends and (ends[0] < 1 or ends[-1] > num_layers)):
        raise KnobError(f"exits must be rising layer numbers between 1 and {num_layers}, not {ends}")
    if not ends or ends[-1] != num_layers:
        ends.append(num_layers)
    starts = [0, *ends[:-1]]
    return tuple(
        Stage(index=i, first_layer=start, last_layer=end, layers=end, is_last=end == num_layers)
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    )


def _cascade(num_layers: int, members: Sequence[int]) -> tuple[Stage, ...]:
    """One stage a model. Whoever goes on starts anew in a larger one, and pays for both."""
    if sorted(set(members)) != list(members) or members[0] < 1 or members[-1] >= num_layers:
        raise KnobError(f"smaller models must have rising numbers of layers below {num_layers}, not {list(members)}")
    depths = [*members, num_layers]
    return tuple(
        Stage(
            index=i,
            first_layer=0,
            last_layer=depth,
            layers=sum(depths[: i + 1]),
            is_last=i == len(members),
            starts_from="inputs" if i else "hidden",
        )
        for i, depth in enumerate(depths)
    )


class Exits(nn.Module):
    """Heads of all exits; stands in the model under the name ``offramp``.

    Args:
        settings: what to build.
        stages: where.
        around: what the heads must know of the model.
        norm: pre-norm backbones only: the norm that hidden states need before an exit reads them; each exit gets a
            copy of its own, because scales differ by layer.
        members: smaller complete models; each has an early exit.
    """

    def __init__(
        self,
        settings: ExitSettings,
        stages: Sequence[Stage],
        around: Surroundings,
        norm: nn.LayerNorm | None,
        members: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        early = len(stages) - 1
        self.shared = settings.shared
        self.heads = nn.ModuleList(
            make_head(settings.head, replace(around, place=place), settings.head_settings)
            for place in range(min(early, 1) if settings.shared else early)
        )
        self.common = head_class(settings.head).common(around) if early else None
        self.last = make_head("linear", around, {}) if settings.last_exit == "head" else None
        for head in (*self.early, *([] if self.last is None else [self.last])):
            head.attention = AttentionPool(around.hidden_size) if settings.pooling == "attention" else None
        # None for the last exit: the backbone itself norms what its last layer gives.
        self.norms = nn.ModuleList([] if norm is None else [_like(norm) for _ in range(early)])
        self.members = nn.ModuleList(members)
        self.objective: nn.Module | None = None
        # Where in its training it is; not saved: who trains says so.
        self.step, self.progress = 0, 1.0

    def head(self, index: int) -> Head:
        """The head of early exit ``index``."""
        head = self.heads[0 if self.shared else index]
        assert isinstance(head, Head)
        return head

    @property
    def early(self) -> list[Head]:
        """Every early head once."""
        return [head for head in self.heads if isinstance(head, Head)]

    def normalise(self, index: int, hidden: Tensor) -> Tensor:
        """Hidden states as exit ``index`` reads them."""
        if index >= len(self.norms):
            return hidden
        normed: Tensor = self.norms[index](hidden)
        return normed

    def standardise(self, index: int, hidden: Tensor) -> Tensor:
        """Hidden states as exit ``index`` reads them but for the weights of its norm: what of them can be kept.

        ``rescale`` does the rest. Between the two may stand a mean over tokens.
        """
        if index >= len(self.norms):
            return hidden
        norm = self._norm(index)
        return nn.functional.layer_norm(hidden, norm.normalized_shape, eps=norm.eps)

    def rescale(self, index: int, standard: Tensor) -> Tensor:
        """What ``standardise`` left out."""
        if index >= len(self.norms):
            return standard
        norm = self._norm(index)
        scaled = standard * norm.weight
        return (scaled if norm.bias is None else scaled + norm.bias).to(standard.dtype)

    def _norm(self, index: int) -> nn.LayerNorm:
        norm = self.norms[index]
        assert isinstance(norm, nn.LayerNorm)
        return norm

    @property
    def reads_tokens(self) -> bool:
        """Whether an early head reads more of a text than one vector that no head of ours makes."""
        return any(head.reads_tokens or head.attention is not None for head in self.early)

    def extras(self) -> dict[str, int]:
        """Extras that the early exits give."""
        return self.early[0].extras() if self.early else {}

    def learn(self, outputs: Sequence[HeadOutput], labels: Tensor) -> None:
        """Let the heads take in a training batch; ``advance`` follows by itself when the optimiser has stepped."""
        for index, output in enumerate(outputs[:-1]):
            head = self.head(index)
            # Frozen heads are in no optimiser, whose steps would let them advance.
            if any(p.requires_grad for p in head.parameters()):
                head.learn(output, labels)
        _waiting.add(self)

    def advance(self) -> None:
        """The optimiser has stepped: apply what the heads took in since the last time."""
        self.step += 1
        for head in self.early:
            head.advance()

    @torch.no_grad()
    def reset_parameters(self, std: float, norm: nn.LayerNorm | None, pooler: nn.Linear | None) -> None:
        """Fresh heads: weights from N(0, std), biases 0; norms, and poolers of their own, copied from the backbone.

        Members stay as they are.
        """
        pretrained = set(self.members.modules())
        for module in self.modules():
            if isinstance(module, nn.Linear) and module not in pretrained:
                module.weight.normal_(0.0, std)
                if module.bias is not None:
                    module.bias.zero_()
        if norm is not None:
            for copy in self.norms:
                copy.load_state_dict(norm.state_dict())
        for head in self.early:
            head.inherit(pooler)


_waiting: WeakSet[Exits] = WeakSet()
"""Exits that have seen micro-batches since the last optimiser step."""


def _after_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[Any, Any]) -> None:
    """Let waiting exits advance once an optimiser that holds their parameters has stepped.

    A hook on every optimiser, and no callback of one trainer: so the prototypes move once per step whoever drives the
    training - Trainer, accelerate with accumulation, DDP, a plain loop.
    """
    if not _waiting:
        return
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for exits in list(_waiting):
        if any(id(p) in stepped for p in exits.parameters()):
            exits.advance()
            _waiting.discard(exits)


register_optimizer_step_post_hook(_after_step)


def _like(norm: nn.LayerNorm) -> nn.LayerNorm:
    """An uninitialised norm of the same shape."""
    return nn.LayerNorm(norm.normalized_shape, eps=norm.eps, bias=norm.bias is not None)
