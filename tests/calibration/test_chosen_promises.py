"""Guarantees against known truth, of what a request gets: of many points from the same rows the Chooser takes one.

Each promise stands for itself. Whoever looks at several of them, made on the same rows, and takes the one that seems
best takes the luckiest: that selector must fail the test that the Chooser passes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mapie")
pytest.importorskip("scipy")

from offramp.calibration import certify as module
from offramp.calibration.certify import certify, choose_measured
from offramp.calibration.points import OperatingPoint
from offramp.choosing import Chooser
from offramp.criteria import make
from offramp.errors import KnobError
from offramp.runtimes import RuntimeInfo
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

DRAWS, ROWS, SHARE, DELTA = 120, 198, 0.2, 0.1
"""158 rows prove: there an exact test at 10 % of a risk just above 5 % passes in 9.5 % of all draws."""
MOST = DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / DRAWS)
RISK, LESS, MORE = 0.05, 0.03, 0.08
UNITS, EXITS = 1000, 11
SPEEDUPS = (11 / 8, 11 / 6, 11 / 4, 11 / 2)


def edges() -> Trace:
    """Eleven exits, of which eight are wrong just oftener than 5 %, each about other texts; the last three never are.

    The gate lets leave at every second exit, and confidence at the others, so that what either does is news. A
    threshold moves everybody from one exit to the next.
    """
    rng = np.random.default_rng(0)
    lost = np.zeros((EXITS, UNITS), dtype=bool)
    for e in range(EXITS - 3):
        lost[e, rng.choice(UNITS, size=round(RISK * UNITS) + 1, replace=False)] = True
    place = np.arange(EXITS)
    sure = np.where(place % 2 == 0, 1.0 + place, 0.01)
    gate = np.where(place % 2 == 1, (EXITS - place) / (EXITS + 1), 0.99)
    logits = np.where(lost[..., None], [0.0, 1.0], [1.0, 0.0]) * sure[:, None, None]
    return Trace(
        logits=logits.astype(np.float32),
        layers=place + 1,
        lengths=np.ones(UNITS, dtype=np.int64),
        problem_type="single_label_classification",
        id2label={0: "a", 1: "b"},
        extras={"gate": np.repeat(gate[:, None], UNITS, axis=1).astype(np.float32)},
        runtime="fake",
    )


def points_of(drawn: Trace) -> list[OperatingPoint]:
    """All that a diligent user makes of the same rows: speeds and risks, by two criteria."""
    found: list[OperatingPoint] = []
    more: dict[str, Any] = {"confidence": 1 - DELTA, "tuning_share": SHARE, "fixed": ["temperatures"]}
    for name in ("gate", "confidence"):
        for wish in (*({"speedup": one} for one in SPEEDUPS), *({"max_risk": one} for one in (LESS, RISK))):
            make_point: Callable[..., OperatingPoint] = choose_measured if "speedup" in wish else certify
            with contextlib.suppress(KnobError):
                found.append(replace(make_point(drawn, make(name), **wish, **more), made=len(found) + 1))
    return found


@pytest.fixture(scope="module")
def calibrations() -> list[tuple[list[OperatingPoint], list[float]]]:
    """For every draw the points that were made, and their true risks."""
    whole, rng = edges(), np.random.default_rng(1)
    kept: dict[Any, float] = {}

    def truth(point: OperatingPoint) -> float:
        key = (point.criterion, tuple(point.knobs.items()))
        if key not in kept:
            answers = replay(whole, make(point.criterion, **point.settings), point.knobs).answers
            kept[key] = float((answers.argmax(-1) != whole.logits[-1].argmax(-1)).mean())
        return kept[key]

    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_interval", lambda *_: {})  # a thousand samples of what nobody reads here
        patch.setattr(module, "upper_bound", cache(module.upper_bound))
        for _ in range(DRAWS):
            points = points_of(whole.select(rng.integers(UNITS, size=ROWS)))
            found.append((points, [truth(point) for point in points]))
    return found


def chooser(points: list[OperatingPoint]) -> Chooser:
    run: Any = SimpleNamespace(folder=Path("run"), problem_type="single_label_classification")
    info = RuntimeInfo(name="fake", stages=(), problem_type="single_label_classification", num_outputs=2)
    return Chooser(run, points, info, 32)


def chosen(points: list[OperatingPoint], risk: float) -> OperatingPoint | None:
    try:
        return chooser(points).setting(max_risk=risk, confidence=1 - DELTA).point
    except KnobError:
        return None


def fastest(points: list[OperatingPoint], risk: float) -> OperatingPoint | None:
    """What the Chooser once did."""
    enough = [point for point in points if point.promise is not None and point.promise["risk"] <= risk]
    return max(enough, key=lambda point: float(point.measured["layer_speedup"]), default=None)


def fastest_asked(points: list[OperatingPoint], risk: float) -> OperatingPoint | None:
    """The same among the points that were made for a risk."""
    return fastest([point for point in points if "max_risk" in point.asked], risk)


Select = Callable[[list[OperatingPoint], float], OperatingPoint | None]


def violated(calibrations: list[tuple[list[OperatingPoint], list[float]]], select: Select, risk: float) -> float:
    """Share of the draws in which the point that is taken loses more than was asked for."""
    count = 0
    for points, risks in calibrations:
        point = select(points, risk)
        count += point is not None and risks[points.index(point)] > risk
    return count / len(calibrations)


@pytest.mark.parametrize("risk", [LESS, RISK, MORE])
def test_what_the_chooser_takes_keeps_its_promise(calibrations: Any, risk: float) -> None:
    """And there is something to take in every draw, so that no refusal decides what is taken."""
    assert violated(calibrations, chosen, risk) <= MOST
    assert all(chosen(points, risk) is not None for points, _ in calibrations)


def test_the_chooser_promises_no_less_than_it_could(calibrations: Any) -> None:
    assert violated(calibrations, chosen, RISK) > 0.05


@pytest.mark.parametrize("select", [fastest, fastest_asked])
def test_whoever_takes_the_fastest_of_several_fails(calibrations: Any, select: Select) -> None:
    assert violated(calibrations, select, RISK) > MOST
