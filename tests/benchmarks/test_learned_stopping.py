"""What is told of learned stopping, by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("learned_stopping")


def test_seeds_are_averaged_row_by_row(script: Any) -> None:
    """Two seeds whose samples cancel out have no error, though each has one; a target one misses is missed."""
    up = np.array([1.0, -1.0, 1.0, -1.0])
    first = {"entropy": [(0.2, up), (0.4, up), (0.1, up)], "only here": [(0.0, up)] * 3}
    second = {"entropy": [(0.4, -up), (0.2, up), None]}
    found = script.over_seeds([first, second])
    assert list(found) == ["entropy"]
    assert found["entropy"][0] == pytest.approx([0.3, 0.0])
    assert found["entropy"][1] == pytest.approx([0.3, 1.0])
    assert found["entropy"][2] is None


def test_a_verdict_counts_published_criteria_once(script: Any) -> None:
    """Four tests of two criteria: p .0027, .0455 and twice .62; ours is none, nor the same by another name."""
    row = [[3.0, 1.0], [2.0, 1.0], [0.5, 1.0]]
    given = {
        "entropy": row,
        "static": [[9.0, 1.0]] * 3,
        "confidence": [[3.0, 1.0 + 1e-12], *row[1:]],
        "edr": [None, None, [-0.5, 1.0]],
    }
    found = {(one["criterion"], one["target"]): one for one in script.verdict(given)}
    assert list(found) == [("entropy", 1.5), ("entropy", 2.0)]
    assert found["entropy", 1.5]["p"] == pytest.approx(0.0027, abs=1e-4)
    assert found["entropy", 1.5]["corrected"] == pytest.approx(4 * 0.0027, abs=4e-4)
    assert found["entropy", 2.0]["corrected"] == pytest.approx(3 * 0.0455, abs=1e-3)


def test_means_over_tasks_take_them_as_independent(script: Any) -> None:
    tasks = [
        {"gaps": {"entropy": [[1.0, 3.0], None, [0.0, 1.0]]}},
        {"gaps": {"entropy": [[3.0, 4.0], [1.0, 1.0], [2.0, 0.0]]}},
    ]
    assert script.over_tasks(tasks) == {"entropy": [[2.0, 2.5], None, [1.0, 0.5]]}
