"""Confusion and overthinking against plain loops, and the identity that ties overthinking to the oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from offramp.errors import DataError, UnsupportedError
from offramp.traces.curves import full_depth, measure, oracle
from offramp.traces.diagnostics import confusion, overthinking
from offramp.traces.trace import Trace

KINDS = ("single_label_classification", "multi_label_classification")


def example(kind: str = KINDS[0], *, seed: int = 0, exits: int = 4, units: int = 40) -> Trace:
    rng = np.random.default_rng(seed)
    width = 1 if kind == "regression" else 3
    labels = {
        KINDS[0]: rng.integers(3, size=units),
        KINDS[1]: rng.random((units, 3)) > 0.5,
        "regression": rng.normal(size=units),
    }[kind]
    return Trace(
        logits=(2 * rng.normal(size=(exits, units, width))).astype(np.float32),
        layers=np.arange(1, exits + 1),
        lengths=np.ones(units, dtype=np.int64),
        problem_type=kind,  # type: ignore[arg-type]
        id2label={c: str(c) for c in range(width)},
        labels=labels,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_confusion_is_the_sum_of_distances_to_the_last_exit(kind: str) -> None:
    trace = example(kind)
    p = softmax(trace.logits, axis=-1) if kind == KINDS[0] else expit(trace.logits)
    expected = [
        sum(abs(p[-1, unit, c] - p[e, unit, c]) for e in range(3) for c in range(3)) for unit in range(trace.num_units)
    ]
    raw = confusion(replace(trace, labels=None))
    np.testing.assert_allclose(raw, expected, rtol=1e-5)
    z = confusion(trace, z_scored=True)
    assert (z.mean(), z.std()) == (pytest.approx(0, abs=1e-9), pytest.approx(1))
    assert (np.argsort(z) == np.argsort(raw)).all()


def test_exits_that_agree_are_not_confused() -> None:
    trace = example()
    alike = replace(trace, logits=np.broadcast_to(trace.logits[:1], trace.logits.shape))
    assert (confusion(alike) == 0).all()
    assert (confusion(alike, z_scored=True) == 0).all(), "no spread to divide by"
    assert confusion(trace.select(np.zeros(40, dtype=bool)), z_scored=True).shape == (0,)


def test_overthinking_by_hand() -> None:
    #                    wasteful  destructive  neither    neither: right at the last exit only
    said = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])  # [E, U]; the label is always 0
    trace = replace(
        example(exits=3, units=4), logits=np.eye(3, dtype=np.float32)[said], labels=np.zeros(4, dtype=np.int64)
    )
    found = overthinking(trace)
    assert (found.wasteful, found.destructive) == (0.5, 0.25)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000), exits=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_the_destructive_share_is_what_the_oracle_gains(kind: str, seed: int, exits: int) -> None:
    trace = example(kind, seed=seed, exits=exits)
    found = overthinking(trace)
    best = measure(trace, oracle(trace))["accuracy"]
    assert full_depth(trace)["accuracy"] + found.destructive == pytest.approx(best)
    assert 0 <= found.destructive <= found.wasteful <= best + 1e-12


def test_what_cannot_be_said() -> None:
    for tell in (confusion, overthinking):
        with pytest.raises(UnsupportedError, match="regression"):
            tell(example("regression"))
    with pytest.raises(DataError, match="label"):
        overthinking(replace(example(), labels=None))
