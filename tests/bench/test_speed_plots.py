"""Pictures of a race: a panel a scenario, a bar a row, points where the held-out accuracy is."""

from __future__ import annotations

from typing import Any

import pytest

from offramp.bench import speed_plots

matplotlib = pytest.importorskip("matplotlib")


def row(name: str, group: str, speed: float, accuracy: float, **prepared: Any) -> dict[str, Any]:
    spread = {"median": speed, "low": speed / 2, "high": speed * 2, "rounds": [speed]}
    scenario = {"without tokenisation": {"texts_per_second": spread}, "accuracy": accuracy}
    return {
        "name": name, "label": f"offramp {name}", "group": group, "prepared": prepared,
        "family": "" if group == "peer" else "offramp-x",
        "Offline": scenario,
    }  # fmt: skip


RESULT = {
    "settings": {"max_rows": 32},
    "reference": {"accuracy": 0.9},
    "fastest_peer": {"Offline": "peer", "SingleStream": None},
    "rows": [
        row("peer", "peer", 100.0, 0.9),
        row("x, full depth", "full", 150.0, 0.9),
        row("offramp-x-exit-1", "shallow", 400.0, 0.7),
        row("offramp-x-exit-2", "shallow", 300.0, 0.8),
        row("offramp-x-lost-1-offline", "exits", 250.0, 0.95, held_out={"accuracy": 0.89}),
        {"name": "absent", "label": "absent", "group": "peer", "family": "", "failure": "is not installed"},
    ],
}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures as they are when they are written."""
    seen: list[Any] = []
    write = speed_plots._png
    monkeypatch.setattr(speed_plots, "_png", lambda figure: (seen.append(figure), write(figure))[1])
    return seen


def test_bars(figures: list[Any]) -> None:
    assert speed_plots.plot_speed(RESULT).startswith(b"\x89PNG")
    [axes] = figures[0].axes  # no panel for a scenario that nothing was timed in
    assert [bar.get_width() for bar in axes.patches] == [100.0, 150.0, 250.0, 300.0, 400.0]
    assert "batches of 32" in axes.get_title()


def test_points(figures: list[Any]) -> None:
    assert speed_plots.plot_accuracy(RESULT).startswith(b"\x89PNG")
    [axes] = figures[0].axes
    points = {(line.get_xdata()[0], round(line.get_ydata()[0], 6)) for line in axes.lines if len(line.get_xdata()) == 1}
    assert points == {(100.0, 90.0), (150.0, 90.0), (400.0, 70.0), (300.0, 80.0), (250.0, 89.0)}
    words = [text.get_text() for text in axes.texts]
    assert words == ["offramp peer", "2", "1"]
    [static] = [line for line in axes.lines if list(line.get_xdata()) == [150.0, 300.0, 400.0]]
    [early] = [line for line in axes.lines if list(line.get_xdata()) == [150.0, 250.0]]
    assert static.get_color() == early.get_color() != "#9AA0A6"
    [legend] = figures[0].legends
    assert "offramp, x" in [text.get_text() for text in legend.get_texts()]


def test_colours_for_runtimes_with_exits_only(figures: list[Any]) -> None:
    """More runtimes than colours: two with lines never look alike, and a lone point takes none of them."""
    lone = [row(f"lone {i}, full depth", "full", 10.0 + i, 0.9) | {"family": f"lone-{i}"} for i in range(9)]
    speed_plots.plot_accuracy({**RESULT, "rows": lone + RESULT["rows"]})
    [axes] = figures[0].axes
    [early] = [line for line in axes.lines if list(line.get_xdata()) == [150.0, 250.0]]
    points = [line for line in axes.lines if len(line.get_xdata()) == 1 and line.get_xdata()[0] < 20.0]
    assert {line.get_xdata()[0] for line in points} == {10.0 + i for i in range(9)}
    assert {line.get_color() for line in points} == {speed_plots._LONE} != {early.get_color()}
    [legend] = figures[0].legends
    assert not any("lone" in text.get_text() for text in legend.get_texts())
