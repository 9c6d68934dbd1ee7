"""What training minimises: one file an objective, found by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from offramp.errors import KnobError
from offramp.objectives.base import Moment, Objective

__all__ = ["Moment", "Objective", "make_objective"]


def make_objective(name: str, settings: Mapping[str, Any], *, num_exits: int = 1) -> Objective:
    """The objective in the file ``name`` for a model with so many exits: ``weighted_sum`` holds ``WeightedSum``.

    Raises:
        KnobError: no such objective, or no such setting.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    if name not in names:
        near = ", ".join(get_close_matches(name, names) or names)
        raise KnobError(f"no objective is called {name!r}: there is {near}")
    objective_class = getattr(importlib.import_module(f"{__name__}.{name}"), name.title().replace("_", ""))
    has_parameters = issubclass(objective_class, nn.Module)
    known = list(inspect.signature(objective_class).parameters)[1 if has_parameters else 0 :]
    for key in settings:
        if key not in known:
            raise KnobError(f"objective {name!r} has no setting {key!r}: it has {', '.join(known)}")
    objective: Objective = objective_class(*([num_exits] if has_parameters else []), **settings)
    return objective
