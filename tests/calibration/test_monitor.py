"""The monitor: what it does when, how often it does so for nothing, and that it stays small."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from offramp.calibration.bets import RiskBounds
from offramp.calibration.drift import BINS, Reference, bin_of
from offramp.calibration.monitor import FULL_DEPTH, Event, Monitor, Rung
from offramp.errors import KnobError


def reference(layers: Sequence[int] = (1, 1, 2, 2, 3), each: int = 20) -> Reference:
    counts = np.zeros((3, BINS), dtype=np.int64)
    for layer in layers:
        counts[layer - 1, bin_of(0.9)] += each
    return Reference((1, 2, 3), counts)


RUNGS = (Rung("fast", reference()), Rung("safe", reference((2, 2, 3, 3, 3))))


def run(monitor: Monitor, losses: Any, *, layer: int = 2, texts: int = 1) -> list[Event]:
    """Texts of which each, if it is a shadow run, would lose so much at each operating point."""
    events: list[Event] = []
    for _ in range(texts):
        ticket = monitor.next()
        events += monitor.observe(ticket, layer, 0.9, losses if ticket.whole else None)
    return events


def quiet(**settings: Any) -> Monitor:
    """One whose drift is not watched."""
    monitor = Monitor(shadow_every=1, **settings)
    monitor.bind([Rung("fast"), Rung("safe")], limit=0.05)
    return monitor


def test_one_text_in_so_many_is_a_shadow_run() -> None:
    monitor = Monitor(shadow_every=7, seed=3)
    monitor.bind([Rung("fast")], limit=0.05)
    whole = np.array([monitor.next().whole for _ in range(7 * 40)]).reshape(40, 7)
    assert (whole.sum(axis=1) == 1).all()
    assert len(set(whole.argmax(axis=1).tolist())) == 7  # at no fixed place: the stream may have a rhythm of its own
    never = Monitor()
    never.bind(RUNGS, limit=0.05)
    assert not any(never.next().whole for _ in range(50))


def test_it_falls_back_to_the_safer_point_and_then_to_full_depth() -> None:
    monitor = quiet()
    assert (monitor.point, monitor.rung) == ("fast", 0)
    events = run(monitor, [1.0, 0.0], texts=40)
    [event] = events
    assert (event.kind, event.point, monitor.point) == ("risk", "safe", "safe")
    assert "operating point 'fast' loses more than the 5.0 % it shall keep" in event.message
    assert f"from text {event.texts + 1} on operating point 'safe' is used" in event.message
    assert monitor.next().rung == 1
    [event] = run(monitor, [1.0, 1.0], texts=40)
    assert (event.point, monitor.point, monitor.next().rung) == (FULL_DEPTH, FULL_DEPTH, 2)


def test_what_else_is_unsafe_is_known_when_it_is_needed() -> None:
    """Both points lose: it does not stop at the safer one."""
    monitor = quiet()
    events = run(monitor, [1.0, 1.0], texts=40)
    assert [event.point for event in events] == [FULL_DEPTH]
    assert monitor.point == FULL_DEPTH


def until(monitor: Monitor, losses: list[float], most: int = 1000) -> tuple[Event, int]:
    """The next event, and how many texts it took."""
    for number in range(1, most + 1):
        if events := run(monitor, losses):
            return events[0], number
    raise AssertionError(f"nothing in {most} texts")


def test_it_comes_back_when_shadow_runs_since_then_prove_it() -> None:
    monitor = quiet()
    run(monitor, [0.0, 0.0], texts=5)
    left, _ = until(monitor, [1.0, 0.0])
    assert (left.kind, left.point) == ("risk", "safe")
    back, clean = until(monitor, [0.0, 0.0])
    assert (back.kind, back.point, monitor.point) == ("back", "fast", "fast")
    assert "shadow runs since it was left prove that it loses at most 5.0 %" in back.message
    bounds = RiskBounds()
    bounds.n = clean  # what was lost before is not held against it; half of 5 % may be wrong the first time
    assert bounds.is_below(0.05, 0.975)
    bounds.n -= 1
    assert not bounds.is_below(0.05, 0.975)
    until(monitor, [1.0, 0.0])
    back, longer = until(monitor, [0.0, 0.0])
    assert back.kind == "back"
    assert longer > clean  # half as much again may be wrong the second time


@pytest.mark.parametrize("settings", [{"come_back": False}, {"max_risk": 0.0001}])
def test_it_does_not_come_back_unproved(settings: dict[str, Any]) -> None:
    monitor = quiet(**settings)
    events = run(monitor, [1.0, 0.0], texts=40)
    words = "shadow runs prove the risk anew" if monitor.come_back else "somebody resets the monitor"
    assert f"until {words}" in events[0].message
    assert run(monitor, [0.0, 0.0], texts=1500) == []
    monitor.reset()
    assert (monitor.point, monitor.texts, monitor.events) == ("fast", 0, [])


def test_texts_that_were_on_their_way_do_not_count_for_another_point() -> None:
    """Those of the point that was left are no sample of what the new one does."""
    monitor = Monitor(shadow_every=1, false_alarms=0.02)
    monitor.bind(RUNGS, limit=0.05)
    old = [monitor.next() for _ in range(500)]
    run(monitor, [1.0, 0.0], texts=40)
    assert monitor.point == "safe"
    before = monitor.status()["drift_wealth"]
    for ticket in old:
        monitor.observe(ticket, 1, 0.9)
    assert monitor.status()["drift_wealth"] == before
    assert monitor.texts == 540


def test_drift_warns_and_goes_on() -> None:
    monitor = Monitor()
    monitor.bind(RUNGS, limit=0.05)
    events = run(monitor, None, layer=3, texts=200)
    [event] = events
    assert (event.kind, event.point, monitor.point) == ("drift", "fast", "fast")
    assert "they leave after" in event.message
    assert "1.8 at calibration" in event.message
    assert "calibrate on such texts, or let shadow runs watch the risk" in event.message
    assert monitor.status()["drifted"]


def test_drift_falls_back_if_asked_to_and_shadow_runs_bring_it_back() -> None:
    alone = Monitor(on_drift="fall_back")
    alone.bind(RUNGS, limit=0.05)
    [event] = run(alone, None, layer=3, texts=200)
    assert (event.kind, event.point) == ("drift", FULL_DEPTH)
    assert "until somebody resets the monitor" in event.message
    assert run(alone, None, layer=3, texts=500) == []
    monitor = Monitor(on_drift="fall_back", shadow_every=2)
    monitor.bind(RUNGS, limit=0.05)
    [event] = run(monitor, [0.0, 0.0], layer=3, texts=200)
    assert "until shadow runs prove the risk anew" in event.message
    assert [event.kind for event in run(monitor, [0.0, 0.0], layer=3, texts=400)] == ["back"]
    assert monitor.point == "fast"


def test_without_a_limit_the_risk_is_told_and_no_alarm_raised() -> None:
    monitor = Monitor(shadow_every=1)
    monitor.bind([Rung("fast")], limit=None)
    assert run(monitor, [1.0], texts=200) == []
    told = monitor.status()["risks"][0]
    assert (told["n"], told["mean"]) == (200, 1.0)
    assert told["lower"] > 0.9
    assert "operating point 'fast' lost 100.0 % of 200" in monitor.summary()


def test_its_own_limit_goes_first() -> None:
    monitor = Monitor(shadow_every=1, max_risk=0.2)
    monitor.bind([Rung("fast")], limit=0.01)
    assert monitor.limit == 0.2


def test_summary() -> None:
    monitor = quiet()
    run(monitor, [0.0, 0.0], texts=1)
    assert monitor.summary().startswith(
        "1 text watched, 1 shadow runs: operating point 'fast' lost 0.0 % of 1 (0.0 % to"
    )
    assert monitor.summary().endswith("; no alarm")
    run(monitor, [1.0, 1.0], texts=40)
    assert monitor.summary() == "41 texts watched; 1 alarm, now at full depth"


def test_it_rings_no_oftener_than_it_says() -> None:
    """Drift and risk together, calibration drawn with the stream, the risk exactly what was promised."""
    rng, streams, alpha = np.random.default_rng(0), 500, 0.2
    rang = 0
    for _ in range(streams):
        layers = rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2], size=100)
        scores = rng.uniform(0.6, 0.999, size=100)
        counts = np.zeros((3, BINS), dtype=np.int64)
        for layer, score in zip(layers[:40], scores[:40], strict=True):
            counts[layer - 1, bin_of(score)] += 1
        monitor = Monitor(false_alarms=alpha, shadow_every=2, seed=int(rng.integers(2**32)))
        monitor.bind([Rung("fast", Reference((1, 2, 3), counts))], limit=0.1)
        for layer, score in zip(layers[40:], scores[40:], strict=True):
            ticket = monitor.next()
            losses = [float(rng.random() < 0.1)] if ticket.whole else None
            if monitor.observe(ticket, int(layer), float(score), losses):
                rang += 1
                break
    assert rang / streams <= alpha + 2 * math.sqrt(alpha * (1 - alpha) / streams)
    assert rang > 0


def test_it_stays_small() -> None:
    monitor = Monitor(shadow_every=2, false_alarms=1e-9)
    monitor.bind(RUNGS, limit=0.05)
    rng = np.random.default_rng(0)

    def watch(texts: int) -> int:
        for _ in range(texts):
            ticket = monitor.next()
            monitor.observe(ticket, int(rng.choice([1, 1, 2, 2, 3])), 0.9, [0.0, 0.0] if ticket.whole else None)
        return len(pickle.dumps(monitor))

    assert watch(4000) <= watch(50) + 200


def test_a_monitor_goes_on_where_it_was_saved() -> None:
    """A server that is started anew."""
    monitor = quiet()
    run(monitor, [1.0, 0.0], texts=3)
    again = pickle.loads(pickle.dumps(monitor))
    assert run(again, [1.0, 0.0], texts=40) == run(monitor, [1.0, 0.0], texts=40)
    assert again.status() == monitor.status()


def test_bound_to_the_same_it_goes_on_and_else_begins_anew() -> None:
    def alike() -> list[Rung]:
        return [Rung("fast", reference()), Rung("safe", reference((2, 2, 3, 3, 3)))]

    def seen(rungs: Sequence[Rung], limit: float | None, **settings: Any) -> int:
        monitor = Monitor(shadow_every=1, **settings)
        monitor.bind(alike(), limit=0.05)
        run(monitor, [1.0, 0.0], texts=3)
        before = monitor.status()
        monitor.bind(rungs, limit=limit)
        if monitor.texts:
            assert monitor.status() == before
        return monitor.texts

    fast, safe = alike()
    assert seen(alike(), 0.05) == 3
    assert seen(alike(), 0.01, max_risk=0.05) == 3  # its own limit is what it watches
    assert seen(alike(), 0.01) == seen(alike(), None) == 0
    for other in ([fast], [safe, fast], [fast, safe, safe], [Rung("new", reference()), safe], [Rung("fast"), safe],
                  [Rung("fast", reference(each=21)), safe], []):  # fmt: skip
        assert seen(other, 0.05) == 0


@pytest.mark.parametrize("promised", [True, False])
def test_drift_speaks_of_a_promise_where_there_is_one(promised: bool) -> None:
    monitor = Monitor()
    monitor.bind([Rung("fast", reference(), promised)], limit=None)
    [event] = run(monitor, None, layer=3, texts=200)
    assert ("What was promised is not promised for them" in event.message) == promised
    assert "at most); calibrate on such texts" in event.message or promised


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"false_alarms": 0.0}, "false_alarms is a probability"),
        ({"false_alarms": 1.0}, "false_alarms is a probability"),
        ({"confidence": 1.0}, "a confidence lies between"),
        ({"shadow_every": 0}, "shadow_every must be 1 or more"),
        ({"max_risk": 0.0}, "max_risk must be above 0"),
        ({"on_drift": "shout"}, "on_drift must be"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message):
        Monitor(**settings)


@pytest.mark.parametrize("on_drift", ["warn", "fall_back"])
def test_texts_that_have_their_ticket_are_not_promised_otherwise(on_drift: Any) -> None:
    """A stream hands out tickets ahead: the message names the first text that the new point really answers."""
    monitor = quiet(on_drift=on_drift)
    tickets = [monitor.next() for _ in range(30)]
    events: list[Event] = []
    for ticket in tickets:
        events += monitor.observe(ticket, 1, 0.9, [1.0, 0.0])
    [event] = events
    assert event.texts < 30
    assert {ticket.rung for ticket in tickets} == {0}
    assert "from text 31 on operating point 'safe' is used" in event.message
    assert monitor.next().rung == 1


def test_what_is_forgotten_is_said(caplog: pytest.LogCaptureFixture) -> None:
    monitor = Monitor()
    monitor.bind([Rung("a")], limit=None)
    monitor.bind([Rung("b")], limit=None)
    assert not caplog.records  # nothing was seen yet
    monitor.texts = 7
    monitor.bind([Rung("b")], limit=None)
    assert monitor.texts == 7
    monitor.bind([Rung("c")], limit=None)
    assert monitor.texts == 0
    assert "saw of 7 texts is forgotten" in caplog.text
