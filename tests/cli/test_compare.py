"""What ``offramp compare`` shows and leaves behind while it works."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

Cli = Callable[..., Any]
QUICK = ("--splits", 2, "--resamples", 5, "--targets", "1.5,2")


@pytest.fixture
def words(trained: Path, tmp_path: Path) -> tuple[object, ...]:
    return ("compare", trained, "--trace", trained / "traces" / "dev.safetensors", "--out", tmp_path / "out", *QUICK)


def test_the_plot_is_drawn_once(
    cli: Cli, words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from base64 import b64encode

    from offramp.bench import plots

    drawn: list[bytes] = []
    draw = plots.plot_comparison

    def counted(*given: Any, **more: Any) -> bytes:
        drawn.append(draw(*given, **more))
        return drawn[-1]

    monkeypatch.setattr(plots, "plot_comparison", counted)
    assert cli(*words).status == 0
    [image] = drawn
    assert (tmp_path / "out" / "compare.png").read_bytes() == image
    assert b64encode(image).decode() in (tmp_path / "out" / "report.html").read_text()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.json", "compare.png", "report.html"}


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (("--metric", "f7"), "no score of such answers is called 'f7': there are accuracy, f1, matthews"),
        (("--targets", "2,0.5"), "--targets takes layer speed-ups of 1 or more joined by commas, such as 1.5,2,3, not"),
        (("--targets", "2,nan"), "--targets takes layer speed-ups of 1 or more joined by commas, such as 1.5,2,3, not"),
    ],
)
def test_wishes_that_cannot_be_met_are_told_before_the_model_runs(
    cli: Cli, trained: Path, toy_data: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    wish: tuple[str, str], message: str,
) -> None:  # fmt: skip
    def recorded(*_: object, **__: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr("offramp.engine.record.record", recorded)
    assert cli("compare", trained, "--data", toy_data(), "--out", tmp_path / "out", *wish).error.startswith(message)
    assert not (tmp_path / "out").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from offramp.cli import main

    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert not left.value.code
    rows = len(json.loads((tmp_path / "out" / "compare.json").read_text())["rows"])
    shown = sys.stderr.getvalue()
    for done in range(rows + 1):
        assert f" {done}/{rows} [" in shown


def test_no_bar_elsewhere(cli: Cli, words: tuple[object, ...]) -> None:
    done = cli(*words)
    assert (done.status, done.err) == (0, "")


def test_ctrl_c(cli: Cli, words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from offramp.calibration.compare import _Bench

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Bench, "samples", interrupted)
    done = cli(*words)
    assert (done.status, done.out, done.err) == (130, "", "offramp: interrupted\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device", "out")])
@pytest.mark.parametrize("written", [0, 1, 2])
def test_what_ends_in_the_midst_of_writing_leaves_the_last_comparison_whole(
    cli: Cli, words: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, written: int
) -> None:
    assert cli(*words).status == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    make, made = tempfile.mkstemp, []

    def interrupted(**given: Any) -> Any:
        if len(made) == written:
            raise error
        made.append(given)
        return make(**given)

    monkeypatch.setattr(tempfile, "mkstemp", interrupted)
    assert cli(*words, "--seed", 7).status in (2, 130)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
