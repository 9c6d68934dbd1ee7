"""F-PABEE: patience over a true divergence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.criteria.patience import Patience
from offramp.recipes import load_recipe
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
RECIPE = load_recipe("fpabee")

MakeTrace = Callable[..., Trace]


def test_it_is_trained_as_pabee() -> None:
    pabee = load_recipe("pabee")
    assert (RECIPE.head, RECIPE.training) == (pabee.head, pabee.training)
    assert RECIPE.criteria[REGRESSION] == pabee.criteria[REGRESSION]


@pytest.mark.parametrize(("patience", "layers"), [(1, [2, 3, 2]), (2, [6, 4, 3])])
def test_the_vectors(vector_trace: Trace, patience: int, layers: list[int]) -> None:
    outcome = replay(vector_trace, RECIPE.criterion(SINGLE), {"threshold": 0.018, "patience": patience})
    assert (outcome.exits + 1).tolist() == layers
    # The released quantity, the entropy of the mean, is far above: with it nobody would leave.
    imitated = RECIPE.changed({"criterion.divergence": "mean_entropy"}).criterion(SINGLE)
    assert (replay(vector_trace, imitated, {"threshold": 0.018, "patience": patience}).exits == 5).all()


@pytest.mark.parametrize("kind", [SINGLE, MULTI])
def test_nobody_leaves_at_0_and_equal_distributions_leave_at_once(trace_of: MakeTrace, kind: Any) -> None:
    same = trace_of(np.repeat(np.random.default_rng(0).normal(size=(1, 50, 3)), 6, axis=0), kind)
    criterion = RECIPE.criterion(kind)
    assert (replay(same, criterion, {"threshold": 0.0}).exits == 5).all()
    for patience in (1, 2, 5):
        assert (replay(same, criterion, {"threshold": 1e-9, "patience": patience}).exits == patience).all()


@given(
    answers=st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=8),
    patience=st.integers(1, 5),
    threshold=st.sampled_from([0.001, 0.02, 0.3, 0.69]),
)
@settings(deadline=None, max_examples=60)
def test_on_certain_answers_it_is_pabee(
    trace_of: MakeTrace, answers: list[list[int]], patience: int, threshold: float
) -> None:
    trace = trace_of(np.eye(3)[np.array(answers)].transpose(1, 0, 2) * 100)
    found = replay(trace, RECIPE.criterion(SINGLE), {"threshold": threshold, "patience": patience})
    np.testing.assert_array_equal(found.exits, replay(trace, Patience(), {"patience": patience}).exits)
