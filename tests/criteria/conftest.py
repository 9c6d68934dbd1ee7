"""Traces of made-up exits, for rules that are checked by replay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from offramp.traces.trace import Trace


@pytest.fixture(scope="session")
def make_trace(trace_of: Callable[..., Trace]) -> Callable[..., Trace]:
    """``make_trace(seed, kind)``: exits that grow surer and repeat themselves now and then."""

    def make(
        seed: int, kind: str = "single_label_classification", *, exits: int = 6, units: int = 25, classes: int = 3
    ) -> Trace:
        rng = np.random.default_rng(seed)
        shape = (units, 1 if kind == "regression" else classes)
        logits = [rng.normal(size=shape)]
        for e in range(1, exits):
            again = rng.random((units, 1)) < 0.3
            step = rng.normal(size=shape) * rng.choice([0.05, 1.0], size=(units, 1))
            logits.append(np.where(again, logits[-1], logits[-1] * (1 + 0.3 * e) + step))
        return trace_of(np.array(logits), kind)

    return make
