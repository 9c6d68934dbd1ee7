"""ELBERT's two stages against a plain loop, and their limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.criteria import make
from offramp.criteria.base import log_softmax
from offramp.criteria.entropy import normalised_entropy
from offramp.errors import KnobError
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

MakeTrace = Callable[..., Trace]
RULES = ("same", "rising", "steady")
every_rule = pytest.mark.parametrize("rule", RULES)
drawn = {"seed": st.integers(0, 10_000), "threshold": st.floats(0, 1.01), "window": st.integers(2, 8)}


def shows_trend(rule: str, classes: np.ndarray, tops: np.ndarray, spread: float) -> bool:
    if len(set(classes.tolist())) > 1:
        return False
    if rule == "rising":
        return bool((np.diff(tops) >= 0).all())
    return rule == "same" or bool(tops.max() - tops.min() <= np.float32(spread))


@every_rule
@given(**drawn, spread=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_equals_a_plain_loop(
    make_trace: MakeTrace, rule: str, seed: int, threshold: float, window: int, spread: float
) -> None:
    trace = make_trace(seed)
    criterion = make("window", rule=rule, spread=spread)
    exits = replay(trace, criterion, {"threshold": threshold, "window": window}).exits
    doubt = np.array([normalised_entropy(logits) for logits in trace.logits])
    tops = np.array([np.exp(log_softmax(logits).max(axis=-1)) for logits in trace.logits])
    classes = trace.logits.argmax(axis=-1)
    for unit, found in enumerate(exits):
        for e in range(trace.num_exits):
            last = slice(e + 1 - window, e + 1)
            trend = e + 1 >= window and shows_trend(rule, classes[last, unit], tops[last, unit], spread)
            if e == trace.num_exits - 1 or doubt[e, unit] < threshold or trend:
                break
        assert found == e


@every_rule
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_no_threshold_and_a_window_as_long_as_the_model_is_full_depth(
    make_trace: MakeTrace, rule: str, seed: int
) -> None:
    trace = make_trace(seed)
    for window in (trace.num_exits, trace.num_exits + 1):
        exits = replay(trace, make("window", rule=rule), {"threshold": 0.0, "window": window}).exits
        assert (exits == trace.num_exits - 1).all()


@every_rule
@given(**drawn)
@settings(max_examples=30, deadline=None)
def test_a_longer_window_or_a_lower_threshold_is_never_faster(
    make_trace: MakeTrace, rule: str, seed: int, threshold: float, window: int
) -> None:
    trace, criterion = make_trace(seed), make("window", rule=rule)
    exits = replay(trace, criterion, {"threshold": threshold, "window": window}).exits
    for slower in ({"threshold": threshold, "window": window + 1}, {"threshold": threshold / 2, "window": window}):
        assert (replay(trace, criterion, slower).exits >= exits).all()


@given(seed=st.integers(0, 10_000), window=st.integers(2, 8))
@settings(max_examples=30, deadline=None)
def test_the_rule_same_alone_is_patience(make_trace: MakeTrace, seed: int, window: int) -> None:
    trace = make_trace(seed, classes=2)
    ours = replay(trace, make("window"), {"threshold": 0.0, "window": window})
    assert ours.exits.tolist() == replay(trace, make("patience"), {"patience": window - 1}).exits.tolist()


@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 1.01))
@settings(max_examples=20, deadline=None)
def test_the_first_stage_alone_is_entropy(make_trace: MakeTrace, seed: int, threshold: float) -> None:
    trace = make_trace(seed)
    ours = replay(trace, make("window"), {"threshold": threshold, "window": 1000})
    assert ours.exits.tolist() == replay(trace, make("entropy"), {"threshold": threshold}).exits.tolist()


def test_settings_are_checked() -> None:
    with pytest.raises(KnobError, match="rule must be one of same, rising, steady"):
        make("window", rule="bias_1")
    for bad in (-0.1, 1.1, float("nan"), "wide"):
        with pytest.raises(KnobError, match="spread"):
            make("window", rule="steady", spread=bad)
