"""What counts as agreement, and that a disagreement starts the count again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.criteria import make
from offramp.traces.replay import replay
from offramp.traces.trace import Trace
from offramp.types import ExitOutput, Stage


def first_to_fire(criterion_name: str, kind: str, logits: list[list[float]], **knobs: float) -> int | None:
    """Layer (from 1) at which one text would leave; None: at none."""
    criterion = make(criterion_name, problem_type=kind)
    values = {name: np.array([knobs.get(name, knob.default)]) for name, knob in criterion.knobs.items()}
    state = criterion.start(np.zeros(1))
    for e, row in enumerate(logits):
        output = ExitOutput(np.array([row], dtype=np.float32))
        decision, state = criterion.step(Stage(e, e, e + 1, e + 1), output, state, values)
        if decision.leave[0]:
            return e + 1
    return None


@pytest.mark.parametrize(("patience", "layer"), [(1, 2), (2, 6), (3, 7), (4, None)])
def test_a_change_of_mind_starts_the_count_again(patience: int, layer: int | None) -> None:
    classes = [0, 0, 1, 2, 2, 2, 2, 0]
    logits = [[float(c == k) for k in range(3)] for c in classes]
    assert first_to_fire("patience", "single_label_classification", logits, patience=patience) == layer


def test_labels_agree_as_a_set() -> None:
    logits = [[2.0, -1.0], [2.0, 1.0], [1.0, -1.0], [5.0, -0.1]]
    assert first_to_fire("patience", "multi_label_classification", logits, patience=1) == 4


@pytest.mark.parametrize(("patience", "layer"), [(1, 2), (2, 5)])
def test_a_jump_starts_the_count_again(patience: int, layer: int) -> None:
    numbers = [[1.0], [1.05], [2.0], [2.05], [2.0]]
    assert first_to_fire("patience_delta", "regression", numbers, delta=0.1, patience=patience) == layer


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_earliest_exit_and_full_depth(make_trace: Callable[..., Trace], seed: int) -> None:
    trace = make_trace(seed)
    for patience in range(1, trace.num_exits + 3):
        exits = replay(trace, make("patience"), {"patience": patience}).exits
        assert (exits + 1 >= min(patience + 1, trace.num_exits)).all(), "patience + 1 equal answers"
        if patience >= trace.num_exits - 1:
            assert (exits == trace.num_exits - 1).all()


@given(seed=st.integers(0, 10_000), patience=st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_no_number_moves_less_than_nothing(make_trace: Callable[..., Trace], seed: int, patience: int) -> None:
    trace = make_trace(seed, "regression")
    criterion = make("patience_delta", problem_type="regression")
    exits = replay(trace, criterion, {"delta": 0.0, "patience": patience}).exits
    assert (exits == trace.num_exits - 1).all()
