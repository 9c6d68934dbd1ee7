"""The price of safety: the layer speed-up that is left when a risk is promised, by criterion and number of texts.

    python benchmarks/calibration.py sst2=TRACE mnli10k=TRACE ... [--draws 30]
    python benchmarks/calibration.py --held-out NAME=TRACE:1250 ...   (the first 1,250 rows calibrate, the rest tell)
    python benchmarks/calibration.py --tables     (tables and plots from benchmarks/results/calibration*.json)
    python benchmarks/calibration.py --check      (docs/calibration.md is what those files say)

A trace is what `offramp record` wrote, of rows that were not trained on. For every number of texts up to the trace's
own, so many are drawn from it with replacement, an operating point is certified on them (part of them tunes, the others
prove), and replayed over the whole trace: that is its true speed and risk. Minutes a task; prints for people, and ends
in one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from offramp.bench.provenance import provenance, write_result
from offramp.bench.suite_page import replace_block
from offramp.calibration.certify import certify
from offramp.calibration.grid import told
from offramp.calibration.losses import make_risk
from offramp.calibration.stopping import fit_stopping
from offramp.calibration.sweep import choose
from offramp.criteria import Criterion, make
from offramp.criteria.learned_stopping import LearnedStopping
from offramp.errors import KnobError, UnsupportedError, require
from offramp.traces.curves import bootstrap_interval
from offramp.traces.files import write_atomically
from offramp.traces.replay import replay
from offramp.traces.store import load_trace
from offramp.traces.trace import Trace

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "calibration.json"
HELD_OUT = ROOT / "benchmarks" / "results" / "calibration_held_out.json"
PAGE = ROOT / "docs" / "calibration.md"
PICTURES = ROOT / "docs" / "calibration"

CRITERIA = ("entropy", "confidence", "patience", "edr", "learned_stopping")
RISKS = (0.005, 0.01, 0.02, 0.05)
SIZES = (200, 500, 1000, 2000)
CONFIDENCE = 0.95
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", metavar="NAME=TRACE")
    parser.add_argument("--draws", type=int, default=30, help="calibrations for each cell (learned stopping: a third)")
    parser.add_argument(
        "--held-out", nargs="+", default=[], metavar="NAME=TRACE:ROWS", help="calibrate once, on the first rows"
    )
    parser.add_argument("--tables", action="store_true", help="only write tables and plots of what is there")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page is out of date")
    options = parser.parse_args()
    if options.check:
        sys.exit(0 if page() == PAGE.read_text(encoding="utf-8") else f"{PAGE.name} is stale: run with --tables")
    if options.held_out:
        held_out(options.held_out)
    elif not options.tables:
        if not options.traces:
            sys.exit("name traces, such as sst2=runs/x/traces/dev; or give --tables")
        measure(dict(word.split("=", 1) for word in options.traces), options.draws)
    write_page()


def measure(traces: Mapping[str, str], draws: int) -> None:
    """Every cell; the result is written after each task, and tasks that are there already are replaced."""
    before = json.loads(RESULT.read_text(encoding="utf-8"))["tasks"] if RESULT.is_file() else []
    tasks = {task["task"]: task for task in before}
    for name, path in traces.items():
        trace = load_trace(path)
        cells = list(task_cells(trace, draws))
        tasks[name] = {
            "task": name, "n": trace.num_units, "num_layers": trace.num_layers, "classes": trace.logits.shape[-1],
            "runtime": trace.runtime, "dtype": trace.dtype, "cells": cells,
        }  # fmt: skip
        write_result(
            RESULT,
            {"benchmark": "calibration", "confidence": CONFIDENCE, "draws": draws, "risk": "disagreement",
             "tasks": list(tasks.values()), **provenance(seeds=[0])},
        )  # fmt: skip
    print(json.dumps({"benchmark": "calibration", "tasks": list(tasks)}))


def task_cells(trace: Trace, draws: int) -> Iterable[dict[str, Any]]:
    """One for each criterion, number of texts and risk."""
    for name in CRITERIA:
        criterion = make(name)
        some = max(10, draws // 3) if name == "learned_stopping" else draws
        for size in (size for size in SIZES if size <= trace.num_units):
            for risk in RISKS:
                try:
                    found = cell(trace, criterion, size, risk, some)
                except UnsupportedError as error:  # an exit that gives no distances
                    print(f"{name}: {error}")
                    break
                print(f"{name:17} n {size:5} risk {risk:.3f}: {found['layer_speedup']:.2f}x, promised in "
                      f"{found['promised']:.0%}, violated in {found['violated']:.0%}", flush=True)  # fmt: skip
                yield found


def cell(trace: Trace, criterion: Criterion, size: int, risk: float, draws: int) -> dict[str, Any]:
    """Mean true speed over calibrations; where nothing is promised the full model answers, at 1x."""
    about, rng = make_risk("disagreement", trace), np.random.default_rng(0)
    fractions, promised, violated = [], 0, 0
    for _ in range(draws):
        drawn = trace.select(rng.integers(trace.num_units, size=size))
        try:
            point = certify(drawn, criterion, max_risk=risk, confidence=CONFIDENCE)
        except KnobError:
            fractions.append(1.0)
            continue
        outcome = replay(trace, make(point.criterion, **point.settings), point.knobs)
        fractions.append(float(trace.layers[outcome.exits].mean()) / trace.num_layers)
        promised += 1
        violated += float(about.of(trace, outcome.answers).mean()) > risk
    return {
        "criterion": criterion.name,
        "n": size,
        "risk": risk,
        "draws": draws,
        "layer_speedup": float(1 / np.mean(fractions)),
        "low": float(1 / np.quantile(fractions, 0.9)),
        "high": float(1 / np.quantile(fractions, 0.1)),
        "promised": promised / draws,
        "violated": violated / draws,
    }


def held_out(words: Sequence[str]) -> None:
    """Each trace once: calibrate on its first rows, and report on the others, which nobody looked at."""
    runs = []
    for name, place in (word.split("=", 1) for word in words):
        path, rows = place.rsplit(":", 1)
        trace = load_trace(path)
        order = np.arange(len(trace.lengths))
        parts = trace.select(order[: int(rows)]), trace.select(order[int(rows) :])
        runs.append({
            "task": name, "calibrated": int(rows), "n": parts[1].num_units, "num_layers": trace.num_layers,
            "classes": trace.logits.shape[-1], "runtime": trace.runtime, "dtype": trace.dtype,
            "rows": [row for criterion in CRITERIA for row in held_out_rows(*parts, criterion)],
        })  # fmt: skip
    write_result(HELD_OUT, {"benchmark": "calibration_held_out", "confidence": CONFIDENCE, "runs": runs,
                            **provenance(seeds=[0])})  # fmt: skip
    print(json.dumps({"benchmark": "calibration_held_out", "tasks": [run["task"] for run in runs]}))


def held_out_rows(calibration: Trace, rest: Trace, name: str) -> Iterable[dict[str, Any]]:
    """99 % agreement seen on the calibration rows, without a promise; and a promise of 1 %."""
    about = make_risk("disagreement", rest)
    for wish in ("99 % agreement", "1 % promised"):
        try:
            point = (
                choose(told(calibration), make(name, **_learned(calibration, name)), max_drop=1.0)
                if wish == "99 % agreement"
                else certify(calibration, make(name), max_risk=0.01, confidence=CONFIDENCE)
            )
        except KnobError as error:
            print(f"{name}, {wish}: {error}")
            yield {"criterion": name, "wish": wish, "layer_speedup": None, "disagreement": None}
            continue
        except UnsupportedError as error:  # an exit that gives no distances
            print(f"{name}: {error}")
            return
        outcome = replay(rest, make(point.criterion, **point.settings), point.knobs)
        losses = about.of(rest, outcome.answers)
        speed = rest.num_layers / float(rest.layers[outcome.exits].mean())
        yield {"criterion": name, "wish": wish, "layer_speedup": speed,
               "disagreement": [float(losses.mean()), *bootstrap_interval(losses)]}  # fmt: skip


def _learned(trace: Trace, name: str) -> dict[str, Any]:
    """Settings that are learned from the calibration rows, where the criterion has such."""
    rule = make(name)
    return asdict(fit_stopping(trace, rule, target="agrees")) if isinstance(rule, LearnedStopping) else {}


def page() -> str:
    """The page as the results say it should be."""
    text = PAGE.read_text(encoding="utf-8")
    for path, name, write in ((RESULT, "calibration", tables), (HELD_OUT, "calibration_held_out", held_out_tables)):
        result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        text = replace_block(text, name, "Not run yet." if result is None else write(result))
    return text


def held_out_tables(result: Mapping[str, Any]) -> str:
    """A row a criterion: layer speed-up and disagreement on the rest, for both wishes."""
    lines: list[str] = []
    for run in result["runs"]:
        wishes = list(dict.fromkeys(row["wish"] for row in run["rows"]))
        lines += [
            f"### {run['task']}, held out", "",
            f"Calibrated on {run['calibrated']:,} texts, told on {run['n']:,} others; {run['num_layers']} layers, "
            f"{run['classes']} classes. Layer speed-up, and in brackets answers that differ from the full model's.", "",
            "| criterion | " + " | ".join(wishes) + " |", "|---|" + "---|" * len(wishes),
        ]  # fmt: skip
        for name in dict.fromkeys(row["criterion"] for row in run["rows"]):
            cells = [
                _told(row) for wish in wishes for row in run["rows"] if (row["criterion"], row["wish"]) == (name, wish)
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, _origin(result, "python benchmarks/calibration.py --held-out", "")])


def _told(row: Mapping[str, Any]) -> str:
    if row["layer_speedup"] is None:
        return "nothing"
    mean, low, high = (100 * value for value in row["disagreement"])
    return f"{row['layer_speedup']:.2f}x ({mean:.1f} %, {low:.1f} to {high:.1f})"


def write_page() -> None:
    write_atomically(PAGE, page().encode())
    if RESULT.is_file():
        for task in json.loads(RESULT.read_text(encoding="utf-8"))["tasks"]:
            write_atomically(PICTURES / f"{task['task']}.png", plot(task))


def tables(result: Mapping[str, Any]) -> str:
    """A section a task: layer speed-up by criterion and number of texts (rows) and risk (columns)."""
    lines: list[str] = []
    for task in result["tasks"]:
        lines += [
            f"### {task['task']}", "",
            f"{task['n']:,} texts, {task['num_layers']} layers, {task['classes']} classes; {task['runtime']} "
            f"{task['dtype']}. Layer speed-up over the whole trace, mean of the calibrations; in brackets, where it is "
            "not all, in how many of them something could be promised.", "",
            f"![layer speed-up left at each promised risk](calibration/{task['task']}.png)", "",
            "(Bars hold 80 % of the calibrations; hollow: promised in fewer than half of them.)", "",
            "| criterion | texts | " + " | ".join(f"risk {100 * risk:g} %" for risk in RISKS) + " |",
            "|---|---|" + "---|" * len(RISKS),
        ]  # fmt: skip
        for name, size, cells in _rows(task["cells"]):
            lines.append(f"| {name} | {size:,} | {' | '.join(_cell(cells.get(risk)) for risk in RISKS)} |")
        worst = max(task["cells"], key=lambda one: one["violated"])
        mean = float(np.mean([one["violated"] for one in task["cells"]]))
        lines += [
            "", f"True risk above the promise in {100 * mean:.1f} % of all calibrations of this table (5 % are allowed "
            f"in each cell; the worst had {worst['violated'] * worst['draws']:.0f} of {worst['draws']}).", "",
        ]  # fmt: skip
    how = f"{_draws(result)} a cell, {100 * result['confidence']:g} % confidence, "
    return "\n".join([*lines, _origin(result, "python benchmarks/calibration.py", how)])


def _draws(result: Mapping[str, Any]) -> str:
    """``20 calibrations (10 of learned_stopping)``: how many there were, where that is not the same for all."""
    found: dict[str, set[int]] = {}
    for cell in (cell for task in result["tasks"] for cell in task["cells"]):
        found.setdefault(cell["criterion"], set()).add(cell["draws"])
    said = {name: " or ".join(map(str, sorted(draws))) for name, draws in found.items()}
    others = [f"{draws} of {name}" for name, draws in said.items() if draws != str(result["draws"])]
    return f"{result['draws']} calibrations" + (f" ({', '.join(others)})" if others else "")


def _origin(result: Mapping[str, Any], command: str, how: str) -> str:
    """The papers of the numbers, in a line."""
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in ("mapie", "numpy", "scipy"))
    commit = (result["commit"] or "no commit")[:12] + (" with changes" if result["dirty"] else "")
    return f"<sub>`{command}`, {result['date'][:10]}, commit {commit}, {versions}, {how}seed 0.</sub>"


def _rows(cells: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, int, dict[float, Mapping[str, Any]]]]:
    for name in dict.fromkeys(one["criterion"] for one in cells):
        for size in sorted({one["n"] for one in cells if one["criterion"] == name}):
            yield name, size, {one["risk"]: one for one in cells if (one["criterion"], one["n"]) == (name, size)}


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    if not found["promised"]:
        return "nothing"
    note = "" if found["promised"] == 1 else f" ({found['promised']:.0%})"
    return f"{found['layer_speedup']:.2f}x{note}"


def plot(task: Mapping[str, Any]) -> bytes:
    """PNG: a panel for each number of texts, a line a criterion; bars hold 80 % of the calibrations."""
    figure_module = require("matplotlib.figure", extra="plots")
    require("matplotlib.backends.backend_agg", extra="plots")
    sizes = sorted({one["n"] for one in task["cells"]})
    figure = figure_module.Figure(figsize=(2.9 * len(sizes) + 1, 3.7), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=True):
        for number, (colour, name) in enumerate(zip(COLOURS, CRITERIA, strict=True)):
            cells = [one for one in task["cells"] if (one["criterion"], one["n"]) == (name, size)]
            if cells:
                _draw(axes, cells, colour, 1.045 ** (number - 2), name)
        axes.set(title=f"{size:,} texts", xlabel="promised risk, %", xscale="log")
        axes.set_xticks([100 * risk for risk in RISKS], [f"{100 * risk:g}" for risk in RISKS])
        axes.minorticks_off()
        axes.grid(color="#E3E5E8", linewidth=0.7)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylabel("layer speed-up")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Any, cells: Sequence[Mapping[str, Any]], colour: str, aside: float, name: str) -> None:
    """A criterion's line, a little aside so that bars do not hide each other; hollow: seldom promised."""
    x = [100 * one["risk"] * aside for one in cells]
    y = [one["layer_speedup"] for one in cells]
    bars = [[one["layer_speedup"] - one["low"] for one in cells], [one["high"] - one["layer_speedup"] for one in cells]]
    axes.errorbar(x, y, yerr=np.maximum(bars, 0), color=colour, lw=1.5, elinewidth=1, alpha=0.9, label=name)
    faces = [colour if one["promised"] >= 0.5 else "white" for one in cells]
    axes.scatter(x, y, s=18, facecolors=faces, edgecolors=colour, zorder=3)


if __name__ == "__main__":
    main()
