"""F-PABEE's rule: divergences against scipy, the rule against a plain loop, and its limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, rel_entr
from scipy.stats import entropy

from offramp.criteria import make
from offramp.criteria.divergence import Kind, divergence
from offramp.errors import KnobError
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

MakeTrace = Callable[..., Trace]
KINDS: tuple[Kind, ...] = get_args(Kind)
TRUE_ONES = [kind for kind in KINDS if kind != "mean_entropy"]


def slow(p: np.ndarray, q: np.ndarray, kind: Kind) -> float:
    """From probabilities, straight from the definitions."""
    if kind == "js":
        return float(entropy((p + q) / 2) - entropy(p) / 2 - entropy(q) / 2)
    if kind == "mean_entropy":
        return float(entropy((p + q) / 2))
    there, back = float(rel_entr(p, q).sum()), float(rel_entr(q, p).sum())
    return {"kl": there, "reverse_kl": back, "symmetric_kl": there + back}[kind]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6))
@settings(max_examples=50, deadline=None)
def test_divergences_are_those_of_the_textbook(kind: Kind, seed: int, classes: int) -> None:
    log_p, log_q = log_softmax(2 * np.random.default_rng(seed).normal(size=(2, 7, classes)), axis=-1)
    expected = [slow(p, q, kind) for p, q in zip(np.exp(log_p), np.exp(log_q), strict=True)]
    np.testing.assert_allclose(divergence(log_p, log_q, kind=kind), expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_extreme_distributions(kind: Kind) -> None:
    rows = np.array([[0.0, -2e4, -2e4], [-2e4, 0.0, -2e4], [-1e-7, -17.0, -2e4], [-math.log(3)] * 3], dtype=np.float32)
    for log_p in rows:
        found = divergence(np.broadcast_to(log_p, rows.shape), rows, kind=kind)
        assert np.isfinite(found).all()
        assert (found >= 0).all()
        if kind == "js":
            assert (found <= math.log(2) + 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_makes_no_divergence_negative(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(500, 3))
    near = [log_softmax(z, axis=-1).astype(np.float32) for z in (logits, logits + 1e-6 * rng.normal(size=(500, 3)))]
    assert (divergence(*near, kind=kind) >= 0).all()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_nothing_diverges_from_itself(seed: int) -> None:
    log_p = log_softmax(np.random.default_rng(seed).normal(size=(20, 3)) * 3, axis=-1).astype(np.float32)
    for kind in TRUE_ONES:
        assert (divergence(log_p, log_p, kind=kind) == 0).all(), kind
    # What the released code computes is no divergence: a flat distribution is far from itself.
    flat = np.full((1, 3), -math.log(3))
    assert divergence(flat, flat, kind="mean_entropy")[0] == pytest.approx(math.log(3))


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 2), patience=st.integers(1, 6))
@settings(max_examples=6, deadline=None)
@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_equals_a_plain_loop(
    make_trace: MakeTrace, problem: str, kind: Kind, seed: int, threshold: float, patience: int
) -> None:
    trace = make_trace(seed, problem, units=12)
    criterion = make("divergence", problem_type=problem, divergence=kind)
    exits = replay(trace, criterion, {"threshold": threshold, "patience": patience}).exits
    logits = trace.logits.astype(np.float64)
    for unit, found in enumerate(exits):
        count = e = 0
        while e < trace.num_exits - 1 and count < patience:
            e += 1
            before, now = logits[e - 1, unit], logits[e, unit]
            if problem == "single_label_classification":
                how_far = slow(np.exp(log_softmax(before)), np.exp(log_softmax(now)), kind)
            else:  # each label is a distribution of two
                pairs = zip(*(np.stack([expit(z), expit(-z)], axis=-1) for z in (before, now)), strict=True)
                how_far = sum(slow(p, q, kind) for p, q in pairs)
            if abs(how_far - threshold) < 1e-5:
                break  # as good as equal: rounding decides
            count = count + 1 if how_far < threshold else 0
        else:
            assert found == e


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000), patience=st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_a_threshold_of_zero_is_full_depth(make_trace: MakeTrace, kind: Kind, seed: int, patience: int) -> None:
    trace = make_trace(seed)
    exits = replay(trace, make("divergence", divergence=kind), {"threshold": 0.0, "patience": patience}).exits
    assert (exits == trace.num_exits - 1).all()


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000), patience=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_where_all_is_certain_it_is_patience(
    trace_of: Callable[..., Trace], kind: Kind, seed: int, patience: int
) -> None:
    classes = np.random.default_rng(seed).integers(3, size=(6, 20))
    trace = trace_of(1e4 * np.eye(3)[classes])
    ours = replay(trace, make("divergence", divergence=kind), {"threshold": 0.5, "patience": patience})
    assert ours.exits.tolist() == replay(trace, make("patience"), {"patience": patience}).exits.tolist()


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 2), patience=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_more_patience_or_a_lower_threshold_is_never_faster(
    make_trace: MakeTrace, kind: Kind, seed: int, threshold: float, patience: int
) -> None:
    trace, criterion = make_trace(seed), make("divergence", divergence=kind)
    exits = replay(trace, criterion, {"threshold": threshold, "patience": patience}).exits
    assert (exits >= min(patience, trace.num_exits - 1)).all()
    for slower in (
        {"threshold": threshold, "patience": patience + 1},
        {"threshold": threshold / 2, "patience": patience},
    ):
        assert (replay(trace, criterion, slower).exits >= exits).all()


def test_no_other_divergence() -> None:
    with pytest.raises(KnobError, match="divergence must be one of js, kl"):
        make("divergence", divergence="jensen")
