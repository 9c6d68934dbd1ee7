"""What runs a model: one file a runtime, behind the waist of ``base.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from offramp.errors import KnobError, require
from offramp.runtimes.base import Runtime, RuntimeInfo
from offramp.runtimes.silence import without_telemetry

__all__ = ["Runtime", "RuntimeInfo", "check_installed", "open_runtime"]


@dataclass(frozen=True)
class _Exported:
    """A runtime whose graphs stand in the run folder, under its own name."""

    module: str
    extra: str
    dtypes: tuple[str, ...]


_EXPORTED = {
    "onnx": _Exported("onnxruntime", "onnx", ("int8", "float32")),
    "openvino": _Exported("openvino", "openvino", ("int8", "float32", "bfloat16")),
}
"""Name -> runtime, the one to take first: OpenVINO's static int8 is somewhat ahead in batches of 32, but takes up to
twice as long for single texts and longer to start (docs/performance.md)."""

_BY_ITSELF = ("int8", "float32")
"""What is taken where nothing is asked for, fastest first: dtypes in which neighbours change no answer."""

_GRAPHS = {"bfloat16": "float32"}
"""A dtype -> that of the graphs which it runs, where it has none of its own."""


def open_runtime(
    folder: str | Path,
    name: str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    lanes: int = 1,
    compile: bool = False,
    attention: str | None = None,
) -> Runtime:
    """Load a run folder into a runtime.

    Args:
        folder: a run folder.
        name: ``torch``, ``onnx`` or ``openvino``; None: the fastest that the run folder holds and that is installed.
        device: ``cpu``, ``cuda``, ...; None: a GPU where there is one. Exported graphs run on the CPU.
        dtype: ``float32``, ``int8``, ``bfloat16`` or ``float16``; None: the fastest that was exported, or float32.
        threads: of exported graphs; None: one for every core.
        lanes: batches that are computed side by side on a CPU, sharing the threads out among them.
        compile: let ``torch.compile`` make code of each stage when it is first run; of torch.
        attention: what computes it, as ``attn_implementation`` of transformers; of torch. None: transformers' choice.

    Raises:
        KnobError: no such runtime, or one that has no such dtype, or more threads than cores, or lanes than threads, or
            lanes on a GPU; or compile or attention of another runtime than torch; or attention that is not installed.
        UnsupportedError: attention by another implementation than the one that the model's family has.
        MissingExtraError: it is not installed.
        RunError: the folder is no run, or damaged; or its export is, or was made of other weights.
    """
    torch_only = compile or attention is not None
    name, dtype = _chosen(Path(folder), name, device, dtype, torch_only=torch_only)
    check_installed(name)
    if name in _EXPORTED:
        if device not in (None, "cpu"):
            raise KnobError(f"runtime {name} runs on the CPU, not on {device!r}: leave device out, or take torch")
        if torch_only:
            raise KnobError(f"compile and attention are of runtime torch, not of {name}: leave them out, or take torch")
        return _exported(Path(folder), name, dtype, threads, lanes)
    if threads is not None:
        raise KnobError("threads are set for exported graphs; torch takes OMP_NUM_THREADS from the environment")
    from offramp.runtimes.torch import TorchRuntime

    return TorchRuntime.from_folder(
        folder, device=device, dtype=dtype, compile=compile, attention=attention, lanes=lanes
    )


def _exported(folder: Path, name: str, dtype: str, threads: int | None, lanes: int) -> Runtime:
    from offramp.run import weights_hash

    weights = weights_hash(folder)
    if name == "onnx":
        from offramp.runtimes.onnx import OnnxRuntime

        return OnnxRuntime.from_folder(folder, weights=weights, dtype=dtype, threads=threads, lanes=lanes)
    from offramp.runtimes.openvino import OpenvinoRuntime

    return OpenvinoRuntime.from_folder(folder, weights=weights, dtype=dtype, threads=threads, lanes=lanes)


def check_installed(
    name: str | None = None,
    folder: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    compile: bool = False,
    attention: str | None = None,
) -> str:
    """The runtime that ``open_runtime`` would take; complain now where it does not exist or is not installed."""
    if name is None:
        torch_only = compile or attention is not None
        name, _ = _chosen(None if folder is None else Path(folder), None, device, dtype, torch_only=torch_only)
    if name not in ("torch", *_EXPORTED):
        raise KnobError(f"no runtime is called {name!r}: there are torch, {', '.join(_EXPORTED)}")
    if name == "torch":
        require("torch", extra="train")
        require("transformers", extra="train")
    else:
        with without_telemetry():
            require(_EXPORTED[name].module, extra=_EXPORTED[name].extra)
    return name


def _chosen(
    folder: Path | None, name: str | None, device: str | None, dtype: str | None, *, torch_only: bool
) -> tuple[str, str]:
    """Runtime and dtype, where one or both were left open."""
    if name is not None and name not in _EXPORTED:
        return name, dtype or "float32"
    if name is None and (torch_only or device not in (None, "cpu") or folder is None):
        return "torch", dtype or "float32"
    if name is None and dtype not in (None, *_BY_ITSELF):
        return "torch", dtype  # bfloat16 and float16, unless a runtime was named with them
    wanted = _BY_ITSELF if dtype is None else (dtype,)
    there = [(each, kind) for each, kind in _variants(folder, wanted) if name in (None, each)]
    ready = [(each, kind) for each, kind in there if find_spec(_EXPORTED[each].module) is not None]
    if ready:
        return ready[0]
    if there and (name is not None or find_spec("torch") is None):
        return there[0]  # to complain that it is not installed
    if name is None and dtype != "int8":
        return "torch", dtype or "float32"
    chosen = name or "onnx"
    if dtype is not None and dtype not in _EXPORTED[chosen].dtypes:
        raise KnobError(f"runtime {chosen} has {_listed(_EXPORTED[chosen].dtypes)}, not {dtype!r}")
    return chosen, dtype or "float32"  # to complain that it was not exported


def _variants(folder: Path | None, dtypes: Sequence[str]) -> list[tuple[str, str]]:
    """Exported variants that a run folder holds, fastest first."""
    if folder is None:
        return []
    return [
        (name, dtype)
        for dtype in dtypes
        for name, runtime in _EXPORTED.items()
        if dtype in runtime.dtypes and (folder / name / _GRAPHS.get(dtype, dtype)).is_dir()
    ]


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
