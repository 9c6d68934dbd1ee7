"""Optimal stopping, learned from a trace: when is an exit's answer worth more than the layers still to come?

Ours; the running half is ``offramp.criteria.learned_stopping``. Two steps, both on rows that were not trained on:

1. For every exit, logistic regression of "this answer is right" (or "is what the last exit says") on what it shows.
2. Backward induction over the rows of the trace: from the last exit to the first, for a given price of a layer, the
   threshold on that probability that makes the sum of (probability of being right - price of the layers) largest. The
   probabilities of a row are those of models that were fitted without it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from offramp.criteria.learned_stopping import LearnedStopping
from offramp.errors import DataError, KnobError, UnsupportedError, require
from offramp.traces.trace import Trace

__all__ = ["PRICES", "Target", "fit_stopping", "stopping_thresholds"]

Floats = NDArray[np.float64]
Target = Literal["right", "agrees"]

PRICES = tuple(float(price) for price in np.geomspace(3e-4, 0.3, 31))
"""Of a layer, in right answers: from next to nothing to more than any layer is worth."""

_FOLDS = 4
_STRENGTH = 1.0  # inverse of the penalty on standardised signals; of 0.01 to 10, docs/research/README.md
_NEVER = 1.1  # a probability that no row has


def fit_stopping(
    trace: Trace, criterion: LearnedStopping, *, target: Target = "right", seed: int = 0
) -> LearnedStopping:
    """Learn when to stop.

    Args:
        trace: single-label, of rows that were not trained on.
        criterion: whose settings are to be learned. Distances are used where every early exit gives them.
        target: what stopping is to be worth: a right answer, or (without labels) the last exit's answer.
        seed: of the folds.

    Returns:
        The criterion with its tables. Its knob is still to be chosen, best on rows that the tables were not learned on
        (``calibration.fitting.held_out_scores``).

    Raises:
        UnsupportedError: the trace is not single-label.
        DataError: no labels where they are needed, no early exit, or too few rows.
        MissingExtraError: scikit-learn is not installed.
        KnobError: no such target.
    """
    _check(trace, target)
    said = trace.logits.argmax(axis=-1)
    truth = trace.labels_known() if target == "right" else said[-1]
    hits = (said == truth).astype(np.int64)
    ratio = all("distances" in trace.gives(e) for e in range(trace.num_exits - 1))
    rule = replace(criterion, weights=(), stops=(), prices=(), ratio=ratio)
    signals = _signals(trace, rule)
    weights = tuple(_logistic(signals[e], hits[e]) for e in range(trace.num_exits - 1))
    items = np.random.default_rng(seed).permutation(len(trace.lengths)) % _FOLDS
    right = _held_out(signals, hits, np.repeat(items, np.diff(trace.offsets)))
    if target == "agrees":
        right[-1] = 1  # with itself, for sure
    layers = trace.layers.astype(np.float64)
    table = np.stack([stopping_thresholds(right, layers, price) for price in PRICES], axis=1)  # [E - 1, K]
    # A higher price never makes anyone stay longer: noise in the table must not say so.
    stops = np.minimum.accumulate(table, axis=1)
    return replace(rule, weights=weights, stops=tuple(map(tuple, stops.tolist())), prices=PRICES)


def _check(trace: Trace, target: str) -> None:
    if target not in get_args(Target):
        raise KnobError(f"target must be {' or '.join(get_args(Target))}, not {target!r}")
    if trace.problem_type != "single_label_classification":
        raise UnsupportedError(f"stopping is learned for one class a text; this trace is {trace.problem_type}")
    if trace.num_exits < 2 or len(trace.lengths) < 2 * _FOLDS:
        raise DataError(
            f"learned stopping needs an early exit and {2 * _FOLDS} rows; this trace has {trace.num_exits} exits and "
            f"{len(trace.lengths)} rows"
        )


def stopping_thresholds(right: Floats, layers: Floats, price: float) -> Floats:
    """Backward induction: for each early exit, the probability of being right from which on to stop.

    Args:
        right: [E, N]: of being right at each exit, for N rows.
        layers: [E]: cumulative.
        price: of a layer.

    Returns:
        [E - 1]; above 1 where nobody should stop, 0 where all should. Of thresholds that are worth the same, the
        highest.
    """
    value = right[-1]
    found = np.empty(len(right) - 1)
    for e in range(len(right) - 2, -1, -1):
        go_on = value - price * (layers[e + 1] - layers[e])
        order = np.argsort(-right[e], kind="stable")
        sure = right[e][order]
        # What is won when the surest 0, 1, 2, ... rows stop here and the others go on. Rows that are equally sure
        # cannot be told apart: they stop together.
        won = np.concatenate([[0.0], np.cumsum((right[e] - go_on)[order])])
        won[1:-1][sure[1:] == sure[:-1]] = -np.inf
        best = int(won.argmax())
        found[e] = _between(sure, best)
        value = np.where(right[e] >= found[e], right[e], go_on)
    return found


def _between(sure: Floats, count: int) -> float:
    """A threshold that the first ``count`` of falling numbers reach and the others do not."""
    if count == 0:
        return _NEVER
    return float((sure[count - 1] + sure[count]) / 2) if count < len(sure) else 0.0


def _signals(trace: Trace, rule: LearnedStopping) -> list[Floats]:
    """[N, F] at every exit: what is seen there. The last one may have no distances, and then lacks that column."""
    state, found = rule.start(np.arange(trace.num_units)), []
    for stage in trace.stages:
        output = trace.output(stage.index)
        given = replace(rule, ratio=rule.ratio and "distances" in output.extras)
        found.append(np.stack(given.signals(output, state), axis=1).astype(np.float64))
        state = given.follow(stage, output, state)[1]
    return found


def _logistic(signals: Floats, hits: NDArray[np.int64]) -> tuple[float, ...]:
    """Constant and weights of a logistic regression: [N, F], [N] of 0 and 1."""
    rate = (hits.sum() + 0.5) / (len(hits) + 1)
    if hits.all() or not hits.any():
        return (float(np.log(rate / (1 - rate))), *([0.0] * signals.shape[1]))
    # A few Newton steps to the last digit: what is learned does not hang on where a slower method gave up.
    regression: Any = require("sklearn.linear_model", extra="train").LogisticRegression
    model = regression(C=_STRENGTH, solver="newton-cholesky")
    mean, spread = signals.mean(axis=0), signals.std(axis=0)
    spread[spread < 1e-6] = 1.0  # what never changes here weighs nothing, also where it does change
    model.fit((signals - mean) / spread, hits)
    weights = model.coef_[0] / spread
    return (float(model.intercept_[0] - weights @ mean), *(float(w) for w in weights))


def _held_out(signals: list[Floats], hits: NDArray[np.int64], folds: NDArray[np.int64]) -> Floats:
    """[E, N]: probabilities of being right, each by a model that saw no row of its fold."""
    right = np.empty(hits.shape)
    for fold in range(_FOLDS):
        mine = folds == fold
        for e in range(len(signals)):
            constant, *weights = _logistic(signals[e][~mine], hits[e][~mine])
            log_odds = np.clip(constant + signals[e][mine] @ np.array(weights), -50, 50)
            right[e, mine] = 1 / (1 + np.exp(-log_odds))
    return right
