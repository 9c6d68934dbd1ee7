"""PCEE-BERT: patience over certainty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.criteria.entropy import Entropy
from offramp.recipes import load_recipe
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
RECIPE = load_recipe("pcee_bert")
A = [[0.40, 0.35, 0.25], [0.55, 0.30, 0.15], [0.75, 0.15, 0.10], [0.90, 0.06, 0.04], [0.96, 0.03, 0.01],
     [0.98, 0.01, 0.01]]  # fmt: skip
B = [[0.85, 0.10, 0.05], [0.45, 0.50, 0.05], [0.30, 0.60, 0.10], [0.25, 0.65, 0.10], [0.10, 0.85, 0.05],
     [0.04, 0.95, 0.01]]  # fmt: skip
C = [[0.34, 0.33, 0.33], [0.34, 0.36, 0.30], [0.42, 0.30, 0.28], [0.36, 0.30, 0.34], [0.38, 0.42, 0.20],
     [0.37, 0.40, 0.23]]  # fmt: skip


def trace_of(logits: Any, kind: Any = SINGLE) -> Trace:
    """[E, U, C] to a trace with an exit after every layer."""
    logits = np.asarray(logits, dtype=np.float32)
    return Trace(
        logits=logits,
        layers=np.arange(1, len(logits) + 1),
        lengths=np.ones(logits.shape[1], dtype=np.int64),
        problem_type=kind,
        id2label={c: str(c) for c in range(logits.shape[2])},
    )


def random_trace(kind: Any, seed: int = 0) -> Trace:
    """Six layers, 60 texts, from unsure to sure and back."""
    rng = np.random.default_rng(seed)
    return trace_of(rng.normal(size=(6, 60, 3)) * rng.uniform(0.2, 6, size=(6, 60, 1)), kind)


def test_it_is_trained_as_pabee() -> None:
    pabee = load_recipe("pabee")
    assert (RECIPE.head, RECIPE.training) == (pabee.head, pabee.training)
    assert RECIPE.criteria[REGRESSION] == pabee.criteria[REGRESSION]


def test_the_vectors() -> None:
    """B leaves at exit 2, where its first two exits are sure and say different things: agreement is not asked for."""
    trace = trace_of(np.log(np.array([A, B, C])).transpose(1, 0, 2))
    outcome = replay(trace, RECIPE.criterion(SINGLE), {"threshold": 0.8, "patience": 2})
    assert (outcome.exits + 1).tolist() == [4, 2, 6]
    assert trace.logits[:2, 1].argmax(-1).tolist() == [0, 1]


@pytest.mark.parametrize("kind", [SINGLE, MULTI])
@pytest.mark.parametrize("threshold", [0.0, 0.21, 0.47, 0.83, 1.01])
def test_with_patience_1_it_is_entropy(kind: Any, threshold: float) -> None:
    trace = random_trace(kind)
    found = replay(trace, RECIPE.criterion(kind), {"threshold": threshold, "patience": 1})
    expected = replay(trace, Entropy(problem_type=kind), {"threshold": threshold})
    np.testing.assert_array_equal(found.exits, expected.exits)
    np.testing.assert_array_equal(found.answers, expected.answers)


@given(
    seed=st.integers(0, 30),
    kind=st.sampled_from([SINGLE, MULTI]),
    patience=st.integers(1, 5),
    threshold=st.floats(0, 1),
    less=st.floats(0, 1),
)
@settings(deadline=None, max_examples=60)
def test_more_patience_and_a_lower_threshold_never_leave_earlier(
    seed: int, kind: Any, patience: int, threshold: float, less: float
) -> None:
    trace, criterion = random_trace(kind, seed), RECIPE.criterion(kind)
    exits = replay(trace, criterion, {"threshold": threshold, "patience": patience}).exits
    assert exits.min() >= patience - 1
    assert (replay(trace, criterion, {"threshold": threshold, "patience": patience + 1}).exits >= exits).all()
    assert (replay(trace, criterion, {"threshold": threshold * less, "patience": patience}).exits >= exits).all()
