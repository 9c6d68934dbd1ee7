"""Candidates: what the fast table says is what replay says, and the order in which they are tested."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.calibration.grid import candidates, in_order, told, variants
from offramp.calibration.losses import make_risk
from offramp.calibration.sweep import LAMBDAS
from offramp.calibration.thresholds import thresholds_at
from offramp.criteria import make
from offramp.criteria.per_exit import PerExit
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

MakeTrace = Callable[..., Trace]


@pytest.mark.parametrize("name", ["entropy", "edr", "patience", "patience_entropy", "learned_stopping", "per_exit"])
@pytest.mark.parametrize("about", ["disagreement", "error"])
@pytest.mark.parametrize("cap_depth", [False, True])
def test_candidates_by_replay(example: MakeTrace, name: str, about: str, cap_depth: bool) -> None:
    tuning, other = example(units=80), example(units=50, seed=1)
    risk = make_risk(about, other)
    found = candidates(tuning, variants(tuning, make(name), make_risk(about, tuning)), max_points=6,
                       cap_depth=cap_depth)  # fmt: skip
    chosen = found.take(np.random.default_rng(0).permutation(len(found))[:40])
    sums, layers = chosen.run(other, risk)
    losses = chosen.losses(other, risk)
    for place in range(len(chosen)):
        outcome = replay(other, chosen.rules[chosen.rule[place]], dict(chosen.knobs[place]))
        np.testing.assert_array_equal(losses[place], risk.of(other, outcome.answers))
        assert sums[place] == losses[place].sum()
        assert layers[place] == other.layers[outcome.exits].mean()


def test_every_early_exit_is_tried_as_the_last_one(example: MakeTrace) -> None:
    tuning = example(units=80)
    rules = [make("entropy")]
    whole, more = (candidates(tuning, rules, max_points=200, cap_depth=cap) for cap in (False, True))
    caps = [knobs.get("max_layers") for knobs in more.knobs]
    assert set(caps) == {None, 1.0, 2.0, 3.0}
    assert len({caps.count(cap) for cap in caps}) == 1  # as many thresholds with each
    assert len(whole) < len(more) <= 200 + 4
    static = [place for place, knobs in enumerate(more.knobs) if knobs == {"threshold": 0.0, "max_layers": 2.0}]
    layers = more.take(np.array(static)).run(tuning, make_risk("disagreement", tuning))[1]
    assert layers.tolist() == [2.0]


def test_what_is_tried(example: MakeTrace) -> None:
    trace = example(units=80)
    risk = make_risk("disagreement", trace)
    assert [rule.lam for rule in variants(trace, make("edr"), risk)] == list(LAMBDAS)  # type: ignore[attr-defined]
    assert variants(trace, make("edr", lam=3.0), risk, fixed=["lam"]) == [make("edr", lam=3.0)]
    plain, fitted = variants(trace, make("confidence"), risk)
    assert plain == make("confidence")
    assert len(fitted.temperatures) == 4  # type: ignore[attr-defined]
    scales = [rule.scale for rule in variants(trace, make("per_exit"), risk) if isinstance(rule, PerExit)]
    assert len(set(scales)) == len(scales) > 2


def test_without_labels_the_full_model_tells(example: MakeTrace) -> None:
    trace = example()
    assert told(trace) is trace
    from dataclasses import replace

    assert (told(replace(trace, labels=None)).labels == trace.logits[-1].argmax(-1)).all()


points = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 8)), min_size=1, max_size=25)


@given(points)
@settings(max_examples=200, deadline=None)
def test_the_order_by_its_definition(given: list[tuple[int, int]]) -> None:
    losses, layers = (np.array(column, dtype=float) for column in zip(*given, strict=True))
    order = in_order(losses, layers)
    assert (np.diff(layers[order]) < 0).all()
    assert (np.diff(losses[order]) >= 0).all()
    for place, (lost, executed) in enumerate(given):
        beaten = any(other < lost and fast < executed for other, fast in given) or any(
            other < lost and fast == executed for other, fast in given
        )
        same = any(losses[kept] == lost and layers[kept] == executed for kept in order)
        assert same != beaten, place


@pytest.mark.parametrize("price", [0.001, 0.03, 0.3])
def test_thresholds_by_exit_by_trying_all(price: float) -> None:
    """From the last exit to the first: no threshold on a fine grid costs less than the one that was found."""
    rng = np.random.default_rng(0)
    doubt, losses = rng.random((3, 12)), (rng.random((3, 12)) < [[0.4], [0.3], [0.1]]).astype(float)
    layers = np.array([2.0, 3.0, 6.0])
    found = thresholds_at(doubt, losses, layers, price)
    value = losses[-1]
    for e in (1, 0):
        go_on = value + price * (layers[e + 1] - layers[e])
        costs = [np.where(doubt[e] < t, losses[e], go_on).sum() for t in np.linspace(0, 1.5, 4000)]
        mine = np.where(doubt[e] < found[e], losses[e], go_on)
        assert mine.sum() == pytest.approx(min(costs))
        value = mine
