"""The engine against its slow twin, whatever is added, stepped and cancelled in whatever order."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.criteria.base import Criterion
from offramp.criteria.depth import Depth
from offramp.criteria.distance import EDR
from offramp.criteria.entropy import Entropy
from offramp.criteria.patience import Patience
from offramp.engine.engine import Engine
from offramp.engine.reference import reference
from offramp.engine.units import Unit
from offramp.errors import DataError, KnobError, OfframpError, UnsupportedError
from offramp.inputs.tokens import Encoded
from offramp.runtimes.fake import FakeRuntime
from offramp.types import Batch, Decision, ExitOutput

RNG = np.random.default_rng(3)
TEXTS = [Encoded(RNG.integers(1, 40, n).astype(np.int32), None, False) for n in RNG.integers(1, 13, 24)]
CRITERIA: dict[str, Criterion] = {"entropy": Entropy(), "edr": EDR(), "patience": Patience(), "depth": Depth()}
KNOBS = {
    "entropy": [{"threshold": 0.05}, {"threshold": 0.4}, {}, {"max_layers": 3, "threshold": 0.2}, {"max_layers": 1}],
    "edr": [{"threshold": 0.11}, {"threshold": 0.31}, {"max_layers": 2}],
    "patience": [{"patience": 1}, {"patience": 2}, {}],
    "depth": [{}, {"layers": 1}, {"layers": 3}],
}


class InTorch:
    """The fake behind torch tensors, made in inference mode as a real runtime would."""

    def __init__(self, fake: FakeRuntime) -> None:
        self.fake, self.info = fake, fake.info

    @torch.inference_mode()
    def embed(self, inputs):
        hidden, batch = self.fake.embed(inputs)
        return torch.from_numpy(hidden), Batch(*(torch.tensor(a) for a in (batch.ids, batch.tokens, batch.lengths)))

    @torch.inference_mode()
    def run(self, stage, hidden, batch, active=None):
        return torch.from_numpy(self.fake.run(stage, hidden.numpy(), self._batch(batch)))

    @torch.inference_mode()
    def exit(self, stage, hidden, batch, memory):
        memory = {name: values.numpy() for name, values in memory.items()}
        output, memory = self.fake.exit(stage, hidden.numpy(), self._batch(batch), memory)
        extras = {name: torch.from_numpy(values) for name, values in output.extras.items()}
        memory = {name: torch.from_numpy(values) for name, values in memory.items()}
        return ExitOutput(torch.from_numpy(output.logits), extras), memory

    @staticmethod
    def _batch(batch):
        return Batch(batch.ids.numpy(), batch.tokens.numpy(), batch.lengths.numpy())


class Deferring(InTorch):
    """Says when what is asked of it, and when the host has to wait for it."""

    def __init__(self, fake: FakeRuntime) -> None:
        super().__init__(fake)
        self.info = replace(fake.info, deferred=True)
        self.seen: list[str] = []

    def send(self, array):
        return torch.from_numpy(array)

    def exit(self, stage, hidden, batch, memory):
        self.seen.append(f"exit {stage.index}")
        return super().exit(stage, hidden, batch, memory)

    def fetch(self, array):
        def wait():
            self.seen.append("wait")
            return array.numpy()

        return wait


@cache
def fake(memory: bool) -> FakeRuntime:
    return FakeRuntime(4, memory=memory, hidden_size=4, plain_last=memory)


@cache
def truth(name: str, memory: bool, which: int, text: int):
    return reference(fake(memory), CRITERIA[name], [TEXTS[text]], KNOBS[name][which])[0]


def same(ours, slow):
    assert ours.exit_layer == slow.exit_layer
    assert ours.exit_index == slow.exit_index
    assert ours.layers_executed == slow.layers_executed
    assert ours.answer.shape == slow.answer.shape
    assert np.array_equal(ours.answer, slow.answer)


def units(ids):
    return [Unit(i, TEXTS[i % len(TEXTS)]) for i in ids]


def finish(engine):
    found = []
    while engine.busy:
        found += engine.step()
    return found


def entropy_engine(**settings):
    return Engine(fake(False), Entropy(), pad_token=0, **settings)


ACTION = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 7), st.integers(0, 4)),
    st.tuples(st.just("step"), st.integers(1, 6), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 80), st.integers(1, 4)),
)


@settings(deadline=None, max_examples=60)
@given(
    actions=st.lists(ACTION, max_size=25),
    name=st.sampled_from(sorted(CRITERIA)),
    memory=st.booleans(),
    in_torch=st.sampled_from(["", "at once", "deferring"]),
    max_rows=st.integers(1, 5),
    max_tokens=st.sampled_from([None, 6, 25]),
    patience_steps=st.integers(0, 5),
    hold=st.integers(1, 3),
    go_on=st.sampled_from([0, 10, math.inf]),
    ahead=st.sampled_from([None, 0, 1, 3]),
)
def test_any_interleaving_finishes_each_unit_once_as_the_reference_would(
    actions, name, memory, in_torch, max_rows, max_tokens, patience_steps, hold, go_on, ahead
):
    runtime = (Deferring if in_torch == "deferring" else InTorch)(fake(memory)) if in_torch else fake(memory)
    engine = Engine(
        runtime,
        CRITERIA[name],
        pad_token=0,
        max_rows=max_rows,
        max_tokens=max_tokens,
        patience_steps=patience_steps,
        hold=hold,
        go_on=go_on,
        ahead=ahead,
    )
    ahead = runtime.info.deferred if ahead is None else ahead
    chosen: dict[int, int] = {}  # unit -> which knobs
    finished: dict[int, object] = {}
    cancelled: set[int] = set()

    def step():
        for one in engine.step():
            assert one.id not in finished
            assert one.id not in cancelled
            finished[one.id] = one
        bound = (len(runtime.info.stages) - 1) * (hold * max_rows - 1) + max_rows
        assert engine.in_flight <= bound + ahead * max_rows

    for action, n, which in actions:
        if action == "add":
            new = units(range(len(chosen), len(chosen) + n))
            each = [(which + i) % len(KNOBS[name]) for i in range(n)]
            engine.add(new, [KNOBS[name][k] for k in each])
            chosen.update(zip((unit.id for unit in new), each, strict=True))
        elif action == "step":
            for _ in range(n):
                step()
        else:
            asked = range(n, n + which)
            here = set(asked) & chosen.keys() - finished.keys() - cancelled
            assert set(engine.cancel(asked)) == here
            cancelled |= here
    while engine.busy:
        step()

    assert finished.keys() == chosen.keys() - cancelled
    for unit, one in finished.items():
        same(one, truth(name, memory, chosen[unit], unit % len(TEXTS)))
    assert engine.step() == []
    assert engine.in_flight == engine.waiting == 0
    assert not engine._inputs
    assert not any(engine._parked)


def test_padding_stays_within_its_bound_and_batches_are_full():
    engine = entropy_engine(max_rows=8)
    engine.add(units(range(24 * 20)), {"threshold": 0.4})
    finish(engine)
    counts = engine.counts
    assert (counts.padded_tokens <= 1.5 * counts.tokens).all()
    assert counts.rows[0] == 480
    assert 0 < counts.rows[-1] < 480
    # A late stage runs survivors of several batches together: at least 3 of 4 places are taken.
    assert (counts.rows >= 0.75 * 8 * counts.batches).all()


def test_survivors_of_different_batches_meet():
    engine = Engine(fake(False), Depth(), pad_token=0, max_rows=4)
    engine.add([Unit(i, TEXTS[0]) for i in range(8)], [{"layers": 1 if i % 2 else 4} for i in range(8)])
    finish(engine)
    assert engine.counts.rows.tolist() == [8, 4, 4, 4]
    assert engine.counts.batches.tolist() == [2, 1, 1, 1]


@pytest.mark.parametrize("hold", [1, 3])
def test_few_survivors_do_not_keep_all_of_their_batches(hold):
    engine = Engine(fake(False), Depth(), pad_token=0, max_rows=8, hold=hold, go_on=math.inf)
    engine.add([Unit(i, TEXTS[0]) for i in range(256)], [{"layers": 4 if i % 8 == 0 else 1} for i in range(256)])
    most, finished = 0, []
    while engine.busy:
        finished += engine.step()
        most = max(most, *(sum(len(group.rows.ids) for group in groups) for groups in engine._parked))
    assert len(finished) == 256
    # Without compaction, the one survivor of each batch would keep the seven that left: 8 x hold batches of 8.
    assert 8 * hold < most <= 2 * 8 * hold


def test_nothing_is_compacted_where_all_stay_or_all_leave(monkeypatch):
    from offramp.engine import rows as module

    def no(*_, **__):
        raise AssertionError("a needless copy")

    for name in ("gather", "take", "merge"):
        monkeypatch.setattr(module, name, no)
    engine = Engine(fake(False), Depth(), pad_token=0, waste=float("inf"))
    engine.add(units(range(6)), {"layers": 3})
    assert len(finish(engine)) == 6
    assert engine.counts.batches.tolist() == [1, 1, 1, 0]
    assert engine.counts.rows.tolist() == [6, 6, 6, 0]


def test_the_next_batch_is_queued_before_the_host_waits():
    runtime = Deferring(fake(False))
    engine = Engine(runtime, Depth(), pad_token=0, max_rows=2, hold=1, waste=math.inf)
    engine.add(units(range(4)), {"layers": 2})  # exit 0 is not asked, at exit 1 all leave
    assert [len(engine.step()) for _ in range(6)] == [0, 0, 0, 2, 2, 0]
    assert runtime.seen == ["exit 1", "exit 1", "wait", "wait"]
    engine = Engine(runtime, Depth(), pad_token=0, max_rows=2, hold=1, waste=math.inf, ahead=0)
    engine.add(units(range(4)), {"layers": 2})
    finish(engine)
    assert runtime.seen[4:] == ["exit 1", "wait"] * 2


def test_units_with_an_exit_are_here_and_can_be_cancelled():
    engine = Engine(Deferring(fake(False)), Depth(), pad_token=0, max_rows=3, waste=math.inf)
    engine.add(units(range(3)), {"layers": 1})
    assert engine.step() == []
    assert engine.busy
    assert (engine.waiting, engine.in_flight) == (0, 3)
    with pytest.raises(DataError, match="unit 1 is already in the engine"):
        engine.add(units([1]))
    assert engine.cancel([1, 7]) == [1]
    assert engine.in_flight == 2
    assert [one.id for one in engine.step()] == [0, 2]
    engine.add(units([4, 5]), {"layers": 1})
    engine.step()
    assert sorted(engine.cancel([4, 5])) == [4, 5]
    assert not engine.busy


def test_a_hard_text_is_not_starved_by_easy_ones():
    """Easy texts keep coming; with patience the hard one comes out all the same, without it stays."""

    def steps_until_out(patience_steps, most):
        engine = Engine(fake(False), Depth(), pad_token=0, max_rows=4, patience_steps=patience_steps)
        engine.add([Unit(0, TEXTS[0])], {})
        for step in range(1, most + 1):
            engine.add([Unit(4 * step + i, TEXTS[0]) for i in range(4)], {"layers": 1})
            if any(one.id == 0 for one in engine.step()):
                return step
        return None

    assert steps_until_out(5, 100) == 4 + 3 * 5
    assert steps_until_out(0, 100) == 4
    assert steps_until_out(1000, 100) is None


def test_a_hard_text_waits_no_longer_than_promised_when_many_are_hard():
    stages, max_rows, patience = 4, 3, 2
    engine = Engine(fake(False), Depth(), pad_token=0, max_rows=max_rows, patience_steps=patience)
    rng = np.random.default_rng(0)
    admitted, step, worst = {}, 0, 0
    while step < 400:
        before = set(engine._inputs)
        new = range(10 * step, 10 * step + int(rng.integers(0, 3)))
        engine.add(units(new), [{"layers": int(rng.choice([1, 2, 4]))} for _ in new])
        done, step = engine.step(), step + 1
        admitted.update((unit, step) for unit in (before | set(new)) - set(engine._inputs))
        worst = max([worst, *(step - admitted.pop(one.id) for one in done)])
    assert 0 < worst <= (stages - 1) * (patience + stages * max_rows)


# Knobs, and what is refused


def test_each_unit_has_its_own_knobs():
    engine = entropy_engine()
    engine.add(units(range(5)), [KNOBS["entropy"][i] for i in range(5)])
    found = finish(engine)
    assert len(found) == 5
    for one in found:
        same(one, truth("entropy", False, one.id, one.id))


def test_max_layers_leaves_at_the_first_exit_that_deep_or_deeper():
    engine = Engine(FakeRuntime(6, exits=[2, 4]), Depth(), pad_token=0)
    engine.add(units(range(6)), [{"max_layers": n} for n in range(1, 7)])
    assert {one.id: one.exit_layer for one in finish(engine)} == {0: 2, 1: 2, 2: 4, 3: 4, 4: 6, 5: 6}


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"treshold": 0.1}, "has no knob 'treshold': it has max_layers, threshold"),
        ({"threshold": 7}, "threshold must be between 0 and 1.01"),
        ({"threshold": float("nan")}, "threshold must be between"),
        ({"threshold": "high"}, "threshold must be a number"),
        ({"max_layers": 1.5}, "max_layers must be a whole number"),
        ({"max_layers": 0}, "max_layers must be between"),
    ],
)
def test_wrong_knobs_are_refused_and_nothing_is_taken(knobs, message):
    engine = entropy_engine()
    for given_knobs in (knobs, [{}, knobs]):
        with pytest.raises(KnobError, match=message):
            engine.add(units(range(2)), given_knobs)
    with pytest.raises(KnobError, match=message):
        engine.run([], knobs)
    with pytest.raises(KnobError, match=message):
        reference(fake(False), Entropy(), TEXTS[:1], knobs)
    assert not engine.busy


def test_units_that_cannot_be_run_are_refused_and_nothing_is_taken():
    engine = entropy_engine()
    engine.add(units([1]))
    with pytest.raises(DataError, match="unit 1 is already"):
        engine.add(units([2, 1]))
    with pytest.raises(DataError, match="unit 3 is already"):
        engine.add(units([3, 3]))
    with pytest.raises(DataError, match="unit 4 has no tokens"):
        engine.add([*units([3]), Unit(4, Encoded(np.zeros(0, np.int32), None, False))])
    with pytest.raises(DataError, match="different tokenizer"):
        engine.add([Unit(5, replace(TEXTS[0], token_types=np.zeros(len(TEXTS[0]), np.int32)))])
    with pytest.raises(DataError, match="2 units came with knobs for 1"):
        engine.add(units([6, 7]), [{}])
    assert engine.waiting == 1
    assert [one.id for one in finish(engine)] == [1]
    engine.add(units([1]))  # gone, so the number is free again
    engine.add([])
    assert [one.id for one in finish(engine)] == [1]


def test_a_criterion_that_does_not_fit_is_refused():
    for make in (lambda *a: Engine(*a, pad_token=0), lambda *a: reference(*a, [])):
        with pytest.raises(UnsupportedError, match="regression"):
            make(FakeRuntime(problem_type="regression"), Entropy())
        with pytest.raises(UnsupportedError, match="needs distances"):
            make(FakeRuntime(distances=False), EDR())


@pytest.mark.parametrize(
    "wrong", [{"max_rows": 0}, {"max_tokens": 0}, {"patience_steps": -1}, {"waste": 0.5}, {"ahead": -1}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(KnobError):
        entropy_engine(**wrong)


def test_token_types_reach_the_runtime():
    texts = [replace(text, token_types=(np.arange(len(text)) % 2).astype(np.int32)) for text in TEXTS]
    engine = Engine(fake(False), Depth(), pad_token=0, max_rows=5)
    with_types = list(engine.run_in_order(Unit(i, text) for i, text in enumerate(texts)))
    for one, slow, without in zip(
        with_types, reference(fake(False), Depth(), texts), reference(fake(False), Depth(), TEXTS), strict=True
    ):
        same(one, slow)
        assert not np.array_equal(one.answer, without.answer) or len(TEXTS[one.id]) == 1


def test_a_batch_that_fails_is_gone_and_the_others_go_on():
    class Fails(FakeRuntime):
        def run(self, stage, hidden, batch, active=None):
            if stage.index == 1 and 2 in batch.ids:
                raise MemoryError("too much")
            return super().run(stage, hidden, batch, active)

    engine = Engine(Fails(4), Depth(), pad_token=0, max_rows=1)
    engine.add(units(range(4)))
    found = []
    while engine.busy:
        try:
            found += engine.step()
        except MemoryError:
            continue
    assert sorted(one.id for one in found) == [0, 1, 3]
    engine.add(units([2]), {"max_layers": 1})
    assert [one.id for one in finish(engine)] == [2]


def test_an_answer_of_the_criterions_own_is_what_comes_out():
    @dataclass(frozen=True, kw_only=True)
    class Constant(Depth):
        def step(self, stage, output, state, knobs):
            decision, state = super().step(stage, output, state, knobs)
            return Decision(decision.leave, output.logits * 0 + stage.layers), state

    engine = Engine(fake(False), Constant(), pad_token=0)
    engine.add(units(range(3)), [{"layers": n} for n in (1, 2, 4)])
    assert {one.id: one.answer.tolist() for one in finish(engine)} == {0: [1] * 3, 1: [2] * 3, 2: [4] * 3}


def test_bfloat16_answers_come_out_as_float32():
    class Half(InTorch):
        def exit(self, stage, hidden, batch, memory):
            output, memory = super().exit(stage, hidden, batch, memory)
            return ExitOutput(output.logits.to(torch.bfloat16)), memory

    engine = Engine(Half(fake(False)), Depth(), pad_token=0)
    engine.add(units([0]))
    (one,) = finish(engine)
    slow = reference(fake(False), Depth(), TEXTS[:1])[0]
    assert one.answer.dtype == np.float32
    assert one.answer.tolist() == torch.tensor(slow.answer).to(torch.bfloat16).float().tolist()
    (again,) = reference(Half(fake(False)), Depth(), TEXTS[:1])
    assert again.answer.dtype == np.float32
    assert again.answer.tolist() == one.answer.tolist()


# Streams


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(0, 70),
    chunk=st.integers(1, 40),
    max_rows=st.integers(1, 6),
    which=st.integers(0, 3),
    ahead=st.integers(0, 2),
)
def test_streams_answer_everybody_and_keep_order_where_asked(n, chunk, max_rows, which, ahead):
    engine = entropy_engine(max_rows=max_rows, ahead=ahead)
    knobs = KNOBS["entropy"][which]
    anyhow = list(engine.run(units(range(n)), knobs, chunk=chunk))
    assert sorted(one.id for one in anyhow) == list(range(n))
    ordered = list(engine.run_in_order(units(range(n)), knobs, chunk=chunk))
    assert [one.id for one in ordered] == list(range(n))
    for one in [*anyhow, *ordered]:
        same(one, truth("entropy", False, which, one.id % len(TEXTS)))


@pytest.mark.parametrize("method", ["run", "run_in_order"])
def test_a_stream_is_read_as_needed(method):
    """An endless stream: what was read and has not come out stays within two chunks and what is parked."""
    engine = entropy_engine(max_rows=4, hold=2)
    read = 0

    def endless():
        nonlocal read
        while True:
            yield units([read])[0]
            read += 1

    stream = getattr(engine, method)(endless(), {"threshold": 0.4}, chunk=20)
    assert read == 0
    for out in range(1, 300):
        next(stream)
        assert read - out <= 2 * 20 + 4 + (5 if method == "run" else 0) * 2 * 4
    stream.close()
    assert not engine.busy
    assert not any(engine._parked)
    engine.add(units([0]))
    assert len(finish(engine)) == 1


@pytest.mark.parametrize("method", ["run", "run_in_order"])
def test_streams_refuse_what_they_cannot_do(method):
    engine = entropy_engine()
    with pytest.raises(KnobError, match="chunk"):
        getattr(engine, method)(units([1]), chunk=0)
    with pytest.raises(DataError, match="unit 1 "):
        list(getattr(engine, method)(units([1, 2, 1])))
    assert not engine.busy
    engine.add(units([1]))
    with pytest.raises(OfframpError, match="busy"):
        getattr(engine, method)(units([2]))


def test_in_order_refuses_a_number_that_is_held_back():
    knobs = KNOBS["entropy"][1]
    left_at = {truth("entropy", False, 1, i).exit_layer: text for i, text in enumerate(TEXTS)}
    hard, easy = left_at[4], left_at[1]
    engine = entropy_engine(max_rows=2, waste=float("inf"))
    with pytest.raises(DataError, match="unit 1 came twice"):
        list(engine.run_in_order([Unit(0, hard), Unit(1, easy), Unit(1, easy)], knobs, chunk=2))
    # Once the first is out, its number is free.
    stream = [Unit(0, easy), *(Unit(i, easy) for i in range(1, 9)), Unit(0, hard)]
    assert [one.id for one in engine.run_in_order(stream, knobs, chunk=1)] == [*range(9), 0]


def test_exits_where_nobody_can_leave_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(num_layers=4)
    asked: list[int] = []
    run_exit = runtime.exit
    monkeypatch.setattr(runtime, "exit", lambda stage, *rest: (asked.append(stage.layers), run_exit(stage, *rest))[1])
    texts = [Encoded(np.arange(1, n, dtype=np.int32), None, False) for n in (3, 9, 5)]
    engine = Engine(runtime, Depth(), pad_token=0)
    assert [one.exit_layer for one in engine.run_in_order(Unit(i, t) for i, t in enumerate(texts))] == [4, 4, 4]
    assert set(asked) == {4}
    asked.clear()
    capped = list(engine.run_in_order((Unit(i, t) for i, t in enumerate(texts)), {"layers": 2}))
    assert [one.exit_layer for one in capped] == [2, 2, 2]
    assert set(asked) == {2}


def test_heads_that_remember_are_all_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(num_layers=4, memory=True)
    asked: list[int] = []
    run_exit = runtime.exit
    monkeypatch.setattr(runtime, "exit", lambda stage, *rest: (asked.append(stage.layers), run_exit(stage, *rest))[1])
    engine = Engine(runtime, Depth(), pad_token=0)
    list(engine.run_in_order([Unit(0, Encoded(np.arange(1, 4, dtype=np.int32), None, False))]))
    assert asked == [1, 2, 3, 4]
