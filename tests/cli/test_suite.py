"""``offramp compare --suite``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

Cli = Callable[..., Any]
TOML = """
encoder = "tiny"
targets = [1.2]
splits = 2
resamples = 5

[arguments]
max_steps = 4
per_device_train_batch_size = 16
bf16 = false
eval_strategy = "no"
load_best_model_at_end = false

[tasks.single_label_classification]

[[tiers]]
name = "A"
recipes = ["joint", "plain", "jiont"]
seeds = { single_label_classification = 1 }
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(TOML, encoding="utf-8")
    return path


def test_a_suite_from_file_to_tables(
    cli: Cli, suite: Path, tmp_path: Path, tiny_encoder: str, toy_data: Callable[[str], str]
) -> None:
    data, out = Path(toy_data("single_label_classification")).parent, tmp_path / "out"
    words = ("compare", "--suite", suite, "--data", data, "--model", tiny_encoder, "--out", out)
    first = cli(*words)
    assert first.status == 0, first.err
    assert "2 of 3 cells done" in first.err
    assert "did you mean joint?" in first.err
    page = (out / "comparison.md").read_text()
    assert "| joint | entropy | 1 |" in page
    assert (out / "tier-A.png").read_bytes().startswith(b"\x89PNG")
    cells = json.loads((out / "suite.json").read_text())["cells"]
    assert [cell["status"] for cell in cells] == ["done", "done", "not run"]

    again = cli("compare", "--suite", out, "--out", tmp_path / "elsewhere", "--json")  # nothing but the traces
    assert again.status == 0, again.err
    assert (tmp_path / "elsewhere" / "comparison.md").read_text() == page
    assert json.loads(again.out)["cells"] == cells
    assert "<sub>`offramp compare --suite`: " in page
    assert json.loads(again.out)["tasks"] == json.loads((out / "tables.json").read_text())["tasks"]


def test_no_time_is_no_table(
    cli: Cli, suite: Path, tmp_path: Path, tiny_encoder: str, toy_data: Callable[[str], str]
) -> None:
    data, out = Path(toy_data("single_label_classification")).parent, tmp_path / "out"
    done = cli("compare", "--suite", suite, "--data", data, "--model", tiny_encoder, "--out", out, "--minutes", "0")
    assert done.status == 0, done.err
    assert f"Data in {data}, " in done.err
    assert "Nothing is done yet, so there are no tables" in done.out
    assert not list(out.glob("*.png"))


def test_a_suite_of_which_nothing_can_run(
    cli: Cli, suite: Path, tmp_path: Path, tiny_encoder: str, toy_data: Callable[[str], str]
) -> None:
    out = tmp_path / "out"
    words = ("compare", "--suite", suite, "--out", out)
    done = cli(*words, "--data", tmp_path)
    assert done.status == 2
    assert (
        "single_label_classification / joint because there is no single_label_classification/train.jsonl in the "
        in (done.err)
    )
    assert "put train.jsonl and dev.jsonl there" in done.err
    assert f"why the others cannot stands in {out}/suite.json" in done.err
    cells = json.loads((out / "suite.json").read_text())["cells"]
    assert "did you mean joint?" in cells[2]["reason"]
    data = Path(toy_data("single_label_classification")).parent
    done = cli(*words, "--data", data, "--model", tiny_encoder, "--recipes", "jiont")  # the others could
    assert done.status == 2
    assert "did you mean joint?" in done.err


def test_a_suite_without_its_places(cli: Cli, suite: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    done = cli("compare", "--suite", suite, "--data", nowhere)
    assert (done.status, f"there is no folder {nowhere}" in done.err) == (2, True)
    done = cli("compare", "--suite", suite, "--data", tmp_path, "--model", nowhere)
    assert (done.status, f"there is no folder {nowhere}: check its name" in done.err) == (2, True)


def test_what_does_not_go_together(cli: Cli, suite: Path, trained: Path, tmp_path: Path) -> None:
    for words, says in (
        (("compare",), "name the run folder"),
        (("compare", trained, "--suite", suite), "leave"),
        (("compare", "--suite", suite), "needs --data"),
        (("compare", "--suite", tmp_path / "none.toml"), "there is no suite"),
        (("compare", "--suite", tmp_path), "run the suite first"),
        (("compare", "--suite", suite, "--data", tmp_path, "--targets", "2"), "says for itself what --targets is"),
        (("compare", "--suite", suite, "--data", tmp_path, "--tasks", "toy"), "no task 'toy'"),
        (("compare", trained, "--data", tmp_path, "--minutes", "3"), "--minutes is about a suite"),
        (("compare", "--suite", tmp_path, "--model", "m"), "leave --model out"),
    ):
        done = cli(*words)
        assert done.status == 2
        assert says in done.err
