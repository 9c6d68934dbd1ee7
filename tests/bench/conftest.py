"""A comparison to draw and to report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def result() -> dict[str, Any]:
    """Of a small trace whose label ``<no>`` must be escaped; not every row reaches 3x. Shared: do not change it."""
    from offramp.calibration.compare import compare
    from offramp.traces.trace import Trace

    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=40)
    logits = [np.eye(2)[labels] * (e + 1) + rng.normal(size=(40, 2)) for e in range(4)]
    trace = Trace(
        logits=np.array(logits, dtype=np.float32),
        layers=np.arange(1, 5),
        lengths=np.ones(40, dtype=np.int64),
        problem_type="single_label_classification",
        id2label={0: "<no>", 1: "yes"},
        labels=labels,
    )
    return compare(trace, targets=(1.5, 2.0, 3.0), splits=3, resamples=20)
