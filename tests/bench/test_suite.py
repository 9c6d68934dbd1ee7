from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offramp.bench.suite import Cell, Suite, load_suite, select
from offramp.bench.suite_results import Results
from offramp.bench.suite_run import Places, run_suite
from offramp.errors import DataError, KnobError, RunError
from offramp.training.lock import only_training

TOML = """
encoder = "tiny"
targets = [1.2, 2.0]
splits = 3
resamples = 20

[arguments]
max_steps = 8
learning_rate = 5e-3
per_device_train_batch_size = 16
bf16 = false
disable_tqdm = true
eval_strategy = "no"
save_steps = 4
load_best_model_at_end = false

[tasks.toy]
folder = "single_label_classification"
train_rows = 64

[tasks.gone]
get = "ask for it"

[recipes.joint]
settings = { "head.null_space" = true }

[recipes.energy]
recipe = "joint"
settings = { "head.null_space" = true }
criterion = "energy"

[recipes.plain-2]
recipe = "plain"
num_layers = 2

[[tiers]]
name = "A"
recipes = ["joint", "plain"]
seeds = { toy = 2, gone = 1 }

[[tiers]]
name = "B"
recipes = ["energy", "no_such_recipe", "plain-2"]
seeds = { toy = 1 }
"""

Train = Callable[[Any], None]


class Killed(BaseException):
    """As good as kill -9 for whoever catches Exceptions only."""


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    path = tmp_path / "mine.toml"
    path.write_text(TOML, encoding="utf-8")
    return load_suite(path)


@pytest.fixture
def places(tmp_path: Path, tiny_encoder: str, toy_data: Callable[[str], str]) -> Places:
    root = Path(toy_data("single_label_classification")).parent
    return Places(data=root, model=tiny_encoder, work=tmp_path / "work", results=tmp_path / "results")


class Copying:
    """Stands for ``train``: puts a run folder that is there already; counts, and dies where it is told to."""

    def __init__(self, run: Path, dies_at: int | None = None, after: bool = False) -> None:
        self.plans: list[Any] = []
        self.run, self.dies_at, self.after = run, dies_at, after

    def __call__(self, plan: Any) -> None:
        self.plans.append(plan)
        dies = len(self.plans) == self.dies_at
        if not dies or self.after:
            shutil.copytree(self.run, plan.out)
        if dies:
            raise Killed


class Counting:
    """``train`` itself, counted."""

    def __init__(self) -> None:
        self.plans: list[Any] = []

    def __call__(self, plan: Any) -> None:
        from offramp.training.train import train

        self.plans.append(plan)
        train(plan)


def quiet(_: str) -> None: ...


def done(cells: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    return [(cell["task"], cell["recipe"], cell["seed"]) for cell in cells if cell["status"] == "done"]


# The suite as data


def test_seed_0_of_every_tier_comes_first(suite: Suite) -> None:
    assert [(cell.task, cell.recipe, cell.seed) for cell in suite.cells()] == [
        ("toy", "joint", 0), ("toy", "plain", 0), ("gone", "joint", 0), ("gone", "plain", 0),
        ("toy", "energy", 0), ("toy", "no_such_recipe", 0), ("toy", "plain-2", 0),
        ("toy", "joint", 1), ("toy", "plain", 1),
    ]  # fmt: skip


def test_what_shares_a_training_has_one_key(suite: Suite) -> None:
    keys = {cell: suite.key(cell) for cell in suite.cells() if cell.recipe != "no_such_recipe"}
    assert keys[Cell("toy", "joint", 0)] == keys[Cell("toy", "energy", 0)]
    others = set(keys) - {Cell("toy", "energy", 0)}
    assert len({keys[cell] for cell in others}) == len(others)


def test_the_key_changes_with_what_is_trained(suite: Suite, tmp_path: Path) -> None:
    cell = Cell("toy", "joint", 0)
    for before, after in (
        ("learning_rate = 5e-3", "learning_rate = 1e-3"),
        ("train_rows = 64", "train_rows = 65"),
        ('encoder = "tiny"', 'encoder = "other"'),
        ('{ "head.null_space" = true }', "{}"),
        ("[recipes.energy]", 'pooling = "attention"\n[recipes.energy]'),
        ("[recipes.energy]", "exit_epochs = 3.0\n[recipes.energy]"),
        ("[recipes.energy]", 'exit_epochs = "recipe"\n[recipes.energy]'),
    ):
        path = tmp_path / "changed.toml"
        path.write_text(TOML.replace(before, after), encoding="utf-8")
        assert load_suite(path).key(cell) != suite.key(cell), after
    path.write_text(TOML.replace("splits = 3", "splits = 4").replace('"A"', '"C"'), encoding="utf-8")
    assert load_suite(path).key(cell) == suite.key(cell)


def test_a_field_that_recipes_gain_later_changes_no_key(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import dataclass, fields

    import offramp.bench.suite as module
    from offramp.recipes import Recipe, load_recipe

    @dataclass(frozen=True)
    class Later(Recipe):
        novelty: int = 3

    def later(name: str, novelty: int = 3) -> Any:
        recipe = load_recipe(name)
        return Later(**{f.name: getattr(recipe, f.name) for f in fields(recipe)}, novelty=novelty)

    cell = Cell("toy", "joint", 0)
    before = suite.key(cell)
    monkeypatch.setattr(module, "load_recipe", later)
    assert suite.key(cell) == before
    monkeypatch.setattr(module, "load_recipe", lambda name: later(name, 4))
    assert suite.key(cell) != before


def test_what_a_recipe_sets_for_itself_is_left_to_it(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    import offramp.bench.suite as module
    from offramp.recipes import load_recipe

    def own(name: str) -> Any:
        recipe = load_recipe(name)
        return replace(recipe, training=tuple(replace(p, arguments={"learning_rate": 1.0}) for p in recipe.training))

    cell = Cell("toy", "joint", 1)
    assert suite.plan_arguments(cell)["learning_rate"] == 5e-3
    assert suite.plan_arguments(cell)["seed"] == 1
    monkeypatch.setattr(module, "load_recipe", own)
    assert "learning_rate" not in suite.plan_arguments(cell)
    assert suite.plan_arguments(cell)["max_steps"] == 8


def test_to_json_and_back(suite: Suite) -> None:
    assert Suite.from_json(json.loads(json.dumps(suite.to_json()))) == suite


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("splits = 3", "halves = 3", "'halves'"),
        ("train_rows = 64", "rows = 64", "task toy has 'rows'"),
        ("num_layers = 2", "layers = 2", "recipe plain-2 has 'layers'"),
        ("seeds = { toy = 1 }", "seeds = { toys = 1 }", "no task is called that"),
        ("seeds = { toy = 1 }", "seeds = { toy = -1 }", "0 or more"),
        ("seeds = { toy = 1 }", "", "missing"),
        ("targets = [1.2, 2.0]", "targets = [0.5]", "1 or more"),
        ('encoder = "tiny"', "", "missing"),
        ("splits = 3", "splits = ", "not TOML"),
        ("train_rows = 64", 'problem_type = "ranking"', "problem_type must be"),
        ("splits = 3", "splits = 3\nunions = 3", "unions are lists of tasks"),
        ("splits = 3", 'splits = 3\nunions = ["toy"]', "unions are lists of tasks"),
        ("splits = 3", 'splits = 3\nunions = [["toys"]]', "unions name the task 'toys'"),
        ("splits = 3", "splits = 3\nunions = [[]]", "each of them once"),
        ("splits = 3", 'splits = 3\nunions = [["toy", "toy"]]', "each of them once"),
        ("num_layers = 2", 'exit_epochs = "many"', 'recipe plain-2: exit_epochs is a number or "recipe"'),
    ],
)
def test_a_suite_that_says_nonsense(tmp_path: Path, before: str, after: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(TOML.replace(before, after), encoding="utf-8")
    with pytest.raises(DataError, match=says):
        load_suite(path)


def test_a_suite_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no suite"):
        load_suite(tmp_path / "none.toml")


def test_only_some(suite: Suite) -> None:
    assert select(suite.cells(), tasks=["toy"], recipes=["plain"]) == [Cell("toy", "plain", 0), Cell("toy", "plain", 1)]
    with pytest.raises(KnobError, match="no recipe 'plane'"):
        select(suite.cells(), recipes=["plane"])


def test_the_suite_of_the_benchmarks_reads_and_shares() -> None:
    suite = load_suite(Path(__file__).parents[2] / "benchmarks" / "suite.toml")
    assert len(set(suite.cells())) == len(suite.cells())

    def key(recipe: str) -> str:
        return suite.key(Cell("mrpc", recipe, 0))

    assert key("joint") == key("nsp") == key("energy")
    assert key("joint-depth") == key("pabee") == key("fpabee") == key("pcee_bert")


# Running it


def test_exits_learn_alone_as_a_row_says(suite: Suite, places: Places, trained: Path) -> None:
    """Not at all, so many epochs, or as the recipe says (which is what a plan without a number means)."""
    for given, expected in ((0.0, 0.0), (2.5, 2.5), ("recipe", None)):
        entry = replace(suite.entries["joint"], exit_epochs=given)
        train = Copying(trained)
        one = replace(suite, entries={**suite.entries, "joint": entry})
        run_suite(one, replace(places, results=places.results / str(given)), recipes=["joint"], train=train, say=quiet)
        assert [plan.exit_epochs for plan in train.plans] == [expected] * 2


def test_trains_each_model_once_and_says_what_it_cannot(suite: Suite, places: Places) -> None:
    train = Counting()
    cells = run_suite(suite, places, train=train, say=quiet)
    assert done(cells) == [
        ("toy", "joint", 0), ("toy", "plain", 0), ("toy", "energy", 0), ("toy", "plain-2", 0), ("toy", "joint", 1),
        ("toy", "plain", 1),
    ]  # fmt: skip
    assert len(train.plans) == 5  # energy shares joint's
    assert {plan.pooling for plan in train.plans} == {"backbone"}  # as the encoder was pretrained, whatever recipes say
    reasons = {(cell["task"], cell["recipe"]): cell["reason"] for cell in cells if cell["status"] != "done"}
    assert "gone/train.jsonl" in reasons["gone", "joint"]
    assert "ask for it" in reasons["gone", "joint"]
    assert "no recipe is called 'no_such_recipe'" in reasons["toy", "no_such_recipe"]
    for cell in cells:
        assert {"task", "recipe", "seed", "commit", "machine", "versions"} <= set(cell)
        if cell["status"] == "done":
            assert cell["rows"] == {"train": 64, "dev": 48}
            assert cell["seconds"] > 0
            assert (places.results / cell["trace"]).is_file()
    assert list(places.work.glob("toy-*")) == []
    assert Results(places.results).trace("toy", suite.key(Cell("toy", "plain-2", 0))).num_layers == 2

    again = Counting()
    assert done(run_suite(suite, places, train=again, say=quiet)) == done(cells)
    assert again.plans == []


@pytest.mark.parametrize("after", [False, True], ids=["before training ended", "before its trace was kept"])
def test_killed_in_the_second_cell(suite: Suite, places: Places, trained: Path, after: bool) -> None:
    with pytest.raises(Killed):
        run_suite(suite, places, recipes=["joint", "plain"], train=Copying(trained, 2, after), say=quiet)
    rest = Copying(trained)
    cells = run_suite(suite, places, recipes=["joint", "plain"], train=rest, say=quiet)
    assert done(cells) == [
        ("toy", "joint", 0), ("toy", "plain", 0), ("toy", "energy", 0), ("toy", "joint", 1), ("toy", "plain", 1),
    ]  # fmt: skip
    # What was trained to its end is not trained again.
    assert [plan.out.name for plan in rest.plans] == [
        f"toy-{suite.key(Cell('toy', *cell))}"
        for cell in ([] if after else [("plain", 0)]) + [("joint", 1), ("plain", 1)]
    ]
    assert len(Results(places.results).records()) == 4


def test_a_half_trained_cell_goes_on_from_its_checkpoint(
    suite: Suite, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offramp.training import trainer

    steps: list[int] = []
    step = trainer.ExitTrainer.training_step

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(steps) == 6 and self.state.global_step == 6:
            steps.append(-1)
            raise Killed
        steps.append(self.state.global_step)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer.ExitTrainer, "training_step", counted)
    with pytest.raises(Killed):
        run_suite(suite, places, recipes=["joint"], tasks=["toy"], say=quiet)
    lines: list[str] = []
    cells = run_suite(suite, places, recipes=["joint"], tasks=["toy"], say=lines.append)
    # Killed in step 6, the checkpoint was of step 4; then seed 1.
    assert steps == [0, 1, 2, 3, 4, 5, -1, 4, 5, 6, 7, *range(8)]
    assert [cell["pieces"] for cell in cells if cell["status"] == "done" and cell["recipe"] == "joint"] == [2, 1]


def test_checkpoints_of_other_data_are_not_gone_on_with(
    suite: Suite, places: Places, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        run_suite(suite, places, tasks=["toy"], recipes=["plain"], train=_begins, say=quiet)
    shutil.copytree(places.data, tmp_path / "moved")
    moved = Places(data=tmp_path / "moved", model=places.model, work=places.work, results=places.results)
    assert ("toy", "plain", 0) in done(run_suite(suite, moved, tasks=["toy"], recipes=["plain"], say=quiet))
    assert "from its beginning" in caplog.text


def test_cells_of_another_encoder_or_of_other_rows_are_not_this_suites(
    suite: Suite, places: Places, trained: Path, tmp_path: Path
) -> None:
    run_suite(suite, places, train=Copying(trained), say=quiet)
    encoder, data = tmp_path / "encoder", tmp_path / "data"
    shutil.copytree(str(places.model), encoder)
    shutil.copytree(places.data / "single_label_classification", data / "single_label_classification")
    assert done(run_suite(suite, replace(places, model=str(encoder), data=data), train=Copying(trained), say=quiet))
    config = encoder / "config.json"
    config.write_text(config.read_text() + "\n")
    never = Copying(trained)
    with pytest.raises(RunError, match=r"of other encoder .* give another folder for the results, or the encoder"):
        run_suite(suite, replace(places, model=str(encoder)), train=never, say=quiet)
    with (data / "single_label_classification" / "dev.jsonl").open("a") as file:
        file.write(json.dumps({"text": "one more gem", "label": "good"}) + "\n")
    with pytest.raises(RunError, match=r"of other data .* or the data that they are of"):
        run_suite(suite, replace(places, data=data), train=never, say=quiet)
    assert not never.plans


def test_a_cell_that_another_process_trains_is_left_to_it(suite: Suite, places: Places) -> None:
    begun: list[Path] = []
    key = suite.key(Cell("toy", "plain", 0))
    lines: list[str] = []
    with only_training(places.work / f"toy-{key}"):
        cells = run_suite(
            suite, places, tasks=["toy"], recipes=["plain"], train=lambda plan: begun.append(plan.out), say=lines.append
        )
    assert key not in " ".join(path.name for path in begun)
    assert "toy / plain / seed 0: left out, another process trains it" in lines
    assert next(cell for cell in cells if cell["seed"] == 0)["reason"] == "not run yet"
    assert Results(places.results).failure("toy", key) is None


# What trainings have in common at their beginning

SHARING = """
[recipes.late]
recipe = "joint"
settings = { "head.null_space" = true }
exit_epochs = 1.0

[[tiers]]
name = "C"
recipes = ["plain", "deebert", "fastbert", "joint", "late", "branchynet"]
seeds = { toy = 1 }
"""


def test_a_first_phase_that_several_share_is_trained_once(places: Places, tmp_path: Path) -> None:
    path = tmp_path / "sharing.toml"
    path.write_text(TOML[: TOML.index("[[tiers]]")] + SHARING, encoding="utf-8")
    suite = load_suite(path)
    train = Counting()
    cells = run_suite(suite, places, train=train, say=quiet)
    assert [cell["recipe"] for cell in cells if cell["status"] == "done"] == list(suite.tiers[0].recipes)
    taken = {plan.recipe: plan.first_phase for plan in train.plans}
    assert [plan.first_phase is not None for plan in train.plans] == [False, True, True, False, True, False]
    assert taken["deebert"] == taken["fastbert"] != train.plans[4].first_phase
    results = Results(places.results)
    told = {record["recipe"]: record["first_phase"] for record in results.records()}
    assert [told[name] for name in ("plain", "joint")] == ["trained", "trained"]
    assert [told[name] for name in ("deebert", "fastbert", "late")] == ["taken over"] * 3
    last = {c.recipe: results.trace("toy", suite.key(c)).logits[-1] for c in suite.cells()}
    for name in ("deebert", "fastbert"):
        np.testing.assert_array_equal(last[name], last["plain"])  # the encoder is the plain fine-tune, to the last bit
    np.testing.assert_array_equal(last["late"], last["joint"])
    kept = {path.name for path in places.work.glob("first-phase-*")}
    assert kept == {plan.first_phase.name for plan in train.plans if plan.first_phase}  # and nothing that nobody takes
    early = {c.recipe: results.trace("toy", suite.key(c)).logits[0] for c in suite.cells() if c.recipe != "plain"}
    assert not np.array_equal(early["late"], early["joint"])  # its exits went on from there


def test_weights_of_another_training_are_not_taken_over(places: Places, trained: Path, tmp_path: Path) -> None:
    from offramp.model.modeling import load_early_exit
    from offramp.training.train import take_over

    shutil.copytree(trained, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    model = load_early_exit(trained)
    take_over(model, tmp_path / "other", "all")
    model.classifier = torch.nn.Linear(config["hidden_size"], 7)
    with pytest.raises(RunError, match=r"has no classifier\.\w+ as this model has it: it is of another training"):
        take_over(model, tmp_path / "other", "backbone")


def _begins(plan: Any) -> None:
    """Training that is killed right after its plan was written."""
    from offramp.training import train as module

    before = module.make_tokenizer

    def dies(*_: Any) -> Any:
        raise Killed

    module.make_tokenizer = dies
    try:
        module.train(plan)
    finally:
        module.make_tokenizer = before


def test_data_that_comes_later_is_picked_up(suite: Suite, places: Places, trained: Path, tmp_path: Path) -> None:
    mine = Places(data=tmp_path, model=places.model, work=places.work, results=places.results)
    assert done(run_suite(suite, mine, train=Copying(trained), say=quiet)) == []
    for name in ("train", "dev"):
        cells = run_suite(suite, mine, tasks=["gone"], recipes=["plain"], train=Copying(trained), say=quiet)
        assert f"no gone/{name}.jsonl" in cells[2]["reason"]
        (tmp_path / "gone").mkdir(exist_ok=True)
        (tmp_path / "gone" / f"{name}.jsonl").touch()
    cells = run_suite(suite, mine, tasks=["gone"], recipes=["plain"], train=Copying(trained), say=quiet)
    assert done(cells) == [("gone", "plain", 0)]


def test_a_failure_is_told_kept_and_tried_again(suite: Suite, places: Places, trained: Path) -> None:
    def breaks(plan: Any) -> None:
        raise ZeroDivisionError("what now")

    cells = run_suite(suite, places, tasks=["toy"], recipes=["joint"], train=breaks, say=quiet)
    assert cells[0]["reason"] == "ZeroDivisionError: what now"
    assert done(cells) == []
    _, stored = Results(places.results).read()
    assert stored == json.loads(json.dumps(cells))
    cells = run_suite(suite, places, tasks=["toy"], recipes=["joint"], train=Copying(trained), say=quiet)
    assert done(cells) == [("toy", "joint", 0), ("toy", "energy", 0), ("toy", "joint", 1)]
    assert list(places.results.glob("traces/*/*.failed.json")) == []


def test_no_time_begins_nothing(suite: Suite, places: Places, trained: Path) -> None:
    train = Copying(trained)
    assert done(run_suite(suite, places, minutes=0, train=train, say=quiet)) == []
    assert train.plans == []
    with pytest.raises(KnobError, match="0 or more"):
        run_suite(suite, places, minutes=-1, say=quiet)


def test_begins_no_cell_that_would_not_end_in_time(suite: Suite, places: Places, trained: Path) -> None:
    run_suite(suite, places, tasks=["toy"], recipes=["plain"], train=Copying(trained), say=quiet)
    for path in (places.results / "traces" / "toy").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 6000.0}))
    train, lines = Copying(trained), list[str]()
    run_suite(suite, places, tasks=["toy"], recipes=["joint"], minutes=60, train=train, say=lines.append)
    assert train.plans == []
    assert "not begun, it takes about 100 minutes" in lines[0]
    run_suite(suite, places, tasks=["toy"], recipes=["joint"], minutes=120, train=train, say=quiet)
    assert len(train.plans) == 2
    # Half trained: gone on with, however long it is thought to take.
    (places.work / f"toy-{suite.key(Cell('toy', 'plain-2', 0))}.training").mkdir(parents=True)
    (places.work / f"toy-{suite.key(Cell('toy', 'plain-2', 0))}.training" / "plan.json").write_text("{}")
    run_suite(suite, places, tasks=["toy"], recipes=["plain-2"], minutes=60, train=train, say=quiet)
    assert [plan.resume for plan in train.plans] == [False, False, True]


def test_one_slow_cell_does_not_put_off_the_others(suite: Suite, places: Places, trained: Path) -> None:
    from offramp.bench.suite_run import _Runner

    run_suite(suite, places, tasks=["toy"], recipes=["plain", "joint"], train=Copying(trained), say=quiet)
    paths = sorted((places.results / "traces" / "toy").glob("*.json"))
    assert len(paths) == 4
    for path, seconds in zip(paths, (100.0, 6000.0, 120.0, 140.0), strict=True):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": seconds, "recipe": "plain"}))
    runner = _Runner(suite, places, Results(places.results), Copying(trained), quiet)
    assert runner.expected(Cell("toy", "plain", 0)) == 130.0


def test_a_task_never_run_is_expected_to_take_as_long_by_rows(suite: Suite, places: Places, trained: Path) -> None:
    from offramp.bench.suite_run import _Runner

    runner = _Runner(suite, places, Results(places.results), Copying(trained), quiet)
    assert runner.expected(Cell("toy", "plain", 0)) is None
    run_suite(suite, places, tasks=["toy"], recipes=["plain"], train=Copying(trained), say=quiet)
    for path in (places.results / "traces" / "toy").glob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"seconds": 100.0, "rows": {"train": 32, "dev": 1}}))
    assert runner.expected(Cell("toy", "plain", 1)) == 100.0
    assert runner.expected(Cell("gone", "plain", 0)) is None  # nobody knows its rows
    mine = Places(data=places.work, model=None, work=places.work, results=places.results)
    (places.work / "gone").mkdir(parents=True)
    (places.work / "gone" / "train.jsonl").write_text("{}\n" * 96)
    runner = _Runner(suite, mine, Results(places.results), Copying(trained), quiet)
    assert runner.expected(Cell("gone", "plain", 0)) == pytest.approx(300.0)


def test_when_the_time_is_up_a_cell_stops_and_the_suite_ends(suite: Suite, places: Places) -> None:
    from offramp.bench.suite_run import _checkpoints, _TimeIsUp

    def interrupted(plan: Any) -> None:
        _checkpoints(plan.out).mkdir(parents=True)
        (_checkpoints(plan.out) / "plan.json").write_text("{}")
        raise _TimeIsUp

    lines: list[str] = []
    cells = run_suite(suite, places, minutes=9, train=interrupted, say=lines.append)
    assert len(lines) == 2
    assert "the time is up" in lines[1]
    assert [cell["reason"] for cell in cells[:2]] == ["begun", "not run yet"]


@pytest.mark.skipif(os.name == "nt", reason="no alarm")
def test_the_alarm_rings_once() -> None:
    import signal
    import threading

    from offramp.bench.suite_run import _limit, _TimeIsUp

    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(_TimeIsUp), _limit(0.001):
        threading.Event().wait(60)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_record_without_its_trace_is_not_done(suite: Suite, places: Places, trained: Path) -> None:
    run_suite(suite, places, tasks=["toy"], recipes=["plain"], train=Copying(trained), say=quiet)
    next((places.results / "traces" / "toy").glob("*.npz")).unlink()
    train = Copying(trained)
    run_suite(suite, places, tasks=["toy"], recipes=["plain"], train=train, say=quiet)
    assert len(train.plans) == 1


def test_finished_runs_are_kept_where_asked_for(suite: Suite, places: Places, trained: Path) -> None:
    from dataclasses import replace

    mine = replace(places, keep_runs=True)
    run_suite(suite, mine, tasks=["toy"], recipes=["plain"], train=Copying(trained), say=quiet)
    assert len(list(places.work.glob("toy-*/model.safetensors"))) == 2
