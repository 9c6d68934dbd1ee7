"""No word to anybody: OpenVINO and NNCF tell their makers of every import and use, unless that is prevented.

Both go on without it where the package that sends, ``openvino_telemetry``, cannot be found. (It also takes a quarter
of a second of the import.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_telemetry"]

_SENDER = "openvino_telemetry"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """What is imported inside finds nothing to send with. What somebody else imported before stays as it is."""
    if _SENDER in sys.modules:
        there = sys.modules[_SENDER]
        sys.modules[_SENDER] = None  # type: ignore[assignment]  # which importing takes for: there is none
        try:
            yield
        finally:
            sys.modules[_SENDER] = there
        return
    sys.modules[_SENDER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_SENDER]
