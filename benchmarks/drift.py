"""What a stream of other texts does to an operating point, when a monitor rings, and what falling back saves.

    python benchmarks/drift.py sst2=TRACE sst2/imdb=TRACE mnli10k=TRACE mnli10k/snli=TRACE ... [--streams 200]
    python benchmarks/drift.py --plots        (of benchmarks/results/drift.json; the tables: benchmarks/tables.py)

``MODEL=TRACE`` is what `offramp record` wrote of texts like those the model was trained on, ``MODEL/NAME=TRACE`` of
others; neither was trained on. Again and again calibration texts are drawn from the former with replacement, operating
points with a promise of 2 % and 1 % are certified on them, and streams are drawn: of the former (nothing has changed),
of the latter (from the first text on, or after 1,000 others), and of a mix that is made up to do harm: the former, with
those texts ten times as frequent on which the 2 % point answers otherwise than the full model. All from traces, in
minutes; ends in one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.bench.provenance import provenance, write_result
from offramp.calibration.certify import certify, halves
from offramp.calibration.drift import Reference
from offramp.calibration.monitor import Monitor, Rung
from offramp.calibration.online import ARMS, OnlineThreshold, confidences, exits_of_arms, play, rewards
from offramp.criteria import make
from offramp.errors import KnobError, require
from offramp.traces.curves import bootstrap_interval
from offramp.traces.files import write_atomically
from offramp.traces.replay import replay
from offramp.traces.store import load_trace
from offramp.traces.trace import Trace

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "drift.json"
PICTURES = ROOT / "docs" / "drift"

CRITERION = "confidence"
"""As CeeBERT leaves."""
RISKS = (0.02, 0.01)
CALIBRATION = 2000
FALSE_ALARMS = 0.01
SHADOW = 10
BEFORE = 1000
LENGTH = 4000
CALM = 2000
"""Texts of a stream in which nothing changes."""
HARM = 10
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """What the operating points of one calibration do with the rows of a trace. R points and full depth, U rows."""

    exits: Ints
    """[R + 1, U]."""
    scores: Floats
    """[R + 1, U]: confidence there."""
    losses: Floats
    """[R + 1, U]: 1 where the answer is not the full model's."""
    right: Floats
    """[R + 1, U]: 1 where it is the label; NaN without labels."""
    layers: Ints
    """[E]: of the exits."""

    def take(self, rows: Ints) -> Rows:
        return Rows(self.exits[:, rows], self.scores[:, rows], self.losses[:, rows], self.right[:, rows], self.layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", metavar="MODEL[/STREAM]=TRACE")
    parser.add_argument("--streams", type=int, default=200, help="of each kind")
    parser.add_argument("--null-streams", type=int, default=500, help="in which nothing changes")
    parser.add_argument("--plots", action="store_true", help="only draw what is there")
    options = parser.parse_args()
    if not options.plots:
        if not options.traces:
            sys.exit("name traces, such as sst2=runs/x/traces/dev sst2/imdb=runs/x/traces/imdb; or give --plots")
        traces = {name: load_trace(path) for name, path in (word.split("=", 1) for word in options.traces)}
        measure(traces, options.streams, options.null_streams)
    for name, picture in pictures(json.loads(RESULT.read_text(encoding="utf-8"))).items():
        write_atomically(PICTURES / f"{name}.png", picture)


def measure(traces: Mapping[str, Trace], streams: int, null_streams: int) -> None:
    models = []
    for name in (name for name in traces if "/" not in name):
        others = {key.split("/", 1)[1]: trace for key, trace in traces.items() if key.startswith(f"{name}/")}
        models.append({"model": name, **one_model(traces[name], others, streams, null_streams)})
        result = {
            "benchmark": "drift", "criterion": CRITERION, "risks": RISKS, "calibration": CALIBRATION,
            "false_alarms": FALSE_ALARMS, "shadow_every": SHADOW, "before": BEFORE, "length": LENGTH, "harm": HARM,
            "streams": streams, "null_streams": null_streams, "models": models, **provenance(seeds=[0]),
        }  # fmt: skip
        write_result(RESULT, result)
    print(json.dumps({"benchmark": "drift", "models": [one["model"] for one in models]}))


def one_model(trace: Trace, others: Mapping[str, Trace], streams: int, null_streams: int) -> dict[str, Any]:
    """Everything about one model: the price of each stream, alarms, policies."""
    rng = np.random.default_rng(0)
    drawn = [calibrated(trace, rng) for _ in range(20)]
    told: dict[str, Any] = {"n": trace.num_units, "num_layers": trace.num_layers, "calibrations": len(drawn)}
    told["price"] = [
        {"stream": name, **price([rows_of(other, points) for points, _ in drawn])}
        for name, other in {"like the calibration": trace, **others}.items()
    ]
    told["nothing changes"] = null(trace, null_streams)
    print(told["price"], told["nothing changes"], flush=True)
    told["alarms"], told["policies"] = [], []
    for name, other in {**others, f"made up: {HARM}x as many": None}.items():
        for before in (0, BEFORE):
            told["alarms"].append({"stream": name, "before": before, **alarms(trace, other, before, streams)})
            print({**told["alarms"][-1], "drift": None, "risk": None}, flush=True)
        told["policies"].append({"stream": name, **policies(trace, other, min(20, streams))})
        print({**told["policies"][-1], "course": None}, flush=True)
    return told


Points = list[tuple[Any, Mapping[str, float]]]


def calibrated(trace: Trace, rng: np.random.Generator) -> tuple[Points, list[Reference]]:
    """Operating points with their promises, certified on rows that are drawn; and what they did with those rows."""
    size = min(CALIBRATION, trace.num_units)
    while True:
        drawn = trace.select(rng.integers(trace.num_units, size=size))
        try:
            made = [certify(drawn, make(CRITERION), max_risk=risk) for risk in RISKS]
        except KnobError:  # nothing could be promised on these
            continue
        points: Points = [(make(one.criterion, **one.settings), one.knobs) for one in made]
        proving = halves(drawn, share=0.4, seed=0)[1]
        return points, [Reference.of(proving, rule, knobs) for rule, knobs in points]


def rows_of(trace: Trace, points: Points) -> Rows:
    """Every row of a trace at every point, and at full depth."""
    depth = trace.num_exits - 1
    outcomes = [replay(trace, rule, knobs) for rule, knobs in points]
    exits = np.stack([*(one.exits for one in outcomes), np.full(trace.num_units, depth)])
    answers = np.stack([*(one.answers for one in outcomes), trace.logits[-1]]).astype(np.float64)
    classes, full = answers.argmax(axis=-1), trace.logits[-1].argmax(axis=-1)
    shifted = answers - answers.max(axis=-1, keepdims=True)
    known = np.full(classes.shape, np.nan) if trace.labels is None else (classes == trace.labels).astype(np.float64)
    return Rows(exits, 1 / np.exp(shifted).sum(axis=-1), (classes != full).astype(np.float64), known, trace.layers)


def price(found: Sequence[Rows]) -> dict[str, Any]:
    """The 2 % point on a whole trace, mean over calibrations; intervals are over rows."""
    layers = found[0].layers
    fraction = np.mean([layers[rows.exits[0]] for rows in found], axis=0) / layers[-1]
    told: dict[str, Any] = {"n": len(fraction), "layer_speedup": float(1 / fraction.mean())}
    columns = {
        "agreement": 1 - np.mean([rows.losses[0] for rows in found], axis=0),
        "accuracy": np.mean([rows.right[0] for rows in found], axis=0),
        "full_depth": found[0].right[-1],
    }
    columns["drop"] = columns["full_depth"] - columns["accuracy"]
    for name, values in columns.items():
        known = not np.isnan(values).any()
        told[name] = [float(values.mean()), *bootstrap_interval(values)] if known else None
    return told


Parts = list[tuple[Trace, Ints]]


def stream_of(trace: Trace, other: Trace | None, points: Points, before: int, rng: np.random.Generator) -> Parts:
    """A stream: texts like those of the calibration, then others. Traces, and which of their rows come, in order."""
    calm = (trace, rng.integers(trace.num_units, size=before))
    if other is not None:
        return [calm, (other, rng.permutation(other.num_units)[:LENGTH])]
    weights = 1 + (HARM - 1) * rows_of(trace, points[:1]).losses[0]  # made up: harmful ones are drawn more often
    return [calm, (trace, rng.choice(trace.num_units, size=LENGTH, p=weights / weights.sum()))]


def along(parts: Parts, points: Points) -> Rows:
    """What operating points do along a stream."""
    found = [rows_of(trace, points).take(rows) for trace, rows in parts]
    return Rows(
        np.concatenate([one.exits for one in found], axis=1),
        np.concatenate([one.scores for one in found], axis=1),
        np.concatenate([one.losses for one in found], axis=1),
        np.concatenate([one.right for one in found], axis=1),
        found[0].layers,
    )


def watched(rows: Rows, monitor: Monitor) -> tuple[Ints, NDArray[np.bool_]]:
    """Which point answered each text of a stream, and which were shadow runs."""
    length = rows.exits.shape[1]
    rungs, whole = np.empty(length, dtype=np.int64), np.zeros(length, dtype=bool)
    for t in range(length):
        ticket = monitor.next()
        rung = rungs[t] = ticket.rung
        whole[t] = ticket.whole
        losses = rows.losses[:-1, t].tolist() if ticket.whole else None
        monitor.observe(ticket, int(rows.layers[rows.exits[rung, t]]), float(rows.scores[rung, t]), losses)
    return rungs, whole


def a_monitor(references: Sequence[Reference], seed: int, **settings: Any) -> Monitor:
    monitor = Monitor(false_alarms=FALSE_ALARMS, seed=seed, **{"shadow_every": SHADOW, **settings})
    rungs = [Rung(f"{risk:g}", reference) for risk, reference in zip(RISKS, references, strict=True)]
    monitor.bind(rungs, limit=RISKS[0])
    return monitor


def null(trace: Trace, streams: int) -> dict[str, Any]:
    """Streams in which nothing changes: how many ring, of drift, of risk, and of risk where the promise does hold."""
    rng = np.random.default_rng(1)
    rang = {"drift": 0, "risk": 0, "risk, promise kept": 0}
    for number in range(streams):
        points, references = calibrated(trace, rng)
        own = rows_of(trace, points)
        monitor = a_monitor(references, number)
        watched(own.take(rng.integers(trace.num_units, size=CALM)), monitor)
        kinds = {event.kind for event in monitor.events}
        rang["drift"] += "drift" in kinds
        rang["risk"] += "risk" in kinds
        rang["risk, promise kept"] += "risk" in kinds and own.losses[0].mean() <= RISKS[0]
    return {"streams": streams, "texts": CALM, **rang}


def alarms(trace: Trace, other: Trace | None, before: int, streams: int) -> dict[str, Any]:
    """After how many texts of the other kind each alarm rings; too soon counts as false."""
    rng = np.random.default_rng(2)
    delays: dict[str, list[int]] = {"drift": [], "risk": []}
    false = 0
    for number in range(streams):
        points, references = calibrated(trace, rng)
        rows = along(stream_of(trace, other, points, before, rng), points)
        monitor = a_monitor(references, number)
        watched(rows, monitor)
        first = {kind: next((e.texts for e in monitor.events if e.kind == kind), None) for kind in delays}
        for kind, texts in first.items():
            if texts is not None and texts > before:
                delays[kind].append(texts - before)
            false += texts is not None and texts <= before
    told: dict[str, Any] = {"streams": streams, "false": false, **delays}
    for kind, values in delays.items():
        told[f"{kind}_rang"] = len(values) / streams
        told[f"{kind}_quantiles"] = np.quantile(values, [0.1, 0.5, 0.9]).tolist() if values else None
    return told


def policies(trace: Trace, other: Trace | None, streams: int) -> dict[str, Any]:
    """What each way to choose the point does on the stream's second part, as the stream goes; means over streams."""
    rng = np.random.default_rng(3)
    found: dict[str, list[dict[str, Any]]] = {}
    courses: dict[str, list[Floats]] = {}
    for number in range(streams):
        points, references = calibrated(trace, rng)
        parts = stream_of(trace, other, points, BEFORE, rng)
        for name, (layers, losses, good) in (chosen(parts, points, references, number) | learned(parts)).items():
            later = slice(BEFORE, None)
            found.setdefault(name, []).append(
                {"fraction": layers[later].mean(), "loss": losses[later].mean(), "accuracy": good[later].mean()}
            )
            count = np.arange(1, len(layers) + 1)
            courses.setdefault(name, []).append(np.stack([np.cumsum(layers), np.cumsum(losses)]) / count)
    return {"streams": streams, "rows": [_mean(name, values) for name, values in found.items()],
            "course": {name: _course(values) for name, values in courses.items()}}  # fmt: skip


Course = tuple[Floats, Floats, Floats]
"""Of each text: share of the layers executed, 1 where the answer is not the full model's, 1 where it is right."""


def chosen(parts: Parts, points: Points, references: Sequence[Reference], seed: int) -> dict[str, Course]:
    """The point that was calibrated, as it is and under a monitor; and full depth."""
    rows = along(parts, points)
    every = np.arange(rows.exits.shape[1])
    none = np.zeros(len(every), dtype=bool)
    taken = {
        "fixed": (np.zeros(len(every), dtype=np.int64), none),
        "monitor, falls back": watched(rows, a_monitor(references, seed)),
        "full depth": (np.full(len(every), len(RISKS)), none),
    }
    return {
        name: (
            np.where(whole, rows.layers[-1], rows.layers[rows.exits[rungs, every]]) / rows.layers[-1],
            rows.losses[rungs, every],
            rows.right[rungs, every],
        )
        for name, (rungs, whole) in taken.items()
    }


def learned(parts: Parts) -> dict[str, Course]:
    """CeeBERT as the stream goes, and the best fixed arms of the second part, known only afterwards."""
    layers = parts[0][0].layers
    classes = np.concatenate([trace.logits[:, rows].argmax(axis=-1) for trace, rows in parts], axis=1)
    known = [np.full(len(rows), -1) if trace.labels is None else trace.labels[rows] for trace, rows in parts]
    labels = np.concatenate(known)
    sure = np.concatenate([confidences(trace)[:, rows] for trace, rows in parts], axis=1)
    every = np.arange(len(labels))
    exits, later = exits_of_arms(sure, ARMS), slice(BEFORE, None)
    got = rewards(sure, layers.tolist(), ARMS)[:, later].mean(axis=1)
    lost = (classes[exits, every] != classes[-1])[:, later].mean(axis=1)
    kept = np.flatnonzero(lost <= RISKS[0])
    taken = {
        "CeeBERT": play(sure, OnlineThreshold(layers.tolist())).exits,
        "best threshold for CeeBERT's reward, in hindsight": exits[int(got.argmax())],
        f"fastest threshold within {100 * RISKS[0]:g} %, in hindsight": exits[int(kept[0])]
        if len(kept)
        else np.full(len(every), len(layers) - 1),
    }
    right = np.where(labels < 0, np.nan, classes == labels)
    return {
        name: (layers[e] / layers[-1], (classes[e, every] != classes[-1]).astype(np.float64), right[e, every])
        for name, e in taken.items()
    }


def _mean(name: str, values: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    fractions, losses, good = (np.array([one[key] for one in values]) for key in ("fraction", "loss", "accuracy"))
    return {
        "policy": name,
        "layer_speedup": float(1 / fractions.mean()),
        "disagreement": [float(losses.mean()), float(losses.std())],
        "accuracy": None if np.isnan(good).any() else [float(good.mean()), float(good.std())],
    }


def _course(values: Sequence[Floats]) -> dict[str, list[float]]:
    """Cumulative means, at every 50th text."""
    mean = np.mean(values, axis=0)[:, 49::50]
    return {"fraction": mean[0].round(5).tolist(), "loss": mean[1].round(5).tolist()}


def pictures(result: Mapping[str, Any]) -> dict[str, bytes]:
    """Name -> PNG: for each model when alarms ring, and the course of the policies."""
    found = {}
    for one in result["models"]:
        found[f"{one['model']}-alarms"] = alarms_picture(one, result)
        found[f"{one['model']}-policies"] = policies_picture(one, result)
    return found


def alarms_picture(one: Mapping[str, Any], result: Mapping[str, Any]) -> bytes:
    """Share of streams in which the alarm has rung, by texts since the change: drift left, risk right."""
    figure = _figure(9.6, 3.6)
    panels = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(cell["stream"] for cell in one["alarms"]))
    for axes, kind in zip(panels, ("drift", "risk"), strict=True):
        for colour, name in zip(COLOURS, names, strict=False):
            for cell in (cell for cell in one["alarms"] if cell["stream"] == name):
                x = np.sort(cell[kind])
                y = np.arange(1, len(x) + 1) / cell["streams"]
                share = [0.0, *y, y[-1] if len(y) else 0.0]
                axes.step(
                    [1, *x, result["length"]], share, where="post", color=colour, lw=1.6,
                    ls="--" if cell["before"] else "-", label=None if cell["before"] else name,
                )  # fmt: skip
        axes.set(title=f"{kind} alarm", xlabel="texts since the change", xscale="log", ylim=(-0.02, 1.02))
        axes.set_xlim(5, result["length"])
        _dress(axes)
    panels[0].set_ylabel("share of streams that rang")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(
        f"{one['model']}: solid, changed from the first text on; dashed, after {result['before']:,} others", fontsize=10
    )
    return _png(figure)


def policies_picture(one: Mapping[str, Any], result: Mapping[str, Any]) -> bytes:
    """Cumulative share of answers that differ, and of layers, along the stream; a column a stream."""
    cells = one["policies"]
    figure = _figure(3.3 * len(cells) + 0.6, 5.2)
    panels = figure.subplots(2, len(cells), sharex=True, sharey="row", squeeze=False)
    for column, cell in enumerate(cells):
        for colour, (name, course) in zip(COLOURS, cell["course"].items(), strict=False):
            x = 50 * np.arange(1, len(course["loss"]) + 1)
            if name != "full depth":
                panels[0][column].plot(x, 100 * np.array(course["loss"]), color=colour, lw=1.6, label=name)
            panels[1][column].plot(x, 100 * np.array(course["fraction"]), color=colour, lw=1.6, label=name)
        panels[0][column].set_title(cell["stream"], fontsize=9)
        panels[1][column].set_xlabel("texts")
        panels[0][column].axhline(100 * result["risks"][0], color="#5F6368", lw=0.8, ls=":")
        for axes in (panels[0][column], panels[1][column]):
            axes.axvline(result["before"], color="#5F6368", lw=0.8, ls="--")
            _dress(axes)
    panels[0][0].set_ylabel("answers that differ, %")
    panels[1][0].set_ylabel("layers executed, %")
    handles = panels[1][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    require("matplotlib.backends.backend_agg", extra="plots")
    return require("matplotlib.figure", extra="plots").Figure(figsize=(width, height), dpi=130, layout="constrained")


def _dress(axes: Any) -> None:
    axes.grid(color="#E3E5E8", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


if __name__ == "__main__":
    main()
