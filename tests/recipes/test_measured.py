"""What only a trained model can show of a recipe, on the traces that the comparison keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.bench.suite_results import DONE, Results
from offramp.calibration.temperature import fit_temperatures
from offramp.traces.trace import Trace

RESULTS = Results(Path(__file__).parents[2] / "benchmarks" / "results" / "suite")
TASKS = ("mrpc", "sst2", "banking77")


def trace_of(task: str, recipe: str) -> Trace:
    """Of seed 0."""
    _, cells = RESULTS.read()
    wanted = (task, recipe, 0, DONE)
    (found,) = [c for c in cells if (c["task"], c["recipe"], c["seed"], c["status"]) == wanted]
    return RESULTS.trace(task, found["key"])


def right(trace: Trace) -> NDArray[np.bool_]:
    """[E, N]: which exit is right on which text."""
    return np.asarray(trace.logits.argmax(axis=-1) == trace.labels)


@pytest.mark.parametrize("task", TASKS)
def test_berxits_gate_ranks_wrong_answers_before_right_ones(task: str) -> None:
    from sklearn.metrics import roc_auc_score

    trace = trace_of(task, "berxit")
    for exit_ in range(trace.num_exits - 1):
        assert roc_auc_score(~right(trace)[exit_], trace.extras["gate"][exit_]) > 0.5, exit_


@pytest.mark.parametrize("task", TASKS)
def test_consistentees_policy_lets_what_is_memorised_late_stay_longer(task: str) -> None:
    trace = trace_of(task, "consistentee")
    # The memorised layer: the lowest from which on every exit is right; the last one where it is wrong itself.
    unbroken = np.logical_and.accumulate(right(trace)[::-1], axis=0)[::-1]
    memorised = np.where(unbroken.any(axis=0), trace.layers[unbroken.argmax(axis=0)], trace.layers[-1])
    on = trace.extras["gate"][:-1].astype(np.float64)
    reaches = np.cumprod(np.vstack([np.ones((1, trace.num_units)), on]), axis=0)
    expected = (reaches * np.diff(trace.layers, prepend=0)[:, None]).sum(axis=0)  # layers run, on average
    assert np.corrcoef(memorised, expected)[0, 1] > 0.1


@pytest.mark.parametrize("task", ["sst2", "banking77"])  # half of mrpc's dev rows are too few to tell
def test_righttools_temperatures_bring_confidence_nearer_to_accuracy(task: str) -> None:
    """At every exit, on rows that the temperatures were not fitted on."""
    trace = trace_of(task, "righttool")
    half = np.random.default_rng(0).permutation(trace.num_units) % 2 == 0
    temperatures = fit_temperatures(trace.select(half))
    judged = trace.select(~half)
    for exit_, temperature in enumerate(temperatures[:-1]):
        before, after = (calibration_error(judged, exit_, t) for t in (1.0, temperature))
        assert after < before, exit_


def calibration_error(trace: Trace, exit_: int, temperature: float, bins: int = 10) -> float:
    """Expected calibration error over bins of equally many texts."""
    logits = trace.logits[exit_].astype(np.float64) / temperature
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    sure = odds.max(axis=-1) / odds.sum(axis=-1)
    order = np.array_split(np.argsort(sure, kind="stable"), bins)
    gaps = [abs(sure[rows].mean() - right(trace)[exit_][rows].mean()) * len(rows) for rows in order]
    return float(sum(gaps) / trace.num_units)
