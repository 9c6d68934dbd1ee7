"""A trace: what every exit said about every unit of a data set, from one full pass.

Everything that is computed about exits (thresholds, curves, oracle, comparisons, operating points) is computed from
traces, with no model and no GPU. A trace holds no texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import DataError, RunError
from offramp.types import PROBLEM_TYPES, ExitOutput, ProblemType, Stage

__all__ = ["Trace"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """E exits, U units (texts, or tokens in tagging), N items (texts), C outputs.

    Arrays are not copied: do not change them after.

    Raises:
        DataError: the arrays do not fit each other, or hold numbers that are not finite where they must be.
        RunError: the problem type is none that this offramp knows.
    """

    logits: NDArray[np.float32]
    """[E, U, C]."""
    layers: NDArray[np.int64]
    """[E]: layers executed in all when a unit leaves at this exit, growing."""
    lengths: NDArray[np.int64]
    """[N]: tokens of each item that are not padding."""
    problem_type: ProblemType
    id2label: Mapping[int, str]
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[N + 1]: item n has the units offsets[n] to offsets[n + 1]. Left out: each unit is an item."""
    extras: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Name -> [E, U, ...]; NaN throughout at an exit that does not give it (mostly the last)."""
    labels: NDArray[Any] | None = None
    """[U] int64 classes, [U, C] bool, or [U] float32, by problem type; None where nobody knows."""
    seconds: NDArray[np.float64] | None = None
    """[E]: measured seconds up to each exit, for the whole data set; None where not measured."""
    runtime: str = "unknown"
    batch_size: int = 1
    dtype: str = "float32"
    hashes: NDArray[np.uint64] | None = None
    """[N]: hash of each row of data."""
    model: str | None = None
    """Hash of the weights that were recorded."""
    full_layers: int | None = None
    """Layers of the full-depth model, where reaching its exit costs more: smaller models ran before it. None: the last
    exit's."""

    def __post_init__(self) -> None:
        if self.offsets.size == 0:
            object.__setattr__(self, "offsets", np.arange(len(self.lengths) + 1, dtype=np.int64))
        _check_outputs(self)
        _check_items(self)
        _check_labels(self)

    @property
    def num_exits(self) -> int:
        """E."""
        return int(self.logits.shape[0])

    @property
    def num_units(self) -> int:
        """U."""
        return int(self.logits.shape[1])

    @property
    def num_layers(self) -> int:
        """Layers of the full-depth model: what layer speed-ups are told against."""
        return int(self.layers[-1]) if self.full_layers is None else self.full_layers

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that end at these exits."""
        ends = [int(layer) for layer in self.layers]
        starts = [0, *ends[:-1]]
        return tuple(
            Stage(index=e, first_layer=first, last_layer=last, layers=last, is_last=e == len(ends) - 1)
            for e, (first, last) in enumerate(zip(starts, ends, strict=True))
        )

    @property
    def unit_tokens(self) -> NDArray[np.float64]:
        """[U]: tokens a unit stands for: its item's length, shared among the item's units."""
        counts = np.diff(self.offsets)
        return np.repeat(self.lengths / np.maximum(counts, 1), counts)

    @property
    def unit_lengths(self) -> NDArray[np.int64]:
        """[U]: tokens of the text that a unit belongs to."""
        return np.repeat(self.lengths, np.diff(self.offsets))

    def gives(self, e: int) -> frozenset[str]:
        """Names of the extras that exit ``e`` gives."""
        # An extra is NaN throughout or nowhere (checked when made), so one unit tells.
        return frozenset(name for name, values in self.extras.items() if not np.isnan(values[e, :1]).any())

    def output(self, e: int) -> ExitOutput:
        """What exit ``e`` said: logits [U, C] and the extras that it gives; and how long each unit's text is."""
        given = self.gives(e)
        extras = {name: values[e] for name, values in self.extras.items() if name in given}
        return ExitOutput(self.logits[e], extras, lengths=self.unit_lengths)

    def labels_known(self) -> NDArray[Any]:
        """The labels.

        Raises:
            DataError: the trace has none.
        """
        if self.labels is None:
            raise DataError("this trace has no labels, and scores need them: record data that has a label column")
        return self.labels

    def select(self, indices: NDArray[Any]) -> Trace:
        """The trace of some items, in the order given (int indices, repeats allowed, or a bool mask [N])."""
        items = np.arange(len(self.lengths))[indices]
        counts = np.diff(self.offsets)[items]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        # Each item's units: its first unit, plus 0, 1, 2 ... within the item.
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        units = np.repeat(self.offsets[:-1][items], counts) + within
        return replace(
            self,
            logits=self.logits[:, units],
            extras={name: values[:, units] for name, values in self.extras.items()},
            labels=None if self.labels is None else self.labels[units],
            lengths=self.lengths[items],
            offsets=offsets,
            hashes=None if self.hashes is None else self.hashes[items],
            seconds=None,  # were measured for all items
        )

    def at_exits(self, exits: Sequence[int]) -> Trace:
        """The trace of a model that had only some of the exits: their indices, rising, the last one among them."""
        kept = list(exits)
        return replace(
            self,
            logits=self.logits[kept],
            layers=self.layers[kept],
            extras={name: values[kept] for name, values in self.extras.items()},
            seconds=None if self.seconds is None else self.seconds[kept],
        )

    def __repr__(self) -> str:
        return (
            f"Trace({self.num_exits} exits x {self.num_units} units x {self.logits.shape[-1]} outputs, "
            f"{self.problem_type}, {self.runtime}, batch size {self.batch_size})"
        )


def _check_outputs(trace: Trace) -> None:
    if trace.problem_type not in PROBLEM_TYPES:
        raise RunError(
            f"problem type {trace.problem_type!r} is not known here, only {', '.join(PROBLEM_TYPES)}: "
            "was the trace recorded by a newer offramp?"
        )
    if trace.logits.ndim != 3 or trace.logits.shape[0] == 0:
        raise DataError(f"a trace's logits must be [exits, units, outputs], not {list(trace.logits.shape)}")
    exits, units, _ = trace.logits.shape
    if not np.isfinite(trace.logits).all():
        e, unit, _ = (int(i[0]) for i in np.nonzero(~np.isfinite(trace.logits)))
        raise DataError(f"exit {e} gave a logit that is not a finite number for unit {unit}: the model may be damaged")
    for name, values in trace.extras.items():
        if values.shape[:2] != (exits, units):
            raise DataError(f"extra {name!r} must begin with [{exits}, {units}], as the logits do: {values.shape}")
        missing = np.isnan(values.reshape(exits, -1))
        if not (missing.all(axis=1) | ~missing.any(axis=1)).all():
            raise DataError(f"extra {name!r} is NaN for some units of an exit and not for others: record it again")
    growing = trace.layers.shape == (exits,) and trace.layers[0] > 0 and (np.diff(trace.layers) > 0).all()
    if not growing:
        raise DataError(f"layers must hold a growing, positive number for each of {exits} exits: {trace.layers}")
    if trace.full_layers is not None and not 0 < trace.full_layers <= trace.layers[-1]:
        raise DataError(f"full_layers must be from 1 to {trace.layers[-1]}, as the last exit has: {trace.full_layers}")
    if trace.seconds is not None and trace.seconds.shape != (exits,):
        raise DataError(f"seconds must hold one number for each of {exits} exits, not {list(trace.seconds.shape)}")


def _check_items(trace: Trace) -> None:
    items = len(trace.lengths)
    if trace.offsets.shape != (items + 1,) or trace.offsets[0] != 0 or (np.diff(trace.offsets) < 0).any():
        raise DataError(f"offsets must begin with 0 and never fall, {items + 1} in all for {items} items")
    if trace.offsets[-1] != trace.num_units:
        raise DataError(f"the offsets speak of {trace.offsets[-1]} units, the logits of {trace.num_units}")
    if trace.hashes is not None and trace.hashes.shape != (items,):
        raise DataError(f"there must be one hash for each of {items} items, not {list(trace.hashes.shape)}")


def _check_labels(trace: Trace) -> None:
    if trace.labels is None:
        return
    _, units, outputs = trace.logits.shape
    multi = trace.problem_type == "multi_label_classification"
    expected = (units, outputs) if multi else (units,)
    if trace.labels.shape != expected:
        raise DataError(f"labels of {trace.problem_type} must be {list(expected)}, not {list(trace.labels.shape)}")
    if trace.problem_type == "single_label_classification" and units:
        low, high = int(trace.labels.min()), int(trace.labels.max())
        if low < 0 or high >= outputs:
            raise DataError(f"labels must lie between 0 and {outputs - 1}, but one is {low if low < 0 else high}")
    if trace.problem_type == "regression" and not np.isfinite(trace.labels).all():
        raise DataError("a label is not a finite number: regression needs one for every row")


TENSORS = ("logits", "layers", "lengths", "offsets", "labels", "seconds", "hashes")
"""Fields of a trace that are arrays (extras aside); the others are plain JSON."""
SETTINGS = tuple(f.name for f in fields(Trace) if f.name not in (*TENSORS, "extras"))
ADDED = ("full_layers",)
"""Settings that traces written before them lack: they have their defaults."""
