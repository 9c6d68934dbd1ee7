"""The pictures of a suite: score against layer speed-up, one panel a task, one picture a tier."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from offramp.errors import require

__all__ = ["figures", "plot_tier"]

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A7A00")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
_MARKS = "osD^vP*X<>hp8d"
_GREY = "#5F6368"
_COLUMNS = 2


def figures(numbers: Mapping[str, Any]) -> dict[str, str]:
    """File name -> tier, of the tiers that have something to draw which no tier before them shows."""
    drawn = {row["recipe"] for task in numbers["tasks"] for row in task["rows"] if row["kind"] == "recipe"}
    found: dict[str, str] = {}
    for tier, recipes in numbers["tiers"].items():
        mine = drawn.intersection(recipes)
        if mine and not any(mine <= set(numbers["tiers"][one]) for one in found.values()):
            found[f"tier-{tier}.png"] = tier
    return found


def plot_tier(numbers: Mapping[str, Any], tier: str, *, dpi: int = 130) -> bytes:
    """PNG of a tier: a line a recipe with a light band (95 % interval over dev rows).

    In every panel, whatever the tier: the baseline (black), static exits of that model (grey
    squares), separately fine-tuned encoders of k layers (crosses), the oracle (star).

    Args:
        numbers: of ``suite_tables.compute``.
        tier: one that has something to draw.
        dpi: dots per inch.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", extra="plots")
    require("matplotlib.backends.backend_agg", extra="plots")
    baseline = numbers["baseline"]
    tasks = [task for task in numbers["tasks"] if _lines(task, numbers["tiers"][tier])]
    recipes = [name for name in numbers["tiers"][tier] if name != baseline]
    rows = math.ceil(len(tasks) / _COLUMNS)
    columns = min(_COLUMNS, len(tasks))
    figure = figure_module.Figure(figsize=(6 * columns, 4.2 * rows + 1), dpi=dpi, layout="constrained")
    handles: dict[str, Any] = {}
    for place, task in enumerate(tasks):
        axes = figure.add_subplot(rows, columns, place + 1)
        handles |= _panel(axes, task, recipes, baseline)
    figure.suptitle(f"Tier {tier}: knobs scored on rows they were not chosen on; bands are 95 % intervals", fontsize=10)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=2 * columns, fontsize=8, frameon=False
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _lines(task: Mapping[str, Any], recipes: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and row of those recipes that have a curve here."""
    return [
        (row["name"], row)
        for row in task["rows"]
        if row["kind"] == "recipe" and row["recipe"] in recipes and row["curve"]
    ]


def _panel(axes: Any, task: Mapping[str, Any], recipes: Sequence[str], baseline: str) -> dict[str, Any]:
    """Draw a task; the legend's names and lines."""
    handles: dict[str, Any] = {}
    for name, row in _lines(task, [baseline]):
        handles[name] = _line(axes, row, "black", "-", "o", band=True)
    for name, row in _lines(task, recipes):
        number = recipes.index(name)  # the same look in every panel
        look = (_COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)])
        handles[name] = _line(axes, row, *look, _MARKS[number % len(_MARKS)], band=len(recipes) <= len(_COLOURS))
    if task["exits"]:
        handles[f"static exits of {baseline}"] = _points(axes, task["exits"], "s", _GREY, 5)
    for kind, mark, colour, size in (("layers", "x", _GREY, 7), ("oracle", "*", "black", 12)):
        for row in task["rows"]:
            if row["kind"] == kind and row["curve"]:
                handles[row["name"]] = _points(axes, row["curve"], mark, colour, size)
    _dress(axes, task)
    return handles


def _line(axes: Any, row: Mapping[str, Any], colour: str, dashes: Any, mark: str, *, band: bool) -> Any:
    # Points that a coarse knob puts on top of each other are one point.
    points = {round(point["layer_speedup"], 4): point["score"] for point in row["curve"]}
    x = sorted(points)
    if band and all(points[key]["interval"] for key in x):
        low, high = ([100 * points[key]["interval"][side] for key in x] for side in (0, 1))
        axes.fill_between(x, low, high, color=colour, alpha=0.08, linewidth=0)
    y = [100 * points[key]["mean"] for key in x]
    return axes.plot(x, y, color=colour, linestyle=dashes, linewidth=1.5, marker=mark, markersize=4)[0]


def _points(axes: Any, points: Sequence[Mapping[str, Any]], mark: str, colour: str, size: float) -> Any:
    x = [point["layer_speedup"] for point in points]
    y = [100 * point["score"]["mean"] for point in points]
    if all(point["score"]["interval"] for point in points):
        ends = [[100 * abs(p["score"]["interval"][side] - p["score"]["mean"]) for p in points] for side in (0, 1)]
        axes.errorbar(x, y, yerr=ends, fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.5, zorder=1)
    return axes.plot(x, y, linestyle="none", marker=mark, markersize=size, color=colour, zorder=2)[0]


def _dress(axes: Any, task: Mapping[str, Any]) -> None:
    ticker = require("matplotlib.ticker", extra="plots")
    axes.set_xscale("log")
    ticks = [tick for tick in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32) if tick <= task["num_layers"]]
    axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("layer speed-up", fontsize=8)
    axes.set_ylabel(f"{task['metric']} x 100", fontsize=8)
    axes.set_title(f"{task['task']} ({task['n']:,} dev rows)", fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.grid(color="#E3E5E8", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
