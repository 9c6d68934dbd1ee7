"""NSP: plain training, exits that say what the classifier cannot see, and a rule that uses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offramp.criteria.null_space import CAP
from offramp.errors import UnsupportedError
from offramp.model.backbone import cut
from offramp.model.modeling import load_early_exit
from offramp.recipes import load_recipe
from offramp.run import Run
from offramp.traces.replay import replay, scores
from offramp.traces.store import load_trace
from offramp.traces.trace import Trace
from offramp.training.train import train

SINGLE = "single_label_classification"
RECIPE = load_recipe("nsp")


@pytest.fixture(scope="module")
def runs(make_plan: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("nsp")
    return {name: train(make_plan(folder / name, recipe=name)) for name in ("nsp", "joint")}


def trace_of(run: Run) -> Trace:
    return load_trace(run.folder / "traces" / "dev.safetensors")


def test_training_is_plain(runs: dict[str, Run]) -> None:
    """The very weights of ``joint``: the score changes nothing about training, and needs none."""
    ours, joint = (load_early_exit(runs[name].folder).state_dict() for name in ("nsp", "joint"))
    assert ours.keys() == joint.keys()
    assert all(torch.equal(value, joint[name]) for name, value in ours.items())


def test_every_early_exit_says_what_its_classifier_cannot_see(runs: dict[str, Run]) -> None:
    trace = trace_of(runs["nsp"])
    share = trace.extras["null_space"]
    assert share.shape == (3, 48)
    assert ((share[:-1] > 0) & (share[:-1] < 1)).all()
    assert np.isnan(share[-1]).all()
    assert share[:-1].std() > 1e-3


def test_the_score_as_it_is_printed(runs: dict[str, Run], toy_data: Callable[[str], str]) -> None:
    """From the run folder alone: hidden states, pooling, pinv, softmax over the logits and alpha * s."""
    model, trace = load_early_exit(runs["nsp"].folder), trace_of(runs["nsp"])
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    parts, lengths = cut(model), torch.tensor([5])
    with torch.no_grad():
        hidden = parts.embed(ids, lengths, None)
        hidden = model.run_stage(parts, model.stages[0], hidden, lengths)
        said, _ = model.run_exit(parts, model.stages[0], hidden, lengths, {})
    classifier = model.offramp.heads[0].classifier
    w, b = (p.detach().double().numpy() for p in (classifier.weight, classifier.bias))
    moved = hidden[0].mean(dim=0).double().numpy() + np.linalg.pinv(w) @ b
    inside = np.linalg.pinv(w) @ w @ moved
    expected = np.sqrt(1 - (inside @ inside) / (moved @ moved))
    assert said.extras["null_space"].item() == pytest.approx(expected, abs=1e-5)

    found = scores(trace, RECIPE.criterion(SINGLE))  # type: ignore[arg-type]
    for e in (0, 1):
        joined = np.concatenate([trace.logits[e], 0.1 * trace.extras["null_space"][e][:, None]], axis=-1)
        last = np.exp(joined[:, -1]) / np.exp(joined).sum(axis=-1)
        np.testing.assert_allclose(found[e], last, rtol=1e-4)
    without = scores(trace, CAP(alpha=0.0))
    assert not np.allclose(found[:-1], without[:-1], rtol=1e-3)  # the share has a say


def test_exits_that_do_not_give_it_are_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="null_space"):
        replay(trace_of(runs["joint"]), RECIPE.criterion(SINGLE), {"threshold": 0.2})
    assert RECIPE.head.settings["null_space"] is True
