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


def test_a_cell_and_its_table(trace_of: Any) -> None:
    pytest.importorskip("mapie")
    spec = importlib.util.spec_from_file_location("calibration_benchmark", ROOT / "benchmarks" / "calibration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)
    sure = rng.gamma(1, 2, size=(400, 1)) * np.eye(2)[labels]
    trace = trace_of([sure * (e + 1) + rng.normal(size=(400, 2)) * (3 - e) / 3 for e in range(3)], labels=labels)
    from offramp.criteria import make

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
