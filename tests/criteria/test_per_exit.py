"""A threshold for each exit around another criterion's score."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.criteria import make
from offramp.criteria.per_exit import PerExit
from offramp.errors import KnobError, OfframpError
from offramp.types import ExitOutput, Stage

STAGES = [Stage(0, 0, 1, 1), Stage(1, 1, 2, 2), Stage(2, 2, 3, 3, is_last=True)]


def test_each_exit_has_its_threshold() -> None:
    logits = (3 * np.random.default_rng(0).normal(size=(40, 3))).astype(np.float32)
    rule = make("per_exit", scale=[0.5, 1.0, 1.0])
    plain = make("entropy")
    for stage, own in zip(STAGES[:2], (0.4, 0.8), strict=True):
        output = ExitOutput(logits)
        found = rule.step(stage, output, {}, {"threshold": np.full(40, 0.8)})[0].leave
        expected = plain.step(stage, output, {}, {"threshold": np.full(40, own)})[0].leave
        np.testing.assert_array_equal(found, expected)
        assert 0 < found.sum() < 40


def test_it_needs_what_the_inner_one_needs_and_keeps_its_state() -> None:
    rule = PerExit(of="edr", options=(("lam", 5.0),))
    assert rule.needs == {"distances"}
    assert PerExit.needs == frozenset()
    assert rule.inner == make("edr", lam=5.0)
    assert make("per_exit", of="learned_stopping").start(np.zeros(3)).keys() == {"before"}
    assert make("per_exit", of="edr", options=[["lam", 5.0]]) == rule
    assert hash(make("per_exit", of="edr", options={"lam": 5.0})) == hash(rule)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"of": "patience"}, "'patience' leaves by no score of its own"),
        ({"of": "per_exit"}, "'per_exit' leaves by no score of its own"),
        ({"of": "entropi"}, "did you mean entropy"),
        ({"options": 3}, "options must be pairs"),
        ({"options": [["lam", 1.0]]}, "does not take these settings"),
        ({"scale": [0.0, 1.0]}, "each of scale must be above 0"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(OfframpError, match=message):
        make("per_exit", **settings)


def test_a_scale_for_another_number_of_exits() -> None:
    rule = make("per_exit", scale=[1.0])
    with pytest.raises(KnobError, match="scale holds 1 numbers"):
        rule.step(STAGES[1], ExitOutput(np.zeros((1, 2), np.float32)), {}, {"threshold": np.ones(1)})
