"""The pictures of ``offramp bench``: how many texts a second, and how accurate they are at that speed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from offramp.errors import require

__all__ = ["plot_accuracy", "plot_speed"]

_COLOURS = {"peer": "#9AA0A6", "full": "#56B4E9", "whole": "#56B4E9", "shallow": "#E69F00", "exits": "#0072B2"}
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
    figure, panels = _figure(len(scenarios), (6.2 * len(scenarios), 1.2 + 0.3 * most), dpi)
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
        axes.set_xlabel("texts a second, without tokenisation", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, {row["group"] for row in result["rows"] if "failure" not in row})
    return _png(figure)


def plot_accuracy(result: Mapping[str, Any], *, dpi: int = 160) -> bytes:
    """PNG: accuracy against texts a second, a panel a scenario. Rows with exits stand where their held-out accuracy is.

    Args and raises as ``plot_speed``.
    """
    scenarios = _scenarios(result)
    figure, panels = _figure(len(scenarios), (6.2 * len(scenarios), 4.6), dpi)
    for axes, scenario in zip(panels, scenarios, strict=True):
        rows = _timed(result, scenario)
        for row in rows:
            axes.plot(
                *_place(row, scenario), "s" if row["group"] == "shallow" else "o", color=_COLOURS[row["group"]], ms=5
            )
            words = _words(row, result["fastest_peer"][scenario])
            axes.annotate(
                words, _place(row, scenario), xytext=(5, -9), textcoords="offset points", fontsize=7, color="#3C4043"
            )
        for family in {row["family"] for row in rows if row["group"] == "shallow"}:
            line = sorted(
                _place(row, scenario) for row in rows if row["group"] == "shallow" and row["family"] == family
            )
            axes.plot(*zip(*line, strict=True), color=_COLOURS["shallow"], linewidth=0.8, zorder=0)
        axes.axhline(100 * result["reference"]["accuracy"], color="#9AA0A6", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_title(scenario, fontsize=10)
        axes.set_xlabel("texts a second, without tokenisation", fontsize=9)
        axes.set_ylabel("accuracy, %", fontsize=9)
        axes.set_xscale("log")
        axes.margins(x=0.15)
        low, high = axes.get_xlim()
        ticks = [base * 10**power for power in range(6) for base in (1, 2, 5) if low < base * 10**power < high]
        axes.set_xticks(ticks, labels=[f"{tick:,}" for tick in ticks])
        axes.set_xlim(low, high)
        axes.minorticks_off()
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, {row["group"] for row in result["rows"] if "failure" not in row})
    return _png(figure)


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


def _words(row: Mapping[str, Any], fastest: str | None) -> str:
    """What stands beside a point: only what is worth telling apart."""
    if row["group"] == "shallow":
        return str(row["name"].rpartition("-")[2])
    if row["group"] == "exits":
        return str(row["label"]).removeprefix("offramp ").replace(", at most ", " ≤").removesuffix(" points lost")
    return str(row["label"]) if row["name"] == fastest else ""


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


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
