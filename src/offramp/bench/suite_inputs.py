"""What a suite trains from, by its contents: the encoder and the rows of each task.

A cell's key says what is trained by name, and names stay where contents change. So every record keeps these hashes, and
cells of another encoder, or of other rows, are not counted as this suite's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offramp.bench.suite import SuiteTask
from offramp.errors import RunError
from offramp.inputs.files import SUFFIXES

__all__ = ["check_inputs", "data_files", "data_hash", "encoder_hash", "missing_data"]

_PARTS = {"train": ("train",), "dev": ("dev", "validation", "valid", "test")}
"""Part of the data -> names of its file, the first that is there."""

_OF_ENCODER = ("config.json", "*.safetensors", "*.bin", "tokenizer*.json", "vocab.*", "*.model")


def data_files(task: SuiteTask, root: Path) -> dict[str, Path | None]:
    """Part -> its file under the root of the data; None where there is none."""
    folder = root / task.folder
    return {
        part: next((path for name in names for end in SUFFIXES if (path := folder / f"{name}{end}").is_file()), None)
        for part, names in _PARTS.items()
    }


def missing_data(task: SuiteTask, root: Path) -> str | None:
    """Which file of a task is not there, and how to get it; None: none is missing."""
    for part, path in data_files(task, root).items():
        if path is None:
            return f"there is no {task.folder}/{part}.jsonl in the folder of the data: {task.get}"
    return None


def data_hash(task: SuiteTask, root: Path) -> str:
    """SHA-256 of a task's files, of which none may be missing."""
    return _digest([path for path in data_files(task, root).values() if path is not None])


def encoder_hash(model: str) -> str:
    """SHA-256 of an encoder's weights, configuration and tokenizer; of a name that is no folder, of the name."""
    folder = Path(model)
    if not folder.is_dir():
        return hashlib.sha256(f"name {model}".encode()).hexdigest()
    return _digest(sorted({path for pattern in _OF_ENCODER for path in folder.glob(pattern)}))


def check_inputs(record: Mapping[str, Any], *, encoder: str, data: str, results: Path) -> None:
    """Complain of a cell that was trained from something else.

    Args:
        record: of the cell, as ``Results.record`` gives it.
        encoder: hash of the encoder that is given now.
        data: hash of the task's rows that are given now.
        results: folder of the results.

    Raises:
        RunError: it was.
    """
    for what, now in (("encoder", encoder), ("data", data)):
        was = str(record.get(f"{what}_hash"))
        if was != now:
            raise RunError(
                f"{results} holds {record['task']} / {record['recipe']} of other {what} ({was[:12]}) than is given now "
                f"({now[:12]}): give another folder for the results, or the {what} that they are of"
            )


def _digest(paths: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
