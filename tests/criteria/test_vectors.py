"""Criteria against numbers worked out by hand: three texts, three classes, six layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from offramp.criteria import make
from offramp.criteria.distance import fuse
from offramp.criteria.divergence import Kind, divergence
from offramp.criteria.entropy import normalised_entropy
from offramp.traces.diagnostics import confusion
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

ENTROPIES = {
    "A": [0.9835, 0.8871, 0.6650, 0.3572, 0.1733, 0.1019],
    "B": [0.4717, 0.7789, 0.8173, 0.7799, 0.4717, 0.2035],
    "C": [0.9999, 0.9974, 0.9849, 0.9974, 0.9593, 0.9762],
}
DIVERGENCES: dict[Kind, dict[str, list[float]]] = {
    "js": {
        "A": [0.0132, 0.0230, 0.0200, 0.0079, 0.0027],
        "B": [0.1040, 0.0141, 0.0016, 0.0275, 0.0153],
        "C": [0.0007, 0.0036, 0.0026, 0.0143, 0.0007],
    },
    "mean_entropy": {
        "A": [1.0408, 0.8756, 0.5815, 0.2993, 0.1538],
        "B": [0.7910, 0.8909, 0.8790, 0.7151, 0.3862],
        "C": [1.0978, 1.0925, 1.0915, 1.0892, 1.0638],
    },
}
"""Of layers 2 to 6 from the one before."""


@pytest.fixture
def trace(vector_trace: Trace) -> Trace:
    return vector_trace


def leaving_layers(trace: Trace, name: str, *, settings: dict[str, object] | None = None, **knobs: float) -> list[int]:
    criterion = make(name, problem_type=trace.problem_type, **(settings or {}))
    return [int(layer) for layer in trace.layers[replay(trace, criterion, knobs).exits]]


@pytest.mark.parametrize("text", "ABC")
def test_normalised_entropy_of_each_layer(vectors: dict[str, np.ndarray], text: str) -> None:
    found = normalised_entropy(np.log(vectors[text]))
    np.testing.assert_allclose(found, ENTROPIES[text], atol=5.1e-5)


def test_entropy_in_nats_as_deebert_has_it(trace: Trace) -> None:
    assert leaving_layers(trace, "entropy", threshold=0.5 / np.log(3)) == [4, 6, 6]


def test_normalised_entropy_as_fastbert_has_it(trace: Trace) -> None:
    assert leaving_layers(trace, "entropy", threshold=0.5) == [4, 1, 6]


def test_largest_probability(trace: Trace) -> None:
    # max p >= .8; the doubt 1 - max p is below .2 for the same layers, none of which stands at .8 itself.
    assert leaving_layers(trace, "confidence", threshold=0.2) == [4, 1, 6]


def test_shallow_deep_falls_back_to_the_surest_exit(trace: Trace) -> None:
    assert leaving_layers(trace, "confidence_fallback", threshold=0.2) == [4, 1, 6]
    outcome = replay(trace, make("confidence_fallback"), {"threshold": 0.2})
    # Exit 3 answers for C: exit 5 is as sure (.42) and later.
    np.testing.assert_array_equal(outcome.answers[2], trace.logits[2, 2])
    assert outcome.answers.argmax(axis=-1).tolist() == [0, 0, 0]


def test_shallow_deep_confusion(trace: Trace) -> None:
    np.testing.assert_allclose(confusion(trace), [2.68, 4.10, 0.82], atol=1e-5)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("text", "ABC")
def test_divergence_of_each_layer_from_the_one_before(vectors: dict[str, np.ndarray], kind: Kind, text: str) -> None:
    log_p = np.log(vectors[text])
    np.testing.assert_allclose(divergence(log_p[:-1], log_p[1:], kind=kind), DIVERGENCES[kind][text], atol=5.1e-5)


@pytest.mark.parametrize(("patience", "layers"), [(1, [2, 3, 2]), (2, [6, 4, 3])])
def test_f_pabee(trace: Trace, patience: int, layers: list[int]) -> None:
    assert leaving_layers(trace, "divergence", threshold=0.018, patience=patience) == layers


def test_pcee_bert(trace: Trace) -> None:
    assert leaving_layers(trace, "patience_entropy", threshold=0.8, patience=2) == [4, 2, 6]


@pytest.mark.parametrize(("window", "layers"), [(2, [2, 3, 4]), (3, [3, 4, 6]), (4, [4, 5, 6])])
def test_elbert_with_two_stages_is_patience_of_one_less(trace: Trace, window: int, layers: list[int]) -> None:
    assert leaving_layers(trace, "window", threshold=0.0, window=window) == layers
    both = leaving_layers(trace, "window", threshold=0.5, window=window)
    assert both == np.minimum(layers, [4, 1, 6]).tolist(), "whichever comes first"


@pytest.mark.parametrize(
    ("rule", "window", "layers"),
    [
        ("rising", 2, [2, 3, 6]),  # C: .36 after .42, and .40 after .42; else it changes its mind
        ("rising", 4, [4, 5, 6]),
        ("steady", 2, [5, 3, 4]),  # A .90 .96, B .50 .60, C .42 .36
        ("steady", 3, [6, 6, 6]),  # A .90 .96 .98; B .50 .60 .65 and all after it are too wide
    ],
)
def test_trends_of_elbert(trace: Trace, rule: str, window: int, layers: list[int]) -> None:
    settings = {"rule": rule, "spread": 0.11}
    assert leaving_layers(trace, "window", settings=settings, threshold=0.0, window=window) == layers


def test_answer_is_the_leaving_exits(trace: Trace) -> None:
    outcome = replay(trace, make("confidence"), {"threshold": 0.2})
    assert outcome.answers.argmax(axis=-1).tolist() == [0, 0, 1]


@pytest.mark.parametrize(("patience", "layers"), [(1, [2, 3, 4]), (2, [3, 4, 6]), (3, [4, 5, 6])])
def test_patience(trace: Trace, patience: int, layers: list[int]) -> None:
    assert leaving_layers(trace, "patience", patience=patience) == layers


@pytest.mark.parametrize(
    ("delta", "patience", "layer"), [(0.1, 1, 4), (0.1, 2, 5), (0.1, 3, 6), (0.0, 1, 6), (0.0, 2, 6)]
)
def test_regression_patience(trace_of: Callable[..., Trace], delta: float, patience: int, layer: int) -> None:
    numbers = np.array([1.0, 2.0, 2.3, 2.35, 2.31, 2.30]).reshape(6, 1, 1)
    trace = trace_of(numbers, "regression")
    assert leaving_layers(trace, "patience_delta", delta=delta, patience=patience) == [layer]


EDR_PAIRS = [(0.5, 0.01), (0.05, 0.01), (0.02, 0.6), (0.5, 0.6), (0.9, 0.01), (0.9, 0.1)]
"""(distance ratio, entropy)."""
EDR_TABLE = {
    0.1: [0.0110, 0.0108, 0.1650, 0.5893, 0.0110, 0.1088],
    1.0: [0.0196, 0.0167, 0.0387, 0.5455, 0.0198, 0.1800],
    5.0: [0.0545, 0.0300, 0.0238, 0.5143, 0.0568, 0.3857],
    10.0: [0.0917, 0.0367, 0.0219, 0.5077, 0.0990, 0.5211],
    50.0: [0.2550, 0.0464, 0.0204, 0.5016, 0.3279, 0.7780],
}


@pytest.mark.parametrize("lam", EDR_TABLE)
def test_edr_table(lam: float) -> None:
    ratio, entropy = np.array(EDR_PAIRS).T
    np.testing.assert_allclose(fuse(entropy, ratio, lam=lam), EDR_TABLE[lam], atol=5.1e-5)


def test_edr_limits() -> None:
    ratio, entropy = np.array(EDR_PAIRS).T
    np.testing.assert_allclose(fuse(entropy, ratio, lam=0.0), entropy, rtol=1e-5)
    np.testing.assert_allclose(fuse(entropy, ratio, lam=float("inf")), ratio, rtol=1e-5)
