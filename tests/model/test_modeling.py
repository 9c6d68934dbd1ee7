"""The early-exit model: still the model it was for everyone else, and whole again after a save and a load."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from offramp.errors import KnobError, RunError, UnsupportedError
from offramp.model.backbone import cut
from offramp.model.exits import ExitSettings, make_stages
from offramp.model.modeling import (
    add_exits,
    load_early_exit,
    load_finetuned,
    load_plain,
    load_unfinished,
    parameters_of,
)
from offramp.types import Stage

FAMILIES = ("bert", "roberta", "distilbert", "albert", "electra", "mpnet", "deberta-v2", "modernbert")
DISTANT = ExitSettings(head="prototypical", head_settings={"width": 8}, objective="distance_aware")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
Make = Callable[..., Any]


def say(model: Any, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_from_end_to_end(family: str, tiny_model: Make, plain_model: Make, rows: Make, tmp_path: Path) -> None:
    inputs = rows()
    untouched = plain_model(family)
    model = tiny_model(family, DISTANT)
    before = say(model, inputs)
    torch.testing.assert_close(before.logits, say(untouched, inputs).logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(before.exit_logits[:, -1], before.logits)
    assert before.exit_logits.shape == (6, model.config.num_hidden_layers, 3)
    assert before.loss is None

    model.train()
    loss = model(**inputs, labels=LABELS).loss
    loss.backward()
    assert torch.isfinite(loss)
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert not silent, "every parameter is reached by the loss"
    model.eval()

    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(untouched).__name__]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(plain) is type(untouched)
    assert torch.equal(say(plain, inputs).logits, say(untouched, inputs).logits)
    again = load_early_exit(tmp_path)
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(say(again, inputs).exit_logits, before.exit_logits)
    assert again.settings == model.settings


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved_whole(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, pickled, saved_whole])
@pytest.mark.parametrize("settings", [DISTANT, ExitSettings(head="own", members=(2,), pooling="backbone")])
def test_pickled_and_copied(again: Make, settings: ExitSettings, plain_model: Make, rows: Make) -> None:
    """The class is in no module under its name, so pickle must be told where it comes from."""
    model, inputs = add_exits(plain_model("bert"), settings).eval(), rows()
    other = again(model)
    assert type(other) is type(model)
    assert not other.training
    before = say(model, inputs).exit_logits
    assert torch.equal(say(other, inputs).exit_logits, before)
    # It lives on by itself: it learns, prototypes and all, and the first one stays as it was.
    optimizer = torch.optim.SGD(other.train().parameters(), lr=0.1)
    other(**inputs, labels=LABELS).loss.backward()
    optimizer.step()
    changed = {name for name, value in other.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert any(name.startswith("offramp.") for name in changed)
    assert ("offramp.heads.0.prototypes.means" in changed) == (settings is DISTANT)
    assert torch.equal(say(model, inputs).exit_logits, before)


def test_rows_alone_equal_rows_in_a_batch(tiny_model: Make, rows: Make) -> None:
    model, inputs = tiny_model("bert", DISTANT), rows()
    together = say(model, inputs).exit_logits
    for i, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
        alone = say(model, {"input_ids": inputs["input_ids"][i : i + 1, :length]}).exit_logits
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-5)


def test_token_types_are_read(tiny_model: Make, rows: Make) -> None:
    model, inputs = tiny_model("bert"), rows()
    types = torch.ones_like(inputs["input_ids"])
    assert not torch.allclose(say(model, inputs | {"token_type_ids": types}).logits, say(model, inputs).logits)


# Where exits stand


@pytest.mark.parametrize("layers", [None, (2,), (1, 3), (), (1, 2, 3)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("last_exit", ["model", "head"])
def test_exits_after_chosen_layers(
    layers: Any, shared: bool, last_exit: Any, tiny_model: Make, rows: Make, tmp_path: Path
) -> None:
    settings = ExitSettings(
        head="prototypical", head_settings={"width": 4}, layers=layers, shared=shared, last_exit=last_exit
    )
    model, inputs = tiny_model("bert", settings), rows()
    ends = [1, 2, 3] if layers is None else sorted({*layers, 3})
    assert [stage.layers for stage in model.stages] == ends
    said = say(model, inputs)
    assert said.exit_logits.shape == (6, len(ends), 3)
    everywhere = tiny_model("bert", ExitSettings(head="linear"))
    if last_exit == "model":
        assert torch.equal(said.logits, say(everywhere, inputs).logits)
    else:
        assert not torch.allclose(said.logits, say(everywhere, inputs).logits)
    early = len(ends) - 1
    assert len(model.offramp.early) == (min(early, 1) if shared else early)
    assert model.offramp.extras() == ({"distances": 3} if early else {})
    model.save_pretrained(tmp_path)
    again = load_early_exit(tmp_path)
    assert again.stages == model.stages
    assert torch.equal(say(again, inputs).exit_logits, said.exit_logits)


def test_stages() -> None:
    assert make_stages(4, (1, 3)) == (
        Stage(0, 0, 1, 1),
        Stage(1, 1, 3, 3),
        Stage(2, 3, 4, 4, is_last=True),
    )
    assert [stage.last_layer for stage in make_stages(3, None)] == [1, 2, 3]
    assert make_stages(3, ()) == (Stage(0, 0, 3, 3, is_last=True),)


@pytest.mark.parametrize("layers", [(0,), (5,), (2, 1), (2, 2), (-1,)])
def test_exits_where_there_is_no_layer(layers: tuple[int, ...]) -> None:
    with pytest.raises(KnobError, match="exits must be rising layer numbers between 1 and 4"):
        make_stages(4, layers)


@pytest.mark.parametrize("settings", [{"pooling": "max"}, {"last_exit": "none"}, {"head": "lineer"}])
def test_settings_that_make_no_sense(settings: dict[str, str], plain_model: Make) -> None:
    with pytest.raises(KnobError, match=r"must be|is called"):
        add_exits(plain_model("bert"), ExitSettings(**settings))


def test_settings_that_make_no_sense_leave_the_model_as_it_was(plain_model: Make) -> None:
    model = plain_model("bert")
    kind, config, names = type(model), model.config.to_dict(), list(model.state_dict())
    with pytest.raises(KnobError):
        add_exits(model, ExitSettings(head_settings={"width": 3}))
    assert type(model) is kind
    assert model.config.to_dict() == config
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("pooling", ["cls", "mean", "backbone"])
def test_pooling(pooling: Any, tiny_model: Make, rows: Make) -> None:
    model, inputs = tiny_model("bert", ExitSettings(pooling=pooling)), rows()
    with torch.no_grad():
        hidden = model.bert(**inputs, output_hidden_states=True).hidden_states[1]
        for i, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
            pooled = {
                "cls": hidden[i, 0],
                "mean": hidden[i, :length].mean(dim=0),
                "backbone": model.bert.pooler(hidden[i : i + 1])[0],
            }[pooling]
            expected = model.offramp.heads[0].classifier(pooled)
            torch.testing.assert_close(say(model, inputs).exit_logits[i, 0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_every_exit_weighs_tokens_by_itself(shared: bool, tiny_model: Make, rows: Make) -> None:
    """Held to the softmax written out, text by text; the last exit of ours does so too."""
    settings = ExitSettings(pooling="attention", shared=shared, last_exit="head")
    model, inputs = tiny_model("bert", settings), rows()
    exits = [*(model.offramp.head(e) for e in range(len(model.stages) - 1)), model.offramp.last]
    assert len({id(exit_.attention) for exit_ in exits}) == (2 if shared else len(exits))
    said = say(model, inputs).exit_logits
    with torch.no_grad():
        states = model.bert(**inputs, output_hidden_states=True).hidden_states[1:]
        for e, (exit_, hidden) in enumerate(zip(exits, states, strict=True)):
            for i, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
                tokens = hidden[i, :length]
                shares = (tokens @ exit_.attention.query).exp()
                expected = exit_.classifier((shares[:, None] * tokens).sum(dim=0) / shares.sum())
                torch.testing.assert_close(said[i, e], expected, atol=1e-5, rtol=1e-5)


def test_attention_begins_as_the_mean(plain_model: Make, rows: Make) -> None:
    models = [add_exits(plain_model("bert"), ExitSettings(pooling=pooling)) for pooling in ("mean", "attention")]  # type: ignore[arg-type]
    for mean, attention in zip(*(model.offramp.early for model in models), strict=True):
        attention.classifier.load_state_dict(mean.classifier.state_dict())
    inputs = rows()
    torch.testing.assert_close(*(say(model.eval(), inputs).exit_logits for model in models), atol=1e-6, rtol=1e-5)


def test_smaller_models_cannot_weigh_tokens(plain_model: Make) -> None:
    with pytest.raises(KnobError, match="pooling must be cls, mean or backbone"):
        add_exits(plain_model("bert"), ExitSettings(head="own", members=(2,), pooling="attention"))


def test_fresh_heads_and_copied_norms(plain_model: Make) -> None:
    """ModernBERT has no norm between layers: each exit begins with a copy of the final one, its own from then on."""
    plain = plain_model("modernbert")
    final = {name: value.clone() for name, value in plain.model.final_norm.state_dict().items()}
    model = add_exits(plain, ExitSettings(last_exit="head"))
    assert len(model.offramp.norms) == 3
    for norm in model.offramp.norms:
        assert norm.eps == plain.model.final_norm.eps
        assert norm.weight is not plain.model.final_norm.weight
        assert all(torch.equal(value, final[name]) for name, value in norm.state_dict().items())
    for head in model.offramp.early:
        assert torch.equal(head.classifier.bias, torch.zeros(3))
        assert 0 < head.classifier.weight.std().item() < 3 * model.config.initializer_range


def test_modernbert_norms_early_exits_only(tiny_model: Make, rows: Make) -> None:
    settings = ExitSettings(pooling="cls", last_exit="head")
    model, inputs = tiny_model("modernbert", settings), rows()
    with torch.no_grad():
        hidden = model.model(**inputs, output_hidden_states=True).hidden_states
        normed = [norm(h[:, 0]) for norm, h in zip(model.offramp.norms, hidden[1:4], strict=False)]
        expected = [h.classifier(n) for h, n in zip(model.offramp.early, normed, strict=True)]
        expected.append(model.offramp.last.classifier(hidden[-1][:, 0]))  # transformers has normed it already
    torch.testing.assert_close(say(model, inputs).exit_logits, torch.stack(expected, dim=1), atol=1e-4, rtol=1e-4)


def test_every_parameter_of_an_exit_is_used(tiny_model: Make, rows: Make) -> None:
    """One that is not makes DistributedDataParallel stop."""
    for pooling in ("cls", "attention"):
        settings = ExitSettings(last_exit="head", head="linear", pooling=pooling)  # type: ignore[arg-type]
        model = tiny_model("modernbert", settings).train()
        model(**rows(), labels=LABELS).loss.backward()
        heads = parameters_of(model, "heads")
        assert sum("attention" in name for name, _ in heads) == (3 if pooling == "attention" else 0)
        assert [name for name, p in heads if p.grad is None] == []


def test_parameters_by_whom_they_belong_to(tiny_model: Make) -> None:
    model = tiny_model("bert", DISTANT)
    heads, backbone, everything = (
        {name for name, _ in parameters_of(model, which)} for which in ("heads", "backbone", "all")
    )
    assert heads | backbone == everything == {name for name, _ in model.named_parameters()}
    assert not heads & backbone
    assert "classifier.weight" in backbone
    assert all(name.startswith("offramp.") for name in heads)


# Input that is refused


def test_padding_on_the_left(tiny_model: Make, rows: Make) -> None:
    inputs = rows()
    left = {name: value.flip(1) for name, value in inputs.items()}
    with pytest.raises(UnsupportedError, match="padded on the right"):
        say(tiny_model("bert"), left)


@pytest.mark.parametrize("mask", [[[1, 0, 1]], [[0, 0, 0]]], ids=["a hole", "nothing"])
def test_masks_that_are_no_padding_on_the_right(mask: list[list[int]], tiny_model: Make) -> None:
    with pytest.raises(UnsupportedError, match="padded on the right"):
        say(
            tiny_model("bert"), {"input_ids": torch.ones(1, 3, dtype=torch.int64), "attention_mask": torch.tensor(mask)}
        )


def test_de3bert_refuses_other_problem_types(tiny_model: Make, rows: Make) -> None:
    model = tiny_model("bert", DISTANT, problem_type="multi_label_classification")
    with pytest.raises(UnsupportedError, match="one class a text; the data is multi_label_classification"):
        model.train()(**rows(), labels=torch.zeros(6, 3))


@pytest.mark.parametrize(
    ("kind", "labels", "classes"),
    [
        ("multi_label_classification", torch.eye(3).repeat(2, 1).bool(), 3),
        ("regression", torch.arange(6) / 3, 1),
    ],
)
def test_other_problem_types(kind: str, labels: Any, classes: int, tiny_model: Make, rows: Make) -> None:
    model = tiny_model("bert", problem_type=kind, num_labels=classes).train()
    said = model(**rows(), labels=labels)
    said.loss.backward()
    assert said.exit_logits.shape == (6, 3, classes)
    assert torch.isfinite(said.loss)


# Damaged and hostile folders


@pytest.fixture
def saved(tiny_model: Make, tmp_path: Path) -> Path:
    tiny_model("bert", DISTANT).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("name", ["offramp.heads.1.prototypes.means", "classifier.weight"])
def test_a_missing_tensor(saved: Path, name: str) -> None:
    tensors = load_file(saved / "model.safetensors")
    assert name in tensors
    save_file(
        {key: value for key, value in tensors.items() if key != name}, saved / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(RunError, match=f"damaged: its weights lack {name}"):
        load_early_exit(saved)


def test_a_tensor_of_another_shape(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors["offramp.heads.0.classifier.weight"] = torch.zeros(7, 32)
    save_file(tensors, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="damaged"):
        load_early_exit(saved)


def test_a_file_cut_short(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RunError, match="damaged"):
        load_early_exit(saved)


@pytest.mark.parametrize("content", ["", "{}", '{"model_type": "bert"}', '{"model_type": "martian"}', "[1]"])
def test_a_config_that_is_none(saved: Path, content: str) -> None:
    (saved / "config.json").write_text(content)
    with pytest.raises(RunError):
        load_early_exit(saved)


def test_settings_from_a_newer_or_broken_config(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["offramp"]["head"] = "unheard_of"
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(KnobError, match="unheard_of"):
        load_early_exit(saved)


class Trap:
    """What it names is called by whoever unpickles it without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def trap(saved: Path, tmp_path: Path) -> Path:
    """A folder whose only weights are a pickle that runs code; the mark it leaves is ``tmp_path/sprung``."""
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save({**tensors, "extra": Trap(tmp_path / "sprung")}, saved / "pytorch_model.bin")
    return saved


def test_the_trap_works(trap: Path, tmp_path: Path) -> None:
    torch.load(trap / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("layers", [(), (3,)])
def test_a_run_with_no_exit_but_the_models_own_is_a_classifier(layers: Any, tiny_model: Make, tmp_path: Path) -> None:
    model = tiny_model("bert", ExitSettings(layers=layers))
    model.save_pretrained(tmp_path)
    plain = load_finetuned(str(tmp_path))
    assert type(plain) is BertForSequenceClassification
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())
    assert [stage.layers for stage in add_exits(plain, ExitSettings()).stages] == [1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ExitSettings(), "has exits already"),
        (ExitSettings(layers=(1,)), "has exits already"),
        (ExitSettings(members=(1,)), "has exits already"),
        (ExitSettings(layers=(), last_exit="head"), "answers with a head of offramp's own"),
    ],
)
def test_other_runs_are_no_plain_classifiers(
    settings: ExitSettings, said: str, tiny_model: Make, tmp_path: Path
) -> None:
    tiny_model("bert", settings).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=said):
        load_finetuned(str(tmp_path))


def test_weights_that_a_checkpoint_does_not_have_are_told(saved: Path) -> None:
    assert load_unfinished(str(saved))[1] == set()
    tensors = load_file(saved / "model.safetensors")
    tensors |= {"classifier.bias": torch.zeros(5)}
    del tensors["bert.pooler.dense.weight"]
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    _, made_up = load_unfinished(str(saved), ignore_mismatched_sizes=True)
    assert made_up == {"classifier.bias", "bert.pooler.dense.weight"}


@pytest.mark.parametrize("load", [load_early_exit, load_plain])
def test_pickles_are_never_executed(load: Callable[[Any], Any], trap: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError):
        load(str(trap))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bare_pickles_neither(saved: Path, tmp_path: Path) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for load in (load_early_exit, load_plain):
        with pytest.raises(RunError):
            load(str(saved))
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_of_nothing_but_tensors_loads_as_an_encoder(saved: Path) -> None:
    """Many older checkpoints are; ``weights_only`` reads them safely."""
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(tensors, saved / "pytorch_model.bin")
    assert torch.equal(load_plain(str(saved)).classifier.weight, tensors["classifier.weight"])
    with pytest.raises(RunError, match="safetensors"):
        load_early_exit(saved)


def test_code_beside_a_checkpoint_is_never_run(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}}
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "evil.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    load_plain(str(saved))
    load_early_exit(saved)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("model_type", ["gpt2", "t5", "martian"])
def test_models_that_are_no_encoder(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises((UnsupportedError, RunError)):
        load_plain(str(tmp_path))


def test_a_family_that_cannot_be_cut(plain_model: Make) -> None:
    model = plain_model("bert", is_decoder=True)
    with pytest.raises(UnsupportedError, match="decoder"):
        add_exits(model, ExitSettings())
    assert type(model) is BertForSequenceClassification


def test_exits_are_added_once(tiny_model: Make) -> None:
    with pytest.raises(UnsupportedError, match="has exits already"):
        add_exits(tiny_model("bert"), ExitSettings())


def test_a_cut_is_not_part_of_the_model(tiny_model: Make) -> None:
    model = tiny_model("bert")
    before = list(model.state_dict())
    cut(model)
    assert list(model.state_dict()) == before
