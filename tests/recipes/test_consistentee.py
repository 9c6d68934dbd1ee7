"""ConsistentEE: three phases that move what they should, and a price for depth that is felt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offramp.criteria.gate import Gate
from offramp.errors import KnobError
from offramp.model.heads import Reader, Surroundings, make_head
from offramp.recipes import load_recipe
from offramp.traces.replay import replay
from offramp.traces.store import load_trace
from offramp.training import train as module

MakePlan = Callable[..., Any]


def steps(number: int) -> dict[str, int]:
    """So many of each phase, with one evaluation."""
    return {"max_steps": number, "eval_steps": number, "save_steps": number}


def test_the_gate_is_the_policys_probability_of_going_on() -> None:
    around = Surroundings(
        hidden_size=8, pooled_size=8, num_outputs=3, problem_type="single_label_classification", dropout=0.0
    )
    torch.manual_seed(0)
    head = make_head("policy", around, {"width": 5})
    pooled = torch.randn(4, 8)
    output, _ = head(pooled[:, None], torch.ones(4), Reader(pool=lambda hidden, lengths: hidden[:, 0]), {})
    first, second = head.policy[0], head.policy[2]
    inner = torch.nn.functional.gelu(pooled @ first.weight.T + first.bias)
    leaving = torch.sigmoid(inner @ second.weight.T + second.bias).squeeze(-1)
    torch.testing.assert_close(output.extras["gate"], 1 - leaving)
    assert head.extras() == {"gate": 0}
    assert first.weight.shape == (5, 8)
    with pytest.raises(KnobError, match=r"head\.width must be a whole number, 1 or more"):
        make_head("policy", around, {"width": 0})


def test_each_phase_moves_what_it_says(make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[set[str]] = []
    hardness: list[np.ndarray[Any, Any] | None] = []
    run_phase, trainer = module._run_phase, module.ExitTrainer

    def watched(phase: Any, number: int, model: Any, *rest: Any) -> Any:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model, log = run_phase(phase, number, model, *rest)
        moved.append({name for name, value in model.state_dict().items() if not torch.equal(value, before[name])})
        return model, log

    def made(**given: Any) -> Any:
        hardness.append(given["train_dataset"].hardness)
        return trainer(**given)

    monkeypatch.setattr(module, "_run_phase", watched)
    monkeypatch.setattr(module, "ExitTrainer", made)
    module.train(make_plan(tmp_path / "run", recipe="consistentee", arguments=steps(6)))
    joint, policy, everything = moved
    assert policy
    assert all(".policy." in name for name in policy)
    assert {name.split(".")[2] for name in policy} == {"0", "1"}  # at both early exits
    assert not any(".policy." in name for name in joint)
    assert joint | policy <= everything
    first, second, third = hardness
    assert first is None
    assert second is not None
    assert third is not None
    assert set(second.tolist()) <= {1.0, 2.0, 3.0}
    np.testing.assert_array_equal(second, third)  # the policy phase changes no answer


@pytest.fixture(scope="module")
def mean_exit(make_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], float]:
    """Price of a layer -> mean exit layer on dev at the rule's own threshold."""

    def trained(alpha: float) -> float:
        out = tmp_path_factory.mktemp("alpha") / "run"
        plan = make_plan(out, recipe="consistentee", settings={"objective.alpha": alpha}, arguments=steps(12))
        run = module.train(plan)
        trace = load_trace(run.folder / "traces" / "dev")
        return float(trace.layers[replay(trace, Gate(), {}).exits].mean())

    return trained


def test_a_dear_layer_makes_texts_leave_earlier(mean_exit: Callable[[float], float]) -> None:
    free, dear = mean_exit(0.0), mean_exit(2.0)
    assert free > dear + 0.5
    assert dear < 1.5


def test_rows_that_are_memorised_late_may_stay(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Depth costs nothing for them: whichever class is said to be, its texts are more likely to go on."""

    def going_on(late: int) -> float:
        """Log-odds of going on at the first exit, texts of class 1 above those of class 0."""
        monkeypatch.setattr(
            module, "measure_hardness", lambda needs, model, rows, *_, **__: np.where(rows.labels == late, 3.0, 1.0)
        )
        plan = make_plan(
            tmp_path / str(late), recipe="consistentee", settings={"objective.alpha": 2.0}, arguments=steps(24)
        )
        trace = load_trace(module.train(plan).folder / "traces" / "dev")
        on = trace.extras["gate"][0].astype(np.float64)
        odds = np.log(on) - np.log1p(-on)
        return float(odds[trace.labels == 1].mean() - odds[trace.labels == 0].mean())

    assert going_on(1) > going_on(0) + 0.5


def test_settings_go_to_the_phases_that_have_them() -> None:
    recipe = load_recipe("consistentee").changed({"objective.alpha": 0.08, "objective.by": "equal"})
    assert [phase.objective.settings.get("alpha") for phase in recipe.training] == [None, 0.08, 0.08]
    assert [phase.objective.settings.get("by") for phase in recipe.training] == ["equal", None, None]
    assert [phase.objective.settings.get("classify") for phase in recipe.training] == [None, False, True]
