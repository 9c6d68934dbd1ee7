"""``offramp demo``: the whole story on packaged data, in minutes."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from offramp.cli import app
from offramp.cli.common import console, print_json, quiet_transformers
from offramp.errors import DataError, require
from offramp.run import check_writable

# One pass more costs one to two minutes on two cores; the whole demo should take less than five, in a slow hour too.
EPOCHS = 1.0
LEARNING_RATE = 1e-4
MAX_LENGTH = 64
SHOWN = ("entropy", "confidence", "patience", "dr", "edr", "learned_stopping", "static")


@app.command(short_help="The whole story on packaged data, in minutes.")
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Run folder to write.")] = Path("runs/demo"),
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="An encoder, instead of the packaged one.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Holds train, checkpoint, choose and report .jsonl, instead of the packaged reviews.",
        ),
    ] = None,
    epochs: Annotated[float, typer.Option(metavar="X", help="Passes over the training sentences.")] = EPOCHS,
    seed: Annotated[int, typer.Option(metavar="N", help="Of split and training.")] = 42,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again where the run folder exists.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end, and all else on standard error.")
    ] = False,
) -> None:
    """Train DE3-BERT on review sentences, compare criteria, and measure what early exit is worth."""
    require("torch", extra="train")
    require("transformers", extra="train")
    require("matplotlib", extra="plots")
    quiet_transformers()
    check_writable(out)
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        result = _tell(out, model, data, epochs=epochs, seed=seed, fresh=fresh)
    if as_json:
        print_json(result)


def _tell(out: Path, model: str | None, data: Path | None, *, epochs: float, seed: int, fresh: bool) -> dict[str, Any]:
    say = console()
    say.print("1. Data", style="bold")
    parts = _parts(say, data, seed, out)
    say.print("\n2. Training", style="bold")
    say.print("   DE3-BERT: an exit after every layer, with class prototypes")
    _train(say, out, model, parts, epochs=epochs, seed=seed, fresh=fresh)
    say.print("\n3. Choosing an operating point on the part called choose", style="bold")
    _choose(say, out, parts)
    say.print("\n4. Criteria side by side on the part called report", style="bold")
    comparison = _compare(say, out, parts)
    say.print("\n5. What it is worth on the part called report, which nothing was chosen on", style="bold")
    evaluation = _measure(say, out, parts)
    _next_steps(say, out)
    return {"run": str(out), "comparison": comparison, "evaluation": evaluation}


def _parts(say: Console, data: Path | None, seed: int, out: Path) -> dict[str, Path]:
    """Files of the four parts; the counts are printed."""
    from offramp.demo.packages import cache_folder, review_sentences
    from offramp.demo.reviews import PARTS, read_reviews, split_by_film, write_parts

    if data is not None:
        paths = {name: data / f"{name}.jsonl" for name in PARTS}
        absent = [path.name for path in paths.values() if not path.is_file()]
        if absent:
            raise DataError(f"{data} lacks {', '.join(absent)}: the demo needs four parts, {', '.join(PARTS)}")
        return paths
    split = split_by_film(read_reviews(review_sentences(say=say.print)), seed=seed)
    for name, part in split.counts.items():
        labels = ", ".join(f"{count} {label}" for label, count in part.labels.items())
        say.print(f"   {name:<11}{part.sentences:>6} sentences of {part.films:>3} films ({labels})")
    say.print(f"   Split by film; {split.repeated} repeated sentences left out.")
    return write_parts(split, cache_folder() / f"reviews-{seed}")


def _train(
    say: Console, out: Path, model: str | None, parts: dict[str, Path], *, epochs: float, seed: int, fresh: bool
) -> None:
    from offramp.demo.packages import sentence_encoder
    from offramp.errors import KnobError, RunError
    from offramp.run import Run
    from offramp.training.lock import what_to_go_on_from
    from offramp.training.train import Plan, train

    if not fresh:
        try:
            Run.open(out)
        except RunError:
            pass  # nothing usable there: train
        else:
            say.print(f"   {out} is trained already; --fresh trains again.")
            return
    encoder = model or str(sentence_encoder(say=say.print))
    plan = Plan(
        model=encoder,
        data=str(parts["train"]),
        dev=str(parts["checkpoint"]),
        out=out,
        max_length=MAX_LENGTH,
        exit_epochs=0.0,  # of two classes with so many rows the exits gain little, and the demo has minutes
        arguments={"num_train_epochs": epochs, "learning_rate": LEARNING_RATE, "seed": seed},
    )
    if not fresh and what_to_go_on_from(out.with_name(out.name + ".training")) is not None:
        try:
            train(replace(plan, resume=True))
        except KnobError:  # of another seed, model or data; nobody asked to go on with that
            pass
        else:
            return
    train(plan)


def _choose(say: Console, out: Path, parts: dict[str, Path]) -> None:
    """The fastest criterion and threshold within half a point of full depth becomes the run's default point."""
    from offramp.calibration.points import write_points
    from offramp.calibration.sweep import candidates, choose
    from offramp.cli.recording import record_data
    from offramp.criteria import make

    trace, _ = record_data(out, str(parts["choose"]), need_labels=True)
    points = [
        choose(trace, make(name, **settings), max_drop=0.5, name="default", chosen_on="the demo's choose part")
        for name, grid in candidates(trace)
        if name in SHOWN
        for settings in grid
    ]
    best = max(points, key=lambda point: float(point.measured["layer_speedup"]))
    write_points(out, [best])
    lam = f", lambda {best.settings['lam']:g}" if "lam" in best.settings else ""
    say.print(
        f"   Fastest within half a point of full depth: {best.criterion}{lam} with "
        + ", ".join(f"{name} {value:.3g}" for name, value in best.knobs.items())
        + f" ({best.measured['layer_speedup']:.2f}x fewer layers on {best.measured['n']} sentences)"
    )


def _compare(say: Console, out: Path, parts: dict[str, Path]) -> dict[str, Any]:
    from offramp.bench.report import as_table
    from offramp.calibration.compare import usual_rules
    from offramp.cli.compare import write_comparison
    from offramp.cli.recording import record_data
    from offramp.traces.store import save_trace

    trace, texts = record_data(out, str(parts["report"]), need_labels=True)
    save_trace(trace, out / "traces" / "report")
    every = usual_rules(trace)
    # The others are for `offramp compare`: a demo should not keep anyone waiting.
    rules = {name: rule for name, rule in every.items() if name.partition(" (")[0] in SHOWN}
    result = write_comparison(trace, out / "compare", rules=rules, texts=texts, title="Review sentences")
    say.print(as_table(result))
    return result


def _measure(say: Console, out: Path, parts: dict[str, Path]) -> dict[str, Any]:
    from offramp.bench.evaluate import evaluate
    from offramp.bench.provenance import write_result
    from offramp.pipeline import load
    from offramp.training.data import load_examples

    classifier = load(out)
    examples = load_examples(str(parts["report"]), classifier.task, prefer=classifier.columns)
    assert examples.labels is not None
    result = evaluate(classifier, examples.texts, examples.labels, classifier.setting())
    write_result(out / "evaluation.json", result)
    say.print(_sentence(result))
    return result


def _sentence(result: dict[str, Any]) -> str:
    shares = list(result["exits"].items())
    half = len(shares) // 2
    early = sum(share for _, share in shares[:half])
    full = result["full_depth"]["accuracy"]
    return (
        f"   accuracy            {100 * result['accuracy']:.1f} % with early exit, {100 * full:.1f} % at full depth\n"
        f"   layer speed-up      {result['layer_speedup']:.2f}x (mean layers executed)\n"
        f"   wall-clock speed-up {result['wall_clock_speedup']:.2f}x (same engine, batch {result['batch_size']}, "
        "interleaved, median of 3 rounds)\n"
        f"   Of {result['n']} sentences {round(early * result['n'])} left by layer {shares[half - 1][0]}."
    )


def _next_steps(say: Console, out: Path) -> None:
    here = f".venv{os.sep}bin{os.sep}offramp" if Path(".venv/bin/offramp").exists() else "offramp"
    say.print(
        f"\nSaved: {out} (model, traces, {out}/compare/report.html, {out}/compare/compare.png)\n\n"
        "Try next\n"
        f'   {here} inspect {out} "a gem of a film, warm and funny"\n'
        f'   {here} inspect {out} "not without its charms, but it never quite comes together"\n'
        f'   {here} predict {out} "a gem" "neither here nor there"\n'
        f"   {here} train --model MODEL --data YOUR_DATA --out runs/yours"
    )
