"""What counts as agreement, and that a disagreement starts the count again."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.criteria import make
from offramp.types import ExitOutput, Stage


def first_to_fire(criterion_name: str, kind: str, logits: list[list[float]], **knobs: float) -> int | None:
    """Layer (from 1) at which one text would leave; None: at none."""
    criterion = make(criterion_name, problem_type=kind)
    values = {name: np.array([knobs.get(name, knob.default)]) for name, knob in criterion.knobs.items()}
    state = criterion.start(np.zeros(1))
    for e, row in enumerate(logits):
        output = ExitOutput(np.array([row], dtype=np.float32))
        decision, state = criterion.step(Stage(e, e, e + 1, e + 1), output, state, values)
        if decision.leave[0]:
            return e + 1
    return None


@pytest.mark.parametrize(("patience", "layer"), [(1, 2), (2, 6), (3, 7), (4, None)])
def test_a_change_of_mind_starts_the_count_again(patience: int, layer: int | None) -> None:
    classes = [0, 0, 1, 2, 2, 2, 2, 0]
    logits = [[float(c == k) for k in range(3)] for c in classes]
    assert first_to_fire("patience", "single_label_classification", logits, patience=patience) == layer


def test_labels_agree_as_a_set() -> None:
    logits = [[2.0, -1.0], [2.0, 1.0], [1.0, -1.0], [5.0, -0.1]]
    assert first_to_fire("patience", "multi_label_classification", logits, patience=1) == 4


@pytest.mark.parametrize(("patience", "layer"), [(1, 2), (2, 5)])
def test_a_jump_starts_the_count_again(patience: int, layer: int) -> None:
    numbers = [[1.0], [1.05], [2.0], [2.05], [2.0]]
    assert first_to_fire("patience_delta", "regression", numbers, delta=0.1, patience=patience) == layer
