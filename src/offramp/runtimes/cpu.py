"""What the CPU has: cores, and instructions for eight-bit numbers."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path

from offramp.errors import KnobError

__all__ = ["check_lanes", "check_threads", "cores", "has_int8_instructions", "warn_of_slow_int8"]

logger = logging.getLogger(__name__)

_FAST = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""CPU features for products of eight-bit numbers, as Linux names them."""


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def check_threads(threads: int | None) -> int:
    """The number of threads to use; None: one for every core.

    Raises:
        KnobError: no whole number, fewer than one, or more than there are cores.
    """
    most = cores()
    if threads is None:
        return most
    if not isinstance(threads, int) or isinstance(threads, bool):
        raise KnobError(f"threads must be a whole number from 1 to the {most} cores there are, not {threads!r}")
    if not 1 <= threads <= most:
        raise KnobError(f"threads must be from 1 to the {most} cores there are, not {threads}: more would only wait")
    return threads


def check_lanes(lanes: int, threads: int) -> int:
    """The number of lanes: batches that are computed side by side.

    Raises:
        KnobError: fewer than one, or more than there are threads.
    """
    if not 1 <= lanes <= threads:
        raise KnobError(
            f"lanes must be from 1 to the {threads} threads there are, not {lanes}: each has one of its own"
        )
    return lanes


def has_int8_instructions() -> bool | None:
    """Whether the CPU multiplies eight-bit numbers by instructions of their own; None: this system does not say."""
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True if platform.machine() in ("arm64", "aarch64") else None
    return any(name in said.split() for name in _FAST)


def warn_of_slow_int8(dtype: str) -> None:
    """Say so where int8 was asked for on a CPU that gains little by it."""
    if dtype == "int8" and has_int8_instructions() is False:
        logger.warning("this CPU has no instructions for int8 products: int8 will be slow here, try float32")
