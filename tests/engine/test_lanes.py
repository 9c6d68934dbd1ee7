"""Several lanes answer as one does, in the same order, and leave nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.criteria.entropy import Entropy
from offramp.engine.engine import Engine
from offramp.engine.reference import reference
from offramp.engine.units import Unit
from offramp.errors import KnobError
from offramp.inputs.tokens import Encoded
from offramp.runtimes.fake import FakeRuntime

RNG = np.random.default_rng(5)
TEXTS = [Encoded(RNG.integers(1, 40, n).astype(np.int32), None, False) for n in RNG.integers(1, 13, 60)]
FAKE = FakeRuntime(4, hidden_size=4)
KNOBS = {"threshold": 0.3}
TRUTH = reference(FAKE, Entropy(), TEXTS, KNOBS)


def units(texts: list[Encoded] = TEXTS) -> list[Unit]:
    return [Unit(number, text) for number, text in enumerate(texts)]


class Watched:
    """The fake, which counts who is inside ``run`` and can be told to wait, or to fail."""

    def __init__(self, together: int = 1, fails_at: int | None = None) -> None:
        self.info = FAKE.info
        self.most = self._inside = self._calls = 0
        self._barrier = threading.Barrier(together, timeout=20)
        self._fails_at, self._lock = fails_at, threading.Lock()

    def embed(self, inputs: Any) -> Any:
        return FAKE.embed(inputs)

    def run(self, stage: Any, hidden: Any, batch: Any, active: Any = None) -> Any:
        with self._lock:
            self._inside += 1
            self._calls += 1
            self.most = max(self.most, self._inside)
            first = self._calls <= self._barrier.parties
            fails = self._calls == self._fails_at
        if first:
            self._barrier.wait()
        with self._lock:
            self._inside -= 1
        if fails:
            raise ArithmeticError("this batch fails")
        return FAKE.run(stage, hidden, batch)

    def exit(self, stage: Any, hidden: Any, batch: Any, memory: Any) -> Any:
        return FAKE.exit(stage, hidden, batch, memory)


@settings(deadline=None, max_examples=30)
@given(
    lanes=st.integers(1, 4),
    max_rows=st.integers(1, 7),
    hold=st.integers(1, 3),
    go_on=st.sampled_from([0, 12, float("inf")]),
    in_order=st.booleans(),
    chunk=st.sampled_from([3, 20, 100]),
)
def test_any_number_answers_as_the_reference_does(
    lanes: int, max_rows: int, hold: int, go_on: float, in_order: bool, chunk: int
) -> None:
    engine = Engine(FAKE, Entropy(), pad_token=0, max_rows=max_rows, hold=hold, go_on=go_on, lanes=lanes)
    run = engine.run_in_order if in_order else engine.run
    done = list(run(units(), KNOBS, chunk=chunk))
    assert sorted(one.id for one in done) == list(range(len(TEXTS)))
    if in_order:
        assert [one.id for one in done] == list(range(len(TEXTS)))
    for one in done:
        truth = TRUTH[one.id]
        assert (one.exit_layer, one.layers_executed) == (truth.exit_layer, truth.layers_executed)
        np.testing.assert_array_equal(one.answer, truth.answer)
    assert not engine.busy
    executed = np.array([one.layers_executed for one in done])
    assert engine.counts.rows.tolist() == [int((executed > layer).sum()) for layer in range(4)]


def test_two_are_inside_at_once() -> None:
    runtime = Watched(together=2)  # the first two calls wait for each other
    engine = Engine(runtime, Entropy(), pad_token=0, max_rows=4, lanes=2)
    assert len(list(engine.run(units(), KNOBS))) == len(TEXTS)
    assert runtime.most == 2


@pytest.mark.parametrize("lanes", [1, 3])
def test_what_a_lane_raises_is_raised_and_nothing_stays_behind(lanes: int) -> None:
    engine = Engine(Watched(fails_at=5), Entropy(), pad_token=0, max_rows=4, lanes=lanes)
    with pytest.raises(ArithmeticError, match="this batch fails"):
        list(engine.run_in_order(units(), KNOBS))
    assert not engine.busy
    assert not engine._inputs
    assert not any(engine._parked)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("offramp-lane")]


def test_whoever_stops_reading_stops_the_lanes() -> None:
    def endless() -> Iterator[Unit]:
        return (Unit(number, TEXTS[number % len(TEXTS)]) for number in count())

    engine = Engine(FAKE, Entropy(), pad_token=0, max_rows=4, lanes=3)
    stream = engine.run_in_order(endless(), KNOBS, chunk=20)
    assert [one.id for one in islice(stream, 50)] == list(range(50))
    stream.close()  # type: ignore[attr-defined]
    assert not engine.busy
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("offramp-lane")]


def test_no_lane_at_all() -> None:
    with pytest.raises(KnobError, match="lanes must be 1 or more, not 0"):
        Engine(FAKE, Entropy(), pad_token=0, lanes=0)
