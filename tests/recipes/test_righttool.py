"""RightTool: the mix of layers trains, and an exit hears of the layers before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from offramp.criteria.confidence import Confidence
from offramp.criteria.depth import Depth
from offramp.engine.engine import Engine
from offramp.engine.units import Unit
from offramp.inputs.tokens import Tokenizer
from offramp.model.modeling import load_early_exit
from offramp.recipes import load_recipe
from offramp.run import Run
from offramp.runtimes.torch import TorchRuntime
from offramp.training.train import train

MakePlan = Callable[..., Any]
MIXING = "offramp.heads.1.mixing"


@pytest.fixture(scope="module")
def run(make_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(make_plan(tmp_path_factory.mktemp("righttool") / "run", recipe="righttool"))


def test_what_it_is() -> None:
    recipe = load_recipe("righttool")
    assert recipe.criterion("single_label_classification") == Confidence()
    assert recipe.criterion("multi_label_classification").name == "confidence"
    assert set(recipe.criteria) == {"single_label_classification", "multi_label_classification"}


def test_the_mixing_weights_move_in_training(run: Run) -> None:
    """In the released code they do not: they are made anew after every forward pass."""
    weights = load_file(run.folder / "model.safetensors")
    assert [name for name in weights if "mixing" in name] == [MIXING]  # the first exit has nothing to mix
    assert weights[MIXING].abs().min() > 1e-4
    mix = load_early_exit(run.folder).offramp.heads[1].weights()
    assert mix.sum().item() == pytest.approx(1)
    assert (mix - 0.5).abs().min() > 0.01


def test_without_the_mix_there_is_nothing_to_move(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path / "run",
        recipe="righttool",
        settings={"head.reads": "this_layer"},
        arguments={"max_steps": 1, "eval_steps": 1, "save_steps": 1},
    )
    weights = load_file(train(plan).folder / "model.safetensors")
    assert not [name for name in weights if "mixing" in name]


def test_an_exit_hears_of_the_layers_before_it(run: Run, rows: Any) -> None:
    model, inputs = load_early_exit(run.folder), rows(lengths=(7, 5))
    inputs["input_ids"] = inputs["input_ids"] % 25
    with torch.no_grad():
        before = model(**inputs).exit_logits
        kept = model.run_exit

        def other(parts: Any, stage: Any, hidden: Any, lengths: Any, memory: Any) -> Any:
            return kept(parts, stage, hidden + (stage.index == 0), lengths, memory)

        model.run_exit = other
        after = model(**inputs).exit_logits
    assert not torch.allclose(before[:, 1], after[:, 1])
    assert torch.equal(before[:, 2], after[:, 2])  # the model's own head reads the last layer alone


def test_no_exit_is_skipped_on_the_way(run: Run) -> None:
    """The rule knows that nobody leaves before the second exit; the second exit needs the first all the same."""
    runtime = TorchRuntime.from_folder(run.folder, device="cpu")
    assert runtime.info.remembers
    text = Tokenizer.from_folder(run.folder, max_length=run.max_length).encode(["the film is a gem"])[0]
    engine = Engine(runtime, Depth(), pad_token=0)
    engine.add([Unit(0, text)], {"layers": 2})
    found = [unit for _ in range(3) for unit in engine.step()]
    model = load_early_exit(run.folder)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(text.tokens)[None].long()).exit_logits[0, 1]
    assert [unit.exit_layer for unit in found] == [2]
    torch.testing.assert_close(torch.tensor(found[0].answer), expected, atol=1e-5, rtol=1e-5)
