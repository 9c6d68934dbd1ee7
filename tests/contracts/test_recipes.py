"""What every recipe must pass, for each problem type it serves. A new file in ``recipes/`` is found by itself."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.calibration.fitting import FITS
from offramp.calibration.points import read_points
from offramp.criteria import Criterion, make
from offramp.engine.engine import Engine
from offramp.engine.record import record
from offramp.engine.units import Unit
from offramp.errors import UnsupportedError
from offramp.inputs.tokens import Encoded, Tokenizer
from offramp.recipes import Recipe, available, load_recipe
from offramp.run import Run
from offramp.runtimes.base import Runtime
from offramp.traces.replay import Outcome, replay
from offramp.traces.store import load_trace
from offramp.traces.trace import Trace
from offramp.types import PROBLEM_TYPES, ProblemType

SERVED = [(name, kind) for name in available() for kind in PROBLEM_TYPES if kind in load_recipe(name).criteria]
STEPS = 12
"""Of each phase: enough for a loss to fall, few enough for all recipes to be trained in a test."""


@dataclass(frozen=True)
class Seen:
    """One phase of a training, watched from outside."""

    train: str
    """Whose parameters it says it moves."""
    before: Mapping[str, Any]
    """Every parameter, and every one after the phase."""
    after: Mapping[str, Any]
    reached: frozenset[str]
    """Parameters that the phase's loss depends on."""
    losses: tuple[float, float]
    """On the training rows at one and the same moment, before and after."""

    @property
    def moved(self) -> set[str]:
        return {name for name, value in self.before.items() if not value.equal(self.after[name])}


def belongs(name: str, train: str) -> bool:
    """What ``Phase.train`` promises, of a parameter's name."""
    in_exits = name.startswith("offramp.")
    whole = {"all": True, "heads": in_exits, "backbone": not in_exits}
    return whole.get(train, in_exits and f".{train}." in name)


def look(trainer: Any) -> tuple[float, frozenset[str]]:
    """The loss of all training rows as training computes it, without dropout, and the parameters it depends on.

    On a copy, because a loss may be more than a look (prototypes gather). Over an even and an odd step, at the end of
    the schedule: objectives that change with time are compared with themselves.
    """
    import torch

    model = copy.deepcopy(trainer.model).eval()
    model.training = True  # the model alone, not its dropouts
    rows = trainer.train_dataset
    batch = trainer.data_collator([rows[i] for i in range(len(rows))])
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in (0, 1):
            model.offramp.step, model.offramp.progress = step, 1.0
            losses.append(model(**batch).loss)
    loss = sum(losses)
    loss.backward()
    reached = frozenset(name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any()))
    return loss.item(), reached


def watching(trainer_class: Any, seen: list[Seen]) -> Any:
    """A trainer that notes what each phase does."""

    def snapshot(model: Any) -> dict[str, Any]:
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    class Watching(trainer_class):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            before, (first, reached) = snapshot(self.model), look(self)
            result = super().train(*args, **kwargs)
            seen.append(Seen(self.moves, before, snapshot(self.model), reached, (first, look(self)[0])))
            return result

    return Watching


def quick(served: tuple[str, ProblemType]) -> bool:
    """Several labels a text take another loss of the same recipe: all at once when there is time, one every time."""
    return served[1] != "multi_label_classification" or served[0] == "joint"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(served, id="-".join(served), marks=() if quick(served) else pytest.mark.long) for served in SERVED
    ],
)
def served(request: pytest.FixtureRequest) -> tuple[str, ProblemType]:
    found: tuple[str, ProblemType] = request.param
    return found


@pytest.fixture(scope="module")
def recipe(served: tuple[str, ProblemType]) -> Recipe:
    return load_recipe(served[0])


@pytest.fixture(scope="module")
def trained_and_seen(
    served: tuple[str, ProblemType],
    make_plan: Callable[..., Any],
    toy_data: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Run, list[Seen]]:
    from offramp.training import hardness
    from offramp.training import train as module

    name, kind = served
    quick = {"max_steps": STEPS}
    plan = make_plan(tmp_path_factory.mktemp("recipes") / "run", recipe=name, data=toy_data(kind), arguments=quick)
    seen: list[Seen] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardness, "STEPS", STEPS)  # of each model that votes, where the objective asks for votes
        patch.setattr(module, "ExitTrainer", watching(module.ExitTrainer, seen))
        return module.train(plan), seen


@pytest.fixture(scope="module")
def run(trained_and_seen: tuple[Run, list[Seen]]) -> Run:
    return trained_and_seen[0]


@pytest.fixture(scope="module")
def phases(trained_and_seen: tuple[Run, list[Seen]]) -> list[Seen]:
    return trained_and_seen[1]


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


@pytest.mark.parametrize("name", available())
def test_it_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.summary
    assert recipe.source
    assert recipe.training
    assert recipe.criteria
    for kind, criterion in recipe.criteria.items():
        assert criterion.problem_type == kind


def test_each_phase_lowers_its_loss(recipe: Recipe, phases: list[Seen]) -> None:
    assert len(phases) == len(recipe.training)
    for number, phase in enumerate(phases, start=1):
        before, after = phase.losses
        assert after < before, f"phase {number}"


def test_each_phase_moves_what_it_says_and_nothing_else(recipe: Recipe, phases: list[Seen]) -> None:
    for number, (seen, phase) in enumerate(zip(phases, recipe.training, strict=True), start=1):
        assert seen.train == phase.train
        own = {name for name in seen.before if belongs(name, phase.train)}
        assert own, f"phase {number} has nothing to move"
        assert seen.moved <= own, f"phase {number} ({phase.train}) moves {sorted(seen.moved - own)[:3]}"
        still = own & seen.reached - seen.moved
        assert not still, f"phase {number} ({phase.train}) leaves still {sorted(still)[:3]}"


def test_no_exit_stays_as_it_was_drawn(phases: list[Seen]) -> None:
    moved = set().union(*(phase.moved for phase in phases))
    assert {name for name in phases[-1].before if name.startswith("offramp.")} <= moved


def test_save_and_load_change_nothing(run: Run, trace: Trace, runtime: Runtime, texts: list[Encoded]) -> None:
    """The trace was recorded from the model in memory, before it was ever loaded."""
    again = record(runtime, texts, pad_token=0, batch_size=32, id2label=run.id2label)
    assert again.extras.keys() == trace.extras.keys()
    np.testing.assert_array_equal(again.logits, trace.logits)
    for name, values in trace.extras.items():
        np.testing.assert_array_equal(again.extras[name], values)


def test_exits_say_different_things(recipe: Recipe, trace: Trace) -> None:
    answering = len(recipe.members) + 1 if recipe.members else 3 if recipe.exits == "all" else 1
    assert trace.num_exits == answering
    assert np.isfinite(trace.logits).all()
    for one, other in zip(trace.logits[:-1], trace.logits[1:], strict=True):
        assert not np.allclose(one, other)


def compared(trace: Trace, criterion: Criterion) -> np.ndarray[Any, Any]:
    """Every number that an early exit holds against the criterion's fractional knob."""
    state = criterion.start(np.arange(trace.num_units))
    knobs = {name: np.full(trace.num_units, knob.default) for name, knob in criterion.knobs.items()}
    found = []
    for e, stage in enumerate(trace.stages[:-1]):
        found.append(np.asarray(criterion.compared(stage, trace.output(e), state), dtype=np.float64))
        _, state = criterion.step(stage, trace.output(e), state, knobs)
    return np.concatenate(found)


def gaps(values: np.ndarray[Any, Any], count: int) -> list[float]:
    """Middles of the widest gaps between values: no rounding can carry a value across."""
    ordered = np.unique(values[np.isfinite(values)])
    widest = np.argsort(np.diff(ordered))[-count:]
    return sorted(float((ordered[i] + ordered[i + 1]) / 2) for i in widest)


def values_of(criterion: Criterion, trace: Trace, name: str) -> list[float]:
    """Values of one knob that make a difference on this trace, from the slowest to the fastest."""
    knob = criterion.knobs[name]
    if knob.integer:
        values = [float(n) for n in range(math.ceil(knob.low), math.ceil(knob.low) + 4)]
    else:
        values = gaps(compared(trace, criterion), 12) if trace.num_exits > 1 else [knob.default]
    return values if knob.faster == "up" else values[::-1]


Points = dict[tuple[float, ...], Outcome]


@pytest.fixture(scope="module")
def outcomes(recipe: Recipe, trace: Trace) -> Points:
    """Values of all knobs, in the criterion's order -> who left where: every combination."""
    criterion = recipe.criterion(trace.problem_type)
    grid = product(*(values_of(criterion, trace, name) for name in criterion.knobs))
    return {values: replay(trace, criterion, dict(zip(criterion.knobs, values, strict=True))) for values in grid}


def spread(outcomes: Points, count: int) -> list[tuple[float, ...]]:
    """So many points, no two with the same exits, from slow to fast."""
    distinct = {outcome.exits.tobytes(): values for values, outcome in outcomes.items()}
    ordered = sorted(distinct.values(), key=lambda values: -outcomes[values].exits.mean())
    places = np.linspace(0, len(ordered) - 1, count + 2)[1:-1].round().astype(int)
    return [ordered[i] for i in dict.fromkeys(places.tolist())]


@pytest.mark.parametrize(("max_rows", "every"), [(1, 4), (32, 1)])
def test_the_engine_equals_the_replay(
    recipe: Recipe, trace: Trace, outcomes: Points, runtime: Runtime, texts: list[Encoded], max_rows: int, every: int
) -> None:
    criterion = recipe.criterion(trace.problem_type)
    chosen = range(0, len(texts), every)
    for values in spread(outcomes, 2):
        knobs = dict(zip(criterion.knobs, values, strict=True))
        engine = Engine(runtime, criterion, pad_token=0, max_rows=max_rows)
        engine.add([Unit(i, texts[i]) for i in chosen], knobs)
        finished = {}
        while engine.busy:
            finished.update((unit.id, unit) for unit in engine.step())
        expected = outcomes[values]
        assert [finished[i].exit_layer for i in chosen] == trace.layers[expected.exits[chosen]].tolist(), knobs
        answers = np.stack([finished[i].answer for i in chosen])
        np.testing.assert_allclose(answers, expected.answers[chosen], atol=2e-5, rtol=1e-5)


def test_the_host_need_not_look_before_it_is_told(
    recipe: Recipe, trace: Trace, runtime: Any, texts: list[Encoded], nowhere: Callable[[Any], Any]
) -> None:
    """On a GPU each look would have to wait until all that is queued is done."""
    engine = Engine(nowhere(runtime.model), recipe.criterion(trace.problem_type), pad_token=0, max_rows=8)
    finished = list(engine.run(Unit(i, text) for i, text in enumerate(texts)))
    assert sorted(one.id for one in finished) == list(range(len(texts)))
    assert trace.num_exits == 1 or len({one.exit_index for one in finished}) > 1


def test_knobs_are_monotone(recipe: Recipe, trace: Trace, outcomes: Points) -> None:
    """Each of them, wherever the others stand."""
    for place, name in enumerate(recipe.criterion(trace.problem_type).knobs):
        lines: dict[tuple[float, ...], list[np.ndarray[Any, Any]]] = {}
        for values, outcome in outcomes.items():
            lines.setdefault(values[:place] + values[place + 1 :], []).append(outcome.exits)
        for line in lines.values():
            for slower, faster in pairwise(line):
                assert (faster <= slower).all(), name


def test_texts_leave_early(recipe: Recipe, trace: Trace, outcomes: Points) -> None:
    """Somewhere on the way from slow to fast some leave early, and some do not."""
    if recipe.exits == "last":
        pytest.skip("has no early exits")
    left = set(np.concatenate([outcome.exits for outcome in outcomes.values()]).tolist())
    assert min(left) < trace.num_exits - 1
    assert max(left) == trace.num_exits - 1


def test_the_default_operating_point_is_the_recipes_criterion(recipe: Recipe, run: Run, trace: Trace) -> None:
    point = read_points(run.folder)[0]
    criterion = recipe.criterion(run.problem_type)
    if (fit := recipe.learns(run.problem_type)) is not None:
        unfitted, criterion = criterion, FITS[fit](trace, criterion)
        assert criterion != unfitted
    assert make(point.criterion, **point.settings) == criterion
    knobs: Mapping[str, float] = point.knobs
    assert knobs.keys() <= criterion.knobs.keys()
    layers = trace.layers[replay(trace, criterion, knobs).exits]
    assert point.measured["layer_speedup"] == pytest.approx(trace.num_layers / layers.mean())


@pytest.mark.parametrize("kind", PROBLEM_TYPES)
def test_what_it_does_not_serve_it_refuses_and_says_who_does(
    kind: ProblemType, make_plan: Callable[..., Any], toy_data: Callable[[str], str], tmp_path: Path
) -> None:
    from offramp.training.train import train

    able = [name for name in available() if kind in load_recipe(name).criteria]
    assert {"joint", "plain"} <= set(able)
    for name in set(available()) - set(able):
        with pytest.raises(UnsupportedError, match=f"the data is {kind}") as refused:
            train(make_plan(tmp_path / "run", recipe=name, data=toy_data(kind)))
        assert ", ".join(able) in str(refused.value)
    assert not list(tmp_path.iterdir())
