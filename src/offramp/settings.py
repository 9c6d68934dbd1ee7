"""Checks of the settings that recipes and ``--set`` give to heads, objectives and criteria."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from offramp.errors import KnobError

__all__ = ["check_choice", "check_number", "is_number"]


def is_number(value: object) -> bool:
    """Whether something is a real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise KnobError where ``value`` is none of ``choices``."""
    if value not in choices:
        raise KnobError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def check_number(name: str, value: Any, *, low: float, high: float = math.inf, whole: bool = False) -> None:
    """Raise KnobError where ``value`` is no number from ``low`` to ``high``, both included (infinity never is)."""
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not (right and math.isfinite(value) and low <= value <= high):
        kind = "a whole number" if whole else "a number"
        limits = f"{low:g} or more" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise KnobError(f"{name} must be {kind}, {limits}, not {value!r}")
