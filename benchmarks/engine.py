"""What the engine costs, and what a layer saved saves: both beside the runtime alone (docs/performance.md).

    python benchmarks/engine.py --run RUN --data DATA [--speedup X] [--rounds N] [--variants NAME ...]

The run is exported at full depth, and with the exits of an operating point for a layer speed-up chosen on the trace of
dev. Its texts are then answered by three ways in one process, interleaved: the graph of full depth without the engine,
the same with it, and the exits with it. Offline in batches of 32, with all threads for one batch and with a batch a
core; SingleStream one text after the other, with all threads and with one. Where one batch is computed at a time the
exits run once more, with a clock around every call of a graph. Writes benchmarks/results/engine.json.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import offramp
from offramp.bench.deployments.ours import Bare
from offramp.bench.export import VARIANTS, Variant, export_run
from offramp.bench.provenance import provenance, write_result
from offramp.bench.wallclock import interleaved, run_encoded
from offramp.calibration.points import write_points
from offramp.calibration.sweep import choose
from offramp.choosing import Setting
from offramp.cli.common import quiet_transformers
from offramp.criteria import make
from offramp.engine.units import Finished, Unit
from offramp.inputs.tokens import Encoded
from offramp.pipeline import Classifier
from offramp.runtimes.cpu import cores
from offramp.traces.curves import curve, slowest_knobs
from offramp.traces.store import load_trace
from offramp.training.data import load_examples

RESULT = Path(__file__).parent / "results" / "engine.json"
SAMPLE, ALONE, ROWS = 256, 200, 32
"""Texts on which ranges of int8 are measured; that are timed one by one; of a batch."""


def without_engine(classifier: Classifier, scenario: str, texts: Sequence[Encoded]) -> None:
    """Batches of like length, longest first; or one text after the other."""
    bare = Bare(classifier)
    if scenario == "Offline":
        bare.answer(texts, ROWS)
        return
    for number, text in enumerate(texts):
        bare.compute([text], [number])


def with_engine(classifier: Classifier, setting: Setting, scenario: str, texts: Sequence[Encoded]) -> list[Finished]:
    """What ``offramp.load`` gives, at one setting."""
    if scenario == "Offline":
        return run_encoded(classifier, texts, setting)
    return [classifier.alone(setting).answer(Unit(number, text)) for number, text in enumerate(texts)]


def token_layers(texts: Sequence[Encoded], finished: Sequence[Finished], depth: int) -> float:
    """Fraction of layers executed, each text counted by its tokens."""
    lengths = np.array([len(text) for text in texts])
    return float((lengths * [one.layers_executed for one in finished]).sum() / (depth * lengths.sum()))


def loaded(folder: Path, variant: Variant, threads: int, lanes: int) -> Classifier:
    """A run on one runtime; torch has threads of its own."""
    if variant.runtime == "torch":
        return offramp.load(folder, runtime="torch", device="cpu")
    return offramp.load(folder, runtime=variant.runtime, dtype=variant.dtype, threads=threads, lanes=lanes)


def time_inside(runtime: Any, run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds inside calls of graphs, and in all."""
    inside = 0.0

    def clocked(call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            nonlocal inside
            start = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                inside += time.perf_counter() - start

        return timed

    names = [name for name in ("run", "exit", "run_single") if hasattr(runtime, name)]
    for name in names:
        setattr(runtime, name, clocked(getattr(runtime, name)))
    try:
        start = time.perf_counter()
        run()
        return inside, time.perf_counter() - start
    finally:
        for name in names:
            delattr(runtime, name)  # the class's own comes to light again


def measured(folders: Mapping[str, Path], variant: Variant, texts: Sequence[Encoded], rounds: int) -> list[Any]:
    """Every configuration of one variant."""
    found = []
    configurations = [("Offline", cores(), 1), ("Offline", cores(), cores())]
    configurations += [("SingleStream", cores(), 1), ("SingleStream", 1, 1)]
    if variant.runtime == "torch":
        configurations = configurations[:1]
    for scenario, threads, lanes in configurations:
        full, exits = (loaded(folders[name], variant, threads, lanes) for name in ("full", "exits"))
        here = texts if scenario == "Offline" else texts[:: max(1, len(texts) // ALONE)][:ALONE]
        point = exits.default_point
        early = Setting(make(point.criterion, **point.settings), point.knobs, "benchmark")
        ways: dict[str, Callable[[], Any]] = {
            "runtime": partial(without_engine, full, scenario, here),
            "full depth": partial(with_engine, full, full.setting(full_depth=True), scenario, here),
            "exits": partial(with_engine, exits, early, scenario, here),
        }
        seconds = interleaved(ways, rounds)
        fraction = token_layers(here, ways["exits"](), exits.runtime.info.num_layers)
        entry = {
            "scenario": scenario, "threads": threads, "lanes": lanes, "texts": len(here), "seconds": seconds,
            "token_layer_fraction": fraction, "exits": [stage.layers for stage in exits.runtime.info.stages[:-1]],
        }  # fmt: skip
        if lanes == 1:
            entry["inside"] = [time_inside(exits.runtime, ways["exits"]) for _ in range(rounds)]
        found.append(entry)
        print(f"  {scenario}, {threads} threads, {lanes} lanes: {fraction:.2f} of the layers", flush=True)
    return found


def prepared(run: Path, work: Path, variant: Variant, point: Any, texts: Sequence[Any]) -> dict[str, Path]:
    """The run twice: exported at full depth, and with the exits that pay at the operating point."""
    folders = {}
    for name, exits in (("full", []), ("exits", "useful")):
        folders[name] = folder = work / name
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("onnx", "openvino", "bench"))
        write_points(folder, [point])
        if variant.runtime != "torch":
            export_run(folder, variant, exits=exits, texts=texts)
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--criterion", default="entropy")
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=7)
    names = ["torch-float32", "onnx-int8", "onnx-static", "onnx-dynamic", "openvino-int8"]
    parser.add_argument("--variants", nargs="+", default=names)
    given = parser.parse_args()
    quiet_transformers()
    classifier = offramp.load(given.run, runtime="torch", device="cpu")
    texts = list(load_examples(given.data, classifier.task).texts)
    encoded = classifier.encode(texts)
    trace = load_trace(given.run / "traces" / "dev.safetensors")
    point = choose(
        trace, make(given.criterion), knobs=slowest_knobs(curve(trace, make(given.criterion)), given.speedup)
    )
    result: dict[str, Any] = {**provenance(), "criterion": given.criterion, "speedup": given.speedup, "variants": {}}
    for variant in VARIANTS:
        if variant.name not in given.variants or not variant.there:
            continue
        print(variant.label, flush=True)
        with tempfile.TemporaryDirectory(prefix="offramp-engine-") as work:
            folders = prepared(given.run, Path(work), variant, point, texts[:: max(1, len(texts) // SAMPLE)])
            result["variants"][variant.label] = measured(folders, variant, encoded, given.rounds)
    write_result(RESULT, result)


if __name__ == "__main__":
    main()
