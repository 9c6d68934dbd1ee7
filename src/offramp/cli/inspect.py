"""``offramp inspect``: one text, layer by layer, and why it left where it did."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.table import Table

from offramp.cli import app
from offramp.cli.common import (
    Confidence,
    Device,
    FullDepth,
    Json,
    KnobValues,
    MaxLayers,
    MaxRisk,
    RiskKind,
    RunFolder,
    RuntimeName,
    Speedup,
    Threshold,
    console,
    parse_knobs,
    print_json,
    quiet_transformers,
    show,
)  # fmt: skip
from offramp.errors import DataError
from offramp.inputs.files import Columns
from offramp.traces.trace import Trace

CLASSES_SHOWN = 6
"""More classes than these, and the table shows two distances instead of all."""

SIGNALS = ("dr", "edr", "entropy", "delta")
"""Columns of the table beside that of the criterion in use; what else there is, is in the JSON."""


@app.command(short_help="One text, layer by layer, and why it left where it did.")
def inspect(
    run: RunFolder,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text.")],
    second: Annotated[str | None, typer.Argument(metavar="SECOND", help="The second text of a pair.")] = None,
    threshold: Threshold = None,
    speedup: Speedup = None,
    max_risk: MaxRisk = None,
    risk: RiskKind = None,
    confidence: Confidence = 0.95,
    knob: KnobValues = None,
    max_layers: MaxLayers = None,
    full_depth: FullDepth = False,
    device: Device = None,
    runtime: RuntimeName = None,
    as_json: Json = False,
) -> None:
    """Show for each layer what its exit says of a text: prediction, entropy, distances, and where the text left.

    In --json a layer's score is the probability of its label (the column "sure"). The numbers that criteria compare
    with their thresholds stand beside it: entropy, dr, edr and others by the criterion's name, and doubt, by which
    confidence leaves: 1 - the largest probability (of several labels: of the least sure). Of all these lower is surer.
    """
    from offramp.pipeline import load
    from offramp.runtimes import check_installed

    runtime = runtime or "torch"  # every exit: an export may have fewer
    check_installed(runtime, run)
    quiet_transformers()
    classifier = load(run, runtime=runtime, device=device)
    _check_number(classifier.columns, 1 if second is None else 2)
    setting = classifier.setting(
        threshold=threshold, speedup=speedup, max_layers=max_layers, full_depth=full_depth, knobs=parse_knobs(knob),
        max_risk=max_risk, risk=risk, confidence=confidence,
    )  # fmt: skip
    result = inspect_text(classifier, setting, text if second is None else (text, second))
    if as_json:
        print_json(result)
    else:
        _print(result)


def _check_number(columns: Columns | None, texts: int) -> None:
    """Raise DataError where a run was trained on pairs and gets one text, or the other way round."""
    if columns is None or len(columns.text) == texts:  # or the run does not say
        return
    names = ", ".join(columns.text)
    if texts == 1:
        raise DataError(f"this run was trained on pairs ({names}): give two texts")
    raise DataError(f"this run was trained on single texts ({names}): give one text, in quotes")


def inspect_text(classifier: Any, setting: Any, text: str | tuple[str, str]) -> dict[str, Any]:
    """What every exit says of one text.

    Args:
        classifier: ``offramp.load``'s.
        setting: ``classifier.setting(...)``.
        text: a text or a pair.

    Returns:
        ``text``, ``tokens``, ``truncated``, ``label``, ``score``, ``exit_layer``, ``criterion``, ``knobs`` and
        ``layers``: for each exit ``layer``, ``label``, ``score`` (the label's probability), one number for every scored
        criterion that fits, lower is surer (``entropy``, ``dr``, ``edr``, ...; ``doubt``, which is 1 - the largest
        probability, for ``confidence``; None where the exit does not give what it needs), ``delta`` for
        regression (how far the number moved from the exit before; None at the first), ``distances`` by class where
        the exit measures them, and ``left``. ``promise``: what the operating point promises; None: nothing.
    """
    from offramp.bench.wallclock import run_encoded
    from offramp.engine.record import record

    encoded = classifier.encode([text])
    names = classifier.run.id2label or {0: "value"}
    trace = record(classifier.runtime, encoded, pad_token=classifier.tokenizer.pad_token, id2label=names, batch_size=1)
    finished = run_encoded(classifier, encoded, setting)[0]
    prediction = classifier.read(finished, truncated=encoded[0].truncated)
    signals = _signals(classifier, setting)
    layers = []
    for stage in classifier.runtime.info.stages:
        output = trace.output(stage.index)
        label, score = classifier.task.read(trace.logits[stage.index, 0])
        entry: dict[str, Any] = {"layer": stage.layers, "label": label, "score": score}
        for name, criterion in signals.items():
            found = float(criterion.score(stage, output)[0]) if criterion.needs <= output.extras.keys() else None
            entry[_measured(name)] = found
        if classifier.run.problem_type == "regression":
            entry["delta"] = _moved(trace, stage.index)
        if "distances" in output.extras:
            values = output.extras["distances"][0]
            entry["distances"] = {names[k]: float(value) for k, value in enumerate(values)}
        layers.append({**entry, "left": stage.layers == prediction.exit_layer})
    return {
        "text": text,
        "tokens": len(encoded[0]),
        "truncated": prediction.truncated,
        "label": prediction.label,
        "score": prediction.score,
        "exit_layer": prediction.exit_layer,
        "criterion": setting.criterion.name,
        "knobs": dict(setting.knobs),
        "promise": None if setting.promise is None else dict(setting.promise),
        "layers": layers,
    }


def _moved(trace: Trace, place: int) -> float | None:
    """How far the number moved from the exit before, as ``patience_delta`` measures it."""
    return float(abs(trace.logits[place, 0, 0] - trace.logits[place - 1, 0, 0])) if place else None


def _measured(name: str) -> str:
    """What the number is called that a criterion holds against its threshold."""
    from offramp.criteria import available

    return str(getattr(available().get(name), "measure", "") or name)


def _signals(classifier: Any, setting: Any) -> dict[str, Any]:
    """Every scored criterion that fits the model and needs not be learned; the one in use with its own settings."""
    from offramp.criteria import Scored, available

    info = classifier.runtime.info
    fitting = {
        name: rule(problem_type=info.problem_type)
        for name, rule in available().items()
        if issubclass(rule, Scored) and info.problem_type in rule.serves and rule.needs <= info.extras.keys()
        if rule.fit is None  # unlearned, it gives another's number
    }
    if isinstance(setting.criterion, Scored):
        fitting[setting.criterion.name] = replace(setting.criterion)
    return fitting


def _print(result: dict[str, Any]) -> None:
    layers = result["layers"]
    used = _measured(result["criterion"])
    signals = [name for name in layers[0] if name in SIGNALS or name == used]
    classes = list(layers[0].get("distances", {}))
    every = len(classes) <= CLASSES_SHOWN
    table = Table(box=None)
    table.add_column("layer", justify="right")
    table.add_column("says")
    near = [f"d({name})" for name in classes] if every else ["d(own)", "d(next)"]
    shown = ["|delta|" if name == "delta" else name for name in signals]
    for heading in ("sure", *shown, *(near if classes else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for entry in layers:
        distances = entry.get("distances") or {}
        values = list(distances.values()) if every else _two_distances(entry["label"], distances)
        table.add_row(
            str(entry["layer"]),
            _label(entry["label"]),
            "" if entry["score"] is None else f"{entry['score']:.3f}",
            *(_signal(name, entry[name]) for name in signals),
            *(f"{value:.2f}" for value in values),
            *[""] * (len(near) - len(values) if classes else 0),
            "<- left" if entry["left"] else "",
        )
    show(table)
    cut = ", cut from more" if result["truncated"] else ""
    from offramp.calibration.promise import promise_sentence

    promise = result.get("promise")
    said = "" if promise is None else f"\n{promise_sentence(promise)}"
    console().print(f"\n{_why(result)}{_answers(result)} {result['tokens']} tokens{cut}.{said}")


def _answers(result: dict[str, Any]) -> str:
    """What is answered, where the rule answers otherwise than the exit's classifier."""
    says = next(_label(entry["label"]) for entry in result["layers"] if entry["left"])
    answer = _label(result["label"])
    return "" if says == answer else f" The answer is its own: {answer}."


def _label(label: Any) -> str:
    """A class, labels or a number, as people read it."""
    if isinstance(label, list):
        return ", ".join(label) or "(none)"
    return f"{label:.3f}" if isinstance(label, float) else str(label)


def _signal(name: str, value: float | None) -> str:
    """A number of the table; a delta is in the labels' own unit, which may be a small one."""
    return "" if value is None else f"{value:.4g}" if name == "delta" else f"{value:.3f}"


def _two_distances(own: str, distances: dict[str, float]) -> list[float]:
    """Where there are too many classes to show: to the predicted class, and to the nearest other."""
    return [distances[own], min(value for name, value in distances.items() if name != own)] if distances else []


def _why(result: dict[str, Any]) -> str:
    """The rule, in one sentence."""
    knobs = dict(result["knobs"])
    layers = knobs.pop("max_layers", None)
    cap = "" if layers is None else f", or after {layers:g} layers"
    if result["criterion"] == "depth" and not knobs:
        return f"Full depth, no early exit{cap}."
    if (measured := _measured(result["criterion"])) in result["layers"][0]:
        by = "" if measured == result["criterion"] else f" (criterion {result['criterion']})"
        return f"Leaves at the first exit where {measured} < {knobs['threshold']:.4g}{cap}{by}."
    return f"Leaves by {result['criterion']} ({', '.join(f'{k} {v:.4g}' for k, v in knobs.items())}){cap}."
