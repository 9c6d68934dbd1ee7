"""What is said of a default operating point that rests on little."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from offramp.calibration.sweep import choose
from offramp.criteria import make
from offramp.traces.trace import Trace
from offramp.training.finish import _warn


def trace_of(rows: int, right: tuple[float, ...]) -> Trace:
    """Exits that are right on so large a share of the rows, the same ones first."""
    labels = np.arange(rows) % 2
    logits = np.zeros((len(right), rows, 2), dtype=np.float32)
    for exit_, share in enumerate(right):
        said = np.where(np.arange(rows) < round(share * rows), labels, 1 - labels)
        logits[exit_, np.arange(rows), said] = 3.0
    return Trace(
        logits=logits,
        layers=np.arange(1, len(right) + 1),
        lengths=np.full(rows, 5),
        labels=labels,
        problem_type="single_label_classification",
        id2label={0: "bad", 1: "good"},
    )


@pytest.mark.parametrize(
    ("rows", "right", "says"),
    [
        (400, (0.7, 0.9), []),
        (400, (0.7, 0.68), []),  # by chance
        (400, (0.7, 0.5), ["full depth (50.0 on dev) is well below an early exit (70.0)"]),
        (20, (0.7, 0.9), ["dev has too few rows (20)"]),
        (400, (0.7,), []),
    ],
)
def test_a_point_that_rests_on_little(
    rows: int, right: tuple[float, ...], says: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    trace = trace_of(rows, right)
    with caplog.at_level(logging.WARNING, logger="offramp"):
        _warn(trace, choose(trace, make("entropy" if len(right) > 1 else "depth"), max_drop=0.5, or_best=True))
    assert len(caplog.messages) == len(says)
    for message, expected in zip(caplog.messages, says, strict=True):
        assert message.startswith(expected)
