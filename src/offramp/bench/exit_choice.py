"""Which exits and which threshold are fastest at an allowed loss of accuracy: chosen on one half, scored on the other.

Layers are not seconds: an exit costs a head, a call and a compaction, and how much that is beside a layer depends on
the runtime and the batch. So what a text costs is counted in measured ``Costs``, and which exits stay is chosen with
the threshold, by ``runtimes.export.merge.useful_exits``.

Picking the fastest of many that seem good enough picks lucky ones: on a few hundred rows it loses twice what it was
allowed. So the loss that is tolerated *while choosing* is itself chosen, by halving the rows again, such that what is
lost on rows unseen is what was allowed.

One half says that half a point is lost at once, another that nothing is lost before most leave: what is told is the
mean over many. What is served, and timed, is therefore not the luckier choice that all rows would make, but the
threshold that costs what those cost in the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.criteria.base import Scored
from offramp.errors import DataError
from offramp.runtimes.export.merge import useful_exits
from offramp.traces.curves import thresholds
from offramp.traces.replay import exits_at, running_minimum, scores
from offramp.traces.trace import Trace

__all__ = ["Costs", "ExitChoice", "choose_exits"]

_Bools = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float32]

THRESHOLDS = 100
"""Most that are tried."""
FOLDS, REPEATS = 10, 2
"""Of the rows chosen on, by which the tolerance is found."""
TOLERANCES = (-3.0, -2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5)
"""Points added to the allowed loss while choosing: the last before unseen rows lose more than allowed."""


@dataclass(frozen=True)
class Costs:
    """What was measured on one runtime at one batch size, in seconds a text of mean length."""

    layer: float
    """One layer."""
    exit: float
    """Passing one exit: its head, the call, the compaction behind it."""


@dataclass(frozen=True)
class ExitChoice:
    """Exits that stay and the operating point, which costs what the choices made on halves cost in the mean; and what
    those are worth on rows unseen.
    """

    layers: tuple[int, ...]
    """Layers after which an exit stands; without the last."""
    point: Mapping[str, Any] | None
    """``criterion``, ``settings``, ``knobs``; None: nobody leaves early."""
    held_out: Mapping[str, float]
    """Means over splits, on the half that nothing was chosen on: ``accuracy``, ``lost`` (points below the reference),
    ``lost_low``, ``lost_high`` (95 % of splits), ``layer_speedup``, ``cost_fraction`` (of full depth, as counted)."""


@dataclass(frozen=True)
class _Way:
    """One criterion, at T thresholds from slow to fast."""

    criterion: Scored | None
    thresholds: Sequence[float]
    right: _Floats
    """[T, N]: 1 where the answer is right."""
    layers: _Floats
    """[T, N]: layers executed."""
    cost: _Floats
    """[T, N]: seconds, as counted."""


def choose_exits(
    trace: Trace,
    reference: _Bools,
    criteria: Sequence[Scored],
    costs: Costs,
    *,
    max_lost: float,
    splits: int = 50,
    seed: int = 0,
) -> ExitChoice:
    """A fast way to run a model that loses at most ``max_lost`` points against a reference.

    Along each curve points are taken from the slowest on for as long as none loses too much: a lucky point beyond an
    unlucky one is no reason to go there.

    Args:
        trace: every exit, with labels, recorded on the runtime that will serve.
        reference: [N] whether the model to hold up with is right.
        criteria: to choose among.
        costs: of this runtime at the batch size to serve.
        max_lost: points of accuracy.
        splits: random halves.
        seed: of the halves.

    Raises:
        DataError: the trace has no labels.
    """
    if trace.labels is None:
        raise DataError("choosing by accuracy needs labels, and the data has none")
    ways = _ways(trace, criteria, costs)
    halves = _halves(np.ones(trace.num_units, dtype=bool), splits, seed)
    picks, rows = [], []
    for number, first in enumerate(halves):
        picks.append(_choose(ways, reference, first, max_lost, seed=seed + 1 + number))
        rows.append(_seen_on(ways, picks[-1], reference, ~first, trace.num_layers))
    held_out = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    low, high = np.quantile([row["lost"] for row in rows], [0.025, 0.975])
    held_out |= {"lost_low": float(low), "lost_high": float(high), "splits": float(splits)}
    way, place = _like(ways, [number for number, _ in picks], held_out["cost_fraction"])
    if way.criterion is None:
        return ExitChoice((), None, held_out)
    knobs = {"threshold": float(way.thresholds[place])}
    kept = useful_exits(trace, way.criterion, knobs, exit_cost=costs.exit / costs.layer)
    point = {"criterion": way.criterion.name, "settings": asdict(way.criterion), "knobs": knobs}
    return ExitChoice(tuple(int(trace.layers[exit_]) for exit_ in kept[:-1]), point, held_out)


def _ways(trace: Trace, criteria: Sequence[Scored], costs: Costs) -> list[_Way]:
    """Full depth, and every criterion."""
    tokens = np.asarray(trace.unit_lengths, dtype=np.float64)
    layer = costs.layer * tokens / tokens.mean()
    right = np.asarray(trace.logits).argmax(axis=-1) == np.asarray(trace.labels)[None]
    layers, units = np.asarray(trace.layers, dtype=np.float64), np.arange(trace.num_units)

    def way(criterion: Scored | None, marks: Sequence[float], exits: npt.NDArray[np.int64], passed: Any) -> _Way:
        executed = layers[exits]
        found = (right[exits, units], executed, executed * layer + costs.exit * passed)
        return _Way(criterion, marks, *(array.astype(np.float32) for array in found))

    last = trace.num_exits - 1
    found = [way(None, [0.0], np.full((1, trace.num_units), last), 0)]
    for criterion in criteria:
        said = scores(trace, criterion)
        marks = thresholds(running_minimum(said), criterion.knobs["threshold"], max_points=THRESHOLDS)
        exits = exits_at(said, marks)
        found.append(way(criterion, marks.tolist(), exits, np.minimum(exits + 1, last)))
    return found


def _like(ways: Sequence[_Way], picked: Sequence[int], cost_fraction: float) -> tuple[_Way, int]:
    """The place that costs, over all rows, what picks cost in the mean: at full depth, or on the way picked most."""
    early = max(range(1, len(ways)), key=picked.count)
    full = float(ways[0].cost.sum())
    near = [
        (abs(float(cost.sum()) / full - cost_fraction), number, place)
        for number in (0, early)
        for place, cost in enumerate(ways[number].cost)
    ]
    _, number, place = min(near)
    return ways[number], place


def _halves(rows: _Bools, splits: int, seed: int) -> _Bools:
    """[S, N]: a random half of some rows, S times."""
    rng = np.random.default_rng(seed)
    inside = np.flatnonzero(rows)
    found = np.zeros((splits, len(rows)), dtype=bool)
    for split in found:
        split[rng.permutation(inside)[: len(inside) // 2]] = True
    return found


def _folds(rows: _Bools, seed: int) -> _Bools:
    """[S, N]: one part of some rows, S times, so that every row is in FOLDS parts of S."""
    rng = np.random.default_rng(seed)
    inside = np.flatnonzero(rows)
    found = []
    for _ in range(REPEATS):
        for part in np.array_split(rng.permutation(inside), FOLDS):
            fold = np.zeros(len(rows), dtype=bool)
            fold[part] = True
            found.append(fold)
    return np.stack(found)


def _choose(ways: Sequence[_Way], reference: _Bools, rows: _Bools, max_lost: float, *, seed: int) -> tuple[int, int]:
    """The way, and the place on it, that some rows speak for."""
    others = _folds(rows, seed)
    parts = rows & ~others
    seen, unseen, wanted = _tables(ways, parts), _tables(ways, others), _means(reference[None], parts)[0]
    lost_there = _means(reference[None], others)[0]
    kept = None
    for tolerance in (max_lost + step for step in TOLERANCES):
        picks = _fastest(seen, wanted - tolerance / 100)
        lost = [lost_there[split] - unseen[number][0][place, split] for split, (number, place) in enumerate(picks)]
        if 100 * np.mean(lost) > max_lost:
            break
        kept = tolerance
    if kept is None:
        return 0, 0
    return _fastest(_tables(ways, rows[None]), _means(reference[None], rows[None])[0] - kept / 100)[0]


def _means(values: npt.NDArray[Any], rows: _Bools) -> _Floats:
    """[T, N] values, [S, N] rows -> [T, S]."""
    weights = (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)
    means: _Floats = values.astype(np.float32) @ weights.T
    return means


def _tables(ways: Sequence[_Way], rows: _Bools) -> list[tuple[_Floats, _Floats]]:
    """Accuracy and cost, [T, S] each, of every way."""
    return [(_means(way.right, rows), _means(way.cost, rows)) for way in ways]


def _fastest(tables: Sequence[tuple[_Floats, _Floats]], wanted: _Floats) -> list[tuple[int, int]]:
    """For each of S sets of rows the way and the place on it that cost least among those accurate enough.

    Full depth is always allowed: there is nothing better to fall back to.
    """
    least = tables[0][1][0].copy()
    best = [(0, 0)] * len(least)
    for number, (accuracy, cost) in enumerate(tables[1:], 1):
        allowed = np.logical_and.accumulate(accuracy >= wanted[None] - 1e-6, axis=0)
        found = np.where(allowed, cost, np.inf)
        place = found.argmin(axis=0)
        for split in np.flatnonzero(found.min(axis=0) < least):
            best[split], least[split] = (number, int(place[split])), found[place[split], split]
    return best


def _seen_on(
    ways: Sequence[_Way], chosen: tuple[int, int], reference: _Bools, rows: _Bools, depth: int
) -> dict[str, float]:
    """What a choice is worth on rows."""
    way, place = ways[chosen[0]], chosen[1]
    accuracy, full = float(way.right[place, rows].mean()), float(reference[rows].mean())
    return {
        "accuracy": accuracy,
        "lost": 100 * (full - accuracy),
        "layer_speedup": float(depth / way.layers[place, rows].mean()),
        "cost_fraction": float(way.cost[place, rows].sum() / ways[0].cost[0, rows].sum()),
    }
