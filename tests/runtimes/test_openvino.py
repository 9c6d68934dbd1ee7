"""OpenvinoRuntime besides the contract: shapes in steps, serving without torch, and exports that cannot be used."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offramp
from offramp.engine.record import record
from offramp.engine.units import Unit
from offramp.errors import KnobError, MissingExtraError, RunError
from offramp.inputs.batching import pad
from offramp.inputs.packing import keep, trim
from offramp.pipeline import Classifier
from offramp.runtimes import check_installed, cpu, open_runtime
from offramp.runtimes import openvino as module
from offramp.runtimes.base import InCompany
from offramp.runtimes.export.onnx import export_onnx
from offramp.runtimes.export.openvino import LENGTH_STEP, compressed, export_openvino, quantised
from offramp.runtimes.manifest import FORMAT, read_manifest
from offramp.runtimes.openvino import KERNELS, OpenvinoRuntime, _padded, core, has_bfloat16, padded_rows, settings
from offramp.traces.replay import replay

TEXTS = ["a lovely gem of a film", "the dull town", "gem " * 60, "weird, crooked people and their music", "a"]


@pytest.fixture(scope="module")
def run(trained: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run with both exports, every exit kept. Shared: do not change it."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("openvino") / "run"))
    export_openvino(folder, exits="all", texts=texts[::8], threads=1)
    export_openvino(folder, int8="static", exits="all", texts=texts[::8], threads=1)
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def texts(toy_data: Callable[..., str]) -> list[str]:
    lines = (Path(toy_data()) / "dev.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines] + TEXTS


def load(folder: Path, **options: Any) -> Classifier:
    return offramp.load(folder, runtime="openvino", threads=1, **options)


def variant(folder: Path, dtype: str = "int8") -> Path:
    return folder / "openvino" / dtype


# Which variant is taken


def test_which_is_taken(copy: Path) -> None:
    def taken(**options: Any) -> tuple[str, str]:
        info = open_runtime(copy, threads=1, **options).info
        return info.name, info.dtype

    assert taken() == taken(dtype="int8") == ("openvino", "int8")
    assert taken(dtype="float32") == ("openvino", "float32")
    shutil.rmtree(variant(copy))
    assert taken() == ("openvino", "float32")
    export_onnx(copy, exits="all", threads=1)
    assert taken() == ("onnx", "float32")
    assert taken(name="openvino") == ("openvino", "float32")
    assert open_runtime(copy, dtype="bfloat16").info.name == "torch"  # by itself: neighbours matter there


def test_what_was_not_exported(trained: Path) -> None:
    with pytest.raises(RunError, match=r"has no int8 export: run `offramp export .* --runtime openvino --int8`"):
        load(trained, dtype="int8")
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(RunError, match=r"has no float32 export: run `offramp export .* --runtime openvino`"):
            OpenvinoRuntime.from_folder(trained, weights="", dtype=dtype)


def test_dtypes_and_devices_that_are_not(run: Path) -> None:
    with pytest.raises(KnobError, match="runtime openvino has int8, float32 and bfloat16, not 'float16'"):
        load(run, dtype="float16")
    with pytest.raises(KnobError, match="runtime openvino runs on the CPU, not on 'cuda'"):
        load(run, device="cuda")


def test_openvino_that_is_not_installed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("offramp.runtimes.find_spec", lambda name: None if name == "openvino" else object())
    with pytest.raises(MissingExtraError, match=r"pip install 'offramp\[openvino\]'"):
        load(run)
    assert check_installed(None, run) == "torch"  # the fastest that is installed
    monkeypatch.setattr("offramp.runtimes.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'offramp\[openvino\]'"):
        check_installed(None, run)


# What it answers


def test_float32_answers_as_torch_does(run: Path, texts: list[str]) -> None:
    ours, theirs = load(run, dtype="float32"), offramp.load(run, runtime="torch")
    for options in ({}, {"full_depth": True}, {"max_layers": 2}):
        for one, other in zip(ours(texts, **options), theirs(texts, **options), strict=True):
            assert (one.label, one.exit_layer, one.truncated) == (other.label, other.exit_layer, other.truncated)
            assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_it_answers_as_its_own_trace(run: Path, texts: list[str], dtype: str) -> None:
    """At thresholds that are scores seen in the trace, where a last bit would tell."""
    classifier = load(run, dtype=dtype)
    encoded = classifier.encode(texts)
    trace = record(classifier.runtime, encoded, pad_token=0, id2label=classifier.run.id2label, batch_size=16)
    setting = classifier.setting()
    stages = classifier.runtime.info.stages
    seen = np.sort(np.concatenate([setting.criterion.score(stages[e], trace_output(trace, e)) for e in (0, 1)]))
    for value in seen[[5, len(seen) // 2, -5]]:
        setting = classifier.setting(threshold=float(value))
        expected = replay(trace, setting.criterion, setting.knobs)
        for batch_size in (1, 7, 32):
            classifier.batch_size = batch_size
            units = [Unit(number, text) for number, text in enumerate(encoded)]
            done = list(classifier.engine(setting).run_in_order(units, setting.knobs))
            assert [one.exit_index for one in done] == expected.exits.tolist()
            assert np.array_equal(np.stack([one.answer for one in done]), expected.answers)


def trace_output(trace: Any, exit_index: int) -> Any:
    from offramp.types import ExitOutput

    return ExitOutput(trace.logits[exit_index], {name: values[exit_index] for name, values in trace.extras.items()})


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_any_company_to_the_last_bit(run: Path, dtype: str) -> None:
    """Texts around the steps of lengths and of a softmax's sums, in batches of all sizes, shuffled."""
    runtime = OpenvinoRuntime(variant(run, dtype), threads=1)
    rng = np.random.default_rng(0)
    lengths = [*range(1, 49)]
    tokens = [rng.integers(5, 30, length) for length in lengths]

    def said(ids: list[int]) -> list[np.ndarray[Any, Any]]:
        width = max(lengths[i] for i in ids)
        padded = np.stack([np.pad(tokens[i], (0, width - lengths[i])) for i in ids])
        inputs = {"ids": np.array(ids), "tokens": padded, "lengths": np.array([lengths[i] for i in ids])}
        hidden, batch = runtime.embed(inputs | {"token_types": np.zeros_like(padded)})
        outputs = []
        for stage in runtime.info.stages:
            hidden = runtime.run(stage, hidden, batch)
            output, _ = runtime.exit(stage, hidden, batch, {})
            outputs.append(np.concatenate([output.logits, *output.extras.values()], axis=1))
        return outputs

    alone = [said([i]) for i in range(len(lengths))]
    for size in (2, 3, 9, 17, len(lengths)):
        order = rng.permutation(len(lengths)).tolist()
        for start in range(0, len(order), size):
            ids = order[start : start + size]
            for stage, together in enumerate(said(ids)):
                assert np.array_equal(together, np.concatenate([alone[i][stage] for i in ids]))


@pytest.mark.filterwarnings("ignore")  # of the exporter about itself, as runtimes/export/graph.py does
@pytest.mark.parametrize("reads", ["attention", "mean", "tokens"])
def test_exits_in_company_far_longer_to_the_last_bit(reads: str) -> None:
    """The sums of exits alone, of a real encoder's width and lengths: the tiny encoder reads no batch so wide."""
    import torch

    from offramp.model.heads import Reader, Surroundings, make_head
    from offramp.model.pooling import AttentionPool, pool_tokens

    class Exit(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = AttentionPool(384)
            torch.nn.init.normal_(self.pool.query)
            self.head = make_head("attention", Surroundings(384, 384, 3, "single_label_classification", 0.0), {})

        def forward(self, hidden: Any, lengths: Any) -> Any:
            if reads == "tokens":
                return self.head(hidden, lengths, Reader(lambda *_: pytest.fail("reads tokens")), {})[0].logits
            return self.pool(hidden, lengths) if reads == "attention" else pool_tokens(hidden, lengths, "mean")

    torch.manual_seed(0)
    states = [torch.randn(length, 384) for length in range(3, 65)]
    sample = (torch.stack([states[-1]] * 2), torch.tensor([64, 64]))
    buffer = io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(
            Exit().eval(), sample, buffer, input_names=["hidden", "lengths"], dynamo=False, opset_version=20,
            dynamic_axes={"hidden": {0: "rows", 1: "width"}, "lengths": {0: "rows"}},
        )  # fmt: skip
    ask = core().compile_model(core().read_model(buffer.getvalue()), "CPU", settings("float32", 1, None))

    def said(texts: list[torch.Tensor]) -> Any:
        widest = -(-max(map(len, texts)) // LENGTH_STEP) * LENGTH_STEP
        hidden = np.stack([np.pad(text, ((0, widest - len(text)), (0, 0)), constant_values=9.0) for text in texts])
        return ask([hidden, np.array([len(text) for text in texts])])[0]

    assert np.array_equal(said(states), np.concatenate([said([text]) for text in states]))


def test_no_texts_and_one_long_text_among_short_ones(run: Path) -> None:
    classifier = load(run)
    assert classifier([]) == []
    alone = [classifier(text) for text in TEXTS]
    assert [(one.label, one.exit_layer) for one in classifier(TEXTS)] == [(one.label, one.exit_layer) for one in alone]  # type: ignore[union-attr]


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")
def test_bfloat16_runs_the_float32_graphs(run: Path, texts: list[str]) -> None:
    half, full = load(run, dtype="bfloat16"), load(run, dtype="float32")
    assert (half.runtime.info.dtype, half.runtime.info.batch_invariant) == ("bfloat16", False)
    ours, theirs = half(texts, full_depth=True), full(texts, full_depth=True)
    away = [abs(one.score - other.score) for one, other in zip(ours, theirs, strict=True)]
    assert 0 < max(away) < 0.1
    check = read_manifest(variant(run, "float32")).check
    assert min(check["bfloat16"]["labels"]) > 0.8
    assert set(check["bfloat16"]["batch_1"]) == {"largest_difference", "labels", "exits"}


@pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16")
def test_bfloat16_says_how_much_neighbours_matter(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        measured = load(run, dtype="bfloat16").runtime.info.in_company
    alone = read_manifest(variant(run, "float32")).check["bfloat16"]["batch_1"]
    assert measured == InCompany(alone["largest_difference"], min(alone["labels"]), alone["exits"])
    said, elsewhere = [record.getMessage() for record in caplog.records]
    assert "'default' was chosen on runtime torch" in elsewhere
    assert said.startswith("on runtime openvino in bfloat16 answers depend a little on which texts share a batch (")
    assert "agree with batch size 1, as the export measured in batches of 32" in said
    assert said.endswith("--max-risk 0.01 --runtime openvino --dtype bfloat16 --batch-size 32`")


def test_bfloat16_on_a_cpu_without_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_bfloat16", lambda: False)
    with pytest.raises(KnobError, match="this CPU has no instructions for bfloat16: take int8 or float32"):
        load(run, dtype="bfloat16")


# Shapes


def test_kernels_that_are_thrown_away_change_no_answer(run: Path, texts: list[str]) -> None:
    """One that is wanted again is made again."""
    expected = load(run)(texts)
    core().set_property("CPU", {"CPU_RUNTIME_CACHE_CAPACITY": 1})
    try:
        found = load(run)(texts)
    finally:
        core().set_property("CPU", {"CPU_RUNTIME_CACHE_CAPACITY": KERNELS})
    assert found == expected


def test_a_plugin_that_does_not_bound_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def get_property(self, *_: str) -> str:
            return "a CPU"

        def set_property(self, *_: object) -> None:
            raise RuntimeError("Unsupported property")

    monkeypatch.setattr(module.openvino, "Core", Refuses)
    assert isinstance(core.__wrapped__(), Refuses)


def test_rows_come_in_eighths() -> None:
    assert [padded_rows(rows) for rows in (1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 100)] == [
        1, 2, 7, 8, 9, 16, 18, 32, 32, 36, 104,
    ]  # fmt: skip
    for rows in range(1, 300):
        assert rows <= padded_rows(rows) <= max(rows, rows * 9 / 8)
        assert padded_rows(padded_rows(rows)) == padded_rows(rows)


def test_few_shapes_are_asked_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths in steps, and never longer than the model reads."""
    runtime = OpenvinoRuntime(variant(run, "float32"), threads=1)
    seen: set[tuple[int, int]] = set()
    call = runtime._call
    monkeypatch.setattr(runtime, "_call", lambda loaded, given, shape: seen.add(shape) or call(loaded, given, shape))
    for width in range(1, 49):
        inputs = {"ids": np.arange(1), "tokens": np.full((1, width), 5), "lengths": np.array([width])}
        hidden, batch = runtime.embed(inputs | {"token_types": np.zeros((1, width), dtype=np.int64)})
        after = runtime.run(runtime.info.stages[0], hidden, batch)
        assert after.shape[:2] == (1, width)
    assert seen == {(1, width) for width in range(4, 49, 4)}


def test_who_stays_whole_is_not_copied(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever lost a row, or padding, is padded anew: both say the same."""
    runtime = OpenvinoRuntime(variant(run, "float32"), threads=1)
    given: list[Any] = []
    call = runtime._call

    def spy(loaded: Any, arrays: Any, shape: Any) -> Any:
        given.append(arrays.get("hidden"))
        return call(loaded, arrays, shape)

    monkeypatch.setattr(runtime, "_call", spy)
    first, second = runtime.info.stages[:2]
    tokens = np.arange(5, 15).reshape(2, 5)
    inputs = {"ids": np.arange(2), "tokens": tokens, "lengths": np.array([5, 3]), "token_types": np.zeros_like(tokens)}
    hidden, batch = runtime.embed(inputs)
    after = runtime.run(first, hidden, batch)
    runtime.run(second, after, batch)
    assert np.shares_memory(given[-1], after)
    assert given[-1].shape[:2] == (2, 8)
    same = runtime.run(second, after.copy(), batch)
    assert not np.shares_memory(given[-1], after)
    whole = runtime.exit(second, same, batch, {})[0].logits
    fewer, fewer_batch = keep(np.array([False, True]), (after, batch))
    fewer, fewer_batch = trim(fewer, fewer_batch)
    part = runtime.run(second, fewer, fewer_batch)
    assert np.array_equal(runtime.exit(second, part, fewer_batch, {})[0].logits, whole[1:])


def test_hidden_states_of_two_batches_do_not_share_memory(run: Path) -> None:
    runtime = OpenvinoRuntime(variant(run, "float32"), threads=1)
    classifier = Classifier(offramp.run.Run.open(run), runtime)
    stage, made = runtime.info.stages[0], []
    for text in TEXTS[:2]:
        hidden, batch = runtime.embed(pad(classifier.encode([text]), [0], pad_token=0, token_types=True))
        made.append((runtime.run(stage, hidden, batch), batch))
    kept = [hidden.copy() for hidden, _ in made]
    said = [runtime.exit(stage, hidden, batch, {})[0].logits for hidden, batch in reversed(made)][::-1]
    assert not np.allclose(said[0], said[1])
    classifier(TEXTS)
    assert all(np.array_equal(hidden, before) for (hidden, _), before in zip(made, kept, strict=True))
    with pytest.raises(ValueError, match="the very array that run returned"):
        runtime.exit(stage, made[0][0].copy(), made[0][1], {})
    del made, hidden
    gc.collect()
    assert not len(runtime._said)


def test_hidden_states_in_the_corner_of_their_room_are_not_copied(run: Path) -> None:
    runtime = OpenvinoRuntime(variant(run, "float32"), threads=1)
    room = runtime.room(9, 5)
    whole = np.zeros((*room, 4), dtype=np.float32)
    assert room > (9, 5)
    assert _padded(whole[:9, :5], room) is whole
    for other in (whole[1:10, :5], whole[:9, 1:6], np.zeros((9, 5, 4), np.float32), whole[:9, :5].copy()):
        padded = _padded(other, room)
        assert padded.shape == whole.shape
        assert not np.shares_memory(padded, whole)


# Exports that cannot be used


def test_other_weights(copy: Path) -> None:
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match=r"was made of other weights than .* holds now: run `offramp export` again"):
        load(copy)


@pytest.mark.parametrize("suffix", ["xml", "bin"])
@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "gone"])
def test_a_damaged_graph(copy: Path, damage: str, suffix: str) -> None:
    path = variant(copy) / f"stage-1.{suffix}"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
        with pytest.raises(RunError, match=rf"is damaged: it has no stage-1\.{suffix}; run `offramp export` again"):
            load(copy)
        return
    path.write_bytes({"cut": data[:-100], "changed": data[:-1] + bytes([data[-1] ^ 1]), "empty": b""}[damage])
    with pytest.raises(
        RunError, match=rf"stage-1\.{suffix} is not the file that was exported .*`offramp export` again"
    ):
        load(copy)


@pytest.mark.parametrize("content", [b"abc", b"<?xml version='1.0'?><net/>", b"\x00" * 64])
def test_a_graph_that_openvino_refuses(copy: Path, content: bytes) -> None:
    """Such as one for a newer openvino: the file is whole, and cannot be loaded."""
    path, manifest = variant(copy) / "stage-0.xml", variant(copy) / "manifest.json"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(content)
    manifest.write_text(manifest.read_text().replace(before, hashlib.sha256(content).hexdigest()))
    with pytest.raises(RunError, match=r"openvino [\d.].* cannot load .*stage-0\.xml .*: run `offramp export`"):
        load(copy)


def test_a_newer_format(copy: Path) -> None:
    path = variant(copy) / "manifest.json"
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    with pytest.raises(RunError, match=f"has export format {FORMAT + 1} and this offramp reads up to {FORMAT}"):
        load(copy)


@pytest.mark.parametrize(
    ("damage", "verb"),
    [
        (lambda graph: graph["outputs"].remove("hidden"), "gives"),
        (lambda graph: graph["outputs"].append("memory.more"), "gives"),
        (lambda graph: graph["inputs"].remove("lengths"), "reads"),
        (lambda graph: graph["inputs"].reverse(), "reads"),
    ],
)
def test_names_that_are_not_the_graphs(copy: Path, damage: Callable[[Any], object], verb: str) -> None:
    path = variant(copy) / "manifest.json"
    said = json.loads(path.read_text())
    damage(said["stages"][1]["layers_graph"])
    path.write_text(json.dumps(said))
    with pytest.raises(
        RunError, match=rf"manifest\.json is damaged \(it says that stage-1\.xml {verb} .*`offramp export` again$"
    ):
        load(copy)


def test_a_cpu_without_int8_instructions(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "has_int8_instructions", lambda: False)
    with caplog.at_level(logging.WARNING):
        load(run)
    assert "this CPU has no instructions for int8 products: int8 will be slow here, try float32" in caplog.text


def test_threads(run: Path) -> None:
    for wrong in (0, cpu.cores() + 1):
        with pytest.raises(KnobError, match=f"threads must be from 1 to the {cpu.cores()} cores there are"):
            offramp.load(run, runtime="openvino", threads=wrong)


# Exporting


def test_what_the_manifest_says(run: Path) -> None:
    exact, small = (read_manifest(variant(run, dtype)) for dtype in ("float32", "int8"))
    assert (exact.runtime, exact.family, exact.quantisation, small.quantisation) == ("openvino", "bert", None, "static")
    assert (exact.batch_invariant, small.batch_invariant, exact.length_step) == (True, True, 4)
    assert set(exact.versions) == {"offramp", "torch", "transformers", "onnx", "openvino"}
    assert set(small.versions) == {*exact.versions, "nncf"}
    assert exact.extras == {"distances": 3}  # scores are numpy's work here
    assert max(exact.check["float32_errors"]) < 1e-4
    assert exact.check["labels"] == [1, 1, 1]
    assert min(small.check["labels"]) > 0.8
    for made in (exact, small):
        assert made.check["batch_1"]["largest_difference"] == 0
    sizes = [sum(path.stat().st_size for path in variant(run, dtype).glob("*.bin")) for dtype in ("float32", "int8")]
    assert sizes[1] < sizes[0]


def test_only_wide_products_over_tokens_are_int8() -> None:
    import openvino
    from openvino import opset13 as op

    draw = np.random.default_rng(0)
    hidden = op.parameter([-1, -1, 32], np.float32, name="hidden")
    wide, query = (op.constant(draw.standard_normal(shape).astype(np.float32)) for shape in ((32, 32), (32, 1)))
    products = {
        "wide": op.matmul(hidden, wide, False, False, name="wide"),
        "query": op.matmul(hidden, query, False, False, name="query"),
        "attention": op.matmul(hidden, hidden, False, True, name="attention"),
        "head": op.matmul(op.reduce_mean(hidden, np.array([1])), wide, False, False, name="head"),
    }
    graph = openvino.Model(list(products.values()), [hidden], "products")
    given = [{"hidden": draw.standard_normal((1, 5, 32)).astype(np.float32)} for _ in range(4)]
    made = {node.get_friendly_name(): node for node in quantised(graph, given).get_ordered_ops()}
    read = {name: made[name].input_value(0).get_node().get_type_name() for name in products}
    assert [name for name, kind in read.items() if kind == "FakeQuantize"] == ["wide"], read


def test_each_token_is_rounded_by_its_own_scales() -> None:
    """Neither its company nor a far larger token beside it changes what a text gives."""
    import openvino
    from openvino import opset13 as op

    draw = np.random.default_rng(0)
    hidden = op.parameter([-1, -1, 256], np.float32, name="hidden")
    wide = op.constant(draw.standard_normal((256, 256)).astype(np.float32))
    graph = openvino.Model([op.matmul(hidden, wide, False, False)], [hidden], "product")
    rows, weights = (
        core().compile_model(compressed(graph.clone()), "CPU", settings("int8", 1, kind))
        for kind in ("rows", "weights")
    )
    given = draw.standard_normal((6, 5, 256)).astype(np.float32)
    given[3] *= 1000
    found, exact = rows(given)[0], weights(given)[0]
    for row in range(6):
        np.testing.assert_array_equal(rows(given[row : row + 1])[0][0], found[row])
    error = np.abs(found - exact).max(axis=(1, 2)) / np.abs(exact).max(axis=(1, 2))
    assert (error < 0.02).all()
    if cpu.has_int8_instructions():
        assert (error > 0).all()  # the products are of eight-bit numbers


def test_int8_by_rows_says_what_float32_says(copy: Path, texts: list[str]) -> None:
    made = export_openvino(copy, int8="rows", exits="all", threads=1)  # no texts: nothing is measured
    assert (made.quantisation, made.batch_invariant) == ("rows", True)
    assert min(made.check["labels"]) > 0.95
    assert made.check["batch_1"]["largest_difference"] == 0
    sizes = [sum(path.stat().st_size for path in variant(copy, dtype).glob("*.bin")) for dtype in ("float32", "int8")]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_kind_of_int8_that_is_not(run: Path) -> None:
    with pytest.raises(KnobError, match="for openvino int8 is made by rows, static, not 'dynamic'"):
        export_openvino(run, int8="dynamic")


def test_nothing_is_written_that_differs_from_torch(trained: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from offramp.errors import UnsupportedError
    from offramp.runtimes.export import check

    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    monkeypatch.setattr(check, "TOLERANCE", 0.0)
    with pytest.raises(UnsupportedError, match=r"the graph of layers 1 to 1 differs from torch by .*: nothing was"):
        export_openvino(folder, exits="all", texts=TEXTS, threads=1)
    assert not (folder / "openvino").exists()


# Beside other code


@pytest.mark.skipif(os.name == "nt", reason="signals are others there")
@pytest.mark.parametrize("exporting", [False, pytest.param(True, marks=pytest.mark.long)])
def test_ctrl_c_is_still_ctrl_c(run: Path, tmp_path: Path, texts: list[str], exporting: bool) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    program = f"""
        import gc, os, signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
        import offramp
        if {exporting}:
            from offramp.runtimes.export.openvino import export_openvino
            export_openvino({str(folder)!r}, int8="static", texts={texts[:4]!r}, threads=1)
        loaded = [offramp.load({str(folder)!r}, runtime="openvino", threads=1) for _ in range(2)]
        for _ in range(2):
            loaded.pop(0)  # the first is the first to go: not as they came
            gc.collect()
        try:
            os.kill(os.getpid(), signal.SIGINT)
            import time
            time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines()[-1:], done.returncode) == (["interrupted"], 0), done.stderr


# Without torch, and without a word to anybody

BLOCK = """
    import sys

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {"torch", "transformers", "onnx", "onnxruntime", "nncf"}:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Block())
"""


def test_load_and_predict_need_neither_torch_nor_transformers(run: Path) -> None:
    program = f"""
        import offramp
        clf = offramp.load({str(run)!r}, threads=1)
        print([one.label for one in clf({TEXTS!r})], clf.runtime.info.name, clf.runtime.info.dtype)
        without = {{"torch", "transformers", "onnx", "onnxruntime", "nncf", "openvino_telemetry"}}
        print(sorted(without & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BLOCK) + textwrap.dedent(program)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    expected = [one.label for one in load(run)(TEXTS)]
    assert done.stdout.splitlines() == [f"{expected} openvino int8", "[]"], done.stderr


def test_what_is_imported_tells_nobody_either() -> None:
    program = """
        import sys
        from offramp.runtimes.silence import without_telemetry
        with without_telemetry():
            import openvino, nncf
        print(callable(openvino.convert_model), [name for name in sys.modules if name.startswith("openvino_telemetry")])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["True []"], done.stderr


def test_the_logging_of_others_stays_as_it_was() -> None:
    from offramp.runtimes.export.openvino import load_nncf

    listening = logging.NullHandler(logging.INFO)
    logging.getLogger("nncf").addHandler(listening)
    try:
        load_nncf()
        assert listening.level == logging.INFO
        assert logging.getLoggerClass() is logging.Logger
    finally:
        logging.getLogger("nncf").removeHandler(listening)


@pytest.mark.long
def test_a_fresh_environment_with_the_extra_alone(run: Path, tmp_path: Path) -> None:
    project = Path(__file__).parents[2]
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"{project}[openvino]"], check=True)
    program = f"""
        from importlib.util import find_spec
        print([name for name in ("torch", "transformers", "onnx", "onnxruntime", "nncf") if find_spec(name)])
        import offramp
        print([one.label for one in offramp.load({str(run)!r}, threads=1)({TEXTS!r})])
    """
    done = subprocess.run([python, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[]", str([one.label for one in load(run)(TEXTS)])], done.stderr
