"""``offramp inspect``: one text, layer by layer, and why it left where it did."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.table import Table

from offramp.cli import app
from offramp.cli.common import (
    Device,
    FullDepth,
    Json,
    MaxLayers,
    RunFolder,
    RuntimeName,
    Speedup,
    Threshold,
    console,
    print_json,
    quiet_transformers,
    show,
)  # fmt: skip


@app.command()
def inspect(
    run: RunFolder,
    text: Annotated[str, typer.Argument(help="The text.")],
    second: Annotated[str | None, typer.Argument(help="The second text of a pair.")] = None,
    threshold: Threshold = None,
    speedup: Speedup = None,
    max_layers: MaxLayers = None,
    full_depth: FullDepth = False,
    device: Device = None,
    runtime: RuntimeName = None,
    as_json: Json = False,
) -> None:
    """Show for each layer what its exit says of a text: prediction, entropy, distances, and where the text left."""
    from offramp.pipeline import load
    from offramp.runtimes import check_installed

    check_installed(runtime)
    quiet_transformers()
    classifier = load(run, runtime=runtime, device=device)
    setting = classifier.setting(threshold=threshold, speedup=speedup, max_layers=max_layers, full_depth=full_depth)
    result = inspect_text(classifier, setting, text if second is None else (text, second))
    if as_json:
        print_json(result)
    else:
        _print(result)


def inspect_text(classifier: Any, setting: Any, text: str | tuple[str, str]) -> dict[str, Any]:
    """What every exit says of one text.

    Args:
        classifier: ``offramp.load``'s.
        setting: ``classifier.setting(...)``.
        text: a text or a pair.

    Returns:
        ``text``, ``tokens``, ``label``, ``score``, ``exit_layer``, ``criterion``, ``knobs`` and ``layers``: for each
        exit ``layer``, ``label``, ``score``, one number for every scored criterion that fits (``entropy``,
        ``confidence``, ``dr``, ``edr``), ``distances`` by class where the exit measures them, and ``left``.
    """
    import numpy as np

    from offramp.engine.record import record

    encoded = classifier.encode([text])
    info = classifier.runtime.info
    names = classifier.run.id2label or {0: "value"}
    trace = record(classifier.runtime, encoded, pad_token=classifier.tokenizer.pad_token, id2label=names, batch_size=1)
    prediction = next(classifier.stream([text], setting))
    signals = _signals(classifier, setting)
    layers = []
    for stage in info.stages:
        output = trace.output(stage.index)
        label, score = classifier.task.read(trace.logits[stage.index, 0])
        entry: dict[str, Any] = {"layer": stage.layers, "label": label, "score": score}
        for name, criterion in signals.items():
            entry[name] = float(criterion.score(output)[0]) if criterion.needs <= output.extras.keys() else None
        if "distances" in output.extras:
            values = np.asarray(output.extras["distances"])[0]
            entry["distances"] = {names[k]: float(value) for k, value in enumerate(values)}
        layers.append({**entry, "left": stage.layers == prediction.exit_layer})
    return {
        "text": text,
        "tokens": len(encoded[0]),
        "label": prediction.label,
        "score": prediction.score,
        "exit_layer": prediction.exit_layer,
        "criterion": setting.criterion.name,
        "knobs": dict(setting.knobs),
        "layers": layers,
    }


def _signals(classifier: Any, setting: Any) -> dict[str, Any]:
    """Every scored criterion that fits the model, the one in use with its own settings."""
    from offramp.criteria import Scored, available

    info = classifier.runtime.info
    fitting = {
        name: rule(problem_type=info.problem_type)
        for name, rule in available().items()
        if issubclass(rule, Scored) and info.problem_type in rule.serves and rule.needs <= info.extras.keys()
    }
    if setting.criterion.name in fitting:
        fitting[setting.criterion.name] = replace(setting.criterion)
    return fitting


def _print(result: dict[str, Any]) -> None:
    layers = result["layers"]
    signals = [key for key in layers[0] if key not in ("layer", "label", "score", "distances", "left")]
    classes = list(layers[0].get("distances", {}))
    shown = classes if len(classes) <= 6 else []
    table = Table("layer", "says", "sure", *signals, *(f"d({name})" for name in shown), "", box=None)
    for entry in layers:
        label = ", ".join(entry["label"]) if isinstance(entry["label"], list) else entry["label"]
        table.add_row(
            str(entry["layer"]),
            f"{label:.3f}" if isinstance(label, float) else str(label),
            "" if entry["score"] is None else f"{entry['score']:.3f}",
            *("" if entry[name] is None else f"{entry[name]:.3f}" for name in signals),
            *(f"{entry['distances'][name]:.2f}" if "distances" in entry else "" for name in shown),
            "<- left here" if entry["left"] else "",
        )
    show(table)
    knobs = ", ".join(f"{name} {value:.4g}" for name, value in result["knobs"].items())
    console().print(f"\nLeaves by {result['criterion']} ({knobs or 'no knobs'}); {result['tokens']} tokens.")
