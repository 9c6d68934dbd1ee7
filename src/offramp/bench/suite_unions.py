"""Rows of a suite averaged over tasks, and which of their gaps stand a correction for how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offramp.bench.significance import holm, mean_of_independent, normal_interval, standard_error, two_sided

__all__ = ["over_tasks"]

Json = dict[str, Any]


def over_tasks(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[Json]:
    """Rows that all of some tasks have, averaged over these tasks, which are taken as independent.

    Args:
        tables: the rows of each task, as ``suite_tables`` makes them.

    Returns:
        Rows with name, kind, criterion, full_depth, area and cells. The intervals are over dev rows of these very
        tasks; they say nothing of other tasks. A gap has its p after Holm's correction over all gaps here as
        ``corrected``, but where it is 0 by construction.
    """
    by_name = [{row["name"]: row for row in rows} for rows in tables]
    rows = [_mean_row([table[name] for table in by_name]) for name in by_name[0] if all(name in t for t in by_name)]
    for gap, p in _corrected([cell["gap"] for row in rows for cell in row["cells"] if cell]):
        gap["corrected"] = p
    return rows


def _mean_row(rows: Sequence[Mapping[str, Any]]) -> Json:
    """One row from the same row of several tasks."""
    cells = [_mean_cell(same) for same in zip(*(row["cells"] for row in rows), strict=True)]
    means = {what: _mean_number([row[what] for row in rows]) for what in ("full_depth", "area")}
    return {**{what: rows[0][what] for what in ("name", "kind", "criterion")}, **means, "cells": cells}


def _mean_cell(cells: Sequence[Mapping[str, Any] | None]) -> Json | None:
    """None where a task does not reach the target: the mean of the others would be of other tasks."""
    reached = [cell for cell in cells if cell is not None]
    if len(reached) < len(cells):
        return None
    means = {what: _mean_number([cell[what] for cell in reached]) for what in ("score", "gap")}
    return {**means, "layer_speedup": float(np.mean([cell["layer_speedup"] for cell in reached]))}


def _mean_number(numbers: Sequence[Mapping[str, Any] | None]) -> Json | None:
    """Mean of numbers of different tasks; None where one lacks."""
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        return None
    errors = [standard_error(number["interval"]) for number in known]
    mean, error = mean_of_independent([number["mean"] for number in known], errors)
    return {"mean": mean, "se": None, "interval": list(normal_interval(mean, error))}


def _corrected(gaps: Sequence[Json | None]) -> list[tuple[Json, float]]:
    """Gaps with Holm's p. One that is 0 by construction (entropy against itself) is no test."""
    tested = [gap for gap in gaps if gap is not None and gap["interval"] != [0, 0]]
    p = holm({place: two_sided(gap["mean"], standard_error(gap["interval"])) for place, gap in enumerate(tested)})
    return [(gap, p[place]) for place, gap in enumerate(tested)]
