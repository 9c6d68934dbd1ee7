"""Traces to choose and compare on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from offramp.traces.trace import Trace


def make_trace(
    kind: str = "single_label_classification",
    *,
    units: int = 60,
    exits: int = 4,
    classes: int = 3,
    seed: int = 0,
    extras: bool = True,
) -> Trace:
    """Exits that know more the later they are, on texts of which some are easy; distances that know nothing."""
    rng = np.random.default_rng(seed)
    width = 1 if kind == "regression" else classes
    labels = {
        "single_label_classification": rng.integers(classes, size=units),
        "multi_label_classification": rng.random((units, classes)) > 0.6,
        "regression": rng.normal(size=units).astype(np.float32),
    }[kind]
    truth = np.eye(classes)[labels] if kind == "single_label_classification" else labels.reshape(units, width)
    ease = rng.random((units, 1)) * 2
    logits = [truth * (e + 1) * ease + rng.normal(size=(units, width)) for e in range(exits)]
    distances = rng.gamma(2, size=(exits, units, width)).astype(np.float32)
    distances[-1] = np.nan  # the last exit measures none
    return Trace(
        logits=np.array(logits, dtype=np.float32),
        layers=np.arange(1, exits + 1),
        lengths=rng.integers(1, 30, size=units),
        problem_type=kind,  # type: ignore[arg-type]
        id2label={c: str(c) for c in range(width)},
        extras={"distances": distances} if extras else {},
        labels=labels,
        runtime="fake",
        batch_size=8,
        hashes=rng.integers(2**62, size=units).astype(np.uint64),
    )


@pytest.fixture(scope="session")
def example() -> Callable[..., Trace]:
    """``example(kind, units=..., exits=..., classes=..., seed=..., extras=...)``: a trace with labels."""
    return make_trace
