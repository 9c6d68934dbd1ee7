"""Exits that are worth their cost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.criteria.confidence import Confidence
from offramp.criteria.entropy import Entropy
from offramp.criteria.learned_stopping import LearnedStopping
from offramp.criteria.patience import Patience
from offramp.criteria.per_exit import PerExit
from offramp.errors import KnobError
from offramp.runtimes.export.merge import EXIT_COST, chosen_exits, useful_exits
from offramp.traces.replay import replay
from offramp.traces.trace import Trace


def trace_of(sureness: np.ndarray) -> Trace:
    """[E, U] log-odds of class 0."""
    logits = np.stack([sureness, np.zeros_like(sureness)], axis=-1).astype(np.float32)
    exits, units = sureness.shape
    return Trace(
        logits=logits,
        layers=np.arange(1, exits + 1),
        lengths=np.full(units, 5),
        problem_type="single_label_classification",
        id2label={0: "a", 1: "b"},
    )


def test_an_exit_that_nobody_leaves_at_goes() -> None:
    sure = np.zeros((4, 100))
    sure[1, :50] = 9  # half leave after layer 2
    sure[2, :50] = 9
    assert useful_exits(trace_of(sure), Confidence(), {"threshold": 0.1}) == [1, 3]


def test_where_nobody_leaves_only_the_last_stays() -> None:
    assert useful_exits(trace_of(np.zeros((3, 10))), Entropy(), {"threshold": 0.1}) == [2]


def test_exits_beyond_the_last_that_anybody_reaches_go() -> None:
    sure = np.zeros((5, 100))
    sure[1, :50] = 9  # half leave after layer 2, all others after layer 3 without being sure
    assert useful_exits(trace_of(sure), Confidence(), {"threshold": 0.1, "max_layers": 3}) == [1, 2, 4]


def test_where_everybody_leaves_somewhere_all_stay() -> None:
    sure = np.zeros((3, 90))
    for e in range(3):
        sure[e, 30 * e : 30 * (e + 1)] = 9
    assert useful_exits(trace_of(sure), Entropy(), {"threshold": 0.1}) == [0, 1, 2]


@pytest.mark.parametrize(
    ("criterion", "knobs"),
    [
        (Patience(), {"patience": 1}),
        (Entropy(scale=(1.0, 2.0, 1.0)), {"threshold": 0.1}),
        (Confidence(temperatures=(1.0, 2.0, 1.0)), {"threshold": 0.1}),
        (LearnedStopping(), {"threshold": 0.1}),
        (PerExit(scale=(1.0, 2.0, 1.0)), {"threshold": 0.1}),
    ],
)
def test_whoever_goes_by_the_exits_passed_keeps_them_all(criterion, knobs) -> None:
    assert criterion.by_exit
    assert useful_exits(trace_of(np.zeros((3, 10))), criterion, knobs) == [0, 1, 2]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.floats(0.05, 0.9))
def test_it_costs_no_more_than_all_exits_and_no_single_one_is_missed(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    trace = trace_of(rng.normal(0, 1, (4, 30)) * np.arange(1, 5)[:, None])
    rule, knobs = Entropy(), {"threshold": threshold}

    def cost(exits) -> float:
        left = replay(trace.at_exits(exits), rule, knobs).exits
        return float((trace.layers[list(exits)][left] + EXIT_COST * (left + 1)).mean())

    kept = useful_exits(trace, rule, knobs)
    assert kept[-1] == 3
    assert cost(kept) <= cost(range(4)) + 1e-12
    fewer = [exits for n in range(len(kept)) for exits in itertools.combinations(kept[:-1], n) if n == len(kept) - 2]
    assert all(cost([*exits, 3]) >= cost(kept) - 1e-12 for exits in fewer)


def test_exits_by_layer() -> None:
    assert chosen_exits([1, 2, 4, 6], [2]) == [1, 3]
    assert chosen_exits([1, 2, 4, 6], [6, 4]) == [2, 3]
    assert chosen_exits([1, 2, 4, 6], []) == [3]
    with pytest.raises(KnobError, match="no exit after layer 3: it has them after 1, 2, 4, 6"):
        chosen_exits([1, 2, 4, 6], [3])


def test_a_trace_at_some_exits() -> None:
    trace = trace_of(np.arange(12.0).reshape(4, 3))
    few = trace.at_exits([1, 3])
    assert few.layers.tolist() == [2, 4]
    assert np.array_equal(few.logits, trace.logits[[1, 3]])
    assert [stage.first_layer for stage in few.stages] == [0, 2]
