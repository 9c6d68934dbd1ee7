"""Bad input: one sentence, status 2, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]

GOOD = '{"text": "a gem", "label": "good"}\n{"text": "the dull film", "label": "bad"}\n'


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    """``rows(content, name)``: a file."""

    def write(content: str | bytes, name: str = "rows.jsonl") -> Path:
        path = tmp_path / "data" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


BAD = [
    ("", "rows.jsonl", "rows.jsonl is empty"),
    ("\n\n", "rows.jsonl", "rows.jsonl is empty"),
    ("text,label\n", "rows.csv", "rows.csv is empty"),
    ("words,label\na,good\n", "rows.csv", "no text column with a usual name (it has words, label)"),
    (GOOD.encode() + b'{"text": "caf\xe9", "label": "bad"}\n', "rows.jsonl", "line 3: bytes that are not UTF-8"),
    (GOOD + '{"text": "cut sho', "rows.jsonl", "line 3 is not JSON, or is cut short"),
    (GOOD + "[1]\n", "rows.jsonl", "line 3 is not a JSON object but a list"),
    (GOOD + '{"label": "bad"}\n', "rows.jsonl", "line 3 has no 'text'"),
    (GOOD + '{"text": 3, "label": "bad"}\n', "rows.jsonl", "line 3: 'text' is a number, not a string"),
    ('text,label\na,good,"more\n', "rows.csv", "rows.csv, line 2"),
]
UNLABELLED = [
    ('{"text": "a gem"}\n' * 2, "rows.jsonl", "no label column with a usual name (it has text)"),
    (GOOD + '{"text": "of", "label": null}\n', "rows.jsonl", "line 3 has no label"),
    ("text\tlabel\na gem\tgood\nof\t\n", "rows.tsv", "line 3 has no label"),
]


def train(cli: Cli, encoder: str, data: object, out: Path, *more: object) -> Any:
    return cli("train", "--model", encoder, "--data", data, "--out", out, "--bf16", "false", *more)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        *BAD,
        *UNLABELLED,
        ('{"text": "a", "label": "good"}\n' * 3, "rows.jsonl", "every row has the label 'good': training needs two"),
        ('{"text": "a", "label": "good"}\n', "rows.jsonl", "fewer than two rows"),
        (GOOD, "rows.docx", "has no ending that says how to read it"),
    ],
)
def test_training_data(
    cli: Cli, rows: Callable[..., Path], tiny_encoder: str, tmp_path: Path, content: str, name: str, message: str
) -> None:
    assert message in train(cli, tiny_encoder, rows(content, name), tmp_path / "run").error
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        *BAD,
        *UNLABELLED,
        (GOOD + '{"text": "of", "label": "ugly"}\n', "rows.jsonl", "line 3: label 'ugly' is not one of those known"),
    ],
)
def test_data_to_evaluate(
    cli: Cli, rows: Callable[..., Path], trained: Path, content: str, name: str, message: str
) -> None:
    assert message in cli("evaluate", trained, "--data", rows(content, name), "--rounds", 0).error


def assert_refused_after(done: Any, answers: int, message: str) -> None:
    """Lines before the bad one are answered; then one sentence, status 2."""
    assert (done.status, len(done.lines)) == (2, answers), done
    [said] = done.err.splitlines()
    assert said.startswith("offramp: error: ")
    assert message in said


@pytest.mark.parametrize(("content", "name", "message"), BAD)
def test_texts_to_predict(
    cli: Cli, rows: Callable[..., Path], trained: Path, content: str, name: str, message: str
) -> None:
    done = cli("predict", trained, "--input", rows(content, name))
    assert_refused_after(done, 2 if "line 3" in message else 0, message)


@pytest.mark.parametrize(("content", "name", "message"), [case for case in BAD if case[1] == "rows.jsonl" and case[0]])
def test_texts_on_standard_input(cli: Cli, trained: Path, content: str, name: str, message: str) -> None:
    if not content.strip():
        assert len(cli("predict", trained, stdin=content).lines) == 2  # lines of text, and empty
        return
    done = cli("predict", trained, stdin=content)
    assert_refused_after(done, 2 if "line 3" in message else 0, message.replace("rows.jsonl", "standard input"))


def test_nothing_on_standard_input(cli: Cli, trained: Path) -> None:
    assert "standard input is empty" in cli("predict", trained).error


def test_a_dev_label_never_seen_in_training(
    cli: Cli, rows: Callable[..., Path], tiny_encoder: str, tmp_path: Path
) -> None:
    data, dev = rows(GOOD), rows('{"text": "of", "label": "ugly"}\n', "dev.jsonl")
    assert "dev.jsonl, line 1: label 'ugly'" in train(cli, tiny_encoder, data, tmp_path / "run", "--dev", dev).error
    assert os.listdir(tmp_path) == ["data"]


def test_files_that_are_not_there(cli: Cli, trained: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.jsonl"
    assert f"there is no file {absent}" in cli("predict", trained, "--input", absent).error
    assert f"there is no file or folder {absent}" in cli("evaluate", trained, "--data", absent).error
    assert "there is no trace" in cli("compare", trained, "--trace", absent).error
    assert "is a folder: name a file in it" in cli("predict", trained, "--input", tmp_path).error


@pytest.mark.parametrize(
    "command", [["predict", "text"], ["inspect", "text"], ["evaluate", "--data", "d"], ["record", "--data", "d"],
                ["compare", "--data", "d"]]
)  # fmt: skip
def test_folders_that_are_no_runs(
    cli: Cli, command: list[str], trained: Path, tiny_encoder: str, tmp_path: Path
) -> None:
    def error(folder: object) -> str:
        return str(cli(command[0], folder, *command[1:]).error)

    assert "there is no folder" in error(tmp_path / "absent")
    assert "is no offramp run: it has no config.json" in error(tmp_path)
    assert "is no offramp run: its config.json has no 'offramp' section" in error(tiny_encoder)
    newer = Path(shutil.copytree(trained, tmp_path / "newer"))
    config = json.loads((newer / "config.json").read_text())
    config["offramp"]["format"] = 99
    (newer / "config.json").write_text(json.dumps(config))
    assert "newer has run format 99 and this offramp reads up to 1: upgrade" in error(newer)
    (newer / "config.json").write_text("{")
    assert "config.json is damaged" in error(newer)


def test_a_run_of_a_newer_format_is_not_trained_on_either(
    cli: Cli, rows: Callable[..., Path], trained: Path, tmp_path: Path
) -> None:
    """It may keep elsewhere what it has learned from, and rows that are trained on are not calibrated on."""
    newer = Path(shutil.copytree(trained, tmp_path / "newer"))
    config = json.loads((newer / "config.json").read_text())
    config["offramp"]["format"] = 99
    (newer / "config.json").write_text(json.dumps(config))
    error = train(cli, str(newer), rows(GOOD), tmp_path / "run", "--max_steps", 1).error
    assert error == f"{newer} has run format 99 and this offramp reads up to 1: upgrade with pip install -U offramp"
    assert sorted(os.listdir(tmp_path)) == ["data", "newer"]


def test_a_damaged_run(cli: Cli, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "operating_points.json").write_text('{"format": 1, "points": [{"name": "x"')
    assert "operating_points.json is damaged" in cli("predict", run, "text").error
    (run / "operating_points.json").unlink()
    assert "has no operating_points.json: `offramp calibrate" in cli("predict", run, "text").error
    assert cli("predict", run, "text", "--full-depth").status == 0
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "model.safetensors cannot be read" in cli("predict", run, "text", "--full-depth").error
    (run / "model.safetensors").unlink()
    assert "has no model.safetensors" in cli("predict", run, "text").error


def test_places_that_are_not_to_be_written_over(
    cli: Cli, rows: Callable[..., Path], tiny_encoder: str, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert "holds something else: give --out a new folder" in train(cli, tiny_encoder, rows(GOOD), mine).error
    assert "is a file: give --out a folder" in train(cli, tiny_encoder, rows(GOOD), mine / "thesis.txt").error
    assert os.listdir(mine) == ["thesis.txt"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a place where root may write and cannot")
def test_a_place_where_files_cannot_be_made(cli: Cli, tiny_encoder: str, rows: Callable[..., Path]) -> None:
    assert "nothing can be written to /proc (" in train(cli, tiny_encoder, rows(GOOD), Path("/proc/x")).error


NOTHING_IS_COMPUTED = (
    "offramp.engine.record.record", "offramp.cli.export._exporter", "offramp.training.train.load_data",
    "offramp.training.attach._load",
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["record", "RUN", "--data", "DATA"], "run/traces"),
        (["record", "RUN", "--data", "DATA", "--out", "thesis.txt/trace"], "thesis.txt"),
        (["compare", "RUN", "--data", "DATA"], "run"),
        (["compare", "RUN", "--data", "DATA", "--out", "thesis.txt/pictures"], "thesis.txt"),
        (["calibrate", "RUN", "--data", "DATA", "--speedup", 1.5, "--force"], "run"),
        (["export", "RUN"], "run"),
        (["train", "--model", "ENCODER", "--data", "DATA", "--out", "locked/run"], "locked"),
        (["train", "--model", "ENCODER", "--data", "DATA", "--out", "thesis.txt/run"], "thesis.txt"),
        (["attach", "RUN", "--data", "DATA", "--out", "locked/deep/run"], "locked"),
    ],
)
def test_places_that_cannot_be_written_are_told_of_before_anything_is_computed(
    cli: Cli, trained: Path, toy_data: Callable[..., str], tiny_encoder: str, tmp_path: Path, words: list[str],
    place: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("matplotlib")
    pytest.importorskip("onnxruntime")
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "locked").mkdir()
    (tmp_path / "thesis.txt").write_text("years of work")
    before = sorted(tmp_path.rglob("*"))

    def computed(*_: object, **__: object) -> None:
        raise AssertionError("too late")

    for name in NOTHING_IS_COMPUTED:
        monkeypatch.setattr(name, computed)
    # Of a file system that is read-only the system says this to everybody; of others' folders not to root.
    locked = {tmp_path / "locked", *(tmp_path / "run").rglob("*"), tmp_path / "run"}
    may = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: may(path, mode) and not (mode & os.W_OK and Path(path).absolute() in locked)
    )
    monkeypatch.chdir(tmp_path)
    named = {"RUN": "run", "DATA": toy_data(), "ENCODER": tiny_encoder}
    error = cli(*(named.get(str(word), word) for word in words)).error
    assert error.startswith("nothing can be written to ")
    assert place in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--exits", "9"], "exit"),
        (["--pooling", "max"], "pooling"),
        (["--max-length", "4000"], "--max_length 4000 is more than"),
        (["--set", "head.depth=3"], "depth"),
        (["--resume"], "there is nothing to resume"),
        (["--num_train_epochs", "many"], "--num_train_epochs does not take 'many'"),
        (["--problem-type", "ranking"], "ranking"),
    ],
)
def test_training_options(
    cli: Cli, rows: Callable[..., Path], tiny_encoder: str, tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in train(cli, tiny_encoder, rows(GOOD * 3), tmp_path / "run", *options).error
    assert os.listdir(tmp_path) == ["data"]


def test_no_such_encoder(cli: Cli, rows: Callable[..., Path], tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert train(cli, str(absent), rows(GOOD), tmp_path / "run").error == f"there is no folder {absent}: check its name"
    assert "cannot load a tokenizer from no/such" in train(cli, "no/such", rows(GOOD), tmp_path / "run").error
    assert os.listdir(tmp_path) == ["data"]


def test_a_recipe_that_does_not_serve_the_data(cli: Cli, toy_data: Callable[..., str], tmp_path: Path) -> None:
    error = train(cli, "m", toy_data("regression"), tmp_path / "run").error
    assert "serves single_label_classification and the data is regression" in error
