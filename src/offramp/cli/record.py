"""``offramp record``: run every layer once over a data set, and keep what every exit said."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offramp.cli import app
from offramp.cli.common import (
    BatchSize,
    Columns,
    Device,
    Dtype,
    Json,
    LabelColumn,
    RunFolder,
    RuntimeName,
    console,
    print_json,
    split_columns,
)  # fmt: skip


@app.command(short_help="Keep what every exit says of a data set (a trace).")
def record(
    run: RunFolder,
    data: Annotated[str, typer.Option(metavar="DATA", help="File, folder (its dev part) or hub name.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Trace to write; by default traces/NAME in the run folder."),
    ] = None,
    text_columns: Columns = None,
    label_column: LabelColumn = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    runtime: RuntimeName = None,
    as_json: Json = False,
) -> None:
    """Record a trace: from it thresholds, curves and comparisons are computed without the model."""
    from offramp.cli.recording import record_data, trace_path
    from offramp.run import Run, check_writable
    from offramp.traces.store import save_trace

    Run.open(run)
    check_writable(run / "traces" if out is None else out.parent)
    trace, _ = record_data(
        run, data, text_columns=split_columns(text_columns), label_column=label_column, batch_size=batch_size,
        device=device, dtype=dtype, runtime=runtime,
    )  # fmt: skip
    path = out or trace_path(run, data, trace)
    save_trace(trace, path)
    path = path.with_name(path.name.removesuffix(".safetensors").removesuffix(".json") + ".safetensors")
    labelled = trace.labels is not None
    if as_json:
        print_json({"trace": str(path), "n": trace.num_units, "exits": trace.num_exits, "labelled": labelled})
        return
    note = "" if labelled else ", without labels"
    console().print(f"Recorded {trace.num_units} texts through {trace.num_exits} exits{note}: {path}")
