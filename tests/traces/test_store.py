from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.errors import RunError
from offramp.traces.store import FORMAT, load_trace, save_trace
from offramp.traces.trace import SETTINGS, TENSORS, Trace


def example(kind: str = "single_label_classification", *, labelled: bool = True, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    width = 1 if kind == "regression" else 3
    distances = rng.random((4, 6, width)).astype(np.float32)
    distances[-1] = np.nan
    labels = {
        "single_label_classification": rng.integers(3, size=6),
        "multi_label_classification": rng.random((6, 3)) > 0.5,
        "regression": rng.normal(size=6).astype(np.float32),
    }[kind]
    return Trace(
        logits=rng.normal(size=(4, 6, width)).astype(np.float32),
        layers=np.array([1, 2, 4, 6]),
        lengths=rng.integers(1, 9, size=6),
        problem_type=kind,  # type: ignore[arg-type]
        id2label={c: f"Größe {c}" for c in range(width)},
        extras={"distances": distances},
        labels=labels if labelled else None,
        seconds=np.array([0.1, 0.2, 0.4, 0.6]),
        runtime="fake",
        batch_size=32,
        dtype="bfloat16",
        hashes=rng.integers(2**63, size=6).astype(np.uint64) * 2,
        model="abc",
    )


def assert_same(one: Trace, two: Trace) -> None:
    for name in TENSORS:
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_array_equal(a, b, err_msg=name)
            assert a.dtype == b.dtype, name
    assert one.extras.keys() == two.extras.keys()
    for name, values in one.extras.items():
        np.testing.assert_array_equal(values, two.extras[name])
    for name in SETTINGS:
        assert getattr(one, name) == getattr(two, name), name


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
@pytest.mark.parametrize("labelled", [True, False])
def test_what_is_written_is_read(tmp_path: Path, kind: str, labelled: bool) -> None:
    trace = example(kind, labelled=labelled)
    save_trace(trace, tmp_path / "new" / "dev.set")
    for name in ("dev.set", "dev.set.json", "dev.set.safetensors"):
        assert_same(trace, load_trace(tmp_path / "new" / name))
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["dev.set.json", "dev.set.safetensors"]


def test_an_empty_trace(tmp_path: Path) -> None:
    trace = example().select(np.zeros(6, dtype=bool))
    save_trace(trace, tmp_path / "none")
    assert load_trace(tmp_path / "none").num_units == 0


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="offramp record"):
        load_trace(tmp_path / "dev")


@pytest.mark.parametrize("half", ["dev.json", "dev.safetensors"])
def test_half_missing(tmp_path: Path, half: str) -> None:
    save_trace(example(), tmp_path / "dev")
    (tmp_path / half).unlink()
    with pytest.raises(RunError, match=half):
        load_trace(tmp_path / "dev")


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_newer(tmp_path: Path) -> None:
    save_trace(example(), tmp_path / "dev")
    edit(tmp_path / "dev.json", format=FORMAT + 1)
    with pytest.raises(RunError, match="upgrade"):
        load_trace(tmp_path / "dev")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": "one", "sha256": ""}', "\xff\xfe"]
)
def test_damaged_json(tmp_path: Path, content: str) -> None:
    save_trace(example(), tmp_path / "dev")
    (tmp_path / "dev.json").write_text(content, encoding="latin-1")
    with pytest.raises(RunError, match=r"dev\.json"):
        load_trace(tmp_path / "dev")


@pytest.mark.parametrize("change", [{"problem_type": "ranking"}, {"id2label": None}, {"id2label": {"a": "b"}}])
def test_json_that_says_nonsense(tmp_path: Path, change: dict[str, Any]) -> None:
    save_trace(example(), tmp_path / "dev")
    edit(tmp_path / "dev.json", **change)
    with pytest.raises(RunError):
        load_trace(tmp_path / "dev")


def test_json_that_lacks_something(tmp_path: Path) -> None:
    save_trace(example(), tmp_path / "dev")
    record = json.loads((tmp_path / "dev.json").read_text())
    del record["batch_size"]
    (tmp_path / "dev.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="batch_size"):
        load_trace(tmp_path / "dev")


def test_damaged_tensors(tmp_path: Path) -> None:
    save_trace(example(), tmp_path / "dev")
    path = tmp_path / "dev.safetensors"
    data = path.read_bytes()
    for damaged in (data[:-1], data[:100], b"", data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"dev\.safetensors"):
            load_trace(tmp_path / "dev")


def test_files_of_two_recordings(tmp_path: Path) -> None:
    save_trace(example(seed=1), tmp_path / "one")
    save_trace(example(seed=2), tmp_path / "two")
    os.replace(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    with pytest.raises(RunError, match="interrupted"):
        load_trace(tmp_path / "two")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("written", [0, 1])
def test_a_save_that_fails_leaves_the_old_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, written: int
) -> None:
    """At the arrays, or once they are written."""
    old = example(seed=1)
    save_trace(old, tmp_path / "dev")

    done: list[object] = []

    def fail(file: object) -> None:
        done.append(file)
        if len(done) > written:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(type(error)):
            save_trace(example(seed=2), tmp_path / "dev")
    assert_same(old, load_trace(tmp_path / "dev"))
    assert len(list(tmp_path.iterdir())) == 2, "nothing half-written is left behind"
