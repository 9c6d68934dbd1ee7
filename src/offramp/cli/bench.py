"""``offramp bench``: a run against the fastest things one would deploy instead, in seconds."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from offramp.cli import app
from offramp.cli.common import (
    BatchSize,
    Columns,
    Json,
    LabelColumn,
    RunFolder,
    Threads,
    as_typed,
    console,
    print_json,
    quiet_transformers,
    show,
    split_columns,
)  # fmt: skip
from offramp.cli.hub import check_there
from offramp.errors import DataError, KnobError, require

if TYPE_CHECKING:
    from offramp.inputs.tokens import Text
    from offramp.pipeline import Classifier
    from offramp.run import Run
    from offramp.training.data import Examples

logger = logging.getLogger(__name__)


@app.command(short_help="Seconds, against the fastest full-depth deployments.")
def bench(
    context: typer.Context,
    run: RunFolder,
    data: Annotated[str, typer.Option(metavar="DATA", help="Labelled file, folder (its dev part) or hub name.")],
    plain: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Plain fine-tune of the same encoder, for the peers; by default RUN at full depth."
        ),
    ] = None,
    choose: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="More labelled rows that exits and thresholds are chosen on too; none is timed or scored.",
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(metavar="A,B|list", help="Only rows whose names begin so; list: print the names of all rows."),
    ] = None,
    scenarios: Annotated[
        str, typer.Option(metavar="A,B", help="Offline (all texts at once), SingleStream (one at a time), or both.")
    ] = "Offline,SingleStream",
    max_lost: Annotated[
        str, typer.Option(metavar="X,Y", help="Points of accuracy that rows with exits may lose.")
    ] = "0.5,1",
    criterion: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What rows with exits leave by, such as entropy; by default the run's own."),
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", help="Rounds of the clock, interleaved.", min=1)] = 7,
    single: Annotated[int, typer.Option(metavar="N", help="Texts of SingleStream, spread over the data.", min=1)] = 200,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the halves that are chosen and scored on.")] = 0,
    text_columns: Columns = None,
    label_column: LabelColumn = None,
    batch_size: BatchSize = 32,
    threads: Threads = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For result.json and the pictures; by default RUN/bench.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time a run against full-depth deployments of the same encoder, each in a process of its own, interleaved.

    Exits and thresholds are chosen on one half of the data and scored on the other, over and over. A few hundred rows
    choose cautiously: those of --choose join every half that chooses. Times stand beside accuracies; ratios are to the
    fastest full-depth peer.
    """
    for module, extra in (("torch", "train"), ("transformers", "train"), ("onnx", "export"), ("onnxruntime", "onnx")):
        require(module, extra=extra)
    from offramp.bench.provenance import provenance, write_result
    from offramp.bench.rows import Bench, row_names
    from offramp.bench.serving import run_bench
    from offramp.cli.recording import warn_of_trained
    from offramp.pipeline import load
    from offramp.run import check_writable
    from offramp.runtimes.cpu import check_threads

    quiet_transformers()
    if rows == "list":
        print("\n".join(row_names(run, _numbers(max_lost), _scenarios(scenarios))))
        return
    threads = check_threads(threads)
    if plain is not None:
        check_there(str(plain))
    classifier = load(run, runtime="torch", device="cpu")
    folder = out or run / "bench"
    check_writable(folder)
    examples = _labelled(data, classifier, text_columns, label_column)
    warn_of_trained(classifier.run, examples.texts)
    found = examples if choose is None else _labelled(choose, classifier, text_columns, label_column)
    more = _to_choose_on(choose, examples, found, classifier.run)
    assert examples.labels is not None  # load_examples needs them unless told otherwise
    assert more.labels is not None
    with tempfile.TemporaryDirectory(prefix="offramp-bench-") as work:
        plan = Bench(
            run=run, plain=plain or run, texts=examples.texts, labels=examples.labels,
            more_texts=more.texts, more_labels=more.labels, work=Path(work), max_lost=_numbers(max_lost),
            rows=[] if rows is None else rows.split(","), scenarios=_scenarios(scenarios), criterion=criterion,
            rounds=rounds, threads=threads, max_rows=batch_size, single=single, seed=seed,
        )  # fmt: skip
        result = run_bench(plan, say=_say)
    setup = {"data": Path(data).name, "choose": choose and Path(choose).name, "recipe": classifier.run.recipe}
    result = {**provenance(seeds=[seed]), "command": as_typed(context), "setup": setup, **result}
    written = write_result(folder / "result.json", result)
    pictures = _pictures(result, folder)
    if as_json:
        print_json(result)
        return
    for scenario in result["fastest_peer"]:
        _print(result, scenario)
    console().print("\n".join(["", *_failures(result), f"Wrote {', '.join(map(str, [written, *pictures]))}"]))


def _labelled(data: str, classifier: Classifier, text_columns: str | None, label_column: str | None) -> Examples:
    """Rows with labels, all of which the model can read."""
    from offramp.training.data import load_examples

    examples = load_examples(
        data, classifier.task, text_columns=split_columns(text_columns), label_column=label_column,
        prefer=classifier.columns,
    )  # fmt: skip
    for place, text in enumerate(examples.texts):
        classifier.tokenizer.check(text, examples.where(place))
    return examples


def _to_choose_on(data: str | None, scored: Examples, found: Examples, run: Run) -> Examples:
    """Of the rows found those to choose on: each once, none that is scored or was trained on, spelling aside.

    Args:
        data: what they are called; None: no rows were given, and none are returned.
        scored: rows that are timed and scored.
        found: rows given.
        run: whose training rows to leave out.

    Raises:
        DataError: nothing is left.
    """
    import numpy as np

    from offramp.training.data import row_hashes

    if data is None:
        return found.select(np.zeros(0, dtype=np.int64))
    seen = {_spelt(text) for text in scored.texts}
    kept, trained = [], np.isin(row_hashes(found.texts), run.training_hashes)
    for place, text in enumerate(found.texts):
        if not trained[place] and (letters := _spelt(text)) not in seen:
            seen.add(letters)
            kept.append(place)
    if not kept:
        raise DataError(f"{data}: every row stands in --data or was trained on, so there is nothing more to choose on")
    if len(kept) < len(found.texts):
        logger.warning(
            "%d of %d rows of %s are left out: they stand in --data, were trained on, or come twice",
            len(found.texts) - len(kept), len(found.texts), data,
        )  # fmt: skip
    return found.select(np.array(kept, dtype=np.int64))


def _spelt(text: Text) -> tuple[str, ...]:
    """Letters and digits of a text, or of each of a pair; where there are none, the text as it is."""
    parts = (text,) if isinstance(text, str) else text
    return tuple("".join(filter(str.isalnum, part.casefold())) or part for part in parts)


def _say(line: str) -> None:
    """Progress: on a terminal in one line, in a log line by line."""
    end, line = ("", f"\r\033[K{line}") if sys.stderr.isatty() else ("\n", line)
    print(line, end=end, file=sys.stderr, flush=True)


def _numbers(given: str) -> list[float]:
    try:
        found = [float(number) for number in given.split(",")]
    except ValueError:
        raise KnobError(f"--max-lost takes points such as 0.5,1, not {given!r}") from None
    if any(number < 0 for number in found):
        raise KnobError(f"--max-lost takes points of 0 or more, not {given!r}")
    return found


def _scenarios(given: str) -> list[str]:
    from offramp.bench.speed import SCENARIOS

    names = {name.lower(): name for name in SCENARIOS}
    try:
        return [names[each.strip().lower()] for each in given.split(",")]
    except KeyError:
        raise KnobError(f"--scenarios takes {' and '.join(SCENARIOS)}, not {given!r}") from None


def _pictures(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Bars and scatter, where matplotlib is there and something was timed."""
    from importlib.util import find_spec

    from offramp.bench.speed_plots import plot_accuracy, plot_speed
    from offramp.traces.files import write_atomically

    if find_spec("matplotlib") is None or all("failure" in row for row in result["rows"]):
        return []
    found = []
    for name, plot in (("speed.png", plot_speed), ("accuracy.png", plot_accuracy)):
        write_atomically(folder / name, plot(result))
        found.append(folder / name)
    return found


def _print(result: Mapping[str, Any], scenario: str) -> None:
    settings = result["settings"]
    how = f"batches of {settings['max_rows']}" if scenario == "Offline" else "one text at a time"
    console().print(f"\n{scenario}: {how}, {settings['threads']} threads, {settings['rounds']} rounds")
    table = Table(box=None)
    times = ["p50 / p90 / p99 ms"] if scenario == "SingleStream" else []
    table.add_column("", justify="left")
    for name in (
        "texts/s",
        "beside the fastest peer",
        "tokenising too",
        *times,
        "layers",
        "time / layers",
        "points lost",
    ):
        table.add_column(name, justify="right")
    timed = [row for row in result["rows"] if scenario in row]
    for row in sorted(timed, key=lambda row: -_median(row[scenario])):
        table.add_row(*_cells(row, scenario))
    show(table)


def _median(entry: Mapping[str, Any]) -> float:
    how = entry.get("without tokenisation") or entry["with tokenisation"]
    return float(how["texts_per_second"]["median"])


def _cells(row: Mapping[str, Any], scenario: str) -> list[str]:
    entry = row[scenario]
    bare, tokenised = (entry.get(f"{how} tokenisation") for how in ("without", "with"))
    ratio = entry.get("ratio", {}).get("without tokenisation")
    beside = "" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
    times = []
    if scenario == "SingleStream":
        found = bare or tokenised
        times = [" / ".join(f"{found[name]['median']:.1f}" for name in ("p50_ms", "p90_ms", "p99_ms"))]
    fewer, over = row["facts"].get("layer_speedup"), entry.get("wall_over_layers")
    held_out = row["prepared"].get("held_out")
    lost = entry["lost"] if held_out is None else {
        "points": held_out["lost"], "low": held_out["lost_low"], "high": held_out["lost_high"]
    }  # fmt: skip
    return [
        entry["label"],
        "" if bare is None else f"{bare['texts_per_second']['median']:.0f}",
        beside,
        "" if tokenised is None else f"{tokenised['texts_per_second']['median']:.0f}",
        *times,
        "" if fewer is None else f"{fewer:.2f}x fewer",
        "" if over is None else f"{over:.2f}",
        f"{lost['points']:.2f} ({lost['low']:.2f} to {lost['high']:.2f})",
    ]


def _failures(result: Mapping[str, Any]) -> list[str]:
    best, data = result["reference"], result["data"]
    more = f", chosen on the other half and {data['chosen_on_only']:,} texts more" if data["chosen_on_only"] else ""
    lines = [f"{row['label']} is missing: {row['failure']}" for row in result["rows"] if "failure" in row]
    return [
        *lines,
        f"Points lost against {best['of']} ({100 * best['accuracy']:.1f} %); of rows with exits on the half of "
        f"{data['n']:,} texts that nothing was chosen on{more}; mean of {result['settings']['splits']} splits.",
    ]
