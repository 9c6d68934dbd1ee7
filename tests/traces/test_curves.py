"""Curves against replay, tallies against ``offramp.tasks``, baselines against loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.calibration.sweep import candidates
from offramp.criteria import Criterion, Scored, make
from offramp.errors import DataError, KnobError, UnsupportedError
from offramp.tasks import make_task
from offramp.traces.curves import (
    Curve,
    area,
    bootstrap_interval,
    curve,
    full_depth,
    knob_grid,
    measure,
    oracle,
    resamples,
    score_at_speedup,
    slowest_knobs,
    static_exits,
    thresholds,
)
from offramp.traces.replay import replay, running_minimum, scores
from offramp.traces.tally import make_tally
from offramp.traces.trace import Trace

KINDS = ("single_label_classification", "multi_label_classification", "regression")


def example(
    kind: str = "single_label_classification", *, units: int = 80, exits: int = 5, classes: int = 3, seed: int = 0
) -> Trace:
    """Exits that get better with depth, and are surer where they are right."""
    rng = np.random.default_rng(seed)
    width = 1 if kind == "regression" else classes
    if kind == "single_label_classification":
        labels = rng.integers(width, size=units)
        truth = np.eye(width)[labels]
    elif kind == "multi_label_classification":
        labels = rng.random((units, width)) > 0.6
        truth = 2.0 * labels - 1
    else:
        labels = rng.normal(3, 2, size=units).astype(np.float32)
        truth = labels[:, None]
    ease = rng.random((units, 1))
    logits = [truth * (e + 1) * ease + rng.normal(size=(units, width)) * (1.5 - 0.2 * e) for e in range(exits)]
    distances = rng.gamma(2, size=(exits, units, width)).astype(np.float32)
    distances[-1] = np.nan

    def share(rng: np.random.Generator) -> np.ndarray:
        return rng.random((exits, units)).astype(np.float32)

    return Trace(
        logits=np.array(logits, dtype=np.float32),
        layers=np.cumsum(rng.integers(1, 3, size=exits)),
        lengths=rng.integers(1, 40, size=units),
        problem_type=kind,  # type: ignore[arg-type]
        id2label={c: str(c) for c in range(width)},
        extras={"distances": distances, "gate": share(rng), "null_space": share(rng)},
        labels=labels,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 4])
@given(seed=st.integers(0, 10_000), units=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_sums_give_the_metrics_of_the_task(kind: str, classes: int, seed: int, units: int) -> None:
    trace = example(kind, units=units, classes=classes, seed=seed)
    task, tally = make_task(kind, trace.id2label), make_tally(trace)
    for logits in trace.logits:
        expected = task.metrics(task.answers(logits), trace.labels_known())
        measured = tally.measure(logits)
        summed = tally.metrics(tally.features(logits).sum(axis=0))
        assert set(tally.mains) <= set(task.mains)
        for name, value in measured.items():
            assert value == pytest.approx(expected[name], abs=1e-6), name
            assert summed[name] == pytest.approx(value, abs=1e-12)
            means = tally.means(logits, name)
            assert means is None or means.mean() == pytest.approx(value, abs=1e-9)


def test_constant_answers_correlate_with_nothing() -> None:
    trace = example("regression")
    constant = replace(trace, logits=np.full_like(trace.logits, 2.7))
    assert full_depth(constant)["pearson"] == 0
    one_class = replace(example(), logits=np.broadcast_to(np.float32([1, 0, 0]), (5, 80, 3)))
    assert full_depth(one_class)["matthews"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_point_of_a_curve_is_what_replay_gives(kind: str) -> None:
    trace = example(kind)
    for name, grid in candidates(trace):
        for setting in grid[:2]:
            criterion = make(name, **setting)
            points = curve(trace, criterion, max_points=60)
            assert len(points.score) >= 2
            for p in range(len(points.score)):
                outcome = replay(trace, criterion, {n: float(v[p]) for n, v in points.knobs.items()})
                expected = measure(trace, outcome)
                assert points.layer_speedup[p] == pytest.approx(expected["layer_speedup"])
                assert points.token_layer_fraction[p] == pytest.approx(expected["token_layer_fraction"])
                for metric, values in points.metrics.items():
                    assert values[p] == pytest.approx(expected[metric], abs=1e-9)
            assert (np.diff(points.layer_fraction) <= 1e-12).all(), "from slow to fast"


def test_a_threshold_of_zero_lets_nobody_leave_however_sure() -> None:
    """Doubt underflows to exactly 0, which is not below 0."""
    trace = example()
    certain = replace(trace, logits=trace.logits * 1e4)
    criterion = make("entropy")
    assert isinstance(criterion, Scored)
    assert (scores(certain, criterion) == 0).any()
    points = curve(certain, criterion)
    assert points.knobs["threshold"][0] == 0
    assert points.layer_fraction[0] == 1


def test_a_whole_curve_misses_nothing() -> None:
    """Without thinning there is a point for every outcome that any threshold can give."""
    trace = example(units=25)
    criterion = make("entropy")
    points = curve(trace, criterion, max_points=10_000)
    have = {(round(f, 9), round(s, 9)) for f, s in zip(points.layer_fraction, points.score, strict=True)}
    for threshold in np.linspace(0, 1.01, 3000):
        found = measure(trace, replay(trace, criterion, {"threshold": float(threshold)}))
        assert (round(found["layer_fraction"], 9), round(found["accuracy"], 9)) in have


def test_ends_of_a_curve() -> None:
    trace = example()
    points = curve(trace, make("entropy"))
    assert points.layer_fraction[0] == 1
    assert points.score[0] == full_depth(trace)["accuracy"]
    assert points.layer_fraction[-1] == pytest.approx(trace.layers[0] / trace.num_layers)
    assert points.score[-1] == pytest.approx(static_exits(trace)[0]["accuracy"])


@given(
    values=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60),
    max_points=st.integers(3, 70),
)
@settings(max_examples=200, deadline=None)
def test_thresholds_lie_between_observed_values(values: list[float], max_points: int) -> None:
    knob = make("entropy").knobs["threshold"]
    observed = np.array(values)
    found = thresholds(observed, knob, max_points=max_points)
    assert len(found) <= max_points
    assert (np.diff(found) > 0).all()
    assert found[0] == knob.low
    assert (found[-1] > observed).all()
    assert not np.isin(found[1:], observed).any()
    assert (found[1:-1].astype(np.float32) == found[1:-1]).all(), "a request may hold single precision"


def test_thresholds_between_the_next_numbers_there_are() -> None:
    """Between two neighbouring float32 there is no threshold, and none is made up."""
    near = np.float32(0.5)
    observed = np.array([near, np.nextafter(near, np.float32(1))], dtype=np.float64)
    assert len(thresholds(observed, make("entropy").knobs["threshold"])) == 2


def test_thinned_thresholds_spread_over_the_units() -> None:
    observed = np.random.default_rng(0).beta(0.3, 3, size=5000)  # crowded near 0
    found = thresholds(observed, make("entropy").knobs["threshold"], max_points=52)
    between = np.histogram(observed, bins=found)[0]
    assert between.max() < 2.5 * 5000 / 50


def not_scored(trace: Trace) -> list[Criterion]:
    rules = [make(name, **grid[0]) for name, grid in candidates(trace)]
    return [rule for rule in rules if not isinstance(rule, Scored)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_criterion_that_is_not_scored_has_a_grid_from_full_depth_to_its_fastest(kind: str) -> None:
    trace = example(kind)
    for criterion in not_scored(trace):
        grid = knob_grid(trace, criterion)
        assert len(grid) <= 600
        assert len({tuple(point.items()) for point in grid}) == len(grid)
        assert all(set(point) == set(criterion.knobs) for point in grid)
        exits = [replay(trace, criterion, dict(point)).exits for point in grid]
        assert max(found.min() for found in exits) == trace.num_exits - 1, f"{criterion.name} at its slowest"
        ends = {name: knob.high if knob.faster == "up" else knob.low for name, knob in criterion.knobs.items()}
        fastest = replay(trace, criterion, {name: min(value, 1e9) for name, value in ends.items()})
        assert min(found.max() for found in exits) == fastest.exits.max(), f"{criterion.name} at its fastest"
        means = np.unique([found.mean() for found in exits])
        assert len(means) >= min(len(grid), trace.num_exits - 1), f"{criterion.name} has steps in between"


@pytest.mark.parametrize(("name", "most"), [("confidence_fallback", 100), ("divergence", 60), ("window", 60)])
def test_a_grid_takes_midpoints_of_what_is_compared(name: str, most: int) -> None:
    trace, criterion = example(units=400), make(name)
    grid = knob_grid(trace, criterion, max_points=most if name == "confidence_fallback" else 600)
    values = sorted({point["threshold"] for point in grid})
    assert 40 <= len(values) <= most
    numbers, state = [], criterion.start(np.zeros(400))
    knobs = {name: np.full(400, knob.default) for name, knob in criterion.knobs.items()}
    for e, stage in enumerate(trace.stages[:-1]):
        numbers.append(criterion.compared(stage, trace.output(e), state))
        _, state = criterion.step(stage, trace.output(e), state, knobs)
    observed = np.array(numbers)[np.isfinite(numbers)]
    assert not np.isin(values[1:], observed).any()
    between = np.histogram(observed, bins=values)[0]
    assert between.sum() == observed.size
    assert between.max() < 3 * observed.size / len(values), "spread over the units"


def test_other_criteria_are_replayed_on_a_grid() -> None:
    trace = example("regression")
    grid = knob_grid(trace, make("patience_delta"), max_points=50)
    moved = np.abs(np.diff(trace.logits, axis=0))
    assert {point["patience"] for point in grid} == set(range(1, trace.num_exits))
    assert [point["layers"] for point in knob_grid(trace, make("depth", problem_type="regression"))] == [
        float(layer) for layer in trace.layers
    ]
    assert {point["window"] for point in knob_grid(example(), make("window"))} == set(range(2, trace.num_exits + 1))
    deltas = sorted({point["delta"] for point in grid})
    assert deltas[0] == 0
    assert deltas[-1] > moved.max()
    points = curve(trace, make("patience_delta"))
    assert (np.diff(points.score) < 0).all(), "of several knobs only what nothing faster beats is kept"


def test_static_exits_and_oracle() -> None:
    trace = example()
    labels = trace.labels_known()
    for one, logits, layer in zip(static_exits(trace), trace.logits, trace.layers, strict=True):
        assert one["accuracy"] == np.mean(logits.argmax(-1) == labels)
        assert one["layer"] == layer
        assert one["layer_speedup"] == trace.num_layers / layer
    exits = oracle(trace).exits
    for unit in range(trace.num_units):
        right = [e for e in range(trace.num_exits) if trace.logits[e, unit].argmax() == labels[unit]]
        assert exits[unit] == (right[0] if right else trace.num_exits - 1)
    with pytest.raises(UnsupportedError, match="oracle"):
        oracle(example("regression"))


def line(fraction: list[float], score: list[float], first: float = 0.0, last: float = 1.0) -> Curve:
    values = np.array(fraction)
    return Curve(
        criterion="entropy",
        knobs={"threshold": np.arange(len(fraction), dtype=float)},
        layer_fraction=values,
        token_layer_fraction=values,
        metrics={"accuracy": np.array(score)},
        metric="accuracy",
        ends=((0.25, first), (1.0, last)),
    )


def test_the_slowest_that_is_fast_enough() -> None:
    points = line([1.0, 0.5, 0.4, 0.25], [0.9, 0.8, 0.85, 0.4])
    assert [slowest_knobs(points, speedup)["threshold"] for speedup in (1, 1.2, 2, 2.1, 4)] == [0, 1, 1, 2, 3]
    with pytest.raises(KnobError, match=r"no point of entropy reaches 5x: the fastest 4\.00x"):
        slowest_knobs(points, 5)


def test_score_at_a_speedup() -> None:
    points = line([1.0, 0.5, 0.25], [0.9, 0.8, 0.4])
    assert score_at_speedup(points, 1) == pytest.approx(0.9)
    assert score_at_speedup(points, 2) == pytest.approx(0.8)
    assert score_at_speedup(points, 1 / 0.75) == pytest.approx(0.85)
    assert score_at_speedup(points, 4) == pytest.approx(0.4)
    assert score_at_speedup(points, 4.1) is None
    assert score_at_speedup(line([1.0, 0.5, 0.5], [0.9, 0.6, 0.8]), 2) == pytest.approx(0.8), "the best of equals"


def test_area() -> None:
    assert area(line([1.0, 0.25], [0.9, 0.9], 0.9, 0.9)) == pytest.approx(0.9)
    assert area(line([1.0, 0.25], [1.0, 0.0])) == pytest.approx(0.5)
    # A criterion that reaches only .5 is joined to the static first exit.
    reached = line([1.0, 0.5], [1.0, 1.0], first=0.0)
    assert area(reached) == pytest.approx((0.5 * 1 + 0.25 * 0.5) / 0.75)


def test_bootstrap() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        values = rng.random(120) < 0.7
        low, high = bootstrap_interval(values, number=300, seed=seed)
        covered += low <= 0.7 <= high
    assert 0.88 <= covered / 200 <= 0.99
    assert bootstrap_interval(np.ones(10)) == (1, 1)
    assert bootstrap_interval(np.arange(9.0), seed=3) == bootstrap_interval(np.arange(9.0), seed=3)


def test_resamples_draw_as_many_rows_as_there_are() -> None:
    counts = np.concatenate(list(resamples(3_000_000, 3, seed=0)))
    assert counts.shape == (3, 3_000_000)
    assert (counts.sum(axis=1, dtype=np.float64) == 3_000_000).all()
    assert not np.array_equal(counts[0], counts[1])


def test_what_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="label"):
        curve(replace(example(), labels=None), make("entropy"))
    with pytest.raises(DataError, match="empty"):
        curve(example().select(np.zeros(80, dtype=bool)), make("entropy"))
    with pytest.raises(KnobError, match="accuracy or f1 or matthews"):
        curve(example(), make("entropy"), metric="bleu")


def test_a_single_exit() -> None:
    trace = example(exits=1)
    points = curve(trace, make("entropy"))
    assert (points.layer_speedup == 1).all()
    assert area(points) == full_depth(trace)["accuracy"]
    criterion = make("entropy")
    assert isinstance(criterion, Scored)
    assert running_minimum(scores(trace, criterion)).shape == (0, 80)
