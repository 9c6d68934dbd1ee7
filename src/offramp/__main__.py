"""``python -m offramp``, ``accelerate launch -m offramp train ...``, and the program ``offramp``.

Imports little itself: Ctrl-C is in our hands only from ``main`` on.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

__all__ = ["main"]


_STARTING = ("offramp", "offramp.cli", "offramp.runtimes")
"""Packages whose imports belong to the start of a command, when nothing is being written yet."""


def main() -> NoReturn:
    """The command line; Ctrl-C while modules are imported, or at the very end, ends it as any other Ctrl-C does."""
    # Not where Ctrl-C is ignored (nohup), or where somebody asks to see where it struck.
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler and "--debug" not in sys.argv
    if ours:
        signal.signal(signal.SIGINT, _interrupted)
        # The first to be registered is the last to run: after it Python takes handlers away, and Ctrl-C would kill.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    try:
        _run(ours)
    except KeyboardInterrupt as interrupt:  # the command line answers its own, so this one came before it could
        if "--debug" in sys.argv:
            raise
        print(f"offramp: interrupted{interrupt}", file=sys.stderr)
        sys.exit(130)
    finally:
        # Python remembers a KeyboardInterrupt that passed through exec or eval of a string (a dataclass, a named
        # tuple), though it was caught, and would end as if it were not; until the next such string is run.
        exec("")


def _run(ours: bool) -> NoReturn:
    try:
        from offramp.cli import main as run

        run()
    finally:
        if ours:  # all is done: libraries that are being taken down survive no exception either
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; but while a command imports what it needs, end at once.

    A native library that is half loaded does not survive an exception: it aborts, or the interpreter does when it takes
    that library down. There is nothing to tidy up then: what is written, is written after imports. What is
    imported in the midst of work is another matter.
    """
    if _importer(frame) not in _STARTING:
        signal.default_int_handler(number, frame)
    try:
        os.write(2, b"offramp: interrupted\n")  # print may have been interrupted itself
    finally:
        os._exit(130)


def _importer(frame: FrameType | None) -> str:
    """The package of whoever began the imports that are under way; empty: there are none."""
    found = ""
    while frame is not None:
        caller = frame.f_back
        if caller is not None and _is_import(frame):
            found = caller.f_globals.get("__package__") or ""
        frame = caller
    return found


def _is_import(frame: FrameType) -> bool:
    """Whether it is a frame of importlib: its core is frozen, ``import_module`` is not."""
    return frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_globals.get("__name__") == "importlib"


if __name__ == "__main__":
    main()
