"""Optimal stopping, learned from a trace: when is an exit's answer worth more than the layers still to come?

Ours; the running half is ``offramp.criteria.learned_stopping``. Two steps, both on rows that were not trained on:

1. For every exit, logistic regression of "this answer is right" (or "is what the last exit says") on what it shows.
2. Backward induction over the rows of the trace: from the last exit to the first, for a given price of a layer, the
   threshold on that probability that makes the sum of (probability of being right - price of the layers) largest. The
   probabilities of a row are those of models that were fitted without it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offramp.criteria.learned_stopping import LearnedStopping
from offramp.errors import DataError, require
from offramp.traces.trace import Trace

__all__ = ["PRICES", "fit_stopping", "stopping_thresholds"]

Floats = NDArray[np.float64]

PRICES = tuple(float(price) for price in np.geomspace(3e-4, 0.3, 31))
"""Of a layer, in right answers: from next to nothing to more than any layer is worth."""

_FOLDS = 4
_STRENGTH = 0.1  # inverse of the penalty on standardised signals; a few hundred rows bear no more


def fit_stopping(
    trace: Trace, criterion: LearnedStopping, *, target: Literal["right", "agrees"] = "right", seed: int = 0
) -> LearnedStopping:
    """Learn when to stop.

    Args:
        trace: single-label, of rows that were not trained on.
        criterion: whose settings are to be learned. Distances are used where every early exit gives them.
        target: what stopping is to be worth: a right answer, or (without labels) the last exit's answer.
        seed: of the folds.

    Raises:
        DataError: no labels where they are needed, no early exit, or too few rows.
    """
    if trace.num_exits < 2 or trace.num_units < 2 * _FOLDS:
        raise DataError(
            f"learned stopping needs an early exit and {2 * _FOLDS} rows; this trace has {trace.num_exits} exits and "
            f"{trace.num_units} rows"
        )
    said = trace.logits.argmax(axis=-1)
    truth = trace.labels_known() if target == "right" else said[-1]
    hits = (said == truth).astype(np.int64)
    ratio = all("distances" in trace.gives(e) for e in range(trace.num_exits - 1))
    rule = replace(criterion, weights=(), stops=(), prices=(), ratio=ratio)
    signals = _signals(trace, rule)
    weights = tuple(_logistic(signals[e], hits[e]) for e in range(trace.num_exits - 1))
    right = _held_out(signals, hits, seed)
    layers = trace.layers.astype(np.float64)
    table = np.stack([stopping_thresholds(right, layers, price) for price in PRICES], axis=1)  # [E - 1, K]
    # A higher price never makes anyone stay longer: noise in the table must not say so.
    stops = np.minimum.accumulate(table, axis=1)
    return replace(rule, weights=weights, stops=tuple(map(tuple, stops.tolist())), prices=PRICES)


def stopping_thresholds(right: Floats, layers: Floats, price: float) -> Floats:
    """Backward induction: for each early exit, the probability of being right from which on to stop.

    Args:
        right: [E, N]: of being right at each exit, for N rows.
        layers: [E]: cumulative.
        price: of a layer.

    Returns:
        [E - 1]; above 1 where nobody should stop.
    """
    value = right[-1]
    found = np.empty(len(right) - 1)
    for e in range(len(right) - 2, -1, -1):
        go_on = value - price * (layers[e + 1] - layers[e])
        order = np.argsort(-right[e], kind="stable")
        sure = right[e][order]
        # What is won when the surest 0, 1, 2, ... rows stop here and the others go on.
        won = np.concatenate([[0.0], np.cumsum((right[e] - go_on)[order])])
        best = int(won.argmax())
        middle = (sure[best - 1] + sure[best]) / 2 if 0 < best < len(sure) else 0.0
        found[e] = 1.1 if best == 0 else middle
        value = np.where(right[e] >= found[e], right[e], go_on)
    return found


def _signals(trace: Trace, rule: LearnedStopping) -> list[Floats]:
    """[N, F] at every exit: what is seen there. The last one may have no distances, and then lacks that column."""
    state, found = rule.start(np.arange(trace.num_units)), []
    for stage in trace.stages:
        output = trace.output(stage.index)
        given = replace(rule, ratio=rule.ratio and "distances" in output.extras)
        found.append(np.stack(given.signals(stage, output, state), axis=1).astype(np.float64))
        state = given.follow(stage, output, state)[1]
    return found


def _logistic(signals: Floats, hits: NDArray[np.int64]) -> tuple[float, ...]:
    """Constant and weights of a logistic regression: [N, F], [N] of 0 and 1."""
    rate = (hits.sum() + 0.5) / (len(hits) + 1)
    if hits.all() or not hits.any():
        return (float(np.log(rate / (1 - rate))), *([0.0] * signals.shape[1]))
    model: Any = require("sklearn.linear_model", extra="train").LogisticRegression(C=_STRENGTH)
    mean, spread = signals.mean(axis=0), signals.std(axis=0) + 1e-9
    model.fit((signals - mean) / spread, hits)
    weights = model.coef_[0] / spread
    return (float(model.intercept_[0] - weights @ mean), *(float(w) for w in weights))


def _held_out(signals: list[Floats], hits: NDArray[np.int64], seed: int) -> Floats:
    """[E, N]: probabilities of being right, each by a model that did not see the row."""
    right = np.empty(hits.shape)
    folds = np.random.default_rng(seed).permutation(hits.shape[1]) % _FOLDS
    for fold in range(_FOLDS):
        mine = folds == fold
        for e in range(len(signals)):
            constant, *weights = _logistic(signals[e][~mine], hits[e][~mine])
            right[e, mine] = 1 / (1 + np.exp(-(constant + signals[e][mine] @ np.array(weights))))
    return right
