"""DE3-BERT on SST-2 against a plain fine-tune: accuracy, layers saved, seconds saved.

    python benchmarks/sst2.py --model MINILM --data SST2 [--work runs]
    python benchmarks/sst2.py --model MINILM --data SST2 --train de3bert [--epochs N]      # the run folder alone
    python benchmarks/sst2.py --model MINILM --data SST2 --pooling mean                    # early exits read the mean

Trains both with the same set-up (3 epochs, 67k rows; early exits weigh the tokens) unless their run folders are
there already (an interrupted training goes on), records dev, compares criteria (knobs chosen on one half, scored on
the other), and times full depth against three layer speed-ups, interleaved, with all cores on one batch and with a
batch on each core. Prints for people, writes
benchmarks/results/sst2.json, or sst2_mean.json. Training takes about half an hour each on two cores with bfloat16.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from offramp.bench.provenance import provenance, write_result
from offramp.bench.wallclock import run_encoded, time_settings
from offramp.calibration.compare import compare
from offramp.choosing import Setting
from offramp.cli.common import quiet_transformers
from offramp.criteria import make
from offramp.errors import RunError
from offramp.pipeline import load
from offramp.run import Run
from offramp.runtimes.cpu import cores
from offramp.traces.curves import curve, slowest_knobs
from offramp.traces.store import load_trace
from offramp.training.data import load_examples
from offramp.training.train import Plan, train
from offramp.types import Pooling

EPOCHS, LEARNING_RATE, HEAD_LEARNING_RATE, SEED = 3, 2e-5, 4e-4, 42
POOLING: Pooling = "attention"
RESULTS = Path(__file__).parent / "results"
SPEEDUPS = (1.5, 2.0, 3.0)
ROUNDS = 20


def trained(
    recipe: str, model: str, data: str, work: Path, *, epochs: int = EPOCHS, pooling: Pooling = POOLING
) -> Path:
    """The run folder of a recipe, trained now where it is not there."""
    name = f"sst2-{recipe}" if epochs == EPOCHS else f"sst2-{recipe}-{epochs}-epochs"
    out = work / (name if pooling == POOLING else f"{name}-{pooling}")
    try:
        Run.open(out)
    except RunError:
        train(
            Plan(
                model=model,
                data=data,
                out=out,
                recipe=recipe,
                pooling=pooling,
                resume=out.with_name(out.name + ".training").is_dir(),
                arguments={
                    "num_train_epochs": epochs,
                    "learning_rate": LEARNING_RATE,
                    "head_learning_rate": HEAD_LEARNING_RATE,
                    "seed": SEED,
                    # The last checkpoint, not the best on dev: dev is what is reported, so nothing is chosen on it.
                    "load_best_model_at_end": False,
                },
            )
        )
    return out


def time_run(run: Path, data: str, lanes: int) -> list[dict[str, Any]]:
    """Wall-clock fraction against token-weighted layer fraction, for entropy at several speed-ups."""
    classifier = load(run, runtime="torch", dtype="float32", device="cpu", batch_size=32, lanes=lanes)
    examples = load_examples(data, classifier.task)
    encoded = classifier.encode(examples.texts)
    tokens = np.array([len(item) for item in encoded])
    depth = classifier.runtime.info.num_layers
    trace = load_trace(run / "traces" / "dev")
    settings = {"full depth": classifier.setting(full_depth=True)}
    for target in SPEEDUPS:
        settings[f"{target:g}x"] = Setting(make("entropy"), slowest_knobs(curve(trace, make("entropy")), target), "dev")
    timings = time_settings(classifier, encoded, settings, rounds=ROUNDS)
    rows = []
    for name, setting in settings.items():
        finished = run_encoded(classifier, encoded, setting)
        layers = np.array([one.layers_executed for one in finished])
        answers = classifier.task.answers(np.stack([one.answer for one in finished]))
        ratios = np.array(timings[name].seconds) / np.array(timings["full depth"].seconds)
        fraction = float((tokens * layers).sum() / (tokens.sum() * depth))
        rows.append(
            {
                "setting": name,
                "lanes": lanes,
                "accuracy": float((answers == examples.labels).mean()),
                "texts_per_second": len(encoded) / timings[name].median,
                "layer_fraction": float(layers.mean() / depth),
                "token_layer_fraction": fraction,
                "wall_clock_fraction": float(np.median(ratios)),
                "wall_clock_fraction_range": [float(ratios.min()), float(ratios.max())],
                "efficiency": float(np.median(ratios) / fraction),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--data", required=True, help="folder of SST-2 with train.jsonl and dev.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="where run folders are kept")
    parser.add_argument("--train", choices=["de3bert", "plain"], help="train this one, and stop")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of --train (the result's are always %(default)s)")
    parser.add_argument("--pooling", choices=["attention", "mean"], default=POOLING, help="of early exits")
    options = parser.parse_args()
    quiet_transformers()
    if options.train:
        of = {"epochs": options.epochs, "pooling": POOLING if options.train == "plain" else options.pooling}
        print(trained(options.train, options.model, options.data, options.work, **of))
        return
    run = trained("de3bert", options.model, options.data, options.work, pooling=options.pooling)
    file = RESULTS / ("sst2.json" if options.pooling == POOLING else f"sst2_{options.pooling}.json")
    result: dict[str, Any] = {
        "benchmark": "sst2",
        "setup": {
            "encoder": "all-MiniLM-L6-v2 (6 x 384)",
            "rows": training_record(run)["rows"],
            "epochs": EPOCHS,
            "learning_rate": LEARNING_RATE,
            "head_learning_rate": HEAD_LEARNING_RATE,
            "early_exit_pooling": Run.open(run).section["pooling"],
            "last_exit": Run.open(run).section["last_exit"],
            "phases": [
                {"trains": phase["trains"], "epochs": phase["arguments"]["num_train_epochs"]}
                for phase in training_record(run)["phases"]
            ],
            "note": "both models are the last checkpoint; knobs are scored on halves of dev they were not chosen on",
        },
        "training_seconds": {"de3bert": training_record(run)["seconds"]},
        "plain": None,
        "comparison": compare(load_trace(run / "traces" / "dev")),
        "wall_clock": {
            "runtime": "torch float32",
            "batch_size": 32,
            "rounds": ROUNDS,
            "rows": [row for lanes in sorted({1, cores()}) for row in time_run(run, options.data, lanes)],
        },
        **provenance(seeds=[SEED]),
    }
    # Written now, so that it is there should the plain fine-tune be interrupted.
    write_result(file, result)
    report(result)
    plain = trained("plain", options.model, options.data, options.work)
    result["plain"] = compare_plain(plain)
    result["training_seconds"]["plain"] = training_record(plain)["seconds"]
    write_result(file, result)
    report(result)


def training_record(run: Path) -> dict[str, Any]:
    """What the run folder says of its training."""
    record: dict[str, Any] = json.loads((run / "training.json").read_text(encoding="utf-8"))
    return record


def compare_plain(folder: Path) -> dict[str, Any]:
    """Dev accuracy of the plain fine-tune, with its standard error."""
    trace = load_trace(folder / "traces" / "dev")
    assert trace.labels is not None
    right = trace.logits[-1].argmax(axis=-1) == trace.labels
    return {
        "accuracy": float(right.mean()),
        "standard_error": float(right.std() / np.sqrt(len(right))),
        "n": len(right),
    }


def report(result: dict[str, Any]) -> None:
    comparison = result["comparison"]
    full = comparison["full_depth"]["score"]
    plain = result["plain"]
    print(f"full depth {100 * full:.2f}, plain fine-tune {say_plain(plain)}")
    for row in comparison["rows"]:
        cells = [
            "not reached"
            if cell is None
            else f"{100 * cell['score']:.2f} [{100 * cell['interval'][0]:.1f}, "
            f"{100 * cell['interval'][1]:.1f}] at {cell['layer_speedup']:.2f}x"
            for cell in row["cells"]
        ]
        print(f"{row['name']:<12}", "  ".join(cells))
    for row in result["wall_clock"]["rows"]:
        print(
            f"{row['setting']:<11} {row['lanes']} lanes  {row['texts_per_second']:.0f} texts/s  "
            f"accuracy {100 * row['accuracy']:.2f}  wall clock {row['wall_clock_fraction']:.3f} "
            f"{row['wall_clock_fraction_range']}  tokens x layers {row['token_layer_fraction']:.3f}  "
            f"ratio {row['efficiency']:.3f}"
        )
    print(json.dumps({"benchmark": "sst2", "full_depth": full, "plain": plain and plain["accuracy"]}))


def say_plain(plain: dict[str, Any] | None) -> str:
    """Accuracy and standard error, or that it was not run."""
    if plain is None:
        return "not run yet"
    return f"{100 * plain['accuracy']:.1f} ± {100 * plain['standard_error']:.1f} (standard error)"


if __name__ == "__main__":
    main()
