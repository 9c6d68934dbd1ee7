"""Learned stopping against every other criterion, on the traces that the suite kept.

    python benchmarks/learned_stopping.py [--trainings joint de3bert]

For each task and training (joint is every criterion's common ground; de3bert has distances besides): paired gaps of
learned stopping to every other criterion at 1.5x, 2x and 3x layer speed-up. Settings are learned, and knobs chosen, on
one half of dev and scored on the other by the task's metric, mean over ten halvings and over seeds; standard errors
from a paired bootstrap over dev rows, which all seeds share. A published criterion is *significantly better* on a task
where Holm's correction over all of them and the layer speed-ups of that task leaves p below .05 (two-sided, normal).
Means over tasks take tasks as independent. Writes benchmarks/results/learned_stopping.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bench.provenance import provenance, write_result
from offramp.bench.significance import LEVEL, holm, mean_of_independent, two_sided
from offramp.bench.suite_results import DONE, Results
from offramp.calibration.compare import compare, usual_rules
from offramp.errors import DataError
from offramp.traces.trace import Trace

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "learned_stopping.json"
OURS = "learned_stopping"
TARGETS = (1.5, 2.0, 3.0)
SPLITS, RESAMPLES = 10, 1000
Floats = NDArray[np.float64]
UNPUBLISHED = ("static", "nearest_prototype", "edr (lam 1)")
"""No rule at all, one of ours, a setting that row ``edr`` has among its own: they would only thin the correction."""


Gap = tuple[float, Floats]
"""What ours is above a criterion, and bootstrap samples [R] of that."""


def gaps(trace: Trace, metric: str | None) -> dict[str, list[Gap | None]] | None:
    """Criterion -> gap at each target (None: not reached). None: ours cannot be learned."""
    rules = usual_rules(trace)
    if OURS not in rules:
        return None
    chosen: dict[str, Any] = {"targets": TARGETS, "splits": SPLITS, "resamples": RESAMPLES, "metric": metric}
    try:
        result = compare(trace, rules=rules, baseline=OURS, keep_samples=True, **chosen)
    except DataError as error:
        print(f"left out: {error}")
        return None
    return {row["name"]: [_gap(cell) for cell in row["cells"]] for row in result["rows"] if row["name"] != OURS}


def _gap(cell: Mapping[str, Any] | None) -> Gap | None:
    if cell is None or (gap := cell["against_baseline"]) is None:
        return None
    return -gap["mean"], -gap["samples"]


def over_seeds(found: Sequence[dict[str, list[Gap | None]]]) -> dict[str, list[list[float] | None]]:
    """Criterion -> for each target the mean over seeds and its standard error over dev rows."""
    names = [name for name in found[0] if all(name in one for one in found)]
    return {name: [_mean([one[name][place] for one in found]) for place in range(len(TARGETS))] for name in names}


def _mean(values: Sequence[Gap | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    samples = np.mean([drawn for _, drawn in known], axis=0)  # the same rows were drawn for every seed
    return [float(np.mean([mean for mean, _ in known])), float(samples.std())]


def verdict(found: Mapping[str, Sequence[list[float] | None]]) -> list[dict[str, Any]]:
    """Gaps of a task to published criteria that are significant before correction, with p before and after."""
    distinct: dict[str, str] = {}
    for name, row in found.items():  # with two classes confidence orders texts as entropy does: one test, not two
        if name not in UNPUBLISHED:
            distinct.setdefault(str([gap and [round(value, 9) for value in gap] for gap in row]), name)
    rows = {name: found[name] for name in distinct.values()}
    told = {(name, t): gap for name, row in rows.items() for t, gap in zip(TARGETS, row, strict=True) if gap}
    p = {key: two_sided(gap, error) for key, (gap, error) in told.items()}
    return [
        {"criterion": name, "target": target, "gap": told[name, target][0], "p": p[name, target], "corrected": value}
        for (name, target), value in holm(p).items()
        if p[name, target] < LEVEL
    ]


def over_tasks(tasks: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float] | None]]:
    """Criterion -> mean over tasks and its standard error, of those that every task has."""
    names = [name for name in tasks[0]["gaps"] if all(name in task["gaps"] for task in tasks)]
    found: dict[str, list[list[float] | None]] = {}
    for name in names:
        found[name] = []
        for place in range(len(TARGETS)):
            known = [task["gaps"][name][place] for task in tasks]
            if any(gap is None for gap in known):
                found[name].append(None)
                continue
            found[name].append(list(mean_of_independent(*zip(*known, strict=True))))
    return found


def best_published(mean: Mapping[str, Sequence[list[float] | None]]) -> list[dict[str, Any]]:
    """For each target the published criterion that ours is least above, on average over tasks."""
    found = []
    for place, target in enumerate(TARGETS):
        known = {name: gap for name, row in mean.items() if name not in UNPUBLISHED and (gap := row[place]) is not None}
        name = min(known, key=lambda name: known[name][0])
        found.append({"target": target, "criterion": name, "gap": known[name]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", nargs="+", default=("joint", "de3bert"), metavar="RECIPE")
    options = parser.parse_args()
    results = Results(ROOT / "benchmarks" / "results" / "suite")
    suite, cells = results.read()
    metrics = {name: task.metric for name, task in suite.tasks.items()}
    trainings = []
    for recipe in options.trainings:
        tasks = _tasks(
            results, metrics, [cell for cell in cells if cell["recipe"] == recipe and cell["status"] == DONE]
        )
        if tasks:
            mean = over_tasks(tasks)
            trainings.append({"recipe": recipe, "tasks": tasks, "mean": mean, "best": best_published(mean)})
    seeds = sorted({seed for one in trainings for task in one["tasks"] for seed in task["seeds"]})
    method = {"targets": TARGETS, "splits": SPLITS, "resamples": RESAMPLES, "level": LEVEL}
    write_result(RESULT, {"method": method, "trainings": trainings, **provenance(seeds=seeds)})
    for one in trainings:
        print(one["recipe"], json.dumps(one["mean"]))
    print(json.dumps({"benchmark": "learned_stopping", "trainings": len(trainings)}))


def _tasks(
    results: Results, metrics: Mapping[str, str | None], cells: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    found = []
    for task in dict.fromkeys(cell["task"] for cell in cells):
        mine = {cell["seed"]: cell for cell in cells if cell["task"] == task}
        told = {seed: gaps(results.trace(task, cell["key"]), metrics[task]) for seed, cell in mine.items()}
        known = {seed: one for seed, one in told.items() if one is not None}
        if not known:
            continue
        means = over_seeds(list(known.values()))
        one = next(iter(mine.values()))
        found.append(
            {
                "task": task,
                "n": one["rows"]["dev"],
                "metric": one["metric"],
                "seeds": sorted(known),
                "gaps": means,
                "significant": verdict(means),
            }
        )
        print(f"{task}: {json.dumps(found[-1]['significant'])}", flush=True)
    return found


if __name__ == "__main__":
    main()
