"""DeeBERT: two stages, a frozen encoder, poolers that start as the pretrained one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from offramp.model.modeling import load_early_exit
from offramp.objectives.base import exit_loss
from offramp.recipes import load_recipe
from offramp.run import Run
from offramp.traces.replay import replay
from offramp.traces.store import load_trace
from offramp.training import train as module

SINGLE = "single_label_classification"


@dataclass(frozen=True)
class Stage:
    """What one phase of a training left behind."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    logits: Tensor
    """[N, E, C] of dev when it had ended."""
    labels: Tensor
    metric: str
    """That the checkpoint was chosen by."""
    best: float
    history: list[dict[str, float]]


def watching(seen: list[Stage]) -> type[Any]:
    class Watching(module.ExitTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            before = {name: value.clone() for name, value in self.model.state_dict().items()}
            result = super().train(*args, **kwargs)
            after = {name: value.clone() for name, value in self.model.state_dict().items()}
            batch = self.data_collator([self.eval_dataset[i] for i in range(len(self.eval_dataset))])
            with torch.no_grad():
                logits = self.model.eval()(**batch).exit_logits
            log = self.state.log_history
            seen.append(
                Stage(
                    before, after, logits, batch["labels"], self.args.metric_for_best_model, self.state.best_metric, log
                )
            )
            return result

    return Watching


@pytest.fixture(scope="module")
def trained(make_plan: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Stage]]:
    seen: list[Stage] = []
    plan = make_plan(tmp_path_factory.mktemp("deebert") / "run", recipe="deebert", once=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ExitTrainer", watching(seen))
        return module.train(plan), seen


@pytest.fixture(scope="module")
def stages(trained: tuple[Run, list[Stage]]) -> list[Stage]:
    return trained[1]


def moved(stage: Stage) -> set[str]:
    return {name for name, value in stage.after.items() if not torch.equal(value, stage.before[name])}


def test_the_exits_poolers_start_as_the_encoders_and_go_their_own_ways(stages: list[Stage]) -> None:
    for part in ("weight", "bias"):
        pretrained = stages[0].before[f"bert.pooler.dense.{part}"]
        names = [f"offramp.heads.{e}.pooler.{part}" for e in (0, 1)]
        assert all(torch.equal(stages[0].before[name], pretrained) for name in names)
        # The first stage moves the encoder's pooler and leaves the copies of the pretrained one.
        assert all(torch.equal(stages[1].before[name], pretrained) for name in names)
        assert not torch.equal(stages[1].before[f"bert.pooler.dense.{part}"], pretrained)
        assert not torch.equal(*(stages[1].after[name] for name in names))


def test_the_first_stage_is_a_fine_tune_and_the_second_leaves_it_alone(stages: list[Stage]) -> None:
    first, second = (moved(stage) for stage in stages)
    assert first
    assert not any(name.startswith("offramp.") for name in first)
    assert {"classifier.weight", "bert.encoder.layer.0.output.dense.weight"} <= first
    assert second
    assert all(name.startswith("offramp.heads.") for name in second)


def test_the_last_layer_answers_as_after_the_first_stage(trained: tuple[Run, list[Stage]]) -> None:
    run, (first, second) = trained
    assert torch.equal(first.logits[:, -1], second.logits[:, -1])
    assert not torch.equal(first.logits[:, 0], second.logits[:, 0])
    state = load_early_exit(run.folder).state_dict()
    assert all(torch.equal(state[name], value) for name, value in first.after.items() if "offramp" not in name)


def test_the_first_stage_keeps_the_checkpoint_that_is_best_for_the_last_exit(stages: list[Stage]) -> None:
    first, second = stages
    assert (first.metric, second.metric) == ("loss", "exits_loss")
    losses = [entry["eval_loss"] for entry in first.history if "eval_loss" in entry]
    assert len(losses) == 4
    assert first.best == min(losses)
    assert exit_loss(first.logits[:, -1], first.labels, SINGLE).item() == pytest.approx(min(losses), rel=1e-4)
    assert first.best not in [entry.get("eval_exits_loss") for entry in first.history]


def test_no_text_leaves_at_0_and_all_leave_at_the_first_layer_above_the_highest_entropy(
    trained: tuple[Run, list[Stage]],
) -> None:
    trace = load_trace(trained[0].folder / "traces" / "dev.safetensors")
    criterion = load_recipe("deebert").criterion(SINGLE)
    assert (replay(trace, criterion, {"threshold": 0.0}).exits == 2).all()
    assert (replay(trace, criterion, {"threshold": 1.01}).exits == 0).all()
    accuracy = (trace.logits.argmax(-1) == np.asarray(trace.labels)).mean(axis=1)
    assert (accuracy > 0.5).all(), accuracy  # of three classes: the frozen encoder's exits learned
