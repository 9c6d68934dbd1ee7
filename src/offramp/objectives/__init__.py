"""What training minimises: one file an objective, found by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from offramp.errors import KnobError
from offramp.objectives.base import Objective

__all__ = ["Objective", "make_objective"]


def make_objective(name: str, settings: Mapping[str, Any]) -> Objective:
    """The objective in the file ``name``: ``weighted_sum`` holds ``WeightedSum``.

    Raises:
        KnobError: no such objective, or no such setting.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    if name not in names:
        near = ", ".join(get_close_matches(name, names) or names)
        raise KnobError(f"no objective is called {name!r}: there is {near}")
    objective_class = getattr(importlib.import_module(f"{__name__}.{name}"), name.title().replace("_", ""))
    known = list(inspect.signature(objective_class).parameters)
    for key in settings:
        if key not in known:
            raise KnobError(f"objective {name!r} has no setting {key!r}: it has {', '.join(known)}")
    objective: Objective = objective_class(**settings)
    return objective
