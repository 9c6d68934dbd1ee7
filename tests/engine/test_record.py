"""A trace holds what every exit said of every text, in the order of the texts."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.engine.record import record
from offramp.errors import DataError, KnobError
from offramp.inputs.batching import pad
from offramp.inputs.tokens import Encoded
from offramp.runtimes.fake import FakeRuntime

RNG = np.random.default_rng(5)
TEXTS = [Encoded(RNG.integers(1, 40, n).astype(np.int32), None, False) for n in RNG.integers(1, 13, 30)]
NAMES = {0: "no", 1: "maybe", 2: "yes"}


def one_by_one(runtime, texts):
    """[E, N, C] logits and distances (None where an exit gives none)."""
    logits, distances = [], []
    for i, text in enumerate(texts):
        hidden, batch = runtime.embed(pad([text], [i], pad_token=0, token_types=text.token_types is not None))
        memory, said = {}, []
        for stage in runtime.info.stages:
            hidden = runtime.run(stage, hidden, batch)
            output, memory = runtime.exit(stage, hidden, batch, memory)
            said.append(output)
        logits.append([output.logits[0] for output in said])
        distances.append([output.extras.get("distances", [None])[0] for output in said])
    return np.array(logits).swapaxes(0, 1), distances


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("memory", [False, True])
def test_a_trace_is_what_each_text_says_alone(batch_size, memory):
    runtime = FakeRuntime(memory=memory, exits=[1, 3, 5])
    trace = record(runtime, TEXTS, pad_token=0, id2label=NAMES, batch_size=batch_size)
    logits, distances = one_by_one(runtime, TEXTS)
    assert trace.logits.dtype == np.float32
    assert np.array_equal(trace.logits, logits)
    assert np.array_equal(trace.extras["distances"].swapaxes(0, 1), np.array(distances))
    assert trace.layers.tolist() == [1, 3, 5, 6]
    assert trace.lengths.tolist() == [len(text) for text in TEXTS]
    assert (trace.labels, trace.hashes, trace.model, trace.seconds) == (None, None, None, None)
    assert (trace.runtime, trace.batch_size, trace.dtype) == ("fake", batch_size, "float32")
    assert trace.problem_type == "single_label_classification"
    assert trace.id2label == NAMES


def test_every_layer_runs_once_for_every_text():
    runtime = FakeRuntime()
    record(runtime, TEXTS, pad_token=0, id2label=NAMES, batch_size=4)
    assert runtime.rows_entered.tolist() == [30] * 6
    assert runtime.tokens_entered.tolist() == [sum(map(len, TEXTS))] * 6
    assert (runtime.padded_tokens_entered <= 1.2 * runtime.tokens_entered).all()


def test_an_exit_without_extras_is_nan():
    trace = record(FakeRuntime(3, plain_last=True), TEXTS, pad_token=0, id2label=NAMES)
    assert np.isfinite(trace.extras["distances"][:-1]).all()
    assert np.isnan(trace.extras["distances"][-1]).all()
    assert np.isfinite(trace.logits).all()


@pytest.mark.parametrize(
    ("kind", "labels", "dtype"),
    [
        ("single_label_classification", [i % 3 for i in range(30)], np.int64),
        ("multi_label_classification", [[i % 2, 1, 0] for i in range(30)], np.bool_),
        ("regression", [i / 7 for i in range(30)], np.float32),
    ],
)
def test_labels_and_hashes_come_along_in_order(kind, labels, dtype):
    hashes = np.arange(30, dtype=np.uint64) * 7
    trace = record(
        FakeRuntime(problem_type=kind),
        TEXTS,
        pad_token=0,
        id2label=NAMES,
        labels=labels,
        hashes=hashes,
        model="abc",
    )
    assert trace.labels.dtype == dtype
    assert np.array_equal(trace.labels, np.array(labels, dtype=dtype))
    assert np.array_equal(trace.hashes, hashes)
    assert trace.model == "abc"


def test_progress_counts_every_text():
    seen: list[int] = []
    record(FakeRuntime(), TEXTS, pad_token=0, id2label=NAMES, batch_size=7, progress=seen.append)
    assert seen == [7, 7, 7, 7, 2]


def test_token_types_reach_the_runtime():
    texts = [Encoded(text.tokens, np.ones(len(text), np.int32), False) for text in TEXTS]
    runtime = FakeRuntime()
    trace = record(runtime, texts, pad_token=0, id2label=NAMES)
    assert np.array_equal(trace.logits, one_by_one(runtime, texts)[0])
    assert not np.allclose(trace.logits, one_by_one(runtime, TEXTS)[0])


def test_refuses_what_cannot_be_recorded():
    for texts in ([], [*TEXTS, Encoded(np.zeros(0, np.int32), None, False)]):
        with pytest.raises(DataError, match="at least one"):
            record(FakeRuntime(), texts, pad_token=0, id2label=NAMES)
    with pytest.raises(DataError):
        record(FakeRuntime(), TEXTS, pad_token=0, id2label=NAMES, labels=[0])
    with pytest.raises(KnobError):
        record(FakeRuntime(), TEXTS, pad_token=0, id2label=NAMES, batch_size=0)
