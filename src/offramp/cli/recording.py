"""Recording a data set through a run, as ``record``, ``compare`` and the demo do it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from offramp.cli.common import progress, quiet_transformers
from offramp.errors import DataError, KnobError, RunError
from offramp.inputs.tokens import Text
from offramp.run import TRAINING_ROWS, Run, weights_hash
from offramp.traces.trace import Trace

if TYPE_CHECKING:
    from offramp.pipeline import Classifier

logger = logging.getLogger(__name__)

MOST_TRAINED = 0.01
"""Share of rows that may have been trained on where a promise is made: short texts repeat themselves."""

__all__ = [
    "MOST_TRAINED", "check_metric", "check_unseen", "comparison_folder", "record_data", "rows_hash", "trace_name",
    "trace_path", "warn_of_trained",
]  # fmt: skip


def trace_name(data: str) -> str:
    """What a data set is called: ``data/sst2/dev.jsonl`` is ``sst2-dev``, the hub's ``nyu-mll/glue:sst2`` is
    ``glue-sst2``.

    Others may be called so too: ``trace_path`` and ``comparison_folder`` keep them apart by their rows. Never ``dev``
    alone: that is the trace training made, by which ``--speedup`` chooses.
    """
    path = Path(data)
    if path.exists():
        path = path.resolve()
    parts = [path.parent.name, path.stem] if path.is_file() else [path.name]
    name = "-".join(re.sub(r"[^\w.]+", "-", part) for part in parts if part)
    return "data-dev" if name == "dev" else name


def trace_path(run: Path, data: str, trace: Trace) -> Path:
    """Where a run keeps the trace of a data set: ``traces/NAME``, and beside it where that is of other rows.

    The same rows, recorded again, replace what was recorded before; other rows never do.
    """
    return _of_its_own(run / "traces" / trace_name(data), trace, _rows_of_trace)


def comparison_folder(run: Path, name: str, trace: Trace) -> Path:
    """Where a run keeps the comparison of a data set, likewise: ``compare/NAME``."""
    return _of_its_own(run / "compare" / name, trace, _rows_of_comparison)


def rows_hash(trace: Trace) -> str | None:
    """By which the rows of a trace are known again, in whatever order; None: it does not say what they are."""
    return None if trace.hashes is None else hashlib.sha256(np.sort(trace.hashes).astype("<u8").tobytes()).hexdigest()


def _of_its_own(place: Path, trace: Trace, rows_at: Callable[[Path], str | None]) -> Path:
    """``place``, where nothing is there or something of the same rows, or of rows that nobody knows."""
    rows = rows_hash(trace)
    if rows is None or rows_at(place) in (None, rows):
        return place
    return place.with_name(f"{place.name}-{rows[:8]}")


def _rows_of_trace(place: Path) -> str | None:
    from offramp.traces.store import load_trace

    try:
        return rows_hash(load_trace(place))
    except RunError:  # there is none, or it is to be recorded again
        return None


def _rows_of_comparison(place: Path) -> str | None:
    try:
        told = json.loads((place / "compare.json").read_bytes())
    except (OSError, ValueError):
        return None
    return told.get("rows_hash") if isinstance(told, dict) else None


def warn_of_trained(run: Run, texts: Sequence[Text]) -> None:
    """Say so where the model was trained on rows that are about to be measured: it knows them by heart."""
    from offramp.training.data import row_hashes

    known = int(np.isin(row_hashes(texts), run.training_hashes).sum())
    if known:
        logger.warning("%d of %d rows were trained on: what is measured on them is too kind", known, len(texts))


def check_unseen(run: Run, hashes: npt.NDArray[np.uint64] | None, *, force: bool = False) -> str:
    """Refuse rows that the model was trained on, where they are more than ``MOST_TRAINED``; fewer are only told.

    So are rows of dev, which chose the checkpoint, and that it cannot be told which rows these are.

    Args:
        run: whose model it is.
        hashes: of the rows; None: not known.
        force: do not refuse them.

    Returns:
        Why a promise on these rows is worth nothing, where it was forced; else nothing.

    Raises:
        DataError: too many.
    """
    if hashes is None or not (run.folder / TRAINING_ROWS).is_file():
        missing = "the trace has no hashes of its rows" if hashes is None else f"{run.folder} has no {TRAINING_ROWS}"
        logger.warning(
            "%s, so it cannot be checked that the model was not trained on these rows: make sure of it, a promise on "
            "such rows is worth nothing", missing,
        )  # fmt: skip
    if hashes is None:
        return ""
    known = int(np.isin(hashes, run.training_hashes).sum())
    if known > MOST_TRAINED * len(hashes):
        if force:
            return "on texts the model was trained on"
        raise DataError(
            f"{known} of {len(hashes)} rows were trained on, more than {100 * MOST_TRAINED:g} %: what a model does on "
            "rows it knows promises nothing for others; give rows it has not seen, or --force"
        )
    if known:
        logger.warning("%d of %d rows were trained on: too few to matter much", known, len(hashes))
    _warn_of_dev(run, hashes)
    return ""


def _warn_of_dev(run: Run, hashes: npt.NDArray[np.uint64]) -> None:
    """Say so where rows are those by which training chose."""
    from offramp.traces.store import load_trace

    path = run.folder / "traces" / "dev.safetensors"
    dev = load_trace(path).hashes if path.is_file() else None
    known = 0 if dev is None else int(np.isin(hashes, dev).sum())
    if known > MOST_TRAINED * len(hashes):
        logger.warning(
            "%d of %d rows are those of dev, which chose the checkpoint and the default operating point: what is "
            "promised on them is too kind, give other rows", known, len(hashes),
        )  # fmt: skip


def check_metric(classifier: Classifier, metric: str | None) -> None:
    """Raise KnobError where the answers of a run have no main metric of that name."""
    mains = classifier.task.mains
    if metric is not None and metric not in mains:
        raise KnobError(f"no score of such answers is called {metric!r}: there are {', '.join(mains)}")


def record_data(
    run: Path,
    data: str,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    need_labels: bool = False,
    batch_size: int = 32,
    device: str | None = None,
    dtype: str | None = None,
    runtime: str | None = None,
    unseen: bool = False,
    read_labels: bool = True,
    check: Callable[[Classifier, int], None] | None = None,
) -> tuple[Trace, list[Text]]:
    """One full pass over a data set, through torch unless told otherwise; the trace, and the texts in its order.

    ``unseen``: complain of rows that were trained on (``check_unseen``) instead of warning, before the pass.
    ``read_labels``: False: there are none in the trace. ``check``: is given the classifier and the number of texts
    before the pass, and may raise.
    """
    from offramp.engine.record import record
    from offramp.pipeline import load
    from offramp.runtimes import check_installed
    from offramp.training.data import load_examples, row_hashes

    if runtime is None and dtype != "int8":
        runtime = "torch"  # an export may have fewer exits
    check_installed(runtime, run, dtype=dtype)
    quiet_transformers()
    classifier = load(run, runtime=runtime, device=device, dtype=dtype, batch_size=batch_size)
    examples = load_examples(
        data, classifier.task, text_columns=text_columns, label_column=label_column, prefer=classifier.columns,
        need_labels=need_labels, read_labels=read_labels,
    )  # fmt: skip
    if check is not None:
        check(classifier, len(examples.texts))
    if unseen:
        check_unseen(classifier.run, row_hashes(examples.texts))
    else:
        warn_of_trained(classifier.run, examples.texts)
    encoded = classifier.encode(examples.texts, examples.where)
    with progress(len(encoded), "recording") as advance:
        trace = record(
            classifier.runtime,
            encoded,
            pad_token=classifier.tokenizer.pad_token,
            labels=examples.labels,
            batch_size=batch_size,
            id2label=classifier.run.id2label,
            hashes=row_hashes(examples.texts),
            model=weights_hash(classifier.run.folder),
            progress=advance,
        )
    return trace, examples.texts
