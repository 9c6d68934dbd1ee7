"""CeeBERT: the vectors of methods.md, a slow twin, and streams whose best arm is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.calibration.online import ARMS, OnlineThreshold, confidences, exits_of_arms, play, rewards
from offramp.criteria import make
from offramp.errors import KnobError, UnsupportedError
from offramp.traces.replay import replay
from offramp.traces.trace import Trace


def surely(rows: Any, trace_of: Callable[..., Trace]) -> Trace:
    """Exits of two classes whose largest probabilities are these, [E, U], 0.5 to 1."""
    p = np.asarray(rows, dtype=np.float64)
    return trace_of(np.stack([np.log(p / (1 - p)), np.zeros_like(p)], axis=-1))


def test_the_vector_of_one_exit() -> None:
    """c1 = .7, cL = .9, o = .1: arm .6 leaves at once and gets 0; arm .8 goes to the end and gets .1."""
    found = rewards(np.array([[0.7], [0.9]]), [3, 6], [0.6, 0.8], cost=0.1)
    np.testing.assert_allclose(found, [[0.0], [0.1]], atol=1e-12)
    learner = OnlineThreshold([3, 6], [0.6, 0.8], share="played")
    learner.update(learner.pick(), [0.7])
    learner.update(learner.pick(), [0.7, 0.9])
    np.testing.assert_allclose(learner.means, [0.0, 0.1], atol=1e-12)


def test_arms_are_those_of_the_released_code() -> None:
    assert ARMS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def slowly(sure: Any, arms: list[float], cost: float, exploration: float) -> list[int]:
    """UCB1 by its formula, one text after the other, playing every arm once first; only the played one learns."""
    got: list[list[float]] = [[] for _ in arms]
    picked = []
    exits = len(sure)
    for t, text in enumerate(np.asarray(sure).T):
        empty = [a for a in range(len(arms)) if not got[a]]
        index = [sum(g) / len(g) + exploration * math.sqrt(math.log(t + 1) / len(g)) if g else 0.0 for g in got]
        a = empty[0] if empty else index.index(max(index))
        e = next((e for e in range(exits) if text[e] >= arms[a]), exits - 1)
        got[a].append(text[e] - text[0] - cost * e / (exits - 1))
        picked.append(a)
    return picked


@given(seed=st.integers(0, 1000), cost=st.floats(0, 1), exploration=st.floats(0, 3))
@settings(max_examples=25, deadline=None)
def test_against_the_slow_one(trace_of: Callable[..., Trace], seed: int, cost: float, exploration: float) -> None:
    rng = np.random.default_rng(seed)
    trace = surely(rng.uniform(0.5, 0.99, size=(4, 60)), trace_of)
    learner = OnlineThreshold([1, 2, 3, 4], [0.6, 0.7, 0.8, 0.9], cost=cost, exploration=exploration, share="played")
    played = play(confidences(trace), learner)
    assert played.arms.tolist() == slowly(confidences(trace), [0.6, 0.7, 0.8, 0.9], cost, exploration)
    assert learner.counts.sum() == 60


@pytest.mark.parametrize("share", ["played", "lower", "implied"])
def test_what_is_learned_is_what_would_have_happened(
    trace_of: Callable[..., Trace], share: Literal["played", "lower", "implied"]
) -> None:
    """An arm's mean is over texts it was told of, of rewards it would have got for them."""
    rng = np.random.default_rng(1)
    trace = surely(rng.uniform(0.5, 0.99, size=(4, 80)), trace_of)
    arms = [0.6, 0.7, 0.8, 0.9]
    learner = OnlineThreshold([1, 2, 3, 4], arms, share=share)
    told: list[list[float]] = [[] for _ in arms]
    truth, exits = rewards(confidences(trace), [1, 2, 3, 4], arms), exits_of_arms(confidences(trace), arms)
    sure = confidences(trace)
    for u in range(80):
        a = learner.pick()
        left = exits[a, u]
        learner.update(a, sure[: left + 1, u])
        for other in range(4):
            # Known without a doubt: the same exit or an earlier one; beyond the exit only if that was the last.
            known = {"played": other == a, "lower": other <= a}.get(share, exits[other, u] <= left)
            if known:
                told[other].append(float(truth[other, u]))
    assert learner.counts.tolist() == [len(each) for each in told]
    np.testing.assert_allclose(learner.means, [np.mean(each) for each in told])


def test_what_is_implied_speaks_too_well_of_higher_thresholds() -> None:
    """Why ``lower`` is the default. The higher arm is told of texts that were sure at once, and never of the others."""
    learners = {share: OnlineThreshold([1, 2], [0.6, 0.9], cost=0.5, share=share) for share in ("lower", "implied")}
    for learner in learners.values():
        learner.pick()
        for _ in range(50):
            learner.update(0, [0.95])  # sure at once: 0.9 would have left here, too
            learner.update(0, [0.7])  # 0.9 would have gone on, at a loss that nobody saw
    assert learners["implied"].counts.tolist() == [100, 50]
    assert learners["implied"].means[1] == 0
    assert learners["lower"].counts.tolist() == [100, 0]


def test_it_finds_the_best_arm_and_its_regret_slows_down(trace_of: Callable[..., Trace]) -> None:
    """At the first exit texts have .7 or .9; the next gains .25 for the former and nothing for the latter."""
    rng = np.random.default_rng(0)
    hard = rng.random(6000) < 0.5
    sure = np.stack([np.where(hard, 0.7, 0.9), np.where(hard, 0.95, 0.9)])
    trace = surely(sure, trace_of)
    arms = [0.6, 0.8, 0.95]
    truth = rewards(confidences(trace), [1, 2], arms)
    assert truth.mean(axis=1).argmax() == 1
    learner = OnlineThreshold([1, 2], arms, exploration=0.5)
    played = play(confidences(trace), learner)
    lost = truth[1] - truth[played.arms, np.arange(6000)]
    assert lost[3000:].mean() < lost[:300].mean() / 3
    assert np.bincount(played.arms[3000:], minlength=3).argmax() == 1


def test_the_ends(trace_of: Callable[..., Trace]) -> None:
    """Where depth is dear the lowest threshold wins; where it is free and gains much, the highest."""
    trace = surely(np.stack([np.full(2000, 0.55), np.full(2000, 0.97)]), trace_of)
    for cost, best in ((100.0, 0), (0.0, 1)):
        played = play(confidences(trace), OnlineThreshold([1, 2], [0.5, 0.9], cost=cost))
        assert (played.arms[1000:] == best).mean() > 0.8


def test_a_batch_plays_every_arm_before_one_again(trace_of: Callable[..., Trace]) -> None:
    trace = surely(np.full((3, 40), 0.8), trace_of)
    learner = OnlineThreshold([1, 2, 3], [0.6, 0.7, 0.8, 0.9], share="played")
    played = play(confidences(trace), learner, batch=8)
    assert sorted(played.arms[:4].tolist()) == [0, 1, 2, 3]
    assert learner.counts.sum() == 40


@pytest.mark.parametrize("arm", range(len(ARMS)))
def test_an_arm_is_a_knob_of_confidence(example: Callable[..., Trace], arm: int) -> None:
    trace = example(units=200)
    learner = OnlineThreshold(trace.layers.tolist())
    outcome = replay(trace, make("confidence"), learner.knobs(arm))
    np.testing.assert_array_equal(outcome.exits, exits_of_arms(confidences(trace), ARMS)[arm])


def test_bad_settings(example: Callable[..., Trace]) -> None:
    for wrong in ([], [0.9, 0.6], [0.5, 0.5], [-1.0], [0.5, 1.5]):
        with pytest.raises(KnobError, match="arms must be"):
            OnlineThreshold([1, 2], wrong)
    with pytest.raises(KnobError, match="cost and exploration"):
        OnlineThreshold([1, 2], cost=-1)
    with pytest.raises(KnobError, match="share must be"):
        OnlineThreshold([1, 2], share="all")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="regression has none"):
        confidences(example("regression"))
