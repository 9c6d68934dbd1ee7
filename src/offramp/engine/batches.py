"""Rows of like length in one batch: the split that costs least, where padding is computed and a batch has its price.

Few batches hold rows of many lengths, and every row is computed as if it were the longest of its batch; many batches
are many calls. Between the two the split is the shortest path through the sorted rows, found by dynamic programming.
Only cuts before a new length, and before a batch that can take no more, are looked at: any other cut can be moved
towards the longer rows until it meets one of these, and no more padding is computed. That leaves a few looks a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

__all__ = ["alike"]

_DEAREST = 1e6
"""Tokens: a call that costs more is not worth one batch more in any case, and infinity cannot be compared."""


def alike(
    lengths: Sequence[int],
    *,
    max_rows: int,
    max_tokens: float,
    waste: float,
    call: float,
    room: Callable[[int, int], tuple[int, int]] | None = None,
) -> list[list[int]]:
    """Split rows into batches of like length, longest first, so that positions computed and calls cost least together.

    Args:
        lengths: tokens in each row.
        max_rows: most rows in a batch.
        max_tokens: most positions in a batch, padding included; a longer row goes alone.
        waste: rows x longest row is at most so many times the tokens that are no padding; 1 or more.
        call: what a batch costs besides, in tokens.
        room: with how many rows and tokens a batch of so many is computed (``runtimes.base.Pads``); None: as many.

    Returns:
        Row numbers of each batch; every row is in exactly one.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    sizes = [lengths[row] for row in order]
    batches, end = [], len(order)
    starts = _starts(sizes, max_rows, max_tokens, waste, min(call, _DEAREST), room)
    while end:
        batches.append(order[starts[end] : end])
        end = starts[end]
    return batches[::-1]


def _starts(
    sizes: Sequence[int],
    max_rows: int,
    max_tokens: float,
    waste: float,
    call: float,
    room: Callable[[int, int], tuple[int, int]] | None,
) -> list[int]:
    """For every number of the longest rows: where the last batch begins in the best split of them."""
    rows, widths = _computed(sizes, max_rows, room)
    best, starts = [0.0], [0]
    steps: list[int] = []  # where a new width begins, not before the earliest start
    before = [0, *accumulate(sizes)]  # tokens of so many rows
    earliest = 0  # start of a batch that ends here
    for end in range(1, len(sizes) + 1):
        last = end - 1
        if not last or widths[last] != widths[last - 1]:
            steps.append(last)
        # What is too much for a batch is so for one with a shorter row besides: the earliest start only moves on.
        while earliest < last and (
            end - earliest > max_rows
            or sizes[earliest] * (end - earliest) > min(max_tokens, waste * (before[end] - before[earliest]))
        ):
            earliest += 1
        while steps and steps[0] <= earliest:
            steps.pop(0)
        cheapest, start = best[earliest] + widths[earliest] * rows[end - earliest], earliest
        for step in steps:
            cost = best[step] + widths[step] * rows[end - step]
            if cost < cheapest and sizes[step] * (end - step) <= waste * (before[end] - before[step]):
                cheapest, start = cost, step
        best.append(cheapest + call)
        starts.append(start)
    return starts


def _computed(
    sizes: Sequence[int], max_rows: int, room: Callable[[int, int], tuple[int, int]] | None
) -> tuple[Sequence[int], Sequence[int]]:
    """Rows computed for each number of rows, from 0, and tokens for each row."""
    if room is None:
        return range(max_rows + 1), sizes
    wide = {size: room(1, size)[1] for size in set(sizes)}
    return [0, *(room(count, 1)[0] for count in range(1, max_rows + 1))], [wide[size] for size in sizes]
