"""LeeBERT: without its own parts it is PABEE's training to the last bit; with them, weights are learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from offramp.criteria.patience import Patience
from offramp.model.modeling import load_early_exit
from offramp.recipes import load_recipe
from offramp.run import Run
from offramp.training.train import train

LEVELS = "offramp.objective.levels"
Train = Callable[..., Run]


@pytest.fixture(scope="module")
def trained(make_plan: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """``trained(recipe, settings)``: a run from the same seed."""

    def make(recipe: str = "leebert", **settings: Any) -> Run:
        out = tmp_path_factory.mktemp("leebert") / "run"
        # Without clipping: it is by the norm of all gradients, and so would let anything that learns change the rest.
        quick = {"max_steps": 12, "eval_steps": 12, "save_steps": 12, "max_grad_norm": 0.0}
        named = {f"objective.{name}": value for name, value in settings.items()}
        return train(make_plan(out, recipe=recipe, settings=named, arguments=quick))

    return make


@pytest.fixture(scope="module")
def learned(trained: Train) -> Run:
    return trained(every=2)


@pytest.fixture(scope="module")
def fixed(trained: Train) -> Run:
    return trained(weights="fixed")


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "model.safetensors")


def test_what_it_is() -> None:
    recipe = load_recipe("leebert")
    assert recipe.criteria == {"single_label_classification": Patience()}
    assert recipe.training[0].objective.settings["weights"] == "learned"


def test_without_pairs_and_with_weights_by_depth_training_is_pabees(trained: Train) -> None:
    """The joint recipe with weights by depth is PABEE's training: shared pooling and a linear head at each exit."""
    ours, theirs = weights(trained(weights="fixed", distil=0, by="depth")), weights(trained("joint", by="depth"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-4, rtol=1e-4)


def test_the_pairs_change_the_training(fixed: Run, trained: Train) -> None:
    alone = weights(trained(weights="fixed", distil=0))
    name = "offramp.heads.0.classifier.weight"
    assert not torch.allclose(weights(fixed)[name], alone[name], atol=1e-4)


def test_weights_are_learned_and_stay_positive(learned: Run) -> None:
    levels = weights(learned)[LEVELS]
    assert levels.shape == (2, 3)
    assert ((levels - math.log(math.e - 1)).abs() > 1e-4).all()
    model = load_early_exit(learned.folder)
    now, before = (f([1, 2, 3], torch.zeros(1)) for f in (model.objective.weights, model.objective.fixed))
    assert torch.isfinite(now).all()
    assert (now > 0).all()
    assert not torch.allclose(now[:-1], before[:-1], atol=1e-4)
    assert now.sum().item() == pytest.approx(before.sum().item(), rel=1e-5)


def test_fixed_weights_have_nothing_to_learn(fixed: Run, learned: Run) -> None:
    assert LEVELS not in weights(fixed)
    assert weights(learned).keys() - weights(fixed).keys() == {LEVELS}


def test_the_learned_weights_change_the_training(fixed: Run, learned: Run) -> None:
    name = "offramp.heads.0.classifier.weight"
    assert not torch.allclose(weights(fixed)[name], weights(learned)[name], atol=1e-6)


def test_they_wait_until_fixed_weights_have_warmed_up(trained: Train, fixed: Run) -> None:
    waited = weights(trained(warmup=1.0))
    assert (waited[LEVELS] == waited[LEVELS][0, 0]).all()
    name = "offramp.heads.0.classifier.weight"
    torch.testing.assert_close(waited[name], weights(fixed)[name])
