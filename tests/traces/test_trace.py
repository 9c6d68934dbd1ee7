from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from offramp.errors import DataError, RunError
from offramp.traces.trace import Trace


def arguments(**changed: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    distances = rng.random((3, 5, 2)).astype(np.float32)
    distances[-1] = np.nan
    usual = {
        "logits": rng.normal(size=(3, 5, 2)).astype(np.float32),
        "layers": np.array([2, 3, 6]),
        "lengths": np.array([3, 4, 5, 6, 7]),
        "problem_type": "single_label_classification",
        "id2label": {0: "no", 1: "yes"},
        "extras": {"distances": distances},
        "labels": np.array([0, 1, 1, 0, 1]),
        "hashes": np.arange(5, dtype=np.uint64),
    }
    return usual | changed


def test_what_a_trace_says_of_itself() -> None:
    trace = Trace(**arguments())
    assert (trace.num_exits, trace.num_units, trace.num_layers) == (3, 5, 6)
    assert trace.offsets.tolist() == [0, 1, 2, 3, 4, 5]
    assert trace.unit_tokens.tolist() == [3, 4, 5, 6, 7]
    assert [(s.first_layer, s.last_layer, s.layers, s.is_last) for s in trace.stages] == [
        (0, 2, 2, False), (2, 3, 3, False), (3, 6, 6, True)
    ]  # fmt: skip


def test_an_exit_gives_only_what_it_gave() -> None:
    trace = Trace(**arguments())
    assert set(trace.output(0).extras) == {"distances"}
    assert set(trace.output(2).extras) == set()
    np.testing.assert_array_equal(trace.output(1).logits, trace.logits[1])


def test_select_takes_items_in_order() -> None:
    trace = Trace(**arguments())
    for indices in (np.array([4, 0, 0]), np.array([True, False, False, True, True])):
        some = trace.select(indices)
        order = np.arange(5)[indices]
        np.testing.assert_array_equal(some.logits, trace.logits[:, order])
        np.testing.assert_array_equal(some.extras["distances"], trace.extras["distances"][:, order])
        assert trace.labels is not None
        assert some.labels is not None
        assert some.labels.tolist() == trace.labels[order].tolist()
        assert some.lengths.tolist() == trace.lengths[order].tolist()
        assert some.offsets.tolist() == list(range(len(order) + 1))
    assert trace.select(np.array([], dtype=np.int64)).num_units == 0


def test_select_keeps_the_units_of_an_item_together() -> None:
    trace = Trace(**arguments(lengths=np.array([6, 8]), offsets=np.array([0, 3, 5]), hashes=None))
    assert trace.unit_tokens.tolist() == [2, 2, 2, 4, 4]
    some = trace.select(np.array([1, 0]))
    np.testing.assert_array_equal(some.logits, trace.logits[:, [3, 4, 0, 1, 2]])
    assert some.offsets.tolist() == [0, 2, 5]


BAD = {
    "logits of two axes": ({"logits": np.zeros((3, 5), np.float32)}, "logits"),
    "a logit that is no number": ({"logits": np.full((3, 5, 2), np.nan, np.float32)}, "exit 0"),
    "layers that fall": ({"layers": np.array([3, 2, 6])}, "layers"),
    "layers from zero": ({"layers": np.array([0, 2, 6])}, "layers"),
    "too few layers": ({"layers": np.array([1, 2])}, "layers"),
    "extra of another length": ({"extras": {"gate": np.zeros((3, 4), np.float32)}}, "gate"),
    "extra that is half NaN": ({"extras": {"gate": np.array([[0, 0, 0, 0, np.nan]] * 3, np.float32)}}, "gate"),
    "label too high": ({"labels": np.array([0, 1, 2, 0, 0])}, "but one is 2"),
    "label below 0": ({"labels": np.array([0, 1, -1, 0, 0])}, "but one is -1"),
    "too few labels": ({"labels": np.array([0, 1])}, "labels"),
    "too few lengths": ({"lengths": np.array([3, 4])}, "units"),
    "offsets that fall": ({"offsets": np.array([0, 2, 1, 3, 4, 5])}, "offsets"),
    "too few hashes": ({"hashes": np.zeros(2, np.uint64)}, "hash"),
    "too few seconds": ({"seconds": np.zeros(2)}, "seconds"),
    "label that is no number": (
        {"problem_type": "regression", "labels": np.array([0, 1, np.nan, 0, 0], np.float32)},
        "finite",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_do_not_fit(case: str) -> None:
    changed, message = BAD[case]
    with pytest.raises(DataError, match=message):
        Trace(**arguments(**changed))


def test_unknown_problem_type() -> None:
    with pytest.raises(RunError, match="newer"):
        Trace(**arguments(problem_type="ranking"))


def test_labels_asked_for_where_there_are_none() -> None:
    with pytest.raises(DataError, match="label"):
        Trace(**arguments(labels=None)).labels_known()
