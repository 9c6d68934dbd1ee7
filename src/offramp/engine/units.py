"""What goes into an engine and what comes out: units, the knobs of each, and finished answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device, to_device

from offramp.criteria.base import MAX_LAYERS, Criterion
from offramp.errors import DataError, KnobError, UnsupportedError
from offramp.inputs.tokens import Encoded
from offramp.runtimes.base import RuntimeInfo
from offramp.types import Array, Decision, ExitOutput, Knobs, Lazily, Stage, State

__all__ = [
    "Finished",
    "KnobsFor",
    "Unit",
    "check_fits",
    "check_tokens",
    "decide",
    "decides_on_host",
    "on_host",
    "resolve_knobs",
    "to_host",
]

KnobsFor = Mapping[str, float] | Sequence[Mapping[str, float]] | None
"""Knobs of several units: one mapping for all, or one each. What is left out has its default."""


@dataclass(frozen=True)
class Unit:
    """One text on its way into an engine."""

    id: int
    """The caller's number for it, unique among those in the engine."""
    encoded: Encoded


@dataclass(frozen=True, eq=False)
class Finished:
    """One unit that has left."""

    id: int
    answer: npt.NDArray[Any]
    """[C] logits, or what stands for them. float32, or float64 where the runtime computes so."""
    exit_layer: int
    """Layers up to the exit where the rule fired."""
    layers_executed: int
    """Layers computed for it: fewer than ``exit_layer`` where smaller models that could not answer were left out."""
    exit_index: int
    """That exit's place among the exits, from 0."""


def check_fits(criterion: Criterion, info: RuntimeInfo) -> None:
    """Raise UnsupportedError where a criterion cannot decide for a runtime's model."""
    if criterion.problem_type != info.problem_type:
        raise UnsupportedError(
            f"criterion {criterion.name!r} was made for {criterion.problem_type}, and this model does "
            f"{info.problem_type}: make it with problem_type={info.problem_type!r}, or choose one that serves it"
        )
    missing = sorted(criterion.needs - info.extras.keys())
    if missing:
        raise UnsupportedError(
            f"criterion {criterion.name!r} needs {', '.join(missing)} at every exit, and this model's exits give "
            f"{', '.join(sorted(info.extras)) or 'logits only'}: train with a recipe that gives it "
            "(`--recipe de3bert` gives distances), or choose another criterion"
        )


def check_tokens(unit: Unit) -> None:
    """Raise DataError where there is nothing to compute."""
    if len(unit.encoded.tokens) == 0:
        raise DataError(f"unit {unit.id} has no tokens: encode it with special tokens, as the model was trained")


def resolve_knobs(criterion: Criterion, knobs: KnobsFor, units: int) -> list[Mapping[str, float]]:
    """Every knob of every unit: ``max_layers`` and the criterion's own, checked, defaults filled in.

    Raises:
        KnobError: an unknown knob, or a value outside what it may be.
        DataError: one mapping a unit was given, but not as many as units.
    """
    if knobs is None or isinstance(knobs, Mapping):
        return [_resolve(criterion, knobs or {})] * units
    if len(knobs) != units:
        raise DataError(f"{units} units came with knobs for {len(knobs)}: give one mapping for all, or one each")
    return [_resolve(criterion, each) for each in knobs]


def _resolve(criterion: Criterion, given: Mapping[str, float]) -> Mapping[str, float]:
    known = {**criterion.knobs, "max_layers": MAX_LAYERS}
    for name, value in given.items():
        if name not in known:
            raise KnobError(f"criterion {criterion.name!r} has no knob {name!r}: it has {', '.join(sorted(known))}")
        known[name].check(name, value)
    return {name: float(given.get(name, knob.default)) for name, knob in known.items()}


def decide(
    criterion: Criterion, stage: Stage, output: ExitOutput, state: State, knobs: Knobs
) -> tuple[Decision, State]:
    """What the criterion says at one exit (see ``Criterion.step``).

    A last exit may lack an extra that the criterion reads, as a model's own head gives logits only: then there is
    nothing to ask, and all leave with those.
    """
    if stage.is_last and not criterion.needs <= output.extras.keys():
        logits = output.logits
        xp = array_namespace(logits)
        return Decision(xp.ones(logits.shape[0], dtype=xp.bool, device=device(logits)), logits), state
    return criterion.step(stage, output, state, knobs)


def decides_on_host(info: RuntimeInfo) -> bool:
    """Whether criteria decide in numpy, whatever library computes the layers.

    The memory is the same where it computes on the CPU, and on a handful of numbers a text each of numpy's calls takes
    a fraction of torch's.
    """
    return info.device == "cpu" and not info.deferred


def on_host(output: ExitOutput, lengths: npt.NDArray[np.int64]) -> ExitOutput:
    """What an exit says in numpy: without a copy, and extras when they are asked for.

    Args:
        output: of a runtime on the CPU.
        lengths: [B] tokens of each text.
    """
    extras = Lazily({name: partial(_extra, output, name) for name in output.extras})
    return ExitOutput(to_host(output.logits), extras, output.layout, lengths)


def _extra(output: ExitOutput, name: str) -> npt.NDArray[Any]:
    return np.asarray(output.extras[name])


def to_host(array: Array) -> npt.NDArray[Any]:
    """A floating array of any library in numpy: float64 as it is, all others as float32, which holds them exactly."""
    if isinstance(array, np.ndarray) and array.dtype in (np.float32, np.float64):
        return array
    xp = array_namespace(array)
    if array.dtype != xp.float64:  # numpy knows no bfloat16
        array = xp.astype(array, xp.float32, copy=False)
    return np.asarray(to_device(array, "cpu"))
