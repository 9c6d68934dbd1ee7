"""Promises from counts: the numbers of the papers' own example, and exact coverage by enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mapie")
stats = pytest.importorskip("scipy.stats")

from offramp.calibration.risk import (  # noqa: E402
    accepted,
    binomial_p,
    check_promise,
    conformal_accepted,
    conformal_limit,
    hoeffding_bentkus_p,
    p_values,
    smallest_provable,
    texts_needed,
    upper_bound,
)
from offramp.errors import KnobError  # noqa: E402

RISKS = np.array([0.0, 0.01, 0.03, 0.05, 0.07, 0.08, 0.09, 0.10, 0.12, 0.06, 0.15])
"""Along falling thresholds, 500 texts; the ninth is safe again, and no honest rule may know."""
N, RISK, DELTA = 500, 0.1, 0.1
LOSSES = np.rint(N * RISKS).astype(int)


def test_binomial_vector() -> None:
    p = binomial_p(LOSSES, N, RISK)
    expected = [0, 0, 0, 0, 0.0123, 0.0751, 0.2547, 0.5376, 0.9382, 0.0010, 0.9998]
    np.testing.assert_allclose(p, expected, atol=5e-5)
    assert accepted(p, DELTA) - 1 == 5
    assert np.flatnonzero(p <= DELTA).max() == 9  # whoever takes the last that passes


def test_hoeffding_bentkus_vector() -> None:
    p = hoeffding_bentkus_p(N * RISKS, N, RISK)
    np.testing.assert_allclose(p[4:6], [0.0335, 0.2041], atol=5e-5)
    assert accepted(p, DELTA) - 1 == 4


def test_conformal_vector() -> None:
    assert conformal_limit(N, RISK) == pytest.approx(0.0982)
    assert conformal_accepted(RISKS, N, RISK) - 1 == 6


def test_nothing_and_all_are_accepted() -> None:
    assert accepted(np.array([0.2, 0.0]), 0.1) == 0
    assert accepted(np.array([0.1, 0.1]), 0.1) == 2
    assert conformal_accepted(np.array([0.2, 0.0]), 100, 0.1) == 0
    assert conformal_accepted(np.array([0.0, 0.01]), 100, 0.1) == 2


@pytest.mark.parametrize("n", [1, 7, 60, 500])
@pytest.mark.parametrize("risk", [0.003, 0.05, 0.4])
def test_binomial_p_by_the_sum_of_chances(n: int, risk: float) -> None:
    losses = np.arange(min(n, 12) + 1)
    slow = [sum(math.comb(n, j) * risk**j * (1 - risk) ** (n - j) for j in range(k + 1)) for k in losses]
    np.testing.assert_allclose(binomial_p(losses, n, risk), slow, rtol=1e-9)


@pytest.mark.parametrize("n", [30, 200, 611])
@pytest.mark.parametrize("risk", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("binary", [True, False])
def test_a_risk_that_is_there_is_seldom_denied(n: int, risk: float, binary: bool) -> None:
    """Exact: with losses of 0 and 1 and this very risk, p <= delta comes with a chance of delta at most."""
    counts = np.arange(n + 1)
    p = p_values(counts, n, risk, binary=binary)
    chances = stats.binom.pmf(counts, n, risk)
    for delta in (0.01, 0.05, 0.1, 0.5):
        assert chances[p <= delta].sum() <= delta + 1e-12
    assert (np.diff(p) >= -1e-12).all()


def test_losses_between_0_and_1() -> None:
    """The same for losses that are no coins, by drawing."""
    rng = np.random.default_rng(0)
    for losses in (
        rng.beta(0.5, 9.5, size=(4000, 200)),
        rng.choice([0.0, 0.25, 0.5], p=[0.85, 0.1, 0.05], size=(4000, 200)),
    ):
        p = hoeffding_bentkus_p(losses.sum(axis=1), 200, 0.05)  # the mean of both
        assert (p <= 0.1).mean() <= 0.1 + 2 * math.sqrt(0.09 / 4000)


def test_rounding_adds_no_loss() -> None:
    assert hoeffding_bentkus_p(np.array([sum([0.07] * 100)]), 100, 0.1) == pytest.approx(
        hoeffding_bentkus_p(np.array([7.0]), 100, 0.1)
    )
    assert np.isfinite(hoeffding_bentkus_p(np.array([0.0, 100.0]), 100, 0.1)).all()
    assert not np.isnan(hoeffding_bentkus_p(np.array([0.0, 5.0]), 5, 1.0)).any()


def test_conformal_risk_control_in_closed_form() -> None:
    """A text loses where its number is below lambda: the risk of lambda is lambda. Without the correction it fails."""
    rng = np.random.default_rng(0)
    grid = np.linspace(0, 1, 501)
    kept, broken = [], []
    for _ in range(2000):
        means = (rng.random(20)[:, None] < grid).mean(axis=0)
        kept.append(grid[max(0, conformal_accepted(means, 20, 0.1) - 1)])
        broken.append(grid[np.flatnonzero(means <= 0.1).max()])
    error = 2 * float(np.std(kept)) / math.sqrt(2000)
    assert 0.08 < np.mean(kept) <= 0.1 + error
    assert np.mean(broken) > 0.1 + error


@pytest.mark.parametrize(
    ("n", "binomial", "conformal"),
    [(100, 0.023, 0.0099), (200, 0.012, 0.005), (500, 0.005, 0.002), (1000, 0.003, 0.001), (2000, 0.002, 0.0005)],
)
def test_smallest_provable(n: int, binomial: float, conformal: float) -> None:
    """The table of the paper's limits at delta = 0.1, which rounds up to thousandths."""
    assert smallest_provable(n, 0.9) <= binomial <= smallest_provable(n, 0.9) + 0.001
    assert smallest_provable(n, 0.9, expected=True) == pytest.approx(conformal, rel=0.02)


def test_what_200_texts_prove() -> None:
    assert f"{smallest_provable(200, 0.95):.3f}" == "0.015"
    assert texts_needed(0.01, 0.9) == 230
    assert texts_needed(0.01, 0.95) == 299
    assert texts_needed(0.01, 0.95, expected=True) == 99


@given(n=st.integers(1, 5000), confidence=st.floats(0.01, 0.999))
@settings(max_examples=60, deadline=None)
def test_enough_texts_are_just_enough(n: int, confidence: float) -> None:
    risk = smallest_provable(n, confidence)
    assert binomial_p(np.array([0]), n, risk * (1 + 1e-6) if risk < 0.99 else 1.0)[0] <= 1 - confidence + 1e-9
    if 1e-4 < risk < 0.9:
        needed = texts_needed(risk * (1 + 1e-9), confidence)
        assert needed == n
        assert smallest_provable(needed - 1, confidence) > risk


@pytest.mark.parametrize("n", [40, 300])
@pytest.mark.parametrize("risk", [0.004, 0.03, 0.2])
@pytest.mark.parametrize("binary", [True, False])
def test_the_bound_on_one_point_covers(n: int, risk: float, binary: bool) -> None:
    counts = np.arange(n + 1)
    chances = stats.binom.pmf(counts, n, risk)
    likely = np.flatnonzero(chances > 1e-9)
    below = [k for k in likely if upper_bound(float(k), n, 0.9, binary=binary) < risk]
    assert chances[below].sum() <= 0.1 + 1e-12


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_bound_on_one_point_is_where_the_test_begins_to_pass(confidence: float, binary: bool) -> None:
    for losses, n in ((0.0, 1), (0.0, 50), (3.0, 120), (119.0, 120), (1500.0, 3000)):
        bound = upper_bound(losses, n, confidence, binary=binary)
        p = p_values(np.array([losses]), n, bound, binary=binary)[0]
        assert p == pytest.approx(1 - confidence, rel=1e-6)
    assert upper_bound(50.0, 50, confidence, binary=binary) == 1.0


@pytest.mark.parametrize("risk", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_risks_that_cannot_be(risk: float) -> None:
    with pytest.raises(KnobError, match="above 0 and up to 1"):
        check_promise(risk, 0.95)


def test_what_no_texts_can_prove_is_a_risk_of_0_and_not_one_above_1() -> None:
    with pytest.raises(KnobError, match="no number of texts can prove a risk of 0"):
        check_promise(0.0, 0.95)
    for risk in (1.5, "0.01", None, True):
        with pytest.raises(KnobError, match="above 0 and up to 1") as said:
            check_promise(risk, 0.95)  # type: ignore[arg-type]
        assert "no number of texts" not in str(said.value)
    with pytest.raises(KnobError, match="between 0 and 1"):
        check_promise(0.01, "0.95")  # type: ignore[arg-type]


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, float("nan")])
def test_confidences_that_cannot_be(confidence: float) -> None:
    with pytest.raises(KnobError, match="between 0 and 1"):
        check_promise(0.01, confidence)
