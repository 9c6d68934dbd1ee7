"""Run folders: what is refused and why, and that a folder is replaced whole or not at all."""

from __future__ import annotations

import json
import os
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
