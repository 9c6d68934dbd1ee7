"""Texts of which a tokenizer without special tokens leaves nothing: one sentence that names the row, everywhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.errors import DataError
from offramp.pipeline import load

Cli = Callable[..., Any]

ROWS = [("a gem", "good"), ("the dull film", "bad"), ("", "bad"), ("the film", "good")]
SAYS = "has no tokens: it is empty, or blank to this tokenizer, which adds no special tokens; leave it out"


def bare(folder: Path | str, copy: Path) -> Path:
    """A copy of a folder whose tokenizer adds no special tokens."""
    shutil.copytree(folder, copy)
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    return copy


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return bare(trained, tmp_path / "run")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS))
    return path


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("more", [[], ["--monitor"]])
def test_predict(cli: Cli, run: Path, data: Path, batch_size: int, more: list[str]) -> None:
    done = cli("predict", run, "--input", data, "--batch-size", batch_size, *more)
    assert (done.status, len(done.lines)) == (2, 2)  # those before it are answered, as where a line cannot be read
    assert done.err.splitlines()[-1] == f"offramp: error: {data}, line 3 {SAYS}"


def test_predict_from_standard_input_and_the_command_line(cli: Cli, run: Path) -> None:
    assert f"standard input, line 2 {SAYS}" in cli("predict", run, stdin="a gem\n\nthe film\n").err
    assert f"text 2 {SAYS}" in cli("predict", run, "a gem", "").err
    assert cli("predict", run, " ").error == f"text 1 {SAYS}"


@pytest.mark.parametrize("command", [["evaluate", "--rounds", 0], ["record"], ["export"], ["compare"], ["bench"]])
def test_what_reads_a_run(cli: Cli, run: Path, data: Path, command: list[Any], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert cli(command[0], run, "--data", data, *command[1:]).error == f"{data}, line 3 {SAYS}"
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("labelled", [True, False])
def test_what_trains(
    cli: Cli, tiny_encoder: str, data: Path, plain_model: Callable[..., Any], tmp_path: Path, labelled: bool
) -> None:
    encoder = bare(tiny_encoder, tmp_path / "encoder")
    words = ["train"]
    if not labelled:
        plain_model("bert").save_pretrained(encoder)
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in ROWS))
        words = ["attach"]
    given = ["--model", encoder] if labelled else [encoder]
    done = cli(*words, *given, "--data", data, "--dev", data, "--out", tmp_path / "out", "--bf16", "false")
    assert done.error == f"{data}, line 3 {SAYS}"
    assert sorted(os.listdir(tmp_path)) == ["encoder", "rows.jsonl"]


def test_a_call(run: Path) -> None:
    classifier = load(run)
    with pytest.raises(DataError, match="text 3 has no tokens"):
        classifier(["a gem", "the film", ""])
    with pytest.raises(DataError, match="text 1 has no tokens"):
        classifier("")
    many = ["a gem"] * 1030
    with pytest.raises(DataError, match="text 1031 has no tokens"):
        classifier([*many, ""])
    assert classifier([]) == []


def test_half_a_pair_may_be_empty(run: Path) -> None:
    assert len(load(run)([("", "a gem"), ("a gem", "")])) == 2


def test_with_special_tokens_an_empty_text_is_a_text(cli: Cli, trained: Path, data: Path) -> None:
    assert len(cli("predict", trained, "--input", data).lines) == len(ROWS)
    assert len(cli("predict", trained, "").lines) == 1
