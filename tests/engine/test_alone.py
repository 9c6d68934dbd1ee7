"""Texts one at a time, past the engine: the same answers, the same layers, nothing else computed."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.criteria.base import Criterion
from offramp.criteria.confidence import Confidence
from offramp.criteria.depth import Depth
from offramp.criteria.distance import EDR
from offramp.criteria.entropy import Entropy
from offramp.criteria.patience import Patience, PatienceDelta
from offramp.engine.alone import Alone
from offramp.engine.engine import Engine
from offramp.engine.units import Finished, Unit
from offramp.errors import DataError, KnobError, UnsupportedError
from offramp.inputs.tokens import Encoded
from offramp.runtimes.fake import FakeRuntime

RNG = np.random.default_rng(3)
TEXTS = [Encoded(RNG.integers(1, 40, n).astype(np.int32), None, False) for n in RNG.integers(1, 13, 20)]
UNITS = [Unit(number, text) for number, text in enumerate(TEXTS)]


def answers(found: list[Finished]) -> list[tuple[int, int, int, int, bytes]]:
    return [(f.id, f.exit_layer, f.exit_index, f.layers_executed, f.answer.tobytes()) for f in found]


def one_by_one(runtime: Any, criterion: Criterion, knobs: Mapping[str, float]) -> list[Finished]:
    alone = Alone(runtime, criterion, knobs)
    return [alone.answer(unit) for unit in UNITS]


RULES: list[tuple[Criterion, dict[str, float]]] = [
    (Entropy(), {"threshold": 0.4}),
    (Entropy(), {"threshold": 0.2, "max_layers": 3.0}),
    (EDR(), {"threshold": 0.31}),
    (Patience(), {"patience": 2.0}),
    (Depth(), {}),
    (Depth(), {"layers": 2.0}),
    (Depth(), {"max_layers": 1.0}),
]
RUNTIMES: dict[str, dict[str, Any]] = {
    "plain": {},
    "memory": {"memory": True},
    "chosen exits": {"exits": [2, 4]},
    "one exit": {"exits": [4]},
    "members": {"members": (1, 2)},
}


@pytest.mark.parametrize("kind", RUNTIMES)
@pytest.mark.parametrize(("criterion", "knobs"), RULES)
def test_as_an_engine_whose_batches_hold_one_row(criterion: Criterion, knobs: Mapping[str, float], kind: str) -> None:
    ours, theirs = (FakeRuntime(4, hidden_size=4, **RUNTIMES[kind]) for _ in range(2))
    engine = Engine(theirs, criterion, pad_token=0, max_rows=1)
    assert answers(one_by_one(ours, criterion, knobs)) == answers(list(engine.run_in_order(UNITS, knobs)))
    assert ours.rows_entered.tolist() == theirs.rows_entered.tolist()
    assert ours.tokens_entered.tolist() == ours.padded_tokens_entered.tolist() == theirs.tokens_entered.tolist()


@given(st.floats(0, 1), st.integers(1, 4))
def test_any_threshold_and_cap(threshold: float, cap: int) -> None:
    knobs = {"threshold": threshold, "max_layers": float(cap)}
    runtime = FakeRuntime(4, hidden_size=4)
    engine = Engine(runtime, Confidence(), pad_token=0)
    assert answers(one_by_one(runtime, Confidence(), knobs)) == answers(list(engine.run_in_order(UNITS, knobs)))


def test_regression() -> None:
    runtime = FakeRuntime(4, problem_type="regression")
    engine = Engine(runtime, PatienceDelta(), pad_token=0)
    knobs = {"delta": 0.6, "patience": 1.0}
    found = one_by_one(runtime, PatienceDelta(), knobs)
    assert answers(found) == answers(list(engine.run_in_order(UNITS, knobs)))
    assert len({one.exit_layer for one in found}) > 1


def test_token_types_are_read() -> None:
    runtime = FakeRuntime(4)
    text = TEXTS[0]
    typed = Encoded(text.tokens, np.ones_like(text.tokens), False)
    alone = Alone(runtime, Depth())
    (expected,) = Engine(runtime, Depth(), pad_token=0).run([Unit(0, typed)])
    assert answers([alone.answer(Unit(0, typed))]) == answers([expected])
    assert answers([alone.answer(Unit(0, text))]) != answers([expected])


def test_several_threads_share_one() -> None:
    runtime = FakeRuntime(4)
    alone = Alone(runtime, Entropy(), {"threshold": 0.4})
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(alone.answer, UNITS * 10))
    assert answers(found) == 10 * answers(one_by_one(runtime, Entropy(), {"threshold": 0.4}))


def test_what_cannot_be() -> None:
    runtime = FakeRuntime(4)
    with pytest.raises(KnobError, match="has no knob 'patience'"):
        Alone(runtime, Entropy(), {"patience": 1.0})
    with pytest.raises(UnsupportedError, match="needs distances"):
        Alone(FakeRuntime(4, distances=False), EDR())
    nothing = Encoded(np.zeros(0, dtype=np.int32), None, False)
    with pytest.raises(DataError, match="unit 7 has no tokens"):
        Alone(runtime, Entropy()).answer(Unit(7, nothing))
