"""``offramp calibrate``, and what the other commands make of its points."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mapie")
pytest.importorskip("scipy")

from offramp.calibration.points import read_points
from offramp.criteria import make
from offramp.traces.replay import replay
from offramp.traces.store import load_trace, save_trace

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 300 rows that no training saw."""
    words = {"good": ("gem", "lovely", "bright", "warm"), "bad": ("dull", "broken", "cold", "flat")}
    draw = random.Random(5)
    path = tmp_path_factory.mktemp("fresh") / "rows.jsonl"
    with path.open("w") as file:
        for number in range(300):
            label = ("good", "bad")[number % 2]
            text = " ".join(
                [*draw.choices(words[label], k=2), *draw.choices(("film", "town", "music", "story", "the"), k=9)]
            )
            file.write(json.dumps({"text": text, "label": label}) + "\n")
    return path


@pytest.fixture(scope="module")
def recorded(trained: Path, fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a trace of those rows, ``rows``. Shared: copied by ``run``."""
    from offramp.cli.recording import record_data

    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("recorded") / "run"))
    save_trace(record_data(folder, str(fresh))[0], folder / "traces" / "rows")
    return folder


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "run"))


def calibrate(cli: Cli, run: Path, *more: object) -> Any:
    return cli("calibrate", run, "--trace", run / "traces" / "rows", *more)


def test_a_promise_from_data(cli: Cli, recorded: Path, tmp_path: Path, fresh: Path) -> None:
    run = Path(shutil.copytree(recorded, tmp_path / "run"))
    words = ("--max-risk", 0.05, "--confidence", 0.9)
    done = cli("calibrate", run, "--data", fresh, *words)
    assert (done.status, done.err) == (0, "")
    first, *rest = done.out.splitlines()
    assert first.startswith("Of 180 texts ")
    assert first.endswith("With 90 % confidence at most 5.0 % of answers differ from the full model's.")
    assert "Tuned on 120 texts, promised on 180 others" in rest[1]
    [default, point] = read_points(run)
    assert default.name == "default"
    assert point.name == "edr-disagreement-0.05-at-0.9"
    assert (point.runtime, point.dtype, point.batch_size) == ("torch", "float32", 32)
    trace_name = f"{fresh.parent.name}-rows"
    assert point.chosen_on == trace_name
    # From the trace that was kept, the same point; asked for again, it is replaced.
    again = cli("calibrate", run, "--trace", run / "traces" / trace_name, *words, "--json")
    assert again.json["summary"] == first
    assert again.json["point"]["knobs"] == point.knobs
    assert [p.name for p in read_points(run)] == ["default", point.name]
    assert "at most 5.0 % of answers differ" in (run / "README.md").read_text()


def test_points_are_picked_by_what_they_promise(cli: Cli, run: Path, fresh: Path) -> None:
    for wish in (("--max-risk", 0.2), ("--max-risk", 0.05), ("--max-risk", 0.05, "--expected"), ("--speedup", 1.5)):
        assert calibrate(cli, run, *wish).status == 0, wish
    points = {point.name: point for point in read_points(run)}
    point = points["edr-disagreement-0.05-at-0.95"]
    trace = load_trace(run / "traces" / "rows")
    texts = [json.loads(line)["text"] for line in fresh.read_text().splitlines()][:40]
    lines = cli("predict", run, "--max-risk", 0.05, *texts)
    assert "say which with risk=" in lines.error  # also of the expected risk
    (run / "operating_points.json").write_text(
        json.dumps({"format": 1, "points": [p.to_json() for p in points.values() if "expected" not in p.name]})
    )
    lines = cli("predict", run, "--max-risk", 0.05, *texts).lines
    exits = replay(trace, make(point.criterion, **point.settings), point.knobs).exits[:40]
    assert [line["exit_layer"] for line in lines] == (exits + 1).tolist()
    result = cli("evaluate", run, "--data", fresh, "--max-risk", 0.05, "--rounds", 0, "--json").json
    assert result["promise"] == point.promise
    assert result["summary"].startswith("Of 300 texts ")
    assert point.promise is not None
    assert point.promise["n_promise"] == 180
    out = cli("evaluate", run, "--data", fresh, "--speedup", 1.5, "--rounds", 0).out
    assert "operating point 'edr-speedup-1.5'" in out
    assert "With 95 % confidence at most" in out
    assert "Nothing is promised." in cli("evaluate", run, "--data", fresh, "--rounds", 0).out


def test_other_risks_and_wishes(cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_loss.py").write_text(
        "def half(answers, full, labels):\n    return (answers[:, 0] - full[:, 0]) ** 2 * 0\n"
    )
    monkeypatch.chdir(tmp_path)
    done = calibrate(cli, run, "--max-risk", 0.05, "--risk", "own_loss:half", "--criterion", "entropy", "--json").json
    assert done["point"]["promise"]["of"] == "own_loss:half"
    assert "Hoeffding-Bentkus" in done["point"]["promise"]["method"]
    assert "the mean loss own_loss:half is at most 5.0 %" in done["summary"]
    done = calibrate(cli, run, "--max-risk", 0.05, "--risk", "error", "--name", "mine", "--default", "--json").json
    assert done["point"]["name"] == "mine"
    assert read_points(run)[0].name == "mine"
    done = calibrate(cli, run, "--max-drop", 5, "--metric", "f1")
    assert "no guarantee" in done.out
    done = calibrate(cli, run, "--max-risk", 0.2, "--set", "lam=3", "--json").json
    assert done["point"]["settings"]["lam"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give exactly one of --max-risk, --speedup and --max-drop"),
        (("--max-risk", 0.1, "--speedup", 2), "give exactly one of"),
        (("--max-risk", 0), "a risk is promised above 0 and up to 1"),
        (("--max-risk", 1.5), "a risk is promised above 0 and up to 1"),
        (("--max-risk", 0.1, "--confidence", 1), "a confidence lies between 0 and 1"),
        (("--speedup", 2, "--confidence", 0), "a confidence lies between 0 and 1"),
        (("--speedup", 2, "--expected"), "give --max-risk with it"),
        (("--speedup", 30), "reaches a layer speed-up of 3.00 at most"),
        (("--max-risk", 0.001), "with 180 texts the smallest provable risk at 95 % is 1.7 %: 0.1 % takes 2,995 texts"),
        (("--max-risk", 0.1, "--risk", "nothing:here"), "--risk nothing:here cannot be imported"),
        (("--max-risk", 0.1, "--risk", "errors"), "no risk is called 'errors'"),
        (("--max-risk", 0.1, "--criterion", "cap"), "needs null_space"),
        (("--max-risk", 0.1, "--runtime", "onnx"), "was recorded on runtime torch, not onnx"),
        (("--max-risk", 0.1, "--dtype", "bfloat16"), "was recorded on dtype float32, not bfloat16"),
        (("--max-risk", 0.1, "--data", "x.jsonl"), "give --data to record and calibrate on, or --trace"),
    ],
)
def test_bad_wishes(cli: Cli, run: Path, words: tuple[object, ...], message: str) -> None:
    before = (run / "operating_points.json").read_bytes()
    assert message in calibrate(cli, run, *words).error
    assert (run / "operating_points.json").read_bytes() == before


def test_bad_traces(cli: Cli, run: Path) -> None:
    path = run / "traces" / "rows"
    trace = load_trace(path)
    words = ("calibrate", run, "--trace", run / "traces" / "bad", "--max-risk", 0.2)
    hashes = np.asarray(trace.hashes).copy()
    from offramp.run import Run

    hashes[:4] = Run.open(run).training_hashes[:4]
    for changes, message in (
        ({"model": "abc"}, "recorded from other weights"),
        ({"model": None}, "does not say which weights"),
        ({"id2label": {0: "x", 1: "y", 2: "z"}}, "single_label_classification with x, y, z, and"),
        ({"id2label": {n: f"c{n}" for n in range(77)}}, "with c0, c1, c2, c3, c4, c5 and 71 more, and"),
        ({"hashes": hashes}, "4 of 300 rows were trained on, more than 1 %"),
    ):
        save_trace(replace(trace, **changes), run / "traces" / "bad")  # type: ignore[arg-type]
        assert message in cli(*words).error
    assert cli(*words, "--force").status == 0
    save_trace(replace(trace.select(np.arange(39))), run / "traces" / "bad")
    assert "39 texts are too few" in cli(*words).error
    save_trace(replace(trace, labels=None), run / "traces" / "bad")
    assert "risk 'error' needs labels" in cli(*words, "--risk", "error").error
    assert cli(*words).status == 0
    assert "and there are no labels" in cli(*words[:4], "--max-drop", 1).error


def test_bad_data(cli: Cli, run: Path, toy_data: Callable[..., str], tmp_path: Path) -> None:
    train = Path(toy_data()) / "train.jsonl"
    words = ("calibrate", run, "--max-risk", 0.2, "--data")
    assert "of 96 rows were trained on, more than 1 %" in cli(*words, train).error
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a gem", "label": "ugly"}\n' * 50)
    assert "label 'ugly' is not one of those known" in cli(*words, rows).error
    rows.write_text('{"text": "a gem of a town"}\n' * 50)
    assert "no label column with a usual name" in cli(*words, rows, "--risk", "error").error


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_what_was_never_calibrated_is_refused(cli: Cli, run: Path, fresh: Path, command: str) -> None:
    more: tuple[object, ...] = ("a gem",) if command == "predict" else ("--data", fresh)
    said = cli(command, run, *more, "--max-risk", 0.01).error
    assert said == (
        f"no operating point of {run} has a promise: `offramp calibrate {run} --data DATA --max-risk 0.01` makes one"
    )
    assert calibrate(cli, run, "--max-risk", 0.05).status == 0
    assert "the smallest risk that was promised is 5.0 %" in cli(command, run, *more, "--max-risk", 0.01).error


def test_which_risk_is_meant(cli: Cli, run: Path, fresh: Path) -> None:
    assert calibrate(cli, run, "--max-risk", 0.05).status == 0
    assert calibrate(cli, run, "--max-risk", 0.05, "--risk", "error").status == 0
    for command, more in (
        ("predict", ["a gem"]),
        ("inspect", ["a gem"]),
        ("evaluate", ["--data", fresh, "--rounds", 0]),
    ):
        said = cli(command, run, *more, "--max-risk", 0.05).error
        assert said == "there are promises about disagreement and error: say which with risk='disagreement' (--risk)"
        done = cli(command, run, *more, "--max-risk", 0.05, "--risk", "error")
        assert done.status == 0
        if command != "predict":
            assert "at most 5.0 % of texts are answered wrongly that the full model answers rightly" in done.out
        assert "risk says what max_risk is about" in cli(command, run, *more, "--risk", "error").error


def test_inspect_says_what_is_promised(cli: Cli, run: Path) -> None:
    assert calibrate(cli, run, "--max-risk", 0.05).status == 0
    out = cli("inspect", run, "a gem", "--max-risk", 0.05).out
    assert out.endswith("With 95 % confidence at most 5.0 % of answers differ from the full model's.\n")
    assert cli("inspect", run, "a gem", "--max-risk", 0.05, "--json").json["promise"]["risk"] == 0.05
    assert "confidence" not in cli("inspect", run, "a gem").out.splitlines()[-1]
    assert cli("inspect", run, "a gem", "--json").json["promise"] is None


def test_a_point_remembers_what_it_did(cli: Cli, run: Path) -> None:
    """With the texts that promised: those that tuned it are no sample of what is to come."""
    from offramp.calibration.certify import halves
    from offramp.calibration.drift import Reference

    assert calibrate(cli, run, "--max-risk", 0.05, "--seed", 3).status == 0
    point = read_points(run)[-1]
    proving = halves(load_trace(run / "traces" / "rows"), share=0.4, seed=3)[1]
    expected = Reference.of(proving, make(point.criterion, **point.settings), point.knobs)
    found = Reference.from_json(point.measured["reference"])
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert found.texts == 180


def test_predict_under_a_monitor(cli: Cli, run: Path, fresh: Path) -> None:
    assert calibrate(cli, run, "--max-risk", 0.1).status == 0
    texts = [json.loads(line)["text"] for line in fresh.read_text().splitlines()][:60]
    plain = cli("predict", run, "--max-risk", 0.1, *texts)
    for words in (("--monitor",), ("--shadow-every", 4), ("--shadow-every", 4, "--batch-size", 1)):
        done = cli("predict", run, "--max-risk", 0.1, "--false-alarms", 1e-6, *words, stdin="\n".join(texts))
        assert [(one["label"], one["exit_layer"]) for one in done.lines] == [
            (one["label"], one["exit_layer"]) for one in plain.lines
        ]
        shadows = ", 15 shadow runs: operating point 'edr-disagreement-0.1-at-0.95' lost " if len(words) > 1 else ""
        assert done.err.startswith(f"offramp: 60 texts watched{shadows}")
        assert done.err.endswith("; no alarm\n")
        assert done.err.count("\n") == 1
        if shadows:
            assert sum(one["layers_executed"] == 3 for one in done.lines) >= 15
    done = cli("predict", run, "--max-risk", 0.1, "--monitor", stdin="the of a and\n" * 200)
    ring, summary = done.err.splitlines()
    assert "they are not like those of the calibration any more" in ring
    assert summary == "offramp: 200 texts watched; 1 alarm, now at edr-disagreement-0.1-at-0.95"
    said = cli("predict", run, "--threshold", 0.3, "--monitor", "a gem").error
    assert said.startswith(
        "a monitor watches an operating point as it is, and this is as given: ask for one of 'default'"
    )
    assert "false_alarms is a probability" in cli("predict", run, "--monitor", "--false-alarms", 2, "a gem").error


def promise_of(run: Path) -> dict[str, Any]:
    promise = read_points(run)[-1].promise
    assert promise is not None
    return promise


def test_what_was_forced_leaves_a_trace(cli: Cli, run: Path, toy_data: Callable[..., str]) -> None:
    assert calibrate(cli, run, "--max-risk", 0.2).status == 0
    train = Path(toy_data()) / "train.jsonl"
    done = cli("calibrate", run, "--data", train, "--max-risk", 0.2, "--force")
    assert "But that was forced, on texts the model was trained on: worth nothing." in done.out
    [_, kept, forced] = read_points(run)
    assert (kept.name, forced.name) == ("edr-disagreement-0.2-at-0.95", "edr-disagreement-0.2-at-0.95-forced")
    assert promise_of(run)["forced"] == "on texts the model was trained on"
    assert "forced, on texts the model was trained on: worth nothing" in (run / "README.md").read_text()
    found = cli("inspect", run, "a gem", "--max-risk", 0.2, "--json").json["promise"]
    assert found == kept.promise
    # Where nothing had to be forced, nothing is said of it.
    assert calibrate(cli, run, "--max-risk", 0.1, "--force").status == 0
    assert "forced" not in promise_of(run)


def test_another_models_trace_is_not_taken_for_this_ones(cli: Cli, run: Path) -> None:
    trace = load_trace(run / "traces" / "rows")
    for model, why in (("abc", "on a trace of another model"), (None, "on a trace of weights that nobody knows")):
        save_trace(replace(trace, model=model), run / "traces" / "bad")
        done = cli("calibrate", run, "--trace", run / "traces" / "bad", "--max-risk", 0.2, "--force", "--json").json
        assert done["point"]["promise"]["forced"] == why
        assert done["point"]["promise"]["model"] is None
    assert "has a promise" in cli("predict", run, "--max-risk", 0.2, "a gem").error


def test_a_loss_that_reads_labels_is_noted(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "labelled_loss.py").write_text(
        "def wrong(answers, full, labels):\n    return (answers.argmax(-1) != labels) & (full.argmax(-1) == labels)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert calibrate(cli, run, "--max-risk", 0.1, "--risk", "labelled_loss:wrong").status == 0
    assert promise_of(run)["needs_labels"] is True
    done = cli("predict", run, "--max-risk", 0.1, "--shadow-every", 2, "a gem", "the town")
    assert done.status == 0
    assert "promises something about labelled_loss:wrong, and there are no labels here" in done.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def f(answers, full, labels):\n    raise ValueError('no\\nidea')\n",
         "risk 'slip_{}:f' raised ValueError: no: mend that function"),
        ("def f(:\n", "--risk slip_{}:f cannot be imported (SyntaxError: invalid syntax"),
        ("1 / 0\n", "--risk slip_{}:f cannot be imported (ZeroDivisionError: division by zero): mend slip_{}"),
        ("import sys; sys.exit(3)\n", "--risk slip_{}:f cannot be imported (SystemExit: 3): mend slip_{}"),
        ("def g():\n    pass\n", "has no attribute 'f'): name it module:function"),
        ("def f(answers, full, labels):\n    return [None] * len(answers)\n", "a loss that is not from 0 to 1"),
    ],
)  # fmt: skip
def test_a_loss_that_does_not_work_is_a_sentence(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    name = tmp_path.name  # a module is imported once
    (tmp_path / f"slip_{name}.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    said = calibrate(cli, run, "--max-risk", 0.1, "--risk", f"slip_{name}:f").error
    assert message.replace("{}", name) in said


def test_an_asked_score_stands_beside_the_promise(cli: Cli, run: Path) -> None:
    done = calibrate(cli, run, "--max-risk", 0.1, "--metric", "f1")
    assert "(95 % bootstrap interval, no guarantee)." in done.out
    assert "With 95 % confidence at most 10.0 % of answers differ" in done.out
    page = (run / "README.md").read_text()
    assert "(95 % bootstrap interval, no guarantee)" in page
    point = read_points(run)[-1]
    assert point.data_hash is not None
    assert f"180 texts (rows, data hash {point.data_hash[:12]}); 120 others tuned; torch float32, batches of 32" in page


def test_rows_that_nobody_can_check(cli: Cli, run: Path) -> None:
    words = ("calibrate", run, "--max-risk", 0.2, "--trace")
    save_trace(replace(load_trace(run / "traces" / "rows"), hashes=None), run / "traces" / "bare")
    done = cli(*words, run / "traces" / "bare")
    assert done.err.startswith(
        "offramp: the trace has no hashes of its rows, so it cannot be checked that the model was"
    )
    assert done.err.count("\n") == 1
    (run / "training_rows.safetensors").unlink()
    done = cli(*words, run / "traces" / "rows")
    assert done.err.startswith(
        f"offramp: {run} has no training_rows.safetensors, so it cannot be checked that the model"
    )
    assert done.err.count("\n") == 1


def test_rows_that_chose_the_checkpoint(cli: Cli, run: Path, toy_data: Callable[..., str]) -> None:
    for data in (("--trace", run / "traces" / "dev"), ("--data", Path(toy_data()) / "dev.jsonl")):
        done = cli("calibrate", run, "--max-risk", 0.3, *data)
        assert "48 of 48 rows are those of dev, which chose the checkpoint and the default operating point" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-risk", 0.1, "--risk", "errors"), "no risk is called 'errors'"),
        (("--max-risk", 0.1, "--risk", "nothing:here"), "--risk nothing:here cannot be imported"),
        (("--max-risk", 0.001), "with 180 texts the smallest provable risk at 95 % is 1.7 %"),
        (("--max-risk", 0.1, "--criterion", "cap"), "needs null_space"),
        (("--max-risk", 0.1, "--tuning-share", 2), "the share of rows that tune must lie between 0 and 1"),
        (("--max-risk", 0.1, "--metric", "f7"), "no score of such answers is called 'f7': there are accuracy, f1"),
        (("--speedup", 0.5), "a layer speed-up is 1 or more"),
        (("--max-drop", -1), "a drop is 0 points or more"),
        (("--max-drop", 1, "--no-labels"), "--no-labels and --max-drop contradict each other"),
        (("--max-risk", 0.1, "--risk", "error", "--no-labels"), "--no-labels and --risk error contradict each other"),
        (("--max-risk", 0.1, "--metric", "f1", "--no-labels"), "--no-labels and --metric contradict each other"),
        (("--max-risk", 0.1, "--expected", "--confidence", 0.99), "an expected risk is promised without a confidence"),
        (("--max-risk", 0.1, "--label-column", "x", "--no-labels"), "--no-labels and --label_column contradict"),
    ],
)
def test_what_can_be_checked_is_checked_before_the_pass(
    cli: Cli, run: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], message: str
) -> None:
    monkeypatch.setattr("offramp.engine.record.record", lambda *_, **__: pytest.fail("recorded"))
    assert message in cli("calibrate", run, "--data", fresh, *words).error


def test_too_few_texts_are_not_recorded(
    cli: Cli, run: Path, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.engine.record.record", lambda *_, **__: pytest.fail("recorded"))
    (tmp_path / "few.jsonl").write_text("".join(line + "\n" for line in fresh.read_text().splitlines()[:39]))
    assert "39 texts are too few" in cli("calibrate", run, "--data", tmp_path / "few.jsonl", "--max-risk", 0.3).error


def test_labels_of_something_else_need_not_be_read(cli: Cli, run: Path, fresh: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in fresh.read_text().splitlines()]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row | {"label": f"ticket {n}"}) + "\n" for n, row in enumerate(rows)))
    words = ("calibrate", run, "--max-risk", 0.1)
    assert "label 'ticket 0' is not one of those known" in cli(*words, "--data", path).error
    done = cli(*words, "--data", path, "--no-labels", "--json").json
    assert done["point"]["measured"]["metric"] == "agreement"
    same = calibrate(cli, run, "--max-risk", 0.1, "--no-labels", "--json").json
    assert same["point"]["measured"] == done["point"]["measured"]


def test_a_promise_in_pieces(cli: Cli, run: Path) -> None:
    assert calibrate(cli, run, "--max-risk", 0.1).status == 0
    path = run / "operating_points.json"
    content = json.loads(path.read_text())
    content["points"][-1]["promise"] = {"risk": "small"}
    path.write_text(json.dumps(content))
    said = "the promise of operating point 'edr-disagreement-0.1-at-0.95' is damaged"
    assert said in cli("predict", run, "--max-risk", 0.1, "a gem").error
    assert said in calibrate(cli, run, "--max-risk", 0.1).error


def test_how_sure_a_promise_shall_be(cli: Cli, run: Path, fresh: Path) -> None:
    assert calibrate(cli, run, "--max-risk", 0.05, "--confidence", 0.5).status == 0
    for command, more in (
        ("predict", ["a gem"]),
        ("inspect", ["a gem"]),
        ("evaluate", ["--data", fresh, "--rounds", 0]),
    ):
        said = cli(command, run, *more, "--max-risk", 0.05).error
        assert "5.0 % was promised with a confidence of 50 %, not of 95 %" in said
        assert cli(command, run, *more, "--max-risk", 0.05, "--confidence", 0.5).status == 0
        assert "give max_risk with it" in cli(command, run, *more, "--confidence", 0.5).error


@pytest.mark.parametrize("wish", [("--max-risk", 0.1), ("--speedup", 1.5, "--risk", "error")])
def test_numbers_take_a_loss_of_ones_own(
    cli: Cli, joint_run: Callable[[str], Path], toy_data: Callable[..., str], wish: tuple[object, ...]
) -> None:
    run = joint_run("regression")
    said = cli("calibrate", run, "--data", Path(toy_data("regression")) / "dev.jsonl", *wish).error
    assert "this is regression: give a loss of your own as module:function" in said
    assert "disagreement" not in said


def test_the_depth_is_chosen_too(cli: Cli, run: Path) -> None:
    """A point with ``max_layers``: nobody goes further, in the trace as in what is served."""
    trace = load_trace(run / "traces" / "rows")
    logits = trace.logits.copy()
    logits[1:] = logits[1]  # nothing is gained beyond layer 2, and texts are never sure
    save_trace(replace(trace, logits=logits), run / "traces" / "rows")
    words = ("--max-risk", 0.05, "--criterion", "entropy", "--cap-depth", "--default", "--json")
    point = calibrate(cli, run, *words).json["point"]
    assert point["name"] == "entropy-disagreement-0.05-at-0.95-capped"
    assert point["knobs"]["max_layers"] == 2
    assert sum(count for layer, count in point["measured"]["exits"].items() if int(layer) > 2) == 0
    lines = cli("predict", run, "a gem", "the town", "dull and cold").out.splitlines()
    assert max(json.loads(line)["exit_layer"] for line in lines) <= 2


@pytest.mark.parametrize("wish", ["--speedup", "--max-drop"])
def test_numbers_have_speed_and_score_without_a_promise(
    cli: Cli, joint_run: Callable[[str], Path], toy_data: Callable[..., str], tmp_path: Path, wish: str
) -> None:
    run = Path(shutil.copytree(joint_run("regression"), tmp_path / "run"))
    data = Path(toy_data("regression")) / "dev.jsonl"
    done = cli("calibrate", run, "--data", data, wish, 1.2 if wish == "--speedup" else 90)
    assert done.status == 0, done.err
    assert "fewer layers. Nothing is promised." in done.out
    assert "Tuned on 19 texts, measured on 29 others. Numbers nearly always change a little" in done.out
    assert "points (95 % bootstrap interval, no guarantee)" in done.out
    point = read_points(run)[-1]
    assert (point.promise, point.measured["guarantee"]) == (None, "none")
    assert "has a promise: `offramp calibrate" in cli("predict", run, "--max-risk", 0.1, "a gem").error
    assert "| none |" in (run / "README.md").read_text()
    if wish == "--speedup":
        assert cli("predict", run, "--speedup", 1.2, "a gem").status == 0
        bare = cli("calibrate", run, "--data", data, wish, 1.2, "--no-labels", "--json").json["point"]
        assert (bare["promise"], "score" in bare["measured"]) == (None, False)
    else:
        said = cli("calibrate", run, "--trace", run / "traces" / "dev", wish, 90, "--no-labels").error
        assert "--no-labels and --max-drop contradict" in said


# Labels that mean something else


def swap_labels(run: Path) -> float:
    """Labels that name another class of nine texts in ten; how many the commonest has, in hundredths."""
    trace = load_trace(run / "traces" / "rows")
    said = trace.logits[-1].argmax(-1)
    labels = np.where(np.arange(len(said)) % 10 == 0, said, (said + 1) % 3)
    save_trace(replace(trace, labels=labels), run / "traces" / "rows")
    return 100 * float(np.bincount(labels).max()) / len(labels)


def test_labels_of_other_classes_are_refused(cli: Cli, run: Path) -> None:
    commonest = swap_labels(run)
    before = (run / "operating_points.json").read_bytes()
    for words, way in (
        (("--max-risk", 0.1, "--risk", "error"), "disagreement"),
        (("--max-drop", 5), "--max-risk"),
        (("--speedup", 1.5, "--risk", "error"), "disagreement"),
    ):
        assert calibrate(cli, run, *words).error == (
            "the full model answers 10.0 % of these texts as they are labelled, and always the commonest label would "
            f"{commonest:.1f} %: these seem to be labels of other classes; look at the label column (--label-column), "
            f"promise {way}, which needs none (--no-labels), or give --force"
        )
    assert (run / "operating_points.json").read_bytes() == before
    # Nothing that is promised depends on them: a warning, and none where they are left alone.
    done = calibrate(cli, run, "--max-risk", 0.2)
    assert done.status == 0
    assert "do labels mean the model's classes? If not, the scores told here mean nothing" in done.err
    assert calibrate(cli, run, "--max-risk", 0.2, "--no-labels").err == ""


def test_labels_that_do_not_fit_can_be_forced(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap_labels(run)
    assert calibrate(cli, run, "--max-risk", 0.2, "--risk", "error", "--force").status == 0
    point = read_points(run)[-1]
    assert point.name == "edr-error-0.2-at-0.95-forced"
    assert promise_of(run)["forced"] == "with labels that the model's answers do not fit"
    name = f"swapped_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("def wrong(answers, full, labels):\n    return answers.argmax(-1) != labels\n")
    monkeypatch.chdir(tmp_path)
    assert "labels of other classes" in calibrate(cli, run, "--max-risk", 0.9, "--risk", f"{name}:wrong").error


# Rows that repeat themselves


def test_copies_are_told(cli: Cli, run: Path) -> None:
    trace = load_trace(run / "traces" / "rows")
    assert calibrate(cli, run, "--max-risk", 0.2).err == ""
    save_trace(trace.select(np.tile(np.arange(180), 3)), run / "traces" / "rows")
    done = calibrate(cli, run, "--max-risk", 0.2)
    assert done.status == 0
    assert done.err == (
        "offramp: the 540 rows are 180 distinct texts, and copies count here as if they were texts of their own: what "
        "is promised is too kind; give each text once, unless the texts to come repeat themselves as these do\n"
    )
    save_trace(trace.select(np.append(np.arange(300), [0, 1, 2])), run / "traces" / "rows")  # not more than 1 %
    assert calibrate(cli, run, "--max-risk", 0.2).err == ""


# Names


def test_what_serves_has_a_point_of_its_own(cli: Cli, run: Path) -> None:
    trace = load_trace(run / "traces" / "rows")
    save_trace(replace(trace, runtime="onnx", dtype="int8", batch_size=1), run / "traces" / "int8")
    words = ("--max-risk", 0.2)
    assert calibrate(cli, run, *words).status == 0
    assert cli("calibrate", run, "--trace", run / "traces" / "int8", *words).status == 0
    assert calibrate(cli, run, "--speedup", 1.5).status == 0
    assert calibrate(cli, run, "--speedup", 1.5, "--risk", "error").status == 0
    points = read_points(run)
    assert [point.name for point in points[1:]] == [
        "edr-disagreement-0.2-at-0.95", "edr-disagreement-0.2-at-0.95-onnx-int8-at-batch-1", "edr-speedup-1.5",
        "edr-speedup-1.5-error",
    ]  # fmt: skip
    assert [point.made for point in points] == [0, 1, 2, 3, 4]


def test_a_point_that_is_replaced_is_told(cli: Cli, run: Path) -> None:
    said = "It replaces the operating point of that name (made on rows; edr, "
    assert said not in calibrate(cli, run, "--max-risk", 0.2).out
    assert calibrate(cli, run, "--max-risk", 0.2, "--risk", "error", "--json").json["replaced"] is False
    first, other = read_points(run)[1:]
    assert said in calibrate(cli, run, "--max-risk", 0.2, "--seed", 1).out
    assert calibrate(cli, run, "--max-risk", 0.2, "--json").json["replaced"] is True
    assert [point.name for point in read_points(run)] == ["default", other.name, first.name]
    assert read_points(run)[-1].made == 4


def test_settings_that_were_tuned_are_told(cli: Cli, run: Path) -> None:
    out = calibrate(cli, run, "--max-risk", 0.2, "--set", "lam=3").out
    assert "Operating point 'edr-disagreement-0.2-at-0.95': edr, lam 3, threshold " in out
    assert "| edr, lam 3, threshold " in (run / "README.md").read_text()
