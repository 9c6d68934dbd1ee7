"""Settings of a criterion that are learned from a trace, by name: what a recipe's ``fit`` and a comparison refer to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.calibration.stopping import fit_stopping
from offramp.calibration.temperature import fit_temperatures
from offramp.calibration.thresholds import fit_thresholds
from offramp.criteria import Criterion, Scored
from offramp.criteria.learned_stopping import LearnedStopping
from offramp.criteria.per_exit import PerExit
from offramp.errors import KnobError, UnsupportedError
from offramp.traces.replay import scores
from offramp.traces.tally import make_tally
from offramp.traces.trace import Trace

__all__ = ["FITS", "Fit", "Fitted", "held_out_scores"]

Fit = Callable[[Trace, Criterion], Criterion]
"""(a trace with labels, a criterion) -> the criterion with what was learned among its settings."""


def _temperature(trace: Trace, criterion: Criterion) -> Criterion:
    """Confidence at temperatures of its own for each exit (RightTool)."""
    if "temperatures" not in (field.name for field in fields(criterion)):
        raise UnsupportedError(f"criterion {criterion.name!r} has no temperatures to learn")
    settings: dict[str, Any] = {"temperatures": fit_temperatures(trace)}
    return replace(criterion, **settings)


def _stopping(trace: Trace, criterion: Criterion) -> Criterion:
    """Ours: the value of going on."""
    if not isinstance(criterion, LearnedStopping):
        raise UnsupportedError(f"when to stop is learned for 'learned_stopping', not for {criterion.name!r}")
    return fit_stopping(trace, criterion)


def _thresholds(trace: Trace, criterion: Criterion) -> Criterion:
    """A threshold for each exit (BranchyNet, DeeBERT), at a middling price of a layer."""
    if not isinstance(criterion, PerExit):
        raise UnsupportedError(f"thresholds by exit are learned for 'per_exit', not for {criterion.name!r}")
    tally = make_tally(trace)
    right = [tally.means(logits, "accuracy") for logits in trace.logits]
    made = fit_thresholds(trace, criterion, 1 - np.array(right, dtype=np.float64))
    return made[len(made) // 2][0]


FITS: Mapping[str, Fit] = {"stopping": _stopping, "temperature": _temperature, "thresholds": _thresholds}


@dataclass(frozen=True)
class Fitted:
    """A criterion whose settings are to be learned on whatever rows knobs are chosen on.

    Raises:
        KnobError: nothing of that name is learned.
        UnsupportedError: the criterion has no single number to hold against a threshold.
    """

    criterion: Criterion
    fit: str
    """One of ``FITS``."""

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise KnobError(f"nothing called {self.fit!r} is learned from a trace: there are {', '.join(FITS)}")
        if not isinstance(self.criterion, Scored):
            raise UnsupportedError(
                f"criterion {self.criterion.name!r} has no score, and a comparison learns settings only of criteria "
                "that leave where a score is below a threshold: give its settings, and compare it as it is"
            )


def held_out_scores(
    trace: Trace, criterion: Criterion, fit: Fit, *, folds: int = 4, seed: int = 0
) -> NDArray[np.float64]:
    """[E, U]: every unit's scores by a criterion that was fitted without it. So a threshold can be chosen on all rows.

    Args:
        trace: with labels.
        criterion: whose settings ``fit`` learns.
        fit: one of ``FITS``.
        folds: parts that the items are dealt into.
        seed: of that.

    Raises:
        UnsupportedError: the criterion does not fit the trace.
        DataError: too few rows to learn from.
    """
    items = np.random.default_rng(seed).permutation(len(trace.lengths)) % folds
    units = np.repeat(items, np.diff(trace.offsets))
    result = np.empty((trace.num_exits, trace.num_units))
    for fold in range(folds):
        rule = fit(trace.select(items != fold), criterion)
        assert isinstance(rule, Scored)
        result[:, units == fold] = scores(trace.select(items == fold), rule)
    return result
