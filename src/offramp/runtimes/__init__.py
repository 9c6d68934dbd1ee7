"""What runs a model: one file a runtime, behind the waist of ``base.py``."""

from __future__ import annotations

from pathlib import Path

from offramp.errors import KnobError, require
from offramp.runtimes.base import Runtime, RuntimeInfo

__all__ = ["Runtime", "RuntimeInfo", "check_installed", "open_runtime"]


def open_runtime(
    folder: str | Path, name: str | None = None, *, device: str | None = None, dtype: str = "float32"
) -> Runtime:
    """Load a run folder into a runtime.

    Args:
        folder: a run folder.
        name: ``torch``; None: the fastest that the run folder holds and that is installed.
        device: ``cpu``, ``cuda``, ...; None: a GPU where there is one.
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        KnobError: no such runtime.
        MissingExtraError: it is not installed.
        RunError: the folder is no run, or damaged.
    """
    check_installed(name)
    from offramp.runtimes.torch import TorchRuntime

    return TorchRuntime.from_folder(folder, device=device, dtype=dtype)


def check_installed(name: str | None = None) -> None:
    """Complain now where a runtime does not exist or is not installed: see ``open_runtime``."""
    if name not in (None, "torch"):
        raise KnobError(f"no runtime is called {name!r}: there is torch")
    require("torch", extra="train")
    require("transformers", extra="train")
