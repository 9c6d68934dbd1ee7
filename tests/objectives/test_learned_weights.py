"""ELBERT's objective against a few lines from the paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import KnobError
from offramp.model.heads import HeadOutput
from offramp.objectives import make_objective
from offramp.objectives.learned_weights import LearnedWeights

SINGLE = "single_label_classification"


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=11))
@settings(deadline=None, max_examples=50)
def test_weights_in_a_slow_loop(levels: list[float]) -> None:
    objective = LearnedWeights(len(levels) + 1)
    objective.levels.data = torch.tensor(levels)
    early = [1 / (1 + math.exp(-level)) for level in levels]
    expected = [*early, len(levels) + 1 - sum(early)]
    assert objective.weights().tolist() == pytest.approx([w / len(expected) for w in expected], abs=1e-6)
    assert objective.weights().sum().item() == pytest.approx(1, abs=1e-5)
    assert (objective.weights() >= 0).all()


def test_the_loss_by_hand() -> None:
    torch.manual_seed(0)
    objective = LearnedWeights(3, initial=4.0)
    outputs = [HeadOutput(torch.randn(5, 4)) for _ in range(3)]
    labels = torch.arange(5) % 4
    losses = [-out.logits.log_softmax(-1)[torch.arange(5), labels].mean().item() for out in outputs]
    share = 1 / (1 + math.exp(-4))
    expected = (share * (losses[0] + losses[1]) + (3 - 2 * share) * losses[2]) / 3
    assert objective(outputs, [1, 2, 3], labels, SINGLE).item() == pytest.approx(expected, rel=1e-6)


def test_weight_drifts_to_exits_that_are_better_than_the_last() -> None:
    """As in the paper: nothing holds it back. The distinguishing part: constant weights would not move."""
    objective = LearnedWeights(3, initial=0.0)
    good, bad = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    middling = torch.zeros(1, 2)
    outputs = [HeadOutput(logits) for logits in (good, bad, middling)]
    objective(outputs, [1, 2, 3], torch.tensor([0]), SINGLE).backward()
    assert objective.levels.grad[0] < 0 < objective.levels.grad[1]


def test_a_model_without_early_exits() -> None:
    objective = LearnedWeights(1)
    assert objective.weights().tolist() == [1.0]


def test_it_has_one_number_for_each_early_exit() -> None:
    objective: Any = make_objective("learned_weights", {"initial": 2.0, "learning_rate": 0.5}, num_exits=6)
    assert objective.learning_rate == 0.5
    assert [p.shape for p in objective.parameters()] == [(5,)]
    assert objective.levels.tolist() == [2.0] * 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial": "much"}, r"objective\.initial must be a number"),
        ({"learning_rate": -1}, r"objective\.learning_rate must be a number, 0 or more"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message):
        make_objective("learned_weights", settings, num_exits=3)
