"""Shallow-Deep's weights that grow, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from offramp.errors import KnobError
from offramp.model.heads import HeadOutput
from offramp.objectives import Moment, make_objective
from offramp.objectives.base import exit_loss
from offramp.objectives.scheduled import Scheduled, scheduled_weight

KINDS = ("single_label_classification", "multi_label_classification", "regression")


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.01), (50, 0.16), (99, 0.30)])
def test_tau_of_the_exit_at_30_percent(epoch: int, expected: float) -> None:
    assert scheduled_weight(0.3, epoch / 100) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.15, 0.3, 0.45, 0.6, 0.75, 0.9])
def test_tau_grows_from_its_start_to_its_share(share: float) -> None:
    taus = [scheduled_weight(share, step / 50) for step in range(51)]
    assert taus == sorted(taus)
    assert (taus[0], taus[-1]) == (0.01, share)


def labels_of(kind: str) -> torch.Tensor:
    return {KINDS[0]: torch.tensor([0, 1, 2, 0]), KINDS[1]: torch.eye(4, 3), KINDS[2]: torch.arange(4.0)}[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.95])
def test_the_last_exit_counts_1_and_the_others_tau(kind: Any, progress: float) -> None:
    generator = torch.Generator().manual_seed(0)
    width = 1 if kind == "regression" else 3
    said = [HeadOutput(torch.randn(4, width, generator=generator)) for _ in range(3)]
    labels = labels_of(kind)
    each = [exit_loss(output.logits, labels, kind).item() for output in said]
    early = [min(share, 0.01 + share * progress) for share in (2 / 6, 3 / 6)]
    expected = each[2] + early[0] * each[0] + early[1] * each[1]
    moment = Moment(training=True, progress=progress)
    assert Scheduled()(said, [2, 3, 6], labels, kind, moment).item() == pytest.approx(expected, rel=1e-5)


def test_dev_losses_of_different_moments_compare() -> None:
    said, labels = [HeadOutput(torch.randn(4, 3)) for _ in range(3)], torch.tensor([0, 1, 2, 0])
    at = [Scheduled()(said, [1, 2, 3], labels, KINDS[0], Moment(training=False, progress=p)) for p in (0.0, 0.5)]  # type: ignore[arg-type]
    assert at[0] == at[1] == Scheduled()(said, [1, 2, 3], labels, KINDS[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [-0.1, 2, "much"])
def test_a_start_that_is_none_is_refused(start: Any) -> None:
    with pytest.raises(KnobError, match=r"objective\.start must be a number, from 0 to 1"):
        make_objective("scheduled", {"start": start})
