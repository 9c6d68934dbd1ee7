from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from offramp.calibration.points import OperatingPoint
from offramp.calibration.sweep import LAMBDAS, candidates, choose
from offramp.criteria import Criterion, make
from offramp.errors import DataError, KnobError
from offramp.traces.curves import full_depth, measure
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

MakeTrace = Callable[..., Trace]


def with_more(trace: Trace, *names: str) -> Trace:
    """The trace with made-up extras of one number a unit."""
    rng = np.random.default_rng(1)
    shape = trace.logits.shape[:2]
    return replace(trace, extras={**trace.extras, **{name: rng.random(shape, dtype=np.float32) for name in names}})


def every_outcome(trace: Trace, criterion: Criterion) -> list[dict[str, float]]:
    """What a fine grid of thresholds gives, by replay."""
    return [
        measure(trace, replay(trace, criterion, {"threshold": float(t)})) for t in np.linspace(0, 1.01, 200)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["entropy", "confidence", "edr"])
@pytest.mark.parametrize("max_drop", [0.0, 1.0, 5.0, 100.0])
def test_fastest_that_loses_little(example: MakeTrace, name: str, max_drop: float) -> None:
    trace, criterion = example(), make(name)
    point = choose(trace, criterion, max_drop=max_drop)
    floor = full_depth(trace)["accuracy"] - max_drop / 100
    assert point.measured["score"] >= floor - 1e-9
    others = [o["layer_speedup"] for o in every_outcome(trace, criterion) if o["accuracy"] >= floor - 1e-9]
    assert point.measured["layer_speedup"] >= max(others) - 1e-9


@pytest.mark.parametrize("name", ["entropy", "confidence", "edr"])
@pytest.mark.parametrize("speedup", [1.0, 1.3, 2.0, 4.0])
def test_most_accurate_that_is_fast_enough(example: MakeTrace, name: str, speedup: float) -> None:
    trace, criterion = example(), make(name)
    point = choose(trace, criterion, speedup=speedup)
    assert point.measured["layer_speedup"] >= speedup - 1e-9
    others = [o for o in every_outcome(trace, criterion) if o["layer_speedup"] >= speedup]
    best = max(o["accuracy"] for o in others)
    assert point.measured["score"] >= best
    equal = [o["layer_speedup"] for o in others if o["accuracy"] == point.measured["score"]]
    assert point.measured["layer_speedup"] >= max(equal, default=0) - 1e-9, "the fastest of equals"


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_a_point_can_be_made_again(example: MakeTrace, kind: str) -> None:
    trace = with_more(example(kind), "gate", "null_space")
    for name, grid in candidates(trace):
        for setting in grid[-1:]:
            point = choose(trace, make(name, **setting), speedup=1.2, chosen_on="dev")
            again = OperatingPoint.from_json(point.to_json())
            found = measure(trace, replay(trace, make(again.criterion, **again.settings), dict(again.knobs)))
            assert found["layer_speedup"] == pytest.approx(point.measured["layer_speedup"])
            assert found[point.measured["metric"]] == pytest.approx(point.measured["score"])
            assert point.settings["problem_type"] == kind
            assert point.measured["full_depth_score"] == full_depth(trace)[point.measured["metric"]]
            assert (point.measured["n"], point.chosen_on, point.runtime, point.batch_size) == (60, "dev", "fake", 8)


def test_given_knobs_are_measured(example: MakeTrace) -> None:
    trace = example()
    point = choose(trace, make("patience"), knobs={"patience": 2}, name="mine")
    assert point.name == "mine"
    assert point.knobs == {"patience": 2}
    assert point.measured["score"] == measure(trace, replay(trace, make("patience"), {"patience": 2}))["accuracy"]
    with pytest.raises(KnobError, match="patience"):
        choose(trace, make("patience"), knobs={"patience": 0})


def test_another_metric(example: MakeTrace) -> None:
    point = choose(example(), make("entropy"), speedup=1.5, metric="matthews")
    assert point.measured["metric"] == "matthews"
    assert point.measured["score"] == point.measured["metrics"]["matthews"]


def test_wishes_that_cannot_be_met(example: MakeTrace) -> None:
    trace = example()
    with pytest.raises(KnobError, match=r"speed-up of 1\.\d\d at most"):
        choose(trace, make("patience"), speedup=3)  # patience needs two exits
    with pytest.raises(KnobError, match="1 or more"):
        choose(trace, make("entropy"), speedup=0.5)
    with pytest.raises(KnobError, match="0 points"):
        choose(trace, make("entropy"), max_drop=-1)
    for wishes in ({}, {"speedup": 2.0, "max_drop": 1.0}):
        with pytest.raises(KnobError, match="exactly one"):
            choose(trace, make("entropy"), **wishes)
    with pytest.raises(DataError, match="label"):
        choose(replace(trace, labels=None), make("entropy"), speedup=2)


def test_data_hash_knows_rows_not_their_order(example: MakeTrace) -> None:
    trace = example()
    hashes = [choose(t, make("entropy"), speedup=1).data_hash for t in (trace, trace.select(np.arange(60)[::-1]))]
    assert hashes[0] == hashes[1]
    assert hashes[0] != choose(trace.select(np.arange(59)), make("entropy"), speedup=1).data_hash
    assert choose(replace(trace, hashes=None), make("entropy"), speedup=1).data_hash is None


def test_candidates_fit_the_trace(example: MakeTrace) -> None:
    names = {name for name, _ in candidates(example())}
    plain = {"entropy", "confidence", "patience", "energy", "patience_entropy", "divergence", "window"}
    assert {"confidence_fallback", "depth", "dr", "edr", "nearest_prototype"} | plain <= names
    assert {name for name, _ in candidates(example(extras=False))} == names - {"dr", "edr", "nearest_prototype"}
    assert {name for name, _ in candidates(with_more(example(), "gate"))} == names | {"gate"}
    assert {name for name, _ in candidates(with_more(example(), "null_space"))} == names | {"cap"}
    assert {name for name, _ in candidates(example("regression"))} == {"patience_delta", "depth"}
    assert {name for name, _ in candidates(with_more(example("regression"), "gate"))} == {
        "patience_delta",
        "depth",
        "gate",
    }
    assert "patience_delta" not in names
    assert [s["lam"] for s in dict(candidates(example()))["edr"]] == list(LAMBDAS)
    for name, grid in candidates(example("multi_label_classification")):
        for setting in grid:
            assert make(name, **setting).problem_type == "multi_label_classification"
