"""Several operating points at once, against each of them alone, in the engine and text by text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.criteria import available, make
from offramp.criteria.base import Criterion
from offramp.criteria.shadow import Shadow
from offramp.engine.engine import Engine
from offramp.engine.reference import reference
from offramp.engine.units import Unit
from offramp.errors import KnobError
from offramp.inputs.tokens import Encoded
from offramp.runtimes.fake import FakeRuntime

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(3)
TEXTS = [Encoded(RNG.integers(1, 40, n).astype(np.int32), None, False) for n in RNG.integers(1, 13, 24)]
RULES: tuple[tuple[Criterion, tuple[tuple[str, float], ...]], ...] = (
    (make("entropy"), (("threshold", 0.6),)),
    (make("edr"), (("threshold", 0.31),)),
    (make("patience"), (("patience", 2),)),
    (make("confidence_fallback"), (("threshold", 0.05),)),
)
RUNTIMES = {
    "plain": lambda: FakeRuntime(),
    "last exit of its own": lambda: FakeRuntime(plain_last=True),
    "memory": lambda: FakeRuntime(memory=True),
}


def run(runtime: FakeRuntime, shadow: Shadow, knobs: list[dict[str, float]], **settings: int) -> dict[int, object]:
    """Everything added at once, with knobs of its own: what came out, by unit."""
    engine = Engine(runtime, shadow, pad_token=0, **settings)  # type: ignore[arg-type]
    engine.add([Unit(number, text) for number, text in enumerate(TEXTS)], knobs)
    found = {}
    while engine.busy:
        found |= {one.id: one for one in engine.step()}
    return found


@pytest.mark.parametrize("name", RUNTIMES)
@given(
    places=st.lists(st.tuples(st.integers(0, len(RULES)), st.booleans()), min_size=24, max_size=24),
    max_rows=st.integers(1, 9),
    hold=st.integers(1, 3),
)
@settings(max_examples=10, deadline=None)
def test_each_text_gets_what_its_rule_alone_would_give(
    name: str, places: list[tuple[int, bool]], max_rows: int, hold: int
) -> None:
    runtime = RUNTIMES[name]()
    alone = [list(reference(runtime, rule, TEXTS, dict(knobs))) for rule, knobs in RULES]
    full = list(reference(runtime, make("depth"), TEXTS, {}))
    shadow = Shadow(rules=RULES)
    knobs = [{"rung": float(rung), "whole": float(whole)} for rung, whole in places]
    found = run(runtime, shadow, knobs, max_rows=max_rows, hold=hold)
    for number, (rung, whole) in enumerate(places):
        one, told = found[number], shadow.told(found[number].answer)  # type: ignore[attr-defined]
        own = full[number] if rung == len(RULES) else alone[rung][number]
        np.testing.assert_array_equal(told.answer, own.answer)
        assert one.exit_layer == (6 if whole else own.exit_layer)  # type: ignore[attr-defined]
        if rung < len(RULES):
            assert told.layers[rung] == own.exit_layer
        if whole:
            np.testing.assert_array_equal(told.full, full[number].answer)
            for place, rule in enumerate(alone):
                assert told.layers[place] == rule[number].exit_layer
                np.testing.assert_array_equal(told.answers[place], rule[number].answer)


def test_the_rules_do_differ() -> None:
    """Else the test above shows nothing."""
    runtime = FakeRuntime()
    layers = [[one.exit_layer for one in reference(runtime, rule, TEXTS, dict(knobs))] for rule, knobs in RULES]
    assert len({tuple(row) for row in layers}) == len(RULES)
    assert all(len(set(row)) > 1 for row in layers)


def test_at_full_depth_no_exit_is_run() -> None:
    class Counting(FakeRuntime):
        def __init__(self) -> None:
            super().__init__()
            self.exits: set[int] = set()

        def exit(self, stage, hidden, batch, memory):  # type: ignore[no-untyped-def]
            self.exits.add(stage.layers)
            return super().exit(stage, hidden, batch, memory)

    runtime = Counting()
    knobs = [{"rung": float(len(RULES))}] * len(TEXTS)
    run(runtime, Shadow(rules=RULES), knobs, max_rows=24)
    assert runtime.exits == {6}
    run(runtime, Shadow(rules=RULES), [{**each, "whole": 1.0} for each in knobs], max_rows=24)
    assert runtime.exits == {1, 2, 3, 4, 5, 6}


def test_in_torch_as_in_numpy() -> None:
    from offramp.types import ExitOutput, Stage

    rng = np.random.default_rng(0)
    shadow = Shadow(rules=RULES)
    rung, whole = np.arange(10) % 5, np.arange(10) % 2
    states = [shadow.start(np.zeros(10)), shadow.start(torch.zeros(10))]
    for layer in range(1, 5):
        stage = Stage(layer - 1, layer - 1, layer, layer, is_last=layer == 4)
        logits = rng.normal(size=(10, 3)).astype(np.float32)
        extras = {"distances": rng.gamma(2, size=(10, 3)).astype(np.float32)}
        plain, states[0] = shadow.step(stage, ExitOutput(logits, extras), states[0], {"rung": rung, "whole": whole})
        there = {name: torch.from_numpy(value) for name, value in extras.items()}
        knobs = {"rung": torch.from_numpy(rung), "whole": torch.from_numpy(whole)}
        tensors, states[1] = shadow.step(stage, ExitOutput(torch.from_numpy(logits), there), states[1], knobs)
        np.testing.assert_array_equal(plain.leave, tensors.leave.numpy())
        np.testing.assert_allclose(plain.answer, tensors.answer.numpy(), rtol=1e-5, atol=1e-6)


def test_it_is_no_rule_of_its_own() -> None:
    assert "shadow" not in available()
    with pytest.raises(KnobError, match="a shadow needs rules"):
        Shadow(rules=())
    with pytest.raises(KnobError, match="all of them for regression"):
        Shadow(rules=RULES, problem_type="regression")
