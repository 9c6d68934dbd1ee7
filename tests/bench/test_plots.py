from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.errors import MissingExtraError
from offramp.traces.trace import Trace

pytest.importorskip("matplotlib")

from offramp.bench.plots import plot_comparison, save_png
from offramp.calibration.compare import compare


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=40)
    logits = [np.eye(2)[labels] * (e + 1) + rng.normal(size=(40, 2)) for e in range(4)]
    trace = Trace(
        logits=np.array(logits, dtype=np.float32),
        layers=np.arange(1, 5),
        lengths=np.ones(40, dtype=np.int64),
        problem_type="single_label_classification",
        id2label={0: "no", 1: "yes"},
        labels=labels,
    )
    return compare(trace, splits=3, resamples=20)


def test_a_png_that_can_be_read(result: dict[str, Any], tmp_path: Path) -> None:
    from matplotlib import image

    save_png(result, tmp_path / "new" / "plot.png", title="a < b & $x$ data")
    pixels = image.imread(tmp_path / "new" / "plot.png")
    assert pixels.shape[:2] == (800, 1280)
    assert pixels.std() > 0.05
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["plot.png"]


def test_same_result_same_picture(result: dict[str, Any]) -> None:
    assert plot_comparison(result) == plot_comparison(result)


def test_nothing_reached_and_no_oracle(result: dict[str, Any]) -> None:
    bare = copy.deepcopy(result)
    bare["oracle"] = None
    for row in bare["rows"]:
        row["curve"] = []
    assert plot_comparison(bare).startswith(b"\x89PNG")


def test_one_exit_only(result: dict[str, Any]) -> None:
    shallow = copy.deepcopy(result)
    shallow["layers"], shallow["num_layers"], shallow["exits"] = [4], 4, shallow["exits"][-1:]
    assert plot_comparison(shallow).startswith(b"\x89PNG")


def test_without_matplotlib(result: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Blocker(), *sys.meta_path])
    with pytest.raises(MissingExtraError, match=r"offramp\[plots\]"):
        plot_comparison(result)


class _Blocker:
    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
