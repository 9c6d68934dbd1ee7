from __future__ import annotations

import pytest

from offramp.bench.significance import holm, mean_of_independent, standard_error, two_sided


def test_holm_by_hand() -> None:
    # Sorted: .01 x 4, .02 x 3, .04 x 2 = .08, and .05 x 1 may not be below its forerunner.
    assert holm({"a": 0.01, "b": 0.04, "c": 0.02, "d": 0.05}) == pytest.approx(
        {"a": 0.04, "c": 0.06, "b": 0.08, "d": 0.08}
    )
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def test_p_of_an_interval_that_touches_zero() -> None:
    assert two_sided(1.0, standard_error((0.0, 2.0))) == pytest.approx(0.05, abs=1e-6)
    assert two_sided(0.0, 0.0) == 1.0


def test_mean_of_independent_numbers() -> None:
    assert mean_of_independent((1.0, 3.0), (3.0, 4.0)) == (2.0, 2.5)
