from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.errors import RunError
from offramp.training import features

Cli = Callable[..., Any]
QUICK = ["--max_steps", "3", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def classifier(plain_model: Callable[..., Any], tiny_encoder: str, tmp_path_factory: Any) -> Path:
    """A classifier as transformers saves it. Do not change it."""
    folder: Path = tmp_path_factory.mktemp("classifier") / "model"
    plain_model("bert", id2label={0: "bad", 1: "good", 2: "odd"}).save_pretrained(folder)
    for file in Path(tiny_encoder).glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def mine(classifier: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(classifier, tmp_path / "model"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    words = ("gem", "dull", "weird", "the film", "a lovely story", "cold and flat")
    path.write_text("".join(json.dumps({"text": f"{word} of {n} people"}) + "\n" for n in range(4) for word in words))
    return path


def test_exits_from_a_log(cli: Cli, classifier: Path, log: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = cli("attach", classifier, "--data", log, "--out", out, *QUICK)
    assert done.status == 0, done
    assert done.err == (
        f"offramp: {log}: no dev part, so 2 of 24 rows were held out as dev\n"
        "offramp: dev has too few rows (2) for the default operating point to say much: choose one on more\n"
    )
    told = [line for line in done.out.splitlines() if line.startswith("epoch ")]
    assert told
    assert all("dev agreement with the model's own answers by exit: " in line for line in told)
    card = (out / "README.md").read_text()
    assert "agreement with the model's own answers" in card
    assert "accuracy" not in done.out + card
    lines = [line for line in done.out.splitlines() if not line.startswith("epoch ")]
    assert lines[0] == f"Saved {out}. At full depth it answers as before."
    assert lines[1] == "No labels were used: exits learned from the model's own answers."
    assert lines[2].startswith("Default operating point (edr): agreement with the full model's own answers ")
    assert lines[3] == f'Next: offramp predict {out} "a text"'
    assert os.listdir(tmp_path).count("run.training") == 0
    assert cli("predict", out, "a gem").lines[0]["label"] in ("bad", "good", "odd")
    assert cli("inspect", out, "a gem").status == 0
    assert cli("evaluate", out, "--data", log, "--rounds", 0).status == 2  # it has no labels to be held to


def test_labels_and_recipe(cli: Cli, classifier: Path, toy_data: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--recipe", "shallow_deep", "--exits", "1,2", "--pooling", "cls", "--finetune", "--num-train-epochs", "1"]
    done = cli("attach", classifier, "--data", toy_data(), "--out", out, *words, "--disable_tqdm", "true")
    assert done.status == 0, done
    assert f"Saved {out}. It was fine-tuned: answers at full depth are new." in done.out
    assert "(confidence_fallback): accuracy" in done.out
    assert "own answers" not in done.out
    assert "dev accuracy by exit: " in done.out
    assert "| layers | accuracy on dev |" in (out / "README.md").read_text()


def test_two_classes_without_names(
    cli: Cli, plain_model: Callable[..., Any], tiny_encoder: str, tmp_path: Path
) -> None:
    """transformers leaves these names out of config.json: they are its default."""
    import torch
    from transformers import AutoModelForSequenceClassification

    out = tmp_path / "run"
    plain_model("bert", num_labels=2).save_pretrained(tmp_path / "model")
    assert "id2label" not in json.loads((tmp_path / "model" / "config.json").read_text())
    for file in Path(tiny_encoder).glob("tokenizer*"):
        shutil.copy(file, tmp_path / "model")
    rows = [{"text": f"{('gem', 'dull')[n % 2]} of {n} people", "label": n % 2} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli("attach", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--out", out, *QUICK).status == 0
    assert cli("predict", out, "a charming film").lines[0]["label"] in ("LABEL_0", "LABEL_1")
    assert cli("evaluate", out, "--data", tmp_path / "rows.jsonl", "--rounds", 0).status == 0
    inputs = torch.arange(5, 13)[None]
    before, after = (AutoModelForSequenceClassification.from_pretrained(path) for path in (tmp_path / "model", out))
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    with torch.no_grad():  # not to the bit: how a file is laid out in memory decides how one row is summed up
        torch.testing.assert_close(after.eval()(inputs).logits, before.eval()(inputs).logits, rtol=0, atol=1e-5)


def test_ctrl_c_while_texts_are_encoded_keeps_what_is_done(
    cli: Cli, classifier: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that pass is nearly all of the time."""
    words = ("attach", classifier, "--data", log, "--out", tmp_path / "run", *QUICK, "--per_device_eval_batch_size", 4)
    monkeypatch.setattr(features, "PART", 8)
    encode, seen = features._encode, list[int]()

    def counted(*args: Any, stop: int = 10**6, **more: Any) -> Any:
        if sum(seen) >= stop:
            raise KeyboardInterrupt
        seen.append(len(args[1]))
        return encode(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(features, "_encode", lambda *args, **more: counted(*args, stop=12, **more))
        done = cli(*words)
    assert done.status == 130
    assert done.err.splitlines()[-1] == (
        "offramp: interrupted: the same command with --resume goes on from the texts encoded so far"
    )
    assert (sum(seen), sorted(os.listdir(tmp_path))) == (12, ["log.jsonl", "run.training"])
    seen.clear()
    monkeypatch.setattr(features, "_encode", counted)
    assert cli(*words, "--resume").status == 0
    assert sum(seen) == 24 - 8  # the first part was whole
    assert sorted(os.listdir(tmp_path)) == ["log.jsonl", "run"]


def test_ctrl_c_before_any_text_is_encoded_leaves_nothing(
    cli: Cli, classifier: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "_encode", stop)
    done = cli("attach", classifier, "--data", log, "--out", tmp_path / "run", *QUICK)
    assert (done.status, done.err.splitlines()[-1]) == (130, "offramp: interrupted")
    assert os.listdir(tmp_path) == ["log.jsonl"]


def test_exits_for_a_plain_run(
    cli: Cli, make_plan: Callable[..., Any], toy_data: Callable[..., str], log: Path, tmp_path: Path
) -> None:
    from offramp.run import Run
    from offramp.training.train import train

    plain = train(make_plan(tmp_path / "plain", recipe="plain", max_length=24)).folder
    out, rows = tmp_path / "run", Path(toy_data()) / "train.jsonl"
    done = cli("attach", plain, "--data", log, "--out", out, *QUICK, "--report_to", "none")
    assert done.status == 0, done
    assert Run.open(out).max_length == 24  # or long texts would be read otherwise than before
    assert len(Run.open(out).section["layers"] or [1, 2, 3]) == 3
    found = [json.loads(line) for line in cli("predict", out, "a gem", "weird", "--full-depth").out.splitlines()]
    before = [json.loads(line) for line in cli("predict", plain, "a gem", "weird", "--full-depth").out.splitlines()]
    assert [row["label"] for row in found] == [row["label"] for row in before]
    assert np.allclose([row["score"] for row in found], [row["score"] for row in before], atol=1e-6)
    # What the plain run was trained on, its exits must not be calibrated on.
    done = cli("calibrate", out, "--data", rows, "--max-risk", "0.5", "--confidence", "0.9")
    assert "96 of 96 rows were trained on" in done.error


def test_no_tokenizer(cli: Cli, mine: Path, log: Path, tmp_path: Path) -> None:
    for file in mine.glob("tokenizer*"):
        file.unlink()
    done = cli("attach", mine, "--data", log, "--out", tmp_path / "run", *QUICK)
    assert done.error == (
        f"{mine} has no tokenizer, without which every word is unknown: save the model's own there, "
        "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)"
    )
    assert sorted(os.listdir(tmp_path)) == ["log.jsonl", "model"]


class Runs:
    """Unpickling it would run something."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("/tmp/offramp-was-here",))


def broken(case: str, folder: Path) -> str:
    """A checkpoint that no exits can be given; what is said of it."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    kinds: dict[str, tuple[dict[str, Any], str]] = {
        "encoder-decoder": (
            {"model_type": "bart", "architectures": ["BartForSequenceClassification"]},
            "offramp cannot cut 'bart', an encoder-decoder model, into layers",
        ),
        "decoder-only": (
            {"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"]},
            "offramp cannot cut 'gpt2', a decoder-only model, into layers",
        ),
        "decoder": ({"is_decoder": True}, "offramp cannot cut 'bert' configured as a decoder"),
        "tokens": (
            {"architectures": ["BertForTokenClassification"]},
            f"{folder} was never fine-tuned to classify texts (it was saved as BertForTokenClassification): "
            "use `offramp train`, which does that",
        ),
        "unknown family": ({"model_type": "nosuch"}, f"cannot load a model from {folder}: "),
    }
    if case in kinds:
        changes, said = kinds[case]
        (folder / "config.json").write_text(json.dumps(config | changes))
        weights.unlink()  # it is told from the config
        if case == "tokens":
            model = transformers.BertForTokenClassification(transformers.BertConfig(**(config | changes)))
            model.save_pretrained(folder)
        return said
    tensors = load_file(weights)
    head = {name: tensors.pop(name) for name in ("classifier.weight", "classifier.bias")}
    if case == "pickle":
        weights.unlink()
        with (folder / "pytorch_model.bin").open("wb") as file:
            pickle.dump({"classifier.weight": Runs()}, file)
        return f"{folder}"
    if case == "own head":
        tensors |= {name.replace("classifier", "fc"): value for name, value in head.items()}
        save_file(tensors, weights, metadata={"format": "pt"})
        return (
            f"the head of {folder} cannot be told from its backbone: it has fc.bias where "
            "BertForSequenceClassification has classifier.bias; save it as BertForSequenceClassification"
        )
    if case == "no head":
        save_file(tensors, weights, metadata={"format": "pt"})
        return f"{folder} is damaged: its weights lack classifier.bias"
    if case == "another head":
        tensors |= head | {"classifier.weight": torch.zeros(5, 32)}
        save_file(tensors, weights, metadata={"format": "pt"})
        return f"{folder} is damaged: its weights lack classifier.weight"
    if case == "cut short":
        weights.write_bytes(weights.read_bytes()[:2000])
        return f"cannot load a model from {folder}: "
    raise AssertionError(case)


CASES = (
    "encoder-decoder", "decoder-only", "decoder", "tokens", "unknown family", "pickle", "own head", "no head",
    "another head", "cut short",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_checkpoints_that_no_exits_can_be_given(cli: Cli, mine: Path, log: Path, tmp_path: Path, case: str) -> None:
    said = broken(case, mine)
    done = cli("attach", mine, "--data", log, "--out", tmp_path / "run", *QUICK)
    assert said in done.error
    assert "\n" not in done.error
    assert not Path("/tmp/offramp-was-here").exists()
    assert sorted(os.listdir(tmp_path)) == ["log.jsonl", "model"]


def test_an_encoder_that_was_never_fine_tuned(cli: Cli, tiny_encoder: str, log: Path, tmp_path: Path) -> None:
    done = cli("attach", tiny_encoder, "--data", log, "--out", tmp_path / "run", *QUICK)
    assert done.error == (
        f"{tiny_encoder} was never fine-tuned to classify texts (it was saved as BertForMaskedLM): "
        "use `offramp train`, which does that"
    )


def test_a_run_has_exits_already(cli: Cli, trained: Path, log: Path, tmp_path: Path) -> None:
    assert "has exits already" in cli("attach", trained, "--data", log, "--out", tmp_path / "run").error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "righttool"], "recipe righttool needs the encoder to learn with its exits"),
        (["--problem-type", "tagging"], "no problem type is called 'tagging'"),
        (["--pooling", "max"], "pooling must be one of cls, mean, attention, backbone, not 'max'"),
        (["--feature_dtype", "int8"], "--feature_dtype must be float32 or float16, not 'int8'"),
        (["--exits", "9"], "exits must be rising layer numbers between 1 and 3"),
        (["--max_length", "5000"], "--max_length 5000 is more than"),
    ],
)
def test_options_that_cannot_be(
    cli: Cli, classifier: Path, log: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    done = cli("attach", classifier, "--data", log, "--out", tmp_path / "run", *QUICK, *words)
    assert done.status == 2
    assert said in done.err
    assert os.listdir(tmp_path) == ["log.jsonl"]


def test_there_is_no_such_model(cli: Cli, log: Path, tmp_path: Path) -> None:
    for name in (tmp_path / "nothing", "./models/nope", "my/models/nope"):
        done = cli("attach", name, "--data", log, "--out", tmp_path / "run")
        assert done.error == f"there is no folder {name}: check its name"
    done = cli("attach", "nobody/nothing", "--data", log, "--out", tmp_path / "run")
    assert "cannot load a model from nobody/nothing: " in done.error


class Session:
    """A network of which nothing, or a refusal, comes back."""

    def __init__(self, reached: bool) -> None:
        self.reached, self.asked = reached, 0

    def head(self, url: str, *, timeout: float) -> str:
        self.asked += 1
        assert url.startswith("https://")
        assert timeout <= 10
        if not self.reached:
            raise TimeoutError
        return "403"


def test_no_hub_is_said_once_and_at_once(cli: Cli, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library would try six times for each file."""
    import huggingface_hub

    from offramp.training import attach

    def load(name: str) -> Any:
        raise RunError(f"{name} was asked for")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(attach, "_load", load)
    words = ("attach", "models/nope", "--data", log, "--out", tmp_path / "run")
    for reached, cached, said, asked in (
        (False, None, "cannot load a model from models/nope: there is no such folder, and the hub cannot be reached: "
         "check the name, or the network", 1),
        (True, None, "models/nope was asked for", 1),
        (False, "/cache/config.json", "models/nope was asked for", 0),
    ):  # fmt: skip
        network = Session(reached)
        monkeypatch.setattr(huggingface_hub, "get_session", lambda network=network: network)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, cached=cached: cached)
        assert (cli(*words).error, network.asked) == (said, asked)


def test_rows_half_of_which_have_labels(cli: Cli, classifier: Path, tmp_path: Path) -> None:
    rows = [{"text": f"gem {n}", "label": "good" if n % 2 else None} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("attach", classifier, "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "run", *QUICK)
    assert "6 of 12 rows have no label, so those of the others are not used either" in done.err
    assert "\nNo labels were used: exits learned from the model's own answers.\n" in done.out


def test_a_seed_that_is_no_number(cli: Cli, classifier: Path, log: Path, tmp_path: Path) -> None:
    done = cli("attach", classifier, "--data", log, "--out", tmp_path / "run", "--seed", "many")
    assert done.error.startswith("--seed does not take 'many'")


def test_nothing_to_resume(cli: Cli, classifier: Path, log: Path, tmp_path: Path) -> None:
    done = cli("attach", classifier, "--data", log, "--out", tmp_path / "run", *QUICK, "--resume")
    assert done.error == f"there is nothing to resume in {tmp_path / 'run.training'}: attach without --resume"
    assert sorted(os.listdir(tmp_path)) == ["log.jsonl"]


def test_labels_of_other_classes_are_one_sentence(
    cli: Cli, mine: Path, toy_data: Callable[..., str], tmp_path: Path
) -> None:
    config = json.loads((mine / "config.json").read_text())
    names = ["odd", "bad", "good"]  # the answers of an untrained model, under names that are never right
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(mine)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data.copy_(model.classifier.bias.data.new_tensor([0.0, 0.0, 9.0]))
    model.save_pretrained(mine)
    rows = [json.loads(line) for line in (Path(toy_data()) / "train.jsonl").read_text().splitlines()]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    (mine / "config.json").write_text(json.dumps(config))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows if row["label"] != "good"))
    done = cli("attach", mine, "--data", data, "--out", tmp_path / "run", *QUICK)
    assert done.status == 2
    told = done.err.splitlines()
    assert len(told) == 2  # the first is about the part held out
    assert told[1].startswith("offramp: error: the full model is right on 0.0 % of ")
    assert sorted(os.listdir(tmp_path)) == ["model", "rows.jsonl"]  # nothing to go on from
    assert cli("attach", mine, "--data", data, "--out", tmp_path / "run", *QUICK, "--no-labels").status == 0


def test_a_run_that_is_replaced_is_said(cli: Cli, classifier: Path, log: Path, trained: Path, tmp_path: Path) -> None:
    from offramp.calibration.points import read_points, write_points

    out = Path(shutil.copytree(trained, tmp_path / "run"))
    [default] = read_points(out)
    promise = {"risk": 0.01, "of": "disagreement", "confidence": 0.95, "expected": False}
    write_points(out, [default, replace(default, name="risk-0.01", promise=promise)])
    words = ("attach", classifier, "--data", log, "--out", out, *QUICK)
    notice = f"offramp: {out} is a run already: when this is done it is replaced"
    calibrated = ", and its calibrated operating points ('risk-0.01') go with it"
    assert cli(*words).err.startswith(f"{notice}{calibrated}; another --out keeps it\n")
    assert cli(*words).err.startswith(f"{notice}; another --out keeps it\n")
