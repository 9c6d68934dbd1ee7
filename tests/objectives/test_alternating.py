"""BERxiT's objective against a few lines from the paper."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from offramp.errors import KnobError, UnsupportedError
from offramp.model.heads import HeadOutput
from offramp.objectives import Moment, make_objective
from offramp.objectives.alternating import Alternating, gate_target

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
TRAINING = Moment(training=True, step=0, progress=0.0)


def said(classes: int = 3, gates: bool = True) -> tuple[list[HeadOutput], Tensor]:
    """Of three exits for four texts; the last has no gate."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for e in range(3):
        logits = torch.randn(4, classes, generator=generator).requires_grad_()
        gate = torch.rand(4, generator=generator).requires_grad_()
        made.append(HeadOutput(logits, {"gate": gate} if gates and e < 2 else {}))
    labels = torch.tensor([0, 1, 2, 1]) if classes > 1 else torch.tensor([0.5, -1.0, 2.0, 0.0])
    return made, labels


def losses(outputs: list[HeadOutput], labels: Tensor) -> list[float]:
    if outputs[0].logits.shape[1] == 1:
        return [(out.logits[:, 0] - labels).square().mean().item() for out in outputs]
    return [-out.logits.log_softmax(-1)[torch.arange(4), labels].mean().item() for out in outputs]


def gate_error(outputs: list[HeadOutput], labels: Tensor) -> float:
    errors = []
    for out in outputs[:-1]:
        for answer, label, gate in zip(out.logits.tolist(), labels.tolist(), out.extras["gate"].tolist(), strict=True):
            wrong = float(answer.index(max(answer)) != label)
            target = abs(math.tanh(answer[0] - label)) if len(answer) == 1 else wrong
            errors.append((gate - target) ** 2)
    return sum(errors) / len(errors)


@pytest.mark.parametrize(("classes", "kind"), [(3, SINGLE), (1, REGRESSION)])
def test_steps_take_turns(classes: int, kind: Any) -> None:
    outputs, labels = said(classes)
    each, error = losses(outputs, labels), gate_error(outputs, labels)
    for step in range(6):
        found = Alternating()(outputs, [1, 2, 3], labels, kind, replace(TRAINING, step=step))
        expected = sum(each) if step % 2 else each[-1]
        assert found.item() == pytest.approx(expected + error, rel=1e-5), step


@pytest.mark.parametrize(("classes", "kind"), [(3, SINGLE), (1, REGRESSION)])
def test_on_dev_all_exits_count_whatever_the_step(classes: int, kind: Any) -> None:
    outputs, labels = said(classes)
    for step in (0, 1):
        found = Alternating()(outputs, [1, 2, 3], labels, kind, Moment(training=False, step=step))
        assert found.item() == pytest.approx(sum(losses(outputs, labels)) + gate_error(outputs, labels), rel=1e-5)


def test_jointly_every_step_is_the_same() -> None:
    outputs, labels = said()
    for step in (0, 1):
        found = Alternating(steps="joint")(outputs, [1, 2, 3], labels, SINGLE, replace(TRAINING, step=step))
        assert found.item() == pytest.approx(sum(losses(outputs, labels)) + gate_error(outputs, labels), rel=1e-5)


def test_whom_an_even_step_reaches() -> None:
    """The early exits' classifiers rest; their gates learn; no gate pulls an answer towards its target."""
    outputs, labels = said()
    Alternating()(outputs, [1, 2, 3], labels, SINGLE, TRAINING).backward()
    assert [out.logits.grad is None for out in outputs] == [True, True, False]
    assert all(out.extras["gate"].grad.abs().sum() > 0 for out in outputs[:-1])


def test_a_target_has_no_gradient() -> None:
    logits = torch.randn(4, 1, requires_grad=True)
    assert not gate_target(logits, torch.zeros(4), REGRESSION).requires_grad


def test_targets_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    assert gate_target(logits, torch.tensor([0, 0]), SINGLE).tolist() == [0.0, 1.0]
    found = gate_target(torch.tensor([[1.0], [-0.5]]), torch.tensor([1.0, 1.5]), REGRESSION)
    assert found.tolist() == pytest.approx([0.0, math.tanh(2.0)])


def test_without_gates_it_is_the_alternation_alone() -> None:
    outputs, labels = said(gates=False)
    found = Alternating()(outputs, [1, 2, 3], labels, SINGLE, TRAINING)
    assert found.item() == pytest.approx(losses(outputs, labels)[-1], rel=1e-6)
    with_gates, _ = said()
    assert Alternating(gate=0)(with_gates, [1, 2, 3], labels, SINGLE, TRAINING).item() == found.item()


def test_several_labels_a_text_are_refused() -> None:
    outputs, _ = said()
    with pytest.raises(UnsupportedError, match=f"this is {MULTI}"):
        Alternating()(outputs, [1, 2, 3], torch.zeros(4, 3), MULTI)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": "random"}, "objective.steps must be one of alternate, joint"),
        ({"gate": -1}, r"objective\.gate must be a number, 0 or more"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message):
        make_objective("alternating", settings)
