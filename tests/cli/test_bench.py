"""``offramp bench``. Times are never looked at: only who took part, and what stands beside the times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def data(toy_data: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred rows and more: halves must have something to choose on."""
    folder = Path(toy_data())
    rows = [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    path = tmp_path_factory.mktemp("bench") / "many.jsonl"
    many = [{**row, "text": f"{row['text']} {turn}"} for turn in range(1 + 120 // len(rows)) for row in rows]
    path.write_text("\n".join(map(json.dumps, many)))
    return path


@pytest.mark.long  # processes that import torch; tests/bench/test_speed.py races servers that do not
def test_one_row(cli: Cli, trained: Path, data: Path, tmp_path: Path) -> None:
    row = "offramp-torch-float32-full"
    done = cli(
        "bench", trained, "--data", data, "--rows", row, "--scenarios", "offline", "--rounds", 1, "--threads", 1,
        "--out", tmp_path,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "offramp torch fp32, full depth" in done.out
    result = json.loads((tmp_path / "result.json").read_text())
    assert [each["name"] for each in result["rows"]] == [row]
    assert result["rows"][0]["Offline"]["accuracy"] == result["reference"]["accuracy"]
    assert result["fastest_peer"] == {"Offline": None}
    assert result["commit"] is None or len(result["commit"]) == 40
    assert result["command"] == (
        f"offramp bench {trained.name} --data {data.name} --rows {row} --scenarios offline --rounds 1 --threads 1 "
        f"--out {tmp_path.name}"
    )


@pytest.mark.long
def test_a_race_of_a_run(cli: Cli, trained: Path, data: Path, tmp_path: Path) -> None:
    rows = "onnxruntime-float32,offramp-onnx-float32-full,offramp-onnx-float32-lost-50-offline"
    lines = data.read_text().splitlines()
    more = tmp_path / "more.jsonl"
    others = [line.replace('": "', '": "again ', 1) for line in lines[:40]]
    more.write_text("\n".join([*(line.replace('": "', '": "  ', 1) for line in lines[:5]), *others]))
    done = cli(
        "bench", trained, "--data", data, "--choose", more, "--rows", rows, "--max-lost", 50, "--rounds", 2,
        "--single", 3, "--threads", 1, "--out", tmp_path, "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    result = done.json
    assert f"rows of {more} are left out: they stand in --data, were trained on, or come twice" in " ".join(
        done.err.split()
    )
    assert result["data"]["n"] == len(lines)
    assert 0 < result["data"]["chosen_on_only"] <= 40
    assert result["setup"]["choose"] == "more.jsonl"
    assert json.loads((tmp_path / "result.json").read_text()) == result
    peer, full, exits = result["rows"]
    assert [row.get("failure") for row in (peer, full, exits)] == [None] * 3
    assert [row["group"] for row in (peer, full, exits)] == ["peer", "full", "exits"]
    assert result["fastest_peer"] == {"Offline": peer["name"], "SingleStream": peer["name"]}
    # The peer and our full depth serve one model here.
    assert peer["Offline"]["accuracy"] == full["Offline"]["accuracy"] == result["reference"]["accuracy"]
    assert full["Offline"]["lost"]["points"] == 0
    assert full["facts"]["layer_speedup"] == 1
    assert "SingleStream" not in exits
    assert exits["prepared"]["held_out"]["splits"] == 50
    assert exits["facts"]["layer_speedup"] >= 1
    assert len(exits["Offline"]["ratio"]["without tokenisation"]["rounds"]) == 2
    assert {path.name for path in tmp_path.iterdir()} >= {"result.json", "speed.png", "accuracy.png"}
    assert all(str(trained) not in text for text in (json.dumps(result),)), "no place of this machine"


def test_names_of_rows(cli: Cli, trained: Path, data: Path) -> None:
    done = cli("bench", trained, "--data", data, "--rows", "list")
    assert done.status == 0
    assert {"transformers-pipeline", "openvino-int8", "offramp-torch-float32-full", "offramp-onnx-int8-exit-1"} <= set(
        done.out.split()
    )


@pytest.mark.parametrize(
    "words", [["--rows", "nothing"], ["--max-lost", "a"], ["--max-lost", "-1"], ["--scenarios", "x"]]
)
def test_bad_arguments(words: list[str], trained: Path, data: Path, cli: Cli) -> None:
    done = cli("bench", trained, "--data", data, *words)
    assert words[1] in done.error


def test_rows_to_choose_on_are_new_and_stand_once(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    from offramp.cli.bench import _to_choose_on
    from offramp.errors import DataError
    from offramp.run import Run
    from offramp.training.data import Examples, row_hashes

    run = Run.open(trained)

    def examples(*texts: Any) -> Examples:
        return Examples(list(texts), np.zeros(len(texts), dtype=np.int64), list(range(1, len(texts) + 1)), "here")

    class Trained:
        training_hashes = row_hashes(["a gem"])

    scored = examples("It 's fine .", ("one", "two"))
    found = examples("It's fine!", "new", "NEW", "a gem", ("one", "two!"), ("two", "one"), "...", "!!!")
    kept = _to_choose_on("more.jsonl", scored, found, Trained())
    assert kept.texts == ["new", ("two", "one"), "...", "!!!"]
    assert "4 of 8 rows of more.jsonl are left out" in caplog.text
    assert _to_choose_on(None, scored, found, run).texts == []
    with pytest.raises(DataError, match="nothing more to choose on"):
        _to_choose_on("more.jsonl", scored, scored, run)


def test_too_few_texts(trained: Path, toy_data: Callable[..., str], cli: Cli) -> None:
    assert "give 100" in cli("bench", trained, "--data", toy_data()).error
