"""The experiments of docs/drift.md on traces whose truth is known."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mapie")

from offramp.traces.trace import Trace

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drift() -> ModuleType:
    """Small: a looser promise on fewer texts, shorter streams."""
    module = script("drift")
    module.RISKS, module.CALIBRATION, module.BEFORE, module.SHADOW = (0.1, 0.05), 400, 100, 2
    module.LENGTH = module.CALM = 300
    return module


@pytest.fixture(scope="module")
def trace(trace_of: Callable[..., Trace]) -> Trace:
    """Exits that are often sure, and then right; unsure, and then mostly not."""
    return made(trace_of, easy=0.7, seed=0)


def made(trace_of: Callable[..., Trace], *, easy: float, seed: int, wrong: float = 0.0) -> Trace:
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=900)
    known = rng.random(900) < easy
    logits = []
    for e in range(4):
        says = np.where(known | (rng.random(900) < 0.3 + 0.2 * e) | (e == 3), labels, 1 - labels)
        says = np.where(known & (rng.random(900) < wrong) & (e == 0), 1 - labels, says)
        sure = np.where(known, rng.uniform(2, 4, 900), rng.uniform(0.1, 1.0 + 0.5 * e, 900))
        logits.append(np.eye(2)[says] * sure[:, None])
    return trace_of(logits, labels=labels)


def test_running_needs_traces() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/drift.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "name traces" in done.stderr


def test_a_model(drift: ModuleType, trace: Trace, trace_of: Callable[..., Trace]) -> None:
    others = {"harder": made(trace_of, easy=0.2, seed=1), "sure and wrong": made(trace_of, easy=0.7, seed=2, wrong=0.5)}
    found = drift.one_model(trace, others, 3, 4)
    price = {row["stream"]: row for row in found["price"]}
    assert price["like the calibration"]["agreement"][0] > 0.9
    assert price["harder"]["layer_speedup"] < price["like the calibration"]["layer_speedup"]
    assert price["sure and wrong"]["agreement"][0] < 0.8
    assert found["nothing changes"] == {"streams": 4, "texts": 300, "drift": 0, "risk": 0, "risk, promise kept": 0}
    rang = {(cell["stream"], cell["before"]): cell for cell in found["alarms"]}
    for before in (0, 100):
        assert rang["harder", before]["drift_rang"] == 1
        assert rang["sure and wrong", before]["risk_rang"] == 1
        assert rang["sure and wrong", before]["risk_quantiles"][1] < 200
    told = {(cell["stream"], row["policy"]): row for cell in found["policies"] for row in cell["rows"]}
    for policy in ("fixed", "monitor, falls back", "CeeBERT", "full depth"):
        assert ("harder", policy) in told
    lost = {policy: row["disagreement"][0] for (stream, policy), row in told.items() if stream == "sure and wrong"}
    assert lost["full depth"] == 0
    assert lost["monitor, falls back"] < lost["fixed"] - 0.05
    assert told["sure and wrong", "full depth"]["layer_speedup"] == 1
    result = {
        "models": [{"model": "toy", **found}], "false_alarms": 0.01, "before": 100, "length": 300, "risks": [0.1],
        "commit": None, "dirty": None, "date": "2026-01-01", "seeds": [0],
        "versions": {"torch": "2", "transformers": "5"},
    }  # fmt: skip
    page = script("tables").drift(result)
    assert "| sure and wrong | monitor, falls back |" in page
    assert "of 4 streams of 300 texts like those of the calibration, 0 rang for drift" in page
    assert "no labels" not in page


def test_a_stream_is_the_same_rows_for_every_policy(drift: ModuleType, trace: Trace) -> None:
    rng = np.random.default_rng(0)
    points, references = drift.calibrated(trace, rng)
    parts = drift.stream_of(trace, None, points, 50, rng)
    rows = drift.along(parts, points)
    assert rows.exits.shape == (3, 350)
    assert (rows.exits[-1] == 3).all()
    assert rows.losses[-1].sum() == 0
    fixed, full = (drift.chosen(parts, points, references, 0)[name] for name in ("fixed", "full depth"))
    np.testing.assert_array_equal(fixed[1], rows.losses[0])
    np.testing.assert_array_equal(full[2], rows.right[-1])
    labels = np.concatenate([np.asarray(one.labels)[places] for one, places in parts])
    classes = np.concatenate([one.logits[-1, places].argmax(axis=-1) for one, places in parts])
    np.testing.assert_array_equal(full[2], classes == labels)


def test_harm_is_drawn_more_often(drift: ModuleType, trace: Trace) -> None:
    rng = np.random.default_rng(0)
    points, _ = drift.calibrated(trace, rng)
    own = drift.rows_of(trace, points).losses[0].mean()
    made_up: Any = drift.along(drift.stream_of(trace, None, points, 0, rng), points).losses[0].mean()
    assert made_up == pytest.approx(10 * own / (1 + 9 * own), abs=0.08)
