"""A criterion run over a trace: the same ``step`` that serves live traffic, on recorded outputs.

A scored criterion has a fast path: its score does not depend on the threshold, so the trace is scored once and every
threshold is a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.criteria.base import MAX_LAYERS, Criterion, Scored
from offramp.errors import DataError, KnobError, UnsupportedError
from offramp.traces.trace import Trace
from offramp.types import ExitOutput

__all__ = ["Outcome", "cap_exits", "check_fits", "exits_at", "replay", "running_minimum", "scores"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """Where every unit left, and what it said there."""

    exits: NDArray[np.int64]
    """[U]: exit index, from 0."""
    answers: NDArray[np.float32]
    """[U, C]: logits, or what stands for them."""


def replay(trace: Trace, criterion: Criterion, knobs: Mapping[str, float | NDArray[np.float64]]) -> Outcome:
    """Let every unit of a trace leave where the criterion says; whoever reaches the last exit leaves there.

    Args:
        trace: U units.
        criterion: any.
        knobs: name -> one number for all, or [U]: the criterion's, and the engine's ``max_layers``. Knobs left out
            have their defaults.

    Raises:
        KnobError: an unknown knob, or a value outside its range.
        UnsupportedError: the criterion needs an extra that the exits do not give, or is made for other problems.
    """
    check_fits(trace, criterion)
    settings = _knobs(criterion, knobs, trace.num_units)
    caps = settings.pop("max_layers")
    exits = np.full(trace.num_units, trace.num_exits - 1, dtype=np.int64)
    answers = np.array(trace.logits[-1])
    inside = np.arange(trace.num_units)
    state = criterion.start(inside)
    for e, stage in enumerate(trace.stages):
        if stage.is_last and not criterion.needs <= trace.gives(e):
            break  # the last exit may lack what the others give; it answers with its own logits
        output = trace.output(e)
        extras = {name: values[inside] for name, values in output.extras.items()}
        rows = ExitOutput(output.logits[inside], extras, lengths=trace.unit_lengths[inside])
        decision, state = criterion.step(stage, rows, state, {name: v[inside] for name, v in settings.items()})
        leave = np.asarray(decision.leave) | (caps[inside] <= stage.layers) | stage.is_last
        exits[inside[leave]] = e
        answers[inside[leave]] = decision.answer[leave]
        inside, state = inside[~leave], {name: values[~leave] for name, values in state.items()}
    return Outcome(exits, answers)


def scores(trace: Trace, criterion: Scored) -> NDArray[np.float64]:
    """[E, U]: the criterion's score of every unit at every exit; NaN at a last exit that lacks what it needs.

    Raises:
        UnsupportedError: the criterion needs an extra that the exits do not give, or is made for other problems.
    """
    check_fits(trace, criterion)
    result = np.full((trace.num_exits, trace.num_units), np.nan)
    state = criterion.start(np.arange(trace.num_units))
    for e, stage in enumerate(trace.stages):
        if not stage.is_last or criterion.needs <= trace.gives(e):
            result[e], state = criterion.follow(stage, trace.output(e), state)
    return result


def running_minimum(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """[E, U] scores -> [E - 1, U]: the smallest so far, at every exit but the last.

    A unit has left by exit e exactly where this is below the threshold.
    """
    return np.minimum.accumulate(scores[:-1], axis=0)


def exits_at(scores: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where units leave, at many thresholds at once: scores [E, U], thresholds [T] -> exit index [T, U]."""
    lowest = running_minimum(scores)
    small = np.uint8 if len(scores) < 256 else np.int64
    exits = np.zeros((len(thresholds), scores.shape[1]), dtype=small)
    for row in lowest:  # a unit goes on past each exit where nothing so far was below the threshold
        exits += row[None, :] >= thresholds[:, None]
    return exits.astype(np.int64)


def cap_exits(trace: Trace, max_layers: Sequence[float]) -> NDArray[np.int64]:
    """[T]: index of the exit where all that come so far leave, by the engine's knob ``max_layers``."""
    places: NDArray[np.int64] = np.searchsorted(trace.layers, max_layers).clip(max=trace.num_exits - 1)
    return places


def check_fits(trace: Trace, criterion: Criterion) -> None:
    """Raise UnsupportedError where the criterion cannot be run on the trace."""
    if criterion.problem_type != trace.problem_type:
        raise UnsupportedError(
            f"criterion {criterion.name!r} was made for {criterion.problem_type}, and the trace is of "
            f"{trace.problem_type}: make it with problem_type={trace.problem_type!r}"
        )
    for e in range(trace.num_exits - 1):
        if missing := criterion.needs - trace.gives(e):
            raise UnsupportedError(
                f"criterion {criterion.name!r} needs {', '.join(sorted(missing))} at every exit, and exit {e} of this "
                "trace does not give it: record a model that was trained with a recipe that does (`--recipe de3bert` "
                "gives distances), or choose another criterion"
            )


def _knobs(
    criterion: Criterion, given: Mapping[str, float | NDArray[np.float64]], units: int
) -> dict[str, NDArray[np.float64]]:
    """Every knob of the criterion, and ``max_layers``, as [U], checked."""
    known = {**criterion.knobs, "max_layers": MAX_LAYERS}
    if unknown := set(given) - set(known):
        raise KnobError(
            f"criterion {criterion.name!r} has no knob {', '.join(sorted(unknown))}, only {', '.join(known)}"
        )
    result = {}
    for name, knob in known.items():
        values = np.asarray(given.get(name, knob.default), dtype=np.float64)
        if values.ndim and values.shape != (units,):
            raise DataError(f"knob {name!r} must be one number or one for each of {units} units: {list(values.shape)}")
        for value in np.unique(values):
            knob.check(name, float(value))
        result[name] = np.broadcast_to(values, (units,))
    return result
