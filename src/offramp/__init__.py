"""offramp: early exit for BERT-style encoders.

Easy texts leave the network after a few layers, hard ones go on.
"""

from __future__ import annotations

TYPE_CHECKING = False  # not from typing: until it is imported, Ctrl-C is not in our hands (__main__.py)

__version__ = "0.1.0"
__all__ = ["Monitor", "OfframpError", "Prediction", "__version__", "load"]

if TYPE_CHECKING:
    from typing import Any

    from offramp.calibration.monitor import Monitor
    from offramp.errors import OfframpError
    from offramp.pipeline import load
    from offramp.types import Prediction

_HOMES = {
    "Monitor": "offramp.calibration.monitor",
    "load": "offramp.pipeline",
    "Prediction": "offramp.types",
    "OfframpError": "offramp.errors",
}


def __getattr__(name: str) -> Any:
    """Import public names at first use, so that ``import offramp`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'offramp' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
