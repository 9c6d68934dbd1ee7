"""BERxiT: steps take turns in a real training, whoever drives it; and one gate serves all exits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from offramp.criteria.gate import Gate
from offramp.model.exits import ExitSettings
from offramp.model.heads import HeadOutput
from offramp.objectives import Moment
from offramp.objectives.alternating import Alternating
from offramp.recipes import load_recipe
from offramp.traces.replay import replay
from offramp.traces.store import load_trace
from offramp.training.train import train

MakePlan = Callable[..., Any]
EARLY = "offramp.heads.0.classifier.weight"
LAST = "classifier.weight"
GATE = "offramp.common.weight"


def test_what_it_is() -> None:
    recipe = load_recipe("berxit")
    assert recipe.criterion("single_label_classification") == Gate()
    assert recipe.criterion("regression") == Gate(problem_type="regression")
    assert "multi_label_classification" not in recipe.criteria


@pytest.fixture(scope="module")
def after(make_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, torch.Tensor]]:
    """Weights after so many optimiser steps, the same data and seed each time; evaluated once, at the end."""

    @cache
    def trained(steps: int, how: str = "alternate", **arguments: Any) -> dict[str, torch.Tensor]:
        given = {"max_steps": steps, "eval_steps": steps, "save_steps": steps, "lr_scheduler_type": "constant"}
        plan = make_plan(
            tmp_path_factory.mktemp("berxit") / "run",
            recipe="berxit",
            settings={} if how == "alternate" else {"objective.steps": how},  # alternating is the recipe's own
            arguments=given | {"warmup_steps": 0} | arguments,
        )
        return load_file(train(plan).folder / "model.safetensors")

    return trained


def test_step_parity_alternates_losses(after: Callable[..., dict[str, torch.Tensor]]) -> None:
    """The first step is the last exit's: the early classifiers rest, and the gate learns."""
    start, first, second = after(1, learning_rate=0.0, head_learning_rate=0.0), after(1), after(2)
    assert torch.equal(first[EARLY], start[EARLY])
    assert not torch.equal(first[LAST], start[LAST])
    assert not torch.equal(first[GATE], start[GATE])
    assert not torch.equal(second[EARLY], start[EARLY])
    joint = after(1, "joint")
    assert not torch.equal(joint[EARLY], start[EARLY])  # without the alternation all would learn at once


def test_micro_batches_of_a_step_take_the_same_turn(after: Callable[..., dict[str, torch.Tensor]]) -> None:
    start = after(1, learning_rate=0.0, head_learning_rate=0.0)
    first = after(1, gradient_accumulation_steps=3, per_device_train_batch_size=8)
    assert torch.equal(first[EARLY], start[EARLY])


def test_a_plain_loop_takes_turns_too(tiny_model: Any, rows: Any) -> None:
    model = tiny_model("bert", ExitSettings(head="gated", pooling="backbone", objective="alternating")).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    reached = []
    for _ in range(4):
        model(**rows(), labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
        reached.append([head.classifier.weight.grad is not None for head in model.offramp.early])
        assert model.classifier.weight.grad is not None
        assert model.offramp.common.weight.grad.any()
        optimizer.step()
        optimizer.zero_grad()
    assert reached == [[False, False], [True, True], [False, False], [True, True]]


def test_a_gate_learns_where_its_exits_are_wrong() -> None:
    """Exits that are wrong on one side of a plane: the gate finds the side, at both of them."""
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(2, 60, 8, generator=generator)
    wrong = pooled[..., 0] > 0.5
    labels = torch.randint(0, 3, (60,), generator=generator)
    logits = torch.nn.functional.one_hot((labels + wrong) % 3, 3).float()
    gate = torch.nn.Linear(8, 1)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.1)
    for step in range(100):
        optimizer.zero_grad()
        said = [torch.sigmoid(gate(vectors)).squeeze(-1) for vectors in pooled]
        outputs = [HeadOutput(z, {"gate": u}) for z, u in zip(logits, said, strict=True)]
        outputs.append(HeadOutput(logits[0]))
        moment = Moment(training=True, step=step)
        Alternating()(outputs, [1, 2, 3], labels, "single_label_classification", moment).backward()
        optimizer.step()
    for u, bad in zip(said, wrong, strict=True):
        assert (u[bad][:, None] > u[~bad][None]).float().mean() > 0.95  # the area under the curve


def test_regression_leaves_early(make_plan: MakePlan, toy_data: Callable[[str], str], tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "run", recipe="berxit", data=toy_data("regression"))
    trace = load_trace(train(plan).folder / "traces" / "dev.safetensors")
    criterion = load_recipe("berxit").criterion("regression")
    assert (trace.extras["gate"][:-1] > 0).all()
    assert (trace.extras["gate"][:-1] < 1).all()
    assert (replay(trace, criterion, {"threshold": 0.0}).exits == 2).all()
    assert (replay(trace, criterion, {"threshold": 1.01}).exits == 0).all()
    middle = float(trace.extras["gate"][0].mean())
    assert 0 < (replay(trace, criterion, {"threshold": middle}).exits == 0).mean() < 1
