"""What only stands beside other rows: rows of equal speed, and rows that use the cores alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.bench.rows import Bench
from offramp.bench.serving import _compared


def a_row(name: str, group: str, speed: float, right: list[bool], lanes: int = 1, **facts: Any) -> dict[str, Any]:
    """A row as it is told before it is compared."""
    spread = {"median": speed, "low": speed, "high": speed, "rounds": [speed]}
    return {
        "name": name, "label": name, "group": group, "family": name.split("-")[0], "facts": facts,
        "Offline": {
            "without tokenisation": {"texts_per_second": spread}, "right": np.array(right),
            "way": {"threads": 2 // lanes, "lanes": lanes},
        },
    }  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(
        run=tmp_path, plain=tmp_path, texts=["a", "b"], labels=np.array([0, 1]), work=tmp_path, scenarios=["Offline"]
    )


def compared(bench: Bench, *rows: dict[str, Any]) -> dict[str, Any]:
    _compared(rows, np.array([True, True]), bench)
    return {row["name"]: row["Offline"] for row in rows}


def test_the_static_exit_of_equal_speed_may_be_of_another_runtime(bench: Bench) -> None:
    found = compared(
        bench,
        a_row("x-exits", "exits", 100.0, [True, True], token_layer_fraction=0.5),
        a_row("x-exit-1", "shallow", 150.0, [False, False]),
        a_row("y-exit-2", "shallow", 95.0, [True, False]),
    )
    static = found["x-exits"]["shallow"]
    assert (static["name"], static["speed"], static["points"]) == ("y-exit-2", 0.95, 50.0)


def test_rows_that_use_the_cores_otherwise_tell_nothing_of_the_engine(bench: Bench) -> None:
    rows = [
        a_row("x-full", "full", 90.0, [True, True]),
        a_row("x-whole", "whole", 100.0, [True, True]),
        a_row("x-exits", "exits", 150.0, [True, True], token_layer_fraction=0.5),
        a_row("x-others", "exits", 180.0, [True, True], lanes=2, token_layer_fraction=0.5),
    ]
    found = compared(bench, *rows)
    assert found["x-full"]["engine_against_whole_graph"]["median"] == pytest.approx(0.9)
    assert found["x-exits"]["wall_over_layers"] == pytest.approx(90 / 150 / 0.5)
    assert "wall_over_layers" not in found["x-others"]
