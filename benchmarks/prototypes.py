"""When does distance to prototypes help? One change at a time, on the cached features of trained models.

    python benchmarks/prototypes.py --data DATA --runs RUN [RUN ...] [--work runs/prototypes] [--minutes 60]

RUN is a folder trained on DATA/<name of the data it says it was trained on>. Its encoder and classifiers stay as they
are, so entropy does too; what changes is the prototypical network, its training, the prototypes, the distance, and how
distance and entropy are fused. Encoded once (about a minute a run); a variant then takes seconds.

Dev is parted at random, several times: one third is *held out* (for variants that learn from rows the encoder was not
trained on, and for temperatures), two thirds judge. There every knob (lambda and threshold) is chosen on one half and
scored on the other. Finished (run, variant) pairs are kept and skipped. Writes benchmarks/results/prototypes.json after
every one; `benchmarks/tables.py` writes the tables of docs/research/de3bert.md from it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from offramp.bench.provenance import provenance, write_result
from offramp.bench.significance import standard_error
from offramp.calibration.compare import compare
from offramp.calibration.temperature import fit_temperatures
from offramp.cli.common import quiet_transformers
from offramp.criteria import make
from offramp.criteria.distance import distance_ratio, fuse
from offramp.criteria.entropy import normalised_entropy
from offramp.inputs.batching import length_sorted, pad
from offramp.inputs.tokens import Encoded, Tokenizer
from offramp.model.heads.prototypical import distances_to
from offramp.model.modeling import load_early_exit
from offramp.model.prototypes import Prototypes
from offramp.objectives.distance_aware import distance_regularisation
from offramp.run import Run
from offramp.tasks import make_task
from offramp.traces.trace import Trace
from offramp.training.data import load_examples, row_hashes

RESULT = Path(__file__).parent / "results" / "prototypes.json"
LAMBDAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
TARGETS = (1.5, 2.0, 3.0, 4.0)
REPEATS, SPLITS, RESAMPLES = 3, 10, 400
BATCH, LEARNING_RATE = 128, 2e-3
"""Of the prototypical network."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is done with a trained model's features. The defaults are the recipe's."""

    network: str = "linear"
    """linear, mlp, identity (no network), whitened (no network; within-class covariance made round)."""
    width: int = 128
    form: str = "ratio"
    epochs: int = 3
    """0: the network stays as it was drawn."""
    dropout: float = 0.0
    """On the network's input, while it learns."""
    rate: float = 0.1
    means: str = "moving"
    """moving (as trained), train (exact class means at the end), held out (of rows the encoder never saw)."""
    learns_from: str = "train"
    """Rows that network and prototypes learn from: train, held out."""
    shrinkage: float = 0.5
    """Whitened: share of the identity in the covariance."""
    centres: int = 1
    """Prototypes a class (k-means over what it learns from); the distance is to the nearest."""
    neighbours: int = 0
    """Above 0: no prototypes; distance to a class = to its k-th nearest row (density)."""
    distance: str = "euclidean"
    classifier: bool = False
    """Early exits' classifiers are trained again, as the prototypical network is: does distance help, or a second and
    better trained reading of the same vector?"""
    pooler: str = ""
    """Classifiers are trained again with a pooler (a layer and tanh) of their own; the prototypical network reads what
    goes into it (before) or what comes out (after)."""
    classes: int = 0
    """Above 0: the classes are dealt at random into problems of so many, each with classifiers, network and prototypes
    of its own, which take as many steps as all classes together would; a text is judged among those of its problem."""
    temperature: bool = False
    """Logits at temperatures fitted to the held-out third, for entropy alone as well."""
    rule: Mapping[str, Any] = field(default_factory=dict)
    """Settings of EDR."""


VARIANTS: dict[str, Variant] = {
    "base": Variant(),
    "untrained network": Variant(epochs=0),
    "10 epochs": Variant(epochs=10),
    "hinge": Variant(form="hinge"),
    "softmax": Variant(form="softmax"),
    "width 32": Variant(width=32),
    "width 384": Variant(width=384),
    "mlp": Variant(network="mlp"),
    "dropout .3": Variant(dropout=0.3),
    "rate .01": Variant(rate=0.01),
    "rate .5": Variant(rate=0.5),
    "means of train at the end": Variant(means="train"),
    "means of held-out rows": Variant(means="held out"),
    "learned from held-out rows": Variant(learns_from="held out", epochs=30),
    "no network": Variant(network="identity", means="train", epochs=0),
    "no network, held-out means": Variant(network="identity", means="held out", epochs=0),
    "whitened, shrinkage .5": Variant(network="whitened", means="train", epochs=0),
    "whitened, shrinkage .1": Variant(network="whitened", means="train", epochs=0, shrinkage=0.1),
    "whitened, held out": Variant(network="whitened", learns_from="held out", means="train", epochs=0),
    "no network, squared": Variant(network="identity", means="train", epochs=0, distance="squared"),
    "no network, cosine": Variant(network="identity", means="train", epochs=0, distance="cosine"),
    "no network, 4 centres": Variant(network="identity", means="train", epochs=0, centres=4),
    "no network, 10th neighbour": Variant(network="identity", epochs=0, neighbours=10),
    "no network, 1st neighbour": Variant(network="identity", epochs=0, neighbours=1),
    "no network, 50th neighbour": Variant(network="identity", epochs=0, neighbours=50),
    "whitened, 10th neighbour": Variant(network="whitened", means="train", epochs=0, neighbours=10),
    "10th neighbour, held out": Variant(network="identity", epochs=0, neighbours=10, learns_from="held out"),
    "r1 nearest": Variant(rule={"own": "nearest"}),
    "r2 mean": Variant(rule={"others": "mean"}),
    "arithmetic": Variant(rule={"fusion": "arithmetic"}),
    "geometric": Variant(rule={"fusion": "geometric"}),
    "max": Variant(rule={"fusion": "max"}),
    "temperature": Variant(temperature=True),
    "classifiers trained again": Variant(classifier=True),
    "classifiers trained again, softmax": Variant(classifier=True, form="softmax"),
    "classifiers trained again, 50 epochs": Variant(classifier=True, epochs=50),
    "classifiers with a pooler, network before it": Variant(pooler="before"),
    "classifiers with a pooler, network after it": Variant(pooler="after"),
    "classifiers with a pooler, means before it": Variant(pooler="before", network="identity", means="train"),
    "classifiers with a pooler, means after it": Variant(pooler="after", network="identity", means="train"),
    **{f"{k} classes": Variant(classifier=True, classes=k) for k in (2, 5, 10, 20, 38)},
    "no network, geometric": Variant(network="identity", means="train", epochs=0, rule={"fusion": "geometric"}),
    "no network, temperature": Variant(network="identity", means="train", epochs=0, temperature=True),
}


@dataclass(frozen=True, eq=False)
class Features:
    """What the exits of a frozen model read and say. A exits before the last, E in all."""

    pooled: Floats
    """[A, N, H]."""
    logits: Floats
    """[E, N, C]."""
    labels: NDArray[np.int64]
    lengths: NDArray[np.int64]


# From a run folder to features


def encoded_features(folder: Path, data: Path, work: Path) -> tuple[Features, Features, dict[str, Any]]:
    """Features of the rows it was trained on, and of dev; computed once."""
    run = Run.open(folder)
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    about = {"recipe": run.recipe, "epochs": record["arguments"]["num_train_epochs"], "rows": record["rows"]}
    kept = work / f"{folder.name}.npz"
    if not kept.is_file():
        work.mkdir(parents=True, exist_ok=True)
        parts = [encode_part(folder, data, part) for part in ("train", "dev")]
        temporary = kept.with_suffix(".tmp.npz")
        np.savez(temporary, **{f"{p}_{k}": v for p, one in enumerate(parts) for k, v in vars(one).items()})
        temporary.replace(kept)
    with np.load(kept) as stored:
        both = [Features(**{k: stored[f"{p}_{k}"] for k in ("pooled", "logits", "labels", "lengths")}) for p in (0, 1)]
    return both[0], both[1], about


def encode_part(folder: Path, data: Path, part: str) -> Features:
    """Features of a part of a data set; of ``train``, the rows that the run was trained on."""
    run = Run.open(folder)
    task = make_task(run.problem_type, run.id2label)
    name = next(p for p in (part, "validation", "test") if (data / f"{p}.jsonl").is_file())
    examples = load_examples(str(data / f"{name}.jsonl"), task)
    assert examples.labels is not None
    rows = np.arange(len(examples.texts))
    if part == "train":
        trained = run.training_hashes
        rows = rows[np.isin(row_hashes(examples.texts), trained)]
    texts = Tokenizer.from_folder(folder, max_length=run.max_length).encode([examples.texts[i] for i in rows])
    model = load_early_exit(folder).eval()
    pooled, logits = _forward(model, texts)
    return Features(pooled, logits, np.asarray(examples.labels)[rows], np.array([len(text) for text in texts]))


@torch.inference_mode()
def _forward(model: Any, texts: Sequence[Encoded]) -> tuple[Floats, Floats]:
    """[A, N, H] and [E, N, C]."""
    types = any(text.token_types is not None for text in texts)
    pooled: list[Floats | None] = [None] * len(texts)
    logits: list[Floats | None] = [None] * len(texts)
    parts = model.cuts()
    for rows in length_sorted([len(text) for text in texts], max_rows=32):
        inputs = pad([texts[i] for i in rows], rows.tolist(), pad_token=0, token_types=types)
        tokens, lengths = torch.from_numpy(inputs["tokens"]), torch.from_numpy(inputs["lengths"])
        hidden = parts[0].embed(tokens, lengths, torch.from_numpy(inputs["token_types"]) if types else None)
        read: list[Tensor] = []
        said: list[Tensor] = []
        for stage, one in zip(model.stages, parts, strict=True):
            hidden = model.run_stage(one, stage, hidden, lengths)
            said.append(model.run_exit(one, stage, hidden, lengths, {})[0].logits)
            if not stage.is_last:
                read.append(model.pool(one, model.offramp.normalise(stage.index, hidden), lengths))
        for place, row in enumerate(rows):
            pooled[row] = torch.stack([one[place] for one in read]).numpy()
            logits[row] = torch.stack([one[place] for one in said]).numpy()
    return np.stack(pooled, axis=1), np.stack(logits, axis=1)  # type: ignore[arg-type]


# From features to distances


def distances(variant: Variant, learn: Features, held: Features, judge: Features, seed: int) -> Floats:
    """[A, N of judge, C] of a variant."""
    source = held if variant.learns_from == "held out" else learn
    found = []
    for exit_ in range(len(judge.pooled)):
        x, y = torch.from_numpy(source.pooled[exit_]), torch.from_numpy(source.labels)
        network, means = _space(variant, x, y, judge.logits.shape[-1], seed + exit_)
        with torch.inference_mode():
            if variant.means != "moving":
                other = held if variant.means == "held out" else source
                means = _class_means(
                    network(torch.from_numpy(other.pooled[exit_])), torch.from_numpy(other.labels), means
                )
            z = network(torch.from_numpy(judge.pooled[exit_]))
            found.append(_to_classes(variant, z, network(x), y, means).numpy())
    return np.stack(found)


def _to_classes(variant: Variant, z: Tensor, source: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    if variant.neighbours:
        return torch.stack([_kth(z, source[labels == k], variant.neighbours) for k in range(len(means))], dim=1)
    seen = torch.ones(len(means), dtype=torch.bool)
    if variant.centres > 1:
        centres = [_centres(source[labels == k], variant.centres) for k in range(len(means))]
        return torch.stack([torch.cdist(z, one).amin(dim=1) for one in centres], dim=1)
    return distances_to(z, means, seen, distance=variant.distance)  # type: ignore[arg-type]


def _kth(z: Tensor, rows: Tensor, k: int) -> Tensor:
    """[N]: distance to the k-th nearest of some rows, or the farthest where there are fewer; infinite without any."""
    if len(rows) == 0:
        return torch.full((len(z),), float("inf"))
    far: Tensor = torch.cdist(z, rows).kthvalue(min(k, len(rows)), dim=1).values
    return far


def _centres(rows: Tensor, number: int) -> Tensor:
    found = KMeans(min(number, len(rows)), n_init=1, random_state=0).fit(rows.numpy())
    return torch.from_numpy(found.cluster_centers_).float()


def _class_means(z: Tensor, labels: Tensor, before: Tensor) -> Tensor:
    """Class means; a class without a row keeps what it had."""
    sums = torch.zeros_like(before).index_add_(0, labels, z)
    counts = torch.bincount(labels, minlength=len(before)).float()[:, None]
    return torch.where(counts > 0, sums / counts.clamp(min=1), before)


def _space(variant: Variant, x: Tensor, y: Tensor, classes: int, seed: int) -> tuple[nn.Module, Tensor]:
    """The network into the metric space, and the prototypes as training leaves them."""
    torch.manual_seed(seed)
    if variant.network in ("identity", "whitened"):
        means = _class_means(x, y, x.mean(dim=0).repeat(classes, 1))
        if variant.network == "identity":
            return nn.Identity(), means
        round_ = nn.Linear(x.shape[1], x.shape[1], bias=False)
        round_.weight.data = _whitening(x - means[y], variant.shrinkage)
        return round_, means @ round_.weight.data.T
    network = _network(variant, x.shape[1])
    prototypes = Prototypes(classes, variant.width, rate=variant.rate)
    if variant.epochs == 0:
        with torch.no_grad():
            prototypes.gather(network(x), y)
        prototypes.advance()
        return network, prototypes.means
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    steps = variant.epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    for _ in range(variant.epochs):
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            z = network(nn.functional.dropout(x[rows], variant.dropout))
            loss = distance_regularisation(
                distances_to(z, prototypes.means, prototypes.seen),
                y[rows],
                form=variant.form,  # type: ignore[arg-type]
            )
            if loss.requires_grad:  # not at the very first step: there is no prototype yet
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
            prototypes.gather(z, y[rows])
            prototypes.advance()
    return network.eval().requires_grad_(False), prototypes.means


def _network(variant: Variant, size: int) -> nn.Module:
    """Drawn as the exits' own are: weights of standard deviation .02."""
    layers: list[nn.Module] = [nn.Linear(size, variant.width)]
    if variant.network == "mlp":
        layers += [nn.GELU(), nn.Linear(variant.width, variant.width)]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def _whitening(within: Tensor, shrinkage: float) -> Tensor:
    """W with W' W the inverse of the within-class covariance, shrunk towards a multiple of the identity."""
    covariance = (within.T @ within / len(within)).double()
    size = len(covariance)
    round_ = torch.eye(size, dtype=torch.float64) * covariance.trace() / size
    values, vectors = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * round_)
    result: Tensor = (vectors / values.sqrt()).T.float()
    return result


def _retrained(variant: Variant, learn: Features, classes: int, seed: int) -> list[nn.Sequential]:
    """For each early exit a pooler (or nothing) and a classifier, trained on the frozen features."""
    return [
        _classifier(variant, torch.from_numpy(pooled), torch.from_numpy(learn.labels), classes, seed + exit_)
        for exit_, pooled in enumerate(learn.pooled)
    ]


def _classifier(variant: Variant, x: Tensor, y: Tensor, classes: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    size = x.shape[1]
    pooler = nn.Sequential(nn.Linear(size, size), nn.Tanh()) if variant.pooler else nn.Identity()
    whole = nn.Sequential(pooler, nn.Linear(size, classes))
    optimiser = torch.optim.AdamW(whole.parameters(), lr=LEARNING_RATE)
    steps = variant.epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    for _ in range(variant.epochs):
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(whole(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return whole


@torch.inference_mode()
def _said(trained: Sequence[nn.Sequential], features: Features) -> Features:
    """The rows with what these classifiers say of them; the last exit keeps its own."""
    found = [one(torch.from_numpy(pooled)).numpy() for one, pooled in zip(trained, features.pooled, strict=True)]
    return replace(features, logits=np.concatenate([np.stack(found), features.logits[-1:]]))


@torch.inference_mode()
def _after_poolers(trained: Sequence[nn.Sequential], features: Features) -> Features:
    found = [one[0](torch.from_numpy(pooled)).numpy() for one, pooled in zip(trained, features.pooled, strict=True)]
    return replace(features, pooled=np.stack(found))


# From distances to a verdict


def judge_variant(variant: Variant, learn: Features, dev: Features, layers: Sequence[int]) -> dict[str, Any]:
    """Means over the repeats: areas, gaps to entropy, and how well each signal ranks right before wrong."""
    told = [_one_repeat(variant, learn, dev, layers, repeat) for repeat in range(REPEATS)]
    return {key: _mean([one[key] for one in told]) for key in told[0]}


def _mean(values: Sequence[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: _mean([one[key] for one in values]) for key in values[0]}
    known = [value for value in values if value is not None]
    return np.mean(known, axis=0).tolist() if len(known) == len(values) else None


def _one_repeat(variant: Variant, learn: Features, dev: Features, layers: Sequence[int], repeat: int) -> dict[str, Any]:
    order = np.random.default_rng(repeat).permutation(len(dev.labels))
    third = len(order) // 3
    held, judge = _rows(dev, order[:third]), _rows(dev, order[third:])
    if variant.classes:
        judge, far = _in_problems(variant, learn, held, judge, 100 * repeat)
    else:
        judge, far = _with_distances(variant, learn, held, judge, 100 * repeat)
    trace = _trace(judge, layers, far)
    if variant.temperature:
        by_exit = np.array(fit_temperatures(_trace(held, layers, None)), dtype=np.float32)[:, None, None]
        trace = replace(trace, logits=trace.logits / by_exit)
    rules = {
        "entropy": [make("entropy")],
        "dr": [make("dr", **{k: v for k, v in variant.rule.items() if k != "fusion"})],
        "edr": [make("edr", **{**variant.rule, "lam": lam}) for lam in LAMBDAS],
    }
    result = compare(trace, rules=rules, targets=TARGETS, splits=SPLITS, seed=repeat, resamples=RESAMPLES)
    rows = {row["name"]: row for row in result["rows"]}
    return {
        "full_depth": result["full_depth"]["score"],
        "area": {name: row["area"] for name, row in rows.items()},
        "lambda_areas": [one["area"] for one in rows["edr"]["areas"]],
        "gaps": {name: [_gap(cell) for cell in rows[name]["cells"]] for name in ("dr", "edr")},
        "auroc": _auroc(trace, variant),
    }


def _with_distances(
    variant: Variant, learn: Features, held: Features, judge: Features, seed: int
) -> tuple[Features, Floats]:
    """The rows that judge, their logits learned again where that is the variant; and their distances."""
    if variant.classifier or variant.pooler:
        trained = _retrained(variant, learn, judge.logits.shape[-1], seed)
        judge = _said(trained, judge)
        if variant.pooler == "after":
            learn, held, judge = (_after_poolers(trained, features) for features in (learn, held, judge))
    return judge, distances(variant, learn, held, judge, seed)


def _in_problems(
    variant: Variant, learn: Features, held: Features, judge: Features, seed: int
) -> tuple[Features, Floats]:
    """The same in problems of few classes each; classes that fill no problem are left out."""
    size = variant.classes
    dealt = np.random.default_rng(seed).permutation(judge.logits.shape[-1])
    found: list[tuple[Features, Floats]] = []
    for chosen in dealt[: len(dealt) // size * size].reshape(-1, size):
        mine, theirs, judged = (_of_classes(features, chosen) for features in (learn, held, judge))
        batches = [-(-len(features.labels) // BATCH) for features in (learn, mine)]
        small = replace(variant, epochs=round(variant.epochs * batches[0] / batches[1]))
        found.append(_with_distances(small, mine, theirs, judged, seed))
    whole = {
        "pooled": np.concatenate([one.pooled for one, _ in found], axis=1),
        "logits": np.concatenate([one.logits for one, _ in found], axis=1),
        "labels": np.concatenate([one.labels for one, _ in found]),
        "lengths": np.concatenate([one.lengths for one, _ in found]),
    }
    return Features(**whole), np.concatenate([far for _, far in found], axis=1)


def _of_classes(features: Features, chosen: NDArray[np.int64]) -> Features:
    """Rows and logits of some classes, which are numbered anew."""
    rows = np.flatnonzero(np.isin(features.labels, chosen))
    mine = _rows(features, rows)
    number = {int(label): i for i, label in enumerate(chosen)}
    labels = np.array([number[int(label)] for label in mine.labels], dtype=np.int64)
    return replace(mine, logits=mine.logits[..., chosen], labels=labels)


def _gap(cell: Mapping[str, Any] | None) -> list[float] | None:
    """Mean and standard error of the difference to entropy."""
    if cell is None:
        return None
    gap = cell["against_baseline"]
    return [gap["mean"], standard_error(gap["interval"])]


def _auroc(trace: Trace, variant: Variant) -> dict[str, list[float]]:
    """How well each signal ranks an exit's right answers before its wrong ones, by exit."""
    found: dict[str, list[float]] = {"entropy": [], "dr": [], "edr": []}
    rule = {k: v for k, v in variant.rule.items() if k != "fusion"}
    for e in range(trace.num_exits - 1):
        logits, far = trace.logits[e], trace.extras["distances"][e]
        wrong = logits.argmax(axis=-1) != trace.labels
        entropy, ratio = normalised_entropy(logits), distance_ratio(far, logits, **rule)
        fused = fuse(entropy, ratio, lam=1.0, fusion=variant.rule.get("fusion", "harmonic"))
        for name, signal in (("entropy", entropy), ("dr", ratio), ("edr", fused)):
            found[name].append(float(roc_auc_score(wrong, signal)))
    return found


def _rows(features: Features, rows: NDArray[np.int64]) -> Features:
    return Features(features.pooled[:, rows], features.logits[:, rows], features.labels[rows], features.lengths[rows])


def _trace(features: Features, layers: Sequence[int], far: Floats | None) -> Trace:
    extras = {}
    if far is not None:
        extras["distances"] = np.concatenate([far, np.full_like(far[:1], np.nan)])
    return Trace(
        logits=features.logits,
        layers=np.array(layers),
        lengths=features.lengths,
        labels=features.labels,
        problem_type="single_label_classification",
        id2label={i: str(i) for i in range(features.logits.shape[-1])},
        extras=extras,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds a folder a task")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders, each as TASK=FOLDER")
    parser.add_argument("--work", type=Path, default=Path("runs/prototypes"), help="where features are kept")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin nothing after so many minutes")
    options = parser.parse_args()
    quiet_transformers()
    torch.set_num_threads(1)
    deadline = time.monotonic() + 60 * options.minutes
    cells: list[dict[str, Any]] = json.loads(RESULT.read_text())["cells"] if RESULT.is_file() else []
    for named in options.runs:
        task, _, folder = str(named).partition("=")
        cells = _screen(task, Path(folder), options, cells, deadline)
    print(json.dumps({"benchmark": "prototypes", "cells": len(cells)}))


def _screen(
    task: str, folder: Path, options: argparse.Namespace, cells: list[dict[str, Any]], deadline: float
) -> list[dict[str, Any]]:
    done = {(cell["run"], cell["variant"]) for cell in cells}
    learn, dev, about = encoded_features(folder, options.data / task, options.work)
    layers = [stage.layers for stage in load_early_exit(folder).stages]
    name = f"{task}, {about['recipe']}, {about['epochs']:g} epochs, {about['rows']['train']} rows"
    for variant in options.variants:
        if (name, variant) in done or time.monotonic() > deadline:
            continue
        verdict = judge_variant(VARIANTS[variant], learn, dev, layers)
        settings = {k: v for k, v in asdict(VARIANTS[variant]).items() if v != getattr(Variant(), k)}
        cells = [*cells, {"task": task, "run": name, "variant": variant, "settings": settings, **verdict}]
        method = {"lambdas": LAMBDAS, "targets": TARGETS, "repeats": REPEATS, "splits": SPLITS, "resamples": RESAMPLES}
        write_result(RESULT, {"method": method, "cells": cells, **provenance(seeds=range(REPEATS))})
        gap = verdict["gaps"]["edr"][1]
        print(
            f"{name:<40} {variant:<30} area entropy {100 * verdict['area']['entropy']:.2f} "
            f"dr {100 * verdict['area']['dr']:.2f} edr {100 * verdict['area']['edr']:.2f}  at 2x "
            + ("-" if gap is None else f"{100 * gap[0]:+.2f} +- {100 * gap[1]:.2f}"),
            flush=True,
        )
    return cells


if __name__ == "__main__":
    main()
