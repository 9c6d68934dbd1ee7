"""Every criterion on one trace, scored on rows that no knob was chosen on.

Rows are halved at random, many times. On each half every knob (and lambda) is chosen, and what was chosen is scored
on the other half, in both directions: so every split gives every row an answer from knobs that never saw its label.

A target is a budget of layers, the same for every row of the table. Few knobs meet it exactly, and a patience of 2 or
3 not nearly; so two neighbouring candidates are chosen, and lots are drawn which of them a text goes by, so that
together they spend the budget (``_Mix``). No criterion is worse off for having few values of its knob.

Candidate thresholds lie between the scores of *all* rows; no label is used for that. Where a criterion has settings
that are learned, they are learned on the half as well; its threshold lies between that half's scores, and is chosen by
what those rows do under settings that were learned without them (``calibration.fitting.held_out_scores``).

Everything is a matrix product: candidates x rows (what would be said) times rows x splits (who is in which half).
Where a metric is made of counts (F1, Matthews), the product is taken column by column over the rows that count there.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.calibration.examples import easiest_and_hardest
from offramp.calibration.fitting import FITS, Fitted, held_out_scores
from offramp.calibration.sweep import candidates
from offramp.criteria import Criterion, Scored, make
from offramp.errors import DataError, KnobError
from offramp.traces.curves import knob_grid, mean_score, oracle, percentiles, resamples, thresholds
from offramp.traces.replay import Outcome, exits_at, replay, running_minimum, scores
from offramp.traces.tally import Tally, Voices, make_tally
from offramp.traces.trace import Trace

__all__ = ["CURVE_TARGETS", "FORMAT", "Rules", "compare", "usual_rules"]

FORMAT = 1
"""Number of the result's form."""

CURVE_TARGETS = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0)
"""Layer speed-ups at which the plotted curves have points, as far as the model goes."""

Floats = NDArray[np.float64]
LEVEL = 0.95
_GRID = 300  # thresholds a criterion and setting
_DRAWN = 64  # resamples at a time, where a metric is made of counts

_FIT_ROWS = 64  # fewer teach nothing
_FIT_SPLITS = 10  # halvings on which settings are learned: each takes a second

Rules = Sequence[Criterion] | Fitted
"""What competes in a row: a criterion with every setting that may be chosen, or one whose settings are learned."""

_Table = Floats | Voices
"""Features of V answers to every unit: [V, U, S], or column by column where they are counts."""


def compare(
    trace: Trace,
    *,
    rules: Mapping[str, Rules] | None = None,
    targets: Sequence[float] = (1.5, 2.0, 3.0, 4.0),
    splits: int = 50,
    seed: int = 0,
    resamples: int = 1000,
    metric: str | None = None,
    baseline: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    keep_samples: bool = False,
) -> dict[str, Any]:
    """The table behind ``offramp compare``.

    Args:
        trace: with labels, of rows that were not trained on.
        rules: name of a row of the table -> what competes there; by default ``usual_rules``. Settings are learned on
            the first 10 halvings only: that takes its time.
        targets: layer speed-ups.
        splits: random halvings.
        seed: of the halvings and of the bootstrap.
        resamples: bootstrap resamples.
        baseline: row that gaps are taken against; by default ``entropy``, or else ``static``, or else ``depth``.
        metric: by default the task's main one. Metrics that are no mean over rows (F1, Matthews, Pearson) take longer,
            F1 and Matthews the more so the more classes there are.
        progress: called with (rows of the table done, all of them), first with none done; what it raises ends the work.
        keep_samples: beside each interval the bootstrap samples it was read off (``samples``, ``area_samples``: arrays
            [R], not JSON). Comparisons of the same rows, with as many resamples and the same seed, draw the same rows:
            samples of several models can be averaged one by one.

    Returns:
        JSON-able. Scores are fractions (0.9, not 90). An *interval* is a 95 % percentile bootstrap over rows of the
        split-averaged result, ``[low, high]``; a *gap* is ``{"mean", "interval"}`` of a paired difference::

            format, n, splits, seed, resamples, level, metric, problem_type, num_layers, layers [E], targets,
            baseline (name of the row that gaps are taken against), runtime, batch_size, dtype, model, versions,
            full_depth   {score, interval, metrics}
            exits        one for each static exit: {layer, layer_speedup, score, interval, metrics}
            oracle       {by (accuracy, whatever the metric is), rule (in words), score, interval, layer_speedup,
                          metrics, shares [E]}, or None for regression
            rows         one for each contender: {name, criterion, label, areas, area, area_interval, cells, curve}
                area     mean score over layer fractions 1/L..1 (``curves.area``), on rows not chosen on
                area_interval  as wide as that of the curve of the settings chosen most often
                areas    [{settings, area}]: the same for each setting by itself
                cells    one for each target: None where the row does not reach it in every half, or
                    {target, score, interval, layer_speedup (of the rows scored: above the target where more layers
                     are worth nothing), shares [E] (who leaves where), knobs (median of those that most texts went
                     by), settings (chosen most often), against_baseline (gap), against_full_depth (gap)}
                curve    cells at CURVE_TARGETS, without gaps, shares, knobs and settings
            histogram    {target, shares: {row name: [E] or None}} at 2x (the first target where 2 is none)
            examples     {by, easiest, hardest}: rows as {index, layer, label, answer, right, error}: who leaves first
                         and is furthest on the right side, who stays longest and is furthest from it
                         (``calibration.examples``), as the row ``by`` of the table does at the histogram's target: the
                         baseline, or the first that tells texts apart. label and answer are names, lists of names
                         or numbers; right: the whole set; numbers have an error and None for right

    Raises:
        DataError: no labels, or fewer than four items, or too few for settings that are to be learned.
        KnobError: a target below 1, no splits or resamples, or a baseline that is no row.
        UnsupportedError: a metric that is not there.
    """
    if any(not 1 <= target < math.inf for target in targets) or splits < 1 or resamples < 1:
        raise KnobError("targets must be layer speed-ups of 1 or more, and there must be a split and a resample")
    if seed < 0:
        raise KnobError(f"a seed must be 0 or more, not {seed}")
    tally = make_tally(trace)
    if len(trace.lengths) < 4:
        raise DataError(f"a comparison halves the data, and {len(trace.lengths)} rows are too few: record more")
    bench = _Bench(trace, tally, tally.check(metric), splits, seed, resamples, keep_samples)
    shown = 2.0 if 2.0 in targets or not targets else float(targets[0])
    curve_targets = [t for t in CURVE_TARGETS if t <= trace.num_layers / int(trace.layers[0])]
    rows = _rows(bench, usual_rules(trace) if rules is None else rules, {*targets, *curve_targets, shown}, progress)
    results = {row.name: row.results for row in rows}
    if baseline is None:
        baseline = next((name for name in ("entropy", "static", "depth") if name in results), None)
    elif baseline not in results:
        raise KnobError(f"there is no row {baseline!r} to take gaps against: there are {', '.join(results)}")
    against = None if baseline is None else results[baseline]
    return {
        "format": FORMAT,
        **_about(bench),
        "targets": [float(target) for target in targets],
        "baseline": baseline,
        "full_depth": bench.answer(trace.logits[-1]),
        "exits": _static(bench),
        "oracle": _oracle(bench),
        "rows": [
            {
                "name": row.name,
                "criterion": row.criterion,
                "label": row.label,
                **row.areas,
                "cells": [_cell(bench, row.results[t], None if against is None else against[t]) for t in targets],
                "curve": [point for t in curve_targets if (point := _point(bench, row.results[t]))],
            }
            for row in rows
        ],
        "histogram": {"target": shown, "shares": {name: _shares(found[shown]) for name, found in results.items()}},
        "examples": _examples(bench, results, baseline, shown),
    }


@dataclass(frozen=True, eq=False)
class _Bench:
    """What all rows of the table share: trace, halves, resamples."""

    trace: Trace
    tally: Tally
    metric: str
    splits: int
    seed: int
    resamples: int
    keep_samples: bool = False

    @cached_property
    def item_of_unit(self) -> NDArray[np.int64]:
        """[U]: tokens of one text are never parted."""
        return np.repeat(np.arange(len(self.trace.lengths)), np.diff(self.trace.offsets))

    @cached_property
    def halves(self) -> NDArray[np.bool_]:
        """[U, splits]: who is in the first half."""
        rng = np.random.default_rng(self.seed)
        items = len(self.trace.lengths)
        halves = np.zeros((items, self.splits), dtype=bool)
        for split in range(self.splits):
            halves[rng.permutation(items)[: items // 2], split] = True
        return halves[self.item_of_unit]

    @cached_property
    def sides(self) -> NDArray[np.float64]:
        """[U, 2 * splits]: ones for the first halves, then for the second."""
        return np.concatenate([self.halves, ~self.halves], axis=1).astype(np.float64)

    @cached_property
    def lots(self) -> Floats:
        """[splits, U] in [0, 1): the same for all rows of the table, and for all units of an item."""
        rng = np.random.default_rng(self.seed + 2)
        drawn: Floats = rng.random((self.splits, len(self.trace.lengths)))
        return drawn[:, self.item_of_unit]

    @cached_property
    def is_mean(self) -> bool:
        """The metric is a mean over rows."""
        return self.tally.means(self.trace.logits[-1], self.metric) is not None

    @cached_property
    def count(self) -> type[np.floating[Any]]:
        """In which sums of ones are exact: as many as there are units, or could be drawn."""
        most = len(self.trace.lengths) * int(np.diff(self.trace.offsets).max())
        return np.float32 if most < 2**24 else np.float64

    def features(self, answers: NDArray[Any]) -> Floats:
        """[U, S] that add up to the metric; S = 1 where it is a mean."""
        means = self.tally.means(answers, self.metric)
        return self.tally.features(answers) if means is None else means[:, None]

    def table(self, answers: Sequence[NDArray[Any]]) -> _Table:
        """Features of V answers [U, C] to every unit."""
        if self.tally.counts and not self.is_mean:
            return Voices(self.tally, answers)
        return np.stack([self.features(one) for one in answers])

    def value(self, sums: Floats, count: Floats | float) -> Floats:
        """Metric of sums [..., S] over so many units."""
        return sums[..., 0] / count if self.is_mean else self.tally.metric(sums, self.metric)

    def summed(self, table: _Table, voices: NDArray[Any]) -> Floats:
        """Sums over all units: voices [P, U] -> [P, S]."""
        if not isinstance(table, Voices):
            result: Floats = _spoken(table, voices).sum(axis=1)
            return result
        sums = np.zeros((len(voices), table.width))
        for number, _, said in table.columns(voices):
            sums[:, number] = said.sum(axis=1)
        return sums

    def halved(self, table: _Table, voices: NDArray[Any], sides: Floats) -> Floats:
        """Sums over each of the sides [U, H]: voices [P, U] -> [P, S, H]."""
        if not isinstance(table, Voices):
            rows = _spoken(table, voices)
            p, units, width = rows.shape
            product: Floats = rows.transpose(0, 2, 1).reshape(p * width, units) @ sides
            return product.reshape(p, width, -1)
        sums = np.zeros((len(voices), table.width, sides.shape[1]))
        sides = sides.astype(self.count)
        for number, units, said in table.columns(voices):
            sums[:, number] = said.astype(self.count) @ sides[units]
        return sums

    @cached_property
    def drawn(self) -> list[NDArray[Any]]:
        """Bootstrap: how often each item was drawn, [r, N] at a time."""
        items = len(self.trace.lengths)
        # Small tables stay as products need them; large ones as bytes (nothing is drawn more than 255 times).
        kind = np.float32 if items * self.resamples < 5e7 else np.uint8
        return [counts.astype(kind) for counts in resamples(items, self.resamples, self.seed + 1)]

    def by_item(self, values: Floats) -> Floats:
        """Sums over each item's units: [U, K] -> [N, K]."""
        if self.trace.num_units == len(self.trace.lengths):
            return values
        running = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
        result: Floats = np.diff(running[self.trace.offsets], axis=0)
        return result

    def samples(self, table: _Table, voices: NDArray[Any]) -> Floats:
        """Bootstrap samples [R] of the metric, averaged over splits: voices [splits, U]."""
        if isinstance(table, Voices):
            drawn = self._drawn_counts(table, voices)
        else:
            features = _spoken(table, voices)
            drawn = self._drawn(features.mean(axis=0, keepdims=True) if self.is_mean else features)
        return np.concatenate([self.value(sums, count).mean(axis=1) for sums, count in drawn])

    def each_sample(self, table: _Table, voices: NDArray[Any]) -> Floats:
        """Bootstrap samples [R, P] of the metric of each: voices [P, U]."""
        drawn = self._drawn_counts(table, voices) if isinstance(table, Voices) else self._drawn(_spoken(table, voices))
        return np.concatenate([self.value(sums, count) for sums, count in drawn])

    @cached_property
    def end_samples(self) -> Floats:
        """Bootstrap samples [R, 2] of the metric of the first exit and of full depth."""
        return self.each_sample(self.table([self.trace.logits[0], self.trace.logits[-1]]), _everyone(self, 2))

    def layer_samples(self, exits: NDArray[np.uint8]) -> Floats:
        """Bootstrap samples [R, P] of the layer fraction: exits [P, U]."""
        layers = (self.trace.layers[exits] / self.trace.num_layers)[..., None]
        return np.concatenate([sums[..., 0] / count for sums, count in self._drawn(layers)])

    def _drawn(self, features: Floats) -> Iterator[tuple[Floats, Floats]]:
        """Features [P, U, S] -> sums [r, P, S] and numbers of units [r, 1] of the resamples."""
        split, units, width = features.shape
        # Means bear single precision; moments, of which large parts cancel, do not.
        exact: type[np.floating[Any]] = np.float32 if self.is_mean else np.float64
        flat = self.by_item(features.transpose(1, 0, 2).reshape(units, split * width)).astype(exact)
        per_item = np.diff(self.trace.offsets).astype(exact)
        for drawn in self.drawn:
            weights = drawn.astype(exact, copy=False)
            sums = (weights @ flat).astype(np.float64).reshape(len(drawn), split, width)
            yield sums, (weights @ per_item)[:, None].astype(np.float64)

    def _drawn_counts(self, table: Voices, voices: NDArray[Any]) -> Iterator[tuple[Floats, Floats]]:
        """The same where sums are counts, a few resamples at a time: what is held stays small."""
        columns = [(number, self.item_of_unit[units], said.astype(self.count).T)
                   for number, units, said in table.columns(voices)]  # fmt: skip
        per_item = np.diff(self.trace.offsets)
        for drawn in self.drawn:
            for start in range(0, len(drawn), _DRAWN):
                weights = drawn[start : start + _DRAWN].astype(self.count, copy=False)
                sums = np.zeros((len(weights), len(voices), table.width))
                for number, items, said in columns:
                    sums[:, :, number] = weights[:, items] @ said
                yield sums, (weights @ per_item)[:, None].astype(np.float64)

    @cached_property
    def full(self) -> tuple[float, Floats]:
        """Full depth: score, and its bootstrap samples [R]."""
        return self.scored(self.trace.logits[-1])

    def scored(self, answers: NDArray[Any]) -> tuple[float, Floats]:
        """Score of answers [U, C] that took no choice, and its bootstrap samples [R]."""
        table, voices = self.table([answers]), _everyone(self, 1)
        return float(self.value(self.summed(table, voices)[0], len(answers))), self.samples(table, voices)

    def answer(self, answers: NDArray[Any]) -> dict[str, Any]:
        """Score, interval and metrics of answers [U, C] that took no choice."""
        score, samples = self.scored(answers)
        return {"score": score, **self.around(samples), "metrics": self.tally.measure(answers)}

    def around(self, samples: Floats, name: str = "") -> dict[str, Any]:
        """The interval that bootstrap samples [R] span, and themselves where they are to be kept."""
        kept = {f"{name}samples": samples} if self.keep_samples else {}
        return {f"{name}interval": list(percentiles(samples, LEVEL)), **kept}


def _spoken(table: Floats, voices: NDArray[Any]) -> Floats:
    """Features of what is said: table [V, U, S], voices [P, U] -> [P, U, S]."""
    result: Floats = table[voices, np.arange(table.shape[1])]
    return result


@dataclass(frozen=True, eq=False)
class _Contender:
    """What competes in a row: P candidates (settings and knobs), and what each of them would do with every unit."""

    settings: list[dict[str, Any]]
    """Of each group of candidates."""
    group: NDArray[np.int64]
    """[P]: which settings."""
    knobs: list[dict[str, float]]
    """[P]."""
    exits: NDArray[np.uint8]
    """[P, U]."""
    table: _Table
    """Features of all that can be said: by an exit, or by a candidate with an answer of its own."""
    voices: NDArray[np.uint16]
    """[P, U]: whose answer in the table is given."""
    scored: Floats
    """[P, 2 * splits]: the metric on each half."""
    fraction: Floats
    """[P, 2 * splits]: the layer fraction on each half."""


@dataclass(frozen=True, eq=False)
class _Row:
    """A row of the table."""

    name: str
    criterion: str
    label: str
    areas: dict[str, Any]
    results: dict[float, _Result | None]
    """Target -> result, or None where it is not reached."""


def usual_rules(trace: Trace) -> dict[str, Rules]:
    """Every criterion that can be run on a trace, the usual ones first and the static exits last."""
    found: dict[str, Rules] = {}
    for name, settings in candidates(trace):
        rules = [make(name, **one) for one in settings]
        found["static" if name == "depth" else name] = rules
        if len(rules) > 1:  # a row of its own for the default, so that choosing is seen to help or not
            for one, rule in zip(settings, rules, strict=True):
                if rule == make(name, problem_type=trace.problem_type):
                    shown = ", ".join(f"{k} {v:g}" for k, v in one.items() if k != "problem_type")
                    found[f"{name} ({shown})"] = [rule]
    found |= _usual_fits(trace)
    order = {name: place for place, name in enumerate(("entropy", "confidence", "patience", "dr", "edr"))}

    def place(name: str) -> tuple[bool, int]:
        return name == "static", order.get(name.partition(" (")[0], len(order))

    return {name: found[name] for name in sorted(found, key=place)}


def _usual_fits(trace: Trace) -> dict[str, Rules]:
    """Criteria whose settings are learned, where there is enough to learn from."""
    enough = trace.num_exits > 1 and len(trace.lengths) >= _FIT_ROWS
    if trace.problem_type != "single_label_classification" or not enough:
        return {}
    found: dict[str, Rules] = {"confidence (temperatures)": Fitted(make("confidence"), "temperature")}
    if importlib.util.find_spec("sklearn") is not None:
        found["learned_stopping"] = Fitted(make("learned_stopping"), "stopping")
    return found


def _rows(
    bench: _Bench,
    rules: Mapping[str, Rules],
    targets: Iterable[float],
    progress: Callable[[int, int], None] | None,
) -> list[_Row]:
    """One after the other: what is tried out for a row is forgotten with it."""
    found: list[_Row] = []
    for name, tried in rules.items():
        if progress is not None:
            progress(len(found), len(rules))
        found.append(_fitted(bench, name, tried, targets) if isinstance(tried, Fitted) else
                     _tried(bench, name, tried, targets))  # fmt: skip
    if progress is not None:
        progress(len(rules), len(rules))
    return found


def _tried(bench: _Bench, name: str, rules: Sequence[Criterion], targets: Iterable[float]) -> _Row:
    contender = _enter(bench, rules)
    label = "every text leaves at the same exit" if name == "static" else rules[0].summary
    return _Row(name, rules[0].name, label, _areas(bench, contender), _results(bench, contender, targets))


def _around_area(
    bench: _Bench, area: float, table: _Table, voices: NDArray[Any], exits: NDArray[np.uint8]
) -> dict[str, Any]:
    """Interval around an area, as wide as a curve's: voices and exits [P, U] of its points."""
    low = float(bench.trace.layers[0]) / bench.trace.num_layers
    drawn = zip(bench.layer_samples(exits), bench.each_sample(table, voices), bench.end_samples, strict=True)
    samples = np.array(
        [mean_score(cost, score, ((low, float(first)), (1.0, float(last)))) for cost, score, (first, last) in drawn]
    )
    return bench.around(samples + (area - samples.mean()), "area_")


def _everyone(bench: _Bench, count: int) -> NDArray[np.uint8]:
    """[count, U]: each answer by all units."""
    return np.repeat(np.arange(count, dtype=np.uint8)[:, None], bench.trace.num_units, axis=1)


def _settings(rules: Sequence[Criterion]) -> list[dict[str, Any]]:
    """Of each rule: its problem type, and what any of them does not leave at its default."""
    names = [
        one.name
        for one in fields(rules[0])
        if one.name == "problem_type" or any(getattr(rule, one.name) != one.default for rule in rules)
    ]
    return [{name: getattr(rule, name) for name in names} for rule in rules]


def _fitted(bench: _Bench, name: str, fitted: Fitted, targets: Iterable[float]) -> _Row:
    """A row whose settings are learned on each half: the knob is chosen there on rows that they were not learned on."""
    splits = min(_FIT_SPLITS, bench.splits)
    table = bench.table(list(bench.trace.logits))
    sides = [_fit_side(bench, fitted, table, side) for split in range(splits) for side in (split, split + bench.splits)]
    results = {target: _fitted_result(bench, table, sides, target) for target in targets}
    area = float(np.mean([side.area for side in sides]))
    settings = {"problem_type": bench.trace.problem_type}
    around = _around_area(bench, area, table, sides[0].exits, sides[0].exits)
    areas = {"area": area, **around, "areas": [{"settings": settings, "area": area}]}
    return _Row(name, fitted.criterion.name, f"{fitted.criterion.summary} (fitted)", areas, results)


@dataclass(frozen=True, eq=False)
class _Side:
    """What was learned on one half, and what it does there and on the other."""

    mine: NDArray[np.bool_]
    """[U]: who is in the half."""
    values: Floats
    """[P]: thresholds."""
    exits: NDArray[np.uint8]
    """[P, U]: on the half itself by settings that were learned without the row."""
    scored: Floats
    """[P]: the metric on the half itself."""
    fraction: Floats
    """[P]: the layer fraction there."""
    area: float
    """Mean score over layer fractions on the other half."""

    @cached_property
    def envelopes(self) -> list[NDArray[np.int64]]:
        """Of this one side: the candidates worth mixing."""
        return _envelopes(self.scored[:, None], self.fraction[:, None])


def _fit_side(bench: _Bench, fitted: Fitted, table: _Table, side: int) -> _Side:
    trace, fit = bench.trace, FITS[fitted.fit]
    mine = bench.sides[:, side] > 0
    items = np.zeros(len(trace.lengths), dtype=bool)
    items[bench.item_of_unit[mine]] = True
    half = trace.select(items)
    rule = fit(half, fitted.criterion)
    assert isinstance(rule, Scored)
    doubt, held = scores(trace, rule), held_out_scores(half, fitted.criterion, fit, seed=bench.seed)
    values, exits = _left(doubt, doubt[:, mine], rule)
    _, tried = _left(held, held, rule)
    # A threshold does not mean quite the same to settings learned on fewer rows. So what is chosen is a pace: each of
    # those tried there stands for the threshold that is as fast on the same rows.
    layers = trace.layers
    slower = layers[tried].mean(axis=1)[:, None] - layers[exits[:, mine]].mean(axis=1)
    same = np.abs(slower).argmin(axis=1)
    values, exits = values[same], exits[same]
    exits[:, mine] = tried
    both = np.stack([mine, ~mine], axis=1).astype(np.float64)
    scored, fraction = _halved(bench, exits, table, exits, both)
    area = mean_score(fraction[:, 1], scored[:, 1], _ends(bench, both[:, 1:])[0])
    return _Side(mine, values, exits, scored[:, 0], fraction[:, 0], float(area))


def _left(doubt: Floats, observed: Floats, rule: Scored) -> tuple[Floats, NDArray[np.uint8]]:
    """Thresholds [P] between the observed scores, and where units leave at each of them: scores [E, U] -> [P, U]."""
    values = thresholds(running_minimum(observed), rule.knobs["threshold"], max_points=_GRID)
    return values, exits_at(doubt, values).astype(np.uint8)


def _fitted_result(bench: _Bench, table: _Table, sides: Sequence[_Side], target: float) -> _Result | None:
    exits = np.empty((len(sides) // 2, bench.trace.num_units), dtype=np.uint8)
    knobs = []
    for number, side in enumerate(sides):
        mix = _mixed(side.envelopes, side.fraction[:, None], target)
        if mix is None:
            return None
        # On each split the rows of one half are answered by what was learned on the other.
        split, unseen = number // 2, ~side.mine
        picked = mix.of(np.zeros(int(unseen.sum()), dtype=np.int64), bench.lots[split, unseen])
        exits[split, unseen] = side.exits[picked, np.flatnonzero(unseen)]
        knobs.append(float(side.values[mix.heavier[0]]))
    settings = {"problem_type": bench.trace.problem_type}
    return _told(
        bench, target, table, exits, exits, {"settings": settings, "knobs": {"threshold": float(np.median(knobs))}}
    )


def _enter(bench: _Bench, rules: Sequence[Criterion]) -> _Contender:
    trace = bench.trace
    knobs: list[dict[str, float]] = []
    group: list[int] = []
    exits: list[NDArray[np.uint8]] = []
    voices: list[NDArray[np.uint16]] = []
    answers = list(trace.logits)
    for number, rule in enumerate(rules):
        if isinstance(rule, Scored):
            doubt = scores(trace, rule)
            values, left = _left(doubt, doubt, rule)
            points = [{"threshold": float(value)} for value in values]
            voices.append(left.astype(np.uint16))
        else:
            points = knob_grid(trace, rule)
            outcomes = [replay(trace, rule, dict(point)) for point in points]
            left = np.stack([outcome.exits for outcome in outcomes])
            voices += [_voices(trace, outcome, answers) for outcome in outcomes]
        knobs += points
        group += [number] * len(points)
        exits.append(left.astype(np.uint8))
    table, where, whose = bench.table(answers), np.concatenate(exits), np.concatenate(voices)
    scored, fraction = _halved(bench, where, table, whose, bench.sides)
    return _Contender(_settings(rules), np.array(group), knobs, where, table, whose, scored, fraction)


def _voices(trace: Trace, outcome: Outcome, answers: list[NDArray[Any]]) -> NDArray[np.uint16]:
    """[1, U]: whose answer is given: the exit's, or one of the rule's own, which joins ``answers``."""
    exits = outcome.exits.astype(np.uint16)
    if not np.array_equal(outcome.answers, trace.logits[exits, np.arange(trace.num_units)]):
        exits[:] = len(answers)
        answers.append(outcome.answers)
    return exits[None]


def _halved(
    bench: _Bench, exits: NDArray[np.uint8], table: _Table, voices: NDArray[Any], sides: Floats
) -> tuple[Floats, Floats]:
    """Metric and layer fraction of every candidate on each of the sides [U, H]: [P, H] each."""
    counts = sides.sum(axis=0)
    scored, fraction = [], []
    step = 64
    for start in range(0, len(exits), step):
        some = slice(start, start + step)
        scored.append(bench.value(bench.halved(table, voices[some], sides).transpose(0, 2, 1), counts))
        layers = bench.trace.layers[exits[some]].astype(np.float64)
        fraction.append(layers @ sides / (counts * bench.trace.num_layers))
    return np.concatenate(scored), np.concatenate(fraction)


@dataclass(frozen=True, eq=False)
class _Mix:
    """Two candidates a side, and how many of a side's units go by which."""

    one: NDArray[np.int64]
    """[H]: the faster."""
    other: NDArray[np.int64]
    """[H]: the slower; the same where one alone is best."""
    share: Floats
    """[H]: of units that go by the slower."""

    @property
    def heavier(self) -> NDArray[np.int64]:
        """[H]: by which more of them go."""
        return np.where(self.share > 0.5, self.other, self.one)

    def of(self, sides: NDArray[np.int64], lots: Floats) -> NDArray[np.int64]:
        """The candidate of each unit, by the side whose choice it is answered by and by its lot: shapes alike."""
        return np.where(lots < self.share[sides], self.other[sides], self.one[sides])


def _envelopes(scored: Floats, fraction: Floats) -> list[NDArray[np.int64]]:
    """[P, H] each -> for each side the candidates that no mixture of others beats, from the fastest to the slowest.

    They are the corners of the upper concave envelope of score over layer fraction, up to its peak, and what lies on
    its edges. Of equals the first one counts.
    """
    return [_envelope(score, cost) for score, cost in zip(scored.T, fraction.T, strict=True)]


def _envelope(score: Floats, cost: Floats) -> NDArray[np.int64]:
    order = np.lexsort((-score, cost))
    before = np.concatenate([[-np.inf], np.maximum.accumulate(score[order])[:-1]])
    kept: list[int] = []
    for new in order[score[order] > before + 1e-9]:  # what a sum over many classes rounds away decides nothing
        while len(kept) > 1 and _below(score, cost, kept[-2], kept[-1], new):
            kept.pop()
        kept.append(new)
    return np.array(kept, dtype=np.int64)


def _below(score: Floats, cost: Floats, left: int, middle: int, right: int) -> bool:
    """Whether the middle lies below the line from left to right."""
    rise, run = score[right] - score[left], cost[right] - cost[left]
    return bool((score[middle] - score[left]) * run < rise * (cost[middle] - cost[left]) - 1e-12)


def _mixed(envelopes: Sequence[NDArray[np.int64]], fraction: Floats, target: float) -> _Mix | None:
    """On each side the best that a budget of layers buys. None: on some side the fastest is not fast enough."""
    found = []
    for side, kept in enumerate(envelopes):
        costs = fraction[kept, side]
        place = int(np.searchsorted(costs, 1 / target + 1e-12, side="right")) - 1
        if place < 0:
            return None
        after = min(place + 1, len(kept) - 1)
        apart = costs[after] - costs[place]
        found.append((kept[place], kept[after], max(0.0, 1 / target - costs[place]) / apart if apart else 0.0))
    one, other, share = zip(*found, strict=True)
    return _Mix(np.array(one), np.array(other), np.array(share))


def _unseen(bench: _Bench, contender: _Contender, mix: _Mix) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """What was chosen on the other half does with every unit: voices [splits, U], exits [splits, U]."""
    split = np.arange(bench.splits)[:, None]
    picked = mix.of(np.where(bench.halves.T, split + bench.splits, split), bench.lots)
    units = np.arange(bench.trace.num_units)
    return contender.voices[picked, units], contender.exits[picked, units]


@dataclass(frozen=True, eq=False)
class _Result:
    """A row of the table at one target."""

    target: float
    score: float
    samples: Floats
    """[R] bootstrap samples of the score."""
    layer_speedup: float
    shares: list[float]
    exits: NDArray[np.int64]
    """[U]: median over splits."""
    chosen: dict[str, Any]


def _results(bench: _Bench, contender: _Contender, targets: Iterable[float]) -> dict[float, _Result | None]:
    """Target -> result, or None where it is not reached."""
    envelopes = _envelopes(contender.scored, contender.fraction)
    return {target: _result(bench, contender, envelopes, target) for target in targets}


def _result(
    bench: _Bench, contender: _Contender, envelopes: Sequence[NDArray[np.int64]], target: float
) -> _Result | None:
    mix = _mixed(envelopes, contender.fraction, target)
    if mix is None:
        return None
    voices, exits = _unseen(bench, contender, mix)
    return _told(bench, target, contender.table, voices, exits, _chosen(contender, mix.heavier))


def _told(
    bench: _Bench,
    target: float,
    table: _Table,
    voices: NDArray[Any],
    exits: NDArray[np.uint8],
    chosen: dict[str, Any],
) -> _Result:
    """What answers [splits, U] that no knob was chosen on are worth."""
    values = bench.value(bench.summed(table, voices), bench.trace.num_units)
    return _Result(
        target=float(target),
        score=float(values.mean()),
        samples=bench.samples(table, voices),
        layer_speedup=bench.trace.num_layers / float(bench.trace.layers[exits].mean()),
        shares=_counted(bench, exits),
        exits=np.rint(np.median(exits, axis=0)).astype(np.int64),
        chosen=chosen,
    )


def _point(bench: _Bench, result: _Result | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {
        "target": result.target,
        "score": result.score,
        **bench.around(result.samples),
        "layer_speedup": result.layer_speedup,
    }


def _cell(bench: _Bench, result: _Result | None, reference: _Result | None) -> dict[str, Any] | None:
    point = _point(bench, result)
    if result is None or point is None:
        return None
    full_score, full_samples = bench.full
    return {
        **point,
        "shares": result.shares,
        **result.chosen,
        "against_baseline": None if reference is None else _gap(bench, result, reference.score, reference.samples),
        "against_full_depth": _gap(bench, result, full_score, full_samples),
    }


def _gap(bench: _Bench, result: _Result, score: float, samples: Floats) -> dict[str, Any]:
    """A paired difference: the same rows were drawn for both."""
    return {"mean": result.score - score, **bench.around(result.samples - samples)}


def _chosen(contender: _Contender, chosen: NDArray[np.int64]) -> dict[str, Any]:
    """The settings chosen most often, and the median knobs where they were."""
    groups = contender.group[chosen]
    often = int(np.bincount(groups).argmax())
    knobs = [contender.knobs[int(candidate)] for candidate in chosen[groups == often]]
    return {
        "settings": dict(contender.settings[often]),
        "knobs": {name: float(np.median([knob[name] for knob in knobs])) for name in knobs[0]},
    }


def _areas(bench: _Bench, contender: _Contender) -> dict[str, Any]:
    """Areas of each of the settings, and of those chosen by their area on the other half."""
    ends = _ends(bench, bench.sides)
    table = np.empty((len(contender.settings), len(ends)))
    for number, side in np.ndindex(table.shape):
        mine = contender.group == number
        table[number, side] = mean_score(contender.fraction[mine, side], contender.scored[mine, side], ends[side])
    other = np.roll(np.arange(len(ends)), bench.splits)
    chosen = table.argmax(axis=0)
    area = float(table[chosen, other].mean())
    often = contender.group == np.bincount(chosen).argmax()
    pairs = zip(contender.settings, table.mean(axis=1), strict=True)
    return {
        "area": area,
        **_around_area(bench, area, contender.table, contender.voices[often], contender.exits[often]),
        "areas": [{"settings": dict(settings), "area": float(value)} for settings, value in pairs],
    }


def _ends(bench: _Bench, sides: Floats) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """For each of the sides [U, H]: layer fraction and metric of the first exit, and of full depth."""
    trace, counts = bench.trace, sides.sum(axis=0)
    low = float(trace.layers[0]) / trace.num_layers
    ends_logits = (trace.logits[0], trace.logits[-1])
    first, last = (bench.value((bench.features(logits).T @ sides).T, counts) for logits in ends_logits)
    return [((low, float(one)), (1.0, float(other))) for one, other in zip(first, last, strict=True)]


def _shares(result: _Result | None) -> list[float] | None:
    return None if result is None else result.shares


def _counted(bench: _Bench, exits: NDArray[Any]) -> list[float]:
    """Share of units that leave at each exit."""
    counts = np.bincount(exits.ravel(), minlength=bench.trace.num_exits)
    return [float(share) for share in counts / exits.size]


def _static(bench: _Bench) -> list[dict[str, Any]]:
    depth = bench.trace.num_layers
    return [
        {"layer": int(layer), "layer_speedup": depth / int(layer), **bench.answer(logits)}
        for layer, logits in zip(bench.trace.layers, bench.trace.logits, strict=True)
    ]


def _oracle(bench: _Bench) -> dict[str, Any] | None:
    if bench.trace.problem_type == "regression":
        return None
    outcome = oracle(bench.trace)
    return {
        "by": "accuracy",
        "rule": _oracle_rule(bench),
        **bench.answer(outcome.answers),
        "layer_speedup": bench.trace.num_layers / float(bench.trace.layers[outcome.exits].mean()),
        "shares": _counted(bench, outcome.exits),
    }


def _oracle_rule(bench: _Bench) -> str:
    """By what the oracle leaves, and whether that is what is scored."""
    several = bench.trace.problem_type == "multi_label_classification"
    what = "whose whole set of labels is right" if several else "that is right"
    rule = f"The oracle leaves at the first exit {what}, at the last where none is"
    if bench.metric == "accuracy":
        return f"{rule}."
    # A set that is nearly right counts for F1 and not for the oracle, which so is no bound on F1.
    beaten = ": by that score another row may be better" if several else ""
    return f"{rule}: it goes by accuracy{' (exact match)' if several else ''}, not by {bench.metric}{beaten}."


def _examples(
    bench: _Bench, results: Mapping[str, dict[float, _Result | None]], baseline: str | None, target: float
) -> dict[str, Any]:
    """Easiest and hardest texts, by the baseline; by the first row that tells texts apart, where that one does not."""
    reached = {name: found[target] for name, found in results.items()}
    first = [] if baseline is None else [baseline]
    names = [name for name in [*first, *results] if reached[name] is not None]
    # At a static exit all leave together: that is a last resort.
    by = next((name for name in names if name not in ("static", "depth")), names[0] if names else None)
    result = None if by is None else reached[by]
    if result is None:
        return {"by": None, "easiest": [], "hardest": []}
    return {"by": by, **easiest_and_hardest(bench.trace, result.exits)}


def _about(bench: _Bench) -> Mapping[str, Any]:
    trace = bench.trace
    return {
        "n": trace.num_units,
        "splits": bench.splits,
        "seed": bench.seed,
        "resamples": bench.resamples,
        "level": LEVEL,
        "metric": bench.metric,
        "problem_type": trace.problem_type,
        "num_layers": trace.num_layers,
        "layers": [int(layer) for layer in trace.layers],
        "runtime": trace.runtime,
        "batch_size": trace.batch_size,
        "dtype": trace.dtype,
        "model": trace.model,
        "versions": {"offramp": _offramp_version(), "numpy": version("numpy")},
    }


def _offramp_version() -> str:
    import offramp

    return offramp.__version__
