"""One training at a time in a folder: a lock of the operating system, which ends with the process that holds it.

And what a training that was broken off has left there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from offramp.errors import InUseError

__all__ = ["only_training", "what_to_go_on_from"]


@contextmanager
def only_training(work: Path) -> Iterator[None]:
    """Hold ``<work>.lock``, so that no other process or thread trains into ``work``.

    The file that a killed process leaves holds nobody up: the lock was the process's own, and went with it.

    Raises:
        InUseError: another training holds it.
        OSError: nothing can be written there.
    """
    path = work.with_name(f"{work.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InUseError(f"another training writes to {work}: wait until it has ended, or give another --out") from None
    try:
        yield
    finally:
        if os.name != "nt":  # there filelock removes it; elsewhere that is safe only while the lock is held
            path.unlink(missing_ok=True)
        lock.release()


def what_to_go_on_from(work: Path) -> str | None:
    """What ``--resume`` finds in a folder of checkpoints, in words; None: nothing that would save time."""
    # trainer_state.json is what transformers writes last into a checkpoint.
    if any(work.glob("phase-*/checkpoint-*/trainer_state.json")) or any(work.glob("phase-*/finished")):
        return "the last checkpoint"
    # On a CPU the pass through the frozen encoder takes far longer than the training of heads after it.
    return "the texts encoded so far" if any(work.glob("features-*/part-*")) else None
