"""CascadeBERT: two complete models in one run folder, and only the rows that need the large one reach it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from offramp.criteria.confidence import Confidence
from offramp.criteria.depth import Depth
from offramp.engine.engine import Engine
from offramp.engine.record import record
from offramp.engine.units import Unit
from offramp.errors import KnobError
from offramp.inputs.tokens import Encoded, Tokenizer
from offramp.model.modeling import load_early_exit
from offramp.recipes import load_recipe
from offramp.run import Run
from offramp.runtimes.torch import TorchRuntime
from offramp.traces.curves import measure
from offramp.traces.replay import replay, scores
from offramp.traces.store import load_trace
from offramp.traces.trace import Trace
from offramp.training import hardness
from offramp.training import train as module

MakePlan = Callable[..., Any]


@pytest.fixture(scope="module")
def asked() -> list[np.ndarray[Any, Any] | None]:
    """The hardness of the rows that each training was given."""
    return []


@pytest.fixture(scope="module")
def run(make_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory, asked: list[np.ndarray[Any, Any] | None]) -> Run:
    trainer = module.ExitTrainer

    def made(**given: Any) -> Any:
        asked.append(given["train_dataset"].hardness)
        return trainer(**given)

    out = tmp_path_factory.mktemp("cascade") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ExitTrainer", made)
        patch.setattr(hardness, "STEPS", 20)
        return module.train(make_plan(out, recipe="cascadebert"))


@pytest.fixture(scope="module")
def runtime(run: Run) -> TorchRuntime:
    return TorchRuntime.from_folder(run.folder, device="cpu")


@pytest.fixture(scope="module")
def texts(run: Run, toy_data: Callable[[str], str]) -> list[Encoded]:
    lines = (Path(toy_data(run.problem_type)) / "dev.jsonl").read_text().splitlines()
    return Tokenizer.from_folder(run.folder, max_length=run.max_length).encode([json.loads(s)["text"] for s in lines])


@pytest.fixture(scope="module")
def trace(run: Run) -> Trace:
    return load_trace(run.folder / "traces" / "dev")


def middle(trace: Trace) -> float:
    """A threshold at which some leave with the small model and some go on: in the widest gap around the middle."""
    ordered = np.sort(scores(trace, Confidence())[0])[12:37]
    place = int(np.diff(ordered).argmax())
    return float((ordered[place] + ordered[place + 1]) / 2)


def answered(engine: Engine, texts: list[Encoded], knobs: Any = None) -> list[Any]:
    engine.add([Unit(i, text) for i, text in enumerate(texts)], knobs)
    done = {}
    while engine.busy:
        done.update((unit.id, unit) for unit in engine.step())
    return [done[i] for i in range(len(texts))]


def test_a_model_of_one_layer_stands_before_the_one_of_three(run: Run, trace: Trace) -> None:
    model = load_early_exit(run.folder)
    assert model.settings.members == (1,)
    assert trace.layers.tolist() == [1, 4]
    assert (trace.num_layers, trace.full_layers) == (3, 3)
    small = {name for name in model.state_dict() if name.startswith("offramp.")}
    assert all(name.startswith("offramp.members.0.") for name in small)
    assert "offramp.members.0.bert.encoder.layer.0.output.dense.weight" in small
    assert not any(".layer.1." in name for name in small)


def test_it_was_trained_with_difficulties(run: Run, asked: list[np.ndarray[Any, Any] | None]) -> None:
    (found,) = asked
    assert found is not None
    assert found.shape == (96,)
    assert set(found.tolist()) <= {0.0, 1.0}


def test_the_small_model_is_less_sure_of_hard_rows(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said that one class is hard, it is less sure of its texts than the same training without the term."""
    hard = 1  # the class
    monkeypatch.setattr(
        module, "measure_hardness", lambda needs, model, rows, *_, **__: (rows.labels == hard).astype(np.float64)
    )
    apart = {}
    for beta in (0.0, 5.0):
        out = tmp_path / f"beta-{beta}"
        trace = load_trace(
            module.train(make_plan(out, recipe="cascadebert", settings={"objective.beta": beta})).folder
            / "traces"
            / "dev"
        )
        doubt = scores(trace, Confidence())[0]
        apart[beta] = doubt[trace.labels == hard].mean() - doubt[trace.labels != hard].mean()
    assert apart[5.0] > apart[0.0] + 0.02


@pytest.mark.parametrize("max_rows", [1, 32])
def test_the_large_model_computes_only_the_rows_that_reach_it(
    runtime: TorchRuntime, trace: Trace, texts: list[Encoded], max_rows: int
) -> None:
    knobs = {"threshold": middle(trace)}
    expected = replay(trace, Confidence(), knobs)
    engine = Engine(runtime, Confidence(), pad_token=0, max_rows=max_rows)
    done = answered(engine, texts, knobs)
    assert [unit.exit_layer for unit in done] == trace.layers[expected.exits].tolist()
    np.testing.assert_allclose(np.stack([unit.answer for unit in done]), expected.answers, atol=2e-5, rtol=1e-5)
    reached = expected.exits == 1
    assert 0 < reached.sum() < len(texts)
    lengths = np.array([len(text) for text in texts])
    assert engine.counts.rows.tolist() == [len(texts), reached.sum()]
    assert engine.counts.tokens.tolist() == [lengths.sum(), lengths[reached].sum()]


def test_where_nobody_is_sure_enough_all_reach_the_large_model_and_pay_for_both(
    runtime: TorchRuntime, trace: Trace, texts: list[Encoded]
) -> None:
    done = answered(Engine(runtime, Confidence(), pad_token=0), texts, {"threshold": 0.0})
    assert {(unit.exit_layer, unit.layers_executed) for unit in done} == {(4, 4)}
    assert measure(trace, replay(trace, Confidence(), {"threshold": 0.0}))["layer_speedup"] == pytest.approx(3 / 4)
    assert measure(trace, replay(trace, Confidence(), {"threshold": 1.01}))["layer_speedup"] == pytest.approx(3)


def test_at_full_depth_the_large_model_runs_alone_and_is_what_transformers_loads(
    run: Run, runtime: TorchRuntime, trace: Trace, texts: list[Encoded]
) -> None:
    engine = Engine(runtime, Depth(), pad_token=0)
    done = answered(engine, texts)
    assert {unit.layers_executed for unit in done} == {3}
    assert engine.counts.rows.tolist() == [0, len(texts)]
    plain = AutoModelForSequenceClassification.from_pretrained(run.folder).eval()
    for text, unit, recorded in zip(texts, done, trace.logits[-1], strict=True):
        with torch.no_grad():
            logits = plain(
                input_ids=torch.from_numpy(text.tokens)[None].long(),
                token_type_ids=torch.from_numpy(text.token_types)[None].long(),
            ).logits[0]
        np.testing.assert_allclose(unit.answer, logits, atol=2e-5)
        np.testing.assert_allclose(recorded, logits, atol=2e-5)


def test_half_precision_reaches_both_models(run: Run, trace: Trace, texts: list[Encoded]) -> None:
    half = TorchRuntime.from_folder(run.folder, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    again = record(half, texts, pad_token=0, id2label=run.id2label)
    assert (again.logits.argmax(-1) == trace.logits.argmax(-1)).mean() > 0.9


def test_save_and_load_change_nothing(runtime: TorchRuntime, trace: Trace, texts: list[Encoded], run: Run) -> None:
    again = record(runtime, texts, pad_token=0, batch_size=32, id2label=run.id2label)
    np.testing.assert_array_equal(again.logits, trace.logits)
    assert again.full_layers == 3


@pytest.mark.parametrize(("num_layers", "members"), [(12, (2,)), (6, (1,)), (24, (4,)), (2, (1,))])
def test_a_sixth_of_any_depth(num_layers: int, members: tuple[int, ...], make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "run", recipe="cascadebert")
    assert module.places(plan, load_recipe("cascadebert"), num_layers) == (None, members)


def test_exits_says_how_many_layers_each_has(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardness, "STEPS", 2)
    plan = make_plan(tmp_path / "run", recipe="cascadebert", exits=(1, 2), arguments={"max_steps": 2})
    folder = module.train(plan).folder
    assert load_trace(folder / "traces" / "dev").layers.tolist() == [1, 3, 6]
    for exits, message in (((), "how many layers each has"), ((3,), "layers below 3")):
        with pytest.raises(KnobError, match=message):
            module.train(replace(plan, exits=exits, out=tmp_path / "other"))
