"""ELBERT: no parameters but the learned weights of the losses, and the model's own head at every layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from offramp.criteria.window import Window
from offramp.model.exits import ExitSettings
from offramp.model.modeling import load_early_exit
from offramp.recipes import load_recipe
from offramp.run import Run
from offramp.traces.replay import replay
from offramp.traces.store import load_trace
from offramp.training.train import train

MakePlan = Callable[..., Any]
LEVELS = "offramp.objective.levels"


@pytest.fixture(scope="module")
def run(make_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(make_plan(tmp_path_factory.mktemp("elbert") / "run", recipe="elbert"))


def test_what_it_is() -> None:
    assert load_recipe("elbert").criteria == {"single_label_classification": Window()}


@pytest.mark.parametrize("family", ["albert", "bert", "roberta"])
def test_it_adds_as_many_numbers_as_there_are_early_exits(family: str, plain_model: Any, tiny_model: Any) -> None:
    def count(model: Any) -> int:
        return sum(p.numel() for p in model.parameters())

    plain = plain_model(family)
    model = tiny_model(family, ExitSettings(head="own", objective="learned_weights"))
    assert count(model) == count(plain) + model.config.num_hidden_layers - 1


def test_a_run_holds_the_plain_model_and_its_weights(run: Run) -> None:
    tensors = load_file(run.folder / "model.safetensors")
    assert [name for name in tensors if name.startswith("offramp.")] == [LEVELS]
    assert tensors[LEVELS].shape == (2,)


def test_the_weights_are_learned(run: Run) -> None:
    assert ((load_file(run.folder / "model.safetensors")[LEVELS] - 4.0).abs() > 1e-3).all()


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_they_have_a_learning_rate_of_their_own(rate: float, make_plan: MakePlan, tmp_path: Path) -> None:
    quick = {"max_steps": 3, "eval_steps": 3, "save_steps": 3, "lr_scheduler_type": "constant"}
    plan = make_plan(tmp_path / "run", recipe="elbert", settings={"objective.learning_rate": rate}, arguments=quick)
    moved = load_file(train(plan).folder / "model.safetensors")[LEVELS] - 4.0
    assert (moved.abs() > 0.1).all() == bool(rate)  # at the encoder's rate of .005 three steps go .015 at most
    assert moved.any() == bool(rate)


def test_every_layer_learned_through_one_head(run: Run, rows: Any) -> None:
    trace = load_trace(run.folder / "traces" / "dev.safetensors")
    accuracy = (trace.logits.argmax(-1) == trace.labels).mean(axis=1)
    assert (accuracy > 0.5).all(), accuracy
    model = load_early_exit(run.folder)
    inputs = rows(lengths=(7, 5))
    inputs["input_ids"] = inputs["input_ids"] % 25
    with torch.no_grad():
        before = model(**inputs).exit_logits
        model.classifier.weight.mul_(2.0)
        after = model(**inputs).exit_logits
    assert ((before - after).abs().amax(dim=(0, 2)) > 1e-3).all()  # what changes the last exit changes every exit


def test_no_entropy_and_too_long_a_window_is_the_full_model(run: Run) -> None:
    trace = load_trace(run.folder / "traces" / "dev.safetensors")
    outcome = replay(trace, Window(), {"threshold": 0.0, "window": 4})
    assert (outcome.exits == 2).all()
    assert (outcome.answers == trace.logits[-1]).all()
    assert (replay(trace, Window(), {"threshold": 0.0, "window": 2}).exits < 2).any()
