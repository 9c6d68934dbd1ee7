"""Temperatures against a slow search, and what they must not change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from offramp.calibration.temperature import calibration_error, fit_temperatures
from offramp.errors import DataError, UnsupportedError
from offramp.traces.trace import Trace

MakeTrace = Callable[..., Trace]


def overconfident(trace_of: MakeTrace, units: int = 4000) -> Trace:
    """Labels drawn from softmax(z); the exits say z times 3 and z halved."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(units, 4)) * 2
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) < rng.random((units, 1))).sum(axis=1)
    return trace_of(np.stack([3 * z, z / 2]), labels=labels)


def test_finds_the_factor(trace_of: MakeTrace) -> None:
    assert fit_temperatures(overconfident(trace_of)) == pytest.approx((3.0, 0.5), rel=0.06)


def test_equals_a_search(trace_of: MakeTrace) -> None:
    trace = overconfident(trace_of, 200)
    labels = trace.labels_known()
    for found, logits in zip(fit_temperatures(trace), trace.logits.astype(np.float64), strict=True):

        def loss(log_t: float, logits: np.ndarray = logits) -> float:
            z = logits / np.exp(log_t)
            return float((np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), labels]).mean())

        assert found == pytest.approx(
            float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x)), rel=1e-3
        )


def test_calibration_error_falls(trace_of: MakeTrace) -> None:
    trace = overconfident(trace_of)
    before = calibration_error(trace)
    after = calibration_error(trace, fit_temperatures(trace))
    assert all(b > a for b, a in zip(before, after, strict=True))


def test_calibration_error_by_hand(trace_of: MakeTrace) -> None:
    """Two rows at confidence .8, one of them right: the gap of that bin is .3; one at .6 and right: .4."""
    p = np.array([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4]])
    trace = trace_of(np.log(p)[None], labels=np.array([0, 1, 0]))
    assert calibration_error(trace)[0] == pytest.approx((2 * 0.3 + 0.4) / 3, abs=1e-6)


def test_the_ends(trace_of: MakeTrace) -> None:
    z = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    assert fit_temperatures(trace_of(z, labels=np.array([0, 1]))) == pytest.approx((0.01,))  # all right
    assert fit_temperatures(trace_of(z, labels=np.array([1, 0]))) == pytest.approx((100.0,))  # all wrong
    assert fit_temperatures(trace_of(0 * z, labels=np.array([1, 0])))[0] > 0  # anything will do, but no NaN


def test_refuses(trace_of: MakeTrace) -> None:
    with pytest.raises(DataError):
        fit_temperatures(trace_of(np.zeros((1, 2, 2))))
    regression = trace_of(np.zeros((1, 2, 1)), "regression", labels=np.zeros(2, dtype=np.float32))
    with pytest.raises(UnsupportedError, match="regression"):
        fit_temperatures(regression)
