"""The policy gradient against slow loops, and on a toy set where it is known what a good policy does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp.errors import KnobError, UnsupportedError
from offramp.model.heads import HeadOutput
from offramp.objectives import Moment, make_objective
from offramp.objectives.policy_gradient import PolicyGradient, advantages, log_exits, rewards

SINGLE = "single_label_classification"
LAYERS = [1, 2, 3, 4]
CHANCES = st.floats(0.01, 0.99)


@given(st.lists(st.lists(CHANCES, min_size=3, max_size=3), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_the_chance_of_each_exit_equals_a_walk_through_the_layers(gates: list[list[float]]) -> None:
    found = log_exits(list(torch.tensor(gates, dtype=torch.float64).T)).exp()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(gates), dtype=torch.float64))
    for row, chances in zip(gates, found.tolist(), strict=True):
        inside = 1.0
        for e, on in enumerate(row):
            assert chances[e] == pytest.approx(inside * (1 - on))
            inside *= on
        assert chances[-1] == pytest.approx(inside)


def test_gates_that_are_sure_have_finite_logarithms() -> None:
    gates = [torch.tensor([0.0, 1.0, 0.5]), torch.tensor([1.0, 1.0, 0.0])]
    found = log_exits(gates)
    assert torch.isfinite(found).all()
    assert found.exp()[1].argmax() == 2


def test_rewards_by_hand() -> None:
    """A row that the first of four layers knows pays 3/4 of the price, one that only the last knows nothing."""
    losses = torch.tensor([[0.5, 0.4, 0.3, 0.2], [0.5, 0.4, 0.3, 0.2]])
    found = rewards(losses, torch.tensor(LAYERS), torch.tensor([1.0, 4.0]), 0.1)
    paid = [-0.5 - 0.1 * 1 * 0.75, -0.4 - 0.1 * 2 * 0.75, -0.3 - 0.1 * 3 * 0.75, -0.2 - 0.1 * 4 * 0.75]
    assert found[0].tolist() == pytest.approx(paid)
    assert found[1].tolist() == pytest.approx([-0.5, -0.4, -0.3, -0.2])
    in_full = rewards(losses, torch.tensor(LAYERS), None, 0.1)
    assert in_full[1].tolist() == pytest.approx([-0.6, -0.6, -0.6, -0.6])


@given(st.lists(st.lists(st.floats(-9, 9), min_size=4, max_size=4), min_size=1, max_size=4))
@settings(deadline=None, max_examples=40)
def test_less_the_baseline_each_rows_reward_has_mean_0(reward: list[list[float]]) -> None:
    found = advantages(torch.tensor(reward, dtype=torch.float64))
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(len(reward), dtype=torch.float64), atol=1e-9, rtol=0)


def said(table: Tensor, on: Tensor) -> list[HeadOutput]:
    """Exits whose cross-entropy for label 0 is ``table`` [B, E] and whose gates are ``on`` [B, E - 1]."""
    right = (-table).exp()
    logits = torch.stack([right, 1 - right], dim=-1).log()
    exits = table.shape[1]
    extras = [{"gate": on[:, e]} for e in range(exits - 1)]
    return [HeadOutput(logits[:, e], extra) for e, extra in enumerate([*extras, {}])]


TABLE = torch.tensor([[0.9, 0.6, 0.4, 0.2], [0.3, 0.3, 0.2, 0.2], [1.5, 1.2, 0.1, 0.1]])
ZEROS = torch.zeros(3, dtype=torch.int64)


def exact_gradient(score: Tensor, hardness: Tensor | None, alpha: float, losses: Tensor = TABLE) -> Tensor:
    """Of the expected cost, by summing over all exits instead of sampling them."""
    score = score.detach().clone().requires_grad_()
    chances = log_exits(list(torch.sigmoid(score).T)).exp()
    (-(chances * rewards(losses, torch.tensor(LAYERS), hardness, alpha)).sum(dim=1).mean()).backward()
    assert score.grad is not None
    return score.grad


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_many_samples_give_the_gradient_of_the_expected_cost(alpha: float) -> None:
    """Shrunk by (K - 1) / K, since a sample is part of its own baseline."""
    torch.manual_seed(0)
    score = torch.randn(3, 3).requires_grad_()
    hardness, samples = torch.tensor([1.0, 2.0, 4.0]), 100_000
    moment = Moment(training=True, hardness=hardness)
    outputs = said(TABLE, torch.sigmoid(score))
    PolicyGradient(alpha=alpha, samples=samples)(outputs, LAYERS, ZEROS, SINGLE, moment).backward()
    torch.testing.assert_close(score.grad, exact_gradient(score, hardness, alpha), atol=1e-3, rtol=0.02)


def test_samples_are_drawn_and_their_mean_cost_is_told() -> None:
    score, hardness = torch.zeros(3, 3), torch.tensor([1.0, 2.0, 4.0])
    objective = PolicyGradient(alpha=0.1, samples=2)
    moment = Moment(training=True, hardness=hardness)
    torch.manual_seed(0)
    costs = [objective(said(TABLE, torch.sigmoid(score)), LAYERS, ZEROS, SINGLE, moment).item() for _ in range(400)]
    assert len(set(costs)) > 50  # no threshold on q: the samples differ
    chances = torch.tensor([0.5, 0.25, 0.125, 0.125])
    expected = -(chances * rewards(TABLE, torch.tensor(LAYERS), hardness, 0.1)).sum(dim=1).mean().item()
    assert sum(costs) / len(costs) == pytest.approx(expected, rel=0.03)


def test_classify_trains_the_classifier_where_texts_leave() -> None:
    """Everybody leaves at the second exit, so the second classifier learns, and no other."""
    logits = [torch.zeros(3, 2, requires_grad=True) for _ in LAYERS]
    gates = [torch.tensor([1.0] * 3), torch.tensor([0.0] * 3), torch.tensor([0.5] * 3)]
    outputs = [HeadOutput(z, {"gate": g}) for z, g in zip(logits, gates, strict=False)]
    outputs.append(HeadOutput(logits[-1]))
    for classify in (False, True):
        loss = PolicyGradient(classify=classify)(outputs, LAYERS, ZEROS, SINGLE, Moment(training=True))
        if classify:
            loss.backward()
    learned = [z.grad is not None and bool(z.grad.abs().sum() > 1e-3) for z in logits]
    assert learned == [False, True, False, False]
    torch.testing.assert_close(logits[1].grad, torch.tensor([[-0.5, 0.5]] * 3) / 3)  # that of the mean cross-entropy


def test_on_dev_it_is_the_mean_cross_entropy() -> None:
    found = PolicyGradient()(said(TABLE, torch.full((3, 3), 0.5)), LAYERS, ZEROS, SINGLE, Moment(training=False))
    assert found.item() == pytest.approx(TABLE.mean().item(), rel=1e-4)
    assert not found.requires_grad


def learned(table: Tensor, hardness: Tensor | None, alpha: float) -> Tensor:
    """[B] mean exit layer of the policy that a row ends with, each row having gates of its own."""
    torch.manual_seed(1)
    score = torch.zeros(len(table), table.shape[1] - 1, requires_grad=True)
    optimiser = torch.optim.Adam([score], lr=0.2)
    objective, labels = PolicyGradient(alpha=alpha), torch.zeros(len(table), dtype=torch.int64)
    for _ in range(100):
        optimiser.zero_grad()
        moment = Moment(training=True, hardness=hardness)
        objective(said(table, torch.sigmoid(score)), LAYERS, labels, SINGLE, moment).backward()
        optimiser.step()
    chances = log_exits(list(torch.sigmoid(score.detach()).T)).exp()
    return (chances * torch.tensor(LAYERS)).sum(dim=1)


def test_the_dearer_a_layer_the_earlier_texts_leave() -> None:
    """Every exit is better than the one before it, by less and less."""
    table = torch.tensor([[0.7, 0.5, 0.4, 0.35]] * 12)
    hardness = torch.tensor([1.0, 2.0, 3.0] * 4)
    means = [learned(table, hardness, alpha).mean().item() for alpha in (0.0, 0.15, 1.0)]
    assert means[0] > 3.5  # free: nearly all go to the end
    assert means[0] > means[1] + 0.3 > means[2] + 0.6
    assert means[2] < 1.5


def test_easy_texts_leave_earlier_by_the_depth_term_alone() -> None:
    """All rows have the same losses: nothing but 1 - m / L tells them apart."""
    table = torch.tensor([[0.7, 0.5, 0.4, 0.35]] * 8)
    hardness = torch.tensor([1.0, 4.0] * 4)
    mean = learned(table, hardness, 0.3)
    assert mean[0::2].max() < mean[1::2].min() - 1
    without = learned(table, hardness, 0.0)
    assert (without[0::2].mean() - without[1::2].mean()).abs() < 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": -1}, "objective.alpha must be a number, 0 or more"),
        ({"samples": 1}, "objective.samples must be a whole number, 2 or more"),
        ({"classify": "no"}, "objective.classify must be true or false"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message):
        make_objective("policy_gradient", given)


def test_it_needs_one_class_a_text() -> None:
    outputs = [HeadOutput(torch.zeros(3, 2), {"gate": torch.full((3,), 0.5)}), HeadOutput(torch.zeros(3, 2))]
    with pytest.raises(UnsupportedError, match="one class a text; the data is regression"):
        PolicyGradient()(outputs, [1, 2], torch.zeros(3), "regression")
    assert math.isfinite(PolicyGradient()(outputs[1:], [2], ZEROS, SINGLE, Moment(training=True)).item())  # one exit
