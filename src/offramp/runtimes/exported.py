"""What runtimes over exported graphs share: finding a variant in a run folder, feeding a graph, keeping what it said.

A stage's graph gives the exit's outputs with its hidden states in one call. They are kept with that very array of
hidden states until ``exit`` asks for them, or until nobody holds the array any more.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offramp.errors import RunError
from offramp.runtimes.base import Memory
from offramp.runtimes.manifest import FILE, OUT, Graph, read_manifest
from offramp.types import Array, Batch, ExitOutput

__all__ = ["Said", "check_names", "feeds", "output_of", "tokens_of", "variant"]


def variant(folder: str | Path, runtime: str, dtype: str, *, weights: str, flags: str = "") -> Path:
    """The folder of one exported variant of a run.

    Args:
        folder: a run folder.
        runtime: whose graphs.
        dtype: of the graphs.
        weights: hash of the run's weights (``run.weights_hash``): the export must have been made of them.
        flags: of ``offramp export``, that make such a variant.

    Raises:
        RunError: there is no such variant, it is damaged, or it was made of other weights.
    """
    found = Path(folder) / runtime / dtype
    if not found.is_dir():
        more = f" {flags}" if flags else ""
        raise RunError(f"{folder} has no {dtype} export: run `offramp export {folder} --runtime {runtime}{more}`")
    manifest = read_manifest(found)
    if (manifest.runtime, manifest.dtype) != (runtime, dtype):
        raise RunError(
            f"{found / FILE} is of an export for {manifest.runtime} in {manifest.dtype}, which does not belong there: "
            "run `offramp export` again"
        )
    if manifest.weights != weights:
        raise RunError(f"{found} was made of other weights than {folder} holds now: run `offramp export` again")
    return found


def check_names(path: Path, graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Compare what the manifest says that a graph reads and gives with the graph's own names.

    Args:
        path: of the graph.
        graph: as the manifest has it.
        inputs: the graph's own names, in its order.
        outputs: likewise.

    Raises:
        RunError: they differ.
    """
    given = [f"{OUT}{name}" for name in graph.outputs]
    for what, said, own in (("reads", list(graph.inputs), list(inputs)), ("gives", given, list(outputs))):
        if said != own:
            raise RunError(
                f"{path.parent / FILE} is damaged (it says that {path.name} {what} {', '.join(said)}, which in fact "
                f"{what} {', '.join(own)}): run `offramp export` again"
            )


def tokens_of(inputs: Mapping[str, Array]) -> tuple[Array, Batch]:
    """What stands for hidden states before the first stage, the tokens [B, L], and the batch."""
    tokens = np.ascontiguousarray(inputs["tokens"])
    return tokens, Batch(inputs["ids"], tokens, inputs["lengths"], inputs.get("token_types"))


def feeds(
    graph: Graph, hidden: Array, batch: Batch, memory: Memory, *, more: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Arrays for a graph's inputs, by name; ``more``: those that are none of a stage's."""
    given: dict[str, Array] = {}
    for name in graph.inputs:
        if name == "hidden":
            given[name] = hidden
        elif name == "tokens":
            given[name] = batch.tokens
        elif name == "lengths":
            given[name] = batch.lengths
        elif name == "token_types":
            given[name] = np.zeros_like(batch.tokens) if batch.token_types is None else batch.token_types
        elif more is not None and name in more:
            given[name] = more[name]
        else:
            given[name] = memory[name.removeprefix("memory.")]
    return given


def output_of(said: Mapping[str, Array]) -> tuple[ExitOutput, dict[str, Array]]:
    """A graph's outputs, by name, as the exit's output and the memory that it leaves."""
    extras = {name.removeprefix("extras."): value for name, value in said.items() if name.startswith("extras.")}
    left = {name.removeprefix("memory."): value for name, value in said.items() if name.startswith("memory.")}
    return ExitOutput(said["logits"], extras), left


class Said:
    """What was said with an array, for as long as the array lives."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[Any], dict[str, Array]]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, hidden: Array) -> bool:
        return self._kept.get(id(hidden), (lambda: None,))[0]() is hidden

    def keep(self, hidden: Array, said: dict[str, Array]) -> None:
        """Remember what was said with an array."""
        key, kept = id(hidden), self._kept
        kept[key] = (weakref.ref(hidden, lambda _: kept.pop(key, None)), said)

    def of(self, hidden: Array) -> dict[str, Array]:
        """What was said with this very array.

        Raises:
            ValueError: nothing was: it is a copy, or a part.
        """
        if hidden not in self:
            raise ValueError("exit must be asked about the very array that run returned, not a copy or a part")
        return self._kept[id(hidden)][1]
