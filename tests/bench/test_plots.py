from __future__ import annotations

import copy
import io
import sys
from typing import Any

import pytest

from offramp.errors import MissingExtraError

pytest.importorskip("matplotlib")

from offramp.bench.plots import plot_comparison


def test_a_png_that_can_be_read(result: dict[str, Any]) -> None:
    from matplotlib import image

    pixels = image.imread(io.BytesIO(plot_comparison(result, title="a < b & $x$ data")))
    assert pixels.shape[:2] == (800, 1600)
    assert pixels.std() > 0.05


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


def test_no_two_criteria_look_alike() -> None:
    from offramp.bench.plots import _COLOURS, _DASHES, _MARKS
    from offramp.criteria import available

    many = 2 * len(available())  # some have a row more for their default
    looks = {
        (_COLOURS[n % len(_COLOURS)], str(_DASHES[n % len(_DASHES)]), _MARKS[n % len(_MARKS)]) for n in range(many)
    }
    assert len(looks) == many
