"""What a stage costs, by a clock that the model itself moves on; and what the engine makes of it."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.criteria import make
from offramp.engine.costs import measure_cost
from offramp.engine.engine import Engine
from offramp.engine.units import Unit
from offramp.inputs.tokens import Encoded
from offramp.runtimes.base import StageCost
from offramp.runtimes.fake import FakeRuntime

CALL, TOKEN, EXIT = 3e-3, 2e-5, 1e-3


class Ticking(FakeRuntime):
    """Takes so long a call and so long a token; at first something else runs, now and then."""

    def __init__(self, *, token: float = TOKEN, **settings: Any) -> None:
        super().__init__(**settings)
        self.now, self.calls, self.token = 0.0, 0, token

    def run(self, stage: Any, hidden: Any, batch: Any, active: Any = None) -> Any:
        self.calls += 1
        disturbed = 0.5 if self.calls % 3 == 0 and self.calls < 50 * len(self.info.stages) else 0.0
        self.now += CALL + self.token * batch.tokens.size + disturbed
        return super().run(stage, hidden, batch, active)

    def exit(self, stage: Any, hidden: Any, batch: Any, memory: Any) -> Any:
        self.now += EXIT
        return super().exit(stage, hidden, batch, memory)


@pytest.mark.parametrize("settings", [{}, {"exits": [2, 4]}, {"exits": [], "num_layers": 2}, {"memory": True}])
@pytest.mark.parametrize(("max_length", "token_types"), [(512, False), (20, True)])
def test_a_call_and_a_token_are_told_apart(settings: dict[str, Any], max_length: int, token_types: bool) -> None:
    runtime = Ticking(**settings)
    cost = measure_cost(runtime, pad_token=0, max_length=max_length, token_types=token_types, clock=lambda: runtime.now)
    assert cost.call == pytest.approx(CALL + EXIT)
    assert cost.token == pytest.approx(TOKEN)


def test_where_a_token_costs_nothing_none_are_enough() -> None:
    runtime = Ticking(token=0.0)
    cost = measure_cost(runtime, pad_token=0, clock=lambda: runtime.now)
    assert cost.token == pytest.approx(0, abs=1e-12)
    assert StageCost(call=CALL, token=0.0).tokens_worth_a_call() == math.inf
    assert StageCost(call=0.0, token=0.0).tokens_worth_a_call() == 0


@given(call=st.floats(1e-6, 1e-2), token=st.floats(1e-8, 1e-4), share=st.floats(0.01, 0.99))
def test_the_call_is_that_share_of_such_a_batch(call: float, token: float, share: float) -> None:
    tokens = StageCost(call=call, token=token).tokens_worth_a_call(share)
    assert call / (call + token * tokens) == pytest.approx(share)


def batches(cost: StageCost | None, **settings: Any) -> list[int]:
    """How often each stage ran, for texts of which about half leave at every exit."""
    runtime = FakeRuntime(num_layers=4)
    runtime.info = replace(runtime.info, cost=cost)
    rng = np.random.default_rng(0)
    engine = Engine(runtime, make("entropy"), pad_token=0, max_rows=8, **settings)
    texts = [Encoded(rng.integers(1, 90, 12).astype(np.int32), None, truncated=False) for _ in range(96)]
    list(engine.run((Unit(n, text) for n, text in enumerate(texts)), {"threshold": 0.75}))
    return list(engine.counts.batches.tolist())


def test_the_engine_goes_by_what_a_stage_costs() -> None:
    """Where a call is dear, survivors wait: fewer batches. What is given wins over what was measured."""
    dear, cheap = StageCost(call=1.0, token=1e-6), StageCost(call=0.0, token=1e-6)
    waiting, going = batches(None, go_on=math.inf), batches(None, go_on=0)
    assert sum(waiting) < sum(going)
    assert batches(dear) == waiting
    assert batches(cheap) == going
    assert batches(dear, go_on=0) == going
    assert batches(None) == batches(None, go_on=128)


def test_a_model_that_is_not_on_a_cpu_is_timed_at_first_use(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import offramp
    from offramp import pipeline

    seen: list[Any] = []

    def measured(runtime: Any, **settings: Any) -> StageCost:
        seen.append(settings)
        return StageCost(call=1.0, token=0.0)

    monkeypatch.setattr(pipeline, "measure_cost", measured)
    here = offramp.load(trained, device="cpu")
    here(["a gem", "weird"])
    assert not seen
    there = SimpleNamespace(**{name: getattr(here.runtime, name) for name in ("embed", "run", "exit")})
    there.info = replace(here.runtime.info, device="cuda:0")
    classifier = pipeline.Classifier(here.run, there)
    for _ in range(2):
        assert classifier(["a gem", "weird"]) == here(["a gem", "weird"])
    [settings] = seen
    assert settings["max_length"] == here.tokenizer.max_length
