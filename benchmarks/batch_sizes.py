"""What a token costs in batches of different sizes, and what lanes gain (docs/performance.md).

    python benchmarks/batch_sizes.py --run RUN --data DATA [--rounds N]

A middle layer of the run, exported with every exit as int8 for each runtime, is timed on batches of 1 to 32 rows with
one thread: where a token of a small batch costs what one of a large batch costs, survivors of a batch need not wait for
company (``Engine(go_on=)``). Then all texts at full depth, as one batch after the other with every thread for each
operator, or as many batches side by side as there are threads (``offramp.load(lanes=)``), interleaved.
Writes benchmarks/results/batch_sizes.json.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import offramp
from offramp.bench.export import VARIANTS, Variant, export_run
from offramp.bench.provenance import provenance, write_result
from offramp.cli.common import quiet_transformers
from offramp.runtimes.cpu import cores
from offramp.training.data import load_examples
from offramp.types import Batch

RESULT = Path(__file__).parent / "results" / "batch_sizes.json"
ROWS, WIDTHS = (1, 2, 4, 8, 16, 32), (12, 26, 48)
REPEATS = 40
SAMPLE = 256
"""Texts on which ranges of int8 are measured."""


def seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def token_costs(folder: Path, variant: Variant) -> dict[str, dict[str, float]]:
    """Width -> rows -> microseconds a token of the middle layer takes; median of many."""
    classifier = offramp.load(folder, runtime=variant.runtime, dtype=variant.dtype, threads=1)
    runtime, hidden_size = classifier.runtime, int(classifier.run.config["hidden_size"])
    stage = runtime.info.stages[len(runtime.info.stages) // 2]
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, float]] = {}
    for width in WIDTHS:
        for rows in ROWS:
            hidden = rng.standard_normal((rows, width, hidden_size)).astype(np.float32)
            tokens = np.ones((rows, width), dtype=np.int64)
            batch = Batch(np.arange(rows), tokens, np.full(rows, width), np.zeros_like(tokens))
            taken = [seconds(lambda h=hidden, b=batch: runtime.run(stage, h, b)) for _ in range(REPEATS + 5)][5:]
            found.setdefault(str(width), {})[str(rows)] = 1e6 * float(np.median(taken)) / rows / width
    return found


def lanes(folder: Path, variant: Variant, texts: Sequence[Any], rounds: int) -> dict[str, list[float]]:
    """Threads and lanes -> texts a second at full depth, every round."""
    most = cores()
    ways = {"all threads, 1 lane": (most, 1), f"all threads, {most} lanes": (most, most), "1 thread": (1, 1)}
    opened = {
        name: offramp.load(folder, runtime=variant.runtime, dtype=variant.dtype, threads=threads, lanes=number)
        for name, (threads, number) in ways.items()
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, classifier in opened.items():
            taken = seconds(lambda c=classifier: c(list(texts), full_depth=True))
            if number:
                found[name].append(len(texts) / taken)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    quiet_transformers()
    texts = list(load_examples(given.data, offramp.load(given.run, runtime="torch", device="cpu").task).texts)
    result: dict[str, Any] = {**provenance(), "threads": cores(), "texts": len(texts), "variants": {}}
    for variant in VARIANTS:
        if variant.dtype != "int8" or not variant.there:
            continue
        print(variant.label, flush=True)
        with tempfile.TemporaryDirectory(prefix="offramp-batches-") as work:
            every, whole = Path(work) / "every", Path(work) / "whole"
            for folder, exits in ((every, "all"), (whole, [])):
                shutil.copytree(given.run, folder, ignore=shutil.ignore_patterns("traces", "onnx", "openvino", "bench"))
                export_run(folder, variant, exits=exits, texts=texts[:: max(1, len(texts) // SAMPLE)])
            result["variants"][variant.label] = {
                "microseconds_a_token": token_costs(every, variant),
                "texts_per_second": lanes(whole, variant, texts, given.rounds),
            }
    write_result(RESULT, result)


if __name__ == "__main__":
    main()
