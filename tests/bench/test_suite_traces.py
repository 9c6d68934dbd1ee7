from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.bench.suite_traces import load_small, save_small, smallest
from offramp.criteria import make
from offramp.errors import RunError
from offramp.traces.curves import thresholds
from offramp.traces.replay import running_minimum, scores
from offramp.traces.trace import Trace


def some_trace(classes: int, units: int = 200, spread: float = 4.0, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=spread, size=(4, units, classes)).astype(np.float32)
    distances = np.abs(rng.normal(size=(4, units, classes))).astype(np.float32)
    distances[-1] = np.nan  # the last exit gives none
    distances[0, 3, 0] = np.inf  # a class without prototype
    gate = 1 - np.abs(rng.normal(scale=1e-5, size=(4, units))).astype(np.float32)
    return Trace(
        logits=logits,
        layers=np.arange(1, 5),
        lengths=rng.integers(3, 300, size=units),
        problem_type="single_label_classification",
        id2label={n: f"ü{n}" for n in range(classes)},
        labels=rng.integers(classes, size=units),
        extras={"distances": distances, "gate": gate},
        hashes=np.arange(units, dtype=np.uint64),
        runtime="torch",
        batch_size=32,
        model="abc",
    )


@pytest.mark.parametrize(("classes", "moves"), [(2, 2.0**-8), (3, 2.0**-8), (77, 1 / 128)])
def test_what_comes_back(tmp_path: Path, classes: int, moves: float) -> None:
    trace = some_trace(classes)
    save_small(trace, tmp_path / "a" / "t.npz")
    back = load_small(tmp_path / "a" / "t.npz")
    assert back.logits.dtype == np.float32
    assert np.abs(back.logits - trace.logits).max() <= moves
    same = ("layers", "lengths", "offsets", "labels")
    for name in same:
        np.testing.assert_array_equal(getattr(back, name), getattr(trace, name))
        assert getattr(back, name).dtype == getattr(trace, name).dtype
    for name in ("problem_type", "id2label", "runtime", "batch_size", "dtype", "model"):
        assert getattr(back, name) == getattr(trace, name)
    assert back.hashes is None
    np.testing.assert_array_equal(back.extras["gate"], trace.extras["gate"])  # to the last bit
    np.testing.assert_allclose(back.extras["distances"], trace.extras["distances"], atol=moves)
    assert back.gives(0) == {"distances", "gate"}
    assert back.gives(3) == {"gate"}


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_other_problem_types(tmp_path: Path, kind: Any) -> None:
    trace = some_trace(1 if kind == "regression" else 3)
    labels: Any = np.linspace(0, 5, 200, dtype=np.float32) if kind == "regression" else trace.logits[0] > 0
    trace = replace(trace, problem_type=kind, labels=labels)
    save_small(trace, tmp_path / "t.npz")
    back = load_small(tmp_path / "t.npz")
    np.testing.assert_array_equal(back.labels_known(), labels)
    assert back.labels_known().dtype == labels.dtype


def test_units_of_items(tmp_path: Path) -> None:
    trace = some_trace(2, units=6)
    offsets = np.array([0, 2, 3, 6])
    trace = replace(trace, lengths=np.array([5, 9, 2]), offsets=offsets, hashes=None)
    save_small(trace, tmp_path / "t.npz")
    np.testing.assert_array_equal(load_small(tmp_path / "t.npz").offsets, offsets)


def test_numbers_that_float16_cannot_hold_stay_float32(tmp_path: Path) -> None:
    trace = some_trace(2)
    trace.logits[0, 0, 0] = 1e6
    save_small(trace, tmp_path / "t.npz")
    np.testing.assert_array_equal(load_small(tmp_path / "t.npz").logits, trace.logits)


def test_the_same_trace_makes_the_same_file(tmp_path: Path) -> None:
    for name in "ab":
        save_small(some_trace(5), tmp_path / f"{name}.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(("classes", "most"), [(2, 0.25), (77, 2.0)])
def test_it_is_small(tmp_path: Path, classes: int, most: float) -> None:
    """Megabytes for 10,000 rows and 6 exits of 2 classes, and for the 3,080 rows of 77: noise, the worst there is."""
    rng = np.random.default_rng(0)
    units = 10_000 if classes == 2 else 3_080
    logits = rng.normal(scale=2, size=(6, units, classes)).astype(np.float32)
    trace = replace(some_trace(classes, units), logits=logits, layers=np.arange(1, 7), extras={})
    assert save_small(trace, tmp_path / "t.npz") <= most * 1e6


@given(
    classes=st.sampled_from([2, 3, 10, 77]),
    spread=st.sampled_from([0.1, 1.0, 4.0, 20.0]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=30, deadline=None)
def test_entropy_decides_as_before_but_for_what_lies_at_the_threshold(
    tmp_path_factory: pytest.TempPathFactory, classes: int, spread: float, seed: int
) -> None:
    """Normalised entropy moves by no more than the logits do, so only units nearer than that may change sides."""
    trace = some_trace(classes, 120, spread, seed)
    path = tmp_path_factory.mktemp("small") / "t.npz"
    save_small(trace, path)
    back = load_small(path)
    rule = make("entropy")
    before, after = (running_minimum(scores(one, rule)) for one in (trace, back))  # type: ignore[arg-type]
    moved = np.abs(back.logits - trace.logits).max() + 1e-6
    assert np.abs(before - after).max() <= moved
    for threshold in thresholds(before, rule.knobs["threshold"], max_points=80):
        changed = (before < threshold) != (after < threshold)
        assert (np.abs(before - threshold)[changed] <= moved).all()


def test_damage_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no trace"):
        load_small(tmp_path / "none.npz")
    path = tmp_path / "t.npz"
    save_small(some_trace(2), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="damaged"):
        load_small(path)


@pytest.mark.parametrize(
    ("values", "kind"), [([0, 255], np.uint8), ([-1, 100], np.int8), ([-1, 255], np.int16), ([0, 70_000], np.uint32)]
)
def test_smallest(values: list[int], kind: type) -> None:
    found = smallest(np.array(values))
    assert found.dtype == kind
    assert found.tolist() == values
