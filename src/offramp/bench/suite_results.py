"""What a suite has found so far, as files: one record and one trace a training, and the list of cells.

::

    suite.json                     the suite, and every cell: done, or not run and why
    traces/TASK/KEY.json, .npz     what was trained, when and where; what its exits said about dev
    traces/TASK/KEY.failed.json    why a training failed, until it works

A record is written after its trace, so a training without a record is not done. ``suite.json`` is made anew from the
records each time: nothing is ever counted twice, and any of it may be killed at any time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.bench.provenance import provenance, write_result
from offramp.bench.suite import Cell, Suite
from offramp.bench.suite_traces import load_small, save_small
from offramp.errors import RunError
from offramp.traces.trace import Trace

__all__ = ["BEGUN", "DONE", "NOT_YET", "Results"]

DONE, NOT_RUN = "done", "not run"
BEGUN, NOT_YET = "begun", "not run yet"
"""Why a cell is not run that only wants time."""
_FROM_RECORD = ("seconds", "pieces", "rows", "encoder_hash", "data_hash", "metric", "full_depth", "trace", "commit",
                "dirty", "date", "machine", "versions")  # fmt: skip


@dataclass(frozen=True)
class Results:
    """The folder of a suite's results."""

    folder: Path

    def stem(self, task: str, key: str) -> Path:
        """Where a training's files lie, without their endings."""
        return self.folder / "traces" / task / key

    def record(self, task: str, key: str) -> dict[str, Any] | None:
        """What is known of a training; None where it is not done."""
        stem = self.stem(task, key)
        if not stem.with_suffix(".npz").is_file():
            return None
        return _read(stem.with_suffix(".json"))

    def records(self) -> list[dict[str, Any]]:
        """Those of all trainings that are done."""
        paths = sorted(path for path in self.folder.glob("traces/*/*.json") if not path.stem.endswith(".failed"))
        found = [self.record(path.parent.name, path.stem) for path in paths]
        return [one for one in found if one is not None]

    def trace(self, task: str, key: str) -> Trace:
        """The trace of a training."""
        return load_small(self.stem(task, key).with_suffix(".npz"))

    def keep(self, trace: Trace, record: Mapping[str, Any]) -> None:
        """A training is done."""
        stem = self.stem(record["task"], record["key"])
        size = save_small(trace, stem.with_suffix(".npz"))
        where = stem.with_suffix(".npz").relative_to(self.folder).as_posix()
        write_result(stem.with_suffix(".json"), {**record, "trace": where, "trace_bytes": size})
        stem.with_suffix(".failed.json").unlink(missing_ok=True)

    def failed(self, task: str, key: str, reason: str) -> None:
        """A training failed; it is tried again the next time."""
        stem = self.stem(task, key)
        write_result(stem.with_suffix(".failed.json"), {"reason": reason, **provenance()})

    def failure(self, task: str, key: str) -> str | None:
        """Why a training failed the last time."""
        found = _read(self.stem(task, key).with_suffix(".failed.json"))
        return None if found is None else str(found["reason"])

    def write(self, suite: Suite, status: Callable[[Cell], tuple[str | None, str | None]]) -> list[dict[str, Any]]:
        """Write ``suite.json`` and return its cells.

        Args:
            suite: its cells are listed in their order.
            status: cell -> (key of its training, why it is not run); no reason where it is done.
        """
        cells = [self._cell(cell, *status(cell)) for cell in suite.cells()]
        seeds = sorted({cell["seed"] for cell in cells})
        write_result(self.folder / "suite.json", {"suite": suite.to_json(), "cells": cells, **provenance(seeds=seeds)})
        return cells

    def read(self) -> tuple[Suite, list[dict[str, Any]]]:
        """The suite and its cells, as last written.

        Raises:
            RunError: there is no such file, or it is damaged.
        """
        path = self.folder / "suite.json"
        found = _read(path)
        if found is None:
            raise RunError(f"{path} is missing: run the suite first")
        return Suite.from_json(found["suite"]), found["cells"]

    def _cell(self, cell: Cell, key: str | None, reason: str | None) -> dict[str, Any]:
        record = self.record(cell.task, key) if key is not None and reason is None else None
        return {
            "task": cell.task,
            "recipe": cell.recipe,
            "seed": cell.seed,
            "tier": cell.tier,
            "status": NOT_RUN if record is None else DONE,
            "reason": reason,
            "key": key,
            "trained_by": None if record is None else record["recipe"],
            **{name: None if record is None else record[name] for name in _FROM_RECORD},
        }


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}): remove it and run the suite again") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: remove it and run the suite again")
    return value
