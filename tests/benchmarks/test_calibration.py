"""docs/calibration.md is what the stored numbers say; a cell is what certify and replay say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/calibration.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_page_says_what_the_results_say() -> None:
    done = run("--check")
    assert done.returncode == 0, done.stderr


def test_running_needs_traces() -> None:
    assert "name traces" in run().stderr


def script() -> Any:
    pytest.importorskip("mapie")
    spec = importlib.util.spec_from_file_location("calibration_benchmark", ROOT / "benchmarks" / "calibration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def trace(trace_of: Any) -> Any:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)
    sure = rng.gamma(1, 2, size=(400, 1)) * np.eye(2)[labels]
    return trace_of([sure * (e + 1) + rng.normal(size=(400, 2)) * (3 - e) / 3 for e in range(3)], labels=labels)


def test_a_cell_and_its_table(trace: Any) -> None:
    from offramp.criteria import make

    module = script()
    easy, hard = (module.cell(trace, make("entropy"), 200, risk, 4) for risk in (0.2, 0.005))
    assert easy["promised"] == 1
    assert 1 < easy["low"] <= easy["layer_speedup"] <= easy["high"] <= 3
    assert (hard["promised"], hard["layer_speedup"]) == (0, 1.0)
    result = {
        "tasks": [{"task": "toy", "n": 400, "num_layers": 3, "classes": 2, "runtime": "fake", "dtype": "float32",
                   "cells": [hard, {**easy, "risk": 0.05}]}],
        "confidence": 0.95, "draws": 4, "commit": None, "dirty": None, "date": "2026-01-01",
        "versions": {"mapie": "1", "numpy": "2", "scipy": "1"},
    }  # fmt: skip
    assert f"| entropy | 200 | nothing | - | - | {easy['layer_speedup']:.2f}x |" in module.tables(result)
    assert ", 4 calibrations a cell, 95 % confidence" in module.tables(result)
    result["tasks"][0]["cells"].append({**easy, "criterion": "learned_stopping", "draws": 10})
    assert ", 4 calibrations (10 of learned_stopping) a cell, 95 % confidence" in module.tables(result)


def test_held_out(trace: Any) -> None:
    """The rest has no say in the choice: only its own layers and answers are told."""
    module = script()
    first, rest = trace.select(np.arange(250)), trace.select(np.arange(250, 400))
    rows = list(module.held_out_rows(first, rest, "entropy"))
    assert [row["wish"] for row in rows] == ["99 % agreement", "1 % promised"]
    agreed, promised = rows
    assert 1 <= agreed["layer_speedup"] <= 3
    assert agreed["disagreement"][1] <= agreed["disagreement"][0] <= agreed["disagreement"][2]
    assert promised["layer_speedup"] is None  # 150 texts cannot prove 1 %
    assert list(module.held_out_rows(first, rest, "edr")) == []  # exits that give no distances
    result = {
        "runs": [{"task": "toy", "calibrated": 250, "n": 150, "num_layers": 3, "classes": 2, "rows": rows}],
        "commit": None, "dirty": None, "date": "2026-01-01", "versions": {"mapie": "1", "numpy": "2", "scipy": "1"},
    }  # fmt: skip
    assert f"| entropy | {agreed['layer_speedup']:.2f}x (" in module.held_out_tables(result)
    assert "| nothing |" in module.held_out_tables(result)
