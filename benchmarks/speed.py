"""Seconds against the fastest full-depth deployments: the numbers of docs/performance.md.

    python benchmarks/speed.py --run RUN --plain PLAIN --data SST2 [--rows A,B] [--rounds 7]

RUN is trained with exits, PLAIN without, on the same data; both come from `python benchmarks/sst2.py`. It does what
`offramp bench` does, with its result in benchmarks/results/speed.json and its pictures in docs/performance/. It takes
about half an hour, most of it quantising. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from offramp.bench.provenance import provenance, write_result
from offramp.bench.rows import Bench
from offramp.bench.serving import run_bench
from offramp.bench.speed_plots import plot_accuracy, plot_speed
from offramp.cli.common import quiet_transformers
from offramp.pipeline import load
from offramp.runtimes.cpu import check_threads
from offramp.traces.files import write_atomically
from offramp.training.data import load_examples

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "speed.json"
PICTURES = ROOT / "docs" / "performance"
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--plain", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", default="")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    quiet_transformers()
    classifier = load(given.run, runtime="torch", device="cpu")
    examples = load_examples(given.data, classifier.task)
    assert examples.labels is not None
    with tempfile.TemporaryDirectory(prefix="offramp-speed-") as work:
        plan = Bench(
            run=given.run,
            plain=given.plain,
            texts=examples.texts,
            labels=examples.labels,
            work=Path(work),
            rows=[name for name in given.rows.split(",") if name],
            rounds=given.rounds,
            threads=check_threads(given.threads),
            seed=SEED,
        )
        found = run_bench(plan, say=lambda line: print(line, file=sys.stderr, flush=True))
    setup = {"data": Path(given.data).name, "recipe": classifier.run.recipe}
    result = {**provenance(seeds=[SEED]), **found, "setup": setup}
    write_result(RESULT, result)
    for name, plot in (("speed", plot_speed), ("accuracy", plot_accuracy)):
        PICTURES.mkdir(exist_ok=True)
        write_atomically(PICTURES / f"{name}.png", plot(result))


if __name__ == "__main__":
    main()
