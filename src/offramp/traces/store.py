"""Traces on disk: arrays in ``NAME.safetensors``, everything else in ``NAME.json``.

Both are written before either takes its place, the JSON last. It holds the SHA-256 of the arrays' file, so a recording
that was interrupted, a pair that does not belong together and a file damaged on the way are all noticed when it is
read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from offramp.errors import DataError, RunError
from offramp.traces.files import write_together
from offramp.traces.trace import ADDED, SETTINGS, TENSORS, Trace

__all__ = ["FORMAT", "load_trace", "save_trace"]

FORMAT = 1
"""Number of the format written here; a trace of a higher number is refused."""


def save_trace(trace: Trace, path: Path | str) -> None:
    """Write ``path``.safetensors and ``path``.json (``path`` with either suffix, or none).

    Raises:
        OSError: the folder cannot be written to.
    """
    tensors_path, json_path = _paths(path)
    arrays = {name: value for name in TENSORS if (value := getattr(trace, name)) is not None}
    arrays |= {f"extras.{name}": value for name, value in trace.extras.items()}
    data = save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    record: dict[str, Any] = {"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest()}
    record |= {name: getattr(trace, name) for name in SETTINGS}
    record["id2label"] = {str(index): label for index, label in trace.id2label.items()}
    write_together({tensors_path: data, json_path: (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()})


def load_trace(path: Path | str) -> Trace:
    """Read a trace back (``path`` with either suffix, or none).

    Raises:
        RunError: a file is missing or damaged, the two do not belong together, or a newer offramp wrote them.
    """
    tensors_path, json_path = _paths(path)
    _check_present(tensors_path, json_path)
    record = _read_json(json_path)
    data = tensors_path.read_bytes()
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise RunError(f"{tensors_path} is not the file that {json_path.name} describes: it was damaged, or recording "
                       "was interrupted; run `offramp record` again")  # fmt: skip
    try:
        arrays: dict[str, Any] = load(data)
        extras = {n.removeprefix("extras."): arrays.pop(n) for n in sorted(arrays) if n.startswith("extras.")}
        settings = {name: record[name] for name in SETTINGS if name in record or name not in ADDED}
        settings["id2label"] = {int(index): label for index, label in record["id2label"].items()}
        return Trace(extras=extras, **arrays, **settings)
    except (SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"{tensors_path} and {json_path.name} cannot be read as a trace ({error}): "
                       "run `offramp record` again") from error  # fmt: skip


def _paths(path: Path | str) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.name.removesuffix(path.suffix) if path.suffix in (".safetensors", ".json") else path.name
    if not stem:
        raise DataError(f"a trace needs a name, and {str(path)!r} has none")
    return path.parent / f"{stem}.safetensors", path.parent / f"{stem}.json"


def _check_present(tensors_path: Path, json_path: Path) -> None:
    missing = [path for path in (tensors_path, json_path) if not path.is_file()]
    if len(missing) == 2:
        raise RunError(f"there is no trace {tensors_path.with_suffix('')}: `offramp record` makes one")
    if missing:
        raise RunError(
            f"half of a trace is missing, {missing[0]}: record it again, `offramp record RUN --data DATA --out "
            f"{tensors_path.with_suffix('')}`"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}): run `offramp record` again") from None
    if not isinstance(record, dict) or not isinstance(record.get("format"), int) or "sha256" not in record:
        raise RunError(f"{path} does not describe a trace: point at one that `offramp record` made")
    if record["format"] > FORMAT:
        raise RunError(f"{path} has trace format {record['format']}, this offramp reads up to {FORMAT}: upgrade it")
    return record
