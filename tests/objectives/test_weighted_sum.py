"""Weights of the exits by hand, and that an exit without weight is not touched."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from offramp.model.heads import HeadOutput
from offramp.objectives.base import exit_loss, exit_weights
from offramp.objectives.weighted_sum import WeightedSum

SINGLE = "single_label_classification"


@pytest.mark.parametrize(
    ("layers", "by", "expected"),
    [
        ([1, 2, 3], "last", [0, 0, 1]),
        ([6], "last", [1]),
        ([2, 4, 6, 12], "shallow", [1.0, 0.3 + 0.7 * 2 / 3, 0.3 + 0.7 / 3, 0.3]),
        ([1, 12], "shallow", [1.0, 0.3]),
        ([6], "shallow", [1]),
        ([1, 2, 6], "equal", [1, 1, 1]),
        ([1, 2, 6], "depth", [1, 2, 6]),
    ],
)
def test_weights_by_hand(layers: list[int], by: Any, expected: list[float]) -> None:
    assert exit_weights(layers, by).tolist() == pytest.approx([w / sum(expected) for w in expected])


@pytest.mark.parametrize("by", ["equal", "depth", "last", "shallow"])
def test_it_is_the_weighted_mean_of_the_exits_losses(by: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    said = [HeadOutput(torch.randn(5, 4, generator=generator)) for _ in range(3)]
    labels = torch.tensor([0, 1, 2, 3, 0])
    each = [exit_loss(output.logits, labels, SINGLE).item() for output in said]
    expected = sum(w * loss for w, loss in zip(exit_weights([1, 3, 4], by).tolist(), each, strict=True))
    assert WeightedSum(by=by)(said, [1, 3, 4], labels, SINGLE).item() == pytest.approx(expected, rel=1e-5)


def test_exits_without_weight_get_no_gradient_and_may_say_anything() -> None:
    early = torch.full((2, 3), math.nan, requires_grad=True)
    last = torch.zeros(2, 3, requires_grad=True)
    loss = WeightedSum(by="last")([HeadOutput(early), HeadOutput(last)], [1, 2], torch.tensor([0, 1]), SINGLE)
    assert loss.item() == pytest.approx(math.log(3))
    loss.backward()
    assert early.grad is None
    assert last.grad.abs().sum() > 0
