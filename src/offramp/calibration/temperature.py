"""Temperatures: one number an exit that makes its probabilities mean what they say.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; for early exits Schwartz et al., "The Right Tool for
the Job", ACL 2020, section 3. Dividing logits by a temperature changes no answer, but one threshold for all exits then
means the same at each of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.errors import UnsupportedError
from offramp.traces.trace import Trace

__all__ = ["calibration_error", "fit_temperatures"]

Floats = NDArray[np.float64]

_LOW, _HIGH = 1e-2, 1e2
"""Where every answer is right, or the logits say nothing, the best temperature is 0 or infinite: these are the ends."""


def fit_temperatures(trace: Trace) -> tuple[float, ...]:
    """The temperature of each exit that gives the labels of a trace the highest likelihood.

    Args:
        trace: with labels, single-label; never of rows that were trained on (there it would be far too low).

    Returns:
        One number an exit, from 0.01 to 100.

    Raises:
        DataError: the trace has no labels.
        UnsupportedError: it is not single-label.
    """
    _check_single(trace)
    labels = trace.labels_known()
    return tuple(1 / _sharpness(logits.astype(np.float64), labels) for logits in trace.logits)


def calibration_error(
    trace: Trace, temperatures: tuple[float, ...] | None = None, *, bins: int = 15
) -> tuple[float, ...]:
    """Expected calibration error of each exit: mean gap between confidence and accuracy over equal-width bins.

    Args:
        trace: with labels, single-label.
        temperatures: one an exit; None: 1.
        bins: of confidence, from 0 to 1.

    Raises:
        DataError: the trace has no labels.
        UnsupportedError: it is not single-label.
    """
    _check_single(trace)
    labels, errors = trace.labels_known(), []
    for e, logits in enumerate(trace.logits):
        p = _softmax(logits.astype(np.float64) / (1.0 if temperatures is None else temperatures[e]))
        confidence, right = p.max(axis=-1), p.argmax(axis=-1) == labels
        place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
        gaps = np.bincount(place, weights=right - confidence, minlength=bins)
        errors.append(float(np.abs(gaps).sum() / len(labels)))
    return tuple(errors)


def _check_single(trace: Trace) -> None:
    if trace.problem_type != "single_label_classification":
        raise UnsupportedError(f"temperatures are fitted to one class a text; this trace is {trace.problem_type}")


def _softmax(logits: Floats) -> Floats:
    p: Floats = np.exp(logits - logits.max(axis=-1, keepdims=True))
    total: Floats = p.sum(axis=-1, keepdims=True)
    return p / total


def _sharpness(logits: Floats, labels: NDArray[np.int64]) -> float:
    """The inverse temperature: the likelihood is concave in it, so its slope has one zero, found by halving."""
    below = logits - logits.max(axis=-1, keepdims=True)
    true = below[np.arange(len(labels)), labels].sum()

    def slope(sharpness: float) -> float:
        p = np.exp(sharpness * below)
        return float(true - ((p * below).sum(axis=-1) / p.sum(axis=-1)).sum())

    low, high = 1 / _HIGH, 1 / _LOW
    for _ in range(40):  # in the logarithm: 40 halvings leave a part in 10^11 of four decades
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(middle) >= 0 else (low, middle)
    return float(np.sqrt(low * high))
