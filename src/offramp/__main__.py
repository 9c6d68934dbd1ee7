"""``python -m offramp``, ``accelerate launch -m offramp train ...``, and the program ``offramp``."""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """The command line; Ctrl-C while it is still being imported ends it as later Ctrl-C does."""
    try:
        from offramp.cli import main as run

        run()
    except KeyboardInterrupt as interrupt:  # run() answers its own, so this one came before it could
        if "--debug" in sys.argv:
            raise
        print(f"offramp: interrupted{interrupt}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
