"""Rows race in processes of their own; what goes wrong in one is told and stops no other. No clock is believed here."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from offramp.bench.deployments.base import Job, Way, make_ready
from offramp.bench.serving import operations_a_text
from offramp.bench.speed import Measured, race, ratio, spread, summary, ways
from offramp.bench.worker import Failure, Load, Worker, in_a_process
from offramp.inputs.tokens import Encoded, Tokenizer

TEXTS = ["a gem", "neither here nor there", "bad", "one of the best films of the year"]


def job(folder: Path, name: str = "fake", **settings: Any) -> Job:
    return Job(name, name, "fake", folder, folder / name, settings)


@pytest.fixture
def load(trained: Path) -> Load:
    return Load(TEXTS, TEXTS[:2], trained, 64, max_rows=2, threads=1)


@pytest.fixture
def lengths(trained: Path) -> np.ndarray:
    return np.array([len(text) for text in Tokenizer.from_folder(trained, max_length=64).encode(TEXTS)])


def ready(jobs: Sequence[Job]) -> Sequence[Job]:
    for each in jobs:
        make_ready(each, [])
    return jobs


def test_a_race(tmp_path: Path, load: Load, lengths: np.ndarray) -> None:
    said: list[str] = []
    refusing = [job(tmp_path, "bad", refuses="answer"), job(tmp_path, "worse", refuses="serve")]
    good, bad, worse = race(ready([job(tmp_path, "good"), *refusing]), load, rounds=3, say=said.append)
    assert good.failure is None
    assert good.startup is not None
    for scenario in ("Offline", "SingleStream"):
        np.testing.assert_array_equal(good.answers[scenario][:, 1], lengths)
    assert {key: len(rounds) for key, rounds in good.seconds.items()} == {
        (scenario, tokenised): 3 for scenario in ("Offline", "SingleStream") for tokenised in (False, True)
    }
    assert all(len(seconds) == 2 for seconds in good.seconds["SingleStream", True])
    assert good.facts["threads"] == 1
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert 1 < good.facts["peak_memory_mb"] < ours / 2  # its own, and not what the parent held when it was started
    assert bad.failure is not None
    assert bad.failure.sentence == "ValueError: this row refuses to answer"
    assert bad.seconds == {}
    assert worse.failure is not None
    assert worse.startup is None
    assert "round 3 of 3" in said


def test_a_row_that_can_is_tried_both_ways(tmp_path: Path, load: Load) -> None:
    both = Job("fake", "fake", "fake", tmp_path, tmp_path / "fake", {}, lanes=True)
    assert ways(both, "Offline", 1) == ways(both, "SingleStream", 1) == [Way(1)]
    assert ways(replace(both, lanes=False), "Offline", 2) == [Way(2)]
    assert (ways(both, "Offline", 2), ways(both, "SingleStream", 2)) == ([Way(2), Way(1, 2)], [Way(2), Way(1)])
    [row] = race(ready([replace(both, scenarios=("Offline",))]), replace(load, threads=2), rounds=1)
    assert row.failure is None
    used = row.ways["Offline"]
    assert used in (Way(2), Way(1, 2))
    assert (row.facts["threads"], row.facts["lanes"]) == (used.threads, used.lanes)


def test_operations_of_bert_base() -> None:
    """12 layers of 768 on 128 tokens: 11.2 thousand million multiply-adds, as papers count them."""
    config = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    text = Encoded(np.ones(128, dtype=np.int32), None, False)
    found = operations_a_text(SimpleNamespace(config=config), [text, text])  # type: ignore[arg-type]
    assert found == pytest.approx(2 * 11.2e9, rel=0.01)


def test_a_row_of_one_scenario(tmp_path: Path, load: Load) -> None:
    only = Job("fake", "fake", "fake", tmp_path, tmp_path / "fake", {}, scenarios=("SingleStream",))
    [row] = race(ready([only]), load, rounds=1)
    assert set(row.seconds) == {("SingleStream", False), ("SingleStream", True)}
    assert set(row.answers) == {"SingleStream"}


def test_a_process_that_is_killed_is_a_failure(tmp_path: Path, load: Load) -> None:
    worker = Worker(ready([job(tmp_path)])[0], load, Way(1))
    worker._process.kill()
    said = worker.ask("offline", True)
    worker.close()
    assert isinstance(said, Failure)
    assert "status -9" in said.sentence


def test_what_a_function_raises_comes_back(tmp_path: Path) -> None:
    said = in_a_process(make_ready, job(tmp_path, refuses="prepare"), [], threads=1)
    assert isinstance(said, Failure)
    assert said.sentence == "ValueError: this row refuses to be prepared"
    assert "Traceback" in said.details


def test_numbers_of_a_row(tmp_path: Path) -> None:
    row = Measured(job(tmp_path))
    row.seconds = {("Offline", False): [2.0, 4.0, 1.0], ("SingleStream", True): [[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]]}
    found = summary(row, texts=8)
    offline = found["Offline"]["without tokenisation"]["texts_per_second"]
    assert (offline["median"], offline["low"], offline["high"]) == (4.0, 2.0, 8.0)
    stream = found["SingleStream"]["with tokenisation"]
    assert stream["p50_ms"]["median"] == pytest.approx(200)
    assert stream["p99_ms"]["high"] == pytest.approx(298)
    assert stream["texts_per_second"]["median"] == pytest.approx(5.0)


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that halves its speed for a round changes no ratio."""
    ours, theirs = spread([100.0, 50.0, 100.0]), spread([50.0, 25.0, 50.0])
    assert ratio(ours, theirs)["rounds"] == [2.0, 2.0, 2.0]
