from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from offramp.calibration.points import read_points
from offramp.errors import DataError, KnobError, MissingExtraError, RunError, UnsupportedError
from offramp.model.modeling import load_early_exit
from offramp.run import Run
from offramp.traces.store import load_trace
from offramp.training import attach as module
from offramp.training import features, train
from offramp.training.attach import AttachPlan, attach
from offramp.training.data import load_data, row_hashes

FAMILIES = ("bert", "roberta", "distilbert", "albert", "electra", "mpnet", "deberta-v2", "modernbert")
KINDS = ("single_label_classification", "multi_label_classification", "regression")
QUICK = {"max_steps": 24, "per_device_train_batch_size": 16, "disable_tqdm": True}


def make(model: str | Path, data: str | Path, out: Path, **changes: Any) -> AttachPlan:
    arguments = QUICK | changes.pop("arguments", {})
    return AttachPlan(model=str(model), data=str(data), out=out, arguments=arguments, **changes)


@pytest.fixture(scope="module")
def finetuned(make_plan: Callable[..., Any], toy_data: Callable[[str], str], tmp_path_factory: Any) -> Any:
    """Problem type -> folder of a plain classifier that knows its task. Do not change it."""
    made: dict[str, Path] = {}

    def get(kind: str = KINDS[0]) -> Path:
        if kind not in made:
            root = tmp_path_factory.mktemp("finetuned")
            recipe = {"recipe": "plain", "arguments": {"max_steps": 60}}
            run = train.train(make_plan(root / "run", data=toy_data(kind), **recipe)).folder
            model = AutoModelForSequenceClassification.from_pretrained(run)
            del model.config.offramp
            model.save_pretrained(root / "plain")
            AutoTokenizer.from_pretrained(run).save_pretrained(root / "plain")
            made[kind] = root / "plain"
        return made[kind]

    return get


@pytest.fixture(scope="module")
def unlabelled(toy_data: Callable[[str], str], tmp_path_factory: Any) -> Path:
    """The training texts alone."""
    path: Path = tmp_path_factory.mktemp("log") / "texts.jsonl"
    rows = map(json.loads, (Path(toy_data(KINDS[0])) / "train.jsonl").read_text().splitlines())
    path.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    return path


def full_depth(folder: Path, texts: list[str]) -> torch.Tensor:
    """What plain transformers answers to texts as one batch."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


TEXTS = ["a lovely gem", "the dull film , cold and flat with the music of people", "weird", "crooked town is a story"]


def assert_same_model(source: Path, run: Path) -> None:
    """Every tensor of the original, and its answers on one batch to the bit: plainly loaded, and through our layers."""
    one, other = load_file(source / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
    assert all(name.startswith("offramp.") for name in other.keys() - one.keys())
    expected = full_depth(source, TEXTS)
    assert torch.equal(full_depth(run, TEXTS), expected)
    inputs = AutoTokenizer.from_pretrained(run)(TEXTS, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        assert torch.equal(load_early_exit(run)(**inputs).logits, expected)


# The model stays what it was


@pytest.mark.parametrize("family", FAMILIES)
def test_full_depth_is_the_original_to_the_bit(
    plain_model: Callable[..., Any], tiny_encoder: str, unlabelled: Path, tmp_path: Path, family: str
) -> None:
    source = tmp_path / "source"
    plain_model(family, id2label={0: "zero", 1: "one", 2: "two"}).save_pretrained(source)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(source)
    run = attach(make(source, unlabelled, tmp_path / "run", arguments={"max_steps": 6})).folder
    assert_same_model(source, run)
    assert Run.open(run).id2label == {0: "zero", 1: "one", 2: "two"}


@pytest.mark.parametrize("labelled", [pytest.param(True, marks=pytest.mark.long), False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task(
    finetuned: Any, toy_data: Callable[[str], str], tmp_path: Path, kind: str, labelled: bool
) -> None:
    source, data = finetuned(kind), toy_data(kind)
    run = attach(make(source, data, tmp_path / "run", use_labels=labelled))
    assert_same_model(source, run.folder)
    assert run.problem_type == kind
    point = read_points(run.folder)[0]
    trace = load_trace(run.folder / "traces" / "dev.safetensors")
    assert trace.labels is not None
    assert len(trace.labels) == 48
    if labelled:
        assert point.chosen_on == "dev"
        assert np.array_equal(trace.labels, load_data(data).dev.labels)  # type: ignore[arg-type]
    else:
        assert point.chosen_on == train.OWN_ANSWERS
        assert point.measured["full_depth_score"] == pytest.approx(1.0)
        answers = {"regression": trace.logits[-1, :, 0], "single_label_classification": trace.logits[-1].argmax(-1)}
        np.testing.assert_allclose(trace.labels, answers.get(kind, trace.logits[-1] > 0), atol=1e-5)
    hashes = load_file(run.folder / "training_rows.safetensors")["hashes"]
    assert np.array_equal(hashes, row_hashes(load_data(data).train.texts))


@pytest.mark.parametrize(
    "recipe",
    ["de3bert", *(pytest.param(name, marks=pytest.mark.long) for name in ("deebert", "fastbert", "shallow_deep"))],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_every_recipe_learns(
    finetuned: Any, toy_data: Callable[[str], str], tmp_path: Path, recipe: str, labelled: bool
) -> None:
    plan = make(finetuned(), toy_data(KINDS[0]), tmp_path / "run", recipe=recipe, use_labels=labelled)
    run = attach(replace(plan, arguments=plan.arguments | {"max_steps": 90}))
    assert run.recipe == recipe
    assert_same_model(finetuned(), run.folder)
    trace = load_trace(run.folder / "traces" / "dev.safetensors")
    agreement = (trace.logits.argmax(-1) == trace.logits[-1].argmax(-1)).mean(axis=1)
    assert (agreement[:-1] > 0.5).all(), agreement  # of three classes
    if recipe == "de3bert":
        assert np.isfinite(trace.extras["distances"][:-1]).all()  # every class has a prototype
    history = json.loads((run.folder / "training.json").read_text())["history"]
    assert {entry["phase"] for entry in history} == {1}


def test_the_layers_run_once(finetuned: Any, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from offramp.model.modeling import EarlyExitMixin

    def never(*_: Any) -> Any:
        raise AssertionError("training read tokens")

    encode, seen = features._encode, []
    finetuned()  # which is training of another kind
    monkeypatch.setattr(EarlyExitMixin, "_from_tokens", never)
    monkeypatch.setattr(features, "_encode", lambda *a, **k: (seen.append(len(a[1])), encode(*a, **k))[1])
    for recipe, pooling, dtype in (
        ("de3bert", "mean", "float32"), ("fastbert", "mean", "float16"), ("deebert", None, "float16"),
    ):  # fmt: skip
        seen.clear()
        kept = module.kept_rows

        def looked(*args: Any, kept: Any = kept, dtype: str = dtype) -> Any:
            rows = kept(*args)
            assert str(rows.store.features.dtype) == dtype
            return rows

        monkeypatch.setattr(module, "kept_rows", looked)
        attach(make(finetuned(), unlabelled, tmp_path / recipe, recipe=recipe, pooling=pooling))
        monkeypatch.setattr(module, "kept_rows", kept)
        assert sum(seen) == 96


def test_labels_do_not_matter_where_they_are_not_wanted(
    finetuned: Any, toy_data: Callable[[str], str], unlabelled: Path, tmp_path: Path
) -> None:
    """Other names, in a column that would be taken for labels, and no column at all."""
    named = tmp_path / "named.jsonl"
    rows = [json.loads(line) for line in unlabelled.read_text().splitlines()]
    named.write_text("".join(json.dumps(row | {"label": f"x{n % 5}"}) + "\n" for n, row in enumerate(rows)))
    one = attach(make(finetuned(), unlabelled, tmp_path / "one")).folder
    other = attach(make(finetuned(), named, tmp_path / "other", use_labels=False)).folder
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_finetuning_afterwards_trains_everything(
    finetuned: Any, toy_data: Callable[[str], str], unlabelled: Path, tmp_path: Path
) -> None:
    for name, data in (("labels", toy_data(KINDS[0])), ("own", str(unlabelled))):
        run = attach(make(finetuned(), data, tmp_path / name, finetune=True, recipe="fastbert")).folder
        before, after = load_file(finetuned() / "model.safetensors"), load_file(run / "model.safetensors")
        assert not np.array_equal(before["classifier.weight"], after["classifier.weight"])
        history = json.loads((run / "training.json").read_text())["history"]
        assert {entry["phase"] for entry in history} == {1, 2}
        assert full_depth(run, TEXTS).argmax(-1).equal(full_depth(finetuned(), TEXTS).argmax(-1))
        assert load_early_exit(run).settings.objective == "weighted_sum"


def test_resume_gives_what_an_unbroken_run_gives(
    finetuned: Any, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offramp.training.trainer import ExitTrainer

    plan = make(finetuned(), unlabelled, tmp_path / "run")
    unbroken = attach(replace(plan, out=tmp_path / "unbroken")).folder
    step, encode, seen = ExitTrainer.training_step, features._encode, []

    def interrupted(self: ExitTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 15:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ExitTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attach(plan)
    monkeypatch.setattr(features, "_encode", lambda *a, **k: (seen.append(len(a[1])), encode(*a, **k))[1])
    attach(replace(plan, resume=True))
    assert not seen
    one, other = load_file(unbroken / "model.safetensors"), load_file(plan.out / "model.safetensors")
    assert all(np.array_equal(one[key], other[key]) for key in one)


# Labels


def written(path: Path, labels: list[Any]) -> Path:
    words = ["gem lovely", "dull broken", "weird dreamy"]
    path.write_text("".join(json.dumps({"text": words[n % 3], "label": x}) + "\n" for n, x in enumerate(labels)))
    return path


@pytest.mark.parametrize("style", ["names", "ids", "strings", "LABEL_"])
def test_labels_by_name_or_number(finetuned: Any, tmp_path: Path, style: str) -> None:
    from offramp.training.data import load_known

    names = ["bad", "good", "odd"]
    ids = [2, 0, 1] * 10
    styles: dict[str, list[Any]] = {
        "names": [names[i] for i in ids], "ids": ids, "strings": [str(i) for i in ids],
        "LABEL_": [f"LABEL_{i}" for i in ids],
    }  # fmt: skip
    file = written(tmp_path / "rows.jsonl", styles[style])
    found = load_known(str(file), dict(enumerate(names)))
    assert found.train.labels is not None
    assert found.dev.labels is not None
    joined = dict(zip(found.train.numbers + found.dev.numbers, [*found.train.labels, *found.dev.labels], strict=True))
    assert [joined[n + 1] for n in range(30)] == ids


def test_labels_the_model_does_not_have(finetuned: Any, tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", ["good", "bad", "splendid"] * 5)
    with pytest.raises(DataError, match=r"line 3: label 'splendid' is not one of those known .*--no-l"):
        attach(make(finetuned(), file, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_labels_of_some_rows_only(finetuned: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path / "rows.jsonl", ["good", None, "odd"] * 5)
    run = attach(make(finetuned(), file, tmp_path / "run", arguments={"max_steps": 3})).folder
    assert "5 of 15 rows have no label" in caplog.text
    assert read_points(run)[0].chosen_on == train.OWN_ANSWERS


WRONG = {"bad": 1, "good": 2, "odd": 0}


def relabelled(toy: str, folder: Path, parts: tuple[str, ...] = ("train", "dev")) -> Path:
    """The toy data with numbers that mean other classes in some of its parts."""
    for name in ("train", "dev"):
        rows = map(json.loads, (Path(toy) / f"{name}.jsonl").read_text().splitlines())
        new = (row | {"label": WRONG[row["label"]]} if name in parts else row for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    return folder


def test_numbers_that_mean_other_classes_are_refused(
    finetuned: Any,
    toy_data: Callable[[str], str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is trained; whoever trains the model on them too is only told."""
    data = relabelled(toy_data(KINDS[0]), tmp_path)
    said = (
        r"right on \d+\.\d % of 144 labelled rows, and to say always '\w+' would be on \d+\.\d %, so labels hardly "
        r"mean its own classes: check the label column, or give --no-labels"
    )
    with monkeypatch.context() as patch:
        patch.setattr(module, "fit", lambda _: pytest.fail("it was trained"))
        with pytest.raises(DataError, match=said):
            attach(make(finetuned(), data, tmp_path / "run"))
        patch.setattr(module, "ENOUGH", 48)  # then dev alone tells
        with pytest.raises(DataError, match="of 48 labelled rows"):
            attach(make(finetuned(), data, tmp_path / "run"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.jsonl", "train.jsonl"]
    assert "own classes" not in caplog.text
    attach(make(finetuned(), data, tmp_path / "run", arguments={"max_steps": 3}, finetune=True))
    assert "do labels mean the model's own classes?" in caplog.text


def test_a_small_dev_part_with_other_labels_is_doubted(
    finetuned: Any, toy_data: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = relabelled(toy_data(KINDS[0]), tmp_path, parts=("dev",))
    attach(make(finetuned(), data, tmp_path / "run", arguments={"max_steps": 3}))
    assert "of the dev texts as they are labelled, fewer than always the same answer would" in caplog.text
    caplog.clear()
    attach(make(finetuned(), toy_data(KINDS[0]), tmp_path / "run", arguments={"max_steps": 3}))
    assert "own classes" not in caplog.text


# What cannot be


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": "cascadebert"}, "recipe cascadebert needs the encoder to learn with its exits: attach one of"),
        ({"recipe": "deeebert"}, "deebert"),
        ({"last_exit": "head"}, "the last exit is the model's"),
        ({"use_labels": False, "settings": {"objective.alpha": 1.0}}, "objective.alpha says how to learn from labels"),
        ({"exits": ()}, "there are none: give it --exits"),
    ],
)
def test_plans_that_cannot_be(finetuned: Any, toy_data: Any, tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(KnobError, match=said):
        attach(make(finetuned(), toy_data(KINDS[0]), tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_does_not_serve_the_task(finetuned: Any, toy_data: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"and the data is regression: choose one that does \(.*joint"):
        attach(make(finetuned("regression"), toy_data("regression"), tmp_path / "run", recipe="de3bert"))


# Adapters


@pytest.fixture
def adapter(finetuned: Any, tmp_path: Path) -> Path:
    """What PEFT saves: LoRA of rank 2 on the queries, and a head of its own."""
    folder, draw = tmp_path / "adapter", np.random.default_rng(0)
    folder.mkdir()
    settings = {
        "peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": str(finetuned()), "r": 2,
        "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": ["query"], "modules_to_save": ["classifier"],
        "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    shapes = {"classifier.weight": (4, 32), "classifier.bias": (4,)}
    for layer in range(3):
        name = f"bert.encoder.layer.{layer}.attention.self.query.lora_"
        shapes |= {f"{name}A.weight": (2, 32), f"{name}B.weight": (32, 2)}
    weights = {f"base_model.model.{key}": draw.normal(size=s).astype(np.float32) for key, s in shapes.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def test_an_adapter_without_peft(
    adapter: Path, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("importlib.import_module", _without_peft)
    with pytest.raises(MissingExtraError, match=r"needs peft.*pip install 'offramp\[attach\]'"):
        attach(make(adapter, unlabelled, tmp_path / "run"))


def _without_peft(name: str, package: str | None = None) -> Any:
    import importlib

    if name == "peft":
        raise ModuleNotFoundError("No module named 'peft'", name="peft")
    return importlib.__import__(name, fromlist=["_"])


def test_an_adapter_is_merged(
    adapter: Path, finetuned: Any, unlabelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("peft")
    run = attach(make(adapter, unlabelled, tmp_path / "run", arguments={"max_steps": 6})).folder
    assert "is a PEFT adapter" in caplog.text
    base, merged = load_file(finetuned() / "model.safetensors"), load_file(run / "model.safetensors")
    added = load_file(adapter / "adapter_model.safetensors")
    name = "bert.encoder.layer.1.attention.self.query"
    change = added[f"base_model.model.{name}.lora_B.weight"] @ added[f"base_model.model.{name}.lora_A.weight"]
    np.testing.assert_allclose(merged[f"{name}.weight"], base[f"{name}.weight"] + 2 * change, atol=1e-5)
    assert np.array_equal(merged["classifier.weight"], added["base_model.model.classifier.weight"])
    assert Run.open(run).id2label == {n: f"LABEL_{n}" for n in range(4)}
    assert full_depth(run, TEXTS).shape == (4, 4)


def rewrite(path: Path, drop: tuple[str, ...] = (), **more: Any) -> None:
    """A file of weights without some and with others."""
    weights = {key: value for key, value in load_file(path).items() if key not in drop}
    save_file(weights | more, path, metadata={"format": "pt"})


POOLER = ("bert.pooler.dense.weight", "bert.pooler.dense.bias")


def test_an_adapter_whose_model_would_be_partly_random(
    adapter: Path, finetuned: Any, unlabelled: Path, tmp_path: Path
) -> None:
    """A pretrained encoder often has no pooler, and PEFT saves the head alone."""
    pytest.importorskip("peft")
    base = Path(shutil.copytree(finetuned(), tmp_path / "base"))
    rewrite(base / "model.safetensors", drop=POOLER)
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    plan = make(adapter, unlabelled, tmp_path / "run", arguments={"max_steps": 3})
    with pytest.raises(
        RunError, match=r"neither .*adapter nor its base .*base has the weights of bert\.pooler\.dense:"
    ):
        attach(plan)
    assert not (tmp_path / "run").exists()

    settings["modules_to_save"] = ["classifier", "pooler.dense"]
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    draw = np.random.default_rng(1)
    shapes = zip(POOLER, ((32, 32), (32,)), strict=True)
    brought = {f"base_model.model.{name}": draw.normal(size=shape).astype(np.float32) for name, shape in shapes}
    rewrite(adapter / "adapter_model.safetensors", **brought)
    merged = load_file(attach(plan).folder / "model.safetensors")
    assert all(np.array_equal(merged[name], brought[f"base_model.model.{name}"]) for name in POOLER)


@pytest.mark.parametrize("lacking", ["pooler.dense", ""])
def test_an_adapter_as_peft_saves_it(
    plain_model: Callable[..., Any], tiny_encoder: str, unlabelled: Path, tmp_path: Path, lacking: str
) -> None:
    """DeBERTa's pooler belongs to its classifier: an encoder has none, and LoRA saves none unless it is told to."""
    peft = pytest.importorskip("peft")
    plain_model("deberta-v2").deberta.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=4)
    also = {"modules_to_save": ["classifier"] if lacking else ["classifier", "pooler"]}
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query_proj"], **also)
    peft.get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    plan = make(tmp_path / "adapter", unlabelled, tmp_path / "run", arguments={"max_steps": 3})
    if lacking:
        with pytest.raises(RunError, match=f"has the weights of {lacking}: they would be drawn by chance"):
            attach(plan)
    else:
        merged = load_file(attach(plan).folder / "model.safetensors")
        assert np.array_equal(
            merged["pooler.dense.weight"], model.pooler.modules_to_save["default"].dense.weight.detach()
        )


@pytest.mark.parametrize("where", ["adapter", "base"])
def test_class_names_of_an_adapter(adapter: Path, finetuned: Any, unlabelled: Path, tmp_path: Path, where: str) -> None:
    pytest.importorskip("peft")
    if where == "adapter":
        names = ["north", "east", "south", "west"]
        (adapter / "config.json").write_text(json.dumps({"id2label": dict(enumerate(names))}))
    else:
        names = ["bad", "good", "odd"]
        three = {"base_model.model.classifier.weight": np.ones((3, 32), dtype=np.float32)}
        rewrite(
            adapter / "adapter_model.safetensors", **three,
            **{"base_model.model.classifier.bias": np.zeros(3, dtype=np.float32)},
        )  # fmt: skip
    run = attach(make(adapter, unlabelled, tmp_path / "run", arguments={"max_steps": 3}))
    assert run.id2label == dict(enumerate(names))
    assert (
        AutoModelForSequenceClassification.from_pretrained(run.folder).config.label2id[
            "good" if where == "base" else "east"
        ]
        == 1
    )


def test_an_adapter_from_the_hub(
    adapter: Path, finetuned: Any, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a file comes when it is asked for, and not with the one beside it."""
    pytest.importorskip("peft")
    cached_file = train.cached_file

    def fetched(name: str, file: str, **how: Any) -> str | None:
        if name != "somebody/adapter":
            found: str | None = cached_file(name, file, **how)
            return found
        if not (adapter / file).is_file():
            return None
        (tmp_path / "cache").mkdir(exist_ok=True)
        return str(shutil.copy(adapter / file, tmp_path / "cache" / file))

    monkeypatch.setattr(train, "cached_file", fetched)
    run = attach(make("somebody/adapter", unlabelled, tmp_path / "run", arguments={"max_steps": 3}))
    assert len(run.id2label) == 4


def test_an_adapter_of_a_run(adapter: Path, trained: Path, unlabelled: Path, tmp_path: Path) -> None:
    """The adapter's own rows nobody knows, but those of its base are."""
    pytest.importorskip("peft")
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(trained)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": f"the film {n}"}) + "\n" for n in range(8)))
    run = attach(make(adapter, other, tmp_path / "run", arguments={"max_steps": 3}))
    assert np.isin(Run.open(trained).training_hashes, run.training_hashes).all()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"task_type": "CAUSAL_LM"}, UnsupportedError, "adapter for CAUSAL_LM and not for classifying texts"),
        ({"base_model_name_or_path": ...}, RunError, "names no base model"),
        (None, RunError, "no adapter_model.safetensors"),
    ],
)
def test_adapters_that_cannot_be(
    adapter: Path, unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, error: Any, said: str
) -> None:
    monkeypatch.setattr(module, "require", lambda *_, **__: None)  # it is not reached
    settings = json.loads((adapter / "adapter_config.json").read_text())
    if change is None:
        (adapter / "adapter_model.safetensors").unlink()
    else:
        settings = {key: value for key, value in (settings | change).items() if value is not ...}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(error, match=said):
        attach(make(adapter, unlabelled, tmp_path / "run"))


def test_weights_in_a_pickle_are_read_as_tensors(finetuned: Any, unlabelled: Path, tmp_path: Path) -> None:
    """The older format, with nothing but tensors in it."""
    source = Path(shutil.copytree(finetuned(), tmp_path / "source"))
    weights = {key: torch.from_numpy(value) for key, value in load_file(source / "model.safetensors").items()}
    (source / "model.safetensors").unlink()
    torch.save(weights, source / "pytorch_model.bin")
    run = attach(make(source, unlabelled, tmp_path / "run", arguments={"max_steps": 3})).folder
    assert_same_model(finetuned(), run)
