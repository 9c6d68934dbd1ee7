"""OnnxRuntime besides the contract: what ``load`` picks, serving without torch, and exports that cannot be used."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import offramp
from offramp.calibration.monitor import Monitor
from offramp.calibration.points import read_points, write_points
from offramp.engine.record import record
from offramp.errors import KnobError, MissingExtraError, RunError
from offramp.inputs.batching import pad
from offramp.pipeline import Classifier
from offramp.run import Run
from offramp.runtimes import check_installed, cpu, open_runtime
from offramp.runtimes.cpu import check_threads, cores, has_int8_instructions
from offramp.runtimes.export.onnx import export_onnx
from offramp.runtimes.manifest import FORMAT, read_manifest
from offramp.runtimes.onnx import OnnxRuntime, _at_least
from offramp.traces.replay import replay
from offramp.traces.store import load_trace

TEXTS = ["a lovely gem of a film", "the dull town", "gem " * 60, "weird, crooked people and their music", "a"]


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run with both exports, every exit kept. Shared: do not change it."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("onnx") / "run"))
    export_onnx(folder, exits="all", threads=1)
    export_onnx(folder, int8="rows", exits="all", threads=1)
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
    return offramp.load(folder, threads=None if options.get("runtime") == "torch" else 1, **options)


# Which variant is taken


def test_int8_first_then_float32_then_torch(copy: Path) -> None:
    assert (load(copy).runtime.info.name, load(copy).runtime.info.dtype) == ("onnx", "int8")
    assert load(copy, dtype="float32").runtime.info.dtype == "float32"
    assert load(copy, runtime="onnx", dtype="float32").runtime.info.name == "onnx"
    assert open_runtime(copy, "torch").info.name == "torch"
    assert open_runtime(copy, dtype="bfloat16").info.dtype == "bfloat16"
    assert open_runtime(copy, attention="eager").info.name == "torch"  # only there it means anything
    assert open_runtime(copy, compile=True).info.name == check_installed(None, copy, compile=True) == "torch"
    shutil.rmtree(copy / "onnx" / "int8")
    assert (load(copy).runtime.info.name, load(copy).runtime.info.dtype) == ("onnx", "float32")
    shutil.rmtree(copy / "onnx")
    assert offramp.load(copy).runtime.info.name == "torch"


def test_what_was_not_exported(copy: Path) -> None:
    shutil.rmtree(copy / "onnx" / "int8")
    for options in ({"dtype": "int8"}, {"runtime": "onnx", "dtype": "int8"}):
        with pytest.raises(RunError, match=r"has no int8 export: run `offramp export .* --runtime onnx --int8`"):
            load(copy, **options)
    shutil.rmtree(copy / "onnx" / "float32")
    with pytest.raises(RunError, match=r"has no float32 export: run `offramp export .* --runtime onnx`"):
        load(copy, runtime="onnx")


def test_names_dtypes_and_devices_that_are_not(run: Path) -> None:
    with pytest.raises(KnobError, match="no runtime is called 'abacus': there are torch, onnx"):
        offramp.load(run, runtime="abacus")
    with pytest.raises(KnobError, match="runtime onnx has int8 and float32, not 'bfloat16'"):
        offramp.load(run, runtime="onnx", dtype="bfloat16")
    with pytest.raises(KnobError, match="dtype must be one of"):
        offramp.load(run, dtype="float64")
    with pytest.raises(KnobError, match="runs on the CPU, not on 'cuda'"):
        offramp.load(run, runtime="onnx", device="cuda")
    with pytest.raises(KnobError, match="threads are set for exported graphs"):
        offramp.load(run, runtime="torch", threads=1)


def test_onnxruntime_that_is_not_installed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("offramp.runtimes.find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(MissingExtraError, match=r"pip install 'offramp\[onnx\]'"):
        offramp.load(run, runtime="onnx")
    with pytest.raises(MissingExtraError, match=r"pip install 'offramp\[onnx\]'"):
        offramp.load(run, dtype="int8", runtime="onnx")
    assert offramp.load(run).runtime.info.name == "torch"  # the fastest that is installed
    assert check_installed(None, run) == "torch"


def test_neither_torch_nor_onnxruntime(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names what the folder was exported for, which is the smaller thing to install."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("offramp.runtimes.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'offramp\[onnx\]'"):
        check_installed(None, run)


# What it answers


def test_float32_answers_as_torch_does(run: Path, texts: list[str]) -> None:
    ours, theirs = load(run, dtype="float32"), load(run, runtime="torch")
    for options in ({}, {"full_depth": True}, {"max_layers": 2}):
        for one, other in zip(ours(texts, **options), theirs(texts, **options), strict=True):
            assert (one.label, one.exit_layer, one.truncated) == (other.label, other.exit_layer, other.truncated)
            assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_it_answers_as_its_own_trace(run: Path, texts: list[str], dtype: str) -> None:
    """At thresholds between two scores that were seen: their last digit is the batch's, as float32 rounds by shape."""
    classifier = load(run, dtype=dtype)
    encoded = classifier.encode(texts)
    trace = record(classifier.runtime, encoded, pad_token=0, id2label=classifier.run.id2label, batch_size=16)
    setting = classifier.setting()
    names = [name for name in trace.extras if name.startswith("score.edr")]
    seen = np.sort(trace.extras[names[0]][:2].ravel().astype(np.float64))
    for start in (2, len(seen) // 2 - 4, len(seen) - 10):
        place = start + int(np.diff(seen[start : start + 8]).argmax())
        assert seen[place + 1] - seen[place] > 1e-5
        setting = classifier.setting(threshold=float(seen[place : place + 2].mean()))
        expected = replay(trace, setting.criterion, setting.knobs)
        for batch_size in (1, 7, 32):
            classifier.batch_size = batch_size
            done = list(classifier.engine(setting).run_in_order(units(encoded), setting.knobs))
            assert [one.exit_index for one in done] == expected.exits.tolist()
            assert np.array_equal([one.answer.argmax() for one in done], expected.answers.argmax(-1))


def units(encoded: Any) -> Any:
    from offramp.engine.units import Unit

    return [Unit(number, text) for number, text in enumerate(encoded)]


def test_no_texts_and_one_long_text_among_short_ones(run: Path) -> None:
    classifier = load(run)
    assert classifier([]) == []
    alone = [classifier(text) for text in TEXTS]
    assert [(one.label, one.exit_layer) for one in classifier(TEXTS)] == [(one.label, one.exit_layer) for one in alone]  # type: ignore[union-attr]


def test_fewer_exits(copy: Path, texts: list[str]) -> None:
    """Whoever would have left at an exit that is gone leaves at the next one where the score is low enough."""
    made = export_onnx(copy, exits=[2], threads=1)
    assert ([stage.layers for stage in made.stages], made.left_out) == ([2, 3], (1,))
    few, every = load(copy, dtype="float32"), load(copy, runtime="torch")
    encoded = every.encode(texts)
    trace = record(every.runtime, encoded, pad_token=0, id2label=every.run.id2label).at_exits([1, 2])
    setting = few.setting()
    expected = trace.layers[replay(trace, setting.criterion, setting.knobs).exits]
    assert [one.exit_layer for one in few(texts)] == expected.tolist()
    speed = few.setting(speedup=1.2)  # by the trace of all exits that training recorded
    trace = load_trace(copy / "traces" / "dev").at_exits([1, 2])
    left = trace.layers[replay(trace, speed.criterion, speed.knobs).exits]
    assert 3 / left.mean() >= 1.2
    with pytest.raises(KnobError, match=r"reaches a layer speed-up of 1\.50 at most"):
        few.setting(speedup=2.0)


def test_exits_that_must_stay(copy: Path) -> None:
    point = read_points(copy)[0]
    settings = {"problem_type": "single_label_classification"}
    write_points(copy, [replace(point, criterion="patience", settings=settings, knobs={"patience": 1.0})])
    with pytest.raises(KnobError, match="its operating point's criterion, 'patience', goes by the exits passed"):
        export_onnx(copy, exits=[2], threads=1)
    assert export_onnx(copy, threads=1).left_out == ()
    with pytest.raises(KnobError, match="no exit after layer 7"):
        export_onnx(copy, exits=[7], threads=1)


def test_a_warning_where_thresholds_were_chosen_elsewhere(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    classifier = load(run)
    with caplog.at_level(logging.WARNING):
        classifier(TEXTS[:1])
    assert "was chosen on runtime torch" in caplog.text
    assert "runs on runtime onnx" in caplog.text


# Hidden states and what was said with them


def test_exit_is_asked_about_the_very_array(run: Path) -> None:
    runtime = OnnxRuntime(run / "onnx" / "float32", threads=1)
    classifier = Classifier(Run.open(run), runtime)
    stage = runtime.info.stages[0]
    batches = []
    for text in TEXTS[:2]:
        hidden, batch = runtime.embed(pad(classifier.encode([text]), [0], pad_token=0, token_types=False))
        batches.append((runtime.run(stage, hidden, batch), batch))
    # Two are under way at once; each is told what was said of it.
    said = [runtime.exit(stage, hidden, batch, {})[0].logits for hidden, batch in reversed(batches)][::-1]
    assert not np.allclose(said[0], said[1])
    for (hidden, batch), logits in zip(batches, said, strict=True):
        again = runtime.run(stage, *runtime.embed({"ids": batch.ids, "tokens": batch.tokens, "lengths": batch.lengths}))
        assert np.array_equal(runtime.exit(stage, again, batch, {})[0].logits, logits)
        with pytest.raises(ValueError, match="the very array that run returned"):
            runtime.exit(stage, hidden.copy(), batch, {})
        with pytest.raises(ValueError, match="the very array that run returned"):
            runtime.exit(stage, hidden[:, :1], batch, {})
    del batches, hidden, again
    gc.collect()
    assert not runtime._said  # nothing is kept for arrays that are gone


# A text alone


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_text_alone_is_answered_as_in_company(run: Path, texts: list[str], dtype: str) -> None:
    """In one call, for which the stages' graphs are never opened."""
    alone = load(run, dtype=dtype)
    assert alone.runtime.info.single
    said = [alone(text) for text in texts]
    assert all(each._session is None for each in alone.runtime._layers)  # type: ignore[attr-defined]
    for one, other in zip(said, load(run, dtype=dtype)(texts), strict=True):
        assert replace(one, score=0.0) == replace(other, score=0.0)
        assert one.score == pytest.approx(other.score, abs=1e-6)


@given(st.floats(-1, 1), st.floats(-1, 1, width=32))
def test_thresholds_are_rounded_so_that_nobody_changes_sides(threshold: float, score: float) -> None:
    near = np.float32(threshold)
    for each in (score, near, np.nextafter(near, np.float32(-9)), np.nextafter(near, np.float32(9))):
        assert (np.float32(each) < _at_least(threshold)) == (float(each) < threshold)


# Exports that cannot be used


def variant(folder: Path, dtype: str = "int8") -> Path:
    return folder / "onnx" / dtype


def test_other_weights(copy: Path, trained: Path) -> None:
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match=r"was made of other weights than .* holds now: run `offramp export` again"):
        load(copy)
    assert offramp.load(copy, runtime="torch").runtime.info.name == "torch"


@pytest.mark.parametrize("name", ["stage-1", "single"])
@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "gone"])
def test_a_damaged_graph(copy: Path, name: str, damage: str) -> None:
    """Is said when the run is loaded, whichever graph will be needed."""
    path = variant(copy) / f"{name}.onnx"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
        with pytest.raises(RunError, match=rf"is damaged: it has no {name}\.onnx; run `offramp export` again"):
            load(copy)
        return
    path.write_bytes({"cut": data[:-100], "changed": data[:-1] + bytes([data[-1] ^ 1]), "empty": b""}[damage])
    with pytest.raises(RunError, match=rf"{name}\.onnx is not the file that was exported .*`offramp export` again"):
        load(copy)


def test_a_graph_that_onnxruntime_refuses(copy: Path) -> None:
    """Such as one for a newer onnxruntime: the file is whole, and cannot be loaded."""
    import hashlib

    path, manifest = variant(copy) / "stage-0.onnx", variant(copy) / "manifest.json"
    said = manifest.read_text().replace(
        hashlib.sha256(path.read_bytes()).hexdigest(), hashlib.sha256(b"abc").hexdigest()
    )
    path.write_bytes(b"abc")
    manifest.write_text(said)
    with pytest.raises(RunError, match=r"onnxruntime [\d.]+ cannot load .*stage-0\.onnx .*: run `offramp export`"):
        load(copy)(["a gem", "the town"])


def test_a_newer_format(copy: Path) -> None:
    path = variant(copy) / "manifest.json"
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    with pytest.raises(
        RunError, match=f"has export format {FORMAT + 1} and this offramp reads up to {FORMAT}: upgrade"
    ):
        load(copy)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": 1}', '{"format": 1, "stages": []}', '{"format": "x"}'])
def test_a_damaged_manifest(copy: Path, content: str) -> None:
    (variant(copy) / "manifest.json").write_text(content)
    with pytest.raises(RunError, match=r"manifest\.json is damaged .*run `offramp export` again"):
        load(copy)


@pytest.fixture
def rewrite(copy: Path) -> Callable[[Callable[[Any], object]], Path]:
    """Changes the manifest of int8, well-formed as it stays; the run."""

    def change(damage: Callable[[Any], object]) -> Path:
        path = variant(copy) / "manifest.json"
        said = json.loads(path.read_text())
        damage(said)
        path.write_text(json.dumps(said))
        return copy

    return change


WRONG: list[tuple[Callable[[Any], object], str]] = [
    (lambda said: said.update(format="2"), "format cannot be '2'"),
    (lambda said: said.update(format=True), "format cannot be True"),
    (lambda said: said.update(format=0), "format cannot be 0"),
    (lambda said: said.update(format=1.5), "format cannot be 1.5"),
    (lambda said: said.update(dtype="int4"), "dtype cannot be 'int4'"),
    (lambda said: said.update(problem_type="tagging"), "problem_type cannot be 'tagging'"),
    (lambda said: said.update(problem_type=[]), r"problem_type cannot be \[\]"),
    (lambda said: said.update(num_outputs=0), "num_outputs cannot be 0"),
    (lambda said: said.update(num_outputs="3"), "num_outputs cannot be '3'"),
    (lambda said: said.update(num_outputs=True), "num_outputs cannot be True"),
    (lambda said: said.update(batch_invariant="false"), "batch_invariant cannot be 'false'"),
    (lambda said: said.update(remembers=True), "stage 0 lacks a graph of its exit"),
    (lambda said: said.update(full_layers=7), "full_layers is 7, and the last stage ends at layer 3"),
    (lambda said: said.update(left_out="all"), "left_out cannot be"),
    (lambda said: said.update(length_step=0), "length_step cannot be 0"),
    (lambda said: said["tokenizer"].update(max_length="long"), "tokenizer cannot be"),
    (lambda said: said["cost"].update(call=float("nan")), "cost cannot be"),
    (lambda said: said["extras"].update(gate=0), "the exit of stage 0 does not give extras.gate"),
    (lambda said: said["extras"].update(distances="3"), "extras cannot be"),
    (lambda said: said.update(check=[]), r"check cannot be \[\]"),
    (lambda said: said["check"].update(batch_1=1), "TypeError"),
    (lambda said: said["check"].update(bfloat16={"batch_1": {}}), "KeyError"),
    (lambda said: said["stages"][0].update(layers="one"), "layers of stage 0 cannot be 'one'"),
    (lambda said: said["stages"][0].update(first_layer=0.0), "first_layer of stage 0 cannot be 0.0"),
    (lambda said: said["stages"][2].update(last_layer=True), "last_layer of stage 2 cannot be True"),
    (lambda said: said["stages"][0].update(first_layer=5), "stage 0 cannot run layers 5 to 1, 1 executed in all"),
    (lambda said: said["stages"][1].update(layers=1), "stage 1 cannot run layers 1 to 2, 1 executed in all"),
    (lambda said: said["stages"].reverse(), "stage 0 cannot run layers 2 to 3"),
    (lambda said: said["stages"].pop(1), "stage 1 cannot run layers 2 to 3, 3 executed in all, where it begins at 1"),
    (lambda said: said["stages"].append(said["stages"][-1]), "stage 2 cannot|does not give|stage 3 cannot run"),
    (lambda said: said["stages"][1].update(starts_from="there"), "starts_from of stage 1 cannot be 'there'"),
    (lambda said: said["stages"][1].update(starts_from="inputs"), "stage 1 cannot run layers 1 to 2"),
    (lambda said: said["stages"][1].update(exit_graph=said["stages"][0]["layers_graph"]), "stage 1 has a graph of its"),
    (lambda said: said["stages"][0]["layers_graph"].update(inputs="tokens"), "inputs and outputs of a graph are lists"),
    (lambda said: said["stages"][0]["layers_graph"].update(file=5), "names of a graph are texts"),
    (lambda said: said["stages"][0]["layers_graph"]["inputs"].remove("tokens"), "of stage 0 does not read tokens"),
    (lambda said: said["stages"][2]["layers_graph"]["outputs"].remove("logits"), "of stage 2 does not give logits"),
]


@pytest.mark.parametrize(("damage", "fault"), WRONG)
def test_a_manifest_that_is_well_formed_and_wrong(
    rewrite: Callable[..., Path], damage: Callable[[Any], object], fault: str
) -> None:
    with pytest.raises(RunError, match=rf"manifest\.json is damaged \(.*({fault}).*\): run `offramp export` again$"):
        load(rewrite(damage))


@pytest.mark.parametrize("wrong", [{"runtime": "openvino"}, {"dtype": "float32"}])
def test_a_manifest_of_another_export(rewrite: Callable[..., Path], wrong: dict[str, str]) -> None:
    folder = rewrite(lambda said: said.update(wrong))
    with pytest.raises(RunError, match=r"manifest\.json is of an export for .* which does not belong there: run `off"):
        load(folder)


def exchange_first(names: list[str]) -> None:
    names[:2] = names[1::-1]


NAMES: list[tuple[Callable[[Any], object], str]] = [
    (lambda graph: graph["outputs"].remove("hidden"), "gives"),
    (lambda graph: graph["outputs"].append("memory.more"), "gives"),
    (lambda graph: exchange_first(graph["outputs"]), "gives"),
    (lambda graph: graph["inputs"].remove("lengths"), "reads"),
    (lambda graph: graph["inputs"].append("memory.more"), "reads"),
]


@pytest.mark.parametrize(("damage", "verb"), NAMES)
@pytest.mark.parametrize("place", [0, 1])
def test_names_that_are_not_the_graphs(
    rewrite: Callable[..., Path], place: int, damage: Callable[[Any], object], verb: str
) -> None:
    folder = rewrite(lambda said: damage(said["stages"][place]["layers_graph"]))
    fault = rf"it says that stage-{place}\.onnx {verb} .*, which in fact {verb} "
    with pytest.raises(RunError, match=rf"manifest\.json is damaged \({fault}.*\): run `offramp export` again$"):
        load(folder)(TEXTS, full_depth=True)


def test_names_that_are_not_the_single_graphs(rewrite: Callable[..., Path]) -> None:
    folder = rewrite(lambda said: said["single"]["graph"]["outputs"].remove("exit"))
    with pytest.raises(RunError, match=r"that single\.onnx gives out\.logits, which in fact gives out\.logits, out"):
        load(folder)(TEXTS[0])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_neighbours_that_change_nothing_are_not_spoken_of(
    run: Path, caplog: pytest.LogCaptureFixture, dtype: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert load(run, dtype=dtype).runtime.info.batch_invariant
    [said] = [record.getMessage() for record in caplog.records]
    assert "'default' was chosen on runtime torch" in said


def test_neighbours_that_matter_are_told_once(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = export_onnx(copy, int8="dynamic", exits="all", threads=1)
    measured = made.info.in_company
    assert measured is not None
    assert (measured.labels, measured.exits) == (min(made.check["batch_1"]["labels"]), made.check["batch_1"]["exits"])
    with caplog.at_level(logging.WARNING):
        load(copy, batch_size=1)
        [elsewhere] = [record.getMessage() for record in caplog.records]
        assert "'default' was chosen on runtime torch" in elsewhere
        caplog.clear()
        classifier = load(copy, batch_size=16)
        told = [record.getMessage() for record in caplog.records]
        classifier(TEXTS[:2], full_depth=True)
    assert [record.getMessage() for record in caplog.records] == told
    said, elsewhere = told
    assert "was chosen on runtime torch, dtype float32, batch size 32 and runs on runtime onnx" in elsewhere
    assert said.startswith("on runtime onnx in int8 answers depend a little on which texts share a batch (")
    labels, exits = (f"{np.floor(round(1000 * share, 6)) / 10:.1f} %" for share in (measured.labels, measured.exits))
    assert f"({labels} of labels at the worst exit and {exits} of exits agree with batch size 1, as the exp" in said
    assert said.endswith(
        f"calibrate thresholds with the batch size that serves, `offramp calibrate {copy} --data DATA --max-risk 0.01 "
        "--runtime onnx --dtype int8 --batch-size 16`"
    )


def test_a_manifest_that_does_not_know_the_cost(copy: Path) -> None:
    """As an older offramp wrote it; the engine then goes by what it went by then."""
    path = variant(copy) / "manifest.json"
    said = json.loads(path.read_text())
    del said["cost"]
    path.write_text(json.dumps(said))
    assert load(copy).runtime.info.cost is None
    assert load(copy)("a gem").label in load(copy).run.id2label.values()
    path.write_text(json.dumps(said | {"cost": {"call": 1.0}}))
    with pytest.raises(RunError, match=r"manifest\.json is damaged"):
        load(copy)


def test_a_folder_without_manifest(copy: Path) -> None:
    (variant(copy) / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"is no export: it has no manifest\.json; `offramp export` makes one"):
        load(copy)


def test_lanes_that_cannot_be(run: Path) -> None:
    with pytest.raises(KnobError, match="lanes must be from 1 to the 1 threads there are, not 2"):
        offramp.load(run, threads=1, lanes=2)
    with pytest.raises(KnobError, match="a monitor sees one batch after the other"):
        offramp.load(run, lanes=2, monitor=Monitor())


def test_threads(run: Path) -> None:
    assert check_threads(None) == cores() >= 1
    assert check_threads(1) == 1
    for wrong in (0, -1, cores() + 1):
        with pytest.raises(KnobError, match=f"threads must be from 1 to the {cores()} cores there are, not {wrong}"):
            offramp.load(run, threads=wrong)
    for kind in ("2", 1.0, True):
        with pytest.raises(KnobError, match=f"threads must be a whole number from 1 to the {cores()} cores there are"):
            offramp.load(run, threads=kind)  # type: ignore[arg-type]


def test_a_cpu_without_int8_instructions(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "has_int8_instructions", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert load(run)("a gem").label in ("good", "bad", "odd")  # type: ignore[union-attr]
    assert "this CPU has no instructions for int8 products: int8 will be slow here, try float32" in caplog.text
    caplog.clear()
    load(run, dtype="float32")
    assert "int8" not in caplog.text


def test_cpu_features_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, expected in (("flags : fpu avx2 avx512_vnni", True), ("flags : fpu avx2", False)):
        monkeypatch.setattr(Path, "read_text", lambda self, said=said, **_: said)
        assert has_int8_instructions() is expected


# Exporting


def test_differences_of_many_layers_may_add_up(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stage may differ by grows with the layers that came before and in it, from so many on."""
    from offramp.errors import UnsupportedError
    from offramp.runtimes.export import check

    made = export_onnx(copy, exits="all", threads=1)
    errors = zip(made.check["float32_errors"], made.stages, strict=True)
    steepest = max(error / stage.layers for error, stage in errors)
    assert steepest > 0
    monkeypatch.setattr(check, "_LAYERS", 1)
    monkeypatch.setattr(check, "TOLERANCE", 1.01 * steepest)
    export_onnx(copy, exits="all", threads=1)
    monkeypatch.setattr(check, "TOLERANCE", 0.99 * steepest)
    with pytest.raises(UnsupportedError, match="differs from torch by"):
        export_onnx(copy, exits="all", threads=1)


def test_a_variant_is_replaced_whole(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from offramp.errors import UnsupportedError
    from offramp.runtimes.export import check
    from offramp.runtimes.export import onnx as exporting

    before = (variant(copy, "float32") / "manifest.json").read_bytes()
    monkeypatch.setattr(check, "TOLERANCE", 0.0)
    with pytest.raises(
        UnsupportedError, match=r"the graph of layers 1 to 1 differs from torch by .*: nothing was written"
    ):
        export_onnx(copy, exits="all", threads=1)
    assert sorted(path.name for path in (copy / "onnx").iterdir()) == ["float32", "int8"]
    assert (variant(copy, "float32") / "manifest.json").read_bytes() == before
    shutil.rmtree(copy / "onnx")
    with pytest.raises(UnsupportedError):
        export_onnx(copy, exits="all", threads=1)
    assert not (copy / "onnx").exists()
    monkeypatch.undo()
    assert exporting.export_onnx(copy, exits=[2], threads=1).left_out == (1,)
    assert [stage.layers for stage in read_manifest(variant(copy, "float32")).stages] == [2, 3]
    assert sorted(path.name for path in variant(copy, "float32").iterdir()) == [
        "manifest.json", "single.onnx", "stage-0.onnx", "stage-1.onnx",
    ]  # fmt: skip


def test_what_a_killed_export_left_is_tidied_up(tmp_path: Path) -> None:
    from offramp.runtimes.export.source import placed

    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    gone, alive = process.pid, os.getppid()
    for name in (f".int8.new-{gone}", f".int8.old-{gone}", f".int8.new-{alive}", f".float32.new-{gone}"):
        (tmp_path / "onnx" / name).mkdir(parents=True)
        (tmp_path / "onnx" / name / "manifest.json").write_text(name)
    target = tmp_path / "onnx" / "int8"
    with pytest.raises(ZeroDivisionError), placed(target):
        raise ZeroDivisionError
    assert (target / "manifest.json").read_text() == f".int8.old-{gone}", "it had only been moved aside"
    left = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert left == {"int8", f".int8.new-{alive}", f".float32.new-{gone}"}, "not what others are writing"
    with placed(target) as folder:
        (folder / "manifest.json").write_text("new")
    assert (target / "manifest.json").read_text() == "new"


def test_what_the_manifest_says(run: Path) -> None:
    exact, small = (read_manifest(variant(run, dtype)) for dtype in ("float32", "int8"))
    assert (exact.family, exact.fused, exact.quantisation, small.quantisation) == ("bert", True, None, "rows")
    assert exact.batch_invariant
    assert small.batch_invariant
    assert exact.tokenizer == {"max_length": 48, "pad_token": 0, "token_types": True}
    assert set(exact.versions) == {"offramp", "torch", "transformers", "onnx", "onnxruntime"}
    assert exact.check["texts"] == small.check["texts"] > 40
    assert max(exact.check["float32_errors"]) < 1e-4
    assert exact.check["exits"] == exact.check["batch_1"]["exits"] == small.check["batch_1"]["exits"] == 1
    assert exact.check["labels"] == [1, 1, 1]
    assert min(small.check["labels"]) > 0.8
    for made in (exact, small):
        assert made.cost is not None
        assert 0 <= made.cost.call < 1
        assert 0 <= made.cost.token < 1
        assert made.info.cost == made.cost
    sizes = [sum(path.stat().st_size for path in variant(run, dtype).glob("*.onnx")) for dtype in ("float32", "int8")]
    assert sizes[1] < sizes[0]


def test_static_ranges_without_texts_are_warned_of(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = export_onnx(copy, int8="static", exits="all", threads=1)
    assert "ranges of static int8 are measured on built-in sentences: give --data" in caplog.text
    assert (made.quantisation, made.batch_invariant) == ("static", True)
    caplog.clear()
    assert export_onnx(copy, int8="static", exits="all", texts=TEXTS, threads=1).check["texts_given"]
    assert "built-in" not in caplog.text


def test_a_kind_of_int8_that_is_not(run: Path) -> None:
    with pytest.raises(KnobError, match="int8 is made by rows, static, weights, dynamic, not 'magic'"):
        export_onnx(run, int8="magic")  # type: ignore[arg-type]


# Without torch

BLOCK = """
    import sys

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {"torch", "transformers", "onnx"}:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Block())
"""


def test_load_and_predict_need_neither_torch_nor_transformers(run: Path) -> None:
    program = f"""
        import offramp
        clf = offramp.load({str(run)!r}, threads=1)
        print([one.label for one in clf({TEXTS!r})], clf.runtime.info.dtype)
        print(sorted({{"torch", "transformers", "onnx"}} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BLOCK) + textwrap.dedent(program)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    expected = [one.label for one in load(run)(TEXTS)]
    assert done.stdout.splitlines() == [f"{expected} int8", "[]"], done.stderr


def test_the_command_line_predicts_without_them_too(run: Path) -> None:
    program = f"from offramp.cli import main\nmain(['predict', {str(run)!r}, 'a lovely gem', '--threads', '1'])\n"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BLOCK) + program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"] in ("good", "bad", "odd")


@pytest.mark.long
def test_a_fresh_environment_with_the_extra_alone(run: Path, tmp_path: Path) -> None:
    project = Path(__file__).parents[2]
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"{project}[onnx]"], check=True)
    program = f"""
        from importlib.util import find_spec
        print([name for name in ("torch", "transformers", "onnx") if find_spec(name)])
        import offramp
        print([one.label for one in offramp.load({str(run)!r}, threads=1)({TEXTS!r})])
    """
    done = subprocess.run([python, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[]", str([one.label for one in load(run)(TEXTS)])], done.stderr
