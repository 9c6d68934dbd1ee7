"""Speed against accuracy, from a trace: whole curves, and the baselines that belong beside them.

Words: layer speed-up = L * N / sum of exit layers (N units, L layers of the full model); layer fraction = its
inverse; token layer fraction = sum of length * exit layer / (L * sum of lengths), which is nearer to seconds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.criteria.base import Criterion, Knob, Scored
from offramp.errors import KnobError, UnsupportedError
from offramp.traces.replay import Outcome, replay, running_minimum, scores
from offramp.traces.tally import Tally, make_tally
from offramp.traces.trace import Trace

__all__ = [
    "Curve",
    "area",
    "bootstrap_interval",
    "curve",
    "full_depth",
    "knob_grid",
    "measure",
    "oracle",
    "percentiles",
    "resamples",
    "score_at_speedup",
    "slowest_knobs",
    "static_exits",
    "thresholds",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve:
    """P points of a criterion on a trace, from the slowest to the fastest."""

    criterion: str
    knobs: Mapping[str, Floats]
    """Name -> [P]."""
    layer_fraction: Floats
    """[P]."""
    token_layer_fraction: Floats
    """[P]."""
    metrics: Mapping[str, Floats]
    """Name -> [P]."""
    metric: str
    """The main one."""
    ends: tuple[tuple[float, float], tuple[float, float]]
    """(layer fraction, main metric) of everyone leaving at the first exit, and of nobody leaving early."""

    @property
    def layer_speedup(self) -> Floats:
        """[P]."""
        return 1 / self.layer_fraction

    @property
    def score(self) -> Floats:
        """[P]: the main metric."""
        return self.metrics[self.metric]


def curve(trace: Trace, criterion: Criterion, *, max_points: int = 2000, metric: str | None = None) -> Curve:
    """The curve of a criterion over its knobs.

    A scored criterion's curve is exact: between two neighbouring thresholds nothing changes. Others are replayed at
    every point of ``knob_grid``; where that varies several knobs, only points that no other beats are kept.

    Args:
        trace: with labels.
        criterion: one that fits the trace.
        max_points: thin to this many thresholds, spread evenly over the units' scores.
        metric: the main metric, by default the task's.

    Raises:
        DataError: no labels, or no units.
        KnobError: no such metric.
        UnsupportedError: the criterion does not fit the trace.
    """
    tally = make_tally(trace)
    main = tally.check(metric)
    if isinstance(criterion, Scored):
        knobs, sums, fraction, tokens = _scored(trace, criterion, tally, max_points)
    else:
        knobs, sums, fraction, tokens = _replayed(trace, criterion, tally, max_points)
    metrics = tally.metrics(sums)
    order = np.lexsort((metrics[main], -fraction))
    if len(knobs) > 1:
        order = order[_unbeaten(metrics[main][order])]
    first = float(tally.metrics(tally.features(trace.logits[0]).sum(0))[main])
    last = float(tally.metrics(tally.features(trace.logits[-1]).sum(0))[main])
    return Curve(
        criterion=criterion.name,
        knobs={name: values[order] for name, values in knobs.items()},
        layer_fraction=fraction[order],
        token_layer_fraction=tokens[order],
        metrics={name: values[order] for name, values in metrics.items()},
        metric=main,
        ends=((float(trace.layers[0]) / trace.num_layers, first), (1.0, last)),
    )


def thresholds(lowest: NDArray[Any], knob: Knob, *, max_points: int = 2000) -> Floats:
    """Thresholds that tell units apart, growing: [T].

    Midpoints between neighbouring observed values, so that the last bit of a score decides nothing, each of them a
    float32 that neither neighbour equals; before them the knob's low end (nobody leaves early), after them a value
    above all (everybody leaves at the first exit).

    Args:
        lowest: running minima of scores, any shape.
        knob: the threshold's range.
        max_points: thin to at most this many, evenly over the observed values.
    """
    values = np.sort(lowest, axis=None)
    values = values[np.isfinite(values)]
    edges = np.flatnonzero(np.diff(values))  # the last place of each distinct value
    if len(edges) > max_points - 2:
        wanted = (np.arange(1, max_points - 1) * len(values)) // (max_points - 1)
        edges = edges[np.unique(np.searchsorted(edges, wanted).clip(max=len(edges) - 1))]
    low, high = values[edges], values[edges + 1]
    middle = ((low + high) / 2).astype(np.float32).astype(np.float64)
    middle = middle[(middle > low) & (middle < high) & (middle > knob.low) & (middle < knob.high)]
    top = min(knob.high, 2 * float(values[-1]) + 1) if len(values) else knob.high
    return np.concatenate([[knob.low], middle, [top]])


def knob_grid(trace: Trace, criterion: Criterion, *, max_points: int = 600) -> list[dict[str, float]]:
    """Knob values worth replaying for a criterion that is not scored: every combination.

    Whole-number knobs that count exits take E - 1 values from their lowest (there are E exits, and the last asks
    nobody), those that count layers the layers where exits stand. A fractional knob takes quantiles, between observed
    values, of what the criterion compares with it.

    Args:
        trace: its labels are not read.
        criterion: one that fits the trace, with one fractional knob at most.
        max_points: combinations, roughly; a fractional knob never takes more than 300 values, or 60 where there are
            others: each combination is a replay.
    """
    grid = {name: _counts(trace, knob) for name, knob in criterion.knobs.items() if knob.integer}
    share = min(60 if grid else 300, max_points // math.prod(len(values) for values in grid.values()))
    for name, knob in criterion.knobs.items():
        if not knob.integer:
            grid[name] = [float(v) for v in thresholds(_compared(trace, criterion), knob, max_points=max(3, share))]
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _counts(trace: Trace, knob: Knob) -> list[float]:
    """Values of a whole-number knob that can make a difference."""
    if knob.counts == "layers":
        return [float(layer) for layer in trace.layers if knob.low <= layer <= knob.high]
    first = int(knob.low)
    return [float(v) for v in range(first, first + max(1, trace.num_exits - 1)) if v <= knob.high]


def _compared(trace: Trace, criterion: Criterion) -> Floats:
    """[E - 1, U]: what a criterion holds against its fractional knob at every exit but the last, nobody leaving."""
    units = np.arange(trace.num_units)
    knobs = {name: np.full(len(units), knob.default) for name, knob in criterion.knobs.items()}
    state = criterion.start(units)
    found = np.full((trace.num_exits - 1, len(units)), np.inf)
    for e, stage in enumerate(trace.stages[:-1]):
        output = trace.output(e)
        numbers = criterion.compared(stage, output, state)
        assert numbers is not None, f"criterion {criterion.name!r} has a fractional knob and compares nothing with it"
        found[e] = numbers
        _, state = criterion.step(stage, output, state, knobs)
    return found


def _scored(
    trace: Trace, criterion: Scored, tally: Tally, max_points: int
) -> tuple[dict[str, Floats], Floats, Floats, Floats]:
    """Thresholds [T], sums [T, S], layer and token-layer fractions [T] of a scored criterion."""
    lowest = running_minimum(scores(trace, criterion))
    values = thresholds(lowest, criterion.knobs["threshold"], max_points=max_points)
    count = len(values)
    # A unit has left by exit e from this threshold on; past the end: it never does.
    since = np.searchsorted(values, lowest, side="right")
    sums = np.zeros((count + 1) * tally.width)
    layers, tokens = np.zeros(count + 1), np.zeros(count + 1)
    weights = trace.unit_tokens
    # Where a unit leaves by exit e instead of the next one, it adds what e says and takes away what the next says.
    for e, places in enumerate(since):
        saved = float(trace.layers[e] - trace.layers[e + 1])
        layers += np.bincount(places, minlength=count + 1) * saved
        tokens += np.bincount(places, weights=weights, minlength=count + 1) * saved
        for exit_index, sign in ((e, 1.0), (e + 1, -1.0)):
            columns, amounts = tally.entries(trace.logits[exit_index])
            cells = places[:, None] * tally.width + columns
            sums += np.bincount(cells.ravel(), weights=sign * amounts.ravel(), minlength=sums.size)
    last = tally.features(trace.logits[-1]).sum(0)
    depth = trace.num_layers
    whole = float(trace.layers[-1]) / depth  # more than 1 where smaller models run before the full one
    fraction = whole + np.cumsum(layers[:count]) / (depth * trace.num_units)
    token_fraction = whole + np.cumsum(tokens[:count]) / (depth * max(weights.sum(), 1))
    totals = last + np.cumsum(sums.reshape(count + 1, tally.width)[:count], axis=0)
    return {"threshold": values}, totals, fraction, token_fraction


def _replayed(
    trace: Trace, criterion: Criterion, tally: Tally, max_points: int
) -> tuple[dict[str, Floats], Floats, Floats, Floats]:
    """Knobs [P], sums [P, S], layer and token-layer fractions [P] over the knob grid."""
    grid = knob_grid(trace, criterion, max_points=max_points)
    sums, fractions, tokens = [], [], []
    for point in grid:
        outcome = replay(trace, criterion, dict(point))
        sums.append(tally.features(outcome.answers).sum(0))
        fraction, token_fraction = _fractions(trace, outcome.exits)
        fractions.append(fraction)
        tokens.append(token_fraction)
    knobs = {name: np.array([point[name] for point in grid]) for name in criterion.knobs}
    return knobs, np.array(sums), np.array(fractions), np.array(tokens)


def _unbeaten(score: Floats) -> NDArray[np.int64]:
    """Indices of points, slowest first, that score more than every faster point."""
    best_faster = np.maximum.accumulate(np.append(score, -np.inf)[::-1])[::-1][1:]
    return np.flatnonzero(score > best_faster)


def _fractions(trace: Trace, exits: NDArray[np.int64]) -> tuple[float, float]:
    layers, weights = trace.layers[exits], trace.unit_tokens
    fraction = layers.sum() / (trace.num_layers * max(len(exits), 1))
    return float(fraction), float((weights * layers).sum() / (trace.num_layers * max(weights.sum(), 1)))


def measure(trace: Trace, outcome: Outcome) -> dict[str, float]:
    """What an outcome is worth: every metric, layer_speedup, layer_fraction and token_layer_fraction.

    Raises:
        DataError: the trace has no labels, or no units.
    """
    metrics = make_tally(trace).measure(outcome.answers)
    fraction, token_fraction = _fractions(trace, outcome.exits)
    return metrics | {
        "layer_speedup": 1 / fraction,
        "layer_fraction": fraction,
        "token_layer_fraction": token_fraction,
    }


def full_depth(trace: Trace) -> dict[str, float]:
    """The metrics of the last exit."""
    return make_tally(trace).measure(trace.logits[-1])


def static_exits(trace: Trace) -> list[dict[str, float]]:
    """Leaving always at exit k, for every k: the metrics, ``layer`` and ``layer_speedup``."""
    tally = make_tally(trace)
    return [
        {"layer": int(layer), "layer_speedup": trace.num_layers / int(layer), **tally.measure(logits)}
        for layer, logits in zip(trace.layers, trace.logits, strict=True)
    ]


def oracle(trace: Trace) -> Outcome:
    """Leave at the shallowest exit that is right (multi-label: the whole set), at the last one if none is.

    No criterion can beat its accuracy that answers with an exit's own answer. Other metrics it does not look at: a set
    of labels that is nearly right counts for F1, and not here.

    Raises:
        UnsupportedError: regression, where no answer is simply right.
    """
    tally = make_tally(trace)
    right = [tally.means(logits, "accuracy") for logits in trace.logits]
    if any(values is None for values in right):
        raise UnsupportedError(f"an oracle needs answers that are right or wrong, and this is {trace.problem_type}")
    table = np.array(right) > 0
    table[-1] = True
    exits = table.argmax(axis=0)
    return Outcome(exits, trace.logits[exits, np.arange(trace.num_units)])


def score_at_speedup(curve: Curve, speedup: float) -> float | None:
    """The main metric at a layer speed-up; None where the criterion is never that fast.

    Linear between neighbouring points in layer fraction: what one gets by tossing a coin between the two for each unit.
    """
    fraction = 1 / speedup
    if not curve.layer_fraction.min() - 1e-12 <= fraction <= 1:
        return None
    return float(_interpolate(curve.layer_fraction, curve.score, np.array([fraction]))[0])


def slowest_knobs(curve: Curve, speedup: float) -> dict[str, float]:
    """Knobs of the slowest point that reaches a layer speed-up.

    Raises:
        KnobError: none does.
    """
    if not (curve.layer_speedup >= speedup).any():
        raise KnobError(
            f"no point of {curve.criterion} reaches {speedup:g}x: the fastest {curve.layer_speedup.max():.2f}x"
        )
    place = int(np.where(curve.layer_speedup >= speedup, curve.layer_speedup, np.inf).argmin())
    return {name: float(values[place]) for name, values in curve.knobs.items()}


def area(curve: Curve) -> float:
    """The main metric, averaged over layer fractions from the first exit's (1/L where it follows layer 1) to 1.

    Where the criterion does not reach so far, it is joined by a straight line to the static first exit, and to full
    depth: mixtures of the two give exactly that.
    """
    return mean_score(curve.layer_fraction, curve.score, curve.ends)


def mean_score(fraction: Floats, score: Floats, ends: tuple[tuple[float, float], tuple[float, float]]) -> float:
    """``area`` of plain arrays [P]."""
    (low, first), (high, last) = ends
    if low == high:
        return last
    outside = [(f, s) for f, s in ((low, first), (high, last)) if not fraction.min() <= f <= fraction.max()]
    x = np.concatenate([fraction, [f for f, _ in outside]])
    y = np.concatenate([score, [s for _, s in outside]])
    knots = np.unique(np.concatenate([x[(x >= low) & (x <= high)], [low, high]]))
    return float(np.trapezoid(_interpolate(x, y, knots), knots) / (high - low))


def _interpolate(x: Floats, y: Floats, at: Floats) -> Floats:
    """Linear interpolation; several points at one x count as the best of them."""
    order = np.lexsort((-y, x))
    x, y = x[order], y[order]
    first = np.concatenate([[True], np.diff(x) > 0])
    result: Floats = np.interp(at, x[first], y[first])
    return result


def resamples(n: int, number: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Bootstrap: how often each of n rows was drawn, [r, n] at a time, ``number`` in all; the same for a seed."""
    rng = np.random.default_rng(seed)
    step = max(1, 4_000_000 // max(n, 1))
    for start in range(0, number, step):
        rows = min(step, number - start)
        drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float32)


def bootstrap_interval(
    values: NDArray[Any], *, number: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap over rows of a mean: values [U] -> (low, high)."""
    column = np.asarray(values, dtype=np.float64)
    means = np.concatenate([counts @ column / len(column) for counts in resamples(len(column), number, seed)])
    return percentiles(means, level)


def percentiles(samples: NDArray[Any], level: float = 0.95) -> tuple[float, float]:
    """(low, high): the middle of bootstrap samples [R] that holds so large a share of them."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
