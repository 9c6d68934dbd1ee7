"""The split of rows into batches: within all limits, and none costs less."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from offramp.engine.batches import alike

Room = Callable[[int, int], tuple[int, int]]

LENGTHS = st.lists(st.integers(1, 60), max_size=40)
CALLS = st.sampled_from([0, 7, 45, 300, math.inf])


def as_it_is(rows: int, width: int) -> tuple[int, int]:
    return rows, width


def in_steps(rows: int, width: int) -> tuple[int, int]:
    return rows + rows % 2, -(-width // 8) * 8


def cost(lengths: list[int], call: float, room: Room) -> float:
    """Of rows as one batch."""
    rows, width = room(len(lengths), max(lengths))
    return rows * width + call


def cheapest(lengths: list[int], max_rows: int, max_tokens: float, waste: float, call: float, room: Room) -> float:
    """By looking at every cut there is."""
    ordered = sorted(lengths, reverse=True)

    @cache
    def best(end: int) -> float:
        if not end:
            return 0.0
        costs = []
        for start in range(max(0, end - max_rows), end):
            batch = ordered[start:end]
            if len(batch) == 1 or batch[0] * len(batch) <= min(max_tokens, waste * sum(batch)):
                costs.append(best(start) + cost(batch, call, room))
        return min(costs)

    return best(len(ordered))


@given(
    lengths=LENGTHS,
    max_rows=st.integers(1, 9),
    max_tokens=st.one_of(st.just(math.inf), st.integers(1, 200)),
    waste=st.sampled_from([1.0, 1.1, 1.5, 3.0, math.inf]),
    call=CALLS,
    room=st.sampled_from([None, in_steps]),
)
def test_every_row_is_in_one_batch_within_all_limits(
    lengths: list[int], max_rows: int, max_tokens: float, waste: float, call: float, room: Room | None
) -> None:
    batches = alike(lengths, max_rows=max_rows, max_tokens=max_tokens, waste=waste, call=call, room=room)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert [lengths[row] for batch in batches for row in batch] == sorted(lengths, reverse=True)
    for batch in batches:
        real = [lengths[row] for row in batch]
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or max(real) * len(batch) <= min(max_tokens, waste * sum(real))


@given(lengths=LENGTHS, max_rows=st.integers(1, 9), max_tokens=st.sampled_from([math.inf, 100]), call=CALLS)
def test_no_split_costs_less(lengths: list[int], max_rows: int, max_tokens: float, call: float) -> None:
    batches = alike(lengths, max_rows=max_rows, max_tokens=max_tokens, waste=math.inf, call=call)
    call = min(call, 1e6)
    found = sum(cost([lengths[row] for row in batch], call, as_it_is) for batch in batches)
    assert found == cheapest(lengths, max_rows, max_tokens, math.inf, call, as_it_is)


def test_a_dear_call_makes_few_batches_and_a_cheap_one_no_padding() -> None:
    lengths = [9, 2, 8, 2, 1]
    assert alike(lengths, max_rows=5, max_tokens=math.inf, waste=math.inf, call=1000) == [[0, 2, 1, 3, 4]]
    assert alike(lengths, max_rows=5, max_tokens=math.inf, waste=math.inf, call=0) == [[0], [2], [1, 3], [4]]
    assert alike(lengths, max_rows=5, max_tokens=math.inf, waste=math.inf, call=4) == [[0, 2], [1, 3, 4]]


def test_where_widths_come_in_steps_nothing_is_cut_within_one() -> None:
    lengths = [16, 15, 12, 9, 8, 7, 1]
    split = alike(lengths, max_rows=7, max_tokens=math.inf, waste=math.inf, call=1, room=in_steps)
    assert split == [[0, 1, 2, 3], [4, 5, 6]]
