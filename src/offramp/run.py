"""The run folder: one folder holds a trained early-exit model and everything known of it.

config.json (the backbone's own, plus an ``offramp`` section), model.safetensors, tokenizer files,
operating_points.json, training.json, training_rows.safetensors, traces/, README.md. Torch-free: a served model reads
it too.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from offramp.errors import RunError
from offramp.types import PROBLEM_TYPES, ProblemType

__all__ = ["FORMAT", "Run", "check_replaceable", "check_writable", "left_behind", "replace_folder", "weights_hash"]

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of the ``offramp`` section in config.json; a reader refuses what is newer than itself."""

TRAINING_ROWS = "training_rows.safetensors"
"""File of the hashes of the rows that a run was trained on."""

DEFAULT_NAMES = {0: "LABEL_0", 1: "LABEL_1"}
"""Class names where config.json has none: transformers writes them only where they are not these, its default."""

_BUSY: set[Path] = set()
"""Folders that this process is replacing."""


@dataclass(frozen=True)
class Run:
    """A run folder that has been checked."""

    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Read and check a run folder. One that was moved aside by a process that was killed there is put back.

        Raises:
            RunError: there is no such folder, it is no run, it is damaged, or a newer offramp wrote it.
        """
        folder = Path(folder)
        _put_back(folder)
        if not folder.is_dir():
            raise RunError(_absent(folder))
        config = cls._read(folder / "config.json")
        section = config.get("offramp")
        if not isinstance(section, dict):
            raise RunError(f"{folder} is no offramp run: its config.json has no 'offramp' section")
        _check_section(folder, config, section)
        if section["format"] > FORMAT:
            raise RunError(
                f"{folder} has run format {section['format']} and this offramp reads up to {FORMAT}: "
                "upgrade with pip install -U offramp"
            )
        if not (folder / "model.safetensors").is_file() and not list(folder.glob("model-*.safetensors")):
            raise RunError(f"{folder} is damaged: it has no model.safetensors")
        return cls(folder, config)

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise RunError(f"{path.parent} is no offramp run: it has no {path.name}")
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path} is damaged: {error}") from None
        if not isinstance(value, dict):
            raise RunError(f"{path} is damaged: it should hold an object")
        return value

    @property
    def section(self) -> Mapping[str, Any]:
        """The ``offramp`` section of config.json."""
        return cast("Mapping[str, Any]", self.config["offramp"])

    @property
    def problem_type(self) -> ProblemType:
        """As in transformers."""
        return cast("ProblemType", self.config.get("problem_type") or "single_label_classification")

    @property
    def id2label(self) -> dict[int, str]:
        """Class names by id."""
        return {int(key): str(name) for key, name in (self.config.get("id2label") or DEFAULT_NAMES).items()}

    @property
    def max_length(self) -> int:
        """Tokens beyond which a text is cut."""
        return int(self.section["max_length"])

    @property
    def recipe(self) -> str:
        """Name of the recipe it was trained with."""
        return str(self.section["recipe"])

    @property
    def training_hashes(self) -> npt.NDArray[np.uint64]:
        """[N] hashes of the rows it was trained on; none where the folder does not say."""
        path = self.folder / TRAINING_ROWS
        return read_hashes(path) if path.is_file() else np.zeros(0, dtype=np.uint64)

    @property
    def uses_token_types(self) -> bool:
        """Whether the backbone reads segment ids."""
        return bool(self.section.get("token_types", False))


def read_hashes(path: Path) -> npt.NDArray[np.uint64]:
    """[N] hashes of training rows, from a run's file of them.

    Raises:
        RunError: the file is damaged.
    """
    try:
        return load_file(path)["hashes"]
    except (SafetensorError, KeyError) as error:
        raise RunError(f"{path} is damaged: {error}") from None


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weight files, which a trace remembers its model by."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _check_section(folder: Path, config: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    """Raise RunError where what a run is read by is not what it should be."""
    numbers = config.get("id2label") or {}
    right = {
        "format": isinstance(section.get("format"), int),
        "max_length": isinstance(section.get("max_length"), int),
        "recipe": isinstance(section.get("recipe"), str),
        "problem_type": config.get("problem_type") in (None, *PROBLEM_TYPES),
        "id2label": isinstance(numbers, dict) and all(str(key).isdecimal() for key in numbers),
    }
    for name, well in right.items():
        # A newer format may hold other things: it is refused for what it is.
        if not well and (name == "format" or section["format"] <= FORMAT):
            raise RunError(f"{folder} is damaged: {name} in its config.json is not what offramp wrote; train it again")


@contextmanager
def replace_folder(target: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place when the block ends well.

    Where it does not - an error, no space left, Ctrl-C - ``target`` stays as it was and the temporary folder is
    removed.

    Where a process was killed, the next replacement (or ``Run.open``) puts back what it had moved aside, and removes
    its temporary folder. Processes are looked for on this machine: two machines must not replace one shared folder.

    Raises:
        RunError: ``target`` exists and is no run folder: it is not ours to replace.
    """
    target = Path(target)
    _put_back(target)
    check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging, old = (target.with_name(f"{target.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
    for left in left_behind(target, "tmp"):
        shutil.rmtree(left, ignore_errors=True)
    staging.mkdir()
    _BUSY.add(target.absolute())
    try:
        yield staging
        _open_to_others(staging)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)  # of an earlier process with our number
            os.rename(target, old)
        os.rename(staging, target)
    finally:
        if old.exists() and not target.exists():
            os.rename(old, target)
        shutil.rmtree(staging, ignore_errors=True)
        if old.exists() and not staging.exists():
            os.rename(old, staging)  # while it is removed, nobody shall take it for something to put back
        shutil.rmtree(staging, ignore_errors=True)
        _BUSY.discard(target.absolute())


def _put_back(target: Path) -> None:
    """Undo the first half of a replacement whose process was killed before the second half.

    Only where there is no doubt: ``target`` is not there, one folder was moved aside, and the process that did that is
    no more.
    """
    if target.exists() or len(aside := _beside(target, "old")) != 1 or left_behind(target, "old") != aside:
        return
    try:
        os.rename(aside[0], target)
    except OSError:
        return  # another process was quicker, or we may not write here: whoever needs the folder says what to do
    logger.warning("%s was being replaced when its process ended: put back what it was before", target)


def _absent(folder: Path) -> str:
    """Why there is no such run folder, and what to do."""
    aside = _beside(folder, "old")
    if not aside:
        return f"there is no folder {folder}: give the folder that `offramp train --out` wrote"
    if len(aside) == 1 and aside != left_behind(folder, "old"):
        return f"{folder} is being replaced by a process that still runs: wait for it"
    return f"{folder} was being replaced when something ended that: rename {aside[-1]} to it"


def _beside(target: Path, kind: str) -> list[Path]:
    """Folders NAME.kind-PID."""
    return sorted(path for path in target.parent.glob(f"{glob.escape(target.name)}.{kind}-*") if path.is_dir())


def left_behind(target: Path, kind: str) -> list[Path]:
    """Folders NAME.kind-PID beside NAME whose process is no more."""
    found = []
    for path in _beside(target, kind):
        process = path.name.removeprefix(f"{target.name}.{kind}-")
        if process.isdecimal() and not _runs(int(process), target):
            found.append(path)
    return found


def _runs(process: int, target: Path) -> bool:
    """Whether a process may still be replacing a folder: it lives, or that cannot be told."""
    if process == os.getpid():  # in a container every process may have the number of the one before
        return target.absolute() in _BUSY
    if os.name == "nt":  # there, signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _open_to_others(folder: Path) -> None:
    """Give every file the mode of an ordinary one: safetensors lets only the owner read what it writes."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def check_writable(folder: str | Path) -> None:
    """Raise RunError where no file could be made in a folder, or the folder itself could not.

    For what takes long, before it begins: whoever writes at the end complains of the same then.
    """
    folder = Path(folder)
    # lexists: of a folder that nobody may look into, only the folder itself is known to be there.
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise RunError(f"nothing can be written to {folder}, because {there} is no folder: name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"nothing can be written to {there}: make it writable, or name another place")
    try:  # of some places that is not the whole truth, such as /proc, or for root
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise RunError(f"nothing can be written to {there} ({error.strerror}): name another place") from None


def check_replaceable(target: str | Path) -> None:
    """Raise RunError where ``target`` exists and is neither empty nor a run folder, or cannot be written."""
    target = Path(target)
    if target.name in ("", ".."):
        raise RunError(f"{target} cannot be replaced: give --out a folder of its own, such as runs/mine")
    check_writable(target.parent)  # what is made first stands beside it
    if not target.exists():
        return
    if not target.is_dir():
        raise RunError(f"{target} is a file: give --out a folder")
    if any(target.iterdir()):
        try:
            Run.open(target)
        except RunError:
            raise RunError(f"{target} exists and holds something else: give --out a new folder") from None
