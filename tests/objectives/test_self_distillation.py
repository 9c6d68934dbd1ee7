"""Self-distillation against a slow loop, and that it looks at no label and moves no teacher."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from offramp.errors import UnsupportedError
from offramp.model.heads import HeadOutput
from offramp.objectives import make_objective
from offramp.objectives.self_distillation import distance_to_teacher

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
KINDS = (SINGLE, MULTI, REGRESSION)


def binary(p: float, q: float) -> float:
    """KL between two yes-or-no distributions."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def slowly(student: list[list[float]], teacher: list[list[float]], kind: str) -> float:
    """Mean over rows of what one row gives."""
    rows = []
    for s, t in zip(student, teacher, strict=True):
        if kind == REGRESSION:
            rows.append((s[0] - t[0]) ** 2)
        elif kind == MULTI:
            p, q = ([1 / (1 + math.exp(-x)) for x in row] for row in (t, s))
            rows.append(sum(binary(a, b) for a, b in zip(p, q, strict=True)) / len(p))
        else:
            p, q = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (t, s))
            rows.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return sum(rows) / len(rows)


def logits(exits: int, kind: str, rows: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    width = 1 if kind == REGRESSION else 4
    return [torch.randn(rows, width, generator=generator).requires_grad_() for _ in range(exits)]


@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_a_slow_loop_over_exits_and_rows(kind: Any) -> None:
    exits = logits(4, kind)
    found = make_objective("self_distillation", {})([HeadOutput(z) for z in exits], [1, 2, 3, 4], torch.zeros(5), kind)
    each = [slowly(z.tolist(), exits[-1].tolist(), kind) for z in exits[:-1]]
    assert found.item() == pytest.approx(sum(each) / 3, rel=1e-4)
    found.backward()
    assert exits[-1].grad is None  # the teacher is not moved
    assert all(z.grad.abs().sum() > 0 for z in exits[:-1])


def test_the_teacher_comes_first() -> None:
    """KL(teacher || student), as the released code: the two directions differ."""
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    found = distance_to_teacher(student, teacher, SINGLE).item()
    assert found == pytest.approx(slowly(student.tolist(), teacher.tolist(), SINGLE), rel=1e-5)
    assert found != pytest.approx(slowly(teacher.tolist(), student.tolist(), SINGLE), rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_not_looked_at(kind: Any) -> None:
    said = [HeadOutput(z) for z in logits(3, kind)]
    objective = make_objective("self_distillation", {})
    garbage: Any = None
    assert objective(said, [1, 2, 3], torch.zeros(5), kind) == objective(said, [1, 2, 3], garbage, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_0_at_the_teacher_and_finite_far_away(kind: Any, dtype: torch.dtype) -> None:
    z = logits(1, kind)[0].detach().to(dtype)
    assert distance_to_teacher(z, z, kind).item() == pytest.approx(0, abs=1e-6)
    far = distance_to_teacher((-1e4 * z).requires_grad_(), 1e4 * z, kind)
    assert far.dtype == torch.float32
    assert math.isfinite(far.item())
    assert far > 100


def test_without_early_exits_there_is_nobody_to_teach() -> None:
    with pytest.raises(UnsupportedError, match="this model has none"):
        make_objective("self_distillation", {})([HeadOutput(torch.zeros(2, 3))], [3], torch.zeros(2), SINGLE)
