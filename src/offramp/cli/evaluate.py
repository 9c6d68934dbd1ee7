"""``offramp evaluate``: accuracy, layers saved and seconds saved on labelled data."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from offramp.cli import app
from offramp.cli.common import (
    Attention,
    BatchSize,
    BatchTokens,
    Columns,
    Compile,
    Confidence,
    Device,
    Dtype,
    FullDepth,
    Json,
    KnobValues,
    LabelColumn,
    Lanes,
    MaxLayers,
    MaxRisk,
    RiskKind,
    RunFolder,
    RuntimeName,
    Speedup,
    Threads,
    Threshold,
    console,
    parse_knobs,
    print_json,
    quiet_transformers,
    show,
    split_columns,
)  # fmt: skip


@app.command(short_help="Score, layers saved and seconds saved on labelled data.")
def evaluate(
    run: RunFolder,
    data: Annotated[str, typer.Option(metavar="DATA", help="Labelled file, folder (its dev part) or hub name.")],
    threshold: Threshold = None,
    speedup: Speedup = None,
    max_risk: MaxRisk = None,
    risk: RiskKind = None,
    confidence: Confidence = 0.95,
    knob: KnobValues = None,
    max_layers: MaxLayers = None,
    full_depth: FullDepth = False,
    rounds: Annotated[
        int, typer.Option(metavar="N", help="Rounds of the clock against full depth; 0: none.", min=0)
    ] = 3,
    text_columns: Columns = None,
    label_column: LabelColumn = None,
    batch_size: BatchSize = 32,
    batch_tokens: BatchTokens = None,
    device: Device = None,
    dtype: Dtype = None,
    runtime: RuntimeName = None,
    threads: Threads = None,
    lanes: Lanes = 1,
    compile: Compile = False,
    attention: Attention = None,
    as_json: Json = False,
) -> None:
    """Measure an operating point: scores, layer speed-up, and wall-clock speed-up against full depth.

    --json always has accuracy (multi-label: of the whole set of labels; regression: null, as numbers are not right or
    wrong, and pearson, spearman and mse tell), layer_speedup, wall_clock_speedup (null with --rounds 0) and n.
    """
    from offramp.bench.evaluate import evaluate as measure
    from offramp.calibration.promise import summary_sentence
    from offramp.cli.recording import warn_of_trained
    from offramp.pipeline import load
    from offramp.runtimes import check_installed
    from offramp.training.data import load_examples

    if check_installed(runtime, run, device=device, dtype=dtype, compile=compile, attention=attention) == "torch":
        quiet_transformers()
    classifier = load(
        run, runtime=runtime, device=device, dtype=dtype, batch_size=batch_size, batch_tokens=batch_tokens,
        threads=threads, lanes=lanes, compile=compile, attention=attention,
    )  # fmt: skip
    setting = classifier.setting(
        threshold=threshold, speedup=speedup, max_layers=max_layers, full_depth=full_depth, knobs=parse_knobs(knob),
        max_risk=max_risk, risk=risk, confidence=confidence,
    )  # fmt: skip
    examples = load_examples(
        data, classifier.task, text_columns=split_columns(text_columns), label_column=label_column,
        prefer=classifier.columns,
    )  # fmt: skip
    assert examples.labels is not None  # load_examples needs labels unless told otherwise
    warn_of_trained(classifier.run, examples.texts)
    result = measure(classifier, examples.texts, examples.labels, setting, rounds=rounds, where=examples.where)
    leaving = {int(layer): round(share * result["n"]) for layer, share in result["exits"].items()}
    result["promise"] = None if setting.promise is None else dict(setting.promise)
    result["summary"] = summary_sentence(leaving, classifier.runtime.info.num_layers, setting.promise)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    table = Table(box=None)
    table.add_column("")
    for heading in ("with exits", "full depth"):
        table.add_column(heading, justify="right")
    for name, value in result["full_depth"].items():
        table.add_row(name, f"{result[name]:.4f}", f"{value:.4f}")
    table.add_row("layer speed-up", f"{result['layer_speedup']:.2f}x", "1.00x")
    if result["wall_clock_speedup"] is not None:
        table.add_row("wall-clock speed-up", f"{result['wall_clock_speedup']:.2f}x", "1.00x")
    show(table)
    leaving = ", ".join(f"{layer}: {100 * share:.0f} %" for layer, share in result["exits"].items())
    point = result["operating_point"]
    knobs = ", ".join(f"{name} {value:.4g}" for name, value in point["knobs"].items())
    how = point["origin"] if point["criterion"] == "depth" and not knobs else (
        f"{point['criterion']}, {knobs} ({point['origin']})"
    )  # fmt: skip
    lanes = f" on {result['lanes']} lanes" if result["lanes"] > 1 else ""
    texts = "1 text" if result["n"] == 1 else f"{result['n']} texts"
    console().print(
        f"\n{texts}, batches of {result['batch_size']}{lanes}, {result['runtime']}.\n"
        f"Left after layer {leaving}.\n"
        f"Leaving by {how}.\n"
        f"{result['summary']}"
    )
