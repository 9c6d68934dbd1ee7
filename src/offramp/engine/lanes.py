"""Lanes: several threads take the steps of one engine, a batch each at a time.

Where a core is given a batch of its own, nobody waits for anybody between two operators, which is what spreading every
operator over all cores costs: small ones take longer to hand out than to compute. One text is answered no sooner for
it; many are answered in less time. What is computed does not change: the engine decides which batch runs next, one
decision after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Protocol

from offramp.engine.units import Finished

__all__ = ["Lanes"]


class _Steps(Protocol):
    """What lanes need to know of an engine."""

    @property
    def busy(self) -> bool: ...

    def step(self) -> list[Finished]: ...


class Lanes:
    """Takes steps of an engine; use it in a ``with`` block, at whose end all lanes have come to rest.

    Args:
        engine: whose ``step`` may be called by several threads at once.
        count: of lanes; with one, steps are taken by the calling thread.
        shared_out: shares the threads of the process out among them (``runtimes.base.SharesThreads``); None: each has
            threads of its own.
    """

    def __init__(
        self,
        engine: _Steps,
        count: int,
        shared_out: Callable[[], AbstractContextManager[Callable[[], None]]] | None,
    ) -> None:
        self._engine, self._count, self._shared_out = engine, count, shared_out
        self._pool: ThreadPoolExecutor | None = None
        self._running: set[Future[list[Finished]]] = set()
        self._at_end = ExitStack()

    def __enter__(self) -> Lanes:
        if self._count > 1:
            take_share = None if self._shared_out is None else self._at_end.enter_context(self._shared_out())
            self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="offramp-lane", initializer=take_share)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._at_end:
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def busy(self) -> bool:
        """Something is left to do, or being done."""
        return self._engine.busy or bool(self._running)

    def step(self) -> list[Finished]:
        """What left at the next step that ends. Where a step raises, so does this."""
        if self._pool is None:
            return self._engine.step()
        while self._engine.busy and len(self._running) < self._count:
            self._running.add(self._pool.submit(self._engine.step))
        ended, self._running = wait(self._running, return_when=FIRST_COMPLETED)
        return [finished for each in ended for finished in each.result()]
