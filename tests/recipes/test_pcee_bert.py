"""PCEE-BERT: patience over certainty."""

from __future__ import annotations

from collections.abc import Callable
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

MakeTrace = Callable[..., Trace]


def random_trace(trace_of: MakeTrace, kind: Any, seed: int = 0) -> Trace:
    """Six layers, 60 texts, from unsure to sure and back."""
    rng = np.random.default_rng(seed)
    return trace_of(rng.normal(size=(6, 60, 3)) * rng.uniform(0.2, 6, size=(6, 60, 1)), kind)


def test_it_is_trained_as_pabee() -> None:
    pabee = load_recipe("pabee")
    assert (RECIPE.head, RECIPE.training) == (pabee.head, pabee.training)
    assert RECIPE.criteria[REGRESSION] == pabee.criteria[REGRESSION]


def test_the_vectors(vector_trace: Trace) -> None:
    """B leaves at exit 2, where its first two exits are sure and say different things: agreement is not asked for."""
    outcome = replay(vector_trace, RECIPE.criterion(SINGLE), {"threshold": 0.8, "patience": 2})
    assert (outcome.exits + 1).tolist() == [4, 2, 6]
    assert vector_trace.logits[:2, 1].argmax(-1).tolist() == [0, 1]


@pytest.mark.parametrize("kind", [SINGLE, MULTI])
@pytest.mark.parametrize("threshold", [0.0, 0.21, 0.47, 0.83, 1.01])
def test_with_patience_1_it_is_entropy(trace_of: MakeTrace, kind: Any, threshold: float) -> None:
    trace = random_trace(trace_of, kind)
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
    trace_of: MakeTrace, seed: int, kind: Any, patience: int, threshold: float, less: float
) -> None:
    trace, criterion = random_trace(trace_of, kind, seed), RECIPE.criterion(kind)
    exits = replay(trace, criterion, {"threshold": threshold, "patience": patience}).exits
    assert exits.min() >= patience - 1
    assert (replay(trace, criterion, {"threshold": threshold, "patience": patience + 1}).exits >= exits).all()
    assert (replay(trace, criterion, {"threshold": threshold * less, "patience": patience}).exits >= exits).all()
