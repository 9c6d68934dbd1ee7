"""A threshold for each exit, learned from a trace.

Backward induction, as in ``calibration.stopping``, on what was observed: from the last exit to the first, for a given
price of a layer, the threshold at which the losses of those who leave plus the price of the layers of those who stay
are least.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from offramp.criteria.per_exit import PerExit
from offramp.traces.replay import scores
from offramp.traces.trace import Trace

__all__ = ["PRICES", "fit_thresholds", "thresholds_at"]

Floats = NDArray[np.float64]

PRICES = tuple(float(price) for price in np.geomspace(1e-3, 0.2, 12))
"""Of a layer, in losses."""

_SMALLEST = 1e-6
"""In place of 0: nobody leaves, or next to nobody."""


def fit_thresholds(trace: Trace, criterion: PerExit, losses: Floats) -> list[tuple[PerExit, float]]:
    """For each of ``PRICES``: the criterion with its scale, and the threshold that goes with it; alike ones once.

    Args:
        trace: E exits, U units.
        criterion: whose ``scale`` is to be learned.
        losses: [E, U]: what each exit's answer costs.
    """
    found: dict[tuple[float, ...], tuple[PerExit, float]] = {}
    doubt = scores(trace, criterion.inner)
    for price in PRICES:
        by_exit = thresholds_at(doubt, losses, trace.layers.astype(np.float64), price)
        top = min(max(by_exit.max(initial=0.0), _SMALLEST), criterion.knobs["threshold"].high)
        scale = (*(float(max(t / top, _SMALLEST)) for t in by_exit), 1.0)
        found.setdefault(scale, (replace(criterion, scale=scale), float(top)))
    return list(found.values())


def thresholds_at(doubt: Floats, losses: Floats, layers: Floats, price: float) -> Floats:
    """The threshold of each early exit at one price.

    Args:
        doubt: [E, U]: scores; low is sure.
        losses: [E, U].
        layers: [E]: cumulative.
        price: of a layer, in losses.

    Returns:
        [E - 1]; 0 where nobody should leave. Between two scores; of thresholds worth the same, the lowest.
    """
    value = losses[-1]
    found = np.empty(len(losses) - 1)
    for e in range(len(losses) - 2, -1, -1):
        go_on = value + price * (layers[e + 1] - layers[e])
        order = np.argsort(doubt[e], kind="stable")
        sure = doubt[e][order]
        # What is saved when the surest 0, 1, 2, ... leave here; those as sure as each other leave together.
        saved = np.concatenate([[0.0], np.cumsum((go_on - losses[e])[order])])
        saved[1:-1][sure[1:] == sure[:-1]] = -np.inf
        found[e] = _between(sure, int(saved.argmax()))
        value = np.where(doubt[e] < found[e], losses[e], go_on)
    return found


def _between(sure: Floats, count: int) -> float:
    """A threshold that the first ``count`` of rising numbers are below, and the others not."""
    if count == 0:
        return 0.0
    return float((sure[count - 1] + sure[count]) / 2) if count < len(sure) else 2 * float(sure[-1]) + _SMALLEST
