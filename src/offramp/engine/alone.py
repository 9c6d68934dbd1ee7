"""A text by itself: no queue, no neighbours, nobody to wait for.

What pays for a batch only costs here. Between two calls of a graph Python has gone cold, and each line takes several
times what it takes in a loop: with a small model an engine's bookkeeping shows (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device

from offramp.criteria.base import Criterion, Scored, score_name
from offramp.engine.units import (
    Finished,
    Unit,
    check_fits,
    check_tokens,
    decide,
    decides_on_host,
    on_host,
    resolve_knobs,
    to_host,
)
from offramp.inputs.batching import pad
from offramp.runtimes.base import Memory, RunsSingle, Runtime, RuntimeInfo
from offramp.types import Array, Knobs, Stage

__all__ = ["Alone", "answers_in_one_call", "in_one_call"]


class Alone:
    """Answers texts one at a time, as an engine with ``max_rows=1`` does. Safe to use from several threads.

    Args:
        runtime: the model.
        criterion: who leaves.
        knobs: for all texts: as for ``Engine.add``.

    Raises:
        UnsupportedError: the criterion does not fit the runtime's model.
        KnobError: an unknown knob, or a value outside what it may be.
    """

    def __init__(self, runtime: Runtime, criterion: Criterion, knobs: Mapping[str, float] | None = None) -> None:
        check_fits(criterion, runtime.info)
        self._runtime, self._criterion, self._info = runtime, criterion, runtime.info
        [self._settings] = resolve_knobs(criterion, knobs, 1)
        self._in_one_call = answers_in_one_call(self._info, criterion)
        self._on_host = decides_on_host(self._info)
        self._knobs: Knobs | None = None

    def answer(self, unit: Unit) -> Finished:
        """Answer one text.

        Raises:
            DataError: a text without tokens.
        """
        check_tokens(unit)
        if self._in_one_call:
            return in_one_call(self._runtime, unit, self._settings)
        return self._by_stages(unit)

    def _by_stages(self, unit: Unit) -> Finished:
        inputs = _inputs(unit)
        hidden, batch = self._runtime.embed(inputs)
        lengths = inputs["lengths"] if self._on_host else batch.lengths
        knobs, state = self._knobs_beside(lengths), self._criterion.start(lengths)
        memory: Memory = {}
        cap, executed, stages = self._settings["max_layers"], 0, self._info.stages
        for stage in stages:
            goes_on = not stage.is_last and cap > stage.layers and self._surely_goes_on(stage, knobs)
            # Where the next model starts from the inputs, nobody would need what this one computes.
            if goes_on and stages[stage.index + 1].starts_from == "inputs":
                continue
            hidden = self._runtime.run(stage, hidden, batch)
            executed += stage.last_layer - stage.first_layer
            if goes_on:
                continue
            output, memory = self._runtime.exit(stage, hidden, batch, memory)
            output = on_host(output, lengths) if self._on_host else replace(output, lengths=lengths)
            decision, state = decide(self._criterion, stage, output, state, knobs)
            if stage.is_last or cap <= stage.layers or bool(decision.leave[0]):
                return Finished(unit.id, to_host(decision.answer)[0], stage.layers, executed, stage.index)
        raise AssertionError("no stage was the last one. This is a bug in the runtime's list of stages.")

    def _knobs_beside(self, lengths: Array) -> Knobs:
        """The criterion's knobs [1] as arrays like the lengths; texts after the first find them made."""
        if self._knobs is None:
            xp, where = array_namespace(lengths), device(lengths)
            self._knobs = {
                name: xp.asarray([self._settings[name]], dtype=xp.float64, device=where)
                for name in self._criterion.knobs
            }
        return self._knobs

    def _surely_goes_on(self, stage: Stage, knobs: Knobs) -> bool:
        """Whether it is known, without running the exit, that the text goes on."""
        if self._info.remembers:
            return False
        leave = self._criterion.foresees(stage, knobs)
        return leave is not None and not bool(leave[0])


def answers_in_one_call(info: RuntimeInfo, criterion: Criterion) -> bool:
    """Whether the runtime takes a text alone through all its stages at once, and leaves as the criterion does."""
    return isinstance(criterion, Scored) and info.single == score_name(criterion)


def in_one_call(runtime: Runtime, unit: Unit, knobs: Mapping[str, float]) -> Finished:
    """Answer a text through all stages at once, by a runtime that can.

    ``knobs``: ``threshold`` and ``max_layers``.
    """
    stages = runtime.info.stages
    last = _last_stage(stages, knobs["max_layers"])
    answer, left = cast("RunsSingle", runtime).run_single(_inputs(unit), knobs["threshold"], last)
    layers = stages[left].layers
    return Finished(unit.id, to_host(answer)[0], layers, layers, left)


def _last_stage(stages: Sequence[Stage], max_layers: float) -> int:
    """Index of the stage that nobody goes beyond."""
    return next((stage.index for stage in stages if stage.layers >= max_layers), len(stages) - 1)


def _inputs(unit: Unit) -> dict[str, npt.NDArray[np.int64]]:
    # Alone, a text has no padding, so the padding token is never used.
    return pad([unit.encoded], [unit.id], pad_token=0, token_types=unit.encoded.token_types is not None)
