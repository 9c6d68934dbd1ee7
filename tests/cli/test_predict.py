from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.engine.engine import Engine

Cli = Callable[..., Any]
Rows = list[dict[str, Any]]


def answers(lines: list[Any]) -> list[tuple[Any, Any]]:
    return [(line["label"], line["exit_layer"]) for line in lines]


@pytest.fixture(scope="module")
def expected(trained: Path, dev_rows: Rows, threshold: float) -> list[tuple[str, int, float]]:
    """Label, exit layer and score of the dev texts, one text at a time through the slow engine."""
    import offramp
    from offramp.engine.reference import reference

    classifier = offramp.load(trained)
    encoded = classifier.encode([row["text"] for row in dev_rows])
    setting = classifier.setting(threshold=threshold)
    done = [classifier.read(one) for one in reference(classifier.runtime, setting.criterion, encoded, setting.knobs)]
    return [(one.label, one.exit_layer, one.score) for one in done]


@pytest.fixture(scope="module")
def texts_file(dev_rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("".join(row["text"] + "\n" for row in dev_rows))
    return path


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_answers_are_those_of_one_text_at_a_time(
    cli: Cli, trained: Path, texts_file: Path, threshold: float, expected: list[Any], batch_size: int
) -> None:
    done = cli("predict", trained, "--input", texts_file, "--threshold", threshold, "--batch-size", batch_size)
    assert (done.status, done.err) == (0, "")
    assert answers(done.lines) == [(label, layer) for label, layer, _ in expected]
    assert [line["score"] for line in done.lines] == pytest.approx([score for *_, score in expected], abs=1e-5)
    assert {layer for _, layer, _ in expected} == {1, 2, 3}
    assert all(line["layers_executed"] == line["exit_layer"] and not line["truncated"] for line in done.lines)


def test_every_way_in_gives_the_same(
    cli: Cli, trained: Path, dev_rows: Rows, texts_file: Path, tmp_path: Path, threshold: float
) -> None:
    texts = [row["text"] for row in dev_rows[:9]]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerows([["id", "text"], *enumerate(texts)])
    rows = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
    contents = {
        "a.jsonl": rows,
        "a.json": json.dumps([{"text": text} for text in texts]),
        "a.csv": table.getvalue(),
        "a.tsv": "text\tid\n" + "".join(f"{text}\t0\n" for text in texts),
        "a.txt": "\n".join(texts),
    }
    rule = ("--threshold", threshold)
    typed = cli("predict", trained, *rule, *texts)
    assert len(typed.lines) == 9
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        assert cli("predict", trained, *rule, "--input", tmp_path / name).out == typed.out
    for content in (rows, "\n".join(texts)):
        assert cli("predict", trained, *rule, stdin=content).out == typed.out
        assert cli("predict", trained, *rule, "--input", "-", stdin=content).out == typed.out
    one_by_one = cli("predict", trained, *rule, "--batch_size", 1, stdin=rows)
    assert answers(one_by_one.lines) == answers(typed.lines)


def test_more_texts_than_are_read_at_once(
    cli: Cli, trained: Path, dev_rows: Rows, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.cli.predict.CHUNK", 4)
    texts = [row["text"] for row in dev_rows[:11]]
    many = cli("predict", trained, "--threshold", threshold, stdin="\n".join(texts))
    assert answers(many.lines) == answers(cli("predict", trained, "--threshold", threshold, *texts).lines)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        (["--full-depth"], {3}),
        (["--threshold", "0"], {3}),
        (["--threshold", "1.01"], {1}),
        (["--knob", "threshold=1.01"], {1}),
        (["--threshold", "0", "--max-layers", "2"], {2}),
        (["--threshold", "0", "--max-layers", "99"], {3}),
    ],
)
def test_what_is_asked_for(cli: Cli, trained: Path, options: list[str], layers: set[int]) -> None:
    done = cli("predict", trained, *options, "a gem of a film", "the dull town", "", "music")
    assert {line["exit_layer"] for line in done.lines} == layers


def test_speedup_is_reached_on_dev(cli: Cli, trained: Path, texts_file: Path) -> None:
    lines = cli("predict", trained, "--speedup", "1.5", "--input", texts_file).lines
    assert 3 * len(lines) / sum(line["layers_executed"] for line in lines) >= 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "0.1", "--speedup", "2"], "threshold and speedup contradict each other"),
        (["--threshold", "0.1", "--full-depth"], "threshold and full_depth contradict each other"),
        (["--full-depth", "--max-layers", "2"], "full_depth and max_layers contradict each other"),
        (["--knob", "threshold=1", "--threshold", "1"], "threshold and knobs contradict each other"),
        (["--input", "texts.txt"], "give texts or --input, not both"),
        (["--threshold", "7"], "threshold must be between 0 and 1.01, not 7.0"),
        (["--threshold", "nan"], "threshold must be between"),
        (["--knob", "patience=2"], "this model leaves by 'edr', which has no patience: it has threshold"),
        (["--knob", "patience"], "--knob takes name=number"),
        (["--speedup", "9"], "reaches a layer speed-up of 3.00 at most"),
        (["--speedup", "0.5"], "a layer speed-up is 1 or more"),
        (["--false-alarms", "7"], "--false-alarms is about a monitor: give --monitor or --shadow-every with it"),
        (["--dtype", "float64"], "dtype must be one of"),
        (["--dtype", "int8"], "has no int8 export: run `offramp export"),
        (["--runtime", "onxn"], "no runtime is called 'onxn'"),
        (["--attention", "abacus"], "attention 'abacus' cannot be used here"),
    ],
)
def test_what_cannot_be_asked_for(cli: Cli, trained: Path, options: list[str], message: str) -> None:
    assert message in cli("predict", trained, "text", *options).error


def test_what_torch_alone_can_do_reaches_it(
    cli: Cli, trained: Path, toy_data: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from offramp.runtimes.torch import TorchRuntime

    asked = []
    from_folder = TorchRuntime.from_folder

    def spy(folder: Path, *, compile: bool, attention: str | None, **options: Any) -> TorchRuntime:
        asked.append((compile, attention))
        return from_folder(folder, attention=attention, **options)

    monkeypatch.setattr(TorchRuntime, "from_folder", spy)
    options = ("--compile", "--attention", "eager")
    assert cli("predict", trained, *options, "a gem of a film").status == 0
    assert cli("evaluate", trained, "--data", toy_data(), "--rounds", 0, *options).status == 0
    assert asked == [(True, "eager")] * 2


def test_knobs_of_a_rule_that_is_not_a_threshold(cli: Cli, number_run: Path) -> None:
    texts = ["a lovely gem", "the dull broken film", "of weird people"]
    assert "leaves by 'patience_delta', which has no threshold" in cli(
        "predict", number_run, *texts, "--threshold", "0.1"
    ).error  # fmt: skip
    assert "which has no gamma: it has delta, patience" in cli("predict", number_run, *texts, "--knob", "gamma=1").error
    assert "patience must be a whole number" in cli("predict", number_run, *texts, "--knob", "patience=1.5").error
    layers = {
        delta: [line["exit_layer"] for line in cli("predict", number_run, *texts, "--knob", f"delta={delta}").lines]
        for delta in (0, 1e6)
    }
    assert layers == {0: [3, 3, 3], 1e6: [2, 2, 2]}
    both = cli("predict", number_run, *texts, "--knob", "delta=1e6", "--knob", "patience=2")
    assert [line["exit_layer"] for line in both.lines] == [3, 3, 3]
    assert all(isinstance(line["label"], float) and line["score"] is None for line in both.lines)


def test_pairs(cli: Cli, pair_run: Path, pair_data: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader(pair_data.read_text().splitlines()))
    words = [word for row in rows for word in (row["first"], row["second"])]
    typed = cli("predict", pair_run, "--full-depth", *words)
    assert len(typed.lines) == len(rows)
    # The columns it was trained on are remembered: the column called text is not read.
    assert cli("predict", pair_run, "--full-depth", "--input", pair_data).out == typed.out
    swapped = cli("predict", pair_run, "--full-depth", "--input", pair_data, "--text-columns", "second,first")
    assert swapped.out != typed.out
    named = tmp_path / "named.jsonl"
    named.write_text("".join(json.dumps({"premise": r["first"], "hypothesis": r["second"]}) + "\n" for r in rows))
    assert cli("predict", pair_run, "--full-depth", "--input", named).out == typed.out


def test_single_texts_for_a_run_trained_on_pairs(cli: Cli, pair_run: Path, texts_file: Path) -> None:
    said, how = "this run was trained on pairs (first, second)", f'offramp predict {pair_run} "FIRST" "SECOND"'
    give = f"give both texts of each pair, each in quotes: {how}"
    assert cli("predict", pair_run, "a").error == f"{said}, and one text is half of one: {give}"
    assert cli("predict", pair_run, "a", "b", "c").error == f"{said}, and 3 texts make none: {give}"
    row = '{"first": ..., "second": ...}, or name the two columns to read with --text_columns'
    said = f"the model was trained on first, second, a pair: give both in each row, such as {row}"
    assert cli("predict", pair_run, "--input", texts_file).error.endswith(said)
    assert cli("predict", pair_run, stdin="a gem\n").error == f"standard input has text in text, but {said}"
    assert len(cli("predict", pair_run, stdin='{"first": "a", "second": "gem"}\n').lines) == 1
    assert "trained on pairs (first, second): give two texts" in cli("inspect", pair_run, "a").error


def test_single_texts_and_pairs_asked_for_by_name(
    cli: Cli, trained: Path, pair_run: Path, pair_data: Path, tmp_path: Path
) -> None:
    one = cli("predict", pair_run, "--input", pair_data, "--text-columns", "first").error
    assert one == "this run was trained on pairs (first, second), not on first: name two with --text_columns A,B"
    two = cli("predict", trained, "--input", pair_data, "--text-columns", "first,second").error
    assert two == "this run was trained on single texts (text), not on first and second: name one with --text_columns"
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("premise,hypothesis\na,b\n")
    assert "the model was trained on text, a single text" in cli("predict", trained, "--input", pairs).error


@pytest.mark.parametrize(("batch_size", "chunk"), [(1, 4), (32, 4), (2, 1024)])
@pytest.mark.parametrize(
    ("last", "message"),
    [
        ('{"text": "cut sho', "line 12 is not JSON, or is cut short"),
        ('{"label": "bad"}\n', "line 12 has no 'text'"),
        (b'{"text": "caf\xe9"}\n', "line 12: bytes that are not UTF-8"),
    ],
)
def test_lines_before_a_bad_one_are_answered(
    cli: Cli,
    trained: Path,
    dev_rows: Rows,
    threshold: float,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    chunk: int,
    last: str | bytes,
    message: str,
) -> None:
    monkeypatch.setattr("offramp.cli.predict.CHUNK", chunk)
    texts = [row["text"] for row in dev_rows[:11]]
    good = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    after = b'{"text": "music"}\n'
    words = ("predict", trained, "--threshold", threshold, "--batch-size", batch_size)
    done = cli(*words, stdin=good + (last if isinstance(last, bytes) else last.encode()) + after)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert done.out == cli(*words, stdin=good).out
    assert len(done.lines) == 11


def test_answers_come_before_the_error(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both go to one file: what is printed waits there in a buffer, what is said of errors does not."""
    from offramp.cli import main

    both = tmp_path / "both.txt"
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"text": "a gem"}\n{"text": 3}\n'))
    with both.open("a") as out, both.open("a", buffering=1) as err, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as left:
            main(["predict", str(trained)])
    assert left.value.code == 2
    first, second = both.read_text().splitlines()
    assert json.loads(first)["label"]
    assert second == "offramp: error: standard input, line 2: 'text' is a number, not a string"


def test_a_text_longer_than_the_model_reads(cli: Cli, trained: Path, tmp_path: Path) -> None:
    long = "gem film " * 11_112
    assert len(long) > 100_000
    done = cli("predict", trained, "a gem", long, "")
    assert [line["truncated"] for line in done.lines] == [False, True, False]
    assert done.err == "offramp: 1 of 3 texts is longer than the 48 tokens this model reads, and was cut\n"
    assert done.lines[1] == cli("predict", trained, "gem film " * 40).lines[0]  # only the beginning is read
    path = tmp_path / "long.csv"
    path.write_text(f'text\n"{long}"\n')
    done = cli("predict", trained, "--input", path)
    assert done.lines[0]["truncated"]
    assert done.err == "offramp: a text is longer than the 48 tokens this model reads, and was cut\n"


def test_an_empty_string(cli: Cli, trained: Path) -> None:
    done = cli("predict", trained, "", "   ")
    assert (done.status, len(done.lines), done.err) == (0, 2, "")
    assert done.lines[0] == done.lines[1]
    # Blank lines of a text are texts, so that answers stay in step with lines.
    assert len(cli("predict", trained, stdin="a\n\nb\n").lines) == 3


def test_who_types_is_answered_line_by_line(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from offramp.cli import main

    seen: list[int] = []

    class Typist(io.StringIO):
        """Types the next line when there is an answer to the last."""

        def isatty(self) -> bool:
            return True

        def __next__(self) -> str:
            seen.append(capsys.readouterr().out.count("\n"))
            return super().__next__()

    monkeypatch.setattr(sys, "stdin", Typist("a gem\nthe dull town\nmusic\n"))
    with pytest.raises(SystemExit):
        main(["predict", str(trained), "--threshold", "0"])
    assert seen == [0, 1, 1, 1]


def test_a_reader_who_has_had_enough(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As for ``| head -1``: no text more is computed than is on its way, and nothing is said."""
    from offramp.cli import main

    read, write = os.pipe()
    path = tmp_path / "many.txt"
    path.write_text("a gem\n" * 3000)
    computed: list[int] = []
    step = Engine.step

    def watched(self: Engine) -> Any:
        finished = step(self)
        computed.append(len(finished))
        if len(computed) == 1:
            os.close(read)
        return finished

    monkeypatch.setattr("offramp.cli.predict.CHUNK", 8)
    monkeypatch.setattr(Engine, "step", watched)
    # A buffer of a line, so that the pipe is written to before all is done.
    with os.fdopen(write, "w", buffering=1) as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as left:
            main(["predict", str(trained), "--input", str(path)])
    assert left.value.code == 141
    assert sum(computed) < 100
    assert capfd.readouterr().err == ""


def test_a_reader_who_never_began() -> None:
    """Not at the interpreter's end either."""
    words = [sys.executable, "-c", "from offramp.cli import main; main()", "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_warnings_are_still_there_for_programs(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    import offramp

    with caplog.at_level(logging.WARNING):
        offramp.load(trained)("gem " * 100)
    assert "longer than the 48 tokens" in caplog.text


def test_shadow_runs_of_a_point_without_a_promise(cli: Cli, trained: Path, texts_file: Path) -> None:
    done = cli("predict", trained, "--input", texts_file, "--shadow-every", 4)
    first, *_ = done.err.splitlines()
    assert first.startswith(
        "offramp: nothing is promised by operating point 'default', so shadow runs only tell how often"
    )
    assert first.endswith("ask for it by max_risk (--max-risk)")
    assert len(done.lines) == 48
    alone = cli("predict", trained, "--input", texts_file, "--monitor")
    assert "promised" not in alone.err


def test_labels_that_the_systems_encoding_does_not_know(trained: Path, tmp_path: Path) -> None:
    """What programs read is UTF-8; a table says what it can."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    config["id2label"] = {number: f"très 😀{number}" for number in config["id2label"]}
    (run / "config.json").write_text(json.dumps(config))
    for command in ("predict", "inspect"):
        words = [sys.executable, "-m", "offramp", command, run, "a lovely film", "--runtime", "torch"]
        environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
        done = subprocess.run(words, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert "très 😀" in done.stdout.decode("utf-8")


def test_a_table_that_nobody_reads_ends_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "offramp", "recipes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
