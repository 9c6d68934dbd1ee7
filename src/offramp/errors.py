"""One tree of errors; every message names what was wrong and what to do next.

OfframpError                 anything a user can mend; the command line prints it and exits with 2
├── DataError                a file, row, label or text that cannot be used
├── RunError                 a folder that is no run, is damaged, or was written by a newer offramp
├── KnobError                a threshold, speed or setting outside what it may be
├── UnsupportedError         a model family, task or method that does not do what was asked
├── MissingExtraError        an optional dependency that is not installed
└── TrainingError            training that cannot go on (a loss that is not a number)
    └── InUseError           another training writes to the same folder
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "DataError",
    "InUseError",
    "KnobError",
    "MissingExtraError",
    "OfframpError",
    "RunError",
    "TrainingError",
    "UnsupportedError",
    "require",
]


class OfframpError(Exception):
    """Anything a user can mend. The message is one sentence that says how."""


class DataError(OfframpError, ValueError):
    """A file, row, label or text that cannot be used."""


class RunError(OfframpError):
    """A folder that is no run, is damaged, or was written by a newer offramp."""


class KnobError(OfframpError, ValueError):
    """A threshold, speed or setting outside what it may be."""


class UnsupportedError(OfframpError):
    """A model family, task or method that does not do what was asked."""


class MissingExtraError(OfframpError, ImportError):
    """An optional dependency that is not installed."""


class TrainingError(OfframpError):
    """Training that cannot go on, such as a loss that is not a number."""


class InUseError(TrainingError):
    """Another training writes to the same folder."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Raises:
        MissingExtraError: the module is not installed; the message holds the install line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            raise  # the module is there; something inside it is not
        raise MissingExtraError(
            f"this needs {package}, which is not installed: pip install 'offramp[{extra}]'"
        ) from None
