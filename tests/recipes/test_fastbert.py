"""FastBERT: exits learn from the last one without labels, and leave it as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from offramp.criteria.entropy import normalised_entropy
from offramp.model.modeling import load_early_exit
from offramp.objectives.base import exit_loss
from offramp.objectives.self_distillation import SelfDistillation
from offramp.objectives.weighted_sum import WeightedSum
from offramp.run import Run
from offramp.traces.store import load_trace
from offramp.training import train as module

SINGLE = "single_label_classification"


def trained_with(plan: Any, garbled: int | None) -> tuple[Run, list[dict[str, Tensor]], list[Any]]:
    """Train with the labels of one phase made garbage -> the run, each phase's weights at its end, the trainers."""
    weights, trainers, run_phase = [], [], module._run_phase

    def watched(phase: Any, number: int, *args: Any) -> Any:
        *rest, train_rows, dev_rows = args
        if number == garbled:
            train_rows, dev_rows = (replace(rows, labels=(rows.labels + 1) % 3) for rows in (train_rows, dev_rows))
        result = run_phase(phase, number, *rest, train_rows, dev_rows)
        weights.append({name: value.clone() for name, value in result[0].state_dict().items()})
        return result

    class Watching(module.ExitTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            trainers.append(self)
            return super().train(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_run_phase", watched)
        patch.setattr(module, "ExitTrainer", Watching)
        return module.train(plan), weights, trainers


Trained = tuple[Run, list[dict[str, Tensor]], list[Any]]


def plan_of(make_plan: Callable[..., Any], folder: Path) -> Any:
    """Four epochs a stage, each with an evaluation."""
    return make_plan(folder / "run", recipe="fastbert", once=False)


@pytest.fixture(scope="module")
def trained(make_plan: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_with(plan_of(make_plan, tmp_path_factory.mktemp("fastbert")), None)


def test_the_second_stage_moves_the_exits_and_nothing_else(trained: Trained) -> None:
    run, (first, second), _ = trained
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert moved
    assert all(name.startswith("offramp.heads.") for name in moved)
    state = load_early_exit(run.folder).state_dict()
    assert all(torch.equal(state[name], value) for name, value in first.items() if "offramp" not in name)


def test_the_second_stage_does_without_labels(trained: Trained, make_plan: Callable[..., Any], tmp_path: Path) -> None:
    """Neither its gradient nor its choice of a checkpoint looks at one: garbage gives the very same weights."""
    run, weights, _ = trained_with(plan_of(make_plan, tmp_path), 2)
    for expected, found in zip(trained[1], weights, strict=True):
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
    one, other = (load_trace(r.folder / "traces" / "dev.safetensors") for r in (trained[0], run))
    np.testing.assert_array_equal(one.logits, other.logits)


def test_labels_do_matter_to_the_first_stage(make_plan: Callable[..., Any], tmp_path: Path, trained: Trained) -> None:
    """So the test above can fail."""
    _, weights, _ = trained_with(plan_of(make_plan, tmp_path), 1)
    assert not torch.equal(weights[0]["classifier.weight"], trained[1][0]["classifier.weight"])


def test_the_students_come_to_say_what_the_teacher_says(trained: Trained) -> None:
    run, _, (_, second) = trained
    losses = [entry["eval_loss"] for entry in second.state.log_history if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    trace = load_trace(run.folder / "traces" / "dev.safetensors")
    entropy = normalised_entropy(trace.logits.reshape(-1, 3))
    assert ((entropy >= 0) & (entropy <= 1 + 1e-6)).all()
    agreement = (trace.logits.argmax(-1) == trace.logits[-1].argmax(-1)).mean(axis=1)
    assert (agreement > 0.5).all(), agreement


def test_each_stage_keeps_the_checkpoint_that_is_best_for_what_it_trains(trained: Trained) -> None:
    run, _, trainers = trained
    trace = load_trace(run.folder / "traces" / "dev.safetensors")
    logits, labels = torch.from_numpy(trace.logits), torch.from_numpy(np.asarray(trace.labels))
    expected = [
        exit_loss(logits[-1], labels, SINGLE),
        SelfDistillation()([type("Said", (), {"logits": z}) for z in logits], [1, 2, 3], labels, SINGLE),  # type: ignore[misc]
    ]
    for trainer, loss in zip(trainers, expected, strict=True):
        assert trainer.args.metric_for_best_model == "loss"
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert trainer.state.best_metric == min(losses)
        assert loss.item() == pytest.approx(min(losses), rel=1e-4)


def test_it_has_fastberts_exits_and_objectives(trained: Trained) -> None:
    model = load_early_exit(trained[0].folder)
    assert [type(head).__name__ for head in model.offramp.early] == ["Attention"] * 2
    assert {(head.heads, head.classifier.in_features) for head in model.offramp.early} == {(2, 128)}
    assert isinstance(model.objective, SelfDistillation)
    assert not isinstance(model.objective, WeightedSum)
