"""A run's stages as functions of arrays alone: what becomes a graph.

The first stage reads tokens and lengths, the others hidden states and lengths; masks, position biases and rotary
tables are made of the lengths inside. With the layers goes the exit that follows them, and with the exit the scores
of the criteria that are served most: written in the array API, they are traced like any other line of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from offramp.criteria.base import Scored, score_name
from offramp.model.heads import HeadOutput
from offramp.types import ExitOutput, Stage

__all__ = ["ANY_ROWS", "DOMAIN", "Part", "Plan", "plan_stages", "sample", "scorable"]

DOMAIN = "offramp"
"""Of operators that stand in a traced graph until it is finished."""

ANY_ROWS = "AnyRows"


class _AnyRows(torch.autograd.Function):
    """Hands an array on, its number of rows unknown: else the exporter may take the sample's for all there are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def symbolic(g: Any, x: Any) -> Any:
        made = g.op(f"{DOMAIN}::{ANY_ROWS}", x)
        made.setType(x.type().with_sizes([None] * x.type().dim()))
        return made


class Part(nn.Module):
    """What becomes one graph: arrays in, arrays out, each by name.

    Args:
        model: with exits.
        stage: of the model, the one whose exit is asked.
        first_layer: where the layers begin: earlier than the stage's own, where exits before it are left out.
        reads: the inputs.
        layers: run the layers; otherwise hidden states come in as they are after them.
        exits: ask the exit.
        gives_hidden: the next stage goes on from here.
        scores: criteria whose score an early exit gives.
    """

    def __init__(
        self,
        model: Any,
        stage: Stage,
        first_layer: int,
        reads: tuple[str, ...],
        *,
        layers: bool = True,
        exits: bool = True,
        gives_hidden: bool = False,
        scores: Sequence[Scored] = (),
    ) -> None:
        super().__init__()
        self.model, self.stage, self.reads = model, stage, reads
        self._span = replace(stage, first_layer=first_layer)
        self._layers, self._exits, self._gives_hidden, self._scores = layers, exits, gives_hidden, tuple(scores)
        self.gives: tuple[str, ...] = ()
        """Names of what ``forward`` returned last."""
        self.eval()  # the exporter puts back the mode it finds

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.reads, arrays, strict=True))
        parts, lengths = self.model.cuts()[self.stage.index], given["lengths"]
        hidden = given.get("hidden")
        if hidden is None:
            hidden = parts.embed(given["tokens"], lengths, given.get("token_types"))
        if self._layers:
            hidden = self.model.run_stage(parts, self._span, hidden, lengths)
        named: dict[str, Tensor] = {"hidden": hidden} if self._gives_hidden else {}
        if self._exits:
            memory = {name.removeprefix("memory."): x for name, x in given.items() if name.startswith("memory.")}
            output, left = self.model.run_exit(parts, self.stage, hidden, lengths, memory)
            named["logits"] = output.logits
            named |= {f"extras.{name}": value for name, value in self._extras(output).items()}
            named |= {f"memory.{name}": value for name, value in left.items()}
        self.gives = tuple(named)
        return tuple(named.values())

    def _extras(self, output: HeadOutput) -> Mapping[str, Tensor]:
        if self.stage.is_last:
            return output.extras
        loose: Any = _AnyRows.apply
        said = ExitOutput(loose(output.logits), {name: loose(value) for name, value in output.extras.items()})
        scores = {score_name(rule): rule.score(self.stage, said) for rule in self._scores}
        return {**output.extras, **scores}


@dataclass(frozen=True)
class Plan:
    """One stage of an export."""

    stage: Stage
    """As the runtime will declare it."""
    exit_index: int
    """Of its exit among the model's."""
    layers: Part
    exit: Part | None
    """Apart from the layers, where it reads what exits before it remembered."""


def plan_stages(
    model: Any, live: Sequence[int], *, token_types: bool, scores: Sequence[Scored], device: str = "cpu"
) -> list[Plan]:
    """Cut a model at the exits that stay.

    Args:
        model: with exits, in eval mode.
        live: indices of the exits that stay, rising, the last exit's among them.
        token_types: whether tokens come with their types.
        scores: criteria whose scores early exits give.
        device: where the model is.
    """
    remembers = any(head.remembers for head in model.offramp.early)
    tokens = ("tokens", "token_types", "lengths") if token_types else ("tokens", "lengths")
    plans: list[Plan] = []
    memory: tuple[str, ...] = ()
    for place, index in enumerate(live):
        own = model.stages[index]
        from_inputs = own.starts_from == "inputs"
        first = 0 if from_inputs or place == 0 else model.stages[live[place - 1]].last_layer
        goes_on = not own.is_last and model.stages[live[place + 1]].starts_from == "hidden"
        reads = tokens if place == 0 or from_inputs else ("hidden", "lengths")
        layers = Part(
            model, own, first, reads, exits=not remembers, gives_hidden=goes_on or remembers, scores=scores
        )  # fmt: skip
        exit_ = None
        if remembers:
            exit_ = Part(model, own, first, ("hidden", "lengths", *memory), layers=False, scores=scores)
            memory = _remembered(exit_, model, device, plans)
        plans.append(Plan(replace(own, index=place, first_layer=first), index, layers, exit_))
    return plans


def _remembered(part: Part, model: Any, device: str, before: Sequence[Plan]) -> tuple[str, ...]:
    """Names of what an exit leaves in memory, found by asking it."""
    with torch.no_grad():
        part(*sample(part, model, before))
    return tuple(name for name in part.gives if name.startswith("memory."))


def sample(part: Part, model: Any, before: Sequence[Plan]) -> tuple[Tensor, ...]:
    """Arrays to trace a part with: two texts, one of them padded."""
    generator = torch.Generator().manual_seed(0)
    lengths, width = torch.tensor([9, 5]), 9
    words = min(50, int(model.config.vocab_size))
    made: dict[str, Tensor] = {
        "lengths": lengths,
        "tokens": torch.randint(1, words, (2, width), generator=generator),
        "token_types": torch.zeros(2, width, dtype=torch.int64),
        "hidden": torch.randn(2, width, model.cuts()[0].hidden_size, generator=generator),
    }
    if any(name.startswith("memory.") for name in part.reads):
        made |= _memory(model, made["hidden"], lengths, before)
    return tuple(made[name] for name in part.reads)


def _memory(model: Any, hidden: Tensor, lengths: Tensor, before: Sequence[Plan]) -> dict[str, Tensor]:
    memory: dict[str, Tensor] = {}
    for plan in before:
        assert plan.exit is not None
        given = {"hidden": hidden, "lengths": lengths} | memory
        with torch.no_grad():
            said = plan.exit(*(given[name] for name in plan.exit.reads))
        memory = {name: x for name, x in zip(plan.exit.gives, said, strict=True) if name.startswith("memory.")}
    return memory


def scorable(criterion: object, extras: Mapping[str, int]) -> bool:
    """Whether a criterion's score can be computed beside an exit: it is one number of that exit alone."""
    return (
        isinstance(criterion, Scored)
        and type(criterion).follow is Scored.follow
        and criterion.needs <= extras.keys()
    )  # fmt: skip
