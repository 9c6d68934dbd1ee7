"""``offramp predict``: texts in, JSON lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

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
    KnobValues,
    Lanes,
    MaxLayers,
    MaxRisk,
    RiskKind,
    RunFolder,
    RuntimeName,
    Speedup,
    Threads,
    Threshold,
    parse_knobs,
    quiet_transformers,
    split_columns,
)  # fmt: skip
from offramp.errors import DataError, KnobError
from offramp.inputs import files
from offramp.inputs.tokens import Text, Tokenizer

CHUNK = 1024
"""Texts among which those of like length are computed together."""


@app.command(short_help="Classify texts: a file, standard input or arguments.")
def predict(
    run: RunFolder,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Texts (two by two, where the run was trained on pairs); without any, --input is read.",
        ),
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="JSONL, CSV, TSV, Parquet or text; by default standard input: JSON or text lines."
        ),
    ] = None,
    text_columns: Columns = None,
    threshold: Threshold = None,
    speedup: Speedup = None,
    max_risk: MaxRisk = None,
    risk: RiskKind = None,
    confidence: Confidence = 0.95,
    knob: KnobValues = None,
    max_layers: MaxLayers = None,
    full_depth: FullDepth = False,
    batch_size: BatchSize = 32,
    batch_tokens: BatchTokens = None,
    device: Device = None,
    dtype: Dtype = None,
    runtime: RuntimeName = None,
    threads: Threads = None,
    lanes: Lanes = 1,
    compile: Compile = False,
    attention: Attention = None,
    monitor: Annotated[
        bool, typer.Option("--monitor", help="Say where texts are not like those of the calibration any more.")
    ] = False,
    shadow_every: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="Run one text in K at full depth too; fall back where the promise does not hold.", min=1
        ),
    ] = None,
    false_alarms: Annotated[
        float | None,
        typer.Option(metavar="X", help="Probability that the monitor ever rings for nothing; by default 0.01."),
    ] = None,
) -> None:
    """Classify texts, in their order: one JSON object a line with label, score, exit_layer and layers_executed.

    With --batch-size 1 each line of standard input is answered before the next is read. --monitor and --shadow-every
    watch the operating point, and say on standard error what they find (docs/drift.md).
    """
    from offramp.calibration.monitor import Monitor
    from offramp.pipeline import load
    from offramp.runtimes import check_installed

    if texts and input is not None:
        raise KnobError("give texts or --input, not both")
    if check_installed(runtime, run, device=device, dtype=dtype, compile=compile, attention=attention) == "torch":
        quiet_transformers()
    watched = monitor or shadow_every is not None
    if false_alarms is not None and not watched:
        raise KnobError("--false-alarms is about a monitor: give --monitor or --shadow-every with it")
    alarms: dict[str, Any] = {} if false_alarms is None else {"false_alarms": false_alarms}
    classifier = load(
        run, runtime=runtime, device=device, dtype=dtype, batch_size=batch_size, batch_tokens=batch_tokens,
        threads=threads, lanes=lanes, compile=compile, attention=attention,
        monitor=Monitor(shadow_every=shadow_every, **alarms) if watched else None,
    )  # fmt: skip
    setting = classifier.setting(
        threshold=threshold, speedup=speedup, max_layers=max_layers, full_depth=full_depth, knobs=parse_knobs(knob),
        max_risk=max_risk, risk=risk, confidence=confidence,
    )  # fmt: skip
    if classifier.monitor is not None:
        classifier.watch(classifier.monitor, setting)  # what cannot be watched is said before the first answer
    typed = not texts and input is None and sys.stdin.isatty()
    if typed:
        print("A text a line; Ctrl-D ends.", file=sys.stderr)
    rows: Iterable[tuple[str, Text]]
    if texts:
        rows = _arguments(texts, classifier.columns, run)
    else:
        rows = _rows(input or "-", split_columns(text_columns), classifier.columns)
    source = _checked(rows, classifier.tokenizer)
    one_by_one = typed or batch_size == 1
    broken: list[Exception] = []
    for prediction in _answers(classifier, _until_broken(source, broken), setting, one_by_one=one_by_one):
        sys.stdout.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
        if one_by_one:
            sys.stdout.flush()
    if classifier.monitor is not None:
        sys.stdout.flush()
        print(f"offramp: {classifier.monitor.summary()}", file=sys.stderr)
    if broken:
        sys.stdout.flush()  # the answers first, then what ended them
        raise broken[0]


def _until_broken(source: Iterable[Text], broken: list[Exception]) -> Iterator[Text]:
    """The texts up to one that cannot be read; that error goes into ``broken``, so that those before are answered."""
    try:
        yield from source
    except Exception as error:
        broken.append(error)


def _answers(classifier: Any, source: Iterable[Text], setting: Any, *, one_by_one: bool) -> Iterator[Any]:
    if not one_by_one:
        yield from classifier.stream(source, setting, chunk=CHUNK)
        return
    for text in source:  # whoever types, or pipes a log in, wants an answer to each line
        yield from classifier.stream([text], setting)


def _checked(rows: Iterable[tuple[str, Text]], tokenizer: Tokenizer) -> Iterator[Text]:
    """The texts, up to one that has no tokens."""
    for where, text in rows:
        tokenizer.check(text, where)
        yield text


def _arguments(texts: Sequence[str], columns: files.Columns | None, run: Path) -> list[tuple[str, Text]]:
    """The texts of the command line, each with its number; pairs, where the run was trained on pairs."""
    if columns is None or len(columns.text) == 1:  # each a text of its own
        return [(f"text {number}", text) for number, text in enumerate(texts, 1)]
    if len(texts) % 2:
        given = "one text is half of one" if len(texts) == 1 else f"{len(texts)} texts make none"
        raise DataError(
            f"this run was trained on pairs ({', '.join(columns.text)}), and {given}: give both texts of each pair, "
            f'each in quotes: offramp predict {run} "FIRST" "SECOND"'
        )
    return [(f"pair {number}", pair) for number, pair in enumerate(zip(texts[::2], texts[1::2], strict=True), 1)]


def _rows(source: str, text_columns: Sequence[str] | None, prefer: files.Columns | None) -> Iterator[tuple[str, Text]]:
    """Texts of a file or of standard input, a row at a time, each with its line."""
    columns = None
    for row in files.read_rows(source):
        if columns is None:
            columns = files.find_columns(
                row.values, text_columns=text_columns, prefer=prefer, need_label=False, where=row.source
            )
            if prefer is not None and len(columns.text) != len(prefer.text):
                kind = "pairs" if len(prefer.text) == 2 else "single texts"
                how = "two with --text_columns A,B" if len(prefer.text) == 2 else "one with --text_columns"
                raise DataError(
                    f"this run was trained on {kind} ({', '.join(prefer.text)}), not on {' and '.join(columns.text)}: "
                    f"name {how}"
                )
        yield row.where, files.text_of(row, columns)
