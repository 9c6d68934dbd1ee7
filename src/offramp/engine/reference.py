"""The slow and obvious engine: one unit at a time, stage after stage. What the fast one must equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from array_api_compat import array_namespace, device

from offramp.criteria.base import Criterion
from offramp.engine.units import Finished, KnobsFor, check_fits, decide, resolve_knobs, to_host
from offramp.inputs.batching import pad
from offramp.inputs.tokens import Encoded
from offramp.runtimes.base import Runtime
from offramp.types import Array

__all__ = ["reference"]


def reference(
    runtime: Runtime, criterion: Criterion, encoded: Sequence[Encoded], knobs: KnobsFor = None
) -> list[Finished]:
    """Answer texts one by one, each alone in its batch; their ids are their positions.

    Raises:
        KnobError: an unknown knob, or a value outside what it may be.
        UnsupportedError: the criterion does not fit the runtime's model.
    """
    check_fits(criterion, runtime.info)
    each = resolve_knobs(criterion, knobs, len(encoded))
    return [_one(runtime, criterion, index, text, each[index]) for index, text in enumerate(encoded)]


def _one(runtime: Runtime, criterion: Criterion, index: int, text: Encoded, knobs: Mapping[str, float]) -> Finished:
    # Alone, a text has no padding, so the padding token is never used.
    hidden, batch = runtime.embed(pad([text], [index], pad_token=0, token_types=text.token_types is not None))
    xp = array_namespace(batch.lengths)
    columns = {name: xp.asarray([knobs[name]], dtype=xp.float64, device=device(batch.lengths)) for name in knobs}
    state = criterion.start(batch.lengths)
    memory: Mapping[str, Array] = {}
    for stage in runtime.info.stages:
        hidden = runtime.run(stage, hidden, batch)
        output, memory = runtime.exit(stage, hidden, batch, memory)
        output = replace(output, lengths=batch.lengths)
        decision, state = decide(criterion, stage, output, state, columns)
        if stage.is_last or bool(decision.leave[0]) or stage.layers >= knobs["max_layers"]:
            return Finished(index, to_host(decision.answer)[0], stage.layers, stage.layers, stage.index)
    raise AssertionError("no stage was the last one. This is a bug in the runtime's list of stages.")
