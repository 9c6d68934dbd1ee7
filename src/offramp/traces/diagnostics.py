"""What exits tell about a text besides an answer: confusion and overthinking.

Kaya et al., "Shallow-Deep Networks", ICML 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.criteria.base import log_sigmoid, log_softmax
from offramp.errors import UnsupportedError
from offramp.traces.tally import make_tally
from offramp.traces.trace import Trace

__all__ = ["Overthinking", "confusion", "overthinking"]


def confusion(trace: Trace, *, z_scored: bool = False) -> NDArray[np.float64]:
    """How far the early exits are from the last one: sum over them of ||p_last - p_early||_1; high predicts error.

    Args:
        trace: labels are not needed.
        z_scored: less the mean over the trace, divided by its standard deviation (0 where all are equal).

    Returns:
        [U]. Multi-label: p are the labels' own probabilities.

    Raises:
        UnsupportedError: regression, which has no probabilities.
    """
    if trace.problem_type == "regression":
        raise UnsupportedError("confusion compares the exits' probabilities, and regression has none: use class labels")
    log_p = log_sigmoid if trace.problem_type == "multi_label_classification" else log_softmax
    p = np.exp(log_p(trace.logits.astype(np.float64)))
    raw: NDArray[np.float64] = np.abs(p[:-1] - p[-1]).sum(axis=(0, 2))
    if not z_scored or len(raw) == 0:
        return raw
    spread = raw.std()
    return (raw - raw.mean()) / spread if spread > 0 else np.zeros_like(raw)


@dataclass(frozen=True)
class Overthinking:
    """Shares of all units. Layers that were not needed, and layers that did harm."""

    wasteful: float
    """An early exit was already right."""
    destructive: float
    """An early exit was right and the last one is wrong (these are among the wasteful)."""


def overthinking(trace: Trace) -> Overthinking:
    """How often going on after a right answer was wasteful, and how often destructive.

    Accuracy at full depth and the destructive share add up to the oracle's accuracy.

    Raises:
        DataError: the trace has no labels, or no units.
        UnsupportedError: regression, where no answer is simply right.
    """
    tally = make_tally(trace)
    if trace.problem_type == "regression":
        raise UnsupportedError("overthinking needs answers that are right or wrong, and this is regression")
    right = np.stack([_right(tally.means(logits, "accuracy")) for logits in trace.logits])
    early = right[:-1].any(axis=0)
    return Overthinking(float(early.mean()), float((early & ~right[-1]).mean()))


def _right(means: NDArray[Any] | None) -> NDArray[np.bool_]:
    assert means is not None, "accuracy is a mean over rows"
    result: NDArray[np.bool_] = means > 0
    return result
