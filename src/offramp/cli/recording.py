"""Recording a data set through a run, as ``record``, ``compare`` and the demo do it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from offramp.cli.common import progress, quiet_transformers
from offramp.inputs.tokens import Text
from offramp.run import Run
from offramp.traces.trace import Trace

logger = logging.getLogger(__name__)

__all__ = ["record_data", "trace_name", "warn_of_trained"]


def trace_name(data: str) -> str:
    """Name of a data set's trace: ``data/sst2/dev.jsonl`` is ``sst2-dev``, the hub's ``nyu-mll/glue:sst2`` is
    ``glue-sst2``.

    Never ``dev`` alone: that is the trace training made, by which ``--speedup`` chooses.
    """
    path = Path(data)
    if path.exists():
        path = path.resolve()
    parts = [path.parent.name, path.stem] if path.is_file() else [path.name]
    name = "-".join(re.sub(r"[^\w.]+", "-", part) for part in parts if part)
    return "data-dev" if name == "dev" else name


def warn_of_trained(run: Run, texts: Sequence[Text]) -> None:
    """Say so where the model was trained on rows that are about to be measured: it knows them by heart."""
    from offramp.training.data import row_hashes

    known = int(np.isin(row_hashes(texts), run.training_hashes).sum())
    if known:
        logger.warning("%d of %d rows were trained on: what is measured on them is too kind", known, len(texts))


def record_data(
    run: Path,
    data: str,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    need_labels: bool = False,
    batch_size: int = 32,
    device: str | None = None,
    dtype: str = "float32",
    runtime: str | None = None,
) -> tuple[Trace, list[Text]]:
    """One full pass over a data set; the trace, and the texts in its order."""
    from offramp.engine.record import record
    from offramp.pipeline import load
    from offramp.runtimes import check_installed
    from offramp.training.data import load_examples, row_hashes
    from offramp.training.finish import weights_hash

    check_installed(runtime)
    quiet_transformers()
    classifier = load(run, runtime=runtime, device=device, dtype=dtype, batch_size=batch_size)
    examples = load_examples(
        data, classifier.task, text_columns=text_columns, label_column=label_column, prefer=classifier.columns,
        need_labels=need_labels,
    )  # fmt: skip
    warn_of_trained(classifier.run, examples.texts)
    encoded = classifier.encode(examples.texts)
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
