"""Drift: ranks against a slow twin, false alarms where nothing changes, and tests that are known to fail."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.calibration.bets import Bets, rank_bets
from offramp.calibration.drift import BINS, Drift, Reference, bin_of
from offramp.criteria import make
from offramp.errors import RunError
from offramp.tasks import make_task
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

STREAMS, ALPHA = 600, 0.1
MOST = ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / STREAMS)
CALIBRATION, STREAM = 40, 240

Texts = list[tuple[int, float]]


@pytest.fixture(scope="module")
def pool(example: Callable[..., Trace]) -> Texts:
    """Layers and confidences of a trace at an operating point."""
    trace = example(units=500, exits=5)
    outcome = replay(trace, make("entropy"), {"threshold": 0.7})
    task = make_task(trace.problem_type, trace.id2label)
    scores = [task.read(answer)[1] for answer in outcome.answers]
    assert len(np.unique(outcome.exits)) == 5
    return [(int(exit_index) + 1, float(score or 0)) for exit_index, score in zip(outcome.exits, scores, strict=True)]


def reference(texts: Texts, exits: int = 5) -> Reference:
    counts = np.zeros((exits, BINS), dtype=np.int64)
    for layer, score in texts:
        counts[layer - 1, bin_of(score)] += 1
    return Reference(tuple(range(1, exits + 1)), counts)


def test_a_reference_counts_what_a_point_did(example: Callable[..., Trace]) -> None:
    trace = example(units=300, exits=4)
    point, knobs = make("entropy"), {"threshold": 0.6}
    found = Reference.of(trace, point, knobs)
    outcome = replay(trace, point, knobs)
    assert found.layers == (1, 2, 3, 4)
    np.testing.assert_array_equal(found.counts.sum(axis=1), np.bincount(outcome.exits, minlength=4))
    assert found.mean_layer == pytest.approx(trace.layers[outcome.exits].mean())
    assert found.texts == 300
    again = Reference.from_json(json.loads(json.dumps(found.to_json())))
    assert again.layers == found.layers
    np.testing.assert_array_equal(again.counts, found.counts)


def test_numbers_have_no_confidence(example: Callable[..., Trace]) -> None:
    found = Reference.of(example("regression"), make("patience_delta", problem_type="regression"), {"delta": 1.0})
    assert found.counts[:, 0].sum() == found.texts == 60
    drift = Drift(found, false_alarms=0.1, rng=np.random.default_rng(0))
    for _ in range(100):
        drift.observe(4, None)
    assert drift.rings
    assert drift.what == "layers"


@pytest.mark.parametrize("wrong", [None, {"1": "3"}, {"one": ""}, {"1": "99:3"}, {"1": "a:b"}, {"1": 4}])
def test_a_reference_that_cannot_be_read(wrong: object) -> None:
    with pytest.raises(RunError, match="reference cannot be read"):
        Reference.from_json(wrong)


def test_bins_follow_the_confidence() -> None:
    places = [bin_of(score) for score in np.linspace(0, 1, 4001)]
    assert places == sorted(places)
    assert (places[0], places[-1], bin_of(None)) == (0, BINS - 1, 0)
    assert bin_of(0.5) == 24
    assert len({bin_of(1 - 10.0**-k) for k in range(1, 6)}) == 5


def slow_wealth(texts: Texts, stream: Texts, coins: list[float]) -> float:
    """Every text ranked by counting among all before it and itself."""
    layers, scores = Bets(10), Bets(10)
    toss = iter(coins)
    for number, (layer, score) in enumerate(stream):
        seen = texts + stream[: number + 1]
        places = [one for one, _ in seen]
        below, same = sum(one < layer for one in places), sum(one == layer for one in places)
        layers.take(rank_bets((below + next(toss) * same) / len(places)))
        sure = [bin_of(one) for at, one in seen if at == layer]
        below, same = sum(one < bin_of(score) for one in sure), sum(one == bin_of(score) for one in sure)
        scores.take(rank_bets((below + next(toss) * same) / len(sure)))
    return float(layers.wealth + scores.wealth) / 2


@given(seed=st.integers(0, 10_000), known=st.integers(0, 20), length=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_against_the_slow_one(seed: int, known: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    texts = [(int(rng.integers(1, 4)), float(rng.choice([0.4, 0.6, 0.9, 0.99]))) for _ in range(known + length)]
    drift = Drift(reference(texts[:known]), false_alarms=1e-12, rng=np.random.default_rng(1))
    for layer, score in texts[known:]:
        drift.observe(layer, score)
    coins = np.random.default_rng(1).random(2 * length).tolist()
    assert drift.wealth == pytest.approx(slow_wealth(texts[:known], texts[known:], coins))
    assert drift.texts == length


def rang(drift: Drift, stream: Texts) -> bool:
    for layer, score in stream:
        drift.observe(layer, score)
        if drift.rings:
            return True
    return False


def drawn(pool: Texts, streams: int, *, again: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Exit and bin, [streams, texts]: calibration, then stream, out of one pool, with or without putting back."""
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.choice(len(pool), size=CALIBRATION + STREAM, replace=again) for _ in range(streams)])
    return np.array([layer - 1 for layer, _ in pool])[rows], np.array([bin_of(score) for _, score in pool])[rows]


def most_wealth(exits: np.ndarray, bins: np.ndarray, coins: np.ndarray, *, learn: bool = True) -> np.ndarray:
    """[streams]: the most that was ever won, all streams side by side.

    ``learn=False`` is broken: it takes the shares seen at calibration for the truth.
    """
    streams = np.arange(len(exits))
    counts = np.zeros((len(exits), 5, BINS))
    np.add.at(counts, (streams[:, None], exits[:, :CALIBRATION], bins[:, :CALIBRATION]), 1)
    layers, scores = Bets(10, streams=(len(exits),)), Bets(10, streams=(len(exits),))
    most = np.ones(len(exits))
    for text in range(STREAM):
        e, place = exits[:, CALIBRATION + text], bins[:, CALIBRATION + text]
        counts[streams, e, place] += 1
        layers.take(rank_bets(ranks(counts.sum(axis=2), e, coins[:, 2 * text])))
        scores.take(rank_bets(ranks(counts[streams, e], place, coins[:, 2 * text + 1])))
        if not learn:
            counts[streams, e, place] -= 1
        most = np.maximum(most, (layers.wealth + scores.wealth) / 2)
    return most


def ranks(counts: np.ndarray, place: np.ndarray, coin: np.ndarray) -> np.ndarray:
    below = np.cumsum(counts, axis=1) - counts
    rows = np.arange(len(counts))
    return (below[rows, place] + coin * counts[rows, place]) / counts.sum(axis=1)


@pytest.mark.parametrize("again", [True, False])
def test_it_seldom_rings_where_nothing_has_changed(pool: Texts, again: bool) -> None:
    """Few texts of calibration, and much longer streams: what those do not know must not be held against these."""
    exits, bins = drawn(pool, STREAMS, again=again)
    coins = np.stack([np.random.default_rng(seed).random(2 * STREAM) for seed in range(STREAMS)])
    most = most_wealth(exits, bins, coins)
    assert np.mean(most >= 1 / ALPHA) <= MOST
    assert np.mean(most >= 1 / ALPHA) > ALPHA / 10  # and it is no test that never rings
    for stream in range(5):  # side by side as one by one
        counts = np.zeros((5, BINS), dtype=np.int64)
        np.add.at(counts, (exits[stream, :CALIBRATION], bins[stream, :CALIBRATION]), 1)
        drift = Drift(Reference((1, 2, 3, 4, 5), counts), false_alarms=ALPHA, rng=np.random.default_rng(stream))
        rung = rang(drift, [(e + 1, middle(b)) for e, b in zip(exits[stream], bins[stream], strict=True)][CALIBRATION:])
        assert rung == (most[stream] >= 1 / ALPHA)


def middle(place: int) -> float:
    """A confidence in the middle of a bin."""
    score = 1 / (1 + math.exp(6 - 0.25 * (place + 0.5)))
    assert bin_of(score) == place
    return score


def test_taking_the_calibration_for_the_truth_rings_for_nothing(pool: Texts) -> None:
    """The test has power."""
    exits, bins = drawn(pool, STREAMS, again=True)
    coins = np.random.default_rng(1).random((STREAMS, 2 * STREAM))
    assert np.mean(most_wealth(exits, bins, coins, learn=False) >= 1 / ALPHA) > 2 * MOST


def test_testing_again_and_again_rings_for_nothing(pool: Texts) -> None:
    """Two means of layers, compared after every 8 texts by a test that is right for one moment."""
    exits, _ = drawn(pool, STREAMS, again=True)
    old, new = exits[:, :CALIBRATION].astype(float), exits[:, CALIBRATION:].astype(float)
    apart = []
    for n in range(8, STREAM, 8):
        error = np.sqrt(old.var(axis=1, ddof=1) / CALIBRATION + new[:, :n].var(axis=1, ddof=1) / n)
        apart.append(np.abs(old.mean(axis=1) - new[:, :n].mean(axis=1)) > 1.645 * error)
    assert np.mean(apart[-1]) <= ALPHA + 0.04
    assert np.mean(np.any(apart, axis=0)) > 2 * MOST


@pytest.mark.parametrize("before", [0, 300])
@pytest.mark.parametrize("change", ["later", "less sure"])
def test_it_rings_where_something_has_changed(pool: Texts, before: int, change: str) -> None:
    rng = np.random.default_rng(0)
    delays = []
    for _ in range(20):
        texts = [pool[row] for row in rng.integers(len(pool), size=200)]
        calm = [pool[row] for row in rng.integers(len(pool), size=before)]
        drift = Drift(reference(texts), false_alarms=0.01, rng=rng)
        assert not rang(drift, calm)
        for number in range(1, 1000):
            layer, score = pool[int(rng.integers(len(pool)))]
            layer, score = (min(layer + 1, 5), score) if change == "later" else (layer, 0.6 * score)
            drift.observe(layer, score)
            if drift.rings:
                delays.append(number)
                assert drift.what == ("layers" if change == "later" else "confidence")
                break
    assert len(delays) == 20
    assert np.median(delays) < 150


def test_it_stays_rung_and_looks_no_more(pool: Texts) -> None:
    drift = Drift(reference(pool[:100]), false_alarms=0.05, rng=np.random.default_rng(0))
    assert rang(drift, [(5, 0.34)] * 200)
    seen, wealth = drift.texts, drift.wealth
    rang(drift, pool)
    assert (drift.rings, drift.texts, drift.wealth) == (True, seen, wealth)


def test_a_layer_that_is_no_exit_of_the_calibration(pool: Texts) -> None:
    drift = Drift(
        Reference((2, 4), np.ones((2, BINS), dtype=np.int64)), false_alarms=0.05, rng=np.random.default_rng(0)
    )
    for layer in (1, 3, 9):
        drift.observe(layer, 0.9)
    assert drift._left.tolist() == [BINS + 1, BINS + 2]


def test_the_first_texts_are_told_by_their_own_mean(example: Callable[..., Trace]) -> None:
    """Not by one that begins at the calibration's: an alarm after 40 texts would name a change far too small."""
    reference = Reference((1, 2, 3), np.array([[50, *[0] * (BINS - 1)], [0] * BINS, [0] * BINS]))
    drift = Drift(reference, false_alarms=1e-300, rng=np.random.default_rng(0))
    for layer in (3, 2, 3, 2):
        drift.observe(layer, 0.9)
    assert drift.recent_layer == pytest.approx(2.5)
    for _ in range(96):
        drift.observe(3, 0.9)
    assert drift.recent_layer == pytest.approx((10 + 96 * 3) / 100)
    drift.observe(1, 0.9)
    assert drift.recent_layer == pytest.approx(0.99 * (10 + 96 * 3) / 100 + 0.01)
