"""What a stage costs on this machine, a call and a token: by it the engine tells when a batch is too small.

Measured once at export; for a model on a GPU, when it is first used. A CPU is busy with a hundred tokens. A GPU takes
as long for one as for thousands, and there survivors had better wait for company.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from offramp.engine.units import to_host
from offramp.inputs.batching import pad
from offramp.inputs.tokens import Encoded
from offramp.runtimes.base import Memory, Runtime, StageCost

__all__ = ["measure_cost"]

_LENGTH = 32
_ROWS = (1, 16)
_REPEATS = 7
"""Of which the quickest counts: what else runs can only make a call slower."""


def measure_cost(
    runtime: Runtime,
    *,
    pad_token: int,
    token_types: bool = False,
    max_length: int = _LENGTH,
    clock: Callable[[], float] = time.perf_counter,
) -> StageCost:
    """Time the second stage and its exit (of a model without early exits, the only one) for one text and for many.

    Args:
        runtime: the model.
        pad_token: what the texts are made of: any token does.
        token_types: the model reads them.
        max_length: most tokens that it reads.
        clock: seconds.
    """
    length = min(_LENGTH, max_length)
    tokens = np.full(length, pad_token, dtype=np.int32)
    text = Encoded(tokens, np.zeros_like(tokens) if token_types else None, truncated=False)
    few, many = (_seconds(runtime, [text] * rows, pad_token, clock) for rows in _ROWS)
    token = max(0.0, (many - few) / (length * (_ROWS[1] - _ROWS[0])))
    return StageCost(call=max(0.0, few - token * length * _ROWS[0]), token=token)


def _seconds(runtime: Runtime, texts: list[Encoded], pad_token: int, clock: Callable[[], float]) -> float:
    types = texts[0].token_types is not None
    inputs = pad(texts, list(range(len(texts))), pad_token=pad_token, token_types=types)
    hidden, batch = runtime.embed(inputs)
    memory: Memory = {}
    *before, stage = runtime.info.stages[:2]
    for earlier in before:
        hidden = runtime.run(earlier, hidden, batch)
        _, memory = runtime.exit(earlier, hidden, batch, memory)
    taken = []
    for _ in range(_REPEATS):
        start = clock()
        output, _ = runtime.exit(stage, runtime.run(stage, hidden, batch), batch, memory)
        to_host(output.logits)  # a GPU is done only when its numbers are here
        taken.append(clock() - start)
    return min(taken)
