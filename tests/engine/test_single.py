"""A text alone in its batch takes one call, where the runtime has one for the criterion; else stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.criteria.base import Criterion, score_name
from offramp.criteria.confidence import Confidence
from offramp.criteria.depth import Depth
from offramp.criteria.entropy import Entropy
from offramp.criteria.patience import Patience
from offramp.engine.alone import Alone
from offramp.engine.engine import Engine
from offramp.engine.reference import reference
from offramp.engine.units import Unit
from offramp.inputs.tokens import Encoded
from offramp.runtimes.fake import FakeRuntime

RNG = np.random.default_rng(3)
TEXTS = [Encoded(RNG.integers(1, 40, n).astype(np.int32), None, False) for n in RNG.integers(1, 13, 30)]
UNITS = [Unit(number, text) for number, text in enumerate(TEXTS)]


class Single(FakeRuntime):
    """The fake, which can leave by entropy in one call."""

    def __init__(self) -> None:
        super().__init__(4, hidden_size=4)
        self.info = replace(self.info, single=score_name(Entropy()))
        self.calls: list[int] = []

    def run_single(self, inputs: Mapping[str, Any], threshold: float, last: int) -> tuple[Any, int]:
        assert inputs["tokens"].shape[0] == 1
        hidden, batch = self.embed(inputs)
        memory: Mapping[str, Any] = {}
        for stage in self.info.stages:
            hidden = self.run(stage, hidden, batch)
            output, memory = self.exit(stage, hidden, batch, memory)
            if stage.index >= last or Entropy().score(stage, output)[0] < threshold:
                self.calls.append(stage.index)
                return output.logits, stage.index
        raise AssertionError


def answers(engine: Engine, knobs: Mapping[str, float], units: list[Unit] = UNITS) -> list[tuple[int, int, bytes]]:
    return [(f.id, f.exit_layer, f.answer.tobytes()) for f in engine.run_in_order(units, knobs)]


def expected(criterion: Criterion, knobs: Mapping[str, float]) -> list[tuple[int, int, bytes]]:
    found = reference(FakeRuntime(4, hidden_size=4), criterion, TEXTS, knobs)
    return [(f.id, f.exit_layer, f.answer.tobytes()) for f in found]


@given(st.floats(0, 1))
@settings(max_examples=30)
def test_one_call_a_text(threshold: float) -> None:
    runtime = Single()
    engine = Engine(runtime, Entropy(), pad_token=0, max_rows=1)
    assert answers(engine, {"threshold": threshold}) == expected(Entropy(), {"threshold": threshold})
    assert len(runtime.calls) == len(TEXTS)
    left = np.array(runtime.calls)
    lengths = np.array([len(text) for text in TEXTS])
    for stage in range(4):
        assert engine.counts.rows[stage] == engine.counts.batches[stage] == (left >= stage).sum()
        assert engine.counts.tokens[stage] == engine.counts.padded_tokens[stage] == runtime.tokens_entered[stage]
    assert engine.counts.tokens[0] == lengths.sum()


@given(st.floats(0, 1))
@settings(max_examples=30)
def test_one_call_for_a_text_that_comes_by_itself(threshold: float) -> None:
    runtime = Single()
    alone = Alone(runtime, Entropy(), {"threshold": threshold})
    found = [alone.answer(unit) for unit in UNITS]
    assert [(f.id, f.exit_layer, f.answer.tobytes()) for f in found] == expected(Entropy(), {"threshold": threshold})
    assert [f.exit_index for f in found] == runtime.calls
    assert [f.layers_executed for f in found] == [f.exit_layer for f in found]


def test_batches_go_stage_by_stage_and_a_text_that_is_left_over_does_not() -> None:
    runtime = Single()
    knobs = {"threshold": 0.4}
    engine = Engine(runtime, Entropy(), pad_token=0, max_rows=len(TEXTS), waste=float("inf"))
    assert answers(engine, knobs) == expected(Entropy(), knobs)
    assert runtime.calls == []
    assert answers(engine, knobs, UNITS[:1]) == expected(Entropy(), knobs)[:1]
    assert len(runtime.calls) == 1


@pytest.mark.parametrize(
    ("criterion", "knobs"),
    [
        (Entropy(scale=(1.0, 2.0, 1.0, 1.0)), {"threshold": 0.4}),
        (Confidence(), {"threshold": 0.4}),
        (Patience(), {"patience": 2.0}),
        (Depth(), {}),
    ],
)
def test_other_criteria_go_stage_by_stage(criterion: Criterion, knobs: Mapping[str, float]) -> None:
    runtime = Single()
    engine = Engine(runtime, criterion, pad_token=0, max_rows=1)
    assert answers(engine, knobs) == expected(criterion, knobs)
    alone = Alone(runtime, criterion, knobs)
    assert [alone.answer(unit).exit_layer for unit in UNITS] == [layer for _, layer, _ in expected(criterion, knobs)]
    assert runtime.calls == []


@pytest.mark.parametrize("cap", [1, 2, 3, 4, 1000])
def test_a_cap_is_kept_in_one_call_too(cap: int) -> None:
    runtime = Single()
    engine = Engine(runtime, Entropy(), pad_token=0, max_rows=1)
    knobs = {"threshold": 0.4, "max_layers": float(cap)}
    assert answers(engine, knobs) == expected(Entropy(), knobs)
    alone = Alone(runtime, Entropy(), knobs)
    assert [alone.answer(unit).exit_layer for unit in UNITS] == [layer for _, layer, _ in expected(Entropy(), knobs)]
    assert len(runtime.calls) == 2 * len(TEXTS)
    assert max(runtime.calls) == min(cap, 4) - 1


def test_lanes_take_texts_alone_too() -> None:
    runtime = Single()
    engine = Engine(runtime, Entropy(), pad_token=0, max_rows=1, lanes=3)
    assert answers(engine, {"threshold": 0.4}) == expected(Entropy(), {"threshold": 0.4})
    assert len(runtime.calls) == len(TEXTS)
