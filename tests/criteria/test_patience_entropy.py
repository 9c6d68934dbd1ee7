"""PCEE-BERT's rule against a plain loop, its limits, and who answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from offramp.criteria import make
from offramp.criteria.entropy import uncertainty
from offramp.errors import KnobError
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

MakeTrace = Callable[..., Trace]
KINDS = ("single_label_classification", "multi_label_classification")
knobs_drawn = {"seed": st.integers(0, 10_000), "threshold": st.floats(0, 1.01), "patience": st.integers(1, 7)}


def probabilities(logits: np.ndarray, kind: str) -> np.ndarray:
    return softmax(logits, axis=-1) if kind == KINDS[0] else expit(logits)


def slow(trace: Trace, threshold: float, patience: int, ensemble: str) -> tuple[list[int], list[np.ndarray]]:
    """Exits, and the probabilities of the answers."""
    exits, answers = [], []
    p = probabilities(trace.logits.astype(np.float64), trace.problem_type)
    doubt = [uncertainty(logits, trace.problem_type) for logits in trace.logits]
    for unit in range(trace.num_units):
        count = 0
        for e in range(trace.num_exits):
            count = count + 1 if doubt[e][unit] < threshold else 0
            if count == patience or e == trace.num_exits - 1:
                break
        first = {"last": e, "all": 0, "run": e - max(count, 1) + 1}[ensemble]
        exits.append(e)
        answers.append(p[first : e + 1, unit].mean(axis=0))
    return exits, answers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ensemble", ["last", "run", "all"])
@given(**knobs_drawn)
@settings(max_examples=30, deadline=None)
def test_equals_a_plain_loop(
    make_trace: MakeTrace, kind: str, ensemble: str, seed: int, threshold: float, patience: int
) -> None:
    trace = make_trace(seed, kind)
    criterion = make("patience_entropy", problem_type=kind, ensemble=ensemble)
    outcome = replay(trace, criterion, {"threshold": threshold, "patience": patience})
    exits, answers = slow(trace, threshold, patience, ensemble)
    assert outcome.exits.tolist() == exits
    np.testing.assert_allclose(probabilities(outcome.answers, kind), answers, atol=1e-5)


@given(seed=st.integers(0, 10_000), threshold=st.floats(0, 1.01))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("kind", KINDS)
def test_patience_of_one_is_the_entropy_criterion(
    make_trace: MakeTrace, kind: str, seed: int, threshold: float
) -> None:
    trace = make_trace(seed, kind)
    ours = replay(trace, make("patience_entropy", problem_type=kind), {"threshold": threshold, "patience": 1})
    plain = replay(trace, make("entropy", problem_type=kind), {"threshold": threshold})
    np.testing.assert_array_equal(ours.exits, plain.exits)
    np.testing.assert_array_equal(ours.answers, plain.answers)


@given(**knobs_drawn)
@settings(max_examples=30, deadline=None)
def test_more_patience_or_a_lower_threshold_is_never_faster(
    make_trace: MakeTrace, seed: int, threshold: float, patience: int
) -> None:
    trace, criterion = make_trace(seed), make("patience_entropy")
    exits = replay(trace, criterion, {"threshold": threshold, "patience": patience}).exits
    assert (exits + 1 >= min(patience, trace.num_exits)).all()
    for slower in (
        {"threshold": threshold, "patience": patience + 1},
        {"threshold": threshold / 2, "patience": patience},
    ):
        assert (replay(trace, criterion, slower).exits >= exits).all()


@pytest.mark.parametrize("ensemble", ["run", "all"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_means_of_certainties_are_finite(trace_of: Callable[..., Trace], kind: str, ensemble: str) -> None:
    logits = np.array([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]], [[-1e4, 1e4, 0.0]]])
    criterion = make("patience_entropy", problem_type=kind, ensemble=ensemble)
    for patience in (2, 3):
        answers = replay(trace_of(logits, kind), criterion, {"threshold": 1.01, "patience": patience}).answers
        assert np.isfinite(answers).all()
    if kind == KINDS[0]:
        np.testing.assert_allclose(softmax(answers[0]), [1 / 3, 2 / 3, 0], atol=1e-6)


def test_no_other_ensemble() -> None:
    with pytest.raises(KnobError, match="ensemble must be one of last, run, all"):
        make("patience_entropy", ensemble="mean")
