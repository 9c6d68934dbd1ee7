"""Recording: every layer once for every text, keeping what every exit said. The result is a trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from offramp.engine.units import to_host
from offramp.errors import DataError
from offramp.inputs.batching import length_sorted, most_tokens, pad
from offramp.inputs.tokens import Encoded
from offramp.runtimes.base import Runtime, RuntimeInfo
from offramp.traces.trace import Trace
from offramp.types import Array, ProblemType

__all__ = ["record"]

_LABELS: Mapping[ProblemType, type[np.generic]] = {
    "single_label_classification": np.int64,
    "multi_label_classification": np.bool_,
    "regression": np.float32,
}


def record(
    runtime: Runtime,
    encoded: Sequence[Encoded],
    *,
    pad_token: int,
    id2label: Mapping[int, str],
    labels: npt.ArrayLike | None = None,
    batch_size: int = 32,
    hashes: npt.NDArray[np.uint64] | None = None,
    model: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Trace:
    """Run every layer for every text and keep what every exit says, in the order given.

    Args:
        runtime: the model.
        encoded: N texts; batches are made of like lengths, the trace is in this order.
        pad_token: token id that stands for padding.
        id2label: names of the outputs.
        labels: [N] classes, [N, C] zeros and ones, or [N] numbers, by problem type; None where nobody knows.
        batch_size: most rows in a batch; of long texts fewer (``inputs.batching.most_tokens``).
        hashes: [N] of the rows of data.
        model: hash of the weights.
        progress: called with the number of texts done since the last call.

    Raises:
        DataError: no texts, a text without tokens, or an output that is not a finite number.
        KnobError: ``batch_size`` below 1.
    """
    lengths = np.array([len(text.tokens) for text in encoded], dtype=np.int64)
    if lengths.min(initial=1) < 1 or not len(lengths):
        raise DataError("there must be at least one text to record, and every text needs at least one token")
    info = runtime.info
    logits, extras = _empty(info, len(encoded))
    for rows in length_sorted(lengths, max_rows=batch_size, max_tokens=most_tokens(info.device)):
        _run(runtime, [encoded[row] for row in rows], rows, pad_token, logits, extras)
        if progress is not None:
            progress(len(rows))
    return Trace(
        logits=logits,
        layers=np.array([stage.layers for stage in info.stages], dtype=np.int64),
        lengths=lengths,
        problem_type=info.problem_type,
        id2label=id2label,
        extras=extras,
        labels=None if labels is None else np.asarray(labels).astype(_LABELS[info.problem_type]),
        runtime=info.name,
        batch_size=batch_size,
        dtype=info.dtype,
        hashes=hashes,
        model=model,
        full_layers=info.full_layers,
    )


def _empty(info: RuntimeInfo, units: int) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]:
    """Logits [E, U, C] and extras [E, U] or [E, U, width], NaN until an exit speaks."""
    start = (len(info.stages), units)
    logits = np.full((*start, info.num_outputs), np.nan, dtype=np.float32)
    shapes = {name: (*start, width) if width else start for name, width in info.extras.items()}
    return logits, {name: np.full(shape, np.nan, dtype=np.float32) for name, shape in shapes.items()}


def _run(
    runtime: Runtime,
    texts: Sequence[Encoded],
    rows: npt.NDArray[np.int64],
    pad_token: int,
    logits: npt.NDArray[np.float32],
    extras: Mapping[str, npt.NDArray[np.float32]],
) -> None:
    """One batch through all stages, written into its rows of the trace's arrays."""
    types = any(text.token_types is not None for text in texts)
    hidden, batch = runtime.embed(pad(texts, rows.tolist(), pad_token=pad_token, token_types=types))
    memory: Mapping[str, Array] = {}
    for stage in runtime.info.stages:
        hidden = runtime.run(stage, hidden, batch)
        output, memory = runtime.exit(stage, hidden, batch, memory)
        logits[stage.index, rows] = to_host(output.logits)
        for name, values in extras.items():
            if name in output.extras:
                values[stage.index, rows] = to_host(output.extras[name])
