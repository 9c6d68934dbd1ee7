"""Shallow-Deep's fallback: who answers where nobody was sure enough."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.criteria import make
from offramp.criteria.confidence import doubt
from offramp.traces.replay import replay
from offramp.traces.trace import Trace
from offramp.types import ExitOutput, Stage

MakeTrace = Callable[..., Trace]
every_kind = pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification"])


@every_kind
@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 1.01))
@settings(max_examples=40, deadline=None)
def test_equals_a_plain_loop(make_trace: MakeTrace, kind: str, seed: int, threshold: float) -> None:
    trace = make_trace(seed, kind)
    outcome = replay(trace, make("confidence_fallback", problem_type=kind), {"threshold": threshold})
    unsure = np.array([doubt(logits, trace.problem_type) for logits in trace.logits])
    for unit in range(trace.num_units):
        sure = np.flatnonzero(unsure[:, unit] < threshold)
        answering = sure[0] if len(sure) else unsure[:, unit].argmin()
        assert outcome.exits[unit] == (sure[0] if len(sure) else trace.num_exits - 1)
        best = unsure[:, unit] <= unsure[answering, unit] * (1 + 2e-5)
        assert any((outcome.answers[unit] == trace.logits[e, unit]).all() for e in np.flatnonzero(best))


@every_kind
@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 1.01))
@settings(max_examples=20, deadline=None)
def test_leaves_as_confidence_does(make_trace: MakeTrace, kind: str, seed: int, threshold: float) -> None:
    trace = make_trace(seed, kind)
    ours, plain = (
        replay(trace, make(name, problem_type=kind), {"threshold": threshold})
        for name in ("confidence_fallback", "confidence")
    )
    np.testing.assert_array_equal(ours.exits, plain.exits)
    early = ours.exits < trace.num_exits - 1
    np.testing.assert_array_equal(ours.answers[early], plain.answers[early])


def test_the_ends_of_the_knob(make_trace: MakeTrace) -> None:
    trace = make_trace(0)
    first = replay(trace, make("confidence_fallback"), {"threshold": 1.01})
    assert (first.exits == 0).all()
    np.testing.assert_array_equal(first.answers, trace.logits[0])
    never = replay(trace, make("confidence_fallback"), {"threshold": 0.0})
    assert (never.exits == trace.num_exits - 1).all()
    surest = np.array([doubt(logits, trace.problem_type) for logits in trace.logits]).argmin(axis=0)
    assert (surest < trace.num_exits - 1).any(), "or this shows nothing"
    np.testing.assert_array_equal(never.answers, trace.logits[surest, np.arange(trace.num_units)])


def test_the_earliest_of_equals_answers() -> None:
    """Whatever the last bit says; a request's cap on layers may end it at any exit."""
    criterion = make("confidence_fallback")
    first, flat = np.log(np.array([[0.42, 0.30, 0.28], [0.30, 0.35, 0.35]], dtype=np.float32))
    shifts = np.linspace(0, 20, 200, dtype=np.float32)
    again = first[::-1] + shifts[:, None]  # as sure of another class, but for rounding
    surer = again[doubt(again, "single_label_classification").argmin()]
    rows = np.stack([first, surer, flat])
    now = doubt(rows, "single_label_classification")
    assert now[1] < now[0], "or this shows nothing"
    state = criterion.start(np.zeros(1))
    for e, row in enumerate(rows):
        knobs = {"threshold": np.array([0.1])}
        decision, state = criterion.step(Stage(e, e, e + 1, e + 1), ExitOutput(row[None]), state, knobs)
        assert not decision.leave[0]
        np.testing.assert_array_equal(decision.answer[0], rows[0])
