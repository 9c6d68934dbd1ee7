"""``offramp export``, and the commands that serve what it wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.runtimes.cpu import cores
from offramp.runtimes.manifest import read_manifest
from offramp.runtimes.openvino import has_bfloat16
from offramp.traces.store import load_trace

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a float32 and an int8 export, made by the command line. Shared: do not change it."""
    from offramp.cli import main

    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("export") / "run"))
    for more in ([], ["--int8"]):
        with pytest.raises(SystemExit) as left:
            main(["export", str(folder), "--exits", "all", "--threads", "1", *more])
        assert not left.value.code
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_what_is_printed(cli: Cli, copy: Path, toy_data: Callable[..., str]) -> None:
    done = cli("export", copy, "--exits", "2", "--data", toy_data(), "--threads", 1)
    assert done.status == 0, done.err
    assert [line.split() for line in done.out.splitlines()[1:3]] == [
        ["1-2", *done.out.splitlines()[1].split()[1:2], "100.0", "%"],
        ["3-3", *done.out.splitlines()[2].split()[1:2], "100.0", "%"],
    ]
    assert "Checked on 48 given texts." in done.out
    assert "Exits after layer 1 left out" in done.out
    assert "100.0 % leave where they do in torch" in done.out
    assert done.out.splitlines()[-1] == f"Wrote {copy / 'onnx' / 'float32'}"


def test_int8_that_minds_its_neighbours_says_so(cli: Cli, copy: Path) -> None:
    done = cli("export", copy, "--int8-kind", "dynamic", "--exits", "all", "--threads", 1)
    assert done.status == 0, done.err
    assert "Int8 by dynamic" in done.out
    assert "Neighbours in a batch change answers" in done.out
    assert not read_manifest(copy / "onnx" / "int8").batch_invariant


def test_openvino(cli: Cli, copy: Path, toy_data: Callable[..., str]) -> None:
    shutil.rmtree(copy / "onnx")
    done = cli("export", copy, "--runtime", "openvino", "--exits", "2", "--threads", 1)
    assert done.status == 0, done.err
    assert done.out.splitlines()[-1] == f"Wrote {copy / 'openvino' / 'float32'}"
    assert ("In bfloat16 (--dtype bfloat16) a logit differs from torch by" in done.out) == has_bfloat16()


@pytest.mark.long  # the export itself is seen in tests/runtimes
def test_openvino_int8(cli: Cli, copy: Path, toy_data: Callable[..., str]) -> None:
    shutil.rmtree(copy / "onnx")
    more = ("--runtime", "openvino", "--int8", "--exits", "2", "--data", write_few(copy, toy_data), "--json")
    said = cli("export", copy, *more, "--threads", 1).json
    assert (said["folder"], said["stages"]) == (str(copy / "openvino" / "int8"), [2, 3])
    assert (said["quantisation"], said["batch_invariant"], said["texts_given"]) == ("static", True, True)
    served = cli("predict", copy, "a lovely gem", "--threads", 1)
    assert served.json["label"] in ("good", "bad", "odd")
    assert "runs on runtime openvino" in served.err


def write_few(folder: Path, toy_data: Callable[..., str]) -> Path:
    lines = (Path(toy_data()) / "dev.jsonl").read_text().splitlines(keepends=True)
    path = folder.parent / "few.jsonl"
    path.write_text("".join(lines[:6]))
    return path


def test_json(cli: Cli, copy: Path) -> None:
    said = cli("export", copy, "--int8", "--exits", "all", "--threads", 1, "--json").json
    assert (said["folder"], said["stages"]) == (str(copy / "onnx" / "int8"), [1, 2, 3])
    assert (said["quantisation"], said["batch_invariant"], said["texts_given"]) == ("rows", True, False)
    assert len(said["float32_errors"]) == len(said["labels"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runtime", "abacus"], "nothing can be exported for 'abacus': there are onnx and openvino"),
        (
            ["--runtime", "openvino", "--int8-kind", "weights"],
            "int8 is made by rows, static, not 'weights'",
        ),
        (["--int8-kind", "magic"], "int8 is made by rows, static, weights, dynamic, not 'magic'"),
        (["--exits", "two"], "--exits takes layers such as 2,4, or all, not 'two'"),
        (["--exits", "9"], "this model has no exit after layer 9: it has them after 1, 2, 3"),
        (["--threads", str(cores() + 1)], f"threads must be from 1 to the {cores()} cores"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_cannot_be(cli: Cli, copy: Path, options: list[str], message: str) -> None:
    before = sorted(copy.rglob("*"))
    assert message in cli("export", copy, *options).error
    assert sorted(copy.rglob("*")) == before


def test_folders_that_are_no_runs(cli: Cli, tmp_path: Path) -> None:
    assert "is no offramp run" in cli("export", tmp_path).error
    assert "there is no folder" in cli("export", tmp_path / "none").error


def test_predict(cli: Cli, run: Path, dev_rows: list[dict[str, Any]]) -> None:
    texts = "\n".join(json.dumps({"text": row["text"]}) for row in dev_rows[:8])
    both = [
        cli("predict", run, "--runtime", name, "--dtype", "float32", stdin=texts).lines for name in ("torch", "onnx")
    ]
    assert [one["exit_layer"] for one in both[0]] == [one["exit_layer"] for one in both[1]]
    int8 = cli("predict", run, "--dtype", "int8", "--threads", 1, stdin=texts)
    assert [one["label"] for one in int8.lines] == [one["label"] for one in both[0]]
    assert "was chosen on runtime torch" in int8.err


def test_evaluate(cli: Cli, run: Path, toy_data: Callable[..., str]) -> None:
    words = ("evaluate", run, "--data", toy_data(), "--rounds", 0, "--json", "--dtype", "float32")
    ours, theirs = (cli(*words, "--runtime", name).json for name in ("onnx", "torch"))
    assert (ours["runtime"], ours["accuracy"], ours["exits"]) == ("onnx", theirs["accuracy"], theirs["exits"])
    assert ours["lanes"] == 1
    assert "lanes must be from 1 to the" in cli(*words, "--runtime", "torch", "--lanes", 999).error
    if cores() > 1:
        assert cli(*words, "--runtime", "onnx", "--lanes", 2).json == ours | {"lanes": 2}


def test_record(cli: Cli, copy: Path, toy_data: Callable[..., str]) -> None:
    for options, runtime, dtype in (
        ([], "torch", "float32"),
        (["--runtime", "onnx", "--dtype", "float32"], "onnx", "float32"),
        (["--runtime", "onnx"], "onnx", "int8"),
        (["--dtype", "int8"], "onnx", "int8"),
    ):
        out = copy / "traces" / f"new-{runtime}-{dtype}"
        assert cli("record", copy, "--data", toy_data(), "--out", out, *options).status == 0
        trace = load_trace(out)
        assert (trace.runtime, trace.dtype, trace.num_exits) == (runtime, dtype, 3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "onnx/int8/stage-1.onnx").write_bytes(b"half"), "is not the file that was exported"),
        (lambda run: (run / "onnx/int8/manifest.json").write_text('{"format": 99}'), "has export format 99"),
        (lambda run: shutil.rmtree(run / "onnx/int8"), "has no int8 export: run `offramp export"),
        (
            lambda run: (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes() + b" "),
            "was made of other weights",
        ),
    ],
)
def test_exports_that_cannot_be_served(cli: Cli, copy: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(copy)
    assert message in cli("predict", copy, "a text", "--dtype", "int8").error
