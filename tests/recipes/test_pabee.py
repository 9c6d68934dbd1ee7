"""PABEE: weights by depth, and patience for classes, labels and numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from offramp.model.heads import HeadOutput
from offramp.objectives import make_objective
from offramp.recipes import load_recipe
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
RECIPE = load_recipe("pabee")

MakeTrace = Callable[..., Trace]


def random_trace(trace_of: MakeTrace, kind: Any) -> Trace:
    """Six layers, 200 texts that come to agree with themselves, some sooner than others."""
    rng = np.random.default_rng(0)
    width = 1 if kind == REGRESSION else 3
    noise = rng.normal(size=(6, 200, width)) * np.linspace(1.5, 0.05, 6)[:, None, None]
    return trace_of(rng.normal(size=(1, 200, width)) + noise, kind)


def test_the_loss_by_hand() -> None:
    """CE_i = 1 / i at each of six exits: sum i * 1/i / sum i = 6 / 21."""
    said = [HeadOutput(torch.tensor([[-math.log(math.expm1(1 / i)), 0.0]])) for i in range(1, 7)]
    objective = make_objective(RECIPE.training[0].objective.name, RECIPE.training[0].objective.settings)
    assert objective(said, range(1, 7), torch.tensor([0]), SINGLE).item() == pytest.approx(6 / 21)


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_nobody_leaves_before_exit_patience_plus_1(trace_of: MakeTrace, kind: Any) -> None:
    trace, criterion = random_trace(trace_of, kind), RECIPE.criterion(kind)
    wide = {"delta": 1.5} if kind == REGRESSION else {}
    for patience in range(1, 6):
        exits = replay(trace, criterion, {"patience": patience} | wide).exits
        assert exits.min() == patience  # from 0: exit number patience + 1, and some do leave there
    assert (exits == 5).all()  # a patience of M - 1 is full depth


def test_numbers_leave_within_delta_and_never_with_0(trace_of: MakeTrace) -> None:
    outputs = trace_of(np.array([1.0, 2.0, 2.3, 2.35, 2.31, 2.30]).reshape(6, 1, 1), REGRESSION)
    criterion = RECIPE.criterion(REGRESSION)
    layers = [int(replay(outputs, criterion, {"delta": 0.1, "patience": t}).exits[0]) + 1 for t in (1, 2, 3)]
    assert layers == [4, 5, 6]
    trace = random_trace(trace_of, REGRESSION)
    assert (replay(trace, criterion, {"delta": 0.0}).exits == 5).all()
    assert (replay(trace, criterion, {"delta": 0.1}).exits < 5).any()


def test_confidence_has_no_say(trace_of: MakeTrace) -> None:
    """Sure or not, the same answers leave at the same exits: it is patience and not entropy."""
    trace = random_trace(trace_of, SINGLE)
    surer = trace_of(trace.logits * 30)
    for patience in (1, 2, 3):
        one, other = (replay(t, RECIPE.criterion(SINGLE), {"patience": patience}).exits for t in (trace, surer))
        np.testing.assert_array_equal(one, other)
        # The rule in its own words, text by text.
        answers = trace.logits.argmax(-1)
        for text in range(trace.num_units):
            row = answers[:, text].tolist()
            left = [e for e in range(patience, 6) if len(set(row[e - patience : e + 1])) == 1]
            assert one[text] == (left[0] if left else 5)
