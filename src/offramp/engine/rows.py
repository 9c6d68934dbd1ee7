"""Rows between two stages, and how those that go next come together in one batch.

Whoever stays after an exit is not moved at once. A group says which rows of a batch still wait, and ``gathered`` puts
those that go next, from whichever groups, into one batch: so each number is copied once on its way from one stage to
the next, and not at all where nobody leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device

from offramp.inputs.packing import Places, gather, merge, take
from offramp.types import Array, Batch, State

__all__ = ["Group", "Rows", "gathered", "without_hidden"]

Integers = npt.NDArray[np.int64]


@dataclass(eq=False, slots=True)
class Rows:
    """Rows before one stage. Every field has the row as its first axis. Only the step that took them changes them."""

    ids: Integers
    lengths: Integers
    knobs: Mapping[str, npt.NDArray[np.float64]]
    """The criterion's, and ``max_layers``: in numpy, and sent where an exit is asked."""
    executed: Integers
    """Layers computed for it so far."""
    hidden: Array
    batch: Batch
    state: State
    """The criterion's: in numpy where it decides there."""
    memory: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """Rows of one batch that wait."""

    rows: Rows
    left: Integers
    """Which of them, rising."""

    @property
    def ids(self) -> Integers:
        """Of those that wait."""
        return self.rows.ids[self.left]

    @property
    def is_whole(self) -> bool:
        """Nobody of the batch has left."""
        return len(self.left) == len(self.rows.ids)

    @property
    def is_sparse(self) -> bool:
        """Fewer than half wait: then what it keeps of the others is worth a copy."""
        return 2 * len(self.left) < len(self.rows.ids)


def gathered(
    groups: Sequence[Group],
    send: Callable[[npt.NDArray[Any], Array], Array],
    room: Callable[[int, int], tuple[int, int]] | None = None,
) -> Rows:
    """The rows that wait in all groups as one batch, without padding that none of them needs.

    Args:
        groups: at least one, none of them empty.
        send: an array of the host as one like another array (``Transfers.send``).
        room: rows and tokens for which memory is taken, where a runtime computes with more (``runtimes.base.Pads``).
    """
    if len(groups) == 1 and groups[0].is_whole:
        return groups[0].rows  # as they were computed: nothing is moved, and no padding is there for others
    ids, lengths, executed = (
        np.concatenate([column[group.left] for group, column in zip(groups, columns, strict=True)])
        for columns in zip(*((each.rows.ids, each.rows.lengths, each.rows.executed) for each in groups), strict=True)
    )
    names = groups[0].rows.knobs
    knobs = {name: np.concatenate([group.rows.knobs[name][group.left] for group in groups]) for name in names}
    width, places = int(lengths.max()), Places([group.left for group in groups], send)

    def wide(array: Callable[[Rows], Any], shape: tuple[int, int] | None = None) -> Array:
        return gather([array(group.rows) for group in groups], places, width, shape)

    first = groups[0].rows
    typed = first.batch.token_types is not None
    batch = Batch(
        ids=send(ids, first.batch.ids),
        tokens=wide(lambda rows: rows.batch.tokens),
        lengths=send(lengths, first.batch.lengths),
        token_types=wide(lambda rows: rows.batch.token_types) if typed else None,
    )
    hidden = wide(lambda rows: rows.hidden, None if room is None else room(len(ids), width))
    state = merge([_taken(group.rows.state, group, send) for group in groups])
    memory = merge([_taken(group.rows.memory, group, send) for group in groups])
    return Rows(ids, lengths, knobs, executed, hidden, batch, state, memory)


def _taken(tree: Any, group: Group, send: Callable[[npt.NDArray[Any], Array], Array]) -> Any:
    """What a state or memory holds of the rows that wait. All its arrays are of one library, and on one device."""
    example = _an_array(tree)
    if example is None or group.is_whole:
        return tree
    return take(send(group.left, example), tree, len(group.rows.ids))


def _an_array(tree: Any) -> Array | None:
    """Any array of a tree; None where there is none."""
    if tree is None:
        return None
    if isinstance(tree, Mapping | tuple):
        children = tree.values() if isinstance(tree, Mapping) else tree
        return next((found for found in map(_an_array, children) if found is not None), None)
    return tree


def without_hidden(rows: Rows) -> Rows:
    """The same rows with hidden states [B, L, 0]: no stage will read them, so none are kept or moved about."""
    xp = array_namespace(rows.hidden)
    rows.hidden = xp.zeros((*rows.hidden.shape[:2], 0), dtype=rows.hidden.dtype, device=device(rows.hidden))
    return rows
