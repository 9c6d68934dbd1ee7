"""record, evaluate and compare."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cli = Callable[..., Any]
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained run that may be written to."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("own") / "run"))


def test_evaluate_by_hand(
    cli: Cli, trained: Path, toy_data: Callable[..., str], dev_rows: Rows, threshold: float
) -> None:
    done = cli("evaluate", trained, "--data", toy_data(), "--threshold", threshold, "--json", "--rounds", 1)
    assert (done.status, done.err) == (0, "")
    result = done.json
    lines, full = (
        cli("predict", trained, *options, *(row["text"] for row in dev_rows)).lines
        for options in (("--threshold", threshold), ("--full-depth",))
    )
    labels = [row["label"] for row in dev_rows]
    layers = np.array([line["exit_layer"] for line in lines])
    tokens = np.array([len(re.findall(r"\w+|[^\w\s]", row["text"])) + 2 for row in dev_rows])
    assert result["n"] == len(dev_rows)
    assert result["accuracy"] == pytest.approx(np.mean([a["label"] == b for a, b in zip(lines, labels, strict=True)]))
    assert result["full_depth"]["accuracy"] == pytest.approx(
        np.mean([a["label"] == b for a, b in zip(full, labels, strict=True)])
    )
    assert result["layer_speedup"] == pytest.approx(3 * len(layers) / layers.sum())
    assert result["token_layer_fraction"] == pytest.approx((tokens * layers).sum() / (3 * tokens.sum()))
    assert result["exits"] == {str(k): pytest.approx((layers == k).mean()) for k in (1, 2, 3)}
    seconds = result["wall_clock"]
    assert result["wall_clock_speedup"] == pytest.approx(seconds["full_depth"][0] / seconds["setting"][0])
    assert result["operating_point"]["knobs"] == {"threshold": threshold}


def test_evaluate_as_a_table(cli: Cli, trained: Path, toy_data: Callable[..., str]) -> None:
    words = ("evaluate", trained, "--data", toy_data(), "--rounds", 0)
    result, out = cli(*words, "--json").json, cli(*words).out
    assert result["wall_clock_speedup"] is None
    assert "wall_clock" not in result
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:4]}
    for name, value in result["full_depth"].items():
        assert rows[name] == [f"{result[name]:.4f}", f"{value:.4f}"]
    assert "wall-clock" not in out
    assert "48 texts, batches of 32, torch." in out
    assert "operating point 'default'" in out
    same = cli(*words, "--full-depth", "--json").json
    assert (same["layer_speedup"], same["accuracy"]) == (1, same["full_depth"]["accuracy"])
    assert "Leaving by full depth." in cli(*words, "--full-depth").out


def test_record(cli: Cli, run: Path, toy_data: Callable[..., str], dev_rows: Rows, tmp_path: Path) -> None:
    from offramp.traces.store import load_trace

    done = cli("record", run, "--data", toy_data(), "--json")
    name = run / "traces" / "single_label_classification"
    assert done.json == {"trace": f"{name}.safetensors", "n": 48, "exits": 3, "labelled": True}
    again, made = load_trace(name), load_trace(run / "traces" / "dev")
    np.testing.assert_allclose(again.logits, made.logits, atol=1e-5)
    np.testing.assert_array_equal(again.labels, made.labels)
    assert (again.model, again.hashes.tolist()) == (made.model, made.hashes.tolist())
    out = tmp_path / "folder" / "mine.safetensors"
    said = cli("record", run, "--data", Path(toy_data()) / "dev.jsonl", "--out", out, "--batch_size", 1).out
    assert said == f"Recorded 48 texts through 3 exits: {out}\n"
    np.testing.assert_allclose(load_trace(out).logits, made.logits, atol=1e-5)


def test_recording_dev_spares_the_trace_that_training_made(
    cli: Cli, run: Path, toy_data: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "traces" / "dev.safetensors").read_bytes()
    monkeypatch.chdir(toy_data())
    trace = cli("record", run, "--data", "dev.jsonl", "--json").json["trace"]
    assert Path(trace).name == "single_label_classification-dev.safetensors"
    assert (run / "traces" / "dev.safetensors").read_bytes() == before
    assert Path(cli("record", run, "--data", ".", "--json").json["trace"]).stem == "single_label_classification"


def test_data_of_one_name_are_kept_apart_by_their_rows(cli: Cli, trained: Path, dev_rows: Rows, tmp_path: Path) -> None:
    from offramp.traces.store import load_trace

    run = Path(shutil.copytree(trained, tmp_path / "run"))

    def record(where: str, rows: Rows) -> Path:
        data = tmp_path / where / "reviews" / "dev.jsonl"
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Path(cli("record", run, "--data", data, "--json").json["trace"])

    first, second = record("one", dev_rows[:8]), record("other", dev_rows[8:])
    assert first == run / "traces" / "reviews-dev.safetensors"  # what it was called before, and where it is found
    assert re.fullmatch(r"reviews-dev-[0-9a-f]{8}\.safetensors", second.name)
    assert [load_trace(path).num_units for path in (first, second)] == [8, 40]
    # Recorded again, whatever the order of the rows, each replaces its own.
    assert record("one", dev_rows[8:][::-1]) == second
    assert record("one", dev_rows[:8]) == first
    assert load_trace(second).labels.tolist()[::-1] == load_trace(run / "traces" / "dev").labels.tolist()[8:]
    # Calibration keeps its trace by the same name, and the operating point tells it.
    words = ("--data", tmp_path / "other" / "reviews" / "dev.jsonl", "--speedup", 1.5, "--force", "--json")
    assert cli("calibrate", run, *words).json["point"]["chosen_on"] == second.stem
    assert load_trace(first).num_units == 8


def test_comparisons_of_one_name_are_kept_apart_by_their_rows(
    cli: Cli, trained: Path, dev_rows: Rows, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    run = Path(shutil.copytree(trained, tmp_path / "run"))

    def compare(where: str, rows: Rows) -> str:
        data = tmp_path / where / "reviews" / "dev.jsonl"
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = cli("compare", run, "--data", data, "--splits", 1, "--resamples", 1, "--targets", 1.5).out
        return str(re.findall(r"Wrote (\S+)/compare\.json", out)[0])

    first, second = compare("one", dev_rows[:24]), compare("other", dev_rows[24:])
    assert first == str(run / "compare" / "reviews-dev")
    assert re.fullmatch(re.escape(first) + "-[0-9a-f]{8}", second)
    assert compare("one", dev_rows[:24]) == first


def test_record_without_labels(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("a gem\n\nthe dull town\n")
    done = cli("record", run, "--data", tmp_path / "new.txt")
    assert "Recorded 3 texts through 3 exits, without labels" in done.out
    trace = re.findall(r"\S+\.safetensors", done.out)[0]
    assert "labels" in cli("compare", run, "--trace", trace).error


def test_compare(cli: Cli, run: Path, toy_data: Callable[..., str]) -> None:
    pytest.importorskip("matplotlib")
    done = cli("compare", run, "--data", toy_data(), "--splits", 4, "--resamples", 20, "--targets", "1.5,2", "--json")
    assert (done.status, done.err) == (0, "")
    result, folder = done.json, run / "compare" / "single_label_classification"
    assert result == json.loads((folder / "compare.json").read_text())
    assert (result["n"], result["splits"], result["targets"]) == (48, 4, [1.5, 2])
    rows = {row["name"]: row for row in result["rows"]}
    assert {"entropy", "confidence", "patience", "dr", "edr", "static"} <= set(rows)
    for row in rows.values():
        assert set(row) >= {"name", "criterion", "label", "area", "cells", "curve"}
        for target, cell in zip(result["targets"], row["cells"], strict=True):
            if cell is not None:
                low, high = cell["interval"]
                assert cell["target"] == target
                assert cell["layer_speedup"] >= target * 0.8
                assert 0 <= low <= cell["score"] <= high <= 1
    assert result["oracle"]["score"] >= result["full_depth"]["score"]
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    html = (folder / "report.html").read_text()
    assert "data:image/png;base64," in html
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#)""", html)  # nothing is fetched from elsewhere
    assert "url(" not in html
    # A second look at the same rows, by the trace, says the same.
    cli("record", run, "--data", toy_data(), "--out", run / "traces" / "again")
    same = cli(
        "compare", run, "--trace", run / "traces" / "again", "--splits", 4, "--resamples", 20, "--targets", "1.5,2",
        "--out", run / "elsewhere",
    )  # fmt: skip
    assert f"Wrote {run / 'elsewhere'}/compare.json, compare.png and report.html" in same.out
    assert json.loads((run / "elsewhere" / "compare.json").read_text()) == result
    assert "entropy" in same.out
    assert f"{100 * rows['edr']['area']:.1f}" in same.out


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_tasks_that_are_not_of_one_label(
    cli: Cli, joint_run: Callable[..., Path], toy_data: Callable[..., str], tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("matplotlib")
    run, data = joint_run(kind), toy_data(kind)
    result = cli("evaluate", run, "--data", data, "--rounds", 0, "--json").json
    assert set(result["full_depth"]) == (
        {"pearson", "spearman", "mse"} if kind == "regression" else {"accuracy", "f1_micro", "f1_macro"}
    )
    assert {"accuracy", "layer_speedup", "wall_clock_speedup", "n", *result["full_depth"]} <= set(result)
    assert (result["accuracy"] is None) == (kind == "regression")
    small = ("--splits", 2, "--resamples", 5, "--targets", 1.5)
    compared = cli("compare", run, "--data", data, *small, "--out", tmp_path, "--json").json
    assert compared["problem_type"] == kind
    for name, value in compared["full_depth"]["metrics"].items():
        assert value == pytest.approx(result["full_depth"][name], abs=1e-5)
    report = (tmp_path / "report.html").read_text()
    assert "Hardest: stay longest, furthest from right</h3>" in report
    assert all(compared["examples"][which] for which in ("easiest", "hardest"))


def test_compare_without_the_plotting_extra_says_so_before_it_computes(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'offramp[plots]'" in cli("compare", run, "--data", "absent.jsonl").error


def test_columns_that_training_read_are_remembered(cli: Cli, pair_run: Path, pair_data: Path, tmp_path: Path) -> None:
    from offramp.traces.store import load_trace

    section = json.loads((pair_run / "config.json").read_text())["offramp"]
    assert (section["text_columns"], section["label_column"]) == (["first", "second"], "verdict")
    result = cli("evaluate", pair_run, "--data", pair_data, "--full-depth", "--rounds", 0, "--json").json
    assert result["n"] == 20
    out = tmp_path / "trace"
    assert cli("record", pair_run, "--data", pair_data, "--out", out, "--json").json["labelled"]
    usual = tmp_path / "usual.csv"
    usual.write_text(pair_data.read_text().replace("text,first,second,verdict", "id,sentence1,sentence2,label", 1))
    cli("record", pair_run, "--data", usual, "--out", tmp_path / "usual")
    np.testing.assert_array_equal(load_trace(out).logits, load_trace(tmp_path / "usual").logits)
    other = ("--text-columns", "text,second")
    cli("record", pair_run, "--data", pair_data, *other, "--out", tmp_path / "other")
    assert not np.array_equal(load_trace(out).logits, load_trace(tmp_path / "other").logits)
    absent = cli("evaluate", pair_run, "--data", pair_data, "--label_column", "gold").error
    assert "no column 'gold' (it has text, first, second, verdict)" in absent
