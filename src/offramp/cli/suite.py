"""``offramp compare --suite``: many recipes on many tasks; see ``offramp.bench.suite``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from offramp.errors import DataError, KnobError

__all__ = ["compare_suite", "list_cells", "write_tables"]


def compare_suite(
    suite: Path,
    *,
    data: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    work: Path | None = None,
    minutes: float | None = None,
    tasks: Sequence[str] = (),
    recipes: Sequence[str] = (),
    keep_runs: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Run a suite and write its tables and plots; or, of a folder of results, only the tables and plots.

    Args:
        suite: a TOML file, or the folder of results that one left.
        data: root of the tasks' folders; a file of a suite needs it.
        model: name or folder of an encoder, instead of the one in the file.
        out: folder of results, by default ``runs/suite-NAME``; of a folder of results, where the tables go.
        work: where checkpoints are; by default ``work`` beside the results' traces.
        minutes: a box of time; see ``run_suite``.
        tasks: only these.
        recipes: only these.
        keep_runs: leave the trained models in the work folder.

    Returns:
        The numbers of the tables with the list of cells, and the folder of results.

    Raises:
        KnobError: no data for a file of a suite.
        DataError: nothing is done and no cell can be.
        RunError: the encoder cannot be had.
        OfframpError: as ``load_suite``, ``run_suite`` and ``compute``.
    """
    if suite.is_dir():
        return write_tables(suite, pages=out or suite), out or suite
    from offramp.bench.suite import Cell, load_suite, select
    from offramp.bench.suite_run import Places, run_suite
    from offramp.cli.common import quiet_transformers
    from offramp.cli.hub import check_there

    loaded = load_suite(suite)
    if data is None:
        raise KnobError(f"--suite {suite} needs --data: the folder that holds a folder for each of its tasks")
    if model is not None:
        check_there(model)
        loaded = replace(loaded, encoder=model)
    folder = out or Path("runs") / f"suite-{loaded.name}"
    places = Places(data=Path(data), results=folder, work=work or folder / "work", keep_runs=keep_runs)
    quiet_transformers()
    _say(f"Data in {data}, results in {folder}")
    cells = run_suite(loaded, places, minutes=minutes, tasks=tasks, recipes=recipes, say=_say)
    _say(list_cells(cells))
    wanted = set(select(loaded.cells(), tasks=tasks, recipes=recipes))
    asked = [cell for cell in cells if Cell(cell["task"], cell["recipe"], cell["seed"]) in wanted]
    _check_that_some_can_run(asked, folder)
    return write_tables(folder, pages=folder), folder


def _check_that_some_can_run(cells: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Complain where nothing is done, and nothing is left that only wants time."""
    from offramp.bench.suite_results import BEGUN, DONE, NOT_YET

    if any(cell["status"] == DONE or cell["reason"] in (BEGUN, NOT_YET) for cell in cells):
        return
    cell = cells[0]
    raise DataError(
        f"no cell of the suite can be run, {cell['task']} / {cell['recipe']} because {cell['reason']}; "
        f"why the others cannot stands in {folder}/suite.json"
    )


def write_tables(results: Path, *, pages: Path) -> dict[str, Any]:
    """Compute the tables of a folder of results: ``tables.json``, ``comparison.md`` and plots in ``pages``.

    Returns:
        The numbers, and ``cells`` as ``suite.json`` has them.
    """
    from offramp.bench.provenance import write_result
    from offramp.bench.suite_page import as_markdown
    from offramp.bench.suite_plots import figures, plot_tier
    from offramp.bench.suite_results import Results
    from offramp.bench.suite_tables import compute
    from offramp.traces.files import write_atomically

    kept = Results(results)
    suite, cells = kept.read()
    numbers = compute(suite, cells, kept, say=_say)
    write_result(pages / "tables.json", numbers)
    for name, tier in figures(numbers).items():
        write_atomically(pages / name, plot_tier(numbers, tier))
    text = f"# {suite.name}\n\n{as_markdown(numbers, pictures='.')}\n"
    write_atomically(pages / "comparison.md", text.encode())
    return {**numbers, "cells": cells}


def list_cells(cells: Sequence[Mapping[str, Any]]) -> str:
    """How many cells of each task are done, and why the others are not run."""
    lines = []
    for task in dict.fromkeys(cell["task"] for cell in cells):
        mine = [cell for cell in cells if cell["task"] == task]
        reasons = Counter(cell["reason"] for cell in mine if cell["reason"])
        lines.append(f"{task}: {sum(cell['status'] == 'done' for cell in mine)} of {len(mine)} cells done")
        lines += [f"  {count} not run: {reason}" for reason, count in reasons.items()]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
