"""The pictures of ``offramp bench``: how many texts a second, and how accurate they are at that speed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import chain, cycle, repeat
from typing import Any

from offramp.errors import require

__all__ = ["plot_accuracy", "plot_speed"]

_COLOURS = {"peer": "#9AA0A6", "full": "#56B4E9", "whole": "#56B4E9", "shallow": "#E69F00", "exits": "#0072B2"}
_FAMILIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LONE = "#3C4043"
"""Of runtimes that are timed at full depth alone, whose one point needs no colour of its own; and of marks."""
_WORDS = {
    "peer": "full-depth peers",
    "full": "offramp, full depth",
    "whole": "offramp, whole graph without the engine",
    "shallow": "offramp, one static exit",
    "exits": "offramp with exits",
}
_HOW = "without tokenisation"


def plot_speed(result: Mapping[str, Any], *, dpi: int = 160) -> bytes:
    """PNG: bars of texts a second, a panel a scenario, fastest on top; a tick from the slowest round to the fastest.

    Args:
        result: of ``bench.serving.run_bench``.
        dpi: dots per inch.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    scenarios = _scenarios(result)
    most = max(len(_timed(result, scenario)) for scenario in scenarios)
    figure, panels = _figure(len(scenarios), (6.2 * len(scenarios), 1.2 + 0.22 * most), dpi)
    for axes, scenario in zip(panels, scenarios, strict=True):
        rows = sorted(_timed(result, scenario), key=lambda row: _speed(row, scenario)["median"])
        speeds = [_speed(row, scenario) for row in rows]
        medians = [speed["median"] for speed in speeds]
        spread = [
            [speed["median"] - speed["low"] for speed in speeds],
            [speed["high"] - speed["median"] for speed in speeds],
        ]
        axes.barh(
            [row["label"] for row in rows], medians, xerr=spread, height=0.7,
            color=[_COLOURS[row["group"]] for row in rows], error_kw={"elinewidth": 0.8, "ecolor": "#3C4043"},
        )  # fmt: skip
        how = f"batches of {result['settings']['max_rows']}" if scenario == "Offline" else "one text at a time"
        axes.set_title(f"{scenario}: {how}", fontsize=10)
        axes.set_ylim(-0.6, len(rows) - 0.4)  # no empty bars above and below
        axes.set_xlabel("texts a second, without tokenisation", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, {row["group"] for row in result["rows"] if "failure" not in row})
    return _png(figure)


def plot_accuracy(result: Mapping[str, Any], *, dpi: int = 160) -> bytes:
    """PNG: accuracy against texts a second, a panel a scenario; a colour for each runtime that exits were timed on, one
    for all others.

    Solid, from full depth to the fastest operating point: texts leave where they may, at the accuracy of held-out
    texts. Dotted: all leave at the exit whose layer stands there. Grey: full-depth peers, the fastest by name.

    Args and raises as ``plot_speed``.
    """
    scenarios = _scenarios(result)
    names, lone = _families(result)
    colours = dict(chain(zip(names, cycle(_FAMILIES), strict=False), zip(lone, repeat(_LONE), strict=False)))
    figure, panels = _figure(len(scenarios), (6.2 * len(scenarios), 4.6), dpi)
    for axes, scenario in zip(panels, scenarios, strict=True):
        rows = _timed(result, scenario)
        for row in (row for row in rows if row["group"] == "peer"):
            axes.plot(*_place(row, scenario), "o", color=_COLOURS["peer"], ms=5)
            if row["name"] == result["fastest_peer"][scenario]:
                _note(axes, row["label"], _place(row, scenario))
        for family, colour in colours.items():
            _plot_family(axes, [row for row in rows if row["family"] == family], scenario, colour)
        axes.axhline(100 * result["reference"]["accuracy"], color="#9AA0A6", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_title(scenario, fontsize=10)
        axes.set_xlabel("texts a second, without tokenisation", fontsize=9)
        axes.set_ylabel("accuracy, %", fontsize=9)
        axes.set_xscale("log")
        axes.margins(x=0.1)
        low, high = axes.get_xlim()
        ticks = [base * 10**power for power in range(6) for base in (1, 2, 5) if low < base * 10**power < high]
        axes.set_xticks(ticks, labels=[f"{tick:,}" for tick in ticks])
        axes.set_xlim(low, high)
        axes.minorticks_off()
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    _family_legend(figure, names, colours)
    return _png(figure)


def _plot_family(axes: Any, rows: Sequence[Mapping[str, Any]], scenario: str, colour: str) -> None:
    """One runtime: its operating points, and its static exits."""
    early = [row for row in rows if row["group"] in ("full", "exits")]
    static = [row for row in rows if row["group"] == "full"]
    static += sorted((row for row in rows if row["group"] == "shallow"), key=_exit_layer, reverse=True)
    for some, style, mark in ((static, (0, (1, 2)), "s"), (early, "-", "o")):
        places = [_place(row, scenario) for row in some]  # as the rows stand: full depth first
        if len(places) > 1:
            axes.plot(*zip(*places, strict=True), color=colour, linestyle=style, linewidth=1.1)
        for row in some:
            hollow = row["group"] == "full"
            axes.plot(
                *_place(row, scenario), "o" if hollow else mark, color=colour, ms=5,
                markerfacecolor="white" if hollow else colour,
            )  # fmt: skip
            if row["group"] == "shallow":
                _note(axes, str(_exit_layer(row)), _place(row, scenario))


def _exit_layer(row: Mapping[str, Any]) -> int:
    return int(row["name"].rpartition("-")[2])


def _note(axes: Any, words: str, place: tuple[float, float]) -> None:
    axes.annotate(words, place, xytext=(5, -9), textcoords="offset points", fontsize=7, color="#3C4043")


def _families(result: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Those with rows that leave early, by what they are called (``offramp OpenVINO int8, full depth`` is of ``OpenVINO
    int8``), and the others.
    """
    rows = [row for row in result["rows"] if row["family"] and "failure" not in row]
    early = {row["family"] for row in rows if row["group"] in ("exits", "shallow")}
    names: dict[str, str] = {}
    for row in rows:
        if row["family"] in early:
            names.setdefault(row["family"], str(row["label"]).partition(",")[0].removeprefix("offramp "))
    return names, list(dict.fromkeys(row["family"] for row in rows if row["family"] not in early))


def _scenarios(result: Mapping[str, Any]) -> list[str]:
    return [scenario for scenario in result["fastest_peer"] if _timed(result, scenario)]


def _timed(result: Mapping[str, Any], scenario: str) -> list[Mapping[str, Any]]:
    return [row for row in result["rows"] if _HOW in row.get(scenario, {})]


def _speed(row: Mapping[str, Any], scenario: str) -> Mapping[str, float]:
    speed: Mapping[str, float] = row[scenario][_HOW]["texts_per_second"]
    return speed


def _place(row: Mapping[str, Any], scenario: str) -> tuple[float, float]:
    """Texts a second and accuracy; of rows with exits on texts that nothing was chosen on."""
    held_out = row["prepared"].get("held_out")
    accuracy = row[scenario]["accuracy"] if held_out is None else held_out["accuracy"]
    return _speed(row, scenario)["median"], 100 * accuracy


def _figure(panels: int, size: tuple[float, float], dpi: int) -> tuple[Any, Sequence[Any]]:
    module = require("matplotlib.figure", extra="plots")
    require("matplotlib.backends.backend_agg", extra="plots")
    figure = module.Figure(figsize=size, dpi=dpi, layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _legend(figure: Any, groups: set[str]) -> None:
    patches = require("matplotlib.patches", extra="plots")
    shown = [name for name in _WORDS if name in groups and name != "whole"]
    handles = [patches.Patch(color=_COLOURS[name], label=_WORDS[name]) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)


def _family_legend(figure: Any, names: Mapping[str, str], colours: Mapping[str, str]) -> None:
    line = require("matplotlib.lines", extra="plots").Line2D
    handles = [
        line([], [], color=_COLOURS["peer"], marker="o", linestyle="", ms=5, label=_WORDS["peer"]),
        *(line([], [], color=colours[name], linewidth=2, label=f"offramp, {words}") for name, words in names.items()),
        line([], [], color=_LONE, marker="o", ms=5, markerfacecolor="white", linestyle="", label="full depth"),
        line([], [], color=_LONE, marker="o", ms=5, label="with exits"),
        line([], [], color=_LONE, marker="s", ms=5, linestyle=(0, (1, 2)), label="one static exit, its layer"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
