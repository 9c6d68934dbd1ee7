"""Traces of several complete models: the last exit costs more than the full model, and speed-ups know it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.criteria.confidence import Confidence
from offramp.errors import DataError
from offramp.traces.curves import area, curve, measure, score_at_speedup, static_exits
from offramp.traces.replay import Outcome, replay
from offramp.traces.store import load_trace, save_trace
from offramp.traces.trace import Trace


def trace(units: int = 1000, **changes: Any) -> Trace:
    rng = np.random.default_rng(0)
    settings: dict[str, Any] = {
        "logits": rng.normal(size=(2, units, 2)).astype(np.float32),
        "layers": np.array([2, 14]),
        "lengths": np.full(units, 5),
        "labels": rng.integers(0, 2, units),
        "problem_type": "single_label_classification",
        "id2label": {0: "no", 1: "yes"},
        "full_layers": 12,
    }
    return Trace(**(settings | changes))


def leaving(given: Trace, reach: int) -> Outcome:
    """The first ``reach`` units go to the large model."""
    exits = (np.arange(given.num_units) < reach).astype(np.int64)
    return Outcome(exits, given.logits[exits, np.arange(given.num_units)])


@pytest.mark.parametrize(("reach", "cost", "speedup"), [(1000, 14.0, 0.86), (303, 5.63, 2.13), (0, 2.0, 6.0)])
def test_the_cost_of_methods_section_19(reach: int, cost: float, speedup: float) -> None:
    """2.13x is a mean cost of 12 / 2.13 = 5.63 layers: 30 % of the rows reach the large model."""
    given = trace()
    outcome = leaving(given, reach)
    assert given.layers[outcome.exits].mean() == pytest.approx(cost, abs=0.01)
    assert measure(given, outcome)["layer_speedup"] == pytest.approx(speedup, abs=0.005)


def test_a_curve_agrees_with_replays() -> None:
    given = trace(200, lengths=np.arange(1, 201))
    found = curve(given, Confidence())
    # Neighbouring thresholds may be equally good: every point that is left must be what its replay says.
    for knob, fraction, tokens, score in zip(
        found.knobs["threshold"], found.layer_fraction, found.token_layer_fraction, found.score, strict=True
    ):
        values = measure(given, replay(given, Confidence(), {"threshold": float(knob)}))
        assert values["layer_fraction"] == pytest.approx(fraction)
        assert values["token_layer_fraction"] == pytest.approx(tokens)
        assert values["accuracy"] == pytest.approx(score)
    assert found.layer_fraction.max() <= 14 / 12 + 1e-9
    assert found.ends[0][0] == pytest.approx(2 / 12)
    assert np.isfinite(area(found))
    assert score_at_speedup(found, 2.0) is not None


def test_static_exits_are_told_against_the_full_model() -> None:
    assert [one["layer_speedup"] for one in static_exits(trace())] == [6.0, pytest.approx(12 / 14)]


def test_it_is_kept_on_disk_and_old_traces_still_load(tmp_path: Path) -> None:
    given = trace(20)
    save_trace(given, tmp_path / "one")
    assert load_trace(tmp_path / "one").num_layers == 12
    record = json.loads((tmp_path / "one.json").read_text())
    del record["full_layers"]  # as an older offramp wrote it
    (tmp_path / "one.json").write_text(json.dumps(record))
    old = load_trace(tmp_path / "one")
    assert old.full_layers is None
    assert old.num_layers == 14
    assert given.select(np.array([1, 3])).num_layers == 12


@pytest.mark.parametrize("wrong", [0, 15, -1])
def test_a_depth_that_cannot_be(wrong: int) -> None:
    with pytest.raises(DataError, match="full_layers must be from 1 to 14"):
        trace(3, full_layers=wrong)
