"""What runs a model: one file a runtime, behind the waist of ``base.py``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from offramp.errors import KnobError, require
from offramp.runtimes.base import Runtime, RuntimeInfo

__all__ = ["Runtime", "RuntimeInfo", "check_installed", "open_runtime"]


@dataclass(frozen=True)
class _Exported:
    """A runtime whose graphs stand in the run folder, under its own name."""

    module: str
    extra: str
    dtypes: tuple[str, ...]
    """Fastest first."""


_EXPORTED = {"onnx": _Exported("onnxruntime", "onnx", ("int8", "float32"))}
"""Name -> runtime, fastest first."""


def open_runtime(
    folder: str | Path,
    name: str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> Runtime:
    """Load a run folder into a runtime.

    Args:
        folder: a run folder.
        name: ``torch`` or ``onnx``; None: the fastest that the run folder holds and that is installed.
        device: ``cpu``, ``cuda``, ...; None: a GPU where there is one. Exported graphs run on the CPU.
        dtype: ``float32``, ``int8``, ``bfloat16`` or ``float16``; None: the fastest that was exported, or float32.
        threads: of each operator, for exported graphs; None: one for every core.

    Raises:
        KnobError: no such runtime, or one that has no such dtype, or more threads than cores.
        MissingExtraError: it is not installed.
        RunError: the folder is no run, or damaged; or its export is, or was made of other weights.
    """
    name, dtype = _chosen(Path(folder), name, device, dtype)
    check_installed(name)
    if name == "onnx":
        from offramp.run import weights_hash
        from offramp.runtimes.onnx import OnnxRuntime

        if device not in (None, "cpu"):
            raise KnobError(f"runtime onnx runs on the CPU, not on {device!r}: leave device out, or take torch")
        return OnnxRuntime.from_folder(folder, weights=weights_hash(Path(folder)), dtype=dtype, threads=threads)
    if threads is not None:
        raise KnobError("threads are set for exported graphs; torch takes OMP_NUM_THREADS from the environment")
    from offramp.runtimes.torch import TorchRuntime

    return TorchRuntime.from_folder(folder, device=device, dtype=dtype)


def check_installed(
    name: str | None = None,
    folder: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
) -> str:
    """The runtime that ``open_runtime`` would take; complain now where it does not exist or is not installed."""
    if name is None:
        name, _ = _chosen(None if folder is None else Path(folder), None, device, dtype)
    if name not in ("torch", *_EXPORTED):
        raise KnobError(f"no runtime is called {name!r}: there are torch, {', '.join(_EXPORTED)}")
    if name == "torch":
        require("torch", extra="train")
        require("transformers", extra="train")
    else:
        require(_EXPORTED[name].module, extra=_EXPORTED[name].extra)
    return name


def _chosen(folder: Path | None, name: str | None, device: str | None, dtype: str | None) -> tuple[str, str]:
    """Runtime and dtype, where one or both were left open."""
    if name is not None and name not in _EXPORTED:
        return name, dtype or "float32"
    if name is None and (device not in (None, "cpu") or folder is None):
        return "torch", dtype or "float32"
    there = [(each, kind) for each, kind in _variants(folder) if name in (None, each) and dtype in (None, kind)]
    ready = [(each, kind) for each, kind in there if find_spec(_EXPORTED[each].module) is not None]
    if ready:
        return ready[0]
    if there and (name is not None or find_spec("torch") is None):
        return there[0]  # to complain that it is not installed
    if name is None and dtype != "int8":
        return "torch", dtype or "float32"
    chosen = name or next(iter(_EXPORTED))
    if dtype is not None and dtype not in _EXPORTED[chosen].dtypes:
        raise KnobError(f"runtime {chosen} has {' and '.join(_EXPORTED[chosen].dtypes)}, not {dtype!r}")
    return chosen, dtype or "float32"  # to complain that it was not exported


def _variants(folder: Path | None) -> list[tuple[str, str]]:
    """Exported variants that a run folder holds, fastest first."""
    if folder is None:
        return []
    return [
        (name, dtype)
        for dtype in ("int8", "float32")
        for name, runtime in _EXPORTED.items()
        if dtype in runtime.dtypes and (folder / name / dtype).is_dir()
    ]
