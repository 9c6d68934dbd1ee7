from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import KnobError
from offramp.inputs.batching import length_sorted, pad
from offramp.inputs.tokens import Encoded


def encoded(tokens: list[int], types: list[int] | None = None) -> Encoded:
    as_types = None if types is None else np.asarray(types, dtype=np.int32)
    return Encoded(np.asarray(tokens, dtype=np.int32), as_types, False)


def test_pad_gives_what_embed_takes() -> None:
    inputs = pad([encoded([5, 6], [0, 1]), encoded([7, 8, 9])], [40, 41], pad_token=1, token_types=True)
    assert list(inputs) == ["ids", "tokens", "lengths", "token_types"]
    assert all(array.dtype == np.int64 for array in inputs.values())
    np.testing.assert_array_equal(inputs["ids"], [40, 41])
    np.testing.assert_array_equal(inputs["tokens"], [[5, 6, 1], [7, 8, 9]])
    np.testing.assert_array_equal(inputs["lengths"], [2, 3])
    np.testing.assert_array_equal(inputs["token_types"], [[0, 1, 0], [0, 0, 0]])


def test_pad_without_types_or_rows() -> None:
    assert "token_types" not in pad([encoded([5])], [0], pad_token=0, token_types=False)
    assert pad([], [], pad_token=0, token_types=False)["tokens"].shape == (0, 0)
    with pytest.raises(ValueError, match="1 texts, but 2 ids"):
        pad([encoded([5])], [0, 1], pad_token=0, token_types=False)


@given(
    st.lists(st.integers(0, 60), max_size=40),
    st.integers(1, 9),
    st.none() | st.integers(1, 200),
)
def test_batches_of_like_length_within_the_budget(lengths: list[int], max_rows: int, max_tokens: int | None) -> None:
    batches = length_sorted(lengths, max_rows=max_rows, max_tokens=max_tokens)
    order = [int(row) for batch in batches for row in batch]
    # Longest first, rows of one length in their order, every row once.
    assert order == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    for number, batch in enumerate(batches):
        longest = max(lengths[row] for row in batch)
        assert 1 <= len(batch) <= max_rows
        if max_tokens is not None:
            assert len(batch) == 1 or len(batch) * longest <= max_tokens
        if number < len(batches) - 1:  # as full as it may be
            full = len(batch) == max_rows
            assert full or (max_tokens is not None and (len(batch) + 1) * max(1, longest) > max_tokens)


def test_a_row_longer_than_the_budget_goes_alone() -> None:
    batches = length_sorted([3, 100, 3, 3], max_rows=8, max_tokens=6)
    assert [batch.tolist() for batch in batches] == [[1], [0, 2], [3]]


@pytest.mark.parametrize(("rows", "tokens"), [(0, None), (1, 0)])
def test_no_room_is_refused(rows: int, tokens: int | None) -> None:
    with pytest.raises(KnobError, match="room for one row"):
        length_sorted([1], max_rows=rows, max_tokens=tokens)
