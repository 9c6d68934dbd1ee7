"""Replay against its slow twin: one unit at a time, in a plain loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.criteria import Criterion, Scored, available, make
from offramp.errors import DataError, KnobError, UnsupportedError
from offramp.traces.replay import cap_exits, exits_at, replay, scores
from offramp.traces.trace import Trace
from offramp.types import ExitOutput, ProblemType

CASES = [(name, kind) for name, criterion in available().items() for kind in sorted(criterion.serves)]

VALUES = st.one_of(
    st.sampled_from([-1e4, -1.0, 0.0, 0.5, 1.0, 1e4]),  # ties and extremes
    st.floats(-8, 8, width=32),
)


@st.composite
def traces(draw: st.DrawFn, kind: ProblemType) -> Trace:
    exits, units = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    classes = 1 if kind == "regression" else draw(st.integers(2, 5))
    shape = (exits, units, classes)
    numbers = draw(st.lists(VALUES, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    distances = np.abs(np.roll(numbers, 3)).reshape(shape).astype(np.float32)
    share = 1 / (1 + distances[:, :, 0])
    extras = {"distances": distances, "gate": share, "null_space": 1 - share}
    if draw(st.booleans()):
        extras = {name: np.concatenate([v[:-1], np.full_like(v[-1:], np.nan)]) for name, v in extras.items()}
    layers = np.cumsum(draw(st.lists(st.integers(1, 3), min_size=exits, max_size=exits)))
    return Trace(
        logits=np.array(numbers, dtype=np.float32).reshape(shape),
        layers=layers,
        lengths=np.ones(units, dtype=np.int64),
        problem_type=kind,
        id2label={c: str(c) for c in range(classes)},
        extras=extras,
    )


def slow(trace: Trace, criterion: Criterion, knobs: dict[str, np.ndarray]) -> tuple[list[int], np.ndarray]:
    exits, answers = [], np.empty(trace.logits.shape[1:], dtype=np.float32)
    for unit in range(trace.num_units):
        state = criterion.start(np.zeros(1))
        for e, stage in enumerate(trace.stages):
            if stage.is_last and not criterion.needs <= trace.gives(e):
                exits.append(e)
                answers[unit] = trace.logits[e, unit]
                break
            one = slice(unit, unit + 1)
            output = ExitOutput(trace.logits[e, one], {n: v[e, one] for n, v in trace.extras.items()})
            decision, state = criterion.step(stage, output, state, {n: v[one] for n, v in knobs.items()})
            if decision.leave[0] or stage.is_last or stage.layers >= knobs["max_layers"][unit]:
                exits.append(e)
                answers[unit] = decision.answer[0]
                break
    return exits, answers


@pytest.mark.parametrize(("name", "kind"), CASES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_equals_one_unit_at_a_time(name: str, kind: ProblemType, data: st.DataObject) -> None:
    trace = data.draw(traces(kind))
    criterion = make(name, problem_type=kind)
    knobs = {}
    for knob_name, knob in criterion.knobs.items():
        high = min(knob.high, 8.0)
        value = st.integers(int(knob.low), int(high)) if knob.integer else st.floats(knob.low, high)
        drawn = data.draw(st.lists(value, min_size=trace.num_units, max_size=trace.num_units))
        knobs[knob_name] = np.array(drawn, dtype=np.float64)
    caps = st.integers(1, int(trace.layers[-1]) + 1)
    drawn = data.draw(st.lists(caps, min_size=trace.num_units, max_size=trace.num_units))
    knobs["max_layers"] = np.array(drawn, dtype=np.float64)
    assert cap_exits(trace, knobs["max_layers"]).tolist() == [
        next((e for e, layer in enumerate(trace.layers) if layer >= cap), trace.num_exits - 1) for cap in drawn
    ]
    outcome = replay(trace, criterion, knobs)
    exits, answers = slow(trace, criterion, knobs)
    assert outcome.exits.tolist() == exits
    np.testing.assert_array_equal(outcome.answers, answers)


@pytest.mark.parametrize(("name", "kind"), [c for c in CASES if issubclass(available()[c[0]], Scored)])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_scored_at_many_thresholds_equals_replay(name: str, kind: ProblemType, data: st.DataObject) -> None:
    trace = data.draw(traces(kind))
    criterion = make(name, problem_type=kind)
    assert isinstance(criterion, Scored)
    doubt = scores(trace, criterion)
    knob = criterion.knobs["threshold"]
    # Observed values are thresholds too: `<` must mean the same on both paths.
    observed = [float(v) for v in np.unique(doubt[:-1]) if knob.low <= v <= knob.high]
    values = np.array([0.0, 0.1, 0.5, 0.9, knob.high, *observed])
    found = exits_at(doubt, values)
    for threshold, exits in zip(values, found, strict=True):
        assert exits.tolist() == replay(trace, criterion, {"threshold": threshold}).exits.tolist()


@pytest.fixture
def trace() -> Trace:
    rng = np.random.default_rng(0)
    return Trace(
        logits=rng.normal(size=(3, 4, 2)).astype(np.float32),
        layers=np.arange(1, 4),
        lengths=np.ones(4, dtype=np.int64),
        problem_type="single_label_classification",
        id2label={0: "a", 1: "b"},
    )


def test_knobs_left_out_have_their_defaults(trace: Trace) -> None:
    default = make("entropy").knobs["threshold"].default
    assert (
        replay(trace, make("entropy"), {}).exits == replay(trace, make("entropy"), {"threshold": default}).exits
    ).all()


def test_bad_knobs(trace: Trace) -> None:
    with pytest.raises(KnobError, match="patience"):
        replay(trace, make("entropy"), {"patience": 2})
    for bad in (-1.0, 7.0, float("nan")):
        with pytest.raises(KnobError, match="threshold"):
            replay(trace, make("entropy"), {"threshold": bad})
    with pytest.raises(KnobError, match="whole"):
        replay(trace, make("patience"), {"patience": np.array([1, 2, 2.5, 3])})
    with pytest.raises(DataError, match="4 units"):
        replay(trace, make("entropy"), {"threshold": np.array([0.1, 0.2])})


def test_a_criterion_that_does_not_fit(trace: Trace) -> None:
    with pytest.raises(UnsupportedError, match="distances"):
        replay(trace, make("edr"), {})
    with pytest.raises(UnsupportedError, match="multi_label_classification"):
        replay(trace, make("entropy", problem_type="multi_label_classification"), {})


def test_scores_are_nan_where_the_last_exit_lacks_what_they_need(trace: Trace) -> None:
    distances = np.ones((3, 4, 2), dtype=np.float32)
    distances[-1] = np.nan
    with_distances = replace(trace, extras={"distances": distances})
    criterion = make("edr")
    assert isinstance(criterion, Scored)
    found = scores(with_distances, criterion)
    assert np.isfinite(found[:-1]).all()
    assert np.isnan(found[-1]).all()
    assert exits_at(found, np.array([0.0])).tolist() == [[2] * 4]


def test_no_units(trace: Trace) -> None:
    outcome = replay(trace.select(np.zeros(4, dtype=bool)), make("patience"), {})
    assert outcome.exits.shape == (0,)
    assert outcome.answers.shape == (0, 2)
