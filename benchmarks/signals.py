"""What entropy, distance ratio and EDR know of an exit's answer, by layer; and how texts lie among the prototypes.

    python benchmarks/signals.py                                          (numbers, from the suite's kept traces)
    python benchmarks/signals.py --data DATA --runs TASK=RUN [...]        (and of run folders, with pictures)

Numbers, for every DE3-BERT training of the suite and for every run (its dev trace): the AUROC of each signal for "this
exit is right", by layer; and at 2x and 3x layer speed-up (entropy's thresholds, chosen on the same rows: this
describes, it does not promise) how many leave where, how many of them are wrong (and right at full depth), and whether
a signal still tells those from the right ones. Beside them, how often the nearest prototype is the right class's, and
the score of early exit by each signal, with knobs chosen on one half and scored on the other.

Writes benchmarks/results/signals.json; pictures (two principal components of the metric space, dev texts by class,
prototypes as stars) go to docs/research/space-TASK.png.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from offramp.bench.provenance import provenance, write_result
from offramp.bench.suite_results import DONE, Results
from offramp.calibration.compare import compare
from offramp.calibration.sweep import choose
from offramp.cli.common import quiet_transformers
from offramp.criteria import make
from offramp.criteria.distance import distance_ratio, fuse
from offramp.criteria.entropy import normalised_entropy
from offramp.errors import KnobError
from offramp.model.modeling import load_early_exit
from offramp.traces.files import write_atomically
from offramp.traces.replay import replay
from offramp.traces.store import load_trace
from offramp.traces.trace import Trace
from prototypes import LAMBDAS, encode_part  # beside this file

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "signals.json"
PICTURES = ROOT / "docs" / "research"
TARGETS = (2.0, 3.0)
SPLITS = 20
RECIPES = ("de3bert", "de3bert-alone")
"""Rows of the suite: trained jointly, and the exits on alone after it."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
Floats = NDArray[np.float64]


def signals(trace: Trace, exit_: int) -> dict[str, Floats]:
    """Each signal of doubt [U] at one exit."""
    logits, far = trace.logits[exit_], trace.extras["distances"][exit_]
    entropy, ratio = normalised_entropy(logits), distance_ratio(far, logits)
    return {"entropy": entropy, "dr": ratio, "edr": fuse(entropy, ratio, lam=1.0)}


def wrong_at(trace: Trace, exit_: int) -> NDArray[np.bool_]:
    """[U]: the exit's own answer is wrong."""
    return np.asarray(trace.logits[exit_].argmax(axis=-1) != trace.labels)


def auroc(trace: Trace) -> dict[str, list[float]]:
    """Signal -> one number an early exit. ``fitted``: what a learned fusion of entropy and DR gets, out of fold."""
    found: dict[str, list[float]] = {"entropy": [], "dr": [], "edr": [], "entropy, fitted": [], "both, fitted": []}
    for exit_ in range(trace.num_exits - 1):
        wrong, told = wrong_at(trace, exit_), signals(trace, exit_)
        told["entropy, fitted"] = fitted([told["entropy"]], wrong)
        told["both, fitted"] = fitted([told["entropy"], told["dr"]], wrong)
        for name, signal in told.items():
            found[name].append(float(roc_auc_score(wrong, signal)))
    return found


def fitted(inputs: Sequence[Floats], wrong: NDArray[np.bool_]) -> Floats:
    """P(wrong) out of fold: a logistic regression on cubic terms of the signals' ranks, ten folds."""
    ranks = np.stack([rankdata(one) / len(one) for one in inputs], axis=1)
    model = make_pipeline(PolynomialFeatures(3), StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(10, shuffle=True, random_state=0)
    found: Floats = cross_val_predict(model, ranks, wrong, cv=folds, method="predict_proba")[:, 1]
    return found


def leavers(trace: Trace, target: float) -> list[dict[str, Any]] | None:
    """Who leaves where at a layer speed-up by entropy; None where it is not reached."""
    rule = make("entropy")
    try:
        point = choose(trace, rule, speedup=target)
    except KnobError:
        return None
    exits = replay(trace, rule, point.knobs).exits
    rows = []
    for exit_ in range(trace.num_exits - 1):
        left = np.flatnonzero(exits == exit_)
        wrong = wrong_at(trace, exit_)[left]
        both = 0 < wrong.sum() < len(left)
        told = {name: signal[left] for name, signal in signals(trace, exit_).items()}
        rows.append(
            {
                "layer": int(trace.layers[exit_]),
                "left": len(left),
                "wrong": int(wrong.sum()),
                "right at full depth": int((wrong & ~wrong_at(trace, trace.num_exits - 1)[left]).sum()),
                # Among those whom entropy let go: does a signal still know right from wrong?
                "auroc": {name: float(roc_auc_score(wrong, one)) if both else None for name, one in told.items()},
            }
        )
    return rows


def numbers(results: Results) -> list[dict[str, Any]]:
    """One entry a DE3-BERT training that the suite kept."""
    if not (results.folder / "suite.json").is_file():
        return []
    _, cells = results.read()
    found = []
    for cell in cells:
        if cell["recipe"] not in RECIPES or cell["status"] != DONE:
            continue
        entry = cell_numbers(cell["task"], results.trace(cell["task"], cell["key"]))
        found.append({**entry, "seed": cell["seed"], "of": "the suite", "recipe": cell["recipe"]})
    return found


def early_exit(trace: Trace) -> dict[str, list[dict[str, Any] | None]]:
    """Criterion -> at each layer speed-up its score, on rows its knobs were not chosen on, and the gap to entropy."""
    rules = {"entropy": [make("entropy")], "dr": [make("dr")], "edr": [make("edr", lam=lam) for lam in LAMBDAS]}
    result = compare(trace, rules=rules, targets=TARGETS, splits=SPLITS)
    return {
        row["name"]: [
            cell and {"score": cell["score"], "interval": cell["interval"], "gap": cell["against_baseline"]}
            for cell in row["cells"]
        ]
        for row in result["rows"]
    }


def cell_numbers(task: str, trace: Trace) -> dict[str, Any]:
    """What the signals of one trace are worth."""
    far = trace.extras["distances"]
    return {
        "task": task,
        "n": trace.num_units,
        "classes": trace.logits.shape[-1],
        "accuracy": [float(1 - wrong_at(trace, e).mean()) for e in range(trace.num_exits)],
        "nearest": [float((far[e].argmin(axis=-1) == trace.labels).mean()) for e in range(trace.num_exits - 1)],
        "early_exit": early_exit(trace),
        "auroc": auroc(trace),
        "leavers": {f"{target:g}": leavers(trace, target) for target in TARGETS},
    }


def run_numbers(task: str, folder: Path) -> dict[str, Any]:
    """Of a run folder, on the dev rows that training recorded."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    entry = cell_numbers(task, load_trace(folder / "traces" / "dev.safetensors"))
    about = {"train_rows": record["rows"]["train"], "epochs": record["arguments"]["num_train_epochs"]}
    return {**entry, **about, "seed": record["arguments"]["seed"], "of": "a run of its own"}


# Pictures


@torch.inference_mode()
def picture(folder: Path, data: Path) -> bytes:
    """PNG: one panel an early exit; at most six classes, the first by number."""
    dev = encode_part(folder, data, "dev")
    heads = load_early_exit(folder).eval().offramp.early
    names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
    shown = np.flatnonzero(dev.labels < len(COLOURS))
    figure = Figure(figsize=(3.6 * len(heads), 4.2), dpi=110, layout="constrained")
    for place, head in enumerate(heads):
        axes = figure.add_subplot(1, len(heads), place + 1)
        z = head.network(torch.from_numpy(dev.pooled[place][shown])).numpy()
        means = head.prototypes.means.numpy()[: len(COLOURS)]
        points, stars = _flat(z, means)
        for number in range(len(means)):
            mine = dev.labels[shown] == number
            axes.scatter(points[mine, 0], points[mine, 1], s=5, alpha=0.35, color=COLOURS[number], linewidths=0)
            look = {"color": COLOURS[number], "edgecolor": "black", "label": names[str(number)]}
            axes.scatter(stars[number, 0], stars[number, 1], s=190, marker="*", **look)
        axes.set_title(f"after layer {place + 1}", fontsize=10)
        axes.set_xlabel("1st principal component")
        axes.set_ylabel("2nd" if place == 0 else "")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(COLOURS), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _flat(z: Floats, means: Floats) -> tuple[Floats, Floats]:
    """Two principal components of the texts; the prototypes in the same plane."""
    centre = z.mean(axis=0)
    plane = np.linalg.svd(z - centre, full_matrices=False)[2][:2].T
    return (z - centre) @ plane, (means - centre) @ plane


def report(entries: Sequence[Mapping[str, Any]]) -> None:
    for one in entries:
        told = {name: " ".join(f"{value:.3f}" for value in by_exit) for name, by_exit in one["auroc"].items()}
        print(f"{one['task']:<10} seed {one['seed']}  {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="holds a folder a task")
    parser.add_argument("--runs", nargs="+", default=(), metavar="TASK=RUN", help="DE3-BERT runs")
    options = parser.parse_args()
    quiet_transformers()
    runs = {task: Path(folder) for task, _, folder in (named.partition("=") for named in options.runs)}
    entries = numbers(Results(ROOT / "benchmarks" / "results" / "suite"))
    entries += [run_numbers(task, folder) for task, folder in runs.items()]
    seeds = sorted({one["seed"] for one in entries})
    write_result(RESULT, {"targets": TARGETS, "cells": entries, **provenance(seeds=seeds)})
    report(entries)
    for task, folder in runs.items():
        write_atomically(PICTURES / f"space-{task}.png", picture(folder, options.data / task))
    print(json.dumps({"benchmark": "signals", "cells": len(entries)}))


if __name__ == "__main__":
    main()
