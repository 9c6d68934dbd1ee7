"""Difficulty-aware regularisation against slow loops, and on a toy set where it should show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp.errors import KnobError, UnsupportedError
from offramp.model.heads import HeadOutput
from offramp.objectives import Moment, make_objective
from offramp.objectives.difficulty_aware import DifficultyAware, ranking

SINGLE = "single_label_classification"


def slowly(rows: list[tuple[float, bool]], margin: float) -> float:
    pairs = [max(0.0, margin - (easy - hard)) for easy, h in rows if not h for hard, g in rows if g]
    return sum(pairs) / len(pairs) if pairs else 0.0


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=8), st.sampled_from([0.0, 0.3, 0.5, 1.0])
)
@settings(deadline=None, max_examples=100)
def test_ranking_equals_a_slow_loop(rows: list[tuple[float, bool]], margin: float) -> None:
    found = ranking(
        torch.tensor([row[0] for row in rows], dtype=torch.float64), torch.tensor([row[1] for row in rows]), margin
    )
    assert found.item() == pytest.approx(slowly(rows, margin), abs=1e-9)


def test_ranking_by_hand() -> None:
    """Easy .9 and .6, hard .5: .3 - .4 is nothing, .3 - .1 is .2; the mean is .1."""
    confidence, hard = torch.tensor([0.9, 0.6, 0.5]), torch.tensor([False, False, True])
    assert ranking(confidence, hard, 0.3).item() == pytest.approx(0.1)
    assert ranking(confidence, ~hard, 0.3).item() == pytest.approx((0.7 + 0.4) / 2)
    for one_kind in (torch.zeros(3), torch.ones(3)):
        assert ranking(confidence, one_kind.bool(), 0.3).item() == 0


def losses(logits: list[Tensor], labels: Tensor) -> Tensor:
    return sum(-z.log_softmax(-1)[torch.arange(len(labels)), labels].mean() for z in logits)


def test_the_loss_in_a_few_lines() -> None:
    torch.manual_seed(0)
    logits, labels = [torch.randn(6, 3) for _ in range(3)], torch.arange(6) % 3
    hardness = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0])
    outputs = [HeadOutput(z) for z in logits]
    objective = DifficultyAware(beta=0.7, margin=0.4)
    found = objective(outputs, [1, 3, 9], labels, SINGLE, Moment(training=True, hardness=hardness))
    confidence = logits[0].softmax(-1).amax(-1).tolist()  # of the smallest model
    dar = slowly(list(zip(confidence, hardness.bool().tolist(), strict=True)), 0.4)
    assert dar > 0
    assert found.item() == pytest.approx(losses(logits, labels).item() + 0.7 * dar, rel=1e-5)
    on_dev = objective(outputs, [1, 3, 9], labels, SINGLE, Moment(training=False))
    assert on_dev.item() == pytest.approx(losses(logits, labels).item(), rel=1e-5)


def taught(beta: float) -> tuple[Tensor, Tensor]:
    """Confidence of a linear model on easy rows and on hard ones, whose labels are noise.

    With as many features as rows it could learn all of them by heart, and be as sure of noise as of the rest.
    """
    torch.manual_seed(0)
    inputs, hard = torch.randn(40, 40), torch.arange(40) % 2 == 1
    labels = torch.where(hard, torch.randint(0, 2, (40,)), (inputs[:, 0] > 0).long())
    model = torch.nn.Linear(40, 2)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        moment = Moment(training=True, hardness=hard.float())
        DifficultyAware(beta=beta)([HeadOutput(model(inputs))], [2], labels, SINGLE, moment).backward()
        optimiser.step()
    confidence = model(inputs).softmax(-1).amax(-1).detach()
    return confidence[~hard], confidence[hard]


def test_it_makes_the_small_model_less_sure_of_hard_rows() -> None:
    easy, hard = taught(2.0)
    plain_easy, plain_hard = taught(0.0)
    assert hard.mean() < plain_hard.mean() - 0.1
    assert easy.mean() - hard.mean() > 0.15 > plain_easy.mean() - plain_hard.mean()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": -1}, "objective.beta must be a number, 0 or more"),
        ({"margin": 2}, "objective.margin must be a number, from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message):
        make_objective("difficulty_aware", given)


def test_it_needs_one_class_a_text() -> None:
    with pytest.raises(UnsupportedError, match="one class a text; the data is regression"):
        DifficultyAware()([HeadOutput(torch.zeros(3, 1))], [2], torch.zeros(3), "regression")
