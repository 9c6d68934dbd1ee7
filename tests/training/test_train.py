"""Training: the same again from the same seed, on from where it was killed, and nothing half written anywhere."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from offramp.calibration.points import read_points
from offramp.criteria.entropy import Entropy
from offramp.errors import DataError, KnobError, RunError, TrainingError, UnsupportedError
from offramp.inputs.tokens import Tokenizer
from offramp.model.exits import ExitSettings
from offramp.model.modeling import load_early_exit
from offramp.objectives.weighted_sum import WeightedSum
from offramp.recipes import Phase, load_recipe, part
from offramp.run import Run
from offramp.tasks import make_task
from offramp.traces.store import load_trace
from offramp.training.arguments import DEFAULTS, FROZEN, make_arguments, of_tokens
from offramp.training.data import row_hashes
from offramp.training.lock import only_training
from offramp.training.train import Plan, pretrained_pooling, train
from offramp.training.trainer import ExitTrainer, exit_metrics

MODULE = "offramp.training.train"
MULTI = "multi_label_classification"
MakePlan = Callable[..., Plan]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def digest(folder: Path) -> dict[str, str]:
    """Every file below a folder, and a hash of what is in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return content


def rows_of(folder: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def make_plan(make_plan: MakePlan) -> MakePlan:
    """Evaluated and saved as often as it is without being told."""
    return partial(make_plan, once=False)


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """``stop_at(n)``: Ctrl-C while step n + 1 is computed; ``stop_at(0)`` takes it back. Gives the steps begun."""
    step = ExitTrainer.training_step

    def arm(number: int) -> list[int]:
        begun: list[int] = []

        def interrupted(self: ExitTrainer, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == number > 0:
                raise KeyboardInterrupt
            begun.append(self.state.global_step)
            return step(self, *args, **kwargs)

        monkeypatch.setattr(ExitTrainer, "training_step", interrupted)
        return begun

    return arm


# What a run folder holds


def test_the_run_folder_holds_it_all(trained: Path, toy_data: Callable[[str], str]) -> None:
    run = Run.open(trained)
    assert run.recipe == "de3bert"
    assert run.max_length == 48
    assert run.uses_token_types
    assert run.id2label == {0: "bad", 1: "good", 2: "odd"}
    assert run.problem_type == "single_label_classification"
    assert {path.name for path in trained.iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "operating_points.json", "training.json",
        "training_rows.safetensors", "traces", "README.md",
    }  # fmt: skip
    training = record(trained)
    assert training["arguments"]["seed"] == 42
    assert [phase["trains"] for phase in training["phases"]] == ["all"]
    assert training["phases"][0]["arguments"] == training["arguments"]
    assert training["arguments"]["per_device_train_batch_size"] == 16
    assert training["plan"]["recipe"] == "de3bert"
    assert training["rows"] == {"train": 96, "dev": 48}
    assert training["versions"]["torch"] == version("torch")
    assert training["versions"]["transformers"] == version("transformers")
    data = toy_data("single_label_classification")
    hashes = load_arrays(trained / "training_rows.safetensors")["hashes"]
    assert np.array_equal(hashes, row_hashes([row["text"] for row in rows_of(data, "train")]))
    card = (trained / "README.md").read_text()
    assert "| 1 |" in card
    assert "library_name: offramp" in card


def test_every_exit_learned_and_was_measured(trained: Path) -> None:
    history = [entry for entry in record(trained)["history"] if "eval_exits_loss" in entry]
    assert [entry["step"] for entry in history] == [6, 12, 18, 24]
    for entry in history:
        assert {f"eval_exit_{layer}_accuracy" for layer in (1, 2, 3)} <= entry.keys()
        assert entry["eval_accuracy"] == entry["eval_exit_3_accuracy"]
    trace = load_trace(trained / "traces" / "dev.safetensors")
    accuracy = (trace.logits.argmax(-1) == trace.labels).mean(axis=1)
    assert (accuracy > 0.5).all(), accuracy
    assert np.isfinite(trace.extras["distances"][:-1]).all()


def test_the_default_operating_point_is_within_half_a_point_on_dev(trained: Path) -> None:
    point = read_points(trained)[0]
    assert point.criterion == "edr"
    assert point.measured["score"] >= point.measured["full_depth_score"] - 0.005
    assert point.measured["layer_speedup"] >= 1
    assert point.measured["n"] == 48


def test_plain_transformers_loads_the_full_depth_model(trained: Path, toy_data: Callable[[str], str]) -> None:
    texts = [row["text"] for row in rows_of(toy_data("single_label_classification"), "dev")]
    plain = AutoModelForSequenceClassification.from_pretrained(trained).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    ours = load_early_exit(trained)
    trace = load_trace(trained / "traces" / "dev.safetensors")
    for text, recorded in zip(texts[:8], trace.logits[-1], strict=False):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = plain(**inputs).logits
            assert torch.equal(logits, ours(**inputs).logits)
        np.testing.assert_allclose(logits[0].numpy(), recorded, atol=1e-5)


# Same seed, same result; resume


@pytest.fixture(scope="module")
def short(make_plan: MakePlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 steps without a break: two evaluations, and two steps after the last of them."""
    return train(make_plan(tmp_path_factory.mktemp("short") / "run", arguments={"max_steps": 14})).folder


def test_the_same_seed_gives_the_same_weights(short: Path, make_plan: MakePlan, tmp_path: Path) -> None:
    again = train(make_plan(tmp_path / "again", arguments={"max_steps": 14})).folder
    assert same(weights(short), weights(again))
    keys = ("loss", "eval_exits_loss", "grad_norm", "learning_rate")
    told = [[{k: e[k] for k in keys if k in e} for e in record(folder)["history"]] for folder in (short, again)]
    assert told[0] == told[1]


def test_another_seed_gives_others(short: Path, make_plan: MakePlan, tmp_path: Path) -> None:
    other = train(make_plan(tmp_path / "other", arguments={"max_steps": 2, "seed": 7})).folder
    first = [record(folder)["history"][0]["loss"] for folder in (short, other)]
    assert first[0] != first[1]


@pytest.mark.parametrize("damage", ["nothing", "no state", "half a state"])
def test_resume_gives_what_an_unbroken_training_gives(
    short: Path, make_plan: MakePlan, tmp_path: Path, stop_at: Callable[[int], list[int]], damage: str
) -> None:
    plan = make_plan(tmp_path / "run", arguments={"max_steps": 14})
    stop_at(13)
    with pytest.raises(KeyboardInterrupt):
        train(plan)
    assert not plan.out.exists()
    checkpoints = tmp_path / "run.training" / "phase-1"
    assert sorted(path.name for path in checkpoints.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-6"]
    state = checkpoints / "checkpoint-12" / "trainer_state.json"
    if damage == "no state":  # killed while the checkpoint was written
        state.unlink()
    elif damage == "half a state":
        state.write_text(state.read_text()[:100])
    begun = stop_at(0)
    train(replace(plan, resume=True))
    assert begun == list(range(12 if damage == "nothing" else 6, 14))
    assert same(weights(short), weights(plan.out))
    assert not (tmp_path / "run.training").exists()


def test_resume_after_a_failure_to_save(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: Callable[[int], list[int]]
) -> None:
    plan = make_plan(tmp_path / "run", arguments={"max_steps": 12})
    with monkeypatch.context() as broken:
        broken.setattr(f"{MODULE}.write_measured", _raise(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            train(plan)
    assert not plan.out.exists()
    phase = tmp_path / "run.training" / "phase-1"
    state = json.loads((phase / "checkpoint-12" / "trainer_state.json").read_text())
    best = weights(phase / f"checkpoint-{state['best_global_step']}")
    begun = stop_at(0)
    train(replace(plan, resume=True))
    assert begun == []
    assert same(weights(plan.out), best)


def _raise(error: BaseException) -> Callable[..., Any]:
    def stop(*args: Any, **kwargs: Any) -> Any:
        raise error

    return stop


def test_nothing_to_resume(make_plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to resume"):
        train(make_plan(tmp_path / "run", resume=True))
    assert not list(tmp_path.iterdir())
    # Killed while it wrote down what it was about to do.
    begun = tmp_path / "run.training" / "plan.json"
    begun.parent.mkdir()
    begun.write_text('{"model": "enc')
    with pytest.raises(RunError, match="nothing to resume"):
        train(make_plan(tmp_path / "run", resume=True))


def test_resume_with_other_options(make_plan: MakePlan, tmp_path: Path, stop_at: Callable[[int], list[int]]) -> None:
    plan = make_plan(tmp_path / "run")
    stop_at(1)
    with pytest.raises(KeyboardInterrupt):
        train(plan)
    with pytest.raises(KnobError, match="recipe was 'de3bert'"):
        train(replace(plan, resume=True, recipe="joint"))
    with pytest.raises(KnobError, match="seed was"):
        train(replace(plan, resume=True, arguments={**plan.arguments, "seed": 7}))
    other = Path(shutil.copytree(plan.data, tmp_path / "data")) / "train.jsonl"
    other.write_text(other.read_text().replace("{", '{"more": 1, ', 1).replace('": "', '": "now ', 1))
    with pytest.raises(KnobError, match=r"data was|rows of the data was"):
        train(replace(plan, resume=True, data=str(other.parent)))
    rows = Path(plan.data) / "train.jsonl"
    kept = rows.read_text()
    rows.write_text(other.read_text())
    try:
        with pytest.raises(KnobError, match="rows of the data was"):
            train(replace(plan, resume=True))
    finally:
        rows.write_text(kept)


# When it goes wrong


@pytest.fixture
def old(trained: Path, tmp_path: Path) -> Path:
    """A run folder that stands where the new one is to be written."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def poison(monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> None:
    """The weights of an exit become NaN before or after step ``at``."""
    step = ExitTrainer.training_step

    def poisoned(self: ExitTrainer, *args: Any, **kwargs: Any) -> Any:
        now = self.state.global_step == at - 1
        loss = step(self, *args, **kwargs) if after or not now else None
        if now:
            with torch.no_grad():
                self.model.offramp.heads[0].classifier.weight.fill_(float("nan"))
        return step(self, *args, **kwargs) if loss is None else loss

    monkeypatch.setattr(ExitTrainer, "training_step", poisoned)


@pytest.mark.parametrize(
    ("at", "after", "said"), [(9, False, "the loss is nan at step 9"), (12, True, "the exits' loss is nan on dev")]
)
def test_a_loss_that_is_no_number(
    old: Path, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch, at: int, after: bool, said: str
) -> None:
    """At step 12 nothing is wrong before the evaluation; what it finds must not be saved as the last good one."""
    before = digest(old)
    plan = make_plan(old, arguments={"max_steps": 18})
    with monkeypatch.context() as patch:
        poison(patch, at, after=after)
        with pytest.raises(TrainingError, match=said):
            train(plan)
    assert digest(old) == before
    kept = old.with_name("run.training") / "phase-1"
    assert [path.name for path in kept.glob("checkpoint-*")] == ["checkpoint-6"]
    assert all(value.isfinite().all() for value in weights(kept / "checkpoint-6").values())

    given = {**plan.arguments, "learning_rate": 1e-4, "lr_scheduler_type": "constant"}
    train(replace(plan, resume=True, arguments=given))
    assert digest(old) != before
    rates = {entry["step"]: entry["learning_rate"] for entry in record(old)["history"] if "learning_rate" in entry}
    assert rates[6] > 1e-3
    assert rates[7] == rates[18] == pytest.approx(1e-4)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("where", [f"{MODULE}.write_measured", f"{MODULE}.save_file", "os.rename"])
def test_a_save_that_breaks_leaves_the_old_run_whole(
    old: Path, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch, error: BaseException, where: str
) -> None:
    before = digest(old)
    with monkeypatch.context() as patch:
        patch.setattr(where, _raise(error))
        with pytest.raises(type(error)):
            train(make_plan(old, arguments={"max_steps": 2}))
    assert digest(old) == before
    assert {path.name for path in old.parent.iterdir()} <= {"run", "run.training"}


@pytest.mark.parametrize("what", ["file", "folder"])
def test_out_that_is_something_else(make_plan: MakePlan, tmp_path: Path, what: str) -> None:
    out = tmp_path / "thesis"
    if what == "file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "chapter.txt").write_text("precious")
    before = digest(tmp_path)
    with pytest.raises(RunError, match="give --out a"):
        train(make_plan(out))
    assert digest(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_work_folder_that_is_something_else(make_plan: MakePlan, tmp_path: Path, resume: bool) -> None:
    (tmp_path / "run.training").mkdir()
    (tmp_path / "run.training" / "notes.txt").write_text("precious")
    with pytest.raises(RunError, match=r"run\.training( exists and holds something else|: train without)"):
        train(make_plan(tmp_path / "run", arguments={"max_steps": 2}, resume=resume))
    assert (tmp_path / "run.training" / "notes.txt").read_text() == "precious"


HOLDER = """
import sys, time
from pathlib import Path
from offramp.training.lock import only_training
with only_training(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that trains into ``run``."""
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "run.training")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_one_training_at_a_time(
    make_plan: MakePlan, tmp_path: Path, stop_at: Callable[[int], list[int]], elsewhere: subprocess.Popen[str]
) -> None:
    """A second one stops before it touches anything; once the first was killed, nothing of it is in the way."""
    plan = make_plan(tmp_path / "run", arguments={"max_steps": 8})
    for resume in (False, True):
        with pytest.raises(TrainingError, match=r"^another training writes to .*run\.training: wait until"):
            train(replace(plan, resume=resume))
    assert [path.name for path in tmp_path.iterdir()] == ["run.training.lock"]
    elsewhere.kill()
    elsewhere.wait()
    stop_at(7)
    with pytest.raises(KeyboardInterrupt):
        train(plan)
    stop_at(0)
    train(replace(plan, resume=True))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_two_trainings_in_one_process_are_two_and_another_folder_is_none(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path / "run")
    told: list[str] = []

    def second(*args: Any, **kwargs: Any) -> Any:
        """The first training reads its data, and a second begins."""
        with pytest.raises(TrainingError) as error:
            train(plan)
        told.append(str(error.value))
        with only_training(tmp_path / "other.training"):
            raise DataError("no rows")

    monkeypatch.setattr(f"{MODULE}.load_data", second)
    with pytest.raises(DataError, match="no rows"):
        train(plan)
    assert len(told) == 1
    assert not list(tmp_path.iterdir())
    with only_training(tmp_path / "run.training"):  # it was given back
        pass


# Options


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"recipe": "de3bret"}, KnobError, "no recipe is called 'de3bret': did you mean de3bert"),
        ({"settings": {"heads.width": 4}}, KnobError, "must begin with head., objective. or criterion."),
        ({"settings": {"head.widht": 4}}, KnobError, "head 'prototypical' has no setting 'widht'"),
        ({"settings": {"objective.alfa": 4}}, KnobError, "objective 'distance_aware' has no setting 'alfa'"),
        ({"settings": {"criterion.lambda": 4}}, KnobError, "criterion has no setting 'lambda'"),
        ({"settings": {"objective.alpha": "much"}}, KnobError, "objective.alpha must be a number"),
        ({"max_length": 49}, KnobError, "max_length 49 is more than .* reads: at most 48"),
        ({"max_length": 2}, KnobError, "max_length"),
        ({"exits": (4,)}, KnobError, "between 1 and 3"),
        ({"pooling": "max"}, KnobError, "pooling must be one of"),
        ({"model": "/no/such/folder"}, RunError, "/no/such/folder"),
        ({"data": "/no/such/data.jsonl"}, DataError, "no file or folder"),
        (
            {"arguments": {"learning_rat": 1e-3}},
            KnobError,
            "is called --learning_rat: did you mean .*--learning_rate",
        ),
        ({"arguments": {"num_train_epochs": "many"}}, KnobError, "--num_train_epochs does not take 'many'"),
        ({"arguments": {"lr_scheduler_type": "steep"}}, KnobError, "steep"),
    ],
)
def test_options_that_make_no_sense(
    make_plan: MakePlan, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(replace(make_plan(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_de3bert_says_at_once_that_it_needs_one_class_a_text(
    make_plan: MakePlan, toy_data: Callable[[str], str], tmp_path: Path
) -> None:
    for kind in (MULTI, "regression"):
        with pytest.raises(UnsupportedError, match=f"the data is {kind}: choose one that does .*joint"):
            train(make_plan(tmp_path / "run", data=toy_data(kind)))
    assert not list(tmp_path.iterdir())


def test_fewer_rows_than_a_batch_and_texts_too_long(
    make_plan: MakePlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, dev = tmp_path / "few.jsonl", tmp_path / "dev.jsonl"
    texts = ["gem " * 20_000, "dull film", "", "lovely story", "cold"]
    rows = [json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(texts)]
    data.write_text("".join(rows))
    dev.write_text("".join([*rows, rows[0]]))
    with caplog.at_level(logging.WARNING, logger="offramp"):
        run = train(
            make_plan(tmp_path / "run", data=str(data), dev=str(dev), max_length=16, arguments={"max_steps": 2})
        )
    said = [record.getMessage() for record in caplog.records if "cut" in record.getMessage()]
    assert said == [
        "1 of 5 training texts are longer than 16 tokens and were cut",
        "2 of 6 dev texts are longer than 16 tokens and were cut",
    ]
    assert run.max_length == 16
    trace = load_trace(run.folder / "traces" / "dev.safetensors")
    assert trace.lengths.tolist() == [16, 4, 2, 4, 3, 16]


def test_chosen_exits_a_shared_head_and_other_settings(
    make_plan: MakePlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"head.width": 5, "head.network": "mlp", "objective.form": "hinge", "criterion.lam": 3.0}
    plan = make_plan(
        tmp_path / "run", settings=settings, exits=(2,), shared=True, last_exit="head", pooling="cls",
        max_train_samples=20, arguments={"max_steps": 2},
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="offramp"):
        run = train(plan)
    assert [text for text in caplog.messages if "plain transformers would load this run with a head" in text]
    model = load_early_exit(run.folder)
    assert [stage.layers for stage in model.stages] == [2, 3]
    assert model.offramp.early[0].prototypes.means.shape == (3, 5)
    assert model.settings.pooling == "cls"
    assert model.settings.last_exit == "head"
    assert model.objective.form == "hinge"
    assert read_points(run.folder)[0].settings["lam"] == 3.0
    assert record(run.folder)["rows"]["train"] == 20
    assert run.section["recipe_settings"] == settings


@pytest.mark.parametrize(("changes", "pooling"), [
    ({"recipe": "de3bert"}, "attention"), ({"recipe": "joint"}, "attention"), ({"recipe": "pabee"}, "backbone"),
    ({"recipe": "joint", "pooling": "mean"}, "mean"),
])  # fmt: skip
def test_what_exits_read_unless_it_is_said(make_plan: MakePlan, tmp_path: Path, changes: Any, pooling: str) -> None:
    plan = make_plan(tmp_path / "run", **{"pooling": None, "arguments": {"max_steps": 2}, **changes})
    assert train(plan).section["pooling"] == pooling


@pytest.mark.parametrize(("pooling", "head", "rate", "kept"), [
    ("mean", "linear", 5e-3, None), ("attention", "linear", 5e-3, "float16"), ("mean", "attention", 5e-4, "float16"),
])  # fmt: skip
def test_exits_alone_learn_as_fast_as_what_they_read_allows(
    pooling: Any, head: str, rate: float, kept: str | None, tiny_model: Any
) -> None:
    model = tiny_model("bert", ExitSettings(pooling=pooling, head=head))
    own = {**FROZEN, **of_tokens(model.offramp)}
    assert (own["head_learning_rate"], own.get("feature_dtype")) == (rate, kept)


def test_a_run_folder_is_an_encoder_like_any_other(trained: Path, make_plan: MakePlan, tmp_path: Path) -> None:
    run = train(make_plan(tmp_path / "run", model=str(trained), recipe="joint", arguments={"max_steps": 2}))
    assert run.recipe == "joint"
    assert run.section["head"] == "linear"
    assert not [name for name in weights(run.folder) if "prototypes" in name]
    assert set(run.training_hashes) == set(Run.open(trained).training_hashes)


def test_rows_that_the_encoder_has_learned_from_are_not_forgotten(
    trained: Path, make_plan: MakePlan, tmp_path: Path
) -> None:
    rows = [{"text": f"nobody has seen {n}", "label": ("bad", "good")[n % 2]} for n in range(6)]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = train(
        make_plan(tmp_path / "run", model=str(trained), data=str(tmp_path / "new.jsonl"), arguments={"max_steps": 1})
    )
    assert np.isin(Run.open(trained).training_hashes, run.training_hashes).all()
    assert np.isin(row_hashes([row["text"] for row in rows]), run.training_hashes).sum() == 5


def test_a_run_whose_only_exit_is_the_last_can_be_used_at_once(make_plan: MakePlan, tmp_path: Path) -> None:
    """The recipe's rule asks for distances, which the model's own head does not measure."""
    from offramp.pipeline import load

    run = train(make_plan(tmp_path / "run", exits=(3,), arguments={"max_steps": 1}))
    assert [point.criterion for point in read_points(run.folder)] == ["depth"]
    assert load(run.folder)("a gem").exit_layer == 3


@pytest.mark.parametrize("family", ["bert", "modernbert", "mpnet"])
def test_an_encoder_without_a_tokenizer(
    plain_model: Callable[..., Any], make_plan: MakePlan, tmp_path: Path, family: str
) -> None:
    """transformers makes one up that knows no word, or fails in its own way, by family."""
    plain_model(family).save_pretrained(tmp_path / "model")
    with pytest.raises(RunError, match=r"has no tokenizer, without which|cannot load a tokenizer from") as caught:
        train(make_plan(tmp_path / "run", model=str(tmp_path / "model")))
    assert not str(caught.value).endswith(":")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "backbone"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_pooling_as_the_encoder_was_pretrained(tmp_path: Path, config: Any, expected: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    if config is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert pretrained_pooling(str(tmp_path)) == expected


def test_a_run_is_trained_on_with_the_pooling_that_it_had(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"offramp": {"pooling": "mean"}}')
    assert pretrained_pooling(str(tmp_path)) == "mean"
    (tmp_path / "config.json").write_text('{"offramp": {"pooling": "median"}}')
    assert pretrained_pooling(str(tmp_path)) == "backbone"


def test_arguments_ours_then_the_recipes_then_what_was_given(tmp_path: Path) -> None:
    made = make_arguments(
        str(tmp_path),
        {"weight_decay": "0.5", "bf16": "False", "head_learning_rate": "1e-3", "max_grad_norm": 3, "seed": "7"},
        recipe={"num_train_epochs": 9.0, "weight_decay": 0.2},
    )
    assert made.learning_rate == DEFAULTS["learning_rate"]
    assert made.num_train_epochs == 9.0
    assert made.weight_decay == 0.5
    assert made.bf16 is False
    assert made.head_learning_rate == 1e-3
    assert made.max_grad_norm == 3
    assert made.seed == 7


@pytest.mark.parametrize("word", ["none", "None", "null"])
def test_report_to_nobody(tmp_path: Path, word: str) -> None:
    assert make_arguments(str(tmp_path), {"report_to": word}).report_to == []
    assert make_arguments(str(tmp_path), {"head_learning_rate": word}).head_learning_rate is None


# The trainer


def items(rows: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    inputs = rows([9] * 8, labels=torch.arange(8) % 3)
    return [{name: value[i] for name, value in inputs.items()} for i in range(8)]


def trainer(model: Any, folder: Path, rows: Any, *, moves: Any = "all", **given: Any) -> ExitTrainer:
    given = {
        "bf16": False, "per_device_train_batch_size": 4, "num_train_epochs": 1, "logging_steps": 1,
        "max_grad_norm": 0.0, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential", "warmup_steps": 0, "learning_rate": 1e-3, "adam_epsilon": 1e-3,
        **given,
    }  # fmt: skip
    return ExitTrainer(moves=moves, model=model, args=make_arguments(str(folder), given), train_dataset=items(rows))


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    settings = ExitSettings(head="prototypical", head_settings={"dropout": 0.0}, objective="distance_aware")
    return tiny_model("bert", settings, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()


def test_two_learning_rates_and_no_decay_for_biases_and_norms(model: Any, tmp_path: Path, rows: Any) -> None:
    made = trainer(model, tmp_path, rows, head_learning_rate=5e-2, weight_decay=0.1)
    groups = made.create_optimizer().param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(found) == len(names)
    for name, (rate, decay) in found.items():
        # The model's own pooler and classifier are the last exit, and as fresh as the others.
        assert rate == (1e-3 if name.startswith("bert.") and ".pooler." not in name else 5e-2), name
        assert decay == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1), name


def test_heads_learn_twenty_times_as_fast_unless_told(model: Any, tmp_path: Path, rows: Any) -> None:
    groups = trainer(model, tmp_path, rows).create_optimizer().param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        for p in group["params"]:
            in_encoder = names[id(p)].startswith("bert.") and ".pooler." not in names[id(p)]
            assert group["lr"] == pytest.approx(1e-3 if in_encoder else 2e-2), names[id(p)]


@pytest.mark.parametrize("moves", ["heads", "backbone"])
def test_a_phase_moves_what_it_says_and_nothing_else(model: Any, tmp_path: Path, rows: Any, moves: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(model, tmp_path, rows, moves=moves).train()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("offramp.") == (moves == "heads") for name in moved)


def test_accumulation_changes_neither_the_loss_told_nor_the_weights(
    model: Any, tmp_path: Path, rows: Any, tiny_model: Any
) -> None:
    """A forward with ``**kwargs`` would make Trainer stop dividing by the number of micro-batches."""
    start = {name: value.clone() for name, value in model.state_dict().items()}
    told, ended = [], []
    for accumulation in (1, 2):
        model.load_state_dict(start)
        made = trainer(
            model, tmp_path, rows, gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=4 // accumulation,
        )  # fmt: skip
        made.train()
        told.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
        ended.append({name: value.clone() for name, value in model.state_dict().items()})
    assert told[0] == pytest.approx(told[1], abs=1e-4)
    assert len(told[0]) == 2
    for name, value in ended[0].items():
        torch.testing.assert_close(ended[1][name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_metrics_of_every_exit() -> None:
    from transformers import EvalPrediction

    task = make_task("single_label_classification", {0: "no", 1: "yes"})
    logits = np.array([[[2.0, 0.0], [0.0, 3.0]], [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [4.0, 0.0]]])
    labels = np.array([0, 0, 1])
    found = exit_metrics(task, [2, 4])(EvalPrediction(predictions=(logits[:, -1], logits), label_ids=labels))
    assert found["exit_2_accuracy"] == 1
    assert found["exit_4_accuracy"] == found["accuracy"] == pytest.approx(1 / 3)
    losses = [np.log1p(np.exp(margin)).mean() for margin in (np.array([-2.0, -1, -1]), np.array([3.0, -1, 4]))]
    assert found["exits_loss"] == pytest.approx(np.mean(losses))


def test_the_checkpoint_of_the_lowest_mean_dev_loss_is_kept(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told that the second of three evaluations was the best, training ends with the weights of then."""
    told, seen = iter([3.0, 1.0, 2.0]), []

    def scripted(*args: Any) -> Callable[[Any], dict[str, float]]:
        compute = exit_metrics(*args)

        def say(prediction: Any) -> dict[str, float]:
            seen.append(prediction.predictions[1].copy())
            return {**compute(prediction), "exits_loss": next(told)}

        return say

    monkeypatch.setattr(f"{MODULE}.exit_metrics", scripted)
    run = train(make_plan(tmp_path / "run", arguments={"max_steps": 18, "train_sampling_strategy": "random"}))
    trace = load_trace(run.folder / "traces" / "dev.safetensors")
    final = np.swapaxes(trace.logits, 0, 1)
    assert len(seen) == 3
    np.testing.assert_allclose(final, seen[1], atol=1e-5)
    assert not np.allclose(final, seen[2], atol=1e-2)


# Recipes of several phases


@pytest.fixture
def two_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder first, then, with it frozen, the heads, by another objective."""
    phases = (
        Phase(part("weighted_sum", by="depth"), train="backbone"),
        Phase(part("weighted_sum", by="equal"), train="heads"),
    )
    recipe = replace(load_recipe("joint"), training=phases)
    monkeypatch.setattr(f"{MODULE}.load_recipe", lambda name: recipe)


def test_phases_follow_each_other(
    two_phases: None, make_plan: MakePlan, tmp_path: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, WeightedSum]] = []
    init = ExitTrainer.__init__

    def watched(self: ExitTrainer, **given: Any) -> None:
        seen.append((given["moves"], given["model"].objective))
        init(self, **given)

    monkeypatch.setattr(ExitTrainer, "__init__", watched)
    plan = make_plan(tmp_path / "whole", arguments={"max_steps": 8})
    whole = train(plan).folder
    assert seen == [("backbone", WeightedSum(by="depth")), ("heads", WeightedSum(by="equal"))]
    assert {entry["phase"] for entry in record(whole)["history"]} == {1, 2}
    assert load_early_exit(whole).objective == WeightedSum(by="equal")
    assert all(p.requires_grad for p in load_early_exit(whole).parameters())

    broken = replace(plan, out=tmp_path / "broken")
    step = ExitTrainer.training_step

    def interrupted(self: ExitTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.moves == "heads" and self.state.global_step == 7:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ExitTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    frozen = weights(tmp_path / "broken.training/phase-1/finished")
    train(replace(broken, resume=True))
    assert same(weights(broken.out), weights(whole))
    for name, value in weights(whole).items():
        assert torch.equal(value, frozen[name]) == (not name.startswith("offramp.")), name
    assert len(seen) == 5  # the first phase was not run again


def test_exits_learn_alone_afterwards(make_plan: MakePlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the recipe says first; then heads and prototypes move, and the encoder and the last exit stay."""
    arguments = {"max_steps": 8, "num_train_epochs": "1", "head_learning_rate": 1e-3, "load_best_model_at_end": False}
    plan = make_plan(tmp_path / "usual", recipe="de3bert", arguments=arguments)
    usual = train(plan).folder
    assert "phase" not in capsys.readouterr().out
    longer = train(replace(plan, out=tmp_path / "longer", exit_epochs=2.0)).folder
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("phase")]
    assert told == [
        "phase 1 of 2: the encoder and all exits learn",
        "phase 2 of 2: only the exits learn; the encoder stands still",
    ]
    before, after = weights(usual), weights(longer)
    for name, value in after.items():
        stays = not name.startswith("offramp.") or name.endswith(".seen")  # which classes have a prototype
        assert torch.equal(value, before[name]) == stays, name
    last = [entry for entry in record(longer)["history"] if entry["phase"] == 2][-1]
    phases = [phase["arguments"] for phase in record(longer)["phases"]]
    assert [one["head_learning_rate"] for one in phases] == [1e-3, 5e-3]  # what was used, not what was given
    assert [one["max_steps"] for one in phases] == [8, -1]
    assert last["epoch"] == 2  # neither --max_steps nor --num_train_epochs is about this phase
    assert {entry["phase"] for entry in record(usual)["history"]} == {1}


@pytest.mark.parametrize(("changes", "epochs"), [
    ({"recipe": "de3bert"}, 20), ({"recipe": "joint", "max_train_samples": 48}, 20), ({"recipe": "pabee"}, 0),
    ({"recipe": "de3bert", "exits": ()}, 0), ({"recipe": "pabee", "exit_epochs": 1.0}, 1),
])  # fmt: skip
def test_how_long_exits_learn_alone(make_plan: MakePlan, tmp_path: Path, changes: Any, epochs: float) -> None:
    run = train(make_plan(tmp_path / "run", **{"exit_epochs": None, "arguments": {"max_steps": 2}, **changes})).folder
    alone = [entry["epoch"] for entry in record(run)["history"] if entry["phase"] == 2]
    assert max(alone, default=0) == epochs


def test_of_many_rows_exits_learn_fewer_epochs(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{MODULE}._EXIT_STEPS", 9)  # six to an epoch
    run = train(make_plan(tmp_path / "run", recipe="joint", exit_epochs=None, arguments={"max_steps": 2})).folder
    assert [entry for entry in record(run)["history"] if entry["phase"] == 2][-1]["step"] == 9


@pytest.mark.parametrize(("wrong", "message"), [
    ({"recipe": "deebert", "exit_epochs": 2.0}, "recipe deebert ends with its heads trained alone: leave"),
    ({"exit_epochs": -1.0}, "--exit-epochs must be 0 or more, not -1.0"),
    ({"exit_epochs": float("nan")}, "--exit-epochs must be 0 or more, not nan"),
    ({"recipe": "plain", "exit_epochs": 2.0}, "there are none: give it --exits"),
])  # fmt: skip
def test_exits_that_cannot_learn_alone(make_plan: MakePlan, tmp_path: Path, wrong: Any, message: str) -> None:
    with pytest.raises(KnobError, match=message):
        train(make_plan(tmp_path / "run", **wrong))
    assert not (tmp_path / "run").exists()


def test_the_tokenizer_of_the_run_is_the_encoders(trained: Path, tiny_encoder: str) -> None:
    text = "a gem of a film, and unheard"
    expected = AutoTokenizer.from_pretrained(tiny_encoder)(text)["input_ids"]
    found = Tokenizer.from_folder(trained, max_length=48).encode([text])[0]
    assert found.tokens.tolist() == expected
    assert Entropy().name == "entropy"


@pytest.mark.long
def test_two_processes_train_and_write_one_run(tiny_encoder: str, toy_data: Any, tmp_path: Path) -> None:
    # On a CPU too it is --multi_gpu that starts more than one process: --cpu, with any number, starts one.
    command = [
        str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2",
        "--main_process_port", "0", "-m", "offramp", "train",
        "--model", tiny_encoder, "--data", toy_data("single_label_classification"), "--out", str(tmp_path / "run"),
        "--max_steps", "6", "--per_device_train_batch_size", "8", "--bf16", "False", "--pooling", "mean",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    run = Run.open(tmp_path / "run")
    assert record(run.folder)["arguments"]["world_size"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    means = weights(run.folder)["offramp.heads.0.prototypes.means"]
    assert means.abs().sum() > 0


def test_a_phase_that_cannot_run_is_refused_before_the_first(make_plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(KnobError, match="there are none: give it --exits"):
        train(make_plan(tmp_path / "run", recipe="deebert", exits=()))
    with pytest.raises(KnobError, match=r"objective\.by must be one of"):
        train(make_plan(tmp_path / "run", recipe="deebert", settings={"objective.by": "breadth"}))
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("run.training/phase-*"))


def test_a_last_exit_like_the_others_is_trained_with_the_encoder(make_plan: MakePlan, tmp_path: Path) -> None:
    """In the first of two phases, and not with the early exits in the second."""
    from offramp.model.modeling import load_early_exit, parameters_of

    run = train(make_plan(tmp_path / "run", recipe="fastbert", last_exit="head"))
    names = {name for name, _ in parameters_of(load_early_exit(run.folder), "backbone")}
    assert any(name.startswith("offramp.last.") for name in names)
    trace = load_trace(run.folder / "traces" / "dev.safetensors")
    assert trace.labels is not None
    assert (trace.logits[-1].argmax(-1) == trace.labels).mean() > 0.5  # of three classes
