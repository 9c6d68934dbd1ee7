from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from offramp.training.lock import only_training

Cli = Callable[..., Any]

QUICK = ["--max_steps", "2", "--bf16", "false", "--pooling", "mean", "--exit-epochs", "0"]
FEW = [("a lovely gem", "good"), ("the dull film", "bad"), ("bright music", "good"), ("cold and flat", "bad")]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Fewer rows than a batch."""
    path = tmp_path / "few.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in FEW))
    return path


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_fewer_rows_than_a_batch(cli: Cli, tiny_encoder: str, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "few"
    done = cli("train", "--model", tiny_encoder, "--data", few, "--out", out, *QUICK, "--head_learning_rate=1e-3")
    assert done.status == 0, done
    assert done.err == (
        f"offramp: {few}: no dev part, so 1 of 4 rows were held out as dev\n"
        "offramp: dev has too few rows (1) for the default operating point to say much: choose one on more\n"
    )
    # Nothing of what transformers says: a line an evaluation, then ours.
    lines = done.out.splitlines()
    assert all(line.startswith("epoch ") for line in lines[:-4])
    assert lines[-4] == f"Saved {out}."
    measured = json.loads((out / "operating_points.json").read_text())["points"][0]["measured"]
    assert lines[-3].startswith(f"Default operating point (edr): accuracy {measured['score']:.4f} on dev")
    assert lines[-2:] == [
        f'Next: offramp predict {out} "a text"',
        f"      offramp compare {out} --trace {out}/traces/dev",
    ]
    assert os.listdir(out.parent) == ["few"]
    for command in (["predict", out, *(text for text, _ in FEW)], ["evaluate", out, "--data", few, "--rounds", 0]):
        assert cli(*command).status == 0
    arguments = json.loads((out / "training.json").read_text())["arguments"]
    assert arguments["head_learning_rate"] == 1e-3


def test_ctrl_c_while_saving_leaves_the_old_run_whole_and_resume_goes_on(
    cli: Cli, trained: Path, tiny_encoder: str, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "runs" / "run"))
    before = hashes(out)
    words = ("train", "--model", tiny_encoder, "--data", few, "--out", out, *QUICK)
    seen: list[str] = []

    def stop(folder: Path, *_: object) -> None:
        seen.extend(path.name for path in folder.iterdir())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("offramp.training.train.write_measured", stop)
        done = cli(*words)
    assert "model.safetensors" in seen  # the new run was half-written then
    assert done.status == 130
    assert done.err.splitlines()[-1] == (
        "offramp: interrupted: the same command with --resume goes on from the last checkpoint"
    )
    assert hashes(out) == before
    assert sorted(os.listdir(out.parent)) == ["run", "run.training"]
    assert cli("predict", out, "a gem").lines[0]["label"] in ("good", "bad", "odd")
    assert cli(*words, "--resume").status == 0
    assert os.listdir(out.parent) == ["run"]
    assert cli("predict", out, "a gem").lines[0]["label"] in ("good", "bad")


def test_no_space_left_while_saving(
    cli: Cli, trained: Path, tiny_encoder: str, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "runs" / "run"))
    before = hashes(out)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "README.md"))

    monkeypatch.setattr("offramp.training.train.write_measured", full)
    done = cli("train", "--model", tiny_encoder, "--data", few, "--out", out, *QUICK, "--save_strategy", "no",
               "--load_best_model_at_end", "false")  # fmt: skip
    assert done.status == 2
    assert done.err.splitlines()[-1] == f"offramp: error: {out}/README.md: No space left on device"
    assert hashes(out) == before
    assert os.listdir(out.parent) == ["run"]  # nothing to go on from, so nothing is left


def test_a_loss_that_is_no_number(cli: Cli, tiny_encoder: str, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "run"
    words = ("train", "--model", tiny_encoder, "--data", few, "--out", out, *QUICK, "--max_steps", 6)
    done = cli(*words, "--learning_rate", "1e30")
    assert done.status == 2
    last = done.err.splitlines()[-1]
    assert last.startswith("offramp: error: the ")
    assert "loss is nan" in last
    assert last.endswith("go on with --resume and a lower --learning_rate")
    assert os.listdir(out.parent) == ["run.training"]


def test_another_training_writes_to_the_same_folder(cli: Cli, tiny_encoder: str, few: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "run", tmp_path / "run.training"
    work.mkdir()
    (work / "plan.json").write_text("{}")  # of the other
    with only_training(work):
        done = cli("train", "--model", tiny_encoder, "--data", few, "--out", out, *QUICK)
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        f"offramp: error: another training writes to {work}: wait until it has ended, or give another --out\n"
    )
    assert sorted(os.listdir(tmp_path)) == ["few.tsv", "run.training"]
    assert os.listdir(work) == ["plan.json"]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """The system refuses to let a file of this process grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0.3, 1.2])
def test_no_room_for_a_checkpoint(
    cli: Cli, trained: Path, tiny_encoder: str, few: Path, tmp_path: Path, share: float
) -> None:
    """First for the weights, and then, with more room, for the optimiser's state."""
    room = int(share * (trained / "model.safetensors").stat().st_size)
    out = Path(shutil.copytree(trained, tmp_path / "runs" / "run"))
    before = hashes(out)
    with room_for(room):
        done = cli("train", "--model", tiny_encoder, "--data", few, "--out", out, *QUICK)
    assert done.status == 2
    last = done.err.splitlines()[-1]
    assert last.startswith(f"offramp: error: cannot write to {out}.training or {out}, is the disk full?")
    assert last.endswith("make room, then train again")
    assert "Traceback" not in done.err
    assert hashes(out) == before
    assert os.listdir(out.parent) == ["run"]


def test_a_folder_that_is_not_ours_is_neither_used_nor_removed(
    cli: Cli, tiny_encoder: str, few: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "run.training"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    done = cli("train", "--model", tiny_encoder, "--data", few, "--out", tmp_path / "run", *QUICK)
    assert done.status == 2
    assert "holds something else" in done.err
    assert (mine / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor does not go with early exits"),
        (["--prediction_loss_only", "true"], "--prediction_loss_only does not go with early exits"),
        (["--output_dir", "elsewhere"], "--output_dir does not go with early exits: the run folder is --out"),
        (["--resume_from_checkpoint", "there"], "--resume_from_checkpoint does not go with early exits: --resume goes"),
        (["--eval_do_concat_batches", "no"], "--eval_do_concat_batches no does not go with early exits: every exit"),
        (["--seed", str(2**32)], "--seed must be below 4294967296, not 4294967296"),
        (["--dataloader_drop_last", "true"], "--dataloader_drop_last leaves nothing of 3 rows in batches of 32: leave"),
        (["--optim", "galore_adamw"], "training arguments: "),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "training arguments: "),
        (["--seed", "-1"], "--seed must be 0 or more, not -1"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be 1 or more, not 0"),
        (["--learning_rate", "nan"], "--learning_rate must be 0 or more, not nan"),
        (["--metric_for_best_model", "nosuch"], "--metric_for_best_model must be one of exits_loss, loss, accuracy"),
        (["--save_strategy", "epoch"], "--save_strategy epoch does not go with --eval_strategy steps: give both alike"),
        (["--report_to", "nosuch"], "training arguments: nosuch is not supported"),
        (["--set", "criterion.fusion=foo"], "fusion must be one of harmonic, arithmetic, geometric, min, max"),
        (["--set", "criterion.own=foo"], "own must be one of predicted, nearest"),
    ],
)
def test_arguments_that_cannot_be(
    cli: Cli, tiny_encoder: str, few: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    done = cli("train", "--model", tiny_encoder, "--data", few, "--out", tmp_path / "run", *QUICK, *words)
    assert done.status == 2
    assert f"offramp: error: {message}" in done.err
    assert not (tmp_path / "run").exists()


def test_what_to_compare_on_is_never_what_was_trained_on(
    cli: Cli, tiny_encoder: str, few: Path, tmp_path: Path
) -> None:
    dev, out = tmp_path / "dev.tsv", tmp_path / "run"
    dev.write_text(few.read_text().replace("\t", " again\t").replace("text again", "text"))
    done = cli("train", "--model", tiny_encoder, "--data", few, "--dev", dev, "--out", out, *QUICK)
    assert done.out.splitlines()[-1] == f"      offramp compare {out} --data {dev}"


def test_out_must_be_a_folder_of_its_own(cli: Cli, tiny_encoder: str, few: Path) -> None:
    for folder in (".", "/", ".."):
        done = cli("train", "--model", tiny_encoder, "--data", few, "--out", folder, *QUICK)
        assert done.status == 2
        assert "give --out a folder of its own" in done.err


def test_rows_that_were_trained_on_are_named(cli: Cli, tiny_encoder: str, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = cli("train", "--model", tiny_encoder, "--data", few, "--out", out, *QUICK)
    assert done.out.splitlines()[-1] == f"      offramp compare {out} --trace {out}/traces/dev"
    for command in (["evaluate", out, "--data", few, "--rounds", 0], ["record", out, "--data", few]):
        assert "3 of 4 rows were trained on" in cli(*command).err
    other = tmp_path / "other.tsv"
    other.write_text("text\tlabel\nnobody has seen this\tgood\nnor this\tbad\n")
    assert "trained on" not in cli("record", out, "--data", other).err
