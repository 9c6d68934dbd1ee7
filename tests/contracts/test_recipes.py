"""What every recipe must pass, for each problem type it serves. A new file in ``recipes/`` is found by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.calibration.points import read_points
from offramp.criteria import Criterion, Scored, make
from offramp.engine.engine import Engine
from offramp.engine.record import record
from offramp.engine.units import Unit
from offramp.inputs.tokens import Encoded, Tokenizer
from offramp.recipes import Recipe, available, load_recipe
from offramp.run import Run
from offramp.runtimes.base import Runtime
from offramp.traces.replay import replay, scores
from offramp.traces.store import load_trace
from offramp.traces.trace import Trace
from offramp.types import PROBLEM_TYPES, ProblemType

SERVED = [(name, kind) for name in available() for kind in PROBLEM_TYPES if kind in load_recipe(name).criteria]


def test_every_recipe_says_what_it_is() -> None:
    for name in available():
        recipe = load_recipe(name)
        assert recipe.summary, name
        assert recipe.source, name
        assert recipe.training, name
        assert recipe.criteria, name
        for kind, criterion in recipe.criteria.items():
            assert criterion.problem_type == kind, name


@pytest.fixture(scope="module", params=SERVED, ids=lambda served: "-".join(served))
def served(request: pytest.FixtureRequest) -> tuple[str, ProblemType]:
    found: tuple[str, ProblemType] = request.param
    return found


@pytest.fixture(scope="module")
def recipe(served: tuple[str, ProblemType]) -> Recipe:
    return load_recipe(served[0])


@pytest.fixture(scope="module")
def run(
    served: tuple[str, ProblemType],
    make_plan: Callable[..., Any],
    toy_data: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    from offramp.training.train import train

    name, kind = served
    out = tmp_path_factory.mktemp("recipes") / "run"
    return train(make_plan(out, recipe=name, data=toy_data(kind), arguments={"eval_steps": 12, "save_steps": 12}))


@pytest.fixture(scope="module")
def trace(run: Run) -> Trace:
    """Of dev, as training recorded it."""
    return load_trace(run.folder / "traces" / "dev.safetensors")


@pytest.fixture(scope="module")
def runtime(run: Run) -> Runtime:
    from offramp.runtimes.torch import TorchRuntime

    return TorchRuntime.from_folder(run.folder, device="cpu")


@pytest.fixture(scope="module")
def texts(run: Run, toy_data: Callable[[str], str]) -> list[Encoded]:
    lines = (Path(toy_data(run.problem_type)) / "dev.jsonl").read_text().splitlines()
    return Tokenizer.from_folder(run.folder, max_length=run.max_length).encode([json.loads(s)["text"] for s in lines])


def test_a_few_steps_lower_the_loss(run: Run) -> None:
    history = json.loads((run.folder / "training.json").read_text())["history"]
    for phase in {entry["phase"] for entry in history}:
        losses = [entry["loss"] for entry in history if entry["phase"] == phase and "loss" in entry]
        assert len(losses) == 24
        assert np.mean(losses[-6:]) < np.mean(losses[:6]), f"phase {phase}"


def test_save_and_load_change_nothing(run: Run, trace: Trace, runtime: Runtime, texts: list[Encoded]) -> None:
    """The trace was recorded from the model in memory, before it was ever loaded."""
    again = record(runtime, texts, pad_token=0, batch_size=32, id2label=run.id2label)
    assert again.extras.keys() == trace.extras.keys()
    np.testing.assert_array_equal(again.logits, trace.logits)
    for name, values in trace.extras.items():
        np.testing.assert_array_equal(again.extras[name], values)


def test_exits_say_different_things(recipe: Recipe, trace: Trace) -> None:
    assert trace.num_exits == (3 if recipe.exits == "all" else 1)
    assert np.isfinite(trace.logits).all()
    for one, other in zip(trace.logits[:-1], trace.logits[1:], strict=True):
        assert not np.allclose(one, other)


def gaps(values: np.ndarray[Any, Any], count: int) -> list[float]:
    """Middles of the widest gaps between values: no rounding can carry a value across."""
    ordered = np.unique(values[np.isfinite(values)].astype(np.float64))
    widest = np.argsort(np.diff(ordered))[-count:]
    return sorted(float((ordered[i] + ordered[i + 1]) / 2) for i in widest)


def settings_of(criterion: Criterion, trace: Trace, name: str) -> list[float]:
    """Values of one knob that make a difference on this trace, rising."""
    knob = criterion.knobs[name]
    if knob.integer:
        return [float(n) for n in range(math.ceil(knob.low), 5)]
    if isinstance(criterion, Scored):
        return gaps(scores(trace, criterion)[:-1], 12) if trace.num_exits > 1 else [knob.default]
    if name == "delta":
        return gaps(np.abs(np.diff(trace.logits[..., 0], axis=0)), 12) if trace.num_exits > 1 else [knob.default]
    # Odd numbers that no score equals by chance.
    low, high = max(knob.low, -10.0), min(knob.high, 10.0)
    return [low + (high - low) * share for share in (0.0317, 0.2213, 0.4871, 0.7129, 0.9613)]


def points(criterion: Criterion, trace: Trace) -> list[dict[str, float]]:
    """Every knob over its values, the others at their defaults."""
    return [{name: value} for name in criterion.knobs for value in settings_of(criterion, trace, name)]


@pytest.mark.parametrize("max_rows", [1, 32])
def test_the_engine_equals_the_replay(
    recipe: Recipe, run: Run, trace: Trace, runtime: Runtime, texts: list[Encoded], max_rows: int
) -> None:
    criterion = recipe.criterion(run.problem_type)
    every = points(criterion, trace)
    for knobs in every[:: max(1, len(every) // 4)]:
        expected = replay(trace, criterion, knobs)
        engine = Engine(runtime, criterion, pad_token=0, max_rows=max_rows)
        engine.add([Unit(i, text) for i, text in enumerate(texts)], knobs)
        finished = {}
        while engine.busy:
            finished.update((unit.id, unit) for unit in engine.step())
        exits = [finished[i].exit_layer for i in range(len(texts))]
        assert exits == trace.layers[expected.exits].tolist(), knobs
        answers = np.stack([finished[i].answer for i in range(len(texts))])
        np.testing.assert_allclose(answers, expected.answers, atol=2e-5, rtol=1e-5)


def test_knobs_are_monotone(recipe: Recipe, trace: Trace) -> None:
    criterion = recipe.criterion(trace.problem_type)
    for name, knob in criterion.knobs.items():
        values = settings_of(criterion, trace, name)
        exits = [replay(trace, criterion, {name: value}).exits for value in values]
        if knob.faster == "down":
            exits.reverse()
        for slower, faster in pairwise(exits):
            assert (faster <= slower).all(), name


def test_texts_leave_early(recipe: Recipe, trace: Trace) -> None:
    """Somewhere on its way from slow to fast: at every exit but, where the rule compares exits, the first."""
    if recipe.exits == "last":
        pytest.skip("has no early exits")
    criterion = recipe.criterion(trace.problem_type)
    left = {int(e) for knobs in points(criterion, trace) for e in replay(trace, criterion, knobs).exits}
    assert left >= set(range(1, trace.num_exits))


def test_the_default_operating_point_is_the_recipes_criterion(recipe: Recipe, run: Run, trace: Trace) -> None:
    point = read_points(run.folder)[0]
    criterion = recipe.criterion(run.problem_type)
    assert make(point.criterion, **point.settings) == criterion
    knobs: Mapping[str, float] = point.knobs
    assert knobs.keys() <= criterion.knobs.keys()
    layers = trace.layers[replay(trace, criterion, knobs).exits]
    assert point.measured["layer_speedup"] == pytest.approx(trace.num_layers / layers.mean())


def test_what_it_does_not_serve_it_refuses(
    make_plan: Callable[..., Any], toy_data: Callable[[str], str], tmp_path: Path
) -> None:
    from offramp.errors import UnsupportedError
    from offramp.training.train import train

    for name in available():
        for kind in set(PROBLEM_TYPES) - set(load_recipe(name).criteria):
            with pytest.raises(UnsupportedError, match=f"the data is {kind}"):
                train(make_plan(tmp_path / "run", recipe=name, data=toy_data(kind)))
    assert not list(tmp_path.iterdir())
