"""What a stage costs on this machine, a call and a token: by it the engine tells when a batch is too small.

Measured once at export; for a model on a GPU, when it is first used. A CPU is busy with a hundred tokens. A GPU takes
as long for one as for thousands, and there survivors had better wait for company.

The engine itself is timed, with batches of two sizes and of shapes that take turns. A stage in a loop of its own looks
as if a call cost next to nothing: its weights and Python's code are in the processor's caches and its kernels have just
been made for that shape, which between two stages of a run none of them is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from array_api_compat import array_namespace, device

from offramp.criteria.base import Criterion, Knob
from offramp.engine.engine import Engine
from offramp.engine.units import Unit
from offramp.inputs.tokens import Encoded
from offramp.runtimes.base import Runtime, StageCost
from offramp.types import PROBLEM_TYPES, Array, Decision, ExitOutput, Knobs, ProblemType, Stage, State

__all__ = ["measure_cost"]

_LENGTHS = (32, 16)
"""Of texts in turn, so that batches that follow each other differ in shape: whole vectors, which no runtime pads. A
model that reads no more than 16 tokens sees one shape only."""
_TEXTS = 32
_ROWS = (2, 16)
_REPEATS = 5
"""Of which the quickest counts: what else runs can only make a pass slower. Before them one that does not count."""


def measure_cost(
    runtime: Runtime,
    *,
    pad_token: int,
    token_types: bool = False,
    max_length: int = max(_LENGTHS),
    clock: Callable[[], float] = time.perf_counter,
) -> StageCost:
    """Time passes of texts through all stages and exits, in small batches and in large ones.

    Args:
        runtime: the model.
        pad_token: what the texts are made of: any token does.
        token_types: the model reads them.
        max_length: most tokens that it reads.
        clock: seconds.

    Returns:
        Of a stage, on average. The engine's own time for a batch is in the call, as is embedding's; what it takes for a
        text, in the token.
    """
    units = []
    for number in range(_TEXTS):
        tokens = np.full(min(_LENGTHS[number % len(_LENGTHS)], max_length), pad_token, dtype=np.int32)
        units.append(Unit(number, Encoded(tokens, np.zeros_like(tokens) if token_types else None, truncated=False)))
    seconds: dict[int, list[float]] = {rows: [] for rows in _ROWS}
    done = {}
    for repeat in range(_REPEATS + 1):
        for rows in _ROWS:
            engine = Engine(
                runtime, _NobodyLeaves(problem_type=runtime.info.problem_type), pad_token=pad_token, max_rows=rows,
                go_on=0,
            )  # fmt: skip
            start = clock()
            list(engine.run(units))
            if repeat:
                seconds[rows].append(clock() - start)
            done[rows] = (engine.counts.batches.sum(), engine.counts.padded_tokens.sum())
    taken = [min(seconds[rows]) for rows in _ROWS]
    call = max(0.0, float(np.linalg.solve(np.array([done[rows] for rows in _ROWS], float), taken)[0]))
    batches, positions = done[_ROWS[-1]]
    return StageCost(call=call, token=max(0.0, float((taken[-1] - call * batches) / positions)))


@dataclass(frozen=True, kw_only=True)
class _NobodyLeaves(Criterion):
    """Every exit is asked, and all go on."""

    name: ClassVar[str] = "nobody leaves"
    serves: ClassVar[frozenset[ProblemType]] = frozenset(PROBLEM_TYPES)
    knobs: ClassVar[Mapping[str, Knob]] = {}

    def start(self, units: Array) -> State:
        return {}

    def step(self, stage: Stage, output: ExitOutput, state: State, knobs: Knobs) -> tuple[Decision, State]:
        xp = array_namespace(output.logits)
        nobody = xp.zeros(output.logits.shape[0], dtype=xp.bool, device=device(output.logits))
        return Decision(nobody, output.logits), state
