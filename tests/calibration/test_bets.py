"""Bets against nothing: a slow twin, known truth on many streams, and selectors that are broken on purpose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.calibration.bets import Bets, RiskBounds, RiskTest, rank_bets
from offramp.calibration.risk import binomial_p, upper_bound

pytest.importorskip("scipy")

STREAMS, DELTA = 500, 0.1
MOST = DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / STREAMS)


def slow_wealth(factors: list[list[float]]) -> float:
    """A gambler for every kind and every moment to begin at, each with the share that was kept back for him."""
    kept = [1 / (1 + math.log1p(t)) for t in range(len(factors) + 1)]
    won = kept[-1]
    for begun in range(len(factors)):
        for kind in range(len(factors[0])):
            stake = (kept[begun] - kept[begun + 1]) / len(factors[0])
            won += stake * math.prod(row[kind] for row in factors[begun:])
    return won


@given(st.lists(st.lists(st.floats(0, 3), min_size=3, max_size=3), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_wealth_is_that_of_all_gamblers(factors: list[list[float]]) -> None:
    bets = Bets(3)
    assert bets.wealth == 1
    for row in factors:
        bets.take(np.array(row))
    assert bets.wealth == pytest.approx(slow_wealth(factors))


def test_who_wins_nothing_loses_nothing() -> None:
    bets = Bets(4)
    for _ in range(1000):
        bets.take(np.ones(4))
    assert bets.wealth == pytest.approx(1)


def test_bets_on_ranks_are_densities() -> None:
    middles = (np.arange(20_000) + 0.5) / 20_000
    values = np.array([rank_bets(float(rank)) for rank in middles])
    np.testing.assert_allclose(values.mean(axis=0), 1, rtol=1e-6)
    assert (values >= 0).all()
    np.testing.assert_array_equal(rank_bets(0.25)[:4], rank_bets(0.75)[4:8])
    np.testing.assert_array_equal(rank_bets(middles), values)


def random_losses(rng: np.random.Generator, risks: np.ndarray, kind: str) -> np.ndarray:
    """Losses of which each has the mean asked for: 0 or 1, or anything between."""
    return rng.random(risks.shape) < risks if kind == "coins" else np.minimum(1, 2 * risks) * rng.random(risks.shape)


@pytest.mark.parametrize("kind", ["coins", "shares"])
def test_a_risk_at_its_limit_seldom_rings(kind: str) -> None:
    rng = np.random.default_rng(0)
    losses = random_losses(rng, np.full((1000, STREAMS), 0.05), kind)
    factors, bets = RiskTest(0.05, false_alarms=DELTA).factors(losses.astype(float)), Bets(13, streams=(STREAMS,))
    rang = np.zeros(STREAMS, dtype=bool)
    for row in factors:
        bets.take(row)
        rang |= bets.wealth >= 1 / DELTA
    assert rang.mean() <= MOST
    assert rang.any() or kind == "shares"  # losses that vary less than coins give less to bet on
    few = losses[:, :3].astype(float).T
    assert [rings(row, 0.05) is not None for row in few] == rang[:3].tolist()


def test_a_fixed_test_again_and_again_does_ring() -> None:
    """The same level, looked at after every text: what a monitor must not do."""
    rng = np.random.default_rng(0)
    sums = random_losses(rng, np.full((STREAMS, 400), 0.05), "coins").cumsum(axis=1)
    # P-value of "the risk is at most 5 %": the chance of so many losses, or more.
    n = np.arange(20, 400, 20)
    p = 1 - np.array([binomial_p(sums[:, m - 1] - 1, int(m), 0.05) for m in n])
    assert np.mean((p <= DELTA).any(axis=0)) > 2 * MOST


def rings(losses: np.ndarray, limit: float, delta: float = DELTA) -> int | None:
    """After how many texts."""
    test = RiskTest(limit, false_alarms=delta)
    for number, loss in enumerate(losses, 1):
        test.observe(float(loss))
        if test.rings:
            return number
    return None


@pytest.mark.parametrize("before", [0, 500])
def test_a_risk_above_its_limit_rings_soon(before: int) -> None:
    """Whenever it rises: a clean past does not pay for what comes."""
    rng = np.random.default_rng(0)
    delays = []
    for _ in range(30):
        losses = np.concatenate([rng.random(before) < 0.005, rng.random(1000) < 0.1])
        found = rings(losses, 0.02, 0.01)
        assert found is not None
        delays.append(found - before)
    assert np.median(delays) < 200


def test_it_stays_rung() -> None:
    test = RiskTest(0.01, false_alarms=0.1)
    for _ in range(5):
        test.observe(1.0)
    assert test.rings
    for _ in range(2000):
        test.observe(0.0)
    assert test.rings


def bounds_of(n: int, total: float) -> RiskBounds:
    bounds = RiskBounds()
    bounds.n, bounds.total = n, total
    return bounds


def refuted(risk: Any, n: Any, total: Any, sign: int, confidence: float) -> Any:
    """Whether bets against a mean risk have won enough: their wealth written out, a mean of products."""
    tilts = sign * np.geomspace(0.02, 8.0, 13).reshape(-1, *[1] * np.ndim(risk + n + total))
    logs = tilts * total - n * np.log1p(np.expm1(tilts) * risk)
    return np.logaddexp.reduce(logs, axis=0) - math.log(13) >= -math.log(1 - confidence)


@given(n=st.integers(0, 3000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.999]))
@settings(max_examples=60, deadline=None)
def test_edges_are_where_the_bets_have_won(n: int, share: float, confidence: float) -> None:
    bounds, risks = bounds_of(n, share * n), np.linspace(0, 1, 2001)
    low, high = bounds.lower(confidence), bounds.upper(confidence)
    assert 0 <= low <= bounds.mean + 1e-9
    assert bounds.mean - 1e-9 <= high <= 1
    for sign, edge, outside in ((1, low, risks < low), (-1, high, risks > high)):
        apart = np.abs(risks - edge) > 1e-6
        np.testing.assert_array_equal(refuted(risks, n, bounds.total, sign, confidence)[apart], outside[apart])
    for limit in (0.01, 0.3):
        if abs(limit - high) > 1e-9:
            assert bounds.is_below(limit, confidence) == (high <= limit)


def test_nothing_seen_nothing_known() -> None:
    assert (RiskBounds().lower(), RiskBounds().upper(), RiskBounds().mean) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("kind", ["coins", "shares"])
@pytest.mark.parametrize("path", ["constant", "rising", "falling"])
def test_bounds_hold_at_all_times_of_most_streams(kind: str, path: str) -> None:
    """Of the mean risk so far, even where it moves."""
    rng = np.random.default_rng(0)
    n = 300
    risks = {
        "constant": np.full(n, 0.1),
        "rising": np.repeat([0.02, 0.3], n // 2),
        "falling": np.repeat([0.3, 0.02], n // 2),
    }[path]  # fmt: skip
    sums = random_losses(rng, np.tile(risks, (STREAMS, 1)), kind).astype(float).cumsum(axis=1)
    times = np.arange(1, n + 1)
    for sign in (1, -1):
        wrong = refuted(risks.cumsum() / times, times, sums, sign, 1 - DELTA).any(axis=1)
        assert wrong.mean() <= MOST
        assert wrong.any() or kind == "shares"


def test_bounds_for_one_moment_do_not_hold_at_all_times() -> None:
    """The test has power: Clopper and Pearson's bound, right at any one time, fails it."""
    rng = np.random.default_rng(0)
    sums = (rng.random((STREAMS, 600)) < 0.1).cumsum(axis=1)
    p = np.array([binomial_p(sums[:, n - 1], n, 0.1) for n in range(10, 600, 10)])
    assert np.mean((p <= DELTA).any(axis=0)) > 2 * MOST
    assert float(binomial_p(np.array([3]), 60, upper_bound(3, 60, 1 - DELTA, binary=True))[0]) == pytest.approx(DELTA)


def test_how_many_clean_texts_prove_one_percent() -> None:
    """As docs/drift.md says: some 420, where one moment chosen in advance would take 299."""
    n = next(n for n in range(1, 2000) if bounds_of(n, 0).is_below(0.01, 0.95))
    assert n == 421
