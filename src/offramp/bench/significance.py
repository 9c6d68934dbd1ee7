"""Tests of paired gaps: from an interval to a p-value, and Holm's correction of many."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

__all__ = ["LEVEL", "holm", "mean_of_independent", "normal_interval", "standard_error", "two_sided"]

Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.05
"""Below which a corrected p is called significant."""

_REACH = 1.959964
"""Of a 95 % interval to either side, in standard errors."""


def standard_error(interval: Sequence[float]) -> float:
    """Of what has this 95 % interval (low, high), taken as normal."""
    low, high = interval
    return (high - low) / (2 * _REACH)


def normal_interval(mean: float, error: float) -> tuple[float, float]:
    """(low, high): 95 %, the inverse of ``standard_error``."""
    return mean - _REACH * error, mean + _REACH * error


def two_sided(gap: float, error: float) -> float:
    """The p-value of a gap so far from 0 by chance, normal; 1 where nothing was drawn that differs."""
    return math.erfc(abs(gap) / error / math.sqrt(2)) if error else 1.0


def holm(tests: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's corrected p-values (Holm 1979): below a level for each test that is significant at it, whatever the others
    are.
    """
    corrected, largest = {}, 0.0
    for rank, (key, p) in enumerate(sorted(tests.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(tests) - rank)))
        corrected[key] = largest
    return corrected


def mean_of_independent(means: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Mean of independent numbers, and its standard error."""
    return sum(means) / len(means), math.sqrt(sum(error**2 for error in errors)) / len(errors)
