from __future__ import annotations

import errno
import json
import os
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from offramp.errors import DataError, TrainingError, UnsupportedError
from offramp.inputs.tokens import Encoded
from offramp.model import heads
from offramp.model.exits import ExitSettings
from offramp.model.modeling import EarlyExitMixin, parameters_of
from offramp.recipes import Phase, load_recipe, part
from offramp.training import features as module
from offramp.training import train as training
from offramp.training.features import (
    FeatureRows,
    FeatureStore,
    can_keep,
    encode_features,
    keep_features,
    size_on_disk,
)
from offramp.training.rows import Collate, Rows

MakeModel = Callable[..., Any]
FAMILIES = ("bert", "roberta", "distilbert", "albert", "electra", "mpnet", "deberta-v2", "modernbert")
HEADS = [info.name for info in pkgutil.iter_modules(heads.__path__) if info.name != "base"]
POOLINGS = ("cls", "mean", "backbone")


def texts(lengths: tuple[int, ...] = (11, 3, 17, 9, 1, 14), seed: int = 3) -> list[Encoded]:
    draw = np.random.default_rng(seed)
    return [Encoded(draw.integers(1, 41, n).astype(np.int32), None, False) for n in lengths]


def collated(rows: list[Encoded]) -> dict[str, torch.Tensor]:
    batch = Collate(0)([{"input_ids": row.tokens} for row in rows])
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def both(model: Any, rows: list[Encoded], tokens: bool) -> tuple[Any, Any]:
    """What the model says of rows, and of what was kept of them."""
    inputs = collated(rows)
    labels = torch.arange(len(rows)) % 3
    kept, last = model.encode(**inputs, tokens=tokens)
    mask = inputs["attention_mask"] if tokens else torch.ones(len(rows), 1, dtype=torch.int64)
    direct = model(**inputs, labels=labels)
    return direct, model(features=kept[:, :-1], attention_mask=mask, last_logits=last, labels=labels)


# What is kept is what heads read


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_every_family(tiny_model: MakeModel, family: str, pooling: Any) -> None:
    for last_exit in ("model", "head"):
        model = tiny_model(family, ExitSettings(pooling=pooling, last_exit=last_exit))
        direct, kept = both(model, texts(), tokens=False)
        torch.testing.assert_close(kept.exit_logits, direct.exit_logits, atol=2e-5, rtol=1e-4)
        assert torch.equal(kept.logits, direct.logits)
        torch.testing.assert_close(kept.loss, direct.loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_summary_is_all_that_pooler_and_head_read(plain_model: MakeModel, family: str) -> None:
    from offramp.model.backbone import cut

    for changes in ({}, {"classifier_pooling": "mean"}) if family == "modernbert" else ({},):
        parts = cut(plain_model(family, **changes))
        hidden, lengths = torch.randn(4, 7, parts.hidden_size), torch.tensor([7, 3, 1, 5])
        with torch.no_grad():
            alone = parts.summary(hidden, lengths)[:, None]
            ones = torch.ones_like(lengths)
            assert torch.equal(parts.pool(alone, ones), parts.pool(hidden, lengths))
            assert torch.equal(parts.head(alone, ones), parts.head(hidden, lengths))


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_says_what_it_reads(tiny_model: MakeModel, head: str, family: str) -> None:
    """A head that reads tokens and does not say so gives something else here."""
    for pooling in (*POOLINGS, "attention"):
        for changes in ({}, {"network": "attention"}) if head == "prototypical" else ({},):
            model = tiny_model(family, ExitSettings(head=head, head_settings=changes, pooling=pooling))
            direct, kept = both(model, texts(), tokens=model.offramp.reads_tokens)
            torch.testing.assert_close(kept.exit_logits, direct.exit_logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("head", ["linear", "prototypical", "attention", "mixing"])
def test_in_half_precision_heads_are_given_the_same(tiny_model: MakeModel, head: str, tmp_path: Path) -> None:
    model = tiny_model("bert", ExitSettings(head=head, pooling="mean"))
    rows = texts((9, 5, 9))
    store = keep_features(model, rows, tmp_path / "kept", pad_token=0, autocast=torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        direct, kept = model(**collated(rows)), model(**store.batch([0, 1, 2]))
    assert direct.exit_logits.dtype == kept.exit_logits.dtype
    assert direct.logits.dtype == kept.logits.dtype
    torch.testing.assert_close(kept.exit_logits, direct.exit_logits, atol=0.02, rtol=0.02)


def test_gradients_are_the_same(tiny_model: MakeModel) -> None:
    """Also of the exits' norms, which pre-norm families have, and which train with the heads."""
    found = []
    for use in ("tokens", "features"):
        model = tiny_model("modernbert", ExitSettings(head="prototypical", pooling="mean", objective="distance_aware"))
        model.requires_grad_(False)
        heads_of = parameters_of(model, "heads")
        for _, parameter in heads_of:
            parameter.requires_grad_(True)
        inputs: dict[str, Any] = collated(texts())
        if use == "features":
            with torch.no_grad():
                kept, last = model.encode(**inputs)
            inputs = {"features": kept[:, :-1], "last_logits": last}
        model(**inputs, labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
        found.append({name: p.grad for name, p in heads_of})
        assert all(p.grad is None for _, p in parameters_of(model, "backbone"))
    assert any(name.startswith("offramp.norms.") for name in found[0])
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, atol=1e-5, rtol=1e-4, msg=name)


# What is on disk


@pytest.fixture
def model(tiny_model: MakeModel) -> Any:
    return tiny_model("bert", ExitSettings(head="prototypical", pooling="mean"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows in each batch that the layers were run for."""
    encode, batches = module._encode, []

    def counted(model: Any, rows: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append(len(rows))
        return encode(model, rows, *args, **kwargs)

    monkeypatch.setattr(module, "_encode", counted)
    return batches


def same(one: FeatureStore, other: FeatureStore) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("features", "offsets", "last_logits")
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.booleans(), st.randoms(use_true_random=False))
def test_any_batch_of_a_store(
    tiny_model: MakeModel, tmp_path_factory: Any, lengths: Any, tokens: bool, draw: Any
) -> None:
    """Rows of any length in any order are what the model gives for each alone."""
    model = tiny_model("bert", ExitSettings(head="attention" if tokens else "linear", pooling="mean"))
    rows = texts(tuple(lengths))
    store = keep_features(model, rows, tmp_path_factory.mktemp("kept") / "a", pad_token=0, batch_size=4)
    chosen = [draw.randrange(len(rows)) for _ in range(5)]
    batch = store.batch(chosen)
    for place, row in enumerate(chosen):
        with torch.no_grad():
            alone, last = model.encode(**collated([rows[row]]), tokens=tokens)
        length = alone.shape[2]
        assert int(batch["attention_mask"][place].sum()) == length
        torch.testing.assert_close(batch["features"][place, :, :length], alone[0, :-1], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(batch["last_logits"][place], last[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_broken_off_pass_goes_on_after_its_last_part(
    model: Any, seen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(module, "PART", 8)
    rows = texts(tuple(range(1, 31)))
    whole = keep_features(model, rows, tmp_path / "whole", pad_token=0, batch_size=4)
    assert sum(seen) == 30
    seen.clear()
    write = module._write_at

    def breaks(*args: Any) -> None:
        if sum(seen) > 12:  # in the second part
            raise error
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_at", breaks)
        with pytest.raises(type(error)):
            keep_features(model, rows, tmp_path / "broken", pad_token=0, batch_size=4)
    seen.clear()
    told: list[int] = []
    again = keep_features(model, rows, tmp_path / "broken", pad_token=0, batch_size=4, progress=told.append)
    assert sum(seen) == 22
    assert sum(told) == 30
    assert same(whole, again)
    assert model.training is False


def test_what_else_is_not_taken_for_it(model: Any, seen: list[int], tmp_path: Path) -> None:
    def keep(rows: list[Encoded], **changes: Any) -> FeatureStore:
        seen.clear()
        return keep_features(model, rows, tmp_path / "kept", **({"pad_token": 0} | changes))

    rows = texts()
    first = keep(rows)
    assert seen
    with torch.no_grad():
        model.offramp.heads[0].classifier.weight.add_(1.0)  # heads read it, and make none of it
    model.config._name_or_path = "elsewhere"
    assert same(first, keep(rows))
    assert not seen
    other = [replace(rows[0], tokens=rows[0].tokens[::-1].copy()), *rows[1:]]
    for changes in (lambda: keep(other), lambda: keep(rows), lambda: keep(rows, dtype="float16"),
                    lambda: keep(rows, autocast=torch.bfloat16)):  # fmt: skip
        changes()
        assert seen
    keep(rows)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias.add_(0.5)
    changed = keep(rows)
    assert seen
    assert not same(first, changed)


def test_half_of_the_bytes(model: Any, tiny_model: MakeModel, tmp_path: Path) -> None:
    rows = texts()
    exact, half = (
        keep_features(model, rows, tmp_path / dtype, pad_token=0, dtype=dtype)  # type: ignore[arg-type]
        for dtype in ("float32", "float16")
    )
    assert half.features.nbytes == size_on_disk(model, rows, dtype="float16") == exact.features.nbytes // 2
    assert half.batch([0])["features"].dtype == torch.float32
    torch.testing.assert_close(half.batch([0, 3])["features"], exact.batch([0, 3])["features"], atol=2e-3, rtol=2e-3)
    tokens = tiny_model("bert", ExitSettings(head="attention"))
    store = keep_features(tokens, rows, tmp_path / "tokens", pad_token=0)
    assert store.features.nbytes == size_on_disk(tokens, rows)
    assert len(store.features) == sum(len(row) for row in rows)


@pytest.mark.parametrize(("dtype", "said"), [("float16", "keep its features in float32"), ("float32", "not finite")])
def test_numbers_that_do_not_fit(model: Any, tmp_path: Path, dtype: Any, said: str) -> None:
    with torch.no_grad():
        model.bert.encoder.layer[0].output.LayerNorm.bias.fill_(1e5 if dtype == "float16" else float("inf"))
    with pytest.raises(TrainingError, match=said):
        keep_features(model, texts(), tmp_path / "kept", pad_token=0, dtype=dtype)


def test_processes_share_the_work(model: Any, seen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 4)
    rows = texts(tuple(range(1, 21)))
    whole = keep_features(model, rows, tmp_path / "whole", pad_token=0, batch_size=2)
    done = []
    for number in range(2):
        seen.clear()
        store = keep_features(model, rows, tmp_path / "shared", pad_token=0, batch_size=2, share=(number, 2))
        done.append(sum(seen))
    assert done == [12, 8]
    assert same(whole, store)


def test_models_whose_features_cannot_be_kept(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("bert", ExitSettings(members=(1,)))
    model.requires_grad_(False)
    assert not can_keep(model)
    with pytest.raises(UnsupportedError, match="smaller complete models"):
        keep_features(model, texts(), tmp_path / "kept", pad_token=0)
    model = tiny_model("bert", ExitSettings(last_exit="head", head="policy"))
    for train, kept in (("all", False), ("heads", True), ("policy", True), ("backbone", False), ("last", False)):
        model.requires_grad_(False)
        for _, parameter in parameters_of(model, train):
            parameter.requires_grad_(True)
        assert can_keep(model) is kept, train


# For research


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_encode_features_gives_what_heads_are_given(tiny_model: MakeModel, family: str, pooling: Any) -> None:
    """Held to the vectors that the classifiers are in fact called with, one text at a time."""
    model = tiny_model(family, ExitSettings(pooling=pooling))
    rows = texts()
    found = encode_features(model, rows, batch_size=4)
    given_to: list[list[torch.Tensor]] = [[] for _ in model.offramp.heads]
    for calls, head in zip(given_to, model.offramp.heads, strict=True):
        head.classifier.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args[0][0]))
    with torch.no_grad():
        last = [model(**collated([row])).logits[0] for row in rows]
    assert found.pooled.shape == (len(model.stages), len(rows), given_to[0][0].shape[-1])
    for exit_, calls in enumerate(given_to):
        np.testing.assert_allclose(found.pooled[exit_], torch.stack(calls), atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(found.last_logits, torch.stack(last), atol=2e-5, rtol=1e-4)


def test_there_is_no_one_vector_where_exits_weigh_tokens(tiny_model: MakeModel) -> None:
    model = tiny_model("bert", ExitSettings(pooling="attention"))
    assert size_on_disk(model, texts((9, 5))) == 14 * size_on_disk(tiny_model("bert"), texts((9,)))
    with pytest.raises(UnsupportedError, match="no one vector"):
        encode_features(model, texts())


def test_encode_features_of_nothing(model: Any) -> None:
    with pytest.raises(DataError, match="no texts"):
        encode_features(model, [])


# Training on it


def never(*_: Any) -> Any:
    raise AssertionError("the encoder ran")


_DE3BERT = Phase(part("distance_aware", form="ratio", alpha=0.1, by="equal"), train="heads")
CASES = {
    "deebert": load_recipe("deebert").training,
    "fastbert": load_recipe("fastbert").training,
    "de3bert": (_DE3BERT,),
    "righttool": (Phase(part("weighted_sum"), train="heads"),),
    "consistentee": load_recipe("consistentee").training[:2],
}
"""Recipe -> phases, the last with a frozen encoder."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "deebert" else pytest.mark.long) for name in CASES]
)
def test_training_is_the_same_with_and_without(
    make_plan: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recipe = replace(load_recipe(name), training=CASES[name])
    monkeypatch.setattr(training, "load_recipe", lambda _: recipe)
    worth, run_phase, folders = training._is_worth_keeping, training._run_phase, []
    kept: list[bool] = []
    for use in (False, True):

        def decided(*args: Any, use: bool = use) -> bool:
            kept.append(use and worth(*args))
            return kept[-1]

        def watched(phase: Phase, *args: Any, use: bool = use) -> Any:
            with monkeypatch.context() as patch:
                if use and phase.train not in ("all", "backbone"):
                    patch.setattr(EarlyExitMixin, "_from_tokens", never)
                return run_phase(phase, *args)

        with monkeypatch.context() as patch:
            patch.setattr(training, "_is_worth_keeping", decided)
            patch.setattr(training, "_run_phase", watched)
            # A low rate: AdamW makes whole steps of what rounding leaves of gradients that are nearly 0.
            rates = {"learning_rate": 5e-4, "head_learning_rate": 5e-4}
            plan = make_plan(tmp_path / str(use), recipe=name, arguments={"max_steps": 12, "bf16": False} | rates)
            folders.append(training.train(plan).folder)
    assert any(kept)
    without, with_features = (load_file(folder / "model.safetensors") for folder in folders)
    assert without.keys() == with_features.keys()
    for key, value in without.items():
        if not key.endswith(".key.bias"):  # attention does not depend on it: all its gradient is rounding
            np.testing.assert_allclose(with_features[key], value, atol=1e-5, err_msg=key)
    told = [json.loads((folder / "training.json").read_text())["history"] for folder in folders]
    for one, other in zip(*told, strict=True):
        for key in ("loss", "eval_loss", "eval_exits_loss"):
            assert one.get(key) == pytest.approx(other.get(key), abs=1e-5), key


def test_little_training_is_not_worth_a_pass(make_plan: Callable[..., Any], tmp_path: Path, seen: list[int]) -> None:
    """Two steps of 16 rows ask for less than the 96 rows once."""
    training.train(make_plan(tmp_path / "short", recipe="deebert", arguments={"max_steps": 2}))
    assert not seen
    training.train(make_plan(tmp_path / "long", recipe="deebert", arguments={"max_steps": 6}))
    assert sum(seen) == 96 + 48


def test_a_full_disk_is_no_reason_to_fail(
    make_plan: Callable[..., Any], tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = os.statvfs(tmp_path)
    assert usage.f_bavail  # the real disk has room
    monkeypatch.setattr(training.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    training.train(make_plan(tmp_path / "run", recipe="deebert", arguments={"max_steps": 6}))
    assert not seen


def test_resume_takes_what_was_encoded(
    make_plan: Callable[..., Any], tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from offramp.training.trainer import ExitTrainer

    plan = make_plan(tmp_path / "run", recipe="deebert", arguments={"max_steps": 12})
    unbroken = training.train(replace(plan, out=tmp_path / "unbroken")).folder
    seen.clear()
    step = ExitTrainer.training_step

    def interrupted(self: ExitTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.moves == "heads" and self.state.global_step == 8:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ExitTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.train(plan)
    assert sum(seen) == 96 + 48
    seen.clear()
    training.train(replace(plan, resume=True))
    assert not seen
    one, other = (load_file(folder / "model.safetensors") for folder in (unbroken, plan.out))
    assert all(np.array_equal(one[key], other[key]) for key in one)
    assert not (tmp_path / "run.training").exists()


def test_rows_with_features_are_still_rows(model: Any, tmp_path: Path) -> None:
    rows = Rows(texts(), np.arange(6) % 3)
    kept = FeatureRows.of(rows, keep_features(model, rows.rows, tmp_path / "kept", pad_token=0))
    harder = replace(kept, hardness=np.arange(6, dtype=np.float32))
    batch = module.CollateFeatures(0)([harder[i] for i in (4, 1)])
    assert batch["labels"].tolist() == [1, 1]
    assert batch["hardness"].tolist() == [4.0, 1.0]
    assert len(harder[2]["input_ids"]) == 17
    with torch.no_grad():
        direct = model(**collated([rows.rows[4], rows.rows[1]])).exit_logits
        torch.testing.assert_close(model(**batch).exit_logits, direct, atol=2e-5, rtol=1e-4)
