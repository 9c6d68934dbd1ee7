"""Sums by voice against the features written out. (That sums give the tasks' metrics: test_curves.py.)"""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from offramp.traces.tally import Voices, make_tally
from offramp.traces.trace import Trace


@given(st.data())
def test_columns_hold_all_that_is_said(data: st.DataObject) -> None:
    count, units, ways = (data.draw(st.integers(1, 4)) for _ in range(3))
    classes = data.draw(st.integers(2, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    answers = rng.normal(size=(count, units, classes)).astype(np.float32) + data.draw(st.sampled_from([-9, 0, 9]))
    voices = rng.integers(count, size=(ways, units))
    kind = data.draw(st.sampled_from(["single_label_classification", "multi_label_classification"]))
    trace = Trace(
        logits=answers,
        layers=np.arange(1, count + 1),
        lengths=np.ones(units, dtype=np.int64),
        problem_type=kind,  # type: ignore[arg-type]
        id2label={c: str(c) for c in range(classes)},
        labels=rng.integers(classes, size=units) if kind.startswith("single") else rng.random((units, classes)) > 0.5,
    )
    tally = make_tally(trace)
    features = np.stack([tally.features(one) for one in answers])
    table = Voices(tally, list(answers))
    found = np.zeros((ways, units, tally.width))
    numbers = []
    for number, rows, said in table.columns(voices):
        numbers.append(number)
        found[:, rows, number] = said
    np.testing.assert_array_equal(found, features[voices, np.arange(units)])
    assert table.width == tally.width
    assert numbers == np.flatnonzero(features.any(axis=(0, 1))).tolist()
