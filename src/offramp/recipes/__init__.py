"""One file a paper, found by its name. Nothing else is edited to add one."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches

from offramp.errors import KnobError
from offramp.recipes.base import Part, Phase, Recipe, part

__all__ = ["Part", "Phase", "Recipe", "available", "load_recipe", "part"]


def available() -> list[str]:
    """Names of the recipe files in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load_recipe(name: str) -> Recipe:
    """The recipe in the file of that name.

    Raises:
        KnobError: there is no such file; the nearest names are offered.
    """
    names = available()
    if name not in names:
        near = get_close_matches(name, names, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
        raise KnobError(f"no recipe is called {name!r}: {hint}")
    recipe = importlib.import_module(f"{__name__}.{name}").recipe
    assert isinstance(recipe, Recipe), f"recipes/{name}.py must define `recipe`"
    return recipe
