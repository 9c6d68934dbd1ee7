"""Run folders: what is refused and why, and that a folder is replaced whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offramp import run as module
from offramp.errors import RunError
from offramp.run import FORMAT, Run, check_replaceable, replace_folder

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "problem_type": "regression",
    "id2label": {"0": "no", "1": "yes"},
    "offramp": {"format": FORMAT, "max_length": 17, "recipe": "joint", "token_types": True},
}


def write(folder: Path, config: Any = CONFIG, *, weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (folder / weights).write_bytes(b"")
    return folder


def test_a_run_folder_is_read(tmp_path: Path) -> None:
    run = Run.open(write(tmp_path))
    assert run.folder == tmp_path
    assert run.problem_type == "regression"
    assert run.id2label == {0: "no", 1: "yes"}
    assert run.max_length == 17
    assert run.recipe == "joint"
    assert run.uses_token_types
    assert Run.open(str(tmp_path)) == run


def test_class_names_that_transformers_leaves_out(tmp_path: Path) -> None:
    """Two classes of no other name: config.json says nothing of them."""
    config = {key: value for key, value in CONFIG.items() if key != "id2label"}
    assert Run.open(write(tmp_path, config)).id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_weights_in_several_files(tmp_path: Path) -> None:
    assert Run.open(write(tmp_path, weights="model-00001-of-00002.safetensors")).max_length == 17


def with_section(**section: Any) -> dict[str, Any]:
    return CONFIG | {"offramp": CONFIG["offramp"] | section}


def without(name: str) -> dict[str, Any]:
    return CONFIG | {"offramp": {key: value for key, value in CONFIG["offramp"].items() if key != name}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "is no offramp run: its config.json has no 'offramp' section"),
        (CONFIG | {"offramp": "yes"}, "is no offramp run"),
        ("{", "damaged"),
        ("[]", "damaged"),
        (
            with_section(format=FORMAT + 1),
            f"has run format {FORMAT + 1} and .* up to {FORMAT}: upgrade",
        ),
        (with_section(format="new"), "damaged"),
        (without("max_length"), "damaged.*max_length"),
        (without("recipe"), "damaged.*recipe"),
        (with_section(max_length="long"), "damaged.*max_length"),
        (CONFIG | {"problem_type": "poetry"}, "damaged.*problem_type"),
        (CONFIG | {"id2label": {"zero": "no"}}, "damaged.*id2label"),
    ],
)
def test_folders_that_are_no_run(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(RunError, match=message):
        Run.open(write(tmp_path, config))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(RunError, match="damaged"):
        Run.open(tmp_path)


def test_folders_that_are_not_there_or_not_whole(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no folder .*nowhere"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"it has no config\.json"):
        Run.open(tmp_path)
    (write(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"damaged: it has no model\.safetensors"):
        Run.open(tmp_path)


def test_only_empty_folders_and_runs_are_replaced(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "new")
    check_replaceable(tmp_path)
    check_replaceable(write(tmp_path / "run"))
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        check_replaceable(tmp_path / "file")
    with pytest.raises(RunError, match="holds something else"):
        check_replaceable(tmp_path)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "a run"])
def test_a_folder_is_replaced_whole(tmp_path: Path, before: str) -> None:
    target = tmp_path / "deep" / "run"
    if before != "nothing":
        target.mkdir(parents=True)
    if before == "a run":
        (write(target) / "old.txt").touch()
    with replace_folder(target) as staging:
        assert staging.parent == target.parent  # so that the rename cannot cross a file system
        write(staging)
        assert before == "nothing" or names(target) == ({"old.txt", *names(staging)} if before == "a run" else set())
    assert names(target) == {"config.json", "model.safetensors"}
    assert names(target.parent) == {"run"}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_block_that_breaks_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    target = write(tmp_path / "run")

    def save() -> None:
        with replace_folder(target) as staging:
            (staging / "half").touch()
            raise error

    with pytest.raises(type(error)):
        save()
    assert names(tmp_path) == {"run"}
    assert names(target) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("broken", [1, 2])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_ctrl_c_while_the_folders_are_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int, moment: str
) -> None:
    """Whichever rename it hits, just before or just after, one of the two folders stands there whole."""
    target = write(tmp_path / "run")
    (target / "old.txt").touch()
    rename, calls = os.rename, []

    def interrupted(source: Path, goal: Path) -> None:
        calls.append(source)
        if len(calls) != broken:
            return rename(source, goal)
        if moment == "after":
            rename(source, goal)
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "rename", interrupted)

    def save() -> None:
        with replace_folder(target) as staging:
            write(staging)
            (staging / "new.txt").touch()

    with pytest.raises(KeyboardInterrupt):
        save()
    assert names(tmp_path) == {"run"}
    written = (broken, moment) == (2, "after")
    assert names(target) == {"config.json", "model.safetensors", "new.txt" if written else "old.txt"}


def test_what_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(RunError, match="holds something else"), replace_folder(tmp_path):
        raise AssertionError("the block must not run")
    assert names(tmp_path) == {"thesis.txt"}


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def living() -> Iterator[int]:
    """The number of another process that runs."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


KILLED = """
import json, os, pathlib, signal, sys
from offramp import run

rename, moment = os.rename, int(sys.argv[2])
calls = []

def killed(source, goal):
    rename(source, goal)
    calls.append(source)
    if len(calls) == moment:
        os.kill(os.getpid(), signal.SIGKILL)

os.rename = killed
with run.replace_folder(sys.argv[1]) as staging:
    if moment == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    (staging / "config.json").write_text((pathlib.Path(sys.argv[1]) / "config.json").read_text())
    (staging / "model.safetensors").touch()
    (staging / "new.txt").touch()
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    ("renames", "there", "holds"),
    [
        (0, {"run", "run.tmp-N"}, "old.txt"),
        (1, {"run.old-N", "run.tmp-N"}, "old.txt"),
        (2, {"run", "run.old-N"}, "new.txt"),
        (3, {"run", "run.tmp-N"}, "new.txt"),
    ],
)
def test_killed_while_it_replaces(tmp_path: Path, renames: int, there: set[str], holds: str) -> None:
    """Wherever the kill hits: the run opens, whole, as it was or as it should be; and can be replaced again."""
    target = write(tmp_path / "run")
    (target / "old.txt").touch()
    words = [sys.executable, "-c", KILLED, str(target), str(renames)]
    with subprocess.Popen(words) as process:
        assert process.wait() == -signal.SIGKILL
    assert {name.replace(f"-{process.pid}", "-N") for name in names(tmp_path)} == there
    assert Run.open(target).max_length == 17
    assert names(target) == {"config.json", "model.safetensors", holds}
    with replace_folder(target) as staging:
        write(staging)
    assert names(target) == {"config.json", "model.safetensors"}
    assert "run.tmp-" not in " ".join(names(tmp_path))


def test_a_run_that_was_moved_aside_is_put_back(tmp_path: Path, dead: int, caplog: pytest.LogCaptureFixture) -> None:
    aside = write(tmp_path / f"my[run].old-{dead}")
    with caplog.at_level(logging.WARNING):
        assert Run.open(tmp_path / "my[run]").max_length == 17
    assert not aside.exists()
    assert "was being replaced when its process ended: put back" in caplog.text
    caplog.clear()
    Run.open(tmp_path / "my[run]")
    assert not caplog.records


def test_what_a_dead_process_moved_aside_survives_a_block_that_breaks(tmp_path: Path, dead: int) -> None:
    target = tmp_path / "run"
    (write(tmp_path / f"run.old-{dead}") / "old.txt").touch()

    def save() -> None:
        with replace_folder(target):
            assert (target / "old.txt").exists()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        save()
    assert names(tmp_path) == {"run"}
    assert (target / "old.txt").exists()


def test_a_process_that_still_replaces_is_left_alone(tmp_path: Path, living: int) -> None:
    write(tmp_path / f"run.old-{living}")
    (tmp_path / f"run.tmp-{living}").mkdir()
    with pytest.raises(RunError, match="is being replaced by a process that still runs: wait"):
        Run.open(tmp_path / "run")
    assert names(tmp_path) == {f"run.old-{living}", f"run.tmp-{living}"}
    with replace_folder(tmp_path / "run") as staging:
        write(staging)
    assert names(tmp_path) == {"run", f"run.old-{living}", f"run.tmp-{living}"}


def test_where_it_is_not_clear_what_to_put_back_a_person_chooses(tmp_path: Path, dead: int, living: int) -> None:
    asides = {f"run.old-{dead}", f"run.old-{living}"}
    for name in asides:
        write(tmp_path / name)
    with pytest.raises(RunError, match=r"rename .*run\.old-\d+ to it"):
        Run.open(tmp_path / "run")
    assert names(tmp_path) == asides
    for name in ("run.old-yesterday", "run.old-99999999999999999999"):
        shutil.rmtree(tmp_path)
        write(tmp_path / name)
        with pytest.raises(RunError):
            Run.open(tmp_path / "run")
        assert names(tmp_path) == {name}, "no process has such a number: not ours"


def test_where_nothing_can_be_renamed_the_error_says_what_to_do(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / f"run.old-{dead}")

    def refused(source: Path, goal: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.os, "rename", refused)
    with pytest.raises(RunError, match=rf"rename .*run\.old-{dead} to it"):
        Run.open(tmp_path / "run")


def test_a_process_with_the_number_of_the_one_that_was_killed(tmp_path: Path) -> None:
    """As in a container, where numbers begin at 1 each time; while a replacement runs, the number is our own."""
    own = os.getpid()
    target = tmp_path / "run"
    write(tmp_path / f"run.old-{own}")
    (tmp_path / f"run.tmp-{own}").mkdir()
    Run.open(target)
    write(tmp_path / f"run.old-{own}")
    with replace_folder(target) as staging:
        assert names(staging) == set()
        write(staging)
        os.rename(target, tmp_path / "elsewhere")
        with pytest.raises(RunError, match="still runs"):
            Run.open(target)
    assert names(tmp_path) == {"run", "elsewhere"}


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path, dead: int, living: int) -> None:
    target = write(tmp_path / "run")
    others = {f"run.tmp-{living}", f"runs.tmp-{dead}", f"run.tmp-{dead}.txt", f"run.tmp-my-{dead}"}
    for name in (f"run.tmp-{dead}", *others):
        (tmp_path / name).mkdir()
    with replace_folder(target) as staging:
        write(staging)
    assert names(tmp_path) == {"run", *others}
