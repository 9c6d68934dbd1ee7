"""What makes a recipe that paper's: on as the recipe stands, and another model or another rule without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from offramp.calibration.points import read_points
from offramp.criteria import make
from offramp.recipes import load_recipe
from offramp.run import Run
from offramp.traces.replay import scores
from offramp.traces.store import load_trace
from offramp.training import hardness
from offramp.training.train import train

MakePlan = Callable[..., Any]


@pytest.fixture(scope="module")
def trained(make_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    def make(recipe: str, settings: dict[str, Any] | None = None) -> Run:
        out = tmp_path_factory.mktemp(recipe) / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hardness, "STEPS", 4)  # of each model that votes on which rows are hard
            return train(make_plan(out, recipe=recipe, settings=settings or {}, arguments={"max_steps": 4}))

    return make


@pytest.mark.parametrize(
    ("recipe", "without"),
    [
        ("berxit", {"objective.steps": "joint"}),
        ("cascadebert", {"objective.beta": 0.0}),
        ("consistentee", {"objective.alpha": 0.0}),
        ("de3bert", {"objective.alpha": 0.0}),
    ],
)
def test_without_it_another_model_is_trained(trained: Callable[..., Run], recipe: str, without: dict[str, Any]) -> None:
    one, other = (load_file(trained(recipe, settings).folder / "model.safetensors") for settings in ({}, without))
    assert one.keys() == other.keys()
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_righttool_leaves_by_temperatures_of_its_own(trained: Callable[..., Run]) -> None:
    recipe = load_recipe("righttool")
    assert recipe.learns("single_label_classification") == "temperature"
    assert recipe.learns("multi_label_classification") is None
    [default, *_] = read_points(trained("righttool").folder)
    temperatures = default.settings["temperatures"]
    assert len(temperatures) == 3
    assert len(set(temperatures)) > 1


def test_de3bert_ranks_texts_otherwise_than_entropy_does(trained: Callable[..., Run]) -> None:
    rule = load_recipe("de3bert").criterion("single_label_classification")
    trace = load_trace(trained("de3bert").folder / "traces" / "dev.safetensors")
    ours, entropy = (scores(trace, one) for one in (rule, make("entropy")))
    assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(ours, entropy, strict=True)) < 0.99


def test_training_twice_gives_the_same_model(trained: Callable[..., Run]) -> None:
    """Else the first test would pass for any setting."""
    one, other = (load_file(trained("de3bert").folder / "model.safetensors") for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
