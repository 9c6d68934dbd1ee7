"""``offramp bench``: ways to serve a model against each other in seconds, interleaved, each in a process of its own.

Scenarios go by MLPerf's names. *Offline*: all texts are there at once, and what counts is texts a second.
*SingleStream*: one text at a time, the next when the last is answered; what counts is the 90th percentile.
Every row is timed with tokenisation and without, in the same rounds as all others, so that a machine that slows down
does so for all; ratios are taken round by round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offramp.bench.deployments.base import Job, Way
from offramp.bench.worker import Failure, Load, Worker

__all__ = ["SCENARIOS", "WARM_UP", "Measured", "race", "ways"]

SCENARIOS = ("Offline", "SingleStream")
_COMMANDS = {"Offline": "offline", "SingleStream": "single"}
"""What a worker is timed on."""
_ANSWERS = {"Offline": "answers", "SingleStream": "answers_one_by_one"}
WARM_UP = 3
"""Runs of everything before the clock counts; by all but the first the way to use the cores is chosen."""
_REST = 0.05
"""Seconds between two timings: threads of the row before come to rest."""


@dataclass
class Measured:
    """What came of one row."""

    job: Job
    startup: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Of the process that served it in the first of its scenarios, as ``startup`` is."""
    ways: dict[str, Way] = field(default_factory=dict)
    """Scenario -> how it used the cores there: the quicker way of those it has."""
    failure: Failure | None = None
    answers: dict[str, Any] = field(default_factory=dict)
    """Scenario -> [N, C] logits of the texts of Offline: in batches, or one by one."""
    seconds: dict[tuple[str, bool], list[Any]] = field(default_factory=dict)
    """(scenario, with tokenisation) -> a round each: seconds for all texts, or a list of seconds a text."""


def race(
    jobs: Sequence[Job],
    load: Load,
    *,
    rounds: int,
    say: Callable[[str], None] = lambda line: None,
) -> list[Measured]:
    """Open every row, warm it up on all its texts, then time them in turn.

    Args:
        jobs: rows that are ready to be served.
        load: the texts.
        rounds: that count. The order of rows changes from round to round.
        say: progress, a line at a time.

    Returns:
        A result a row, in the order given; one that failed says why.
    """
    measured = [Measured(job) for job in jobs]
    workers: dict[tuple[str, str], Worker] = {}
    try:
        for row in measured:
            for scenario in row.job.scenarios:
                if row.failure is None:
                    workers[row.job.name, scenario] = _opened(row, scenario, load, say)
        running = [row for row in measured if row.failure is None]
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            turn = number % max(1, len(running))
            for row in running[turn:] + running[:turn]:
                _timed(row, workers)
        for row in measured:
            if row.failure is None:
                row.facts = _kept(row, workers[row.job.name, row.job.scenarios[0]].ask("facts")) or {}
    finally:
        for worker in workers.values():
            worker.close()
    return measured


def ways(job: Job, scenario: str, threads: int) -> list[Way]:
    """How a row could use the cores: every operator on all of them; or, where it can, a core for each batch (Offline),
    or one core alone (SingleStream). A careful user tries both.
    """
    together = Way(threads)
    if not job.lanes or threads == 1:
        return [together]
    return [together, Way(1, threads) if scenario == "Offline" else Way(1)]


def _opened(row: Measured, scenario: str, load: Load, say: Callable[[str], None]) -> Worker:
    """Start a row, in the quickest of its ways, and run everything it will be timed on: for every new shape some
    libraries make a plan.
    """
    say(f"warming up {row.job.name} for {scenario}")
    choices = ways(row.job, scenario, load.threads)
    tried = [_tried(row, scenario, load, way) for way in choices]
    quickest = min(range(len(choices)), key=lambda number: tried[number][1])
    for number, (worker, _) in enumerate(tried):
        if number != quickest:
            worker.close()
    best, row.ways[scenario] = tried[quickest][0], choices[quickest]
    if row.failure is None:
        row.answers[scenario] = _kept(row, best.ask(_ANSWERS[scenario]))
        row.startup = best.startup if row.startup is None else row.startup
    return best


def _tried(row: Measured, scenario: str, load: Load, way: Way) -> tuple[Worker, float]:
    """A worker, warm, and how long it took for all that it will be timed on."""
    worker = Worker(row.job, load, way)
    row.failure = row.failure or worker.failure
    seconds = []
    for _ in range(WARM_UP):
        said = None if row.failure is not None else _kept(row, worker.ask(_COMMANDS[scenario], True))
        seconds.append(float(np.sum(said)) if said is not None else math.inf)
    return worker, min(seconds[1:])


def _timed(row: Measured, workers: Mapping[tuple[str, str], Worker]) -> None:
    """One round of one row."""
    for tokenised in (False, True):
        for scenario in row.job.scenarios:
            worker = workers[row.job.name, scenario]
            if row.failure is not None or not worker.ask("can", tokenised):
                continue
            time.sleep(_REST)
            seconds = _kept(row, worker.ask(_COMMANDS[scenario], tokenised))
            if row.failure is None:
                row.seconds.setdefault((scenario, tokenised), []).append(seconds)


def _kept(row: Measured, said: Any) -> Any:
    """What a worker said; a failure is the row's."""
    if isinstance(said, Failure):
        row.failure = row.failure or said
        return None
    return said


def summary(row: Measured, texts: int) -> dict[str, Any]:
    """Numbers of one row: medians over rounds with the smallest and the largest, scenario by scenario."""
    found: dict[str, Any] = {}
    for (scenario, tokenised), rounds in row.seconds.items():
        each = [texts / seconds for seconds in rounds] if scenario == "Offline" else [1 / np.mean(r) for r in rounds]
        entry: dict[str, Any] = {"texts_per_second": spread(each)}
        if scenario == "SingleStream":
            for percentile in (50, 90, 99):
                entry[f"p{percentile}_ms"] = spread([1000 * np.percentile(r, percentile) for r in rounds])
        found.setdefault(scenario, {})["with tokenisation" if tokenised else "without tokenisation"] = entry
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes, and every round."""
    return {
        "median": float(np.median(values)),
        "low": float(np.min(values)),
        "high": float(np.max(values)),
        "rounds": [float(value) for value in values],
    }


def ratio(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """How much faster one row is than another, round by round. Both as ``spread`` gives them."""
    pairs = zip(ours["rounds"], theirs["rounds"], strict=True)
    return spread([mine / other for mine, other in pairs])
