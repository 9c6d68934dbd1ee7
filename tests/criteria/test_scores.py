"""Scores against their formulas: energy, CAP, gate, and what temperatures and scales change."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from offramp.calibration.points import OperatingPoint, read_points, write_points
from offramp.calibration.sweep import choose
from offramp.criteria import Scored, make
from offramp.errors import KnobError, UnsupportedError
from offramp.traces.replay import replay, scores
from offramp.traces.trace import Trace
from offramp.types import ExitOutput, Stage

MakeTrace = Callable[..., Trace]
STAGE = Stage(0, 0, 1, 1)


def score(name: str, logits: np.ndarray, *, extras: dict[str, np.ndarray] | None = None, **set_to: Any) -> np.ndarray:
    criterion = make(name, **set_to)
    assert isinstance(criterion, Scored)
    result: np.ndarray = criterion.score(STAGE, ExitOutput(logits, extras or {}))
    return result


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_energy_and_cap_are_their_formulas(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits, outside = 3 * rng.normal(size=(9, classes)), rng.random(9)
    energy = -logsumexp(logits, axis=-1)
    np.testing.assert_allclose(score("energy", logits), 1 / (1 + np.exp(-energy)))
    for alpha in (0.0, 0.1, 5.0):
        wider = np.concatenate([logits, alpha * outside[:, None]], axis=-1)
        found = score("cap", logits, extras={"null_space": outside}, alpha=alpha)
        np.testing.assert_allclose(found, softmax(wider, axis=-1)[:, -1])


@pytest.mark.filterwarnings("error")
def test_energy_does_not_overflow() -> None:
    logits = np.array([[1e4, 0.0], [-1e4, -1e4], [88.0, 88.0], [0.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(score("energy", logits), [0, 1, np.exp(-88) / 2, 1 / 3], rtol=1e-4)


def test_a_larger_null_space_share_is_less_sure() -> None:
    found = score("cap", np.zeros((3, 2)), extras={"null_space": np.array([0.0, 0.5, 1.0])})
    assert (np.diff(found) > 0).all()
    for bad in (-1.0, math.inf, "much"):
        with pytest.raises(KnobError, match="alpha"):
            make("cap", alpha=bad)


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_the_gate_decides_whatever_the_logits_say(trace_of: MakeTrace, kind: str) -> None:
    gate = np.array([[0.9, 0.2, 0.5], [0.4, 0.9, 0.5], [np.nan, np.nan, np.nan]])
    logits = np.random.default_rng(0).normal(size=(3, 3, 1 if kind == "regression" else 4))
    outcome = replay(trace_of(logits, kind, gate=gate), make("gate", problem_type=kind), {"threshold": 0.5})
    assert outcome.exits.tolist() == [1, 0, 2], "strictly below, and never at the last exit, which has no gate"
    np.testing.assert_array_equal(outcome.answers, logits[[1, 0, 2], [0, 1, 2]].astype(np.float32))
    with pytest.raises(UnsupportedError, match="gate"):
        replay(trace_of(logits, kind), make("gate", problem_type=kind), {})


def test_a_temperature_divides_the_logits(make_trace: MakeTrace) -> None:
    trace = make_trace(0)
    temperatures = (1.0, 2.0, 0.5, 3.0, 1.5, 1.0)
    criterion = make("confidence", temperatures=temperatures)
    assert isinstance(criterion, Scored)
    p = softmax(trace.logits / np.array(temperatures)[:, None, None], axis=-1)
    np.testing.assert_allclose(scores(trace, criterion), 1 - p.max(axis=-1), atol=1e-6)
    outcome = replay(trace, criterion, {"threshold": 0.2})
    assert set(outcome.exits.tolist()) > {0}, "some leave later: the answers are those exits' own"
    np.testing.assert_array_equal(outcome.answers, trace.logits[outcome.exits, np.arange(trace.num_units)])


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification"])
def test_a_scale_gives_each_exit_a_threshold_of_its_own(make_trace: MakeTrace, kind: str) -> None:
    trace = make_trace(1, kind)
    scale = np.array([0.5, 1, 1.2, 0.8, 2, 1])
    plain = make("entropy", problem_type=kind)
    assert isinstance(plain, Scored)
    below = scores(trace, plain)[:-1] < 0.6 * scale[:-1, None]
    expected = np.where(below.any(axis=0), below.argmax(axis=0), trace.num_exits - 1)
    ours = replay(trace, make("entropy", problem_type=kind, scale=tuple(scale.tolist())), {"threshold": 0.6}).exits
    assert ours.tolist() == expected.tolist()
    assert ours.tolist() != replay(trace, plain, {"threshold": 0.6}).exits.tolist(), "or this shows nothing"


@pytest.mark.parametrize(("name", "setting"), [("confidence", "temperatures"), ("entropy", "scale")])
def test_numbers_by_exit_are_checked(make_trace: MakeTrace, name: str, setting: str) -> None:
    trace = make_trace(0)
    for number in (1, 5, 7):
        with pytest.raises(KnobError, match=f"{setting} holds {number} numbers and this model has .* exits"):
            replay(trace, make(name, **{setting: (1.0,) * number}), {"threshold": 0.0})
    for bad in ([1.0, 0.0], [1.0, -1.0], [math.nan], [math.inf], ["hot"], [True], 2.0, "12"):
        with pytest.raises(KnobError, match=setting):
            make(name, **{setting: bad})
    ones = replay(trace, make(name, **{setting: [1] * 6}), {}).exits
    assert ones.tolist() == replay(trace, make(name), {}).exits.tolist()


@pytest.mark.parametrize(("name", "setting"), [("confidence", "temperatures"), ("entropy", "scale")])
def test_numbers_by_exit_survive_an_operating_point(
    make_trace: MakeTrace, tmp_path: Path, name: str, setting: str
) -> None:
    plain = make_trace(0)
    labels = plain.logits[-1].argmax(axis=-1)
    trace = Trace(
        **{f: getattr(plain, f) for f in ("logits", "layers", "lengths", "problem_type", "id2label")}, labels=labels
    )
    criterion = make(name, **{setting: [0.5, 1, 2, 1, 1, 1]})
    point = choose(trace, criterion, speedup=1.5)
    write_points(tmp_path, [point])
    (read,) = read_points(tmp_path)
    assert isinstance(read, OperatingPoint)
    again = make(read.criterion, **read.settings)
    assert again == criterion
    assert hash(again) == hash(criterion), "a list in a frozen dataclass would not do"
    found, expected = (replay(trace, rule, point.knobs).exits.tolist() for rule in (again, criterion))
    assert found == expected
