"""The numbers of a suite's tables and plots, from the traces it kept: no model, no training, some minutes.

Every knob is chosen on one half of dev and scored on the other by ``calibration.compare``. ``bench.suite_page`` writes
them out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bench.provenance import provenance
from offramp.bench.suite import Suite
from offramp.bench.suite_results import DONE, Results
from offramp.bench.suite_unions import over_tasks
from offramp.calibration.compare import Rules, compare
from offramp.calibration.fitting import Fitted
from offramp.calibration.sweep import LAMBDAS
from offramp.criteria import Criterion, available, make
from offramp.errors import DataError
from offramp.traces.curves import mean_score, percentiles
from offramp.traces.trace import Trace
from offramp.types import ProblemType

__all__ = ["compute"]

Json = dict[str, Any]


def compute(
    suite: Suite, cells: Sequence[Mapping[str, Any]], results: Results, *, say: Callable[[str], None] = lambda _: None
) -> Json:
    """The numbers of every table.

    Args:
        suite: which ran.
        cells: as ``Results.read`` gives them.
        results: where the traces are.
        say: told of each trace that is compared.

    Returns:
        ``{"tasks": [...], ...}`` with what ``provenance`` says; a task is::

            task, metric, n (dev rows), train_rows, problem_type, num_layers, against (what gaps are taken against),
            rows      {name, kind, recipe (whose model), criterion, seeds, full_depth, area, cells, curve}
                kind  recipe | entropy (on the same model) | static | layers (separately fine-tuned) | plain | oracle
                a number is {mean, se (over seeds; None with one), interval (95 %, of that mean: over dev rows)}
                cells one for each target: None where not reached (kind layers: not trained), or
                      {score, layer_speedup, gap}
                curve points {target, layer_speedup, score}
            exits     static exits of the baseline: {layer, layer_speedup, score}
            not_run   {recipe, seeds, reason}

        and ``unions`` has {tasks, seeds, against, rows} for each union whose tasks ran alike, a row being {name, kind,
        criterion, full_depth, area, cells}, of the rows that all of its tasks have: means over tasks, and 95 %
        intervals that take tasks as independent. ``corrected`` in a cell's gap is its p after Holm's correction over
        the table.

    Raises:
        RunError: a trace is missing or damaged.
        DataError: traces of a task are of different dev rows.
        KnobError: a recipe that ran is not there any more.
    """
    tasks, compared = [], {}
    for task in suite.tasks:
        mine = [cell for cell in cells if cell["task"] == task]
        if mine:
            compared[task] = _compared(suite, task, [cell for cell in mine if cell["status"] == DONE], results, say)
            tasks.append(_task(suite, task, mine, compared[task]))
    done = [cell for cell in cells if cell["status"] == DONE]
    return {
        "suite": suite.name,
        "encoder": suite.encoder,
        "encoder_hash": sorted({cell["encoder_hash"] for cell in done}),
        "targets": list(suite.targets),
        "splits": suite.splits,
        "resamples": suite.resamples,
        "baseline": suite.baseline,
        "tiers": {tier.name: list(tier.recipes) for tier in suite.tiers},
        "trained_at": sorted({cell["commit"] or "no commit" for cell in done}),
        "trained_with": _versions(done),
        "tasks": _rounded(tasks),
        "unions": _rounded(_unions(suite, compared)),
        **provenance(seeds=sorted({cell["seed"] for cell in done})),
    }


def _rounded(value: Any) -> Any:
    """Floats to eight digits after the point: the last ones differ from machine to machine, and no table shows them."""
    if isinstance(value, float):
        return round(value, 8)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _versions(cells: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    every = [cell["versions"] for cell in cells]
    return {name: sorted({one[name] for one in every if name in one}) for name in ("torch", "transformers", "numpy")}


def _task(suite: Suite, task: str, cells: Sequence[Mapping[str, Any]], compared: Sequence[Json]) -> Json:
    done = [cell for cell in cells if cell["status"] == DONE]
    whole = _whole(suite, compared)
    return {
        "task": task,
        "problem_type": suite.tasks[task].problem_type,
        "metric": done[0]["metric"] if done else suite.tasks[task].metric,
        "n": done[0]["rows"]["dev"] if done else None,
        "train_rows": done[0]["rows"]["train"] if done else None,
        "num_layers": whole[0]["num_layers"] if whole else None,
        "against": _against(whole),
        "rows": _rows(suite, task, compared),
        "exits": _exits([one for one in whole if one["entry"] == suite.baseline]),
        "not_run": _not_run(cells),
    }


def _whole(suite: Suite, compared: Sequence[Json]) -> list[Json]:
    """Results on the whole encoder."""
    return [one for one in compared if suite.entries[one["entry"]].num_layers is None]


def _against(compared: Sequence[Json]) -> str | None:
    """What gaps are taken against; a model without early exits has nothing of the kind."""
    return next((one["baseline"] for one in compared if one["baseline"] is not None), None)


def _rows(suite: Suite, task: str, compared: Sequence[Json]) -> list[Json]:
    whole = _whole(suite, compared)
    rows = [*_recipe_rows(suite, whole), *_entropy_rows(suite, whole), *_baseline_rows(suite, whole)]
    return rows + (_layer_rows(suite, task, compared, whole) if whole else [])


def _not_run(cells: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Recipe and reason once, with the seeds it holds for."""
    found: dict[tuple[str, str], list[int]] = {}
    for cell in cells:
        if cell["status"] != DONE:
            found.setdefault((cell["recipe"], cell["reason"] or "not run yet"), []).append(cell["seed"])
    return [{"recipe": recipe, "seeds": seeds, "reason": reason} for (recipe, reason), seeds in found.items()]


# From traces to results


def _compared(
    suite: Suite, task: str, done: Sequence[Mapping[str, Any]], results: Results, say: Callable[[str], None]
) -> list[Json]:
    """One result for each cell that is done; a trace is compared once, under the rules of all who share it."""
    found: list[Json] = []
    first_trace: Trace | None = None
    kind = suite.tasks[task].problem_type
    rules = {entry: suite.entries[entry].rule(kind) for entry in {cell["recipe"] for cell in done}}
    for key in dict.fromkeys(cell["key"] for cell in done):
        mine = [cell for cell in done if cell["key"] == key]
        trace = results.trace(task, key)
        _check_rows(task, trace, first_trace)
        first_trace = first_trace or trace
        say(f"{task}: {', '.join(cell['recipe'] for cell in mine)}, seed {mine[0]['seed']}")
        contenders = _contenders({cell["recipe"]: rules[cell["recipe"]] for cell in mine}, trace)
        first = mine[0]["recipe"]
        result = compare(
            trace,
            rules=contenders,
            targets=suite.targets,
            splits=suite.splits,
            resamples=suite.resamples,
            metric=suite.tasks[task].metric,
            keep_samples=True,
        )
        found += [{**result, "entry": cell["recipe"], "seed": cell["seed"], "first": first} for cell in mine]
    return found


def _check_rows(task: str, trace: Trace, other: Trace | None) -> None:
    """Seeds are paired row by row: their traces must be of the same rows."""
    if other is None:
        return
    same = np.array_equal(trace.labels_known(), other.labels_known()) and np.array_equal(trace.lengths, other.lengths)
    if not same:
        raise DataError(
            f"traces of {task} are of different dev rows, and cannot be held against each other: run it anew"
        )


def _contenders(rules: Mapping[str, Criterion | Fitted], trace: Trace) -> dict[str, Rules]:
    """Name of a row -> the criterion with every setting that is tried. A model without early exits has none."""
    if trace.num_exits == 1:
        return {}
    found: dict[str, Rules] = {}
    for name in ("entropy", "depth"):
        if trace.problem_type in available()[name].serves:
            found[name] = [make(name, problem_type=trace.problem_type)]
    return found | {f"recipe {entry}": _tried(rule) for entry, rule in rules.items()}


def _tried(rule: Criterion | Fitted) -> Rules:
    """The criterion, with the weights of distance against entropy that ``compare`` tries, where it has one."""
    if isinstance(rule, Fitted):
        return rule
    settings = asdict(rule)
    if "lam" not in settings:
        return [rule]
    return [make(rule.name, **settings | {"lam": lam}) for lam in dict.fromkeys([settings["lam"], *LAMBDAS])]


# From results to rows


def _recipe_rows(suite: Suite, compared: Sequence[Json]) -> list[Json]:
    rows = []
    for entry in _in_order(suite, compared):
        mine = [one for one in compared if one["entry"] == entry]
        first = mine[0]
        if len(first["layers"]) == 1:
            rows.append(_row(entry, "plain", entry, "full depth", mine, None))
            continue
        criterion = suite.entries[entry].rule(first["problem_type"])
        name = criterion.criterion.name if isinstance(criterion, Fitted) else criterion.name
        rows.append(_row(entry, "recipe", entry, name, mine, f"recipe {entry}"))
    return rows


def _entropy_rows(suite: Suite, compared: Sequence[Json]) -> list[Json]:
    """Entropy on every trained model, once a training; not where a recipe's row is just that."""
    rows = []
    for entry in dict.fromkeys(one["first"] for one in compared):
        mine = [one for one in compared if one["entry"] == entry and _named(one, "entropy") is not None]
        sharing = {one["entry"] for one in compared if one["first"] == entry}
        plain = [name for name in sharing if _is_plain_entropy(suite, name, mine)]
        if mine and not plain:
            rows.append(_row(f"entropy on {entry}", "entropy", entry, "entropy", mine, "entropy"))
    return rows


def _is_plain_entropy(suite: Suite, entry: str, compared: Sequence[Json]) -> bool:
    if not compared:
        return False
    kind: ProblemType = compared[0]["problem_type"]
    return suite.entries[entry].rule(kind) == make("entropy", problem_type=kind)


def _baseline_rows(suite: Suite, compared: Sequence[Json]) -> list[Json]:
    """Static exits and the oracle of the baseline's model."""
    mine = [one for one in compared if one["entry"] == suite.baseline]
    if not mine:
        return []
    rows = [_row(f"static exit of {suite.baseline}", "static", suite.baseline, "depth", mine, "depth")]
    oracles = [one["oracle"] for one in mine]
    if all(oracle is not None for oracle in oracles):
        row = _row(f"oracle of {suite.baseline}", "oracle", suite.baseline, "oracle", mine, None)
        score = _number([oracle["score"] for oracle in oracles], [oracle["samples"] for oracle in oracles])
        speed = float(np.mean([oracle["layer_speedup"] for oracle in oracles]))
        rows.append(row | {"curve": [{"target": speed, "layer_speedup": speed, "score": score}]})
    return rows


def _layer_rows(suite: Suite, task: str, compared: Sequence[Json], whole: Sequence[Json]) -> list[Json]:
    """Encoders of k layers, each fine-tuned by itself: at a target the deepest that is fast enough.

    Nothing at a target whose model was not trained yet: a shallower one says something else.
    """
    depth = whole[0]["num_layers"]
    small = [one for one in compared if suite.entries[one["entry"]].num_layers is not None]
    plain = [one for one in whole if len(one["layers"]) == 1]
    by_layers: dict[int, list[Json]] = {}
    for one in [*small, *plain]:
        by_layers.setdefault(one["num_layers"], []).append(one)
    if not small:
        return []
    entries = [suite.entries[cell.recipe] for cell in suite.cells() if cell.task == task]
    planned = {depth} | {entry.num_layers for entry in entries if entry.num_layers is not None}
    scores = {k: _full_depth(ones) for k, ones in sorted(by_layers.items())}
    cells: list[Json | None] = []
    for target in suite.targets:
        best = max((k for k in planned if depth / k >= target - 1e-9), default=0)
        cells.append({"score": scores[best], "layer_speedup": depth / best, "gap": None} if best in scores else None)
    curve = [{"target": depth / k, "layer_speedup": depth / k, "score": score} for k, score in scores.items()]
    row = _row("separately fine-tuned k layers", "layers", None, "full depth of k layers", small, None)
    deepest = scores.get(depth)
    area = _layer_area(scores, depth) if planned <= scores.keys() and 1 in scores else None
    return [row | {"cells": cells, "curve": curve, "full_depth": deepest, "area": area}]


def _layer_area(scores: Mapping[int, Json], depth: int) -> Json:
    """Mean score over layer fractions 1/L..1, and over the ends of the intervals."""
    cost = np.array([k / depth for k in scores])

    def mean(values: Sequence[float]) -> float:
        return mean_score(cost, np.array(values), ((float(cost[0]), values[0]), (1.0, values[-1])))

    sides = [mean([one["interval"][side] for one in scores.values()]) for side in (0, 1)]
    return {"mean": mean([one["mean"] for one in scores.values()]), "se": None, "interval": sides}


def _row(
    name: str, kind: str, recipe: str | None, criterion: str, results: Sequence[Json], contender: str | None
) -> Json:
    """A row over seeds; without a contender, only its full depth."""
    row: Json = {
        "name": name,
        "kind": kind,
        "recipe": recipe,
        "criterion": criterion,
        "seeds": sorted({one["seed"] for one in results}),
        "full_depth": _full_depth(results),
        "area": None,
        "cells": [None] * len(results[0]["targets"]),
        "curve": [],
    }
    if contender is None:
        return row
    found = [one for result in results if (one := _named(result, contender)) is not None]
    row["area"] = _number([one["area"] for one in found], [one["area_samples"] for one in found])
    row["cells"] = [_cell([one["cells"][place] for one in found]) for place in range(len(row["cells"]))]
    row["curve"] = _curve([one["curve"] for one in found])
    return row


def _cell(cells: Sequence[Json | None]) -> Json | None:
    """Mean over seeds; None where one of them does not reach the target."""
    reached = [cell for cell in cells if cell is not None]
    if len(reached) < len(cells) or not cells:
        return None
    gaps = [cell["against_baseline"] for cell in reached]
    known = all(gap is not None for gap in gaps)
    return {
        "score": _number([cell["score"] for cell in reached], [cell["samples"] for cell in reached]),
        "layer_speedup": float(np.mean([cell["layer_speedup"] for cell in reached])),
        "gap": _number([gap["mean"] for gap in gaps], [gap["samples"] for gap in gaps]) if known else None,
    }


def _curve(curves: Sequence[Sequence[Json]]) -> list[Json]:
    """Points at the targets that every seed reaches."""
    points: dict[float, list[Json]] = {}
    for curve in curves:
        for point in curve:
            points.setdefault(point["target"], []).append(point)
    return [
        {
            "target": target,
            "layer_speedup": float(np.mean([point["layer_speedup"] for point in same])),
            "score": _number([point["score"] for point in same], [point["samples"] for point in same]),
        }
        for target, same in sorted(points.items())
        if len(same) == len(curves)
    ]


def _exits(results: Sequence[Json]) -> list[Json]:
    if not results:
        return []
    places = range(len(results[0]["exits"]))
    every = [[result["exits"][place] for result in results] for place in places]
    return [
        {
            "layer": same[0]["layer"],
            "layer_speedup": same[0]["layer_speedup"],
            "score": _number([one["score"] for one in same], [one["samples"] for one in same]),
        }
        for same in every
    ]


def _full_depth(results: Sequence[Json]) -> Json:
    full = [result["full_depth"] for result in results]
    return _number([one["score"] for one in full], [one["samples"] for one in full])


def _number(values: Sequence[float], samples: Sequence[NDArray[np.float64]]) -> Json:
    """Mean over seeds, its standard error, and the interval of that mean over dev rows.

    All seeds have the same dev rows, and the bootstrap drew the same of them for each: so its samples are averaged.
    """
    se = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "se": se, "interval": list(percentiles(np.mean(samples, axis=0)))}


# Over tasks


def _unions(suite: Suite, compared: Mapping[str, Sequence[Json]]) -> list[Json]:
    """The table of each union whose tasks have something in common."""
    found = []
    for union in suite.unions:
        kept = _in_common([compared.get(task, ()) for task in union])
        if all(kept):
            tables = [_rows(suite, task, ones) for task, ones in zip(union, kept, strict=True)]
            seeds, against = sorted({one["seed"] for one in kept[0]}), _against(_whole(suite, kept[0]))
            found.append({"tasks": list(union), "seeds": seeds, "against": against, "rows": over_tasks(tables)})
    return found


def _in_common(tasks: Sequence[Sequence[Json]]) -> list[list[Json]]:
    """Of each task the results of entries that all of them have, with the seeds that all these entries have.

    Rows of other seeds would not be of the same luck.
    """
    entries = set.intersection(*({one["entry"] for one in ones} for ones in tasks))
    by_entry = [{one["seed"] for one in ones if one["entry"] == entry} for ones in tasks for entry in entries]
    seeds = set.intersection(*by_entry) if by_entry else set()
    return [[one for one in ones if one["entry"] in entries and one["seed"] in seeds] for ones in tasks]


def _named(result: Mapping[str, Any], name: str) -> Json | None:
    return next((row for row in result["rows"] if row["name"] == name), None)


def _in_order(suite: Suite, compared: Sequence[Json]) -> list[str]:
    present = {one["entry"] for one in compared}
    return [cell for cell in dict.fromkeys(cell.recipe for cell in suite.cells()) if cell in present]
