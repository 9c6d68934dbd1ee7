"""Token ids to the arrays a runtime embeds, and texts of like length side by side, so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from offramp.errors import KnobError
from offramp.inputs.tokens import Encoded

__all__ = ["length_sorted", "pad"]


def pad(
    encoded: Sequence[Encoded], ids: Sequence[int], *, pad_token: int, token_types: bool
) -> dict[str, npt.NDArray[np.int64]]:
    """The inputs of ``Runtime.embed``, padded on the right to the longest text.

    Args:
        encoded: B texts.
        ids: B unit numbers.
        pad_token: stands where there is no text.
        token_types: also give ``token_types`` (padded with 0; texts without types are all 0).

    Returns:
        ``ids`` [B], ``tokens`` [B, L], ``lengths`` [B], and ``token_types`` [B, L] if asked for, all int64.
    """
    if len(ids) != len(encoded):
        raise ValueError(f"{len(encoded)} texts, but {len(ids)} ids")
    if len(encoded) == 1:  # nothing to fill up: a text alone is answered in so little time that loops would show
        return _alone(encoded[0], ids[0], token_types)
    lengths = np.fromiter((len(text) for text in encoded), dtype=np.int64, count=len(encoded))
    shape = (len(encoded), int(lengths.max(initial=0)))
    tokens = np.full(shape, pad_token, dtype=np.int64)
    for row, text in enumerate(encoded):
        tokens[row, : len(text)] = text.tokens
    inputs = {"ids": np.asarray(ids, dtype=np.int64), "tokens": tokens, "lengths": lengths}
    if token_types:
        types = np.zeros(shape, dtype=np.int64)
        for row, text in enumerate(encoded):
            if text.token_types is not None:
                types[row, : len(text)] = text.token_types
        inputs["token_types"] = types
    return inputs


def _alone(text: Encoded, name: int, token_types: bool) -> dict[str, npt.NDArray[np.int64]]:
    tokens = text.tokens.astype(np.int64)[None]
    inputs = {"ids": _number(name), "tokens": tokens, "lengths": _number(tokens.shape[1])}
    if token_types:
        types = text.token_types
        inputs["token_types"] = np.zeros_like(tokens) if types is None else types.astype(np.int64)[None]
    return inputs


def _number(value: int) -> npt.NDArray[np.int64]:
    return np.array([value], dtype=np.int64)


def most_tokens(device: str) -> int:
    """Positions in a batch, padding included, where nobody says otherwise: plenty for the device, yet bounded memory.

    A CPU takes as long for a token in any batch of more than some hundreds (docs/performance.md), and attention over 32
    texts of 512 tokens takes gigabytes. A GPU wants more to do: as many as text-embeddings-inference gives it.
    """
    return 2048 if device == "cpu" else 16384


def length_sorted(
    lengths: Sequence[int] | npt.NDArray[np.integer], *, max_rows: int, max_tokens: int | None = None
) -> list[npt.NDArray[np.int64]]:
    """Split rows into batches of like length, longest first.

    Longest first, because the batch that needs most memory then fails at once or never, and because time left, guessed
    from the batches done, is never too hopeful. Rows of one length keep their order.

    Args:
        lengths: [N] tokens in each row.
        max_rows: most rows in a batch.
        max_tokens: most tokens in a batch, padding counted (rows x longest row); a longer row goes alone.

    Returns:
        Row numbers of each batch; every row is in exactly one.

    Raises:
        KnobError: ``max_rows`` or ``max_tokens`` below 1.
    """
    if max_rows < 1 or (max_tokens is not None and max_tokens < 1):
        raise KnobError(f"a batch needs room for one row and one token, not {max_rows} rows and {max_tokens} tokens")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(sizes[order[start]]))  # sorted: the first row is the longest of its batch
        rows = max_rows if max_tokens is None else min(max_rows, max(1, max_tokens // longest))
        batches.append(order[start : start + rows])
        start += rows
    return batches
