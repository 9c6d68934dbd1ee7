"""Every exit method side by side: tasks x recipes x seeds, cell by cell, resumable, in a box of time.

    python benchmarks/compare.py --model MINILM --data DATA [--work runs/suite] [--minutes 60]
    python benchmarks/compare.py --tables       (tables and plots from the traces that were kept; trains nothing)
    python benchmarks/compare.py --check        (docs/comparison.md is what benchmarks/results/suite/tables.json says)

What is run stands in benchmarks/suite.toml; DATA holds a folder a task. Interrupted in whatever way, the same command
goes on where it stopped. Traces and records go to benchmarks/results/suite/, tables to docs/comparison.md, plots to
docs/comparison/. Prints for people, and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from offramp.bench.provenance import write_result
from offramp.bench.suite import load_suite
from offramp.bench.suite_page import as_markdown, replace_block
from offramp.bench.suite_plots import figures, plot_tier
from offramp.bench.suite_results import Results
from offramp.bench.suite_run import Places, run_suite
from offramp.bench.suite_tables import compute
from offramp.cli.common import quiet_transformers
from offramp.cli.hub import check_there
from offramp.cli.suite import list_cells
from offramp.errors import OfframpError
from offramp.traces.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "suite"
PAGE = ROOT / "docs" / "comparison.md"
PICTURES = ROOT / "docs" / "comparison"
COMMAND = "python benchmarks/compare.py --tables"


def main() -> None:
    try:
        run(_parser().parse_args())
    except OfframpError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        sys.exit(2)


def run(options: argparse.Namespace) -> None:
    """Check, write tables, or train what is missing."""
    if options.check:
        sys.exit(0 if page_now() == PAGE.read_text(encoding="utf-8") else f"{PAGE.name} is stale: run with --tables")
    if options.tables:
        write_tables()
        return
    if options.data is None:
        sys.exit("give --data, the folder that holds a folder for each task; or --tables")
    quiet_transformers()
    if options.model is not None:
        check_there(options.model)
    places = Places(
        data=options.data, model=options.model, work=options.work, results=RESULTS, keep_runs=options.keep_runs
    )
    cells = run_suite(
        load_suite(options.suite),
        places,
        minutes=options.minutes,
        tasks=options.tasks,
        recipes=options.recipes,
        say=lambda text: print(text, flush=True),
    )
    print(list_cells(cells))
    print(json.dumps({"benchmark": "suite", "cells": len(cells), "done": _done(cells)}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=ROOT / "benchmarks" / "suite.toml")
    parser.add_argument("--data", type=Path, help="folder that holds a folder for each task")
    parser.add_argument("--model", help="folder of the encoder; by default the name in the suite")
    parser.add_argument("--work", type=Path, default=Path("runs/suite"), help="checkpoints of the cells under way")
    parser.add_argument("--minutes", type=float, help="begin nothing that would not end in time; stop then")
    parser.add_argument("--tasks", nargs="+", default=(), metavar="TASK", help="only these")
    parser.add_argument("--recipes", nargs="+", default=(), metavar="RECIPE", help="only these")
    parser.add_argument("--keep-runs", action="store_true", help="leave the trained models in the work folder")
    parser.add_argument("--tables", action="store_true", help="only write tables and plots from what was kept")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page is out of date")
    return parser


def write_tables() -> None:
    """Compute all numbers from the traces; write them, the plots and the page."""
    results = Results(RESULTS)
    suite, cells = results.read()
    numbers = compute(suite, cells, results, say=lambda text: print(text, flush=True))
    write_result(RESULTS / "tables.json", numbers)
    for name, tier in figures(numbers).items():
        write_atomically(PICTURES / name, plot_tier(numbers, tier))
    write_atomically(PAGE, page_now().encode())
    print(json.dumps({"benchmark": "suite", "cells": len(cells), "done": _done(cells)}))


def page_now() -> str:
    """The page as the stored numbers say it should be."""
    path = RESULTS / "tables.json"
    numbers: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    text = "Not run yet." if numbers is None else as_markdown(numbers, pictures=PICTURES.name, command=COMMAND)
    return replace_block(PAGE.read_text(encoding="utf-8"), "comparison", text)


def _done(cells: list[dict[str, Any]]) -> int:
    return sum(cell["status"] == "done" for cell in cells)


if __name__ == "__main__":
    main()
