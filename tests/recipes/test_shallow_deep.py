"""Shallow-Deep: exits gain weight during training, the surest exit answers, and the heads-only mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offramp.model.modeling import load_early_exit
from offramp.objectives.scheduled import Scheduled
from offramp.recipes import load_recipe
from offramp.traces.curves import oracle
from offramp.traces.diagnostics import overthinking
from offramp.traces.replay import replay
from offramp.traces.store import load_trace
from offramp.traces.tally import make_tally
from offramp.traces.trace import Trace
from offramp.training.train import train

SINGLE = "single_label_classification"
RECIPE = load_recipe("shallow_deep")


@pytest.fixture(scope="module")
def seen_and_trace(
    make_plan: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[tuple[bool, float]], Trace]:
    """(training, progress) of every loss that a training asked for, and what the trained model says of dev."""
    seen: list[tuple[bool, float]] = []
    call = Scheduled.__call__

    def watched(self: Scheduled, outputs: Any, layers: Any, labels: Any, kind: Any, moment: Any) -> Any:
        seen.append((moment.training, moment.progress))
        return call(self, outputs, layers, labels, kind, moment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduled, "__call__", watched)
        run = train(make_plan(tmp_path_factory.mktemp("shallow_deep") / "run", recipe="shallow_deep"))
    return seen, load_trace(run.folder / "traces" / "dev.safetensors")


def test_the_schedule_moves_with_every_step(seen_and_trace: tuple[list[tuple[bool, float]], Trace]) -> None:
    seen, _ = seen_and_trace
    assert [progress for training, progress in seen if training] == [step / 24 for step in range(24)]


def test_where_no_exit_is_sure_the_surest_answers(vector_trace: Trace) -> None:
    trace = vector_trace.select(np.array([2]))  # C
    outcome = replay(trace, RECIPE.criterion(SINGLE), {"threshold": 0.2})
    assert outcome.exits.tolist() == [5]  # full cost
    np.testing.assert_array_equal(outcome.answers[0], trace.logits[2, 0])  # exit 3
    assert (outcome.answers.argmax(), trace.logits[-1, 0].argmax()) == (0, 1)  # not what the last exit says


def test_the_ends_of_the_knob(seen_and_trace: tuple[list[tuple[bool, float]], Trace]) -> None:
    _, trace = seen_and_trace
    slow = replay(trace, RECIPE.criterion(SINGLE), {"threshold": 0.0})
    assert (slow.exits == 2).all()
    p = np.exp(trace.logits) / np.exp(trace.logits).sum(axis=-1, keepdims=True)
    surest = p.max(axis=-1).argmax(axis=0)
    clear = np.ptp(np.sort(p.max(axis=-1), axis=0)[-2:], axis=0) > 1e-3  # whoever is nearly as sure may answer
    assert clear.any()
    np.testing.assert_array_equal(slow.answers[clear], trace.logits[surest, np.arange(trace.num_units)][clear])
    assert (replay(trace, RECIPE.criterion(SINGLE), {"threshold": 1.01}).exits == 0).all()


def test_overthinking_is_what_the_oracle_gains(seen_and_trace: tuple[list[tuple[bool, float]], Trace]) -> None:
    _, trace = seen_and_trace
    full, best = (make_tally(trace).measure(said)["accuracy"] for said in (trace.logits[-1], oracle(trace).answers))
    assert best >= full
    assert overthinking(trace).destructive == pytest.approx(best - full)


def test_with_detached_exits_the_encoder_learns_as_without_them(make_plan: Callable[..., Any], tmp_path: Path) -> None:
    """The heads-only mode: ``--set head.detach=true``."""
    # Nothing that all parameters share: no clipping by their common norm, no draw of the exits' dropout.
    once = {"eval_steps": 24, "save_steps": 24, "max_grad_norm": 0, "learning_rate": 2e-3}
    exits = {"head.detach": True, "head.dropout": 0.0}
    ours, plain = (
        load_early_exit(
            train(make_plan(tmp_path / name, recipe=name, settings=changes, arguments=once, max_drop=100.0)).folder
        )
        for name, changes in (("shallow_deep", exits), ("plain", {}))
    )
    state, expected = ours.state_dict(), plain.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, atol=1e-6, rtol=1e-5, msg=name)
    trace = load_trace(tmp_path / "shallow_deep" / "traces" / "dev.safetensors")
    accuracy = (trace.logits.argmax(-1) == np.asarray(trace.labels)).mean(axis=1)
    assert (accuracy > 0.4).all(), accuracy  # and the exits learn beside it, of three classes
