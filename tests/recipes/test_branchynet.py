"""BranchyNet: early exits count most, exits where one wants them, a threshold an exit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offramp.model.heads import HeadOutput
from offramp.model.modeling import load_early_exit
from offramp.objectives import make_objective
from offramp.objectives.base import exit_loss
from offramp.recipes import load_recipe
from offramp.traces.replay import replay
from offramp.traces.store import load_trace
from offramp.training.train import train

SINGLE = "single_label_classification"
RECIPE = load_recipe("branchynet")


def test_early_exits_count_most() -> None:
    """1.0 at the first, 0.3 at the last: what an exit's loss adds to the loss is its share of the weights."""
    said = [HeadOutput(torch.randn(4, 3)) for _ in range(3)]
    labels = torch.tensor([0, 1, 2, 0])
    objective = make_objective(RECIPE.training[0].objective.name, RECIPE.training[0].objective.settings)
    found = objective(said, [4, 8, 12], labels, SINGLE)
    each = [exit_loss(output.logits, labels, SINGLE) for output in said]
    expected = (1.0 * each[0] + 0.65 * each[1] + 0.3 * each[2]) / 1.95
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert [phase.train for phase in RECIPE.training] == ["all"]  # joint


def test_its_rule_is_deeberts() -> None:
    deebert = load_recipe("deebert")
    assert RECIPE.criteria == deebert.criteria
    assert RECIPE.head == deebert.head


def test_exits_only_where_they_were_asked_for(make_plan: Callable[..., Any], tmp_path: Path) -> None:
    run = train(make_plan(tmp_path / "run", recipe="branchynet", exits=(2,)))
    trace = load_trace(run.folder / "traces" / "dev.safetensors")
    assert trace.layers.tolist() == [2, 3]
    model = load_early_exit(run.folder)
    assert len(model.offramp.early) == 1
    assert model.offramp.early[0].own_pooler
    criterion = RECIPE.criterion(SINGLE)
    assert (replay(trace, criterion, {"threshold": 0.0}).exits == 1).all()  # full depth
    assert (replay(trace, criterion, {"threshold": 1.01}).exits == 0).all()
    # A threshold for each exit: half the scale is the same as half the threshold at that exit.
    halved = RECIPE.changed({"criterion.scale": [0.5, 1.0]}).criterion(SINGLE)
    for threshold in (0.13, 0.41, 0.77):
        one, other = (
            replay(trace, halved, {"threshold": threshold}),
            replay(trace, criterion, {"threshold": threshold / 2}),
        )
        np.testing.assert_array_equal(one.exits, other.exits)
