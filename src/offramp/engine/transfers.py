"""How an engine's arrays cross between the host and the device where a runtime computes.

A GPU works through a queue, and whoever looks at a number waits until the queue is empty: at an exit that would be
after each stage. Where a runtime defers, nothing here waits until what ``fetch`` returned is called.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device

from offramp.engine.units import to_host
from offramp.runtimes.base import Defers, Runtime
from offramp.types import Array, Decision

__all__ = ["Told", "Transfers"]

Told = Callable[[], tuple[npt.NDArray[Any], npt.NDArray[Any]]]
"""Waits, and says who leaves [B] bool and with which answers [B, C]."""


class Transfers:
    """Between the host and a runtime's device.

    Args:
        runtime: whose arrays they are.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._defers = cast("Defers", runtime) if runtime.info.deferred else None

    def send(self, array: npt.NDArray[Any], like: Array) -> Array:
        """An array of the host as one of the library, and on the device, of ``like``."""
        if self._defers is not None:
            return self._defers.send(array)
        return array_namespace(like).asarray(array, device=device(like))

    def fetch(self, decision: Decision) -> Told:
        """Begin to bring a decision to the host, in one transfer: who leaves is a column beside the answers."""
        if isinstance(decision.leave, np.ndarray) and isinstance(decision.answer, np.ndarray):
            return lambda: (decision.leave, to_host(decision.answer))
        xp = array_namespace(decision.answer)
        leave = xp.astype(decision.leave, decision.answer.dtype)
        both = xp.concat([decision.answer, leave[:, None]], axis=1)
        told = partial(to_host, both) if self._defers is None else self._defers.fetch(both)

        def apart() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
            host = told()
            return host[:, -1] != 0, host[:, :-1]

        return apart
