from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import offramp
from offramp.bench import wallclock
from offramp.bench.wallclock import Timing, run_encoded, time_settings
from offramp.errors import KnobError


def test_rounds_are_interleaved_and_the_first_is_not_counted(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = offramp.load(trained)
    settings = {"deep": classifier.setting(full_depth=True), "shallow": classifier.setting(threshold=1.01)}
    encoded = classifier.encode(["a gem", "the dull town"])
    order: list[str] = []
    clock = [0.0]

    def run(_: Any, texts: Any, setting: Any) -> list[Any]:
        assert texts is encoded
        name = "deep" if setting is settings["deep"] else "shallow"
        order.append(name)
        clock[0] += (3.0 if name == "deep" else 1.0) + (100.0 if len(order) <= 2 else 0.0) + len(order) / 16
        return []

    monkeypatch.setattr(wallclock, "run_encoded", run)
    monkeypatch.setattr(wallclock.time, "perf_counter", lambda: clock[0])
    timings = time_settings(classifier, encoded, settings, rounds=3)
    assert order == ["deep", "shallow"] * 4
    assert timings["deep"].seconds == (3 + 3 / 16, 3 + 5 / 16, 3 + 7 / 16)
    assert timings["shallow"].seconds == (1 + 4 / 16, 1 + 6 / 16, 1 + 8 / 16)
    assert timings["deep"].median == 3 + 5 / 16


def test_the_median_of_an_even_number() -> None:
    assert Timing((4.0, 1.0, 2.0, 100.0)).median == 3.0


def test_no_rounds(trained: Path) -> None:
    classifier = offramp.load(trained)
    with pytest.raises(KnobError, match="at least one round, not 0"):
        time_settings(classifier, classifier.encode(["a"]), {"x": classifier.setting()}, rounds=0)


def test_answers_come_in_the_order_of_the_texts(trained: Path) -> None:
    classifier = offramp.load(trained, batch_size=2)
    setting = classifier.setting(threshold=0.2)
    texts = ["a lovely gem of a film", "the", "dull and cold and flat", "weird", ""]
    done = run_encoded(classifier, classifier.encode(texts), setting)
    assert [one.id for one in done] == [0, 1, 2, 3, 4]
    assert [classifier.read(one).label for one in done] == [one.label for one in classifier(texts, threshold=0.2)]
