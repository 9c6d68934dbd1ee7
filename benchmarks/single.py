"""One text at a time: all stages in one graph, beside stage by stage (docs/performance.md).

    python benchmarks/single.py --run RUN --data DATA [--criterion NAME] [--threshold X ...] [--rounds N]

The run is exported with every exit for ONNX Runtime, in each kind of int8, and its texts are answered one after the
other: by the graph that holds all stages (``runtimes/export/single.py``), and by the stages' own graphs, with
Python between them; the answers are the same. The first threshold lets nobody leave early. Interleaved rounds, for
all threads and for one. Writes benchmarks/results/single.json.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import offramp
from offramp.bench.export import VARIANTS, Variant, export_run
from offramp.bench.provenance import provenance, write_result
from offramp.bench.wallclock import interleaved
from offramp.calibration.points import OperatingPoint, write_points
from offramp.cli.common import quiet_transformers
from offramp.criteria import Criterion, make
from offramp.engine.alone import Alone
from offramp.engine.units import Finished, Unit
from offramp.runtimes.base import Runtime
from offramp.runtimes.cpu import cores
from offramp.training.data import load_examples

RESULT = Path(__file__).parent / "results" / "single.json"
SAMPLE, TEXTS = 256, 200
"""On which ranges of int8 are measured; that are timed."""


class Stages:
    """A runtime without the graph of all stages."""

    def __init__(self, runtime: Runtime) -> None:
        self.info = replace(runtime.info, single="")
        self.embed, self.run, self.exit = runtime.embed, runtime.run, runtime.exit


def answer(runtime: Runtime, rule: Criterion, texts: Sequence[Any], threshold: float) -> list[Finished]:
    """Every text alone."""
    alone = Alone(runtime, rule, {"threshold": threshold})
    return [alone.answer(Unit(number, text)) for number, text in enumerate(texts)]


def milliseconds(
    ways: Mapping[str, Runtime], rule: Criterion, texts: Sequence[Any], threshold: float, rounds: int
) -> dict[str, Any]:
    """Way -> milliseconds a text, every round; and the layers executed, which are the same for each."""
    said = {name: answer(runtime, rule, texts, threshold) for name, runtime in ways.items()}  # and warms up
    first, *others = said.values()
    for other in others:
        for one, same in zip(first, other, strict=True):
            assert one.exit_layer == same.exit_layer
            assert np.array_equal(one.answer, same.answer)
    runs = {name: partial(answer, runtime, rule, texts, threshold) for name, runtime in ways.items()}
    seconds = interleaved(runs, rounds, warm_up=False)
    found = {name: [1000 * each / len(texts) for each in values] for name, values in seconds.items()}
    return {"milliseconds": found, "layers": float(np.mean([one.layers_executed for one in first]))}


def timed(folder: Path, variant: Variant, rule: Criterion, texts: Sequence[Any], given: Any) -> dict[str, Any]:
    """Threads -> threshold -> timings of both ways."""
    found: dict[str, Any] = {}
    for threads in sorted({1, cores()}):
        runtime = offramp.load(folder, runtime=variant.runtime, dtype=variant.dtype, threads=threads).runtime
        ways = {"in one graph": runtime, "stage by stage": Stages(runtime)}
        found[str(threads)] = {
            f"{threshold:g}": milliseconds(ways, rule, texts, threshold, given.rounds) for threshold in given.threshold
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--criterion", default="entropy")
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    quiet_transformers()
    classifier = offramp.load(given.run, runtime="torch", device="cpu")
    texts = list(load_examples(given.data, classifier.task).texts)
    timed_texts = classifier.encode(texts[:: max(1, len(texts) // TEXTS)][:TEXTS])
    rule = make(given.criterion)
    point = OperatingPoint(
        name="benchmark", criterion=rule.name, settings=asdict(rule), knobs={"threshold": given.threshold[-1]}
    )
    depth = classifier.runtime.info.num_layers
    result: dict[str, Any] = {**provenance(), "criterion": rule.name, "layers": depth, "texts": len(timed_texts)}
    result["variants"] = {}
    for variant in VARIANTS:
        if variant.runtime != "onnx" or variant.dtype != "int8" or not variant.there:
            continue
        print(variant.label, flush=True)
        with tempfile.TemporaryDirectory(prefix="offramp-single-") as work:
            folder = Path(work) / "run"
            shutil.copytree(given.run, folder, ignore=shutil.ignore_patterns("traces", "onnx", "openvino", "bench"))
            write_points(folder, [point])
            export_run(folder, variant, exits="all", texts=texts[:: max(1, len(texts) // SAMPLE)])
            result["variants"][variant.label] = timed(folder, variant, rule, timed_texts, given)
    write_result(RESULT, result)


if __name__ == "__main__":
    main()
