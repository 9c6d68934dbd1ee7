"""Choosing how fast to go: what is lost is told of rows that nothing was chosen on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.bench.exit_choice import THRESHOLDS, Costs, _choose, _halves, _sets, _Way, _ways, choose_exits
from offramp.criteria import make
from offramp.errors import DataError
from offramp.traces.replay import replay
from offramp.traces.trace import Trace


def trace(units: int = 400, *, exits: int = 4, seed: int = 0, labels: bool = True) -> Trace:
    """Exits that are surer, and right more often, the deeper they stand; a text that is easy is so everywhere."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=units)
    ease = rng.normal(size=units)
    logits = np.zeros((exits, units, 2), dtype=np.float32)
    for exit_ in range(exits):
        margin = np.abs(ease) + 0.3 * exit_ + rng.normal(size=units) * 0.5
        logits[exit_, np.arange(units), truth] = margin
        logits[exit_, np.arange(units), 1 - truth] = -margin
    return Trace(
        logits=logits,
        layers=np.arange(1, exits + 1),
        lengths=rng.integers(3, 30, size=units),
        problem_type="single_label_classification",
        id2label={0: "no", 1: "yes"},
        labels=truth if labels else None,
    )


def full_depth(given: Trace) -> np.ndarray:
    return given.logits[-1].argmax(axis=-1) == given.labels


def test_a_generous_allowance_is_used_and_a_model_that_is_never_right_early_stays() -> None:
    given = trace()
    fast = choose_exits(given, full_depth(given), [make("entropy")], Costs(1.0, 0.05), max_lost=5)
    assert fast.point is not None
    assert fast.held_out["layer_speedup"] > 1.5
    hopeless = given.logits.copy()
    hopeless[:-1] *= -1  # sure, and wrong
    bad = Trace(**{**given.__dict__, "logits": hopeless})
    slow = choose_exits(bad, full_depth(bad), [make("entropy")], Costs(1.0, 0.05), max_lost=0.5)
    assert slow.point is None
    assert slow.layers == ()
    assert slow.held_out["layer_speedup"] == pytest.approx(1.0)
    assert slow.held_out["lost"] == pytest.approx(0.0, abs=1e-4)


def told_and_true(draws: int, max_lost: float) -> tuple[np.ndarray, np.ndarray]:
    """Points lost as told, and those that the chosen points lose on very many other texts."""
    told, true = [], []
    others = trace(20_000, seed=1000)
    for seed in range(draws):
        some = trace(400, seed=seed)
        choice = choose_exits(
            some, full_depth(some), [make("entropy")], Costs(1.0, 0.0), max_lost=max_lost, splits=10, seed=seed
        )  # fmt: skip
        told.append(choice.held_out["lost"])
        knobs = {"threshold": 0.0} if choice.point is None else choice.point["knobs"]
        served = others.at_exits([*(layer - 1 for layer in choice.layers), others.num_exits - 1])
        answers = replay(served, make("entropy"), knobs).answers.argmax(axis=-1)
        true.append(100 * (full_depth(others).mean() - (answers == others.labels).mean()))
    return np.array(told), np.array(true)


def error(values: np.ndarray) -> float:
    return float(np.std(values) / np.sqrt(len(values)))


def test_what_is_told_is_within_what_was_allowed_and_not_too_kind() -> None:
    told, true = told_and_true(25, 2.0)
    assert told.mean() <= 2.0 + 2 * error(told)
    assert (true - told).mean() <= 2 * error(true - told)
    assert true.mean() <= 2.0 + 2 * error(true)


def test_a_chooser_that_looks_at_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: whoever lets everybody leave at once loses more."""

    def first_exit_for_all(ways: Any, reference: Any, halves: np.ndarray, *given: Any) -> list[tuple[int, int]]:
        return [(1, 0)] * len(halves)

    monkeypatch.setattr("offramp.bench.exit_choice._choose", first_exit_for_all)
    told, _ = told_and_true(3, 50.0)
    monkeypatch.undo()
    assert told.mean() > 2.0


def chosen_by_one_half(
    ways: list[_Way], reference: np.ndarray, rows: np.ndarray, max_lost: float, standard_errors: float
) -> tuple[int, int]:
    """What ``_choose`` does for all halves at once, one at a time."""
    best, least = (0, 0), float(ways[0].cost[0, rows].mean())
    for number, way in enumerate(ways[1:], 1):
        for place in range(len(way.cost)):
            lost = 100 * (reference[rows].astype(float) - way.right[place, rows])
            if lost.mean() + standard_errors * lost.std() / np.sqrt(len(lost)) > max_lost + 1e-6:
                break
            if (cost := float(way.cost[place, rows].mean(dtype=float))) < least - 1e-9:
                best, least = (number, place), cost
    return best


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), max_lost=st.floats(0, 6), errors=st.sampled_from([0.0, 1.0]))
def test_halves_choose_together_as_each_would_alone(seed: int, max_lost: float, errors: float) -> None:
    some = trace(150, seed=seed)
    ways, halves = _ways(some, [make("entropy")], Costs(1.0, 0.05), 150), _halves(150, 4, seed)
    together = _choose(ways, full_depth(some), halves, max_lost, errors)
    for half, (number, place) in zip(halves, together, strict=True):
        other, there = chosen_by_one_half(ways, full_depth(some), half, max_lost, errors)
        assert ways[number].cost[place, half].mean() == pytest.approx(ways[other].cost[there, half].mean(), rel=1e-5)


def test_texts_that_are_chosen_on_only_are_never_scored() -> None:
    """On them the first exit is always right, and they are many; the others' first exit never is."""
    scored, more = trace(100, seed=1), trace(4000, seed=2)
    wrong, right = scored.logits.copy(), more.logits.copy()
    wrong[0], right[0] = -wrong[-1], 20 * np.eye(2)[more.labels_known()] - 10
    wrong[0] *= 10  # sure of it, too
    both = replace(
        trace(4100), logits=np.concatenate([wrong, right], axis=1),
        labels=np.concatenate([scored.labels_known(), more.labels_known()]),
    )  # fmt: skip
    choice = choose_exits(both, full_depth(both), [make("entropy")], Costs(1.0, 0.0), max_lost=5, splits=4, scored=100)
    assert choice.held_out["layer_speedup"] == pytest.approx(4)
    assert choice.held_out["lost"] > 50


def test_more_texts_to_choose_on_are_worth_layers_and_cost_no_accuracy() -> None:
    """Half a point of a few hundred texts cannot be told from nothing; of some thousands it can."""
    others, few, many = trace(20_000, seed=1000), [], []
    true = []
    for seed in range(4):
        some = trace(6_000, seed=seed)
        first = some.select(np.arange(400))
        how: dict[str, Any] = {"max_lost": 1, "splits": 6, "seed": seed}
        rule, costs = [make("entropy")], Costs(1.0, 0.0)
        few.append(choose_exits(first, full_depth(first), rule, costs, **how).held_out["layer_speedup"])
        choice = choose_exits(some, full_depth(some), rule, costs, **how, scored=400)
        many.append(choice.held_out["layer_speedup"])
        assert choice.point is not None
        served = others.at_exits([*(layer - 1 for layer in choice.layers), others.num_exits - 1])
        answers = replay(served, make("entropy"), choice.point["knobs"]).answers.argmax(axis=-1)
        true.append(100 * (full_depth(others).mean() - (answers == others.labels).mean()))
    assert np.mean(many) > np.mean(few) + 0.1
    assert np.mean(true) <= 1


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), cost=st.floats(0, 0.5))
def test_the_point_is_what_the_criterion_does(seed: int, cost: float) -> None:
    """Layers kept are layers of the trace, and the speed told is between none and all."""
    some = trace(120, seed=seed)
    choice = choose_exits(some, full_depth(some), [make("entropy")], Costs(1.0, cost), max_lost=3, splits=4)
    assert set(choice.layers) <= {1, 2, 3}
    assert 1.0 <= choice.held_out["layer_speedup"] <= 4.0
    assert choice.held_out["cost_fraction"] <= 1.0 + 4 * cost
    if choice.point is not None:
        assert make(choice.point["criterion"], **choice.point["settings"]) == make("entropy")


def test_exits_that_cost_more_than_they_save_go() -> None:
    given = trace()
    cheap = choose_exits(given, full_depth(given), [make("entropy")], Costs(1.0, 0.0), max_lost=5, splits=5)
    dear = choose_exits(given, full_depth(given), [make("entropy")], Costs(1.0, 3.0), max_lost=5, splits=5)
    assert len(dear.layers) < len(cheap.layers)


def test_deep_layers_that_add_nothing_are_never_reached() -> None:
    """And the exits and threshold chosen cost what is told, when the criterion itself leaves by them."""
    given = trace(600, exits=6)
    logits = given.logits.copy()
    logits[3:] = logits[2]
    level = Trace(**{**given.__dict__, "logits": logits})
    choice = choose_exits(level, full_depth(level), [make("entropy")], Costs(1.0, 0.02), max_lost=2, splits=10)
    assert choice.point is not None
    assert choice.point["knobs"]["max_layers"] == max(choice.layers) == 3
    assert choice.held_out["lost"] <= 2
    assert choice.held_out["layer_speedup"] > 2
    served = level.at_exits([*(layer - 1 for layer in choice.layers), 5])
    left = replay(served, make("entropy"), choice.point["knobs"]).exits
    assert left.max() < len(choice.layers)
    share = (served.lengths * (served.layers[left] / 6)).sum() / served.lengths.sum()
    assert share + 0.02 * (left + 1).mean() / 6 == pytest.approx(choice.held_out["cost_fraction"], abs=0.02)


def test_of_many_exits_only_small_sets_are_tried_and_all() -> None:
    few, many = _sets(4, 1), _sets(12, 872 * THRESHOLDS)
    assert len(few) == len(set(few)) == 2**4 - 2  # all but nothing, and the last alone, which is full depth
    assert (11,) not in many
    sizes = Counter(len(exits) for exits in many[:-1])
    assert [sizes[size] for size in (2, 3, 4)] == [66, 220, 495]
    assert max(sizes) == 4
    assert _sets(12, 6_000 * THRESHOLDS) == many  # more texts to choose on do not narrow the search
    assert Counter(map(len, _sets(12, 20_000 * THRESHOLDS)[:-1])) == {1: 11, 2: 66, 3: 220}
    assert many[-1] == tuple(range(12))
    assert _sets(1, 1) == []


def test_no_labels() -> None:
    given = trace(labels=False)
    with pytest.raises(DataError, match="needs labels"):
        choose_exits(given, np.ones(400, dtype=bool), [make("entropy")], Costs(1.0, 0.1), max_lost=1)


def cascade(**changes: Any) -> Trace:
    """Complete models of 2, 4 and 8 layers before the full one of 12: the third has cost 14 layers when it answers."""
    given = trace(600)
    return replace(given, layers=np.array([2, 6, 14, 26]), full_layers=12, **changes)


def test_of_several_models_the_last_is_last_however_many_layers_came_before() -> None:
    """Half of the texts are the first model's, half the third's; who went on to the full one would be wrong."""
    given = cascade()
    sure, easy = 20 * np.eye(2)[given.labels_known()] - 10, np.arange(600) % 2 == 0
    logits = np.stack([sure * easy[:, None], sure * easy[:, None], sure, -sure]).astype(np.float32)
    made = replace(given, logits=logits)
    everyone = np.ones(600, dtype=bool)
    choice = choose_exits(made, everyone, [make("entropy")], Costs(1.0, 0.0), max_lost=1, splits=10)
    assert choice.layers == (2, 6, 14)
    assert choice.point is not None
    assert choice.point["knobs"]["max_layers"] == 14
    assert choice.held_out["layer_speedup"] == pytest.approx(12 / 8, abs=0.05)
    assert replay(made, make("entropy"), choice.point["knobs"]).exits.tolist() == [0, 2] * 300


def test_at_full_depth_smaller_models_cost_nothing() -> None:
    """Models that are sure and wrong: all must reach the full one, and sooner without asking the others."""
    given = cascade()
    bad = replace(given, logits=np.concatenate([-given.logits[:3], given.logits[3:]]))
    choice = choose_exits(bad, full_depth(bad), [make("entropy")], Costs(1.0, 0.05), max_lost=0.5, splits=4)
    assert (choice.layers, choice.point) == ((), None)
    assert choice.held_out["layer_speedup"] == choice.held_out["cost_fraction"] == pytest.approx(1)


def test_no_model_of_several_is_left_out() -> None:
    given = cascade()
    for max_lost in (1, 5, 20):
        choice = choose_exits(given, full_depth(given), [make("entropy")], Costs(1.0, 3.0), max_lost=max_lost, splits=4)
        assert choice.layers == (2, 6, 14)[: len(choice.layers)]
