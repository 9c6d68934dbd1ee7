"""``offramp export``: a run as graphs that serve it faster, and without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from offramp.cli import app
from offramp.cli.common import (
    Columns,
    Json,
    RunFolder,
    Threads,
    console,
    print_json,
    quiet_transformers,
    show,
    split_columns,
)  # fmt: skip
from offramp.errors import KnobError, require
from offramp.inputs.tokens import Text
from offramp.run import Run, check_writable
from offramp.runtimes.silence import without_telemetry

MOST_TEXTS = 256
"""Of --data, that an export is checked on."""

_TRACED = (("torch", "train"), ("transformers", "train"), ("onnx", "export"))
_NEEDS = {"onnx": (*_TRACED, ("onnxruntime", "onnx")), "openvino": (*_TRACED, ("openvino", "openvino"))}
"""Runtime -> modules that an export for it needs, and the extras that bring them."""
_INT8_NEEDS: dict[str, tuple[tuple[str, str], ...]] = {"onnx": (), "openvino": (("nncf", "export"),)}
_KIND = {"onnx": "rows", "openvino": "static"}
"""Runtime -> how int8 is made, where nothing else is said."""


@app.command(short_help="Make graphs for a faster runtime, one a stage, and check them.")
def export(
    run: RunFolder,
    runtime: Annotated[str, typer.Option(metavar="NAME", help="onnx or openvino.")] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="Products of eight-bit numbers: faster, and answers move a little.")
    ] = False,
    int8_kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="How int8 is made for onnx: rows (the default), static (faster, measures ranges on --data), weights, "
            "dynamic (about as fast, needs no texts; in batches neighbours change answers). For openvino: static (the "
            "default), rows.",
        ),
    ] = None,
    exits: Annotated[
        str | None,
        typer.Option(
            metavar="A,B|all",
            help="Layers after which exits stay; by default those worth their cost at the default operating point.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Texts to check with, labels or not; by default sentences of offramp's own."),
    ] = None,
    text_columns: Columns = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write RUN/RUNTIME/float32 or RUN/RUNTIME/int8: one graph a stage, with its exit inside, checked against torch.

    For onnx one of all stages besides, for texts one at a time, where the default operating point's criterion allows.

    Where float32 graphs do not say what torch says (to 1e-4; beyond six layers in proportion), nothing is written. How
    often int8 says the same is printed and kept in manifest.json. `offramp.load` takes the fastest that is there.
    """
    if runtime not in _NEEDS:
        raise KnobError(f"nothing can be exported for {runtime!r}: there are {' and '.join(_NEEDS)}")
    for module, extra in (*_NEEDS[runtime], *(_INT8_NEEDS[runtime] if int8 or int8_kind else ())):
        with without_telemetry():
            require(module, extra=extra)
    Run.open(run)
    check_writable(run / runtime)
    quiet_transformers()
    texts = None if data is None else _texts(run, data, split_columns(text_columns))
    chosen: Any = int8_kind or (_KIND[runtime] if int8 else None)
    made = _exporter(runtime)(run, int8=chosen, exits=_exits(exits), texts=texts, threads=threads)
    folder = run / made.runtime / made.dtype
    if as_json:
        said = {"folder": str(folder), "stages": [stage.layers for stage in made.stages]}
        settings = {name: getattr(made, name) for name in ("left_out", "quantisation", "batch_invariant")}
        print_json(said | settings | {"one_call": made.single is not None} | dict(made.check))
        return
    _print(made, str(folder))


def _exporter(runtime: str) -> Any:
    if runtime == "openvino":
        from offramp.runtimes.export.openvino import export_openvino

        return export_openvino
    from offramp.runtimes.export.onnx import export_onnx

    return export_onnx


def _exits(given: str | None) -> Any:
    """``"2,4"`` to layers."""
    if given in (None, "all"):
        return given or "useful"
    try:
        return [int(layer) for layer in str(given).split(",")]
    except ValueError:
        raise KnobError(f"--exits takes layers such as 2,4, or all, not {given!r}") from None


def _texts(run: Any, data: str, columns: Sequence[str] | None) -> list[Text]:
    """Texts of a data set, spread over it."""
    from offramp.pipeline import load
    from offramp.training.data import load_examples

    classifier = load(run, runtime="torch", device="cpu")
    examples = load_examples(
        data, classifier.task, text_columns=columns, prefer=classifier.columns, need_labels=False
    )  # fmt: skip
    chosen = range(0, len(examples), max(1, -(-len(examples) // MOST_TEXTS)))
    for place in chosen:
        classifier.tokenizer.check(examples.texts[place], examples.where(place))
    return [examples.texts[place] for place in chosen]


def _print(made: Any, folder: str) -> None:
    check = made.check
    labels = check.get("labels")
    table = Table(box=None)
    headings = ["layers", "float32 against torch"] + ([] if labels is None else ["labels as torch says"])
    for heading in headings:
        table.add_column(heading, justify="right")
    for place, (stage, error) in enumerate(zip(made.stages, check["float32_errors"], strict=True)):
        row = [f"{stage.first_layer + 1}-{stage.last_layer}", f"{error:.1e}"]
        table.add_row(*row, *([] if labels is None else [f"{100 * labels[place]:.1f} %"]))
    show(table)
    where = "given texts" if check["texts_given"] else "sentences of offramp's own"
    lines = [f"Checked on {check['texts']} {where}."]
    if made.left_out:
        lines.append(f"Exits after layer {', '.join(map(str, made.left_out))} left out: hardly anybody leaves there.")
    if made.single is not None:
        lines.append("A text alone is one call: all stages stand in one graph too.")
    if "exits" in check:
        lines.append(f"At the default operating point {100 * check['exits']:.1f} % leave where they do in torch.")
    if made.quantisation is not None:
        lines.append(f"Int8 by {made.quantisation}; a logit differs from torch by {check['largest_difference']:.2g}.")
    if "bfloat16" in check:
        half = check["bfloat16"]
        lines.append(
            f"In bfloat16 (--dtype bfloat16) a logit differs from torch by {half['largest_difference']:.2g}"
            + (f", and {100 * half['exits']:.1f} % leave where they do there." if "exits" in half else ".")
        )
    if not made.batch_invariant:
        alone = check["batch_1"]
        same = ", ".join(f"{100 * share:.1f} %" for share in alone.get("labels", ()))
        lines.append(
            f"Neighbours in a batch change answers: alone and in batches of 32 labels agree for {same or 'not all'}; "
            "calibrate at the batch size that is served."
        )
    console().print("\n".join(["", *lines, f"Wrote {folder}"]))
