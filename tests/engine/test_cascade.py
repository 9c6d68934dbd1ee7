"""Several complete models in one runtime: only those that are needed run, and only on the rows that need them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from offramp.criteria.confidence import Confidence
from offramp.criteria.depth import Depth
from offramp.engine.engine import Engine
from offramp.engine.record import record
from offramp.engine.reference import reference
from offramp.engine.units import Finished, Unit
from offramp.inputs.tokens import Encoded
from offramp.runtimes.fake import FakeRuntime
from offramp.traces.replay import replay, scores
from offramp.traces.trace import Trace

RNG = np.random.default_rng(5)
TEXTS = [Encoded(RNG.integers(1, 40, n).astype(np.int32), None, False) for n in RNG.integers(1, 13, 40)]
LENGTHS = np.array([len(text) for text in TEXTS])
NAMES = {0: "no", 1: "maybe", 2: "yes"}


def cascade(members: tuple[int, ...] = (2,)) -> FakeRuntime:
    return FakeRuntime(12, members=members)


def recorded(runtime: FakeRuntime) -> Trace:
    return record(runtime, TEXTS, pad_token=0, id2label=NAMES)


def answered(engine: Engine, knobs: Any) -> list[Finished]:
    engine.add([Unit(i, text) for i, text in enumerate(TEXTS)], knobs)
    done = {}
    while engine.busy:
        done.update((unit.id, unit) for unit in engine.step())
    return [done[i] for i in range(len(TEXTS))]


def share_that_leaves(trace: Trace, share: float) -> float:
    """A threshold between two neighbouring scores at which about so many leave at the first exit."""
    ordered = np.sort(scores(trace, Confidence())[0])
    place = int(share * (len(ordered) - 1))
    return float((ordered[place] + ordered[place + 1]) / 2)


def test_what_it_says_of_itself() -> None:
    info = cascade((2, 4)).info
    assert [(s.first_layer, s.last_layer, s.layers, s.starts_from) for s in info.stages] == [
        (0, 2, 2, "hidden"),
        (0, 4, 6, "inputs"),
        (0, 12, 18, "inputs"),
    ]
    assert info.num_layers == 12
    assert FakeRuntime(12).info.num_layers == 12


def test_each_model_answers_as_if_it_were_alone() -> None:
    trace, alone = recorded(cascade((2, 4))), recorded(FakeRuntime(12, exits=[2, 4]))
    np.testing.assert_array_equal(trace.logits, alone.logits)
    assert trace.layers.tolist() == [2, 6, 18]
    assert trace.num_layers == 12


@pytest.mark.parametrize("max_rows", [1, 7, 32])
@pytest.mark.parametrize("members", [(2,), (2, 4)])
def test_engine_reference_and_replay_agree(max_rows: int, members: tuple[int, ...]) -> None:
    runtime = cascade(members)
    trace = recorded(runtime)
    for share in (0.2, 0.6):
        knobs = {"threshold": share_that_leaves(trace, share)}
        expected, slow = replay(trace, Confidence(), knobs), reference(runtime, Confidence(), TEXTS, knobs)
        fast = answered(Engine(runtime, Confidence(), pad_token=0, max_rows=max_rows), knobs)
        assert [f.exit_layer for f in fast] == trace.layers[expected.exits].tolist()
        assert [f.exit_layer for f in fast] == [f.layers_executed for f in fast] == [f.exit_layer for f in slow]
        np.testing.assert_array_equal(np.stack([f.answer for f in fast]), expected.answers)
        np.testing.assert_array_equal(np.stack([f.answer for f in slow]), expected.answers)


@pytest.mark.parametrize("max_rows", [1, 32])
def test_the_large_model_computes_only_the_rows_that_reach_it(max_rows: int) -> None:
    runtime = cascade()
    trace = recorded(runtime)
    runtime.reset_counts()
    engine = Engine(runtime, Confidence(), pad_token=0, max_rows=max_rows)
    done = answered(engine, {"threshold": share_that_leaves(trace, 0.7)})
    reached = np.array([unit.exit_layer == 14 for unit in done])
    assert 8 < reached.sum() < 20
    assert engine.counts.rows.tolist() == [len(TEXTS), reached.sum()]
    assert engine.counts.tokens.tolist() == [LENGTHS.sum(), LENGTHS[reached].sum()]
    # The first two layers belong to both models here.
    assert runtime.rows_entered.tolist() == [len(TEXTS) + reached.sum()] * 2 + [reached.sum()] * 10
    assert (
        runtime.tokens_entered.tolist() == [LENGTHS.sum() + LENGTHS[reached].sum()] * 2 + [LENGTHS[reached].sum()] * 10
    )


def test_where_nobody_is_sure_all_pay_for_both() -> None:
    engine = Engine(cascade(), Confidence(), pad_token=0)
    done = answered(engine, {"threshold": 0.0})
    assert {(unit.exit_layer, unit.layers_executed, unit.exit_index) for unit in done} == {(14, 14, 1)}
    assert engine.counts.rows.tolist() == [40, 40]


def test_at_full_depth_the_small_model_does_not_run() -> None:
    runtime = cascade()
    expected = recorded(runtime).logits[-1]
    runtime.reset_counts()
    engine = Engine(runtime, Depth(), pad_token=0)
    done = answered(engine, None)
    assert {(unit.exit_layer, unit.layers_executed) for unit in done} == {(14, 12)}
    assert runtime.rows_entered.tolist() == [40] * 12
    assert engine.counts.rows.tolist() == [0, 40]
    np.testing.assert_array_equal(np.stack([unit.answer for unit in done]), expected)


def test_texts_that_may_go_no_further_are_answered_by_the_small_model() -> None:
    """Beside others, in the same batches, that go to full depth."""
    runtime = cascade()
    first, last = recorded(runtime).logits
    knobs = [{"max_layers": 2.0} if i % 3 == 0 else {} for i in range(len(TEXTS))]
    done = answered(Engine(runtime, Depth(), pad_token=0), knobs)
    for i, unit in enumerate(done):
        assert unit.exit_layer == (2 if i % 3 == 0 else 14)
        np.testing.assert_array_equal(unit.answer, first[i] if i % 3 == 0 else last[i])


def test_rows_that_wait_for_a_larger_model_carry_no_hidden_states() -> None:
    engine = Engine(cascade(), Confidence(), pad_token=0, hold=100)
    engine.add([Unit(i, text) for i, text in enumerate(TEXTS)], {"threshold": 0.0})
    engine.step()
    assert engine.in_flight > 0
    assert all(group.rows.hidden.shape[-1] == 0 for group in engine._parked[1])
