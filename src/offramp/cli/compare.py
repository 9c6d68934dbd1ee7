"""``offramp compare``: every criterion on one trace, scored on rows that no knob was chosen on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from offramp.cli import app
from offramp.cli.common import (
    BatchSize,
    Columns,
    Device,
    Dtype,
    Json,
    LabelColumn,
    RuntimeName,
    console,
    options_given,
    print_json,
    show,
    split_columns,
)  # fmt: skip
from offramp.errors import KnobError, require
from offramp.inputs.tokens import Text
from offramp.run import check_writable
from offramp.traces.files import write_together
from offramp.traces.trace import Trace

if TYPE_CHECKING:
    from offramp.calibration.compare import Rules

TARGETS = (1.5, 2.0, 3.0, 4.0)

_OF_SUITE = frozenset({"model", "minutes", "tasks", "recipes", "keep_runs"})
"""Parameters that say how a suite is run."""


@app.command(short_help="Every exit criterion on one trace: table, plot, report.")
def compare(
    context: typer.Context,
    run: Annotated[
        Path | None, typer.Argument(help="Run folder that `offramp train` wrote; none with --suite.", metavar="RUN")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Labelled file, folder (its dev part) or hub name; with --suite a folder of folders."
        ),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A trace that `offramp record` wrote, instead of --data.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for table, plot and report; by default compare/NAME in the run folder."
        ),
    ] = None,
    targets: Annotated[str, typer.Option(metavar="X,X,...", help="Layer speed-ups.")] = "1.5,2,3,4",
    splits: Annotated[
        int, typer.Option(metavar="N", help="Random halvings: knobs chosen on one half, scored on the other.", min=1)
    ] = 50,
    resamples: Annotated[
        int, typer.Option(metavar="N", help="Bootstrap resamples behind each interval.", min=1)
    ] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", help="Of halvings and bootstrap.")] = 0,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="accuracy, f1, matthews, ...; by default the task's main one.")
    ] = None,
    text_columns: Columns = None,
    label_column: LabelColumn = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    runtime: RuntimeName = None,
    suite: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Train and compare the recipes of a suite; of a folder of its results, only compare.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --suite: the encoder, instead of the one it names.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(metavar="N", help="With --suite: stop after so long; the next call goes on.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(metavar="A,B,...", help="With --suite: only these tasks.")] = None,
    recipes: Annotated[str | None, typer.Option(metavar="A,B,...", help="With --suite: only these rows.")] = None,
    keep_runs: Annotated[bool, typer.Option("--keep-runs", help="With --suite: keep the trained models.")] = False,
    as_json: Json = False,
) -> None:
    """Compare exit criteria: table, JSON, plot and a self-contained HTML report."""
    _check_options(context, suite)
    if suite is not None:
        _of_suite(
            suite, run, data=data, model=model, out=out, minutes=minutes, tasks=_names(tasks), recipes=_names(recipes),
            keep_runs=keep_runs, as_json=as_json,
        )  # fmt: skip
        return
    if run is None:
        raise KnobError("name the run folder to compare criteria of, or give --suite to compare recipes")
    from offramp.cli.recording import check_metric, comparison_folder, record_data, trace_name
    from offramp.run import Run
    from offramp.traces.store import load_trace

    if (data is None) == (trace is None):
        raise KnobError("give --data to record and compare, or --trace for one that is recorded")
    Run.open(run)
    check_writable(out or run / "compare")
    at = _targets(targets)
    require("matplotlib", extra="plots")  # now, not after everything is computed
    texts: Sequence[Text] | None = None
    if data is not None:
        recorded, texts = record_data(
            run, data, text_columns=split_columns(text_columns), label_column=label_column, need_labels=True,
            batch_size=batch_size, device=device, dtype=dtype, runtime=runtime,
            check=lambda classifier, texts: check_metric(classifier, metric),
        )  # fmt: skip
        name = trace_name(data)
    else:
        assert trace is not None
        recorded, name = load_trace(trace), trace.stem
    folder = out or comparison_folder(run, name, recorded)
    result = write_comparison(
        recorded, folder, texts=texts, targets=at, splits=splits, resamples=resamples, seed=seed,
        metric=metric, title=name,
    )  # fmt: skip
    if as_json:
        print_json(result)
        return
    from offramp.bench.report import as_table

    show(as_table(result))
    console().print(f"\nWrote {folder}/compare.json, compare.png and report.html")


def _check_options(context: typer.Context, suite: Path | None) -> None:
    """Complain of options that would not be heeded."""
    given = options_given(context)
    if suite is None:
        if wrong := [name for name in given if name in _OF_SUITE]:
            raise KnobError(f"{_flag(wrong[0])} is about a suite: give --suite FILE too, or leave it out")
        return
    heeded = {"suite", "run", "data", "out", "as_json"} | _OF_SUITE
    if wrong := [name for name in given if name not in heeded]:
        raise KnobError(f"a suite says for itself what {_flag(wrong[0])} is: write it in {suite}, or leave it out")
    trains = ["data", *sorted(_OF_SUITE)]
    if suite.is_dir() and (wrong := [name for name in trains if name in given]):
        raise KnobError(f"{suite} holds results, and nothing is trained from it: leave {_flag(wrong[0])} out")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _names(given: str | None) -> list[str]:
    return [] if given is None else [name.strip() for name in given.split(",") if name.strip()]


def _of_suite(
    suite: Path,
    run: Path | None,
    *,
    data: str | None,
    model: str | None,
    out: Path | None,
    minutes: float | None,
    tasks: Sequence[str],
    recipes: Sequence[str],
    keep_runs: bool,
    as_json: bool,
) -> None:
    """Tasks x recipes x seeds: tables and plots of what is done."""
    from offramp.cli.suite import compare_suite

    if run is not None:
        raise KnobError(f"--suite trains models of its own: leave {run} away")
    require("matplotlib", extra="plots")
    if out is not None:
        check_writable(out)
    numbers, folder = compare_suite(
        suite, data=data, model=model, out=out, minutes=minutes, tasks=tasks, recipes=recipes, keep_runs=keep_runs
    )
    if as_json:
        print_json(numbers)
        return
    done = any(task["rows"] for task in numbers["tasks"])
    console().print(
        f"Wrote {folder}/comparison.md, tables.json and plots; every cell stands in suite.json" if done else
        f"Nothing is done yet, so there are no tables and no plots; why stands in {folder}/suite.json"
    )  # fmt: skip


def write_comparison(
    trace: Trace,
    folder: Path,
    *,
    texts: Sequence[Text] | None,
    title: str,
    rules: Mapping[str, Rules] | None = None,
    targets: Sequence[float] = TARGETS,
    splits: int = 50,
    resamples: int = 1000,
    seed: int = 0,
    metric: str | None = None,
) -> dict[str, Any]:
    """Compare on a trace: compare.json, compare.png and report.html into a folder, all or none; give the result."""
    from offramp.bench.plots import plot_comparison
    from offramp.bench.provenance import result_bytes
    from offramp.bench.report import render_html
    from offramp.calibration.compare import compare as run_comparison
    from offramp.cli.recording import rows_hash

    with _bar() as advance:
        result = run_comparison(
            trace,
            rules=rules,
            targets=targets,
            splits=splits,
            seed=seed,
            resamples=resamples,
            metric=metric,
            progress=advance,
        )
    result["rows_hash"] = rows_hash(trace)
    image = plot_comparison(result, title=title)
    shown = None if texts is None else [text if isinstance(text, str) else " | ".join(text) for text in texts]
    report = render_html(result, image, title=title, texts=shown)
    # Together: a table, a plot and a report of different comparisons would not be told apart.
    write_together(
        {
            folder / "compare.png": image,
            folder / "report.html": report.encode(),
            folder / "compare.json": result_bytes(result),
        }
    )
    return result


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """Rows of the table done, and the time left, on standard error; silent where that is no terminal."""
    with tqdm(desc="comparing", unit="row", disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.n = done
            bar.refresh()

        yield show


def _targets(given: str) -> list[float]:
    try:
        targets = [float(word) for word in given.split(",")]
    except ValueError:
        targets = []
    if not targets or any(not 1 <= target < math.inf for target in targets):
        raise KnobError(
            f"--targets takes layer speed-ups of 1 or more joined by commas, such as 1.5,2,3, not {given!r}"
        )
    return targets
