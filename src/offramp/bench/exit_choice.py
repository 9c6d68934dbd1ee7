"""Which exits and which threshold are fastest at an allowed loss of accuracy: chosen on one half, scored on the other.

Layers are not seconds: an exit costs a head, a call and a compaction, and how much that is beside a layer depends on
the runtime and the batch. So what a text costs is counted in measured ``Costs``, and which exits stay is chosen with
the threshold: a way to run a model is a set of exits and a threshold, and at the deepest of the exits everybody leaves.
Static exits (sets of one) and full depth are among the ways.

Picking the fastest of many that seem good enough picks lucky ones: on a few hundred rows it loses twice what it was
allowed. So a way is good enough only where what it seems to lose and one standard error more are within the allowance
(Breiman et al., "Classification and Regression Trees", 1984, section 3.4.3, choose among pruned trees so). That this is
about as careful as it has to be is measured on models and tasks of all kinds by ``benchmarks/exit_choice.py``.

One half says that half a point is lost at once, another that nothing is lost before most leave: what is told is the
mean over many. What is served, and timed, is therefore not the luckier choice that all rows would make, but the
threshold that costs what those cost in the mean.

A half of a few hundred rows cannot tell half a point from nothing. So texts may be given that are chosen on only, as
many as there are: they join every half that chooses, and none that scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.criteria.base import Scored
from offramp.errors import DataError
from offramp.traces.curves import thresholds
from offramp.traces.replay import exits_at, running_minimum, scores
from offramp.traces.trace import Trace

__all__ = ["Costs", "ExitChoice", "choose_exits"]

_Bools = npt.NDArray[np.bool_]

THRESHOLDS = 50
"""Most that are tried with a set of exits."""
_CELLS = 5e8
"""Thresholds x texts of all sets of exits, a byte each, that memory holds: of larger models and data only smaller sets
are tried, and the one of all."""
_SETS = 800
"""Sets of exits, likewise, that are tried in a minute or so."""
_ALIKE = 0.01
"""Of what full depth costs: places that differ by less cost the same."""


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
    """Layers after which an exit stands; without the model's last."""
    point: Mapping[str, Any] | None
    """``criterion``, ``settings``, ``knobs`` (``max_layers`` among them, where nobody reaches the last layer); None:
    nobody leaves early."""
    held_out: Mapping[str, float]
    """Means over splits, on the half that nothing was chosen on: ``accuracy``, ``lost`` (points below the reference),
    ``lost_low``, ``lost_high`` (95 % of splits), ``layer_speedup``, ``cost_fraction`` (of full depth, as counted)."""


@dataclass(frozen=True)
class _Known:
    """What is known of N texts, whichever way they go."""

    right: _Bools
    """[E, N]: whether each exit's answer is."""
    layers: npt.NDArray[np.int64]
    """[E]: run up to each exit."""
    full: int
    """Layers of the model where nobody leaves early: of several models the smaller ones do not run then."""
    layer: npt.NDArray[np.float64]
    """[N]: seconds a layer takes."""
    exit: float
    """Seconds to pass an exit."""


@dataclass(frozen=True)
class _Way:
    """One criterion and one set of exits, at T thresholds from slow to fast."""

    criterion: Scored | None
    """None: nobody leaves early."""
    exits: tuple[int, ...]
    """Indices; at the last of them all leave that come so far."""
    thresholds: npt.NDArray[np.float64]
    left: npt.NDArray[np.int8]
    """[T, N]: at which of these exits. All else follows from it: it alone is kept, for there are many ways."""
    known: _Known

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """[T, N]: at which exit of the model."""
        return np.array(self.exits)[self.left]

    @property
    def layers(self) -> npt.NDArray[np.int64]:
        """[T, N]: executed."""
        if self.criterion is None:
            return np.full(self.left.shape, self.known.full)
        return self.known.layers[self.places]

    @property
    def right(self) -> _Bools:
        """[T, N]: whether the answer is."""
        return self.known.right[self.places, np.arange(self.left.shape[1])]

    @property
    def cost(self) -> npt.NDArray[np.float64]:
        """[T, N]: seconds, as counted."""
        passed = self.left + (self.places < len(self.known.layers) - 1)  # at the end of the model there is no exit
        return self.layers * self.known.layer + self.known.exit * passed


def choose_exits(
    trace: Trace,
    reference: _Bools,
    criteria: Sequence[Scored],
    costs: Costs,
    *,
    max_lost: float,
    standard_errors: float = 1.0,
    splits: int = 50,
    seed: int = 0,
    scored: int | None = None,
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
        standard_errors: how many of them stand between what a way seems to lose and what it may.
        splits: random halves.
        seed: of the halves.
        scored: texts at the beginning of the trace that are halved; on those behind them is always chosen, never
            scored. None: all.

    Raises:
        DataError: the trace has no labels.
    """
    if trace.labels is None:
        raise DataError("choosing by accuracy needs labels, and the data has none")
    scored = trace.num_units if scored is None else scored
    ways = _ways(trace, criteria, costs, scored)
    halves = _halves(scored, splits, seed)
    more = np.ones((splits, trace.num_units - scored), dtype=bool)
    picks = _choose(ways, reference, np.hstack([halves, more]), max_lost, standard_errors)
    rows = [
        _seen_on(trace, ways, pick, reference, np.hstack([~half, ~more[0]]))
        for pick, half in zip(picks, halves, strict=True)
    ]
    held_out = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    low, high = np.quantile([row["lost"] for row in rows], [0.025, 0.975])
    held_out |= {"lost_low": float(low), "lost_high": float(high), "splits": float(splits)}
    way, place = _like(ways, [number for number, _ in picks], held_out["cost_fraction"], scored)
    if way.criterion is None:
        return ExitChoice((), None, held_out)
    knobs, last = {"threshold": float(way.thresholds[place])}, trace.num_exits - 1
    if way.exits[-1] < last:
        knobs["max_layers"] = float(trace.layers[way.exits[-1]])
    point = {"criterion": way.criterion.name, "settings": asdict(way.criterion), "knobs": knobs}
    # By place, not by layers: several small models may take as many layers as the full one, which is still to come.
    return ExitChoice(tuple(int(trace.layers[exit_]) for exit_ in way.exits if exit_ < last), point, held_out)


def _ways(trace: Trace, criteria: Sequence[Scored], costs: Costs, scored: int) -> list[_Way]:
    """Full depth, and every criterion with every set of exits; with sets of one no criterion has a say."""
    tokens = np.asarray(trace.unit_lengths, dtype=np.float64)
    known = _Known(
        right=np.asarray(trace.logits).argmax(axis=-1) == np.asarray(trace.labels)[None],
        layers=np.asarray(trace.layers, dtype=np.int64),
        full=trace.num_layers,
        layer=costs.layer * tokens / tokens[:scored].mean(),
        exit=costs.exit,
    )
    nobody = np.zeros((1, trace.num_units), dtype=np.int8)
    found = [_Way(None, (trace.num_exits - 1,), np.zeros(1), nobody, known)]
    said = {criterion: scores(trace, criterion) for criterion in criteria}
    for exits in _sets_of(trace):
        for criterion in criteria if len(exits) > 1 else criteria[:1]:
            knob, some = criterion.knobs["threshold"], said[criterion][list(exits)]
            marks = thresholds(running_minimum(some), knob, max_points=THRESHOLDS) if len(exits) > 1 else [knob.low]
            left = exits_at(some, np.asarray(marks)).astype(np.int8)
            found.append(_Way(criterion, exits, np.asarray(marks), left, known))
    return found


def _sets_of(trace: Trace) -> list[tuple[int, ...]]:
    """Sets of exits worth trying; several complete models answer one after another, and none of them is left out."""
    if trace.full_layers is not None:
        return [tuple(range(exits)) for exits in range(1, trace.num_exits + 1)]
    return _sets(trace.num_exits, trace.num_units * THRESHOLDS)


def _sets(exits: int, cells: int) -> list[tuple[int, ...]]:
    """Sets of exits, small ones first, as many as can be afforded at so many cells a set; and the one of all.

    Sets of one cost next to nothing: they have no thresholds.
    """
    everyone = tuple(range(exits))
    found: list[tuple[int, ...]] = [(exit_,) for exit_ in everyone[:-1]]
    for size in range(2, exits):
        more = list(combinations(everyone, size))
        several = len(found) - (exits - 1) + len(more)
        if several > _SETS or several * cells > _CELLS:
            break
        found += more
    return [*found, everyone] if exits > 1 else found


def _like(ways: Sequence[_Way], picked: Sequence[int], cost_fraction: float, scored: int) -> tuple[_Way, int]:
    """The place that costs, over all rows scored, what picks cost in the mean: of those nearly alike, on the way picked
    most.

    Full depth is among the ways looked at, since it can be the nearest of all.
    """
    costs = {number: ways[number].cost[:, :scored].sum(axis=1) for number in {0, *picked}}

    def badness(number: int, place: int) -> tuple[int, int, float]:
        away = abs(float(costs[number][place] / costs[0][0]) - cost_fraction)
        return round(away / _ALIKE), -picked.count(number), away

    near = [(number, place) for number, each in costs.items() for place in range(len(each))]
    number, place = min(near, key=lambda one: badness(*one))
    return ways[number], place


def _halves(rows: int, splits: int, seed: int) -> _Bools:
    """[S, N]: a random half of the rows, S times."""
    rng = np.random.default_rng(seed)
    found = np.zeros((splits, rows), dtype=bool)
    for split in found:
        split[rng.permutation(rows)[: rows // 2]] = True
    return found


def _choose(
    ways: Sequence[_Way], reference: _Bools, halves: _Bools, max_lost: float, standard_errors: float
) -> list[tuple[int, int]]:
    """Of each half [S, N] the way, and the place on it, that cost least among those that it finds accurate enough.

    Full depth is always allowed: there is nothing better to fall back to.
    """
    weights = halves.T / halves.sum(axis=1)  # [N, S]: a product with them is a mean over each half
    rows, choices = halves.sum(axis=1), np.arange(len(halves))
    best = np.zeros((len(halves), 2), dtype=np.int64)
    least = (ways[0].cost @ weights)[0]
    for number, way in enumerate(ways[1:], 1):
        lost = 100 * (reference.astype(np.float64) - way.right)  # [T, N]
        mean = lost @ weights
        deviation = np.sqrt(np.maximum((lost**2) @ weights - mean**2, 0))
        surely = mean + standard_errors * deviation / np.sqrt(rows)
        allowed = np.logical_and.accumulate(surely <= max_lost + 1e-6)
        cost = np.where(allowed, way.cost @ weights, np.inf)  # [T, S]
        place = cost.argmin(axis=0)
        better = cost[place, choices] < least
        least = np.where(better, cost[place, choices], least)
        best[better] = np.stack([np.full(len(halves), number), place], axis=1)[better]
    return [(int(number), int(place)) for number, place in best]


def _seen_on(
    trace: Trace, ways: Sequence[_Way], chosen: tuple[int, int], reference: _Bools, rows: _Bools
) -> dict[str, float]:
    """What a choice is worth on rows."""
    way, place = ways[chosen[0]], chosen[1]
    accuracy, full = float(way.right[place, rows].mean()), float(reference[rows].mean())
    return {
        "accuracy": accuracy,
        "lost": 100 * (full - accuracy),
        "layer_speedup": float(trace.num_layers / way.layers[place, rows].mean()),
        "cost_fraction": float(way.cost[place, rows].sum() / ways[0].cost[0, rows].sum()),
    }
