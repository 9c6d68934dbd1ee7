"""Traces small enough to keep in a repository: float16 in two planes of bytes, deflated, in one ``.npz``.

What it costs. A float16 holds 11 significant bits, so a logit between 4 and 8 moves by 0.002 at most, and an entropy
by no more than the logits do: an exit changes only for a unit whose score lies as near as that to the threshold.
Outputs of more than 16 classes are first rounded to 1/64 (a logit moves by 1/128 at most), without which 77 classes
would fill the repository. Two classes whose logits become equal are told apart by their order, as everywhere.
Numbers that come once a text (a gate) stay float32: near 1 a float16 has no room.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import RunError
from offramp.traces.files import write_atomically
from offramp.traces.trace import Trace

__all__ = ["load_small", "save_small", "smallest"]

FORMAT = 1
MANY = 16
"""Outputs beyond which they are rounded to ``STEP``."""
STEP = 1 / 64

_SETTINGS = ("problem_type", "runtime", "batch_size", "dtype", "model")


def save_small(trace: Trace, path: Path) -> int:
    """Write a trace to ``path`` (``.npz``); hashes and seconds are left out.

    Returns:
        Bytes written.
    """
    arrays: dict[str, NDArray[Any]] = {"logits": _packed(trace.logits)}
    arrays |= {f"extras.{name}": _packed(values) for name, values in trace.extras.items()}
    arrays |= {"layers": trace.layers, "lengths": smallest(trace.lengths), "offsets": trace.offsets}
    if np.array_equal(trace.offsets, np.arange(len(trace.lengths) + 1)):
        del arrays["offsets"]  # each unit is an item
    if trace.labels is not None:
        arrays["labels"] = smallest(trace.labels)
    record = {"format": FORMAT, **{name: getattr(trace, name) for name in (*_SETTINGS, "full_layers")}}
    record["id2label"] = {str(index): label for index, label in trace.id2label.items()}
    arrays["record"] = np.frombuffer(json.dumps(record, ensure_ascii=False).encode(), dtype=np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_atomically(path, data := file.getvalue())
    return len(data)


def load_small(path: Path) -> Trace:
    """Read it back, with logits and extras as float32.

    Raises:
        RunError: no such file, damaged, or written by a newer offramp.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        record: Mapping[str, Any] = json.loads(arrays.pop("record").tobytes())
        if record["format"] > FORMAT:
            raise RunError(f"{path} has format {record['format']}, this offramp reads up to {FORMAT}: upgrade it")
        return _trace(arrays, record)
    except FileNotFoundError:
        raise RunError(f"there is no trace {path}: run the suite again, it trains what is missing") from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise RunError(f"{path} is damaged: remove it and run the suite again") from error


def _trace(arrays: dict[str, NDArray[Any]], record: Mapping[str, Any]) -> Trace:
    kinds = {"single_label_classification": np.int64, "multi_label_classification": np.bool_, "regression": np.float32}
    labels = arrays.get("labels")
    extras = {name.removeprefix("extras."): _unpacked(arrays[name]) for name in arrays if name.startswith("extras.")}
    return Trace(
        logits=_unpacked(arrays["logits"]),
        layers=arrays["layers"].astype(np.int64),
        lengths=arrays["lengths"].astype(np.int64),
        offsets=arrays.get("offsets", np.zeros(0, np.int64)).astype(np.int64),
        labels=None if labels is None else labels.astype(kinds[record["problem_type"]]),
        extras=extras,
        id2label={int(index): label for index, label in record["id2label"].items()},
        full_layers=record.get("full_layers"),
        **{name: record[name] for name in _SETTINGS},
    )


def smallest(values: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers in the smallest type that holds them; others as they are."""
    if values.dtype.kind not in "iu" or not values.size:
        return values
    low, high = int(values.min()), int(values.max())
    kinds = [np.dtype(f"{sign}{size}") for size in (1, 2, 4, 8) for sign in "ui"]
    return values.astype(next(kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max))


def _packed(values: NDArray[Any]) -> NDArray[Any]:
    """float32 [E, U, ...] as bytes [2, E, U, ...]: low bytes, then high ones, which deflate better apart."""
    values = np.asarray(values, dtype=np.float32)
    if values.ndim < 3:
        return values
    if values.shape[-1] > MANY:
        values = np.round(values / STEP) * np.float32(STEP)
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    if (np.isinf(half) & np.isfinite(values)).any():
        return values  # beyond 65,504: rare, and float32 is always right
    return np.ascontiguousarray(np.moveaxis(half[..., None].view(np.uint8), -1, 0))


def _unpacked(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype != np.uint8:
        return values.astype(np.float32)
    half = np.ascontiguousarray(np.moveaxis(values, 0, -1)).view("<f2")[..., 0]
    return half.astype(np.float32)
