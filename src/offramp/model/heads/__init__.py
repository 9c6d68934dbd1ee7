"""Exit heads: one file each, found by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from offramp.errors import KnobError
from offramp.model.heads.base import Head, HeadOutput, Reader, Surroundings

__all__ = ["Head", "HeadOutput", "Reader", "Surroundings", "head_class", "make_head"]


def head_class(name: str) -> type[Head]:
    """The head in the file ``name``: its class carries the same name, capitalised.

    Raises:
        KnobError: no such head.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    if name not in names:
        near = ", ".join(get_close_matches(name, names) or names)
        raise KnobError(f"no exit head is called {name!r}: there is {near}")
    found = getattr(importlib.import_module(f"{__name__}.{name}"), name.title().replace("_", ""))
    assert isinstance(found, type)
    assert issubclass(found, Head)
    return found


def make_head(name: str, around: Surroundings, settings: Mapping[str, Any]) -> Head:
    """A head by name, with its settings.

    Raises:
        KnobError: no such head, or no such setting.
    """
    kind = head_class(name)
    known = [key for key in inspect.signature(kind).parameters if key != "around"]
    for key in settings:
        if key not in known:
            raise KnobError(f"head {name!r} has no setting {key!r}: it has {', '.join(known)}")
    return kind(around, **settings)
