"""What prototypes cost besides entropy: parameters, bytes, microseconds a text; and when an index would pay.

    python benchmarks/prototype_overhead.py

One early exit of width 384 (a 6 x 384 encoder), prototypical network of width 128, for several numbers of classes, with
one thread at batch 1 and 32: the linear classifier and its entropy (what every method computes), and on top of that the
network, the distances and the distance ratio. Beside it the time of one encoder layer on 20 tokens a text, and of
finding the two nearest prototypes through an inverted index (k-means cells, the nearest few searched) in place of all
distances. Interleaved, medians and quartiles over rounds. Writes benchmarks/results/prototype_overhead.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from offramp.bench.provenance import provenance, write_result
from offramp.criteria.distance import distance_ratio
from offramp.criteria.entropy import normalised_entropy
from offramp.model.heads.prototypical import distances_to

RESULT = Path(__file__).parent / "results" / "prototype_overhead.json"
HIDDEN, WIDTH, TOKENS, PROBES, SEED = 384, 128, 20, 8, 0
CLASSES = (2, 3, 77, 1_000, 10_000, 100_000)
ROUNDS, SECONDS = 15, 0.02


class Index:
    """An inverted index: about sqrt(C) cells round prototypes drawn as centres; the nearest PROBES are searched."""

    def __init__(self, means: Tensor) -> None:
        cells = max(1, round(len(means) ** 0.5))
        self.centres = means[torch.randperm(len(means))[:cells]]
        owner = torch.cat([torch.cdist(part, self.centres).argmin(dim=1) for part in torch.split(means, 4096)])
        self.members = [means[owner == cell] for cell in range(cells)]

    def two_nearest(self, z: Tensor) -> Tensor:
        """[B, 2] distances."""
        probed = torch.cdist(z, self.centres).topk(min(PROBES, len(self.centres)), largest=False).indices
        found = []
        for row, cells in zip(z, probed, strict=True):
            candidates = torch.cat([self.members[cell] for cell in cells.tolist()])
            found.append(torch.cdist(row[None], candidates)[0].topk(min(2, len(candidates)), largest=False).values)
        return torch.stack(found)


def parts(classes: int, rows: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    torch.manual_seed(SEED)
    pooled = torch.randn(rows, HIDDEN)
    classifier, network = nn.Linear(HIDDEN, classes), nn.Linear(HIDDEN, WIDTH)
    means, seen = torch.randn(classes, WIDTH), torch.ones(classes, dtype=torch.bool)
    logits = classifier(pooled)
    layer = BertLayer(
        BertConfig(hidden_size=HIDDEN, num_attention_heads=12, intermediate_size=4 * HIDDEN, attn_implementation="sdpa")
    ).eval()
    hidden = torch.randn(rows, TOKENS, HIDDEN)
    found: dict[str, Callable[[], object]] = {
        "classifier and entropy": lambda: normalised_entropy(classifier(pooled)),
        "network": lambda: network(pooled),
        "distances and ratio": lambda: distance_ratio(distances_to(network(pooled), means, seen), logits),
        "one encoder layer": lambda: layer(hidden),
    }
    if classes >= 1_000:
        index = Index(means)
        found["index"] = lambda: index.two_nearest(network(pooled))
    return found


@torch.inference_mode()
def measure(classes: int, rows: int) -> dict[str, dict[str, float]]:
    """Microseconds a text: median and quartiles."""
    timed = parts(classes, rows)
    often = {name: _often_enough(run) for name, run in timed.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):
        for name, run in timed.items():
            seconds[name].append(_clock(run, often[name]) / often[name] / rows)
    return {
        name: dict(zip(("median", "low", "high"), (1e6 * np.percentile(one, (50, 25, 75))).tolist(), strict=True))
        for name, one in seconds.items()
    }


def _clock(run: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return time.perf_counter() - start


def _often_enough(run: Callable[[], object]) -> int:
    """Calls that take about SECONDS; the first two warm up."""
    _clock(run, 2)
    return max(1, round(SECONDS / _clock(run, 1)))


def sizes(classes: int) -> dict[str, int]:
    """Numbers one exit holds, and their bytes in float32."""
    classifier = HIDDEN * classes + classes
    network, prototypes = HIDDEN * WIDTH + WIDTH, classes * WIDTH
    return {
        "classifier": classifier,
        "network": network,
        "prototypes": prototypes,
        "bytes_added": 4 * (network + prototypes),
    }


def main() -> None:
    torch.set_num_threads(1)
    rows: list[Mapping[str, Any]] = []
    for classes in CLASSES:
        for batch in (1, 32):
            found = measure(classes, batch)
            rows.append({"classes": classes, "batch": batch, "sizes": sizes(classes), "microseconds": found})
            told = "  ".join(f"{name} {one['median']:.1f}" for name, one in found.items())
            print(f"{classes:>7} classes, batch {batch:>2}: {told}", flush=True)
    setup = {"hidden": HIDDEN, "width": WIDTH, "tokens": TOKENS, "threads": 1, "rounds": ROUNDS, "probes": PROBES}
    write_result(RESULT, {"setup": setup, "rows": rows, **provenance(seeds=[SEED])})
    print(json.dumps({"benchmark": "prototype_overhead", "rows": len(rows)}))


if __name__ == "__main__":
    main()
