"""Candidates for an operating point: which settings and knobs are tried, what they cost, and in which order.

All of it is made on the rows that tune. The order follows Laufer-Goldenberg et al., "Efficiently Controlling Multiple
Risks with Pareto Testing", ICLR 2023: of all candidates those that no faster one beats, from the slowest to the
fastest; so several parameters become one line, along which risk and speed grow together.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.calibration.losses import Risk
from offramp.calibration.stopping import fit_stopping
from offramp.calibration.sweep import LAMBDAS
from offramp.calibration.temperature import fit_temperatures
from offramp.calibration.thresholds import fit_thresholds
from offramp.criteria.base import MAX_LAYERS, Criterion, Scored
from offramp.criteria.learned_stopping import LearnedStopping
from offramp.criteria.per_exit import PerExit
from offramp.traces.curves import knob_grid, thresholds
from offramp.traces.replay import cap_exits, exits_at, replay, running_minimum, scores
from offramp.traces.trace import Trace

__all__ = ["Candidates", "candidates", "in_order", "told", "variants"]

Floats = NDArray[np.float64]

_FEWEST_POINTS = 40
"""Thresholds a criterion, however many depths are tried with each."""


def told(trace: Trace) -> Trace:
    """The trace with labels: its own, or else what the full model answers."""
    if trace.labels is not None or trace.problem_type == "regression":
        return trace
    full = trace.logits[-1]
    single = trace.problem_type == "single_label_classification"
    return replace(trace, labels=full.argmax(axis=-1) if single else full > 0)


def variants(trace: Trace, criterion: Criterion, risk: Risk, *, fixed: Collection[str] = ()) -> list[Criterion]:
    """The criterion with every setting that is tried: lambdas, temperatures, tables of learned stopping, scales.

    Args:
        trace: of the rows that tune. Without labels, what is learned is learned from the full model's answers.
        criterion: with the settings to start from.
        risk: that is to be kept.
        fixed: settings that stay as they are.

    Raises:
        DataError: too few rows to learn from.
    """
    names = {field.name for field in fields(criterion)} - set(fixed)
    if isinstance(criterion, LearnedStopping) and "weights" in names:
        target = "right" if trace.labels is not None and risk.name != "disagreement" else "agrees"
        return [fit_stopping(trace, criterion, target=target)]  # type: ignore[arg-type]
    if isinstance(criterion, PerExit) and "scale" in names:
        return [made for made, _ in fit_thresholds(trace, criterion, risk.by_exit(trace))]
    tried = [criterion]
    if "lam" in names:
        tried = [_with(one, lam=lam) for one in tried for lam in LAMBDAS]
    if "temperatures" in names and trace.problem_type == "single_label_classification":
        tried += [_with(one, temperatures=fit_temperatures(told(trace))) for one in tried]
    return tried


@dataclass(frozen=True, eq=False)
class Candidates:
    """P pairs of a criterion and its knobs."""

    rules: list[Criterion]
    rule: NDArray[np.int64]
    """[P]: which of the criteria."""
    knobs: list[dict[str, float]]
    """P of them."""

    def __len__(self) -> int:
        return len(self.knobs)

    def take(self, places: NDArray[np.int64]) -> Candidates:
        """Some of them, in the order given."""
        return Candidates(self.rules, self.rule[places], [self.knobs[place] for place in places])

    def run(self, trace: Trace, risk: Risk) -> tuple[Floats, Floats]:
        """What each costs on a trace: sums of losses [P], and mean layers executed [P]."""
        losses, layers = np.empty(len(self)), np.empty(len(self))
        for number in np.unique(self.rule):
            places = np.flatnonzero(self.rule == number)
            lost, executed = self._run(trace, risk, places)
            losses[places], layers[places] = lost.sum(axis=1), executed.mean(axis=1)
        return losses, layers

    def losses(self, trace: Trace, risk: Risk) -> Floats:
        """[P, U]: text by text."""
        found = np.empty((len(self), trace.num_units))
        for number in np.unique(self.rule):
            places = np.flatnonzero(self.rule == number)
            found[places] = self._run(trace, risk, places)[0]
        return found

    def _run(self, trace: Trace, risk: Risk, places: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
        """Losses and layers [p, U] of candidates of one criterion."""
        rule = self.rules[int(self.rule[places[0]])]
        if isinstance(rule, Scored):
            given = np.array([self.knobs[place]["threshold"] for place in places])
            caps = [self.knobs[place].get("max_layers", MAX_LAYERS.default) for place in places]
            exits = np.minimum(exits_at(scores(trace, rule), given), cap_exits(trace, caps)[:, None])
            return risk.by_exit(trace)[exits, np.arange(trace.num_units)], trace.layers[exits]
        done = [replay(trace, rule, dict(self.knobs[place])) for place in places]
        losses = np.stack([risk.of(trace, outcome.answers) for outcome in done])
        return losses, np.stack([trace.layers[outcome.exits] for outcome in done])


def candidates(trace: Trace, rules: list[Criterion], *, max_points: int = 200, cap_depth: bool = False) -> Candidates:
    """Knobs worth trying for each criterion, between what is observed on the rows that tune.

    Args:
        trace: of those rows; its labels are not read.
        rules: criteria that fit it.
        max_points: thresholds a criterion.
        cap_depth: with every threshold every early exit is tried as the last that anybody reaches.
    """
    knobs: list[dict[str, float]] = []
    rule: list[int] = []
    caps = trace.layers[:-1].tolist() if cap_depth else []
    each = max(_FEWEST_POINTS, max_points // (1 + len(caps)))
    for number, criterion in enumerate(rules):
        made = _points(trace, criterion, each)
        made += [{**point, "max_layers": float(cap)} for cap in caps for point in made]
        knobs += made
        rule += [number] * len(made)
    return Candidates(rules, np.array(rule, dtype=np.int64), knobs)


def _points(trace: Trace, criterion: Criterion, max_points: int) -> list[dict[str, float]]:
    """Knobs of one criterion, whole depth."""
    if not isinstance(criterion, Scored):
        return knob_grid(trace, criterion, max_points=3 * max_points)
    lowest = running_minimum(scores(trace, criterion))
    values = thresholds(lowest, criterion.knobs["threshold"], max_points=max_points)
    return [{"threshold": float(value)} for value in values]


def in_order(losses: Floats, layers: Floats) -> NDArray[np.int64]:
    """Places of the candidates to be tested, safest first: those that lose no more than every faster one.

    Of candidates equally fast, the one that loses least. Several may lose alike (nothing, at the safe end): the
    slower ones come first, so that a test that begins there can go far.

    Args:
        losses: [P]: on the rows that tune.
        layers: [P]: mean layers executed there.
    """
    order = np.lexsort((losses, -layers))
    first = np.concatenate([[True], np.diff(layers[order]) < 0])
    order = order[first]
    lost = losses[order]
    least_of_faster = np.minimum.accumulate(np.append(lost, np.inf)[::-1])[::-1][1:]
    kept: NDArray[np.int64] = order[lost <= least_of_faster]
    return kept


def _with(criterion: Criterion, **settings: Any) -> Criterion:
    return replace(criterion, **settings)
