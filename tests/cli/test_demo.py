from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def test_the_whole_story(
    cli: Cli, tiny_encoder: str, toy_data: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("offramp.cli.demo.MAX_LENGTH", 32)  # the tiny encoder reads 48
    parts, out = tmp_path / "parts", tmp_path / "run"
    parts.mkdir()
    words = ("demo", "--model", tiny_encoder, "--data", parts, "--out", out, "--epochs", 1)
    lacking = cli(*words)
    assert (lacking.status, lacking.err.count("\n")) == (2, 1)
    assert "lacks train.jsonl, checkpoint.jsonl, choose.jsonl, report.jsonl" in lacking.err
    for name in ("train", "checkpoint", "choose", "report"):
        shutil.copy(Path(toy_data()) / ("train.jsonl" if name == "train" else "dev.jsonl"), parts / f"{name}.jsonl")
    told = cli(*words)
    assert told.status == 0, told
    for said in ("1. Data", "2. Training", "Fastest within half a point", "wall-clock speed-up", "Try next"):
        assert said in told.out
    again = cli(*words, "--json")  # trained already
    result = again.json
    assert "trained already" in again.err
    assert result["comparison"] == json.loads((out / "compare" / "compare.json").read_text())
    assert result["evaluation"] == json.loads((out / "evaluation.json").read_text())
    assert f"Of {result['evaluation']['n']} sentences" in told.out
    for name in ("compare/compare.png", "compare/report.html", "traces/report.safetensors", "model.safetensors"):
        assert (out / name).is_file()


@pytest.mark.parametrize(
    ("left", "resumed"),
    [
        ({"plan.json": '{"seed": 4'}, []),  # killed at its first write
        ({"plan.json": '{"seed": 4}', "phase-1/checkpoint-1/trainer_state.json": "{}"}, []),  # begun with another seed
        ({"phase-1/checkpoint-1/trainer_state.json": "{}"}, [True]),
    ],
)
def test_an_interrupted_demo_goes_on_where_it_can_and_else_begins_anew(
    cli: Cli, tiny_encoder: str, toy_data: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    left: dict[str, str], resumed: list[bool],
) -> None:  # fmt: skip
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("offramp.cli.demo.MAX_LENGTH", 32)
    parts, seen = tmp_path / "parts", []
    for name in ("train", "checkpoint", "choose", "report"):
        parts.mkdir(exist_ok=True)
        shutil.copy(Path(toy_data()) / "dev.jsonl", parts / f"{name}.jsonl")

    def stop(ready: Any) -> None:
        seen.append(ready.plan.resume)
        raise KeyboardInterrupt

    monkeypatch.setattr("offramp.training.train.fit", stop)
    words = ("demo", "--model", tiny_encoder, "--data", parts, "--out", tmp_path / "run", "--seed", 3)
    assert cli(*words).status == 130
    for name, text in left.items():
        path = tmp_path / "run.training" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cli(*words).status == 130
    assert seen == [False, *(resumed or [False])]
