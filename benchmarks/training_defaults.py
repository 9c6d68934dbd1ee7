"""Which training defaults: one change at a time on several tasks, cell by cell, resumable.

    python benchmarks/training_defaults.py --model MINILM --data DATA --work runs/defaults [--minutes 60]

DATA holds a folder a task. A cell is a task and one change to the base set-up; finished cells are kept and skipped.
Each is judged on dev by the score of entropy exit, knobs chosen on one half and scored on the other: its area over
layer fractions, its score at 2x, and full depth. Writes benchmarks/results/training_defaults.json after every cell.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from offramp.bench.provenance import provenance, write_result
from offramp.calibration.compare import compare
from offramp.cli.common import quiet_transformers
from offramp.criteria import make
from offramp.traces.store import load_trace
from offramp.training.train import Plan, train

RESULT = Path(__file__).parent / "results" / "training_defaults.json"
TASKS = {"sst2": 2000, "banking77": 3000, "mnli10k": 2000}
"""Task -> training rows: a part, so that a cell takes a minute or two."""
BASE: dict[str, Any] = {
    "num_train_epochs": 3,
    "learning_rate": 5e-5,
    "head_learning_rate": 1e-3,
    "seed": 42,
    "load_best_model_at_end": False,  # the last checkpoint: nothing is chosen on dev
    "eval_strategy": "no",
}
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "head_learning_rate 5e-5": {"arguments": {"head_learning_rate": 5e-5}},
    "head_learning_rate 5e-4": {"arguments": {"head_learning_rate": 5e-4}},
    "head_learning_rate 2e-3": {"arguments": {"head_learning_rate": 2e-3}},
    "learning_rate 2e-5": {"arguments": {"learning_rate": 2e-5}},
    "learning_rate 1e-4": {"arguments": {"learning_rate": 1e-4}},
    "5 epochs": {"arguments": {"num_train_epochs": 5}},
    "6 epochs": {"arguments": {"num_train_epochs": 6}},
    "20 epochs of the exits alone": {"exit_epochs": 20.0},
    "5 epochs of the exits alone": {"exit_epochs": 5.0},
    "pooling cls": {"pooling": "cls"},
    "pooling attention": {"pooling": "attention"},
    "pooling attention, 20 epochs of the exits alone": {"pooling": "attention", "exit_epochs": 20.0},
    "last exit pooled": {"last_exit": "head"},
    "objective by depth": {"settings": {"objective.by": "depth"}},
}


def run_cell(task: str, change: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train one cell and judge it."""
    out = options.work / "cell"
    shutil.rmtree(out, ignore_errors=True)
    plan = Plan(
        model=options.model,
        data=str(Path(options.data) / task),
        out=out,
        max_train_samples=TASKS[task],
        max_length=128,
        settings=change.get("settings", {}),
        pooling=change.get("pooling"),
        last_exit=change.get("last_exit", "model"),
        exit_epochs=change.get("exit_epochs", 0.0),
        arguments={**BASE, **change.get("arguments", {})},
    )
    train(plan)
    trace = load_trace(out / "traces" / "dev")
    result = compare(trace, rules={"entropy": [make("entropy")]}, targets=(2.0, 3.0), splits=20, resamples=200)
    rows = {row["name"]: row for row in result["rows"]}
    entropy = rows["entropy"]
    return {
        "n": result["n"],
        "full_depth": result["full_depth"]["score"],
        "exits": [one["score"] for one in result["exits"]],
        "area": entropy["area"],
        "at_2x": None if entropy["cells"][0] is None else entropy["cells"][0]["score"],
        "at_3x": None if entropy["cells"][1] is None else entropy["cells"][1]["score"],
        "seconds": json.loads((out / "training.json").read_text())["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no cell after so many minutes")
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), choices=list(CHANGES), metavar="CHANGE")
    options = parser.parse_args()
    quiet_transformers()
    deadline = time.monotonic() + 60 * options.minutes
    cells: list[dict[str, Any]] = json.loads(RESULT.read_text())["cells"] if RESULT.is_file() else []
    done = {(cell["task"], cell["change"]) for cell in cells}
    for name in options.changes:
        change = CHANGES[name]
        for task in TASKS:
            if (task, name) in done or time.monotonic() > deadline:
                continue
            cell = {"task": task, "change": name, "train_rows": TASKS[task], **run_cell(task, change, options)}
            cells.append(cell)
            write_result(RESULT, {"base": BASE, "cells": cells, **provenance(seeds=[BASE["seed"]])})
            print(json.dumps(cell), flush=True)
    report(cells)


def report(cells: list[dict[str, Any]]) -> None:
    """Differences to the base set-up, in points."""
    base = {cell["task"]: cell for cell in cells if cell["change"] == "base"}
    for cell in cells:
        if cell["task"] not in base:
            continue
        gaps = {
            key: f"{100 * (cell[key] - base[cell['task']][key]):+.1f}"
            for key in ("area", "at_2x", "full_depth")
            if cell[key] is not None and base[cell["task"]][key] is not None
        }
        print(f"{cell['task']:<10} {cell['change']:<24} {gaps}")


if __name__ == "__main__":
    main()
