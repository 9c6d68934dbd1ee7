"""The only two ways a batch changes: ``keep`` some rows, ``merge`` several batches into one; and ``trim``.

``take`` is ``keep`` for whoever knows the numbers of the rows: on a GPU a mask would have to be looked at first.
``gather`` is ``merge`` of what ``take`` gives, trimmed, for arrays with an axis of tokens: they are large, and copied
once. The engine goes by it; ``keep`` and ``trim`` are what it is held to, and runtimes with it.

Everything that travels with a row (hidden states, batch, memory, state, knobs) goes through the same two functions,
so that no part can fall out of step with another: ``merge`` of what ``keep`` split is what was there, up to the order
of the rows and padding. These calls stand between all stages, where microseconds count: the mask is turned into
row numbers once, a mask that keeps every row costs one ``nonzero``, and a single batch is merged by returning it.

A *tree* is None, an array whose first axis is the row, a ``Batch``, or a mapping or tuple of trees. All arrays of a
call belong to one library (numpy or torch) and one device. Trees are never changed in place, but what comes back may
be the very arrays that went in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device, is_torch_array

from offramp.types import Array, Batch

__all__ = ["Places", "gather", "keep", "merge", "take", "trim"]

Tree = TypeVar("Tree")


def keep(mask: Array, tree: Tree) -> Tree:
    """The rows where ``mask`` is true, in their order.

    Args:
        mask: [B] bool.
        tree: arrays [B, ...].

    Returns:
        A tree of the same shape (mappings become dicts) with arrays [B', ...] of the same dtypes; the tree itself
        where all rows are kept.

    Raises:
        ValueError: an array has not as many rows as the mask (looked at only where rows are dropped).
    """
    rows = array_namespace(mask).nonzero(mask)[0]
    total = mask.shape[0]
    return tree if rows.shape[0] == total else take(rows, tree, total)


def take(rows: Array, tree: Tree, total: int) -> Tree:
    """The rows of these numbers, in the order of the numbers.

    Args:
        rows: [B'] int64, of the library and on the device of the arrays.
        tree: arrays [B, ...].
        total: B.

    Returns:
        A tree of the same shape (mappings become dicts) with arrays [B', ...] of the same dtypes.

    Raises:
        ValueError: an array has not ``total`` rows.
    """
    xp = array_namespace(rows)
    # The compat layer wraps negative numbers first, which triples the cost of torch's own call; there are none here.
    own_call = is_torch_array(rows)

    def of(array: Array) -> Array:
        if array.shape[0] != total:  # taking rows by number would not notice an array that is too long
            raise ValueError(f"there are {total} rows to take from, but an array among them has {array.shape[0]}")
        return array.index_select(0, rows) if own_call else xp.take(array, rows, axis=0)

    return cast("Tree", _walk(of, tree))


def _walk(change: Callable[[Array], Array], tree: Any) -> Any:
    """Apply a function to every array of a tree."""
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {name: _walk(change, child) for name, child in tree.items()}
    if isinstance(tree, Batch):
        return Batch(*(_walk(change, child) for child in _fields(tree)))
    if isinstance(tree, tuple):
        return tuple(_walk(change, child) for child in tree)
    return change(tree)


def _fields(batch: Batch) -> tuple[Array, Array, Array, Array | None]:
    return batch.ids, batch.tokens, batch.lengths, batch.token_types


def merge(trees: Sequence[Tree]) -> Tree:
    """The rows of all trees, one tree after another.

    Arrays whose axis 1 differs (hidden [B, L, H], tokens [B, L]) are padded with zeros on the right to the widest.
    Zero need not be the padding token: runtimes go by ``lengths`` and never read what stands beyond them.

    Args:
        trees: at least one; the same mapping names, tuple lengths and Nones in each.

    Returns:
        A tree with arrays [sum of B, ...]; the tree itself where there is only one.

    Raises:
        ValueError: no trees, or trees that are not built alike.
    """
    if not trees:
        raise ValueError("there is nothing to merge")
    if len(trees) == 1:
        return trees[0]
    return cast("Tree", _merge(trees))


def _merge(trees: Sequence[Any]) -> Any:
    first = trees[0]
    if any(tree is None for tree in trees):
        if any(tree is not None for tree in trees):
            raise ValueError("some of the trees to merge have an array where others have None")
        return None
    if isinstance(first, Mapping):
        names = first.keys()
        if any(tree.keys() != names for tree in trees):
            raise ValueError(f"the trees to merge have different names: {[sorted(tree) for tree in trees]}")
        return {name: _merge([tree[name] for tree in trees]) for name in names}
    if isinstance(first, Batch):
        return Batch(*(_merge(column) for column in zip(*map(_fields, trees), strict=True)))
    if isinstance(first, tuple):
        return tuple(_merge(column) for column in zip(*trees, strict=True))
    return _concat(trees)


def _concat(arrays: Sequence[Array]) -> Array:
    xp = array_namespace(*arrays)
    first = arrays[0]
    if first.ndim < 2 or all(array.shape[1] == first.shape[1] for array in arrays):
        return xp.concat(list(arrays), axis=0)
    total, widest = sum(array.shape[0] for array in arrays), max(array.shape[1] for array in arrays)
    shape = (total, widest, *first.shape[2:])
    # One allocation filled in place: padding each array first would copy everything twice.
    merged = xp.zeros(shape, dtype=xp.result_type(*arrays), device=device(first))
    start = 0
    for array in arrays:
        merged[start : start + array.shape[0], : array.shape[1], ...] = array
        start += array.shape[0]
    return merged


class Places:
    """Where the positions of some rows stand in arrays [B, L, ...]: found once for arrays of one build.

    Args:
        rows: the numbers [B'] of the rows wanted, of each array.
        send: numbers of the host as an array like another.
    """

    def __init__(
        self,
        rows: Sequence[npt.NDArray[np.int64]],
        send: Callable[[npt.NDArray[np.int64], Array], Array],
    ) -> None:
        self.rows, self._send = rows, send
        self._found: dict[tuple[int, int, int, int], Array] = {}

    @property
    def total(self) -> int:
        """All rows wanted."""
        return sum(len(rows) for rows in self.rows)

    def of(self, part: int, flat: Array, *, pitch: int, width: int, most: int) -> Array:
        """Numbers [B' x most] of positions in an array by position; beyond its width the last one again."""
        build = (part, pitch, width, most)
        if build not in self._found:
            columns = np.minimum(np.arange(most), width - 1)
            self._found[build] = self._send((self.rows[part][:, None] * pitch + columns).reshape(-1), flat)
        return self._found[build]


def gather(arrays: Sequence[Array], places: Places, width: int, room: tuple[int, int] | None = None) -> Array:
    """Rows of several arrays in one, every number copied once.

    Args:
        arrays: at least one [B, L, ...], all alike but for B and L.
        places: of the rows wanted, of as many arrays. Arrays gathered by the same places share library and device.
        width: W: positions of the result. Where an array has fewer, its last one stands beyond them: padding.
        room: rows and positions of the memory that the result is a corner of: padding beside its rows, and zeros
            below them. None: just what the result needs.

    Returns:
        [sum of B', W, ...]; with ``room`` a view of it.
    """
    first = arrays[0]
    most_rows, most = room or (places.total, width)
    xp = array_namespace(first)
    whole = xp.empty((most_rows, most, *first.shape[2:]), dtype=first.dtype, device=device(first))
    made = xp.reshape(whole, (most_rows * most, *first.shape[2:]))
    start = 0
    for part, array in enumerate(arrays):
        flat, pitch = _by_position(array)
        found = places.of(part, flat, pitch=pitch, width=array.shape[1], most=most)
        _take_into(made[start : start + found.shape[0], ...], flat, found)
        start += found.shape[0]
    if room is None:
        return whole
    made[start:, ...] = 0
    return whole[: places.total, :width, ...]


def _take_into(made: Array, flat: Array, places: Array) -> None:
    """Write the entries of these numbers."""
    if is_torch_array(flat):
        array_namespace(flat).index_select(flat, 0, places, out=made)
    elif isinstance(flat, np.ndarray):
        np.take(flat, places, axis=0, out=made, mode="clip")  # with mode "raise" numpy would copy twice
    else:
        made[...] = array_namespace(flat).take(flat, places, axis=0)


def _by_position(array: Array) -> tuple[Array, int]:
    """[B, L, ...] as [positions, ...], and how many of these a row is apart from the next: no copy of a corner."""
    rows, width, *rest = array.shape
    if is_torch_array(array):
        steps, entry, dense = array.stride(), math.prod(rest), array[0, 0].is_contiguous()
    elif isinstance(array, np.ndarray):
        steps, entry, dense = array.strides, math.prod(rest) * array.itemsize, array[0, 0].flags.c_contiguous
    else:
        return array_namespace(array).reshape(array, (rows * width, *rest)), width
    if not dense or not entry or steps[1] != entry or steps[0] % entry:
        return array.reshape((rows * width, *rest)), width
    pitch = steps[0] // entry
    shape = ((rows - 1) * pitch + width, *rest)
    if isinstance(array, np.ndarray):
        return np.lib.stride_tricks.as_strided(array, shape, steps[1:], writeable=False), pitch
    return array.as_strided(shape, steps[1:]), pitch


def trim(hidden: Array, batch: Batch, longest: int | None = None) -> tuple[Array, Batch]:
    """Cut padding that no remaining row needs: axis 1 down to the longest row. Best called after ``keep``.

    Args:
        hidden: [B, L, H].
        batch: of the same rows; tokens [B, L].
        longest: max(lengths), for whoever knows it: on a GPU it would have to be waited for. None: looked up.

    Returns:
        hidden [B, L', H] and the batch with tokens [B, L'], L' = max(lengths): views, or what went in where nothing
        is to be cut (no rows left included).
    """
    if batch.lengths.shape[0] == 0:
        return hidden, batch
    if longest is None:
        longest = int(array_namespace(batch.lengths).max(batch.lengths))
    if longest >= hidden.shape[1]:
        return hidden, batch
    types = None if batch.token_types is None else batch.token_types[:, :longest]
    return hidden[:, :longest, ...], Batch(batch.ids, batch.tokens[:, :longest], batch.lengths, types)
