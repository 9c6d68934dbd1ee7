"""``python -m offramp``, and ``accelerate launch -m offramp train ...``."""

from __future__ import annotations

from offramp.cli import main

if __name__ == "__main__":
    main()
