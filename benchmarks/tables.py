"""Write the tables in README.md and docs/ from benchmarks/results/.

    python benchmarks/tables.py [--check]

A table stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``; what is between is replaced. ``--check``
changes nothing and fails where a page is not what the results say (the tests run it). A result that is missing leaves
"Not run yet.".
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from offramp.bench.significance import LEVEL
from offramp.bench.suite_page import faster

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Result = Mapping[str, Any]


_READS = {
    "attention": "a mean over tokens, weighed by a learned query",
    "mean": "the mean over tokens",
    "cls": "the first token",
    "backbone": "what the model's own head reads",
}
"""What an exit reads, by the name of its pooling."""


def sst2(result: Result, command: str = "python benchmarks/sst2.py") -> str:
    """Criteria at layer speed-ups, and seconds, of DE3-BERT trained on SST-2."""
    comparison, plain, setup = result["comparison"], result["plain"], result["setup"]
    full = comparison["full_depth"]
    heads = " | ".join(f"{target:g}x layers or more" for target in comparison["targets"])
    lines = [
        f"DE3-BERT on SST-2 ({setup['rows']['train']:,} rows, {_phases(setup)}, {setup['encoder']}; "
        f"{comparison['n']} dev rows): learning rate {setup['learning_rate']:g}, of the heads "
        f"{setup['head_learning_rate']:g}; early exits read {_READS[setup['early_exit_pooling']]}; the last "
        "checkpoint, not the best on dev. "
        f"Full depth {_score(full)}; a plain fine-tune of the same set-up: {_plain(plain)}.",
        "",
        f"| accuracy, knobs chosen on the other half | {heads} |",
        "|---|" + "---|" * len(comparison["targets"]),
    ]
    for row in comparison["rows"]:
        cells = [
            "not reached" if cell is None else f"{_score(cell)} at {cell['layer_speedup']:.1f}x"
            for cell in row["cells"]
        ]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    clock = result["wall_clock"]
    lines += [
        "",
        f"Seconds, {clock['runtime']}, batch {clock['batch_size']}, {result['machine']['cores']} cores, median of "
        f"{clock['rounds']} interleaved "
        "rounds against full depth in the same engine (entropy, thresholds from the same dev rows; with one lane all "
        "cores compute one batch, with more each has a batch of its own):",
        "",
        "| | lanes | texts a second | accuracy | layers executed | layers weighted by tokens | wall clock | "
        "wall clock / layers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in clock["rows"]:
        low, high = row["wall_clock_fraction_range"]
        lines.append(
            f"| {row['setting']} | {row['lanes']} | {row['texts_per_second']:.0f} | {100 * row['accuracy']:.1f} | "
            f"{row['layer_fraction']:.3f} | {row['token_layer_fraction']:.3f} | "
            f"{row['wall_clock_fraction']:.3f} ({low:.3f}-{high:.3f}) | {row['efficiency']:.2f} |"
        )
    return "\n".join([*lines, "", _origin(result, command)])


def sst2_mean(result: Result) -> str:
    """The same with early exits that read the mean over tokens."""
    return sst2(result, "python benchmarks/sst2.py --pooling mean")


def _phases(setup: Result) -> str:
    """Epochs of all weights, and of the exits alone where they learned on."""
    phases = setup.get("phases", [{"trains": "all", "epochs": setup["epochs"]}])
    return ", then ".join(
        f"{phase['epochs']:.3g} epochs" + ("" if phase["trains"] == "all" else " of the exits alone")
        for phase in phases
    )  # fmt: skip


def training_defaults(result: Result) -> str:
    """Points won or lost against the base set-up, by change and task."""
    cells = result["cells"]
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    base = {cell["task"]: cell for cell in cells if cell["change"] == "base"}
    lines = [
        "| change to the base set-up | " + " | ".join(f"{task} (n={base[task]['n']})" for task in tasks) + " |",
        "|---|" + "---|" * len(tasks),
        "| base: area / at 2x / full depth | "
        + " | ".join(" / ".join(_points(base[task][key]) for key in KEYS) for task in tasks)
        + " |",
    ]
    for change in dict.fromkeys(cell["change"] for cell in cells):
        if change == "base":
            continue
        found = {cell["task"]: cell for cell in cells if cell["change"] == change}
        row = [
            " / ".join(_gap(found[task][key], base[task][key]) for key in KEYS) if task in found else "not run"
            for task in tasks
        ]
        lines.append(f"| {change} | {' | '.join(row)} |")
    return "\n".join([*lines, "", _origin(result, "python benchmarks/training_defaults.py")])


_SEED = 42
"""Of trainings, unless a row says otherwise."""


def training_curves(result: Result) -> str:
    """Dev accuracy by exit at the end of each epoch, a block of rows a run."""
    lines = ["| run | epoch | mean dev loss | dev accuracy by exit, shallow to deep |", "|---|---|---|---|"]
    for run in result["runs"]:
        arguments = run["arguments"]
        heads = arguments["head_learning_rate"]
        name = f"{run['data']}, {run['recipe']}, learning rate {arguments['learning_rate']:g}" + (
            "" if heads is None else f", heads {heads:g}"
        )
        if run["recipe"] != "plain":
            name += ", exits weigh tokens" if run.get("pooling") == "attention" else ", exits read the mean"
        name += _changes(run.get("settings", {}))
        if run.get("last_exit", "model") == "head":
            name += ", the last one too" if run["recipe"] != "plain" else ", reads the mean"
        name += f", from {run['start']}" if run.get("start", "minilm") != "minilm" else ""
        name += f", seed {arguments['seed']}" if arguments["seed"] != _SEED else ""
        # The evaluation nearest to the end of each epoch.
        first = [one for one in run["evaluations"] if one.get("phase", 1) == 1]
        shown = [
            (name, min(first, key=lambda e: abs(e["epoch"] - epoch)))
            for epoch in range(1, round(first[-1]["epoch"]) + 1)
        ]
        if len(first) < len(run["evaluations"]):
            shown.append((f"{name}, then the exits alone", run["evaluations"][-1]))
        for label, one in shown:
            exits = " ".join(f"{100 * value:.1f}" for value in one["exits"])
            lines.append(f"| {label} | {one['epoch']:.2f} | {one['loss']:.3f} | {exits} |")
    return "\n".join([*lines, "", _origin(result, "python benchmarks/training_curves.py")])


def _changes(settings: dict[str, Any]) -> str:
    """What was set otherwise than the recipe has it."""
    return "".join(f", {name}={value}" for name, value in settings.items())


def prototypes(result: Result) -> str:
    """Every variant on every model: what distance adds to entropy."""
    cells = result["cells"]
    runs = list(dict.fromkeys(cell["run"] for cell in cells))
    variants = list(dict.fromkeys(cell["variant"] for cell in cells))
    speeds = [f"{target:g}x" for target in result["method"]["targets"][1:]]
    lines = [
        "Entropy's own area, and the points that EDR, its lambda chosen, adds to it on the same model: area / at "
        f"{' / '.join(speeds)} layer speed-up. Then means over those models that the change was tried on, with a "
        f"standard error (over dev rows; {result['method']['repeats']} parts of dev; models of one task share their "
        "rows, tasks are independent), after *base* what the row base has on just these models, and the AUROC of "
        'entropy / DR / EDR (lambda 1) for "the first exit is right", mean over them. Rows tried on different models '
        "compare with their base, not with each other.",
        "",
        "| "
        + " | ".join(["change", *runs, "mean area", *(f"mean at {x}" for x in speeds), "AUROC, first exit"])
        + " |",
        "|---|" + "---|" * (len(runs) + len(speeds) + 2),
    ]
    for variant in variants:
        found = {cell["run"]: cell for cell in cells if cell["variant"] == variant}
        told = [" / ".join(_added(found[run])) if run in found else "not run" for run in runs]
        means = _over_models(list(found.values()))
        if variant != "base":
            base = _over_models([cell for cell in cells if cell["variant"] == "base" and cell["run"] in found])
            means = [f"{mine}; base {other.partition(' ±')[0]}" for mine, other in zip(means, base, strict=True)]
        lines.append(f"| {variant} | {' | '.join(told)} | {' | '.join(means)} |")
    return "\n".join([*lines, "", _origin(result, "python benchmarks/prototypes.py")])


def _added(cell: Result) -> list[str]:
    """Area, then each speed-up but the lowest."""
    gaps = cell["gaps"]["edr"][1:]
    area = _gap(cell["area"]["edr"], cell["area"]["entropy"])
    return [
        f"{100 * cell['area']['entropy']:.1f}: {area}",
        *("-" if gap is None else f"{100 * gap[0]:+.1f}" for gap in gaps),
    ]


def _over_models(cells: Sequence[Result]) -> list[str]:
    area = sum(cell["area"]["edr"] - cell["area"]["entropy"] for cell in cells) / len(cells)
    told = [f"{100 * area:+.2f}"]
    for place in range(1, len(cells[0]["gaps"]["edr"])):
        tasks: dict[str, list[Sequence[float]]] = {}
        for cell in cells:
            if cell["gaps"]["edr"][place] is not None:
                tasks.setdefault(cell["task"], []).append(cell["gaps"]["edr"][place])
        means = [[sum(gap[part] for gap in gaps) / len(gaps) for part in (0, 1)] for gaps in tasks.values()]
        if not means:
            told.append("-")
            continue
        mean = sum(gap for gap, _ in means) / len(means)
        error = math.sqrt(sum(error**2 for _, error in means)) / len(means)
        told.append(f"{100 * mean:+.2f} ± {100 * error:.2f}")
    first = [sum(cell["auroc"][name][0] for cell in cells) / len(cells) for name in ("entropy", "dr", "edr")]
    return [*told, " / ".join(f"{value:.3f}" for value in first)]


_ENOUGH = 10
"""Rows of either kind: of fewer an AUROC says next to nothing."""


def signals(result: Result) -> str:
    """AUROC of entropy, DR and EDR for "this exit is right", by layer; and what early exit by them scores.

    Of the suite's trainings seed 0: the others stand in the result.
    """
    result = {**result, "cells": [cell for cell in result["cells"] if "train_rows" in cell or cell["seed"] == 0]}
    depth = max((len(cell["auroc"]["entropy"]) for cell in result["cells"]), default=0)
    lines = [
        "| task, training rows | signal | "
        + " | ".join(f"after layer {m + 1}" for m in range(depth))
        + " | of those who left at 2x, all layers |",
        "|---|---|" + "---|" * (depth + 1),
    ]
    for cell in result["cells"]:
        for name in cell["auroc"]:
            told = " | ".join(f"{value:.3f}" for value in cell["auroc"][name])
            lines.append(f"| {cell['task']}, {_rows_of(cell)} | {name} | {told} | {_among(cell, name)} |")
    lines += ["", *_leavers(result), "", *_by_signal(result), "", _origin(result, "python benchmarks/signals.py")]
    return "\n".join(lines)


def _leavers(result: Result) -> list[str]:
    """Which exits err at a layer speed-up, and whether signals tell there."""
    shown = [(cell, target) for cell in result["cells"] for target in cell["leavers"] if cell["leavers"][target]]
    layers = [row["layer"] for row in max((cell["leavers"][target] for cell, target in shown), key=len, default=())]
    lines = [
        "Which exits err: of a hundred dev rows, how many leave by entropy after each layer; of a hundred of those how "
        "many are wrong, and in brackets wrong there and right at full depth; then the AUROC of entropy / DR / EDR "
        "for right and wrong among them (where at least ten of each are there):",
        "",
        "| task, training rows | at | " + " | ".join(f"after layer {layer}" for layer in layers) + " |",
        "|---|---|" + "---|" * len(layers),
    ]
    for cell, target in shown:
        told = [_of_exit(row, cell["n"]) for row in cell["leavers"][target]]
        lines.append(f"| {cell['task']}, {_rows_of(cell)} | {target}x | {' | '.join(told)} |")
    return lines


def _of_exit(row: Result, rows: int) -> str:
    """Who left at one exit."""
    left, wrong, lost = row["left"], row["wrong"], row["right at full depth"]
    if not left:
        return "nobody"
    told = f"{100 * left / rows:.0f}: {100 * wrong / left:.1f} ({100 * lost / left:.1f})"
    if min(wrong, left - wrong) < _ENOUGH:
        return told
    return told + ", " + " / ".join(f"{row['auroc'][name]:.2f}" for name in ("entropy", "dr", "edr"))


def _by_signal(result: Result) -> list[str]:
    """Classifiers beside nearest prototypes, and early exit by each signal."""
    speeds = [f"{target:g}x" for target in result["targets"]]
    lines = [
        "Accuracy of each early exit's classifier, and of its nearest prototype; then of early exit by a signal, knobs "
        "chosen on one half and scored on the other, and points won over entropy [95 %]:",
        "",
        "| task, training rows | classes, dev rows | classifiers | nearest prototypes | full depth | "
        + " | ".join(f"{name}, {speed}" for speed in speeds for name in ("entropy", "dr", "edr"))
        + " |",
        "|---|---|---|---|---|" + "---|" * (3 * len(speeds)),
    ]
    for cell in result["cells"]:
        *early, full = (f"{100 * value:.1f}" for value in cell["accuracy"])
        nearest = " ".join(f"{100 * value:.1f}" for value in cell["nearest"])
        told = [
            _gained(cell["early_exit"][name][place], name)
            for place in range(len(speeds))
            for name in ("entropy", "dr", "edr")
        ]
        lines.append(
            f"| {cell['task']}, {_rows_of(cell)} | {cell['classes']}, {cell['n']:,} | {' '.join(early)} | {nearest} | "
            f"{full} | {' | '.join(told)} |"
        )
    return lines


def _gained(cell: Result | None, name: str) -> str:
    if cell is None:
        return "not reached"
    score = f"{100 * cell['score']:.1f}"
    low, high = cell["gap"]["interval"]
    return (
        score
        if name == "entropy"
        else f"{score}: {100 * cell['gap']['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    )


def _rows_of(cell: Result) -> str:
    if "train_rows" in cell:
        return f"{cell['train_rows']:,}"
    alone = ", then exits alone" if cell["recipe"] == "de3bert-alone" else ""
    return f"as in the suite{alone}, seed {cell['seed']}"


def _among(cell: Result, name: str) -> str:
    """Mean AUROC over the layers at which right and wrong ones left, weighted by those who left."""
    if name not in ("entropy", "dr", "edr"):
        return "-"
    rows = [row for row in cell["leavers"]["2"] or () if row["auroc"][name] is not None]
    left = sum(row["left"] for row in rows)
    return "-" if not left else f"{sum(row['left'] * row['auroc'][name] for row in rows) / left:.3f}"


def prototype_overhead(result: Result) -> str:
    """Microseconds and bytes, by number of classes."""
    names = ("classifier and entropy", "network", "distances and ratio", "index", "one encoder layer")
    lines = [
        f"One early exit, width {result['setup']['hidden']}, prototypes of width {result['setup']['width']}, torch "
        "float32, one thread; microseconds a text, median (quartiles) of "
        f"{result['setup']['rounds']} interleaved rounds. "
        f'"One encoder layer": {result["setup"]["tokens"]} tokens a text.',
        "",
        "| classes | batch | parameters of the network, numbers in prototypes | bytes added | "
        + " | ".join(names)
        + " |",
        "|---|---|---|---|" + "---|" * len(names),
    ]
    for row in result["rows"]:
        told = [
            "-"
            if name not in row["microseconds"]
            else "{median:.1f} ({low:.1f}-{high:.1f})".format(**row["microseconds"][name])
            for name in names
        ]
        sizes = row["sizes"]
        lines.append(
            f"| {row['classes']:,} | {row['batch']} | {sizes['network']:,}, {sizes['prototypes']:,} | "
            f"{sizes['bytes_added']:,} | {' | '.join(told)} |"
        )
    return "\n".join([*lines, "", _origin(result, "python benchmarks/prototype_overhead.py")])


def drift(result: Result) -> str:
    """For each model: what other texts cost, when alarms ring, and what the policies do."""
    lines: list[str] = []
    for one in result["models"]:
        lines += [f"### {one['model']}", "", *_price(one), "", *_alarms(one, result), "", *_policies(one, result), ""]
    return "\n".join([*lines, _origin(result, "python benchmarks/drift.py")])


def _price(one: Result) -> list[str]:
    lines = [
        f"An operating point that promises 2 %, on whole streams (mean of {one['calibrations']} calibrations; 95 % "
        "bootstrap intervals over texts):",
        "",
        "| texts | number | accuracy at full depth | accuracy lost by leaving early, points | answers that differ | "
        "layer speed-up |",
        "|---|---|---|---|---|---|",
    ]
    for row in one["price"]:
        differ = [1 - value for value in row["agreement"]]
        lines.append(
            f"| {row['stream']} | {row['n']:,} | {_between(row['full_depth'], 1)} | {_between(row['drop'], 2)} | "
            f"{_between([differ[0], differ[2], differ[1]], 2, ' %')} | {row['layer_speedup']:.2f}x |"
        )
    return lines


def _between(found: Sequence[float] | None, digits: int, unit: str = "") -> str:
    if found is None:
        return "no labels"
    mean, low, high = (f"{100 * value:.{digits}f}" for value in found)
    return f"{mean}{unit} ({low} to {high})".replace("-0.00", "0.00")


def _alarms(one: Result, result: Result) -> list[str]:
    calm = one["nothing changes"]
    lines = [
        f"![when the alarms ring](drift/{one['model']}-alarms.png)",
        "",
        f"Nothing changes: of {calm['streams']} streams of {calm['texts']:,} texts like those of the calibration, "
        f"{calm['drift']} rang for drift and {calm['risk']} for the risk ({calm['risk, promise kept']} of them though "
        f"the promise held); {100 * result['false_alarms']:g} % is what the monitor was allowed, for both together.",
        "",
        "| then come | after | drift rings in | after texts: median (10 % to 90 %) | risk rings in | after texts |",
        "|---|---|---|---|---|---|",
    ]
    for cell in one["alarms"]:
        told = " | ".join(
            f"{100 * cell[f'{kind}_rang']:.0f} % | {_delay(cell[f'{kind}_quantiles'])}" for kind in ("drift", "risk")
        )
        lines.append(f"| {cell['stream']} | {cell['before']:,} | {told} |")
    soon = sum(cell["false"] for cell in one["alarms"])
    of = sum(cell["streams"] for cell in one["alarms"] if cell["before"])
    return [*lines, "", f"{soon} of the {of} streams that change later rang before they did."]


def _delay(quantiles: Sequence[float] | None) -> str:
    if quantiles is None:
        return "-"
    low, middle, high = (f"{value:,.0f}" for value in quantiles)
    return f"{middle} ({low} to {high})"


def _policies(one: Result, result: Result) -> list[str]:
    lines = [
        f"![what the policies do along the stream](drift/{one['model']}-policies.png)",
        "",
        f"After {result['before']:,} texts like those of the calibration, on the {result['length']:,} or fewer that "
        f"follow, as the stream goes (mean and standard deviation over {one['policies'][0]['streams']} streams):",
        "",
        "| then come | who chooses the threshold | answers that differ | accuracy | layer speed-up |",
        "|---|---|---|---|---|",
    ]
    for cell in one["policies"]:
        for row in cell["rows"]:
            differ, spread = (100 * value for value in row["disagreement"])
            right = row["accuracy"]
            accuracy = "no labels" if right is None else f"{100 * right[0]:.1f} ± {100 * right[1]:.1f}"
            lines.append(
                f"| {cell['stream']} | {row['policy']} | {differ:.2f} ± {spread:.2f} % | {accuracy} | "
                f"{row['layer_speedup']:.2f}x |"
            )
    return lines


KEYS = ("area", "at_2x", "full_depth")


def speed(result: Result, command: str = "") -> str:
    """Deployments against each other, a table a scenario."""
    command = command or _speed_command(result)
    settings, best, more = result["settings"], result["reference"], _chosen_on(result)
    lines = [
        f"{result['setup']['data']}, {result['data']['n']} texts of dev, {settings['threads']} threads, median of "
        f"{settings['rounds']} interleaved rounds; {_cpu(result)}. Points are lost against {best['of']} in fp32 "
        f"({100 * best['accuracy']:.1f} %); of rows with exits on the half that nothing was chosen on{more} (mean of "
        f"{settings['splits']} splits, and where 95 % of them lie) and, as served, by what was timed on all texts; of "
        "all others with a 95 % bootstrap interval.",
    ]
    for scenario, fastest in result["fastest_peer"].items():
        lines += ["", f"**{scenario}**, " + _how(scenario, settings), "", *_speed_table(result, scenario, fastest)]
    missing = [f"{row['label']} ({row['failure']})" for row in result["rows"] if "failure" in row]
    if missing:
        lines += ["", f"Missing: {'; '.join(missing)}."]
    return "\n".join([*lines, "", _origin(result, command)])


def _speed_command(result: Result) -> str:
    """As it was typed, but for the long list of rows, which the result keeps."""
    return re.sub(r"--rows \S+", "--rows ...", result["command"])


_PEERS_SHOWN = ("transformers-float32", "onnxruntime-int8", "openvino-int8")
_OURS_SHOWN = ("offramp-onnx-int8", "offramp-openvino-int8")
"""What `offramp export --int8` makes by default: not the fastest of ours in every column."""


def speed_headline(result: Result) -> str:
    """The strongest peers and our default exports, both scenarios in a line each."""
    rows = {row["name"]: row for row in result["rows"]}
    scenarios = list(result["fastest_peer"])
    lines = [
        "| | "
        + " | ".join(f"{scenario}, texts/s | beside the fastest peer" for scenario in scenarios)
        + " | points lost |",
        "|---|" + "---|---|" * len(scenarios) + "---|",
    ]
    for name in _PEERS_SHOWN:
        found = [rows[name] for _ in scenarios]
        lines.append(_headline_row(rows[name]["label"] + ", full depth", found, scenarios))
    for ours, lost in product(_OURS_SHOWN, result["settings"]["max_lost"]):
        found = [rows[f"{ours}-lost-{lost:g}-{scenario.lower()}"] for scenario in scenarios]
        lines.append(_headline_row(f"**{found[0]['label']}**", found, scenarios))
    return "\n".join([*lines, "", _origin(result, _speed_command(result))])


def _headline_row(label: str, rows: Sequence[Result], scenarios: Sequence[str]) -> str:
    cells = []
    for row, scenario in zip(rows, scenarios, strict=True):
        entry = row[scenario]
        ratio = entry["ratio"]["without tokenisation"]
        cells += [
            f"{_texts_a_second(entry)['median']:.0f}",
            f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
        ]
    lost = dict.fromkeys(_lost(row, row[scenario]) for row, scenario in zip(rows, scenarios, strict=True))
    return f"| {label} | {' | '.join(cells)} | {'; '.join(lost)} |"


def _chosen_on(result: Result) -> str:
    """What thresholds were chosen on, where that is more than the other half."""
    more = result["data"].get("chosen_on_only")
    return f", after choosing on the other and on {more:,} sentences of {result['setup']['choose']}" if more else ""


def speed_twelve(result: Result) -> str:
    """The same of twelve layers."""
    return speed(result, "python benchmarks/speed_twelve.py")


def _cpu(result: Result) -> str:
    machine = result["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores"


def _how(scenario: str, settings: Result) -> str:
    return f"batches of {settings['max_rows']}" if scenario == "Offline" else "one text at a time"


def _speed_table(result: Result, scenario: str, fastest: str | None) -> list[str]:
    times = "p50 / p90 / p99 ms | " if scenario == "SingleStream" else ""
    lines = [
        f"| | texts/s | beside the fastest peer | with tokenisation | {times}points lost | wall clock / layers |",
        "|---|---|---|---|---|---|" + ("---|" if times else ""),
    ]
    rows = [row for row in result["rows"] if scenario in row]
    for row in sorted(rows, key=lambda row: -_texts_a_second(row[scenario])["median"]):
        entry = row[scenario]
        bare, tokenised = (entry.get(f"{how} tokenisation") for how in ("without", "with"))
        ratio = entry.get("ratio", {}).get("without tokenisation")
        both = entry.get("ratio", {}).get("with tokenisation")
        label = entry["label"]
        cells = [
            f"**{label}**" if row["name"] == fastest else label,
            "" if bare is None else f"{bare['texts_per_second']['median']:.0f}",
            "" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
            f"{tokenised['texts_per_second']['median']:.0f}" + ("" if both is None else f" ({both['median']:.2f})"),
        ]
        if times:
            found = bare or tokenised
            cells.append(" / ".join(f"{found[name]['median']:.1f}" for name in ("p50_ms", "p90_ms", "p99_ms")))
        cells += [_lost(row, entry), _over_layers(row, entry)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _texts_a_second(entry: Result) -> Result:
    found: Result = (entry.get("without tokenisation") or entry["with tokenisation"])["texts_per_second"]
    return found


def _lost(row: Result, entry: Result) -> str:
    held_out = row["prepared"].get("held_out")
    if held_out is None:
        lost = entry["lost"]
        return f"{lost['points']:.2f} ({lost['low']:.2f} to {lost['high']:.2f})"
    unseen = f"{held_out['lost']:.2f} ({held_out['lost_low']:.2f} to {held_out['lost_high']:.2f})"
    return f"{unseen}; as served {entry['lost']['points']:.2f}"


def _over_layers(row: Result, entry: Result) -> str:
    """With exits: wall clock over layers; at full depth: the engine beside the runtime alone."""
    if "wall_over_layers" in entry:
        return f"{entry['wall_over_layers']:.2f} (layers {row['facts']['token_layer_fraction']:.2f})"
    if "engine_against_whole_graph" in entry:
        return f"engine {100 * (1 / entry['engine_against_whole_graph']['median'] - 1):+.0f} %"
    return ""


def speed_profile(result: Result) -> str:
    """Memory, start-up and size; what layers and exits cost; static exits of equal speed."""
    lines = [
        "| | start to first answer, s | peak memory, MB | files, MB | Offline, thousand million operations a second | "
        "of what matrix products of that kind reach | SingleStream | of what they reach |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if "failure" in row:
            continue
        size = row["prepared"].get("megabytes")
        cells = [
            f"{row['startup_s']:.1f}",
            f"{row['facts']['peak_memory_mb']:.0f}",
            "" if size is None else f"{size:.0f}",
        ]
        cells += [*_operations(result, row, "Offline"), *_operations(result, row, "SingleStream")]
        lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| with exits | exits after layers | layer, ms a text | exit, ms a text | static exit nearest in speed | "
        "its speed beside this row's | points gained on it |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row["group"] == "exits" and "failure" not in row:
            lines += [_profile(row, scenario) for scenario in result["fastest_peer"] if scenario in row]
    return "\n".join([*lines, "", _origin(result, _speed_command(result))])


def _operations(result: Result, row: Result, scenario: str) -> list[str]:
    """Operations a second of the encoder's layers, and their share of the machine's limit."""
    entry = row.get(scenario, {}).get("without tokenisation")
    if entry is None or "operations_a_text" not in result["data"]:
        return ["", ""]
    limit = max(kinds[row["facts"]["dtype"]] for kinds in _products(result))
    depth = row["facts"].get("token_layer_fraction", 1.0)
    if row["group"] == "shallow":
        depth = row["facts"]["layers"] / result["data"]["layers"]
    reached = 1e-9 * entry["texts_per_second"]["median"] * result["data"]["operations_a_text"] * depth
    return [f"{reached:.0f}", f"{100 * reached / limit:.0f} %"]


def _products(result: Result) -> list[Result]:
    """Matrix products that the machine reached before and after the run, by shape."""
    return [kinds for one in result["limits"] for kinds in one["gigaoperations_per_second"].values()]


def _profile(row: Result, scenario: str) -> str:
    made, static = row["prepared"], row[scenario].get("shallow")
    beside = ["none", "", ""]
    if static is not None:
        speed = f"{100 * static['speed']:.0f} %"
        gained = f"{static['points']:.1f} ({static['low']:.1f} to {static['high']:.1f})"
        beside = [static.get("label", static["name"]).removeprefix("offramp "), speed, gained]
    cells = [
        f"{row['label']}, {scenario}",
        _exits_after(made),
        f"{made['costs']['layer_ms']:.2f}",
        f"{made['costs']['exit_ms']:.2f}",
        *beside,
    ]
    return f"| {' | '.join(cells)} |"


def _exits_after(made: Result) -> str:
    """Layers with an exit; where nobody goes beyond the deepest of them, that is said."""
    exits = ", ".join(map(str, made["exits"])) or "none"
    capped = made["point"] is not None and "max_layers" in made["point"]["knobs"]
    return f"{exits} (at the last of them all leave)" if capped else exits


def exit_choice(result: Result) -> str:
    """What is lost on rows unseen, by task, allowance and standard errors of caution."""
    models = result["models"]
    lines = [
        "| task (models) | may lose | standard errors | loses: mean | worst model | layers | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(model["task"] for model in models):
        here = [model for model in models if model["task"] == task]
        for place, choice in enumerate(here[0]["choices"]):
            found = [model["choices"][place] for model in here]
            lost = [one["lost"] for one in found]
            cells = [
                f"{task} ({len(here)})", f"{choice['allowed']:g}", f"{choice['errors']:g}",
                f"{statistics.mean(lost):.2f}", f"{max(lost):.2f}",
                f"{statistics.mean(one['layer_speedup'] for one in found):.2f}x fewer",
                f"{statistics.mean(one['cost_fraction'] for one in found):.2f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _origin(result, "python benchmarks/exit_choice.py")])


def limits(result: Result) -> str:
    """What the machine can do at most."""
    dtypes = list(next(iter(result["gigaoperations_per_second"].values())))
    lines = [f"| matrix products, thousand million operations a second | {' | '.join(dtypes)} |"]
    lines.append("|---|" + "---|" * len(dtypes))
    for shape, found in result["gigaoperations_per_second"].items():
        lines.append(f"| {shape} | {' | '.join(f'{found[dtype]:.0f}' for dtype in dtypes)} |")
    copied = (
        f"Memory is copied at {result['copied_gigabytes_per_second']:.0f} GB a second ({result['threads']} threads)."
    )
    rate = 1e9 * result["copied_gigabytes_per_second"]
    lines += ["", f"{copied} {_cpu(result)}.", "", *_bytes(rate)]
    return "\n".join([*lines, "", _origin(result, "python benchmarks/limits.py")])


_LAYERS, _WIDTH, _TOKENS, _ROWS = 6, 384, 25, 32
"""Of the encoder, of a text of SST-2's dev on average, and of a batch."""


def _bytes(rate: float) -> list[str]:
    """What six layers of 384 have to read and write for a text, and the least time for it.

    Weights are ``12 h^2`` numbers a layer. Of a token a layer that fuses nothing writes and reads ``32 h`` numbers:
    ``6 h`` for queries, keys and values, ``2 h`` for the context, ``4 h`` for each of two outputs with sum and norm,
    ``16 h`` for the inner layer of ``4 h`` and its activation function.
    """
    weights = _LAYERS * 12 * _WIDTH**2
    moved = 4 * _LAYERS * 32 * _WIDTH * _TOKENS
    lines = [
        f"| bytes, {_LAYERS} layers of {_WIDTH}, texts of {_TOKENS} tokens | MB a text, alone | least ms | "
        f"MB a text, in a batch of {_ROWS} | least ms |",
        "|---|---|---|---|---|",
    ]
    for name, size in (("weights, int8", weights), ("weights, float32", 4 * weights)):
        cells = [size, size / _ROWS]
        lines.append(
            f"| {name} | " + " | ".join(f"{1e-6 * each:.1f} | {1000 * each / rate:.3f}" for each in cells) + " |"
        )
    lines.append(
        "| activations, float32 | " + " | ".join([f"{1e-6 * moved:.1f} | {1000 * moved / rate:.3f}"] * 2) + " |"
    )
    return lines


def batch_sizes(result: Result) -> str:
    """What a token costs in small batches and in large ones, and texts a second by threads and lanes."""
    found = result["variants"]
    [first, *_] = found.values()
    widths = list(first["microseconds_a_token"])
    rows = list(first["microseconds_a_token"][widths[0]])
    lines = [f"| microseconds a token, one layer and its exit, 1 thread | {' | '.join(rows)} rows |"]
    lines.append("|---|" + "---|" * len(rows))
    for label, entry in found.items():
        for width in widths:
            cost = entry["microseconds_a_token"][width]
            lines.append(f"| {label}, texts of {width} tokens | {' | '.join(f'{cost[n]:.0f}' for n in rows)} |")
    ways = list(first["texts_per_second"])
    lines += ["", f"| texts a second at full depth | {' | '.join(ways)} |", "|---|" + "---|" * len(ways)]
    for label, entry in found.items():
        cells = [sorted(entry["texts_per_second"][way]) for way in ways]
        told = [f"{each[len(each) // 2]:.0f} ({each[0]:.0f}-{each[-1]:.0f})" for each in cells]
        lines.append(f"| {label} | {' | '.join(told)} |")
    return "\n".join([*lines, "", f"{_cpu(result)}. " + _origin(result, "python benchmarks/batch_sizes.py")])


def single(result: Result) -> str:
    """Milliseconds of a text alone, in one graph and stage by stage."""
    lines = ["| one text at a time, ms | threads | layers executed | in one graph | stage by stage | ratio |"]
    lines.append("|---|---|---|---|---|---|")
    for label, ways in result["variants"].items():
        for threads, points in ways.items():
            for entry in points.values():
                one, stages = (entry["milliseconds"][way] for way in ("in one graph", "stage by stage"))
                ratios = sorted(slow / fast for fast, slow in zip(one, stages, strict=True))
                told = f"{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
                times = " | ".join(f"{sorted(each)[len(each) // 2]:.2f}" for each in (one, stages))
                lines.append(f"| {label} | {threads} | {entry['layers']:.2f} | {times} | {told} |")
    return "\n".join([*lines, "", f"{_cpu(result)}. " + _origin(result, "python benchmarks/single.py")])


def engine(result: Result) -> str:
    """What the engine costs beside the runtime alone, and what a layer saved saves."""
    lines = [
        f"Exits at the slowest threshold of {result['criterion']} that reaches a layer speed-up of "
        f"{result['speedup']:g}x on dev. Each round runs all three, so that ratios are of one moment: median, and "
        "between which values all lie.",
        "",
        "| | | threads x lanes | runtime alone, ms a text | with the engine | exits after | wall clock / full depth "
        "| layers | wall clock / layers |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, entries in result["variants"].items():
        for entry in entries:
            alone, full, early = (entry["seconds"][way] for way in ("runtime", "full depth", "exits"))
            costs = [100 * (slow / fast - 1) for fast, slow in zip(alone, full, strict=True)]
            saved = [fast / slow for fast, slow in zip(early, full, strict=True)]
            fraction = entry["token_layer_fraction"]
            took = 1000 * sorted(alone)[len(alone) // 2] / entry["texts"]
            way = f"{entry['threads'] // entry['lanes']} x {entry['lanes']}"
            lines.append(
                f"| {label} | {entry['scenario']} | {way} | {took:.2f} | "
                f"{_middle(costs, '+.0f')} % | {', '.join(map(str, entry['exits']))} | {_middle(saved, '.2f')} | "
                f"{fraction:.2f} | {_middle([each / fraction for each in saved], '.2f')} |"
            )
    origin = f"{_cpu(result)}. " + _origin(result, "python benchmarks/engine.py")
    return "\n".join([*lines, "", *_where_time_goes(result), "", origin])


def _where_time_goes(result: Result) -> list[str]:
    """Milliseconds a text with exits: what its layers would take at full depth's price, and what is more than that."""
    lines = [
        "| with exits, ms a text | | threads | all | its layers, at full depth's price | more inside the graphs | "
        "outside |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, entries in result["variants"].items():
        for entry in entries:
            if entry["lanes"] > 1:  # calls of several lanes overlap
                continue
            texts = entry["texts"]
            layers = 1000 * statistics.median(entry["seconds"]["runtime"]) / texts * entry["token_layer_fraction"]
            inside, whole = (1000 * statistics.median(column) / texts for column in zip(*entry["inside"], strict=True))
            told = " | ".join(f"{part:.2f}" for part in (whole, layers, inside - layers, whole - inside))
            lines.append(f"| {label} | {entry['scenario']} | {entry['threads']} | {told} |")
    return lines


def _middle(values: Sequence[float], form: str) -> str:
    """Median, and between which values all lie."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:{form}} ({ordered[0]:{form}} to {ordered[-1]:{form}})"


def installed_size(result: Result) -> str:
    """Megabytes of an environment, by extra."""
    lines = ["| environment | MB | packages | of it |", "|---|---|---|---|"]
    for extra, found in result["extras"].items():
        largest = ", ".join(f"{name} {size:.0f}" for name, size in found["largest"].items())
        lines.append(f"| `offramp[{extra}]` | {found['megabytes']:.0f} | {len(found['packages'])} | {largest} |")
    return "\n".join([*lines, "", _origin(result, "python benchmarks/installed_size.py")])


def learned_stopping(result: Result) -> str:
    """What learned stopping is above other criteria, on the suite's traces."""
    targets = result["method"]["targets"]
    heads = " | ".join(f"{target:g}x" for target in targets)
    lines = []
    for training in result["trainings"]:
        tasks = training["tasks"]
        names = ", ".join(_in_words(task) for task in tasks)
        lines += [
            f"On models trained by `{training['recipe']}`: {names}. Points above each criterion:",
            "",
            f"| | {heads} |",
            "|---|" + "---|" * len(targets),
        ]
        for task in tasks:
            lines.append(f"| entropy, {task['task']} | {_above(task['gaps']['entropy'])} |")
        lines += [f"| **{name}, mean over tasks** | {_above(row)} |" for name, row in training["mean"].items()]
        best = ", ".join(
            f"{one['criterion']} at {one['target']:g}x ({_above([one['gap']])})" for one in training["best"]
        )
        lines += [
            "",
            f"The best single published criterion, mean over tasks, and what learned stopping is above it: {best}.",
            "",
            f"Published criteria, layer speed-ups and tasks together: {_significant(tasks, 'corrected', result)} after "
            f"Holm's correction within each task, {_significant(tasks, 'p', result)} before it.",
            "",
        ]
    return "\n".join([*lines, _origin(result, "python benchmarks/learned_stopping.py")])


def _in_words(task: Result) -> str:
    """A task with its dev rows, seeds and metric."""
    seeds = "" if len(task["seeds"]) == 1 else f", {len(task['seeds'])} seeds"
    return f"{task['task']} ({task['n']:,} dev rows{seeds}, {task['metric']})"


def _significant(tasks: Sequence[Result], by: str, result: Result) -> str:
    """In how many places learned stopping is significantly better and worse."""
    found = [one["gap"] > 0 for task in tasks for one in task["significant"] if one[by] < result["method"]["level"]]
    return (
        f"{sum(found)} where learned stopping is significantly better and {len(found) - sum(found)} where it is worse"
    )


def _above(gaps: Sequence[Sequence[float] | None]) -> str:
    """Points and their standard error at each target."""
    return " | ".join("not reached" if gap is None else f"{100 * gap[0]:+.1f} ± {100 * gap[1]:.1f}" for gap in gaps)


def attach(result: Result) -> str:
    """What attaching takes, and what exits save on texts that had no part in it."""
    first, second, _ = result["texts"]
    third = next(iter(result["points"].values()))["n"]
    alone, took = min(result["pass_seconds"]), result["attach_seconds"]
    lines = [
        f"Recipe {result['recipe']}, {result['layers']} layers, {result['threads']} threads, torch float32. Attached "
        f"on {first:,} texts without labels in {took:.0f} s; one pass of the model alone over them takes {alone:.0f} "
        f"s: three and a minute are {3 * alone + 60:.0f} s. Calibrated on {second:,} texts, told on {third:,} others:",
        "",
        "| | agreement | layer speed-up | wall clock |",
        "|---|---|---|---|",
    ]
    for name, found in result["points"].items():
        lines.append(
            f"| {name} | {100 * found['accuracy']:.1f} % | {found['layer_speedup']:.2f}x | "
            f"{found['wall_clock_speedup']:.2f}x |"
        )
    return "\n".join([*lines, "", f"{_cpu(result)}. " + _origin(result, "python benchmarks/attach.py")])


def methods(result: Result) -> str:
    """Rows of the comparison that are a recipe with the criterion of its paper, over tasks, by their mean score."""
    if not result["unions"]:
        return "Not run yet."
    union, tiers, targets = result["unions"][0], result["tiers"], result["targets"]
    count = {task["task"]: task["n"] for task in result["tasks"]}
    where = ", ".join(f"{name} ({count[name]:,})" for name in union["tasks"])
    shown = {name for tier in ("A", "B") for name in tiers[tier]}
    found = [row for row in union["rows"] if row["kind"] == "recipe" and row["name"] in shown]
    found += [row for row in union["rows"] if row["kind"] in ("static", "layers")]
    lines = [
        f"Accuracy, mean over {where} dev rows, seed {', '.join(map(str, union['seeds']))}, at layer speed-ups "
        "(beside a score the one reached, where more layers were worth nothing). In brackets points won or lost "
        "against entropy on the same trained model, 95 % interval, bold where it stands Holm's correction over the "
        f"{_tests(union)} gaps of the whole table:",
        "",
        f"| | leaves by | full depth | {' | '.join(f'{target:g}x' for target in targets)} |",
        "|---|---|---|" + "---|" * len(targets),
    ]
    for row in sorted(found, key=_at_the_middle, reverse=True):
        full = f"{100 * row['full_depth']['mean']:.1f}" if row["kind"] == "recipe" else ""
        cells = " | ".join(_method_cell(*pair) for pair in zip(row["cells"], targets, strict=True))
        lines.append(f"| {row['name']} | {row['criterion']} | {full} | {cells} |")
    return "\n".join([*lines, "", _origin(result, "python benchmarks/compare.py --tables")])


def _tests(union: Result) -> int:
    gaps = [cell["gap"] for row in union["rows"] for cell in row["cells"] if cell and cell["gap"]]
    return sum("corrected" in gap for gap in gaps)


def _at_the_middle(row: Result) -> float:
    """Score at the middle one of the targets; last what does not reach it."""
    cell = row["cells"][len(row["cells"]) // 2]
    return cell["score"]["mean"] if cell else -math.inf


def _method_cell(cell: Result | None, target: float) -> str:
    if cell is None:
        return "not reached"
    score, gap = f"{100 * cell['score']['mean']:.1f}{faster(cell, target)}", cell["gap"]
    if gap is None or "corrected" not in gap:
        return score
    low, high = gap["interval"]
    mark = "**" if gap["corrected"] < LEVEL else ""
    return f"{score} ({mark}{100 * gap['mean']:+.1f}{mark}: {100 * low:+.1f} to {100 * high:+.1f})"


TABLES: Mapping[str, tuple[str, Callable[[Result], str]]] = {
    "learned_stopping": ("docs/learned-stopping.md", learned_stopping),
    "sst2": ("README.md", sst2),
    "speed_headline": ("README.md", speed_headline),
    "sst2_mean": ("docs/training.md", sst2_mean),
    "training_curves": ("docs/training.md", training_curves),
    "training_defaults": ("docs/training.md", training_defaults),
    "prototypes": ("docs/research/de3bert.md", prototypes),
    "prototype_overhead": ("docs/research/de3bert.md", prototype_overhead),
    "signals": ("docs/research/de3bert.md", signals),
    "drift": ("docs/drift.md", drift),
    "attach": ("docs/calibration.md", attach),
    "speed": ("docs/performance.md", speed),
    "speed_twelve": ("docs/performance.md", speed_twelve),
    "exit_choice": ("docs/performance.md", exit_choice),
    "speed_profile": ("docs/performance.md", speed_profile),
    "limits": ("docs/performance.md", limits),
    "batch_sizes": ("docs/performance.md", batch_sizes),
    "single": ("docs/performance.md", single),
    "engine": ("docs/performance.md", engine),
    "installed_size": ("docs/performance.md", installed_size),
    "methods": ("README.md", methods),
}
"""Result file and block -> page, and how the block is written."""
SOURCES = {"speed_profile": "speed", "speed_headline": "speed", "methods": "suite/tables"}
"""Blocks written from another block's result."""


def _score(cell: Result) -> str:
    low, high = cell["interval"]
    return f"{100 * cell['score']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _plain(plain: Result | None) -> str:
    if plain is None:
        return "not run yet"
    return f"{100 * plain['accuracy']:.1f} ± {100 * plain['standard_error']:.1f} (standard error)"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _gap(value: float | None, base: float | None) -> str:
    return "-" if value is None or base is None else f"{100 * (value - base):+.1f}"


def _origin(result: Result, command: str) -> str:
    """The papers of the numbers, in a line."""
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in ("torch", "transformers"))
    commit = (result["commit"] or "no commit")[:12] + (" with changes" if result["dirty"] else "")
    seeds = ", seed " + ", ".join(map(str, result["seeds"])) if result["seeds"] else ""
    return f"<sub>`{command}`, {result['date'][:10]}, commit {commit}, {versions}{seeds}.</sub>"


def written(page: str, name: str, table: str) -> str:
    """The page with one block replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"the page has no block {name}")
    return pattern.sub(lambda _: f"{begin}\n{table}\n{end}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is out of date")
    check = parser.parse_args().check
    stale = []
    for name, (page, write) in TABLES.items():
        source = RESULTS / f"{SOURCES.get(name, name)}.json"
        table = write(json.loads(source.read_text(encoding="utf-8"))) if source.is_file() else "Not run yet."
        path = ROOT / page
        before = path.read_text(encoding="utf-8")
        after = written(before, name, table)
        if after != before:
            stale.append(page)
            if not check:
                path.write_text(after, encoding="utf-8")
    if check and stale:
        sys.exit(f"{', '.join(stale)} is not what benchmarks/results says: run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
