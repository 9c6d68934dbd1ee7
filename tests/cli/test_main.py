from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp import __version__
from offramp.cli import COMMANDS, main
from offramp.errors import DataError

Cli = Callable[..., Any]

ROOT = Path(__file__).parents[2]


def fresh(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, and after it a line that says which heavy modules it brought."""
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(sorted({'torch', 'transformers', 'pandas', 'sklearn'} & set(sys.modules))))\n"
        "from offramp.cli import main\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_help_is_quick_and_tells_the_commands_in_the_order_of_a_first_visit(cli: Cli) -> None:
    done = fresh("--help")
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "[]")
    assert cli().out == cli("--help").out
    lines = done.stdout.splitlines()
    listed = [line.split() for line in lines[lines.index("Commands:") + 1 :] if line.startswith("  ")]
    assert [words[0] for words in listed][: len(COMMANDS)] == list(COMMANDS)
    assert "..." not in "".join(lines[lines.index("Commands:") :])  # no summary is cut


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(cli: Cli, command: str) -> None:
    done = cli(command, "--help")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"Usage: offramp {command}")
    assert max(map(len, done.out.splitlines())) <= 80
    assert "<" not in done.out[done.out.index("Options:") :]  # every option says what it takes, not of which type


def test_help_of_every_command_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom offramp.cli import COMMANDS, main\n"
        "for command in COMMANDS:\n"
        "    try:\n        main([command, '--help'])\n    except SystemExit:\n        pass\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"offramp {__version__}\n"


def test_a_table_and_its_json(cli: Cli) -> None:
    listed = cli("recipes", "--json").json
    names = [entry["name"] for entry in listed]
    assert {"de3bert", "joint", "plain"} <= set(names)
    rows = cli("recipes").out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == names
    assert all(entry["summary"] in row for entry, row in zip(listed, rows, strict=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "no such command 'frobnicate': see `offramp --help`"),
        (["--frobnicate"], "no such option: --frobnicate: see `offramp --help`"),
        (["predict", "run", "--frobnicate", "1"], "no such option: --frobnicate: see `offramp predict --help`"),
        (["evaluate", "run"], "missing option '--data': see `offramp evaluate --help`"),
        (["predict"], "missing argument 'RUN': see `offramp predict --help`"),
        (["inspect", "run", "a", "b", "c"], "unexpected extra argument"),
        (["predict", "run", "x", "--threshold", "low"], "invalid value for '--threshold'"),
        (["predict", "run", "x", "--batch-size", "0"], "invalid value for '--batch-size'"),
        (["train", "--model", "m", "--data", "d", "--out", "o", "--recipy", "x"], "did you mean --recipe?"),
        (["train", "--model", "m", "--data", "d", "--out", "o", "--learning_rat", "1"], "--learning_rate"),
        (["train", "--model", "m", "--data", "d", "--out", "o", "stray"], "'stray' belongs to no option"),
        (["train", "--model", "m", "--data", "d", "--out", "o", "--exits", "two"], "--exits takes layer numbers"),
        (["train", "--model", "m", "--data", "d", "--out", "o", "--set", "head"], "--set takes name=value"),
        (["train", "--model", "m", "--data", "d", "--out", "o", "--recipe", "bert3"], "no recipe is called 'bert3'"),
        (["compare", "run"], "give --data to record and compare, or --trace"),
    ],
)
def test_a_command_line_that_is_wrong(
    cli: Cli, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in cli(*words).error
    assert list(tmp_path.iterdir()) == []


def test_hyphens_and_underscores_are_one(cli: Cli, trained: Path) -> None:
    hyphens = cli("predict", trained, "a gem", "--max-layers", "2", "--batch-size=1", "--threshold", "0")
    underscores = cli("predict", trained, "a gem", "--max_layers", "2", "--batch_size=1", "--threshold", "0")
    assert hyphens == underscores
    assert hyphens.lines[0]["exit_layer"] == 2


def test_after_two_hyphens_words_are_texts(cli: Cli, trained: Path) -> None:
    plain, dashed = (cli("predict", trained, "--", text, "gem") for text in ("debug x_y", "--debug x_y"))
    assert (dashed.status, len(dashed.lines)) == (0, 2)
    assert dashed.lines[1] == plain.lines[1]


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    words = ["train", "--model", "m", "--out", str(tmp_path / "run"), "--data", str(empty)]
    for place in (0, len(words)):
        with pytest.raises(DataError, match="is empty"):
            main([*words[:place], "--debug", *words[place:]])
    assert "error:" not in capsys.readouterr().err


def test_debug_in_a_process(tmp_path: Path) -> None:
    done = fresh("compare", tmp_path, "--trace", "t", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RunError" in done.stderr
    quiet = fresh("compare", tmp_path, "--trace", "t")
    assert (quiet.returncode, quiet.stderr.count("\n")) == (2, 1)
    assert json.loads(quiet.stdout) == []  # torch was not needed to say so


def test_ctrl_c(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("offramp.recipes.available", interrupted)
    done = cli("recipes")
    assert (done.status, done.out, done.err) == (130, "", "offramp: interrupted\n")


@pytest.mark.parametrize("start", ["runpy.run_module('offramp', run_name='__main__')", "script.load()()"])
def test_ctrl_c_while_the_command_line_is_imported(start: str) -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["offramp"]
    program = (
        "import importlib.metadata, runpy, sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        f"script = importlib.metadata.EntryPoint('offramp', {named!r}, 'console_scripts')\n{start}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "offramp: interrupted\n")


STARTS = {
    "command line": "typer",  # with the first of our modules
    "command": "torch",  # with what a command needs of others
}
INTERRUPTED = """
import atexit, importlib.metadata, os, signal, sys
class Interrupted:
    def find_spec(self, name, *_):
        if name == {name!r}:
            {how}
sys.meta_path.insert(0, Interrupted())
atexit.register(print, "taken down")
sys.argv = ["offramp", *{words!r}]
from offramp.__main__ import main
main()
"""
SIGNAL = "os.kill(os.getpid(), signal.SIGINT)"


def interrupted(*words: object, name: str, how: str) -> tuple[int, str, str]:
    """What a command leaves behind that is interrupted while it imports a module."""
    program = INTERRUPTED.format(name=name, how=how, words=[str(word) for word in words])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("start", STARTS)
def test_ctrl_c_while_modules_are_imported_takes_nothing_down(trained: Path, start: str) -> None:
    assert interrupted("predict", trained, "a gem", name=STARTS[start], how=SIGNAL) == (
        130,
        "",
        "offramp: interrupted\n",
    )


def test_ctrl_c_is_an_exception_where_work_may_be_under_way(trained: Path) -> None:
    left = interrupted("predict", trained, "a gem", name="offramp.criteria.entropy", how=SIGNAL)
    assert left == (130, "taken down\n", "offramp: interrupted\n")


def test_ctrl_c_in_code_that_is_a_string() -> None:
    left = interrupted("recipes", name="typer", how="exec('raise KeyboardInterrupt')")
    assert left == (130, "taken down\n", "offramp: interrupted\n")


def test_ctrl_c_at_the_very_end() -> None:
    at_exit = f"atexit.register(lambda: {SIGNAL})"
    assert interrupted("--version", name="typer", how=at_exit) == (130, f"offramp {__version__}\n", "")
    # Python itself is taken down: of an object in a module as the last thing of all.
    last = "sys.last = type('Last', (), {'__del__': lambda _, kill=os.kill, pid=os.getpid(): kill(pid, 2)})()"
    done = interrupted("--version", name="typer", how=last)
    assert done == (0, f"offramp {__version__}\ntaken down\n", "")


def test_little_is_imported_before_ctrl_c_is_in_our_hands() -> None:
    program = "import sys; before = {*sys.modules}; import offramp.__main__; print(*{*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    brought = set(done.stdout.split())
    assert "signal" in brought
    assert not brought & {"typing", "re", "typer", "offramp.cli"}


def test_ctrl_c_that_is_ignored_stays_so() -> None:
    program = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + INTERRUPTED.format(
        name="typer", how=SIGNAL, words=["--version"]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_system_refuses_is_said_in_its_words(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> list[str]:
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr("offramp.recipes.available", full)
    assert cli("recipes").error == "runs/x: No space left on device"


def test_a_fault_of_ours_is_not_dressed_up_as_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise ZeroDivisionError

    monkeypatch.setattr("offramp.recipes.available", broken)
    with pytest.raises(ZeroDivisionError):
        main(["recipes"])
