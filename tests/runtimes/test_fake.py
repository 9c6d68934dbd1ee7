"""The fake must be exact and must catch mistakes, or tests that stand on it prove nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from offramp.errors import KnobError
from offramp.inputs.batching import pad
from offramp.inputs.packing import keep
from offramp.inputs.tokens import Encoded
from offramp.runtimes.fake import FakeRuntime

TEXTS = [(np.arange(n) * 7 + start) % 31 + 1 for start, n in enumerate((3, 1, 6, 2, 6))]


def inputs(tokens, *, pad_token=0, types=None):
    encoded = [Encoded(t, None if types is None else np.full(len(t), types), False) for t in tokens]
    return pad(encoded, range(len(encoded)), pad_token=pad_token, token_types=types is not None)


def walk(runtime, given):
    hidden, batch = runtime.embed(given)
    memory, outputs = {}, []
    for stage in runtime.info.stages:
        hidden = runtime.run(stage, hidden, batch)
        output, memory = runtime.exit(stage, hidden, batch, memory)
        outputs.append(output)
    return outputs


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_are_equal_to_the_last_bit_alone_and_in_a_batch(memory, dtype):
    runtime = FakeRuntime(memory=memory, dtype=dtype)
    together = walk(runtime, inputs(TEXTS))
    for row, text in enumerate(TEXTS):
        for whole, alone in zip(together, walk(runtime, inputs([text])), strict=True):
            assert whole.logits.dtype == alone.logits.dtype == np.dtype(dtype)
            assert np.array_equal(whole.logits[row], alone.logits[0])
            assert np.array_equal(whole.extras["distances"][row], alone.extras["distances"][0])


def test_padding_tokens_do_not_matter_and_padding_is_poison():
    runtime = FakeRuntime()
    for zeros, others in zip(walk(runtime, inputs(TEXTS)), walk(runtime, inputs(TEXTS, pad_token=5)), strict=True):
        assert np.array_equal(zeros.logits, others.logits)
    hidden, batch = runtime.embed(inputs(TEXTS))
    hidden = runtime.run(runtime.info.stages[0], hidden, batch)
    padding = np.arange(hidden.shape[1]) >= batch.lengths[:, None]
    assert np.isnan(hidden[padding]).all()
    assert np.isfinite(hidden[~padding]).all()


def test_a_text_is_read_whole_and_in_order():
    runtime = FakeRuntime()
    last = [
        walk(runtime, inputs([np.array(tokens)]))[-1].logits for tokens in ([1, 2, 3], [3, 2, 1], [1, 2], [1, 2, 4])
    ]
    for i, one in enumerate(last):
        for other in last[:i]:
            assert not np.allclose(one, other)


def test_token_types_matter_where_they_are_given():
    runtime = FakeRuntime()
    without, zeros, ones = (walk(runtime, inputs(TEXTS, types=types))[0].logits for types in (None, 0, 1))
    assert not np.allclose(zeros, ones)
    assert not np.allclose(zeros, without)


def test_exits_disagree_and_so_do_texts():
    logits = np.stack([output.logits for output in walk(FakeRuntime(), inputs(TEXTS))])
    assert len(np.unique(logits)) == logits.size
    assert len(np.unique(logits.argmax(axis=-1))) > 1


def test_the_same_seed_is_the_same_model():
    first, again, other = (walk(FakeRuntime(seed=seed), inputs(TEXTS))[-1].logits for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_heads_remember_the_exits_before_them():
    forgetful = walk(FakeRuntime(), inputs(TEXTS))
    runtime = FakeRuntime(memory=True)
    remembering = walk(runtime, inputs(TEXTS))
    assert np.array_equal(forgetful[0].logits, remembering[0].logits)
    assert not np.allclose(forgetful[1].logits, remembering[1].logits)
    hidden, batch = runtime.embed(inputs(TEXTS))
    stage = runtime.info.stages[0]
    _, memory = runtime.exit(stage, runtime.run(stage, hidden, batch), batch, {})
    assert memory["exits"].tolist() == [1] * len(TEXTS)
    few, kept = keep(np.array([True, False, True, False, False]), (hidden, batch))
    with pytest.raises(ValueError, match="memory of 5 rows came with 2"):
        runtime.exit(stage, few, kept, memory)


def test_stages_of_chosen_exits():
    stages = FakeRuntime(6, exits=[4, 2]).info.stages
    assert [(s.index, s.first_layer, s.last_layer, s.layers, s.is_last) for s in stages] == [
        (0, 0, 2, 2, False),
        (1, 2, 4, 4, False),
        (2, 4, 6, 6, True),
    ]
    with pytest.raises(KnobError, match="1 to 6"):
        FakeRuntime(6, exits=[7])
    with pytest.raises(KnobError, match="1 to 6"):
        FakeRuntime(6, exits=[0, 3])


def test_what_is_declared_is_what_is_said():
    assert FakeRuntime(problem_type="regression").info.num_outputs == 1
    assert FakeRuntime(problem_type="regression").info.extras == {}
    assert FakeRuntime(distances=False).info.extras == {}
    assert all("distances" not in output.extras for output in walk(FakeRuntime(distances=False), inputs(TEXTS)))
    plain = walk(FakeRuntime(3, plain_last=True), inputs(TEXTS))
    assert [sorted(output.extras) for output in plain] == [["distances"], ["distances"], []]


def test_counts_what_enters_each_layer():
    runtime = FakeRuntime(4, exits=[3])
    hidden, batch = runtime.embed(inputs(TEXTS))
    assert runtime.rows_entered.tolist() == [0, 0, 0, 0]
    hidden = runtime.run(runtime.info.stages[0], hidden, batch)
    few, batch = keep(np.array([True, True, False, False, False]), (hidden, batch))
    runtime.run(runtime.info.stages[1], few, batch)
    assert runtime.rows_entered.tolist() == [5, 5, 5, 2]
    assert runtime.tokens_entered.tolist() == [18, 18, 18, 4]
    assert runtime.padded_tokens_entered.tolist() == [30, 30, 30, 12]
    runtime.reset_counts()
    assert runtime.rows_entered.tolist() == [0, 0, 0, 0]


def test_refuses_parts_that_do_not_belong_together():
    runtime = FakeRuntime()
    stage = runtime.info.stages[0]
    hidden, batch = runtime.embed(inputs(TEXTS))
    with pytest.raises(ValueError, match="disagree"):
        runtime.run(stage, hidden[:2], batch)
    with pytest.raises(ValueError, match="disagree"):
        runtime.exit(stage, hidden, replace(batch, lengths=batch.lengths[:2]), {})
    with pytest.raises(ValueError, match="do not fit"):
        runtime.run(stage, hidden[:, :3], replace(batch, tokens=batch.tokens[:, :3]))
