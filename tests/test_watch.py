"""A monitored run: the same answers, shadow runs beside them, alarms in the log, and a safer operating point then."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offramp
from offramp.calibration.drift import Reference
from offramp.calibration.monitor import Monitor
from offramp.calibration.points import OperatingPoint, read_points, write_points
from offramp.calibration.sweep import data_hash
from offramp.criteria import make
from offramp.errors import DataError, KnobError, UnsupportedError
from offramp.pipeline import Classifier
from offramp.traces.replay import scores
from offramp.traces.store import load_trace, save_trace
from offramp.types import Prediction
from offramp.watch import reference_of, safer


def point(name: str, threshold: float, *, risk: float | None, speed: float, of: str = "disagreement") -> OperatingPoint:
    return OperatingPoint(
        name=name,
        criterion="entropy",
        settings={"problem_type": "single_label_classification"},
        knobs={"threshold": threshold},
        measured={"layer_speedup": speed},
        chosen_on="dev",
        promise=None if risk is None else {"risk": risk, "of": of, "confidence": 0.95, "expected": False},
        asked={} if risk is None else {"max_risk": risk},
    )


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with operating points: everybody leaves at the first exit, some do, nobody does."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("watched") / "run"))
    trace = load_trace(folder / "traces" / "dev")
    seen = np.sort(scores(trace, make("entropy"))[:2].min(axis=0))  # type: ignore[arg-type]
    gap = 20 + int(np.argmax(np.diff(seen[20:28])))  # the last bit of a score must decide nothing
    middle = float(seen[gap : gap + 2].mean())
    points = [
        point("reckless", 1.01, risk=0.2, speed=3.0),
        point("careful", middle, risk=0.1, speed=1.5),
        point("static", 0.0, risk=0.05, speed=1.0),
        point("errors", middle, risk=0.1, speed=1.6, of="error"),
        point("unpromised", middle, risk=None, speed=1.5),
    ]
    write_points(folder, [replace(one, data_hash=data_hash(trace)) for one in points])
    return folder


@pytest.fixture(scope="module")
def texts(toy_data: Callable[..., str]) -> list[str]:
    lines = (Path(toy_data()) / "dev.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def plain(run: Path) -> Classifier:
    return offramp.load(run)


def loaded(plain: Classifier, monitor: Monitor, *, batch_size: int = 4) -> Classifier:
    return Classifier(plain.run, plain.runtime, batch_size=batch_size, monitor=monitor)


def alike(a: list[Prediction], b: list[Prediction]) -> None:
    assert [one.label for one in a] == [one.label for one in b]
    assert [one.exit_layer for one in a] == [one.exit_layer for one in b]
    np.testing.assert_allclose([one.score for one in a], [one.score for one in b], atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("shadow_every", [None, 1, 3])
def test_watching_changes_no_answer(plain: Classifier, texts: list[str], shadow_every: int | None) -> None:
    monitor = Monitor(shadow_every=shadow_every, false_alarms=1e-6, max_risk=1.0)
    watched = loaded(plain, monitor)(texts, max_risk=0.1, risk="disagreement")
    expected = plain(texts, max_risk=0.1, risk="disagreement")
    alike(watched, expected)
    assert len({one.exit_layer for one in watched}) > 1
    whole = sum(one.layers_executed > one.exit_layer for one in watched)
    assert (monitor.texts, monitor.shadowed) == (48, 0 if shadow_every is None else 48 // shadow_every)
    if shadow_every == 1:
        assert all(one.layers_executed == 3 for one in watched)
    assert whole <= monitor.shadowed


def test_risks_are_those_of_the_full_model(plain: Classifier, texts: list[str]) -> None:
    monitor = Monitor(shadow_every=1, max_risk=1.0)
    loaded(plain, monitor)(texts, max_risk=0.2, risk="disagreement")
    full = [one.label for one in plain(texts, full_depth=True)]
    for told, name in zip(monitor.status()["risks"], ("reckless", "careful", "static"), strict=True):
        knobs = next(one.knobs for one in plain.points if one.name == name)
        own = [one.label for one in loaded_at(plain, name)(texts, knobs=knobs)]
        assert (told["point"], told["n"]) == (name, 48)
        assert told["mean"] == pytest.approx(np.mean([a != b for a, b in zip(own, full, strict=True)]))


def loaded_at(plain: Classifier, name: str) -> Classifier:
    """With another default point."""
    found = Classifier(plain.run, plain.runtime, batch_size=4)
    found.points = [one for one in plain.points if one.name == name]
    return found


class Noting(Monitor):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seen: list[tuple[int, float | None]] = []

    def observe(self, ticket: Any, layer: int, score: float | None, losses: Any = None) -> Any:
        self.seen.append((layer, score))
        return super().observe(ticket, layer, score, losses)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_the_monitor_sees_texts_in_their_order(plain: Classifier, texts: list[str], batch_size: int) -> None:
    """Those who leave early are finished first: in that order every stream would look as if it changed."""
    monitor = Noting(shadow_every=5, false_alarms=1e-6, max_risk=1.0)
    many = texts * 3
    answers = loaded(plain, monitor, batch_size=batch_size)(many, max_risk=0.1, risk="disagreement")
    assert monitor.seen == [(one.exit_layer, one.score) for one in answers]


def test_call_after_call_is_one_stream(plain: Classifier, texts: list[str]) -> None:
    monitor = Monitor(shadow_every=4, max_risk=1.0)
    classifier = loaded(plain, monitor)
    for text in texts[:20]:
        classifier(text, max_risk=0.1, risk="disagreement")
    assert (monitor.texts, monitor.shadowed) == (20, 5)
    assert classifier.monitor is monitor


@pytest.mark.parametrize("shadow_every", [None, 3])
def test_a_pickled_monitor_goes_on_with_the_same_run(
    run: Path, plain: Classifier, texts: list[str], shadow_every: int | None
) -> None:
    """A server that is started anew in the middle of a stream, in which both alarms ring."""
    stream = texts + ["the of a and"] * 100

    def answered(monitor: Monitor, part: list[str]) -> Monitor:
        classifier = offramp.load(run, batch_size=4, monitor=monitor)
        for text in part:
            classifier(text, max_risk=0.2, risk="disagreement")
        assert classifier.monitor is not None
        return classifier.monitor

    settings: dict[str, Any] = {"shadow_every": shadow_every, "false_alarms": 0.5, "max_risk": 0.01, "seed": 5}
    whole = answered(Monitor(**settings), stream)
    half = answered(Monitor(**settings), stream[:80])
    assert half.events
    again = answered(pickle.loads(pickle.dumps(half)), stream[80:])
    assert again.texts == len(stream)
    assert again.status() == whole.status()
    other = offramp.load(run, batch_size=4, monitor=pickle.loads(pickle.dumps(half)))
    other(texts[0], max_risk=0.1, risk="disagreement")  # another operating point
    assert other.monitor is not None
    assert (other.monitor.texts, other.monitor.events) == (1, [])


def test_shadow_runs_where_nothing_is_promised(
    plain: Classifier, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for monitor, said in ((Monitor(shadow_every=2), True), (Monitor(shadow_every=2, max_risk=0.1), False),
                          (Monitor(), False)):  # fmt: skip
        found = Classifier(plain.run, plain.runtime, batch_size=4, monitor=monitor)
        found.points = [one for one in plain.points if one.name == "unpromised"]
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found(texts[:4])
        assert ("nothing is promised by operating point 'unpromised', so shadow runs only" in caplog.text) == said
        assert not monitor.rungs[0].promised


def test_it_falls_back_and_says_so(plain: Classifier, texts: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Texts on which the first exit is often wrong: nobody who comes later leaves there."""
    full = plain(texts, full_depth=True)
    first = loaded_at(plain, "reckless")(texts)
    wrong = [text for text, a, b in zip(texts, full, first, strict=True) if a.label != b.label]
    assert wrong
    stream = wrong * 12 if len(wrong) > 3 else wrong * 48
    monitor = Monitor(shadow_every=2)
    with caplog.at_level(logging.WARNING):
        answers = loaded(plain, monitor, batch_size=1)(stream, max_risk=0.2, risk="disagreement")
    alarms = [event for event in monitor.events if event.kind == "risk"]
    assert alarms
    assert alarms[0].message in caplog.text
    assert {one.exit_layer for one in answers[: alarms[0].texts]} == {1}
    assert monitor.point in ("careful", "static", "full depth")
    later = [one.label for one in answers[-len(wrong) :]]
    right = sum(
        one == text.label for one, text in zip(later, plain(stream[-len(wrong) :], full_depth=True), strict=True)
    )
    assert right > len(wrong) / 2


def test_drift_is_watched_by_the_trace_or_by_what_was_kept(run: Path, plain: Classifier, tmp_path: Path) -> None:
    one = next(one for one in read_points(run) if one.name == "careful")
    trace = load_trace(run / "traces" / "dev")
    expected = Reference.of(trace, make("entropy"), one.knobs)
    found = reference_of(one, run)
    assert found is not None
    np.testing.assert_array_equal(found.counts, expected.counts)
    kept = replace(one, measured={"reference": expected.to_json()})
    found = reference_of(kept, tmp_path)
    assert found is not None
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert reference_of(one, tmp_path) is None  # no trace
    assert reference_of(replace(one, chosen_on=""), run) is None
    save_trace(trace.select(np.arange(10)), tmp_path / "traces" / "dev")
    assert reference_of(one, tmp_path) is None  # other rows under the same name


def test_drift_is_said(plain: Classifier, caplog: pytest.LogCaptureFixture) -> None:
    monitor = Monitor()
    with caplog.at_level(logging.WARNING):
        loaded(plain, monitor)(["the of a and"] * 150, max_risk=0.1, risk="disagreement")
    assert [event.kind for event in monitor.events] == ["drift"]
    assert "they are not like those of the calibration any more" in caplog.text


def test_safer_points(plain: Classifier) -> None:
    by_name = {one.name: one for one in plain.points}
    assert [one.name for one in safer(by_name["reckless"], plain.points)] == ["careful", "static"]
    assert safer(by_name["static"], plain.points) == []
    assert safer(by_name["errors"], plain.points) == []
    assert safer(by_name["unpromised"], plain.points) == []
    forced = [replace(one, promise={**(one.promise or {}), "forced": "on texts it knows"}) for one in plain.points]
    assert safer(by_name["reckless"], forced) == []
    # What a point for a speed-up turned out to promise is not asked; nor is who happens to be faster, or is less sure.
    own = point("own", 0.9, risk=0.5, speed=4.0)
    slower = [point("b", 0.5, risk=0.1, speed=3.0), point("a", 0.6, risk=0.2, speed=2.0)]
    luckiest = replace(point("c", 0.7, risk=0.15, speed=3.5), asked={"speedup": 3.5})
    unsure = point("d", 0.7, risk=0.15, speed=3.5)
    unsure = replace(unsure, promise={**(unsure.promise or {}), "confidence": 0.5})
    assert [one.name for one in safer(own, [*slower, luckiest, unsure])] == ["a", "b"]


def test_what_is_about_other_weights_is_nothing_to_fall_back_on(plain: Classifier, texts: list[str]) -> None:
    found = Classifier(plain.run, plain.runtime, batch_size=4, monitor=Monitor(shadow_every=2))
    other = {"risk": 0.1, "of": "disagreement", "confidence": 0.95, "expected": False, "model": "abc"}
    found.points = [replace(one, promise=other) if one.name == "careful" else one for one in plain.points]
    found(texts[:4])
    assert found.monitor is not None
    assert [rung.name for rung in found.monitor.rungs] == ["reckless", "static"]


def test_a_promise_about_errors_takes_labels(
    plain: Classifier, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    monitor = Monitor(shadow_every=2, false_alarms=1e-6)
    with caplog.at_level(logging.WARNING):
        loaded(plain, monitor)(texts, max_risk=0.1, risk="error")
    assert "there are no labels here" in caplog.text
    assert monitor.limit is None
    assert monitor.shadowed == 24


def test_what_cannot_be_watched(plain: Classifier, texts: list[str], run: Path, tmp_path: Path) -> None:
    classifier = loaded(plain, Monitor(shadow_every=2))
    for options in ({"threshold": 0.3}, {"full_depth": True}, {"max_layers": 2}, {"speedup": 1.2}):
        with pytest.raises(KnobError, match="a monitor watches an operating point as it is, and this is"):
            classifier(texts[:2], **options)  # type: ignore[call-overload]
    classifier(texts[:2])
    with pytest.raises(KnobError, match="the monitor watches operating point 'reckless', and this is 'careful'"):
        classifier(texts[:2], max_risk=0.1, risk="disagreement")
    bare = Path(shutil.copytree(run, tmp_path / "bare"))
    shutil.rmtree(bare / "traces")
    with pytest.raises(KnobError, match="keeps no record of what it did with its calibration texts"):
        offramp.load(bare, monitor=Monitor())("a gem")
    offramp.load(bare, monitor=Monitor(shadow_every=2))("a gem")  # the risk can be watched all the same


def test_numbers_have_no_disagreement(joint_run: Callable[[str], Path], toy_data: Callable[..., str]) -> None:
    folder = joint_run("regression")
    with pytest.raises(UnsupportedError, match="this is regression"):
        offramp.load(folder, monitor=Monitor(shadow_every=2))("a gem")
    monitor = Monitor()
    assert offramp.load(folder, monitor=monitor)(["a gem", "the dull town"])[0].score is None
    assert monitor.texts == 2


def test_whoever_learned_from_its_own_answers_can_be_watched(run: Path, plain: Classifier) -> None:
    """``offramp attach`` without labels says more than the name of the trace of what its point was chosen on."""
    from offramp.training.finish import OWN_ANSWERS

    one = next(one for one in read_points(run) if one.name == "careful")
    found = reference_of(replace(one, chosen_on=OWN_ANSWERS), run)
    expected = reference_of(one, run)
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found.counts, expected.counts)


def test_the_new_point_answers_from_the_text_that_is_named(plain: Classifier, texts: list[str]) -> None:
    """And no later than four batches after the alarm."""
    full = plain(texts, full_depth=True)
    first = loaded_at(plain, "reckless")(texts)
    wrong = [text for text, a, b in zip(texts, full, first, strict=True) if a.label != b.label]
    monitor = Monitor(shadow_every=2, come_back=False)
    answers = loaded(plain, monitor, batch_size=2)((wrong * 300)[:300], max_risk=0.2, risk="disagreement")
    [alarm, *_] = [event for event in monitor.events if event.kind == "risk"]
    named = int(alarm.message.split("from text ")[1].split()[0])
    assert {one.exit_layer for one in answers[: named - 1]} == {1}
    assert alarm.texts < named <= alarm.texts + 1 + 4 * 2
    assert any(one.exit_layer > 1 for one in answers[named - 1 : named + 20])


def needs_them(answers: Any, full: Any, labels: Any) -> Any:
    return answers.argmax(-1) != labels


def test_a_loss_that_reads_labels_is_not_watched(
    plain: Classifier, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Without them it would be found to lose nothing, for ever."""
    found = Classifier(plain.run, plain.runtime, batch_size=4, monitor=Monitor(shadow_every=2, false_alarms=1e-6))
    promise = {"risk": 0.2, "of": "tests.test_watch:needs_them", "confidence": 0.95, "expected": False,
               "needs_labels": True}  # fmt: skip
    found.points = [replace(point("own", 1.01, risk=0.2, speed=3.0), promise=promise)]
    with caplog.at_level(logging.WARNING):
        found(texts)
    assert found.monitor is not None
    assert "promises something about tests.test_watch:needs_them, and there are no labels here" in caplog.text
    assert (found.monitor.limit, found.monitor.shadowed) == (None, 24)
    differ = [a.label != b.label for a, b in zip(loaded_at(plain, "reckless")(texts), plain(texts, full_depth=True),
                                                 strict=True)]  # fmt: skip
    assert sum(differ) > 0
    assert found.monitor.status()["risks"][0]["mean"] > 0


def test_a_loss_that_raises_under_a_monitor_is_a_sentence(plain: Classifier, texts: list[str], tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    (tmp_path / "raising_loss.py").write_text("def loss(answers, full, labels):\n    return 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    found = Classifier(plain.run, plain.runtime, batch_size=4, monitor=Monitor(shadow_every=2))
    found.points = [point("own", 1.01, risk=0.2, speed=3.0, of="raising_loss:loss")]
    with pytest.raises(DataError, match="risk 'raising_loss:loss' raised ZeroDivisionError: division by zero"):
        found(texts)


def test_numbers_have_no_loss_without_labels(joint_run: Callable[[str], Path]) -> None:
    found = offramp.load(joint_run("regression"), monitor=Monitor(shadow_every=2))
    promise = {"risk": 0.2, "of": "m:far", "confidence": 0.95, "expected": False, "needs_labels": True}
    found.points = [replace(found.points[0], promise=promise)]
    with pytest.raises(UnsupportedError, match="promises something about m:far, which reads labels"):
        found("a gem")
