"""Who leaves: one file a rule. A criterion is found by the ``name`` its class declares; nothing registers it."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from functools import cache

from offramp.criteria.base import Criterion, Knob, Scored
from offramp.errors import KnobError

__all__ = ["Criterion", "Knob", "Scored", "available", "make"]


@cache
def available() -> dict[str, type[Criterion]]:
    """Every criterion in this folder: name -> class."""
    found: dict[str, type[Criterion]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Criterion) and "name" in vars(value):
                found[value.name] = value
    return dict(sorted(found.items()))


def make(name: str, **settings: object) -> Criterion:
    """A criterion by name, with settings such as ``lam`` or ``problem_type``.

    Raises:
        KnobError: no such criterion, or no such setting.
        UnsupportedError: it does not serve the problem type.
    """
    criteria = available()
    if name not in criteria:
        near = get_close_matches(name, criteria, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(criteria)}"
        raise KnobError(f"no criterion is called {name!r}: {hint}")
    try:
        return criteria[name](**settings)  # type: ignore[arg-type]
    except TypeError as error:
        raise KnobError(f"criterion {name!r} does not take these settings: {error}") from None
