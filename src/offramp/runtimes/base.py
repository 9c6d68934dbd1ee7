"""The waist between engine and models: four calls, and what a runtime declares about itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from offramp.types import Array, Batch, ExitOutput, ProblemType, Stage

__all__ = [
    "Defers", "InCompany", "Memory", "Pads", "RunsSingle", "Runtime", "RuntimeInfo", "SharesThreads", "StageCost",
]  # fmt: skip

Memory = Mapping[str, Array]
"""What heads remember of each unit between exits: name -> array whose first axis is the unit."""


@dataclass(frozen=True)
class StageCost:
    """What running a stage and its exit takes on a machine, in seconds: ``call + token * tokens``."""

    call: float
    token: float

    def tokens_worth_a_call(self, share: float = 0.05) -> float:
        """Tokens from which on the call itself is at most a share of what a batch costs; infinite: there are none."""
        if self.call == 0:
            return 0.0
        return math.inf if self.token == 0 else self.call / self.token * (1 - share) / share


@dataclass(frozen=True)
class InCompany:
    """How texts in a batch are answered beside the same texts alone, as it was measured where neighbours matter."""

    difference: float
    """Largest, of a logit."""
    labels: float | None = None
    """Share of labels alike, at the exit where fewest are; None: answers are numbers."""
    exits: float | None = None
    """Share of texts that leave at the same exit; None: there was no operating point."""


@dataclass(frozen=True)
class RuntimeInfo:
    """What a runtime declares about itself; the contract tests measure the claims."""

    name: str
    stages: tuple[Stage, ...]
    problem_type: ProblemType
    num_outputs: int
    """C: classes or labels; 1 for regression."""
    dtype: str = "float32"
    batch_invariant: bool = True
    """A text's answer does not depend on its neighbours in the batch."""
    in_company: InCompany | None = None
    """How much it depends on them; None: nobody measured."""
    extras: Mapping[str, int] = field(default_factory=dict)
    """Named extras every early exit gives -> their width (0: one number a unit)."""
    remembers: bool = False
    """Exits read what exits before them left in memory, so that none can be skipped."""
    full_layers: int | None = None
    """Layers of the full-depth model, where smaller models run before it; None: what the last exit costs."""
    single: str = ""
    """The score (``criteria.base.score_name``) by which ``run_single`` answers a text; empty: it cannot."""
    device: str = "cpu"
    """Where it computes."""
    deferred: bool = False
    """Its arrays are promises: work is queued on a device, and whoever looks at a number waits. See ``Defers``."""
    cost: StageCost | None = None
    """Of a stage, as it was measured; None: it was not."""

    @property
    def num_layers(self) -> int:
        """Layers of the full-depth model: what layer speed-ups are told against."""
        return self.stages[-1].layers if self.full_layers is None else self.full_layers


class Runtime(Protocol):
    """Runs a model stage by stage. Hidden states and memory are the runtime's own arrays."""

    @property
    def info(self) -> RuntimeInfo: ...

    def embed(self, inputs: Mapping[str, Array]) -> tuple[Array, Batch]:
        """Inputs to hidden states before the first layer.

        Args:
            inputs: numpy arrays: ``ids`` [B], ``tokens`` [B, L], ``lengths`` [B], ``token_types`` [B, L] (optional).

        Returns:
            hidden [B, L, H] and the batch, as arrays of this runtime.
        """

    def run(self, stage: Stage, hidden: Array, batch: Batch, active: Array | None = None) -> Array:
        """The layers of one stage: [B, L, H] -> [B, L, H']. Padding positions may hold anything.

        A stage that starts from the inputs embeds the batch's tokens anew; of ``hidden`` it reads nothing.
        """

    def exit(self, stage: Stage, hidden: Array, batch: Batch, memory: Memory) -> tuple[ExitOutput, Memory]:
        """What the exit at the end of a stage says."""


class Defers(Protocol):
    """What a runtime can do besides, where its info says ``deferred``: move arrays without making the host wait."""

    def send(self, array: Array) -> Array:
        """A numpy array as one of this runtime, queued behind what it has still to do."""

    def fetch(self, array: Array) -> Callable[[], Array]:
        """Begin to bring an array of floats to numpy. What is returned waits for it, not for what came after it."""


@runtime_checkable
class Pads(Protocol):
    """What a runtime can do besides, where it computes with more rows and tokens than it is given."""

    def room(self, rows: int, width: int) -> tuple[int, int]:
        """With how many rows and tokens it computes a batch: hidden states in the corner of such an array, zeros or
        anything finite around them, need not be copied.
        """


@runtime_checkable
class SharesThreads(Protocol):
    """What a runtime can do besides, where its operators take the threads of the process: share them out to lanes."""

    def shared_out(self) -> AbstractContextManager[Callable[[], None]]:
        """Around lanes, entered by the thread that begins them: gives what each lane's thread calls first, to take its
        share. At the end all is as it was.
        """


class RunsSingle(Protocol):
    """What a runtime can do besides, where its info names a score: answer a text alone in one call."""

    def run_single(self, inputs: Mapping[str, Array], threshold: float, last: int) -> tuple[Array, int]:
        """All stages up to the first early exit whose score is below a threshold, or to a last one.

        Args:
            inputs: of one text, as for ``embed``.
            threshold: to leave below.
            last: index of the stage after which it leaves in any case.

        Returns:
            Its logits [1, C], and the index of the stage where it left: what ``run`` and ``exit`` would have said.
        """
