"""``offramp predict``: texts in, JSON lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from offramp.cli import app
from offramp.cli.common import (
    BatchSize,
    Columns,
    Device,
    Dtype,
    FullDepth,
    MaxLayers,
    RunFolder,
    RuntimeName,
    Speedup,
    Threshold,
    quiet_transformers,
    split_columns,
)  # fmt: skip
from offramp.inputs.tokens import Text


@app.command()
def predict(
    run: RunFolder,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, --input is read.")] = None,
    input: Annotated[str, typer.Option(help="File (JSONL, CSV, TSV, Parquet, text), or - for standard input.")] = "-",
    text_columns: Columns = None,
    threshold: Threshold = None,
    speedup: Speedup = None,
    max_layers: MaxLayers = None,
    full_depth: FullDepth = False,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = "float32",
    runtime: RuntimeName = None,
) -> None:
    """Classify texts, in their order: one JSON object a line with label, score, exit_layer and layers_executed."""
    from offramp.pipeline import load
    from offramp.runtimes import check_installed

    check_installed(runtime)
    quiet_transformers()
    classifier = load(run, runtime=runtime, device=device, dtype=dtype, batch_size=batch_size)
    setting = classifier.setting(threshold=threshold, speedup=speedup, max_layers=max_layers, full_depth=full_depth)
    typed = not texts and input == "-" and sys.stdin.isatty()
    source: Iterator[Text] = iter(texts) if texts else _read(input, split_columns(text_columns))
    # Somebody typing wants an answer after each line.
    for prediction in classifier.stream(source, setting, chunk=1 if typed else 1024):
        sys.stdout.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
        if typed:
            sys.stdout.flush()
    sys.stdout.flush()


def _read(source: str, text_columns: list[str] | None) -> Iterator[Text]:
    """Texts of a file or of standard input, a row at a time."""
    from offramp.inputs.files import find_columns, read_rows, text_of

    columns = None
    for row in read_rows(source):
        if columns is None:
            columns = find_columns(row.values, text_columns=text_columns, need_label=False, where=row.source)
        yield text_of(row, columns)
