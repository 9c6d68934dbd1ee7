from __future__ import annotations

from typing import Any

import array_api_strict
import numpy as np
import pytest
from array_api_compat import array_namespace, device
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.inputs.packing import Places, gather, keep, merge, take, trim
from offramp.types import Batch

torch = pytest.importorskip("torch")


def make_tree(rows: int, width: int, seed: int, *, types: bool = True) -> dict[str, Any]:
    """Everything that travels with rows; nothing but zeros stands beyond a row's length."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, width + 1, rows)
    inside = np.arange(width) < lengths[:, None]
    tokens = rng.integers(1, 1000, (rows, width)) * inside
    return {
        "hidden": rng.normal(size=(rows, width, 3)).astype(np.float32) * inside[..., None],
        "batch": Batch(np.arange(rows), tokens, lengths, (tokens % 2) if types else None),
        "state": {"streak": rng.integers(0, 5, rows), "answer": rng.normal(size=(rows, 2)), "empty": {}},
        "pair": (rng.random(rows) > 0.5, None, rng.normal(size=(rows, 4)).astype(np.float16)),
    }


def change(function: Any, tree: Any) -> Any:
    """A walk written apart from the one under test."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {name: change(function, child) for name, child in tree.items()}
    if isinstance(tree, tuple):
        return tuple(change(function, child) for child in tree)
    if isinstance(tree, Batch):
        return Batch(**{name: change(function, child) for name, child in vars(tree).items()})
    return function(tree)


def leaves(tree: Any) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    change(lambda array: found.append(np.asarray(array)), tree)
    return found


def assert_same(left: Any, right: Any) -> None:
    pairs = list(zip(leaves(left), leaves(right), strict=True))
    for one, other in pairs:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def trimmed(tree: dict[str, Any]) -> dict[str, Any]:
    hidden, batch = trim(tree["hidden"], tree["batch"])
    return {**tree, "hidden": hidden, "batch": batch}


masks = st.integers(1, 9).flatmap(lambda n: st.lists(st.booleans(), min_size=n, max_size=n))


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(1, 6), st.integers(0, 99), st.booleans())
def test_merge_of_what_keep_split_is_what_was_there(mask: list[bool], width: int, seed: int, cut: bool) -> None:
    whole, flags = make_tree(len(mask), width, seed), np.asarray(mask)
    parts = [keep(flags, whole), keep(~flags, whole)]
    if cut:  # parts of different widths: merge has to pad
        parts = [trimmed(part) for part in parts]
    together = merge(parts)
    order = np.argsort(together["batch"].ids)
    assert_same(trimmed(change(lambda array: array[order], together)), trimmed(whole))


@settings(max_examples=40, deadline=None)
@given(masks, st.data())
def test_keeping_twice_is_keeping_what_both_keep(mask: list[bool], data: st.DataObject) -> None:
    first = np.asarray(mask)
    second = np.asarray(data.draw(st.lists(st.booleans(), min_size=sum(mask), max_size=sum(mask))), dtype=bool)
    both = first.copy()
    both[first] = second
    tree = make_tree(len(mask), 4, 0)
    assert_same(keep(second, keep(first, tree)), keep(both, tree))


@settings(max_examples=40, deadline=None)
@given(masks, st.integers(0, 99))
def test_keep_is_boolean_indexing(mask: list[bool], seed: int) -> None:
    flags, tree = np.asarray(mask), make_tree(len(mask), 5, seed)
    assert_same(keep(flags, tree), change(lambda array: array[flags], tree))


@settings(max_examples=40, deadline=None)
@given(masks, st.integers(0, 99))
def test_numpy_and_torch_agree(mask: list[bool], seed: int) -> None:
    tree = make_tree(len(mask), 5, seed)
    twin = change(torch.asarray, tree)
    kept, other = keep(np.asarray(mask), tree), keep(torch.asarray(mask), twin)
    assert_same(kept, other)
    assert_same(merge([trimmed(kept), tree]), merge([trimmed(other), twin]))
    assert all(isinstance(leaf, torch.Tensor) for leaf in other["state"].values() if not isinstance(leaf, dict))


def test_all_kept_and_a_single_tree_cost_nothing() -> None:
    tree = make_tree(3, 4, 0)
    assert keep(np.ones(3, dtype=bool), tree) is tree
    assert merge([tree]) is tree
    assert keep(np.ones(3, dtype=bool), None) is None


def test_none_kept_gives_empty_arrays_that_merge() -> None:
    tree = make_tree(3, 4, 0)
    nothing = keep(np.zeros(3, dtype=bool), tree)
    assert nothing["hidden"].shape == (0, 4, 3)
    assert_same(merge([nothing, tree]), tree)
    assert trim(nothing["hidden"], nothing["batch"])[0] is nothing["hidden"]


def test_merge_pads_with_zeros_to_the_widest() -> None:
    merged = merge([np.ones((1, 2, 2), dtype=np.float16), np.ones((2, 3, 2), dtype=np.float16)])
    assert merged.dtype == np.float16
    np.testing.assert_array_equal(merged[:, :, 0], [[1, 1, 0], [1, 1, 1], [1, 1, 1]])


def test_trim_cuts_to_the_longest_row_and_only_then() -> None:
    batch = Batch(np.arange(2), np.array([[1, 2, 0, 0], [3, 0, 0, 0]]), np.array([2, 1]), np.zeros((2, 4), np.int64))
    hidden, cut = trim(np.ones((2, 4, 3)), batch)
    assert hidden.shape == (2, 2, 3)
    np.testing.assert_array_equal(cut.tokens, [[1, 2], [3, 0]])
    assert cut.token_types.shape == (2, 2)
    again, same = trim(hidden, cut)
    assert again is hidden
    assert same is cut


def test_what_does_not_fit_together_is_refused() -> None:
    mask = np.array([True, False])
    with pytest.raises(ValueError, match="2 rows to take from, but an array among them has 3"):
        keep(mask, {"a": np.zeros(3)})
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])
    with pytest.raises(ValueError, match="different names"):
        merge([{"a": np.zeros(1)}, {"b": np.zeros(1)}])
    with pytest.raises(ValueError, match="None"):
        merge([(np.zeros(1),), (None,)])
    with pytest.raises(ValueError, match="zip"):
        merge([(np.zeros(1),), (np.zeros(1), np.zeros(1))])


def send(numbers: np.ndarray, like: Any) -> Any:
    xp = array_namespace(like)
    return xp.asarray(numbers, device=device(like))


LIBRARIES = {"numpy": np.asarray, "torch": torch.from_numpy, "strict": array_api_strict.asarray}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=4),
    st.sampled_from(sorted(LIBRARIES)),
    st.sampled_from([(), (3,)]),
    st.data(),
)
def test_gather_is_merge_of_what_take_gives(
    shapes: list[tuple[int, int, int]], library: str, rest: tuple[int, ...], data: st.DataObject
) -> None:
    parts, slowly = [], []
    for number, (rows, width, more) in enumerate(shapes):
        # A corner of something wider, as what a runtime gives may be.
        whole = np.random.default_rng(number).normal(size=(rows + more, width + more, *rest)).astype(np.float32)
        array = LIBRARIES[library](whole)[:rows, :width, ...]
        wanted = np.array(sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1))))
        parts.append((array, wanted))
        slowly.append(take(send(wanted, array), array, rows))
    width = max(width for _, width, _ in shapes)
    room = data.draw(st.sampled_from([None, (30, width + 2)]))
    places = Places([wanted for _, wanted in parts], send)
    found = gather([array for array, _ in parts], places, width, room)
    expected = merge(slowly)
    assert found.shape == expected.shape
    assert type(found) is type(expected)
    start = 0
    for array, wanted in parts:
        inside = (slice(start, start + len(wanted)), slice(0, array.shape[1]), ...)
        np.testing.assert_array_equal(np.asarray(found[inside]), np.asarray(expected[inside]))
        start += len(wanted)
    assert np.isfinite(np.asarray(found)).all()  # padding too


def test_places_serve_arrays_of_any_build() -> None:
    """Hidden states may stand in wider memory than the tokens of the same rows."""
    rows, sent = [np.array([1, 2]), np.array([0])], []
    arrays = [np.arange(24.0).reshape(3, 4, 2), np.arange(8.0).reshape(1, 4, 2)]
    corners = [np.arange(60.0).reshape(5, 6, 2)[:3, :4], np.arange(12.0).reshape(1, 6, 2)[:, :4]]
    places = Places(rows, lambda numbers, like: sent.append(len(numbers)) or numbers)
    for parts in (arrays, corners, [part[:, :, 0].copy() for part in arrays]):
        expected = np.concatenate([part[wanted] for part, wanted in zip(parts, rows, strict=True)])
        np.testing.assert_array_equal(gather(parts, places, 4), expected)
    assert sent == [8, 4, 8, 4]  # the third are built as the first: their places are known


def test_gather_takes_the_room_it_is_given() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    found = gather([array], Places([np.array([0, 2])], send), 2, room=(4, 3))
    whole = found.base
    assert whole.shape == (4, 3, 2)
    np.testing.assert_array_equal(whole[:2, :2], array[[0, 2]])
    assert (whole[2:] == 0).all()
    assert np.isfinite(whole).all()


def test_works_on_strict_array_api_arrays() -> None:
    xp = pytest.importorskip("array_api_strict")
    hidden = xp.ones((3, 4, 2))
    batch = Batch(xp.arange(3), xp.ones((3, 4), dtype=xp.int64), xp.asarray([2, 4, 1]))
    hidden, batch = trim(*keep(xp.asarray([True, False, True]), (hidden, batch)))
    assert hidden.shape == (2, 2, 2)
    assert merge([hidden, xp.ones((1, 3, 2))]).shape == (3, 3, 2)
