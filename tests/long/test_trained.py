"""What holds on tiny models holds on a trained one: any batch size, and the replay of the trace, say the same.

Needs real weights and data: OFFRAMP_WEIGHTS, a folder with the encoder ``minilm``, and OFFRAMP_DATA, with ``sst2``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from offramp.calibration.sweep import choose
from offramp.choosing import Setting
from offramp.criteria import make
from offramp.engine.record import record
from offramp.engine.units import Unit
from offramp.inputs.batching import pad
from offramp.pipeline import Classifier, load
from offramp.run import Run
from offramp.runtimes import open_runtime
from offramp.traces.replay import replay
from offramp.traces.store import load_trace
from offramp.training.data import load_examples
from offramp.training.train import Plan, train

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = Path(os.environ.get("OFFRAMP_WEIGHTS", "~/.cache/offramp-weights")).expanduser() / "minilm"
    data = Path(os.environ.get("OFFRAMP_DATA", "/nowhere")) / "sst2"
    if not weights.is_dir() or not data.is_dir():
        pytest.skip("needs OFFRAMP_WEIGHTS with minilm and OFFRAMP_DATA with sst2")
    out = tmp_path_factory.mktemp("long") / "run"
    train(Plan(model=str(weights), data=str(data), out=out, max_train_samples=4000, arguments={"num_train_epochs": 1}))
    return out


@pytest.mark.parametrize("name", ["entropy", "edr", "dr", "confidence", "patience"])
def test_any_batch_size_and_the_replay_say_the_same(run: Path, name: str) -> None:
    runtime, trace = open_runtime(run, "torch", device="cpu"), load_trace(run / "traces" / "dev")
    opened = Run.open(run)
    texts = load_examples(str(Path(os.environ["OFFRAMP_DATA"]) / "sst2"), Classifier(opened, runtime).task).texts
    criterion = make(name)
    point = choose(trace, criterion, speedup=1.5)
    expected = replay(trace, criterion, point.knobs)
    for batch_size in (1, 7, 32):
        classifier = Classifier(opened, runtime, batch_size=batch_size)
        found = list(classifier.stream(texts, Setting(criterion, point.knobs, "test")))
        assert [one.exit_layer for one in found] == trace.layers[expected.exits].tolist()
        labels = [opened.id2label[k] for k in np.argmax(expected.answers, axis=-1)]
        assert [one.label for one in found] == labels
    assert len({one.exit_layer for one in found}) > 2


def test_the_default_point_loads(run: Path) -> None:
    assert load(run)("a gem of a film").label in ("positive", "negative")


@pytest.mark.parametrize("int8", [None, "static", "rows"])
def test_openvino_says_the_same_to_the_last_bit(run: Path, tmp_path: Path, int8: str | None) -> None:
    """Real widths and lengths, and one text far longer than all others in every batch."""
    pytest.importorskip("openvino")
    from offramp.runtimes.export.openvino import export_openvino

    copy = Path(shutil.copytree(run, tmp_path / "run"))
    examples = load_examples(str(Path(os.environ["OFFRAMP_DATA"]) / "sst2"), load(copy).task)
    export_openvino(copy, int8=int8, exits="all", texts=examples.texts[:50], threads=1)
    classifier = load(copy, runtime="openvino", dtype="float32" if int8 is None else "int8", threads=1)
    encoded = classifier.encode([*examples.texts[50:250], "a long one " * 60])
    traces = [
        record(classifier.runtime, encoded, pad_token=0, id2label=classifier.run.id2label, batch_size=size)
        for size in (1, 32)
    ]
    assert np.array_equal(traces[0].logits, traces[1].logits)
    runtime, long = classifier.runtime, encoded[-1]
    for place in range(0, 200, 10):
        inputs = pad([*encoded[place : place + 10], long], range(11), pad_token=0, token_types=True)
        hidden, batch = runtime.embed(inputs)
        for exit_index, stage in enumerate(runtime.info.stages):
            hidden = runtime.run(stage, hidden, batch)
            output, _ = runtime.exit(stage, hidden, batch, {})
            assert np.array_equal(np.asarray(output.logits)[:10], traces[0].logits[exit_index, place : place + 10])
    setting = classifier.setting()
    expected = replay(traces[0], setting.criterion, setting.knobs)
    done = list(classifier.answers([Unit(i, text) for i, text in enumerate(encoded)], setting))
    assert [one.exit_index for one in done] == expected.exits.tolist()
    assert np.array_equal(np.stack([one.answer for one in done]), expected.answers)
