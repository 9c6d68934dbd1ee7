"""The distance ratio by hand, and what its settings change."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.criteria import make
from offramp.criteria.distance import OtherPrototypes, OwnPrototype, distance_ratio, fuse
from offramp.errors import KnobError

LOGITS = np.array([[0.0, 9.0, 0.0]])  # predicts class 1


@pytest.mark.parametrize(
    ("own", "others", "ratio"),
    [
        ("predicted", "nearest", 0.5 * (1 + (2 - 1) / 2)),  # r1 = 2, r2 = 1
        ("predicted", "mean", 0.5 * (1 + (2 - 2.5) / 2.5)),  # r2 = (1 + 4) / 2
        ("nearest", "nearest", 0.5 * (1 + (1 - 2) / 2)),  # r1 = 1, r2 = 2
        ("nearest", "mean", 0.5 * (1 + (1 - 3) / 3)),  # r2 = (2 + 4) / 2
    ],
)
def test_which_prototypes(own: OwnPrototype, others: OtherPrototypes, ratio: float) -> None:
    distances = np.array([[1.0, 2.0, 4.0]])
    assert distance_ratio(distances, LOGITS, own=own, others=others)[0] == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("distances", "ratio"),
    [
        ([2.0, 0.0, 3.0], 0.0),  # on its own prototype
        ([0.0, 2.0, 3.0], 1.0),  # on another's
        ([2.0, 2.0, 3.0], 0.5),
        ([0.0, 0.0, 0.0], 0.5),  # nothing can be told
        ([np.inf, 1.0, np.inf], 0.5),  # nothing to compare with
        ([1.0, np.inf, 1.0], 1.0),  # the predicted class has no prototype
        ([np.inf, 1.0, 4.0], 0.125),  # an absent class is left out
        ([np.inf, np.inf, np.inf], 0.5),
    ],
)
def test_limits(distances: list[float], ratio: float) -> None:
    assert distance_ratio(np.array([distances]), LOGITS)[0] == pytest.approx(ratio)


@pytest.mark.parametrize("others", ["nearest", "mean"])
def test_absent_classes_count_neither_way(others: OtherPrototypes) -> None:
    distances = np.array([[np.inf, 1.0, 4.0]])
    assert distance_ratio(distances, LOGITS, others=others)[0] == pytest.approx(0.125)


def test_scale_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    distances, logits = rng.gamma(2, size=(50, 4)), rng.normal(size=(50, 4))
    one, two = (distance_ratio(scale * distances, logits) for scale in (1.0, 37.0))
    np.testing.assert_allclose(one, two)


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        ("harmonic", 1 / (0.75 / 0.2 + 0.25 / 0.8)),
        ("arithmetic", 0.75 * 0.2 + 0.25 * 0.8),
        ("geometric", 0.2**0.75 * 0.8**0.25),
        ("min", 0.2),
        ("max", 0.8),
    ],
)
def test_fusions(fusion: str, expected: float) -> None:
    found = fuse(np.array([0.8]), np.array([0.2]), lam=3.0, fusion=fusion)  # type: ignore[arg-type]
    assert found[0] == pytest.approx(expected, rel=1e-6)


def test_lambda_is_not_negative() -> None:
    for bad in (-1.0, float("nan")):
        with pytest.raises(KnobError, match="lambda"):
            make("edr", lam=bad)
