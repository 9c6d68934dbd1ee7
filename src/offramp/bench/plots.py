"""The picture of ``offramp compare``: score against layer speed-up, every criterion in one plot."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from offramp.errors import require

__all__ = ["plot_comparison"]

# Okabe and Ito's palette, told apart by eyes of every kind; dashes tell the lines apart in print.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A7A00")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)))
_MARKS = "osD^vP"  # of colours, dashes and marks there are 7, 5 and 6: no two of 210 lines look the same
_GREY = "#5F6368"


def plot_comparison(result: Mapping[str, Any], *, title: str | None = None, dpi: int = 160) -> bytes:
    """PNG of a ``compare`` result.

    Lines: score on rows that no knob was chosen on, at the layer speed-up reached there; light band: 95 % interval of
    the baseline, or else of the first line; those of others are about as wide. Grey points: always leaving at one
    exit. Star: the oracle.

    Args:
        result: of ``offramp.calibration.compare.compare``.
        title: a first line above the one that says how it was scored.
        dpi: dots per inch; the figure is 10 by 5 inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", extra="plots")
    require("matplotlib.backends.backend_agg", extra="plots")  # a figure of its own: no window, no global state
    figure = figure_module.Figure(figsize=(10, 5), dpi=dpi, layout="constrained")
    axes = figure.add_subplot()
    lines = [row for row in result["rows"] if row["curve"] and row["name"] != "static"]
    names = [row["name"] for row in lines]
    banded = result["baseline"] if result["baseline"] in names else next(iter(names), None)
    for number, row in enumerate(lines):
        _draw_line(axes, row, number, band=row["name"] == banded)
    _draw_baselines(axes, result)
    note = _note(result, banded)
    _dress(axes, result, f"{title}\n{note}" if title else note)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _draw_line(axes: Any, row: Mapping[str, Any], number: int, *, band: bool) -> None:
    # Points that a coarse knob puts on top of each other are one point.
    points = {round(point["layer_speedup"], 4): point for point in row["curve"]}
    x = sorted(points)
    score = [100 * points[key]["score"] for key in x]
    low, high = ([100 * points[key]["interval"][side] for key in x] for side in (0, 1))
    colour = _COLOURS[number % len(_COLOURS)]
    if band:
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(
        x,
        score,
        color=colour,
        linestyle=_DASHES[number % len(_DASHES)],
        linewidth=1.8,
        marker=_MARKS[number % len(_MARKS)],
        markersize=4,
        label=row["name"],
    )


def _draw_baselines(axes: Any, result: Mapping[str, Any]) -> None:
    exits = result["exits"]
    x, y = [e["layer_speedup"] for e in exits], [100 * e["score"] for e in exits]
    axes.plot(x, y, linestyle="none", marker="s", markersize=5, color=_GREY, label="always leave after layer", zorder=1)
    for one, place, score in zip(exits, x, y, strict=True):
        axes.annotate(
            str(one["layer"]),
            (place, score),
            (0, -11),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=_GREY,
        )
    if result["oracle"] is not None:
        best = result["oracle"]
        axes.plot(
            [best["layer_speedup"]],
            [100 * best["score"]],
            linestyle="none",
            marker="*",
            markersize=13,
            color="black",
            label="oracle",
        )
    full = 100 * result["full_depth"]["score"]
    axes.axhline(full, color=_GREY, linewidth=0.8, linestyle=(0, (1, 3)), label="full depth")


def _dress(axes: Any, result: Mapping[str, Any], title: str) -> None:
    ticker = require("matplotlib.ticker", extra="plots")
    most = result["num_layers"] / result["layers"][0]
    axes.set_xscale("log")
    axes.set_xlim(0.96, max(most, 1.5) * 1.06)
    ticks = [tick for tick in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32) if tick <= most * 1.01]
    axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("layer speed-up (layers of the full model / mean layers executed)")
    percent = " (%)" if result["metric"] == "accuracy" else " x 100"
    axes.set_ylabel(f"{result['metric']}{percent}")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="#E3E5E8", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _note(result: Mapping[str, Any], banded: str | None) -> str:
    band = "" if banded is None else f"; band: 95 % interval of {banded}"
    return f"Scored on rows no knob was chosen on (n = {result['n']:,}, mean of {result['splits']} splits{band})"
