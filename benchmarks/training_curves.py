"""How dev accuracy of the exits went while training: one row a run folder.

    python benchmarks/training_curves.py RUN [RUN ...]

Reads training.json of each run folder and adds it to benchmarks/results/training_curves.json; a run of the same
arguments replaces the one that was there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from offramp.bench.provenance import provenance, write_result

RESULT = Path(__file__).parent / "results" / "training_curves.json"


def curve(run: Path) -> dict[str, Any]:
    """Evaluations of one run: phase, epoch, mean dev loss, accuracy by exit."""
    record, config = (
        json.loads((run / name).read_text(encoding="utf-8")) for name in ("training.json", "config.json")
    )  # fmt: skip
    evaluations = [entry for entry in record["history"] if "eval_exits_loss" in entry]
    exits = sorted(
        (key for key in evaluations[0] if key.startswith("eval_exit_")), key=lambda key: int(key.split("_")[2])
    )
    return {
        "data": Path(record["plan"]["data"]).name,
        "recipe": record["plan"]["recipe"],
        "start": Path(record["plan"]["model"]).name,
        "pooling": config["offramp"]["pooling"],
        "last_exit": config["offramp"]["last_exit"],
        "settings": record["plan"]["settings"],
        "arguments": record["arguments"],
        "rows": record["rows"],
        "seconds": record["seconds"],
        "versions": record["versions"],
        "evaluations": [
            {
                "phase": e.get("phase", 1), "epoch": e["epoch"], "loss": e["eval_exits_loss"],
                "exits": [e[key] for key in exits],
            }
            for e in evaluations
        ],
    }  # fmt: skip


def identity(run: dict[str, Any]) -> tuple[str, ...]:
    """What makes two runs the same."""
    # Runs from before these were kept had the mean, the model's own head, and the recipe as it is.
    built = run.get("pooling", "mean"), run.get("last_exit", "model")
    given = run.get("settings", {}), run["arguments"]
    return run["data"], run["recipe"], run.get("start", ""), *built, *(json.dumps(one, sort_keys=True) for one in given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    runs = [curve(run) for run in parser.parse_args().runs]
    before = json.loads(RESULT.read_text(encoding="utf-8"))["runs"] if RESULT.is_file() else []
    same = {identity(run) for run in runs}
    kept = [run for run in before if identity(run) not in same]
    seeds = sorted({run["arguments"]["seed"] for run in [*kept, *runs]})
    write_result(RESULT, {"runs": [*kept, *runs], **provenance(seeds=seeds)})
    for run in runs:
        last = run["evaluations"][-1]
        print(json.dumps({"recipe": run["recipe"], "learning_rate": run["arguments"]["learning_rate"], **last}))


if __name__ == "__main__":
    main()
