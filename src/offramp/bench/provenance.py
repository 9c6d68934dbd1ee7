"""The papers of a number: which code, machine, versions and seeds it comes from.

Every result file holds them, so that a number can be made again, or doubted with reason. Nothing that names a person
or a place: no host, user or path.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from offramp.traces.files import write_atomically

__all__ = ["provenance", "result_bytes", "write_result"]

_PACKAGES = (
    "offramp", "torch", "transformers", "numpy", "tokenizers", "safetensors", "array-api-compat", "accelerate",
    "datasets", "scikit-learn", "scipy", "mapie", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf",
    "ctranslate2",
)  # fmt: skip
_CPU_FLAGS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
    "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip
"""Those that decide how fast a matrix product can be, in bf16 and int8 too (x86 and ARM names)."""


def provenance(*, seeds: Iterable[int] = ()) -> dict[str, Any]:
    """What a result file says about its origin. Imports nothing heavy: versions are read, not imported.

    Args:
        seeds: every seed that the result depends on.

    Returns:
        ``commit`` and ``dirty`` (None where the code is in no git repository), ``date`` (UTC), ``machine``,
        ``versions`` and ``seeds``, all plain JSON values.
    """
    commit, dirty = _commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": _versions(),
        "seeds": [int(seed) for seed in seeds],
    }


def result_bytes(result: Mapping[str, Any]) -> bytes:
    """What ``write_result`` writes, for whoever writes it with other files.

    Raises:
        ValueError: a number is not finite. JSON has no word for it: say None, and why.
        TypeError: a value that JSON cannot hold.
    """
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    return (text + "\n").encode()


def write_result(path: str | Path, result: Mapping[str, Any]) -> Path:
    """Write a result as JSON, whole or not at all; numpy values become plain ones.

    Raises:
        ValueError: a number is not finite. JSON has no word for it: say None, and why.
        TypeError: a value that JSON cannot hold.
    """
    path = Path(path)
    write_atomically(path, result_bytes(result))
    return path


def _plain(value: object) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a result holds {type(value).__name__}, which JSON cannot: turn it into numbers and names first")


def _commit() -> tuple[str | None, bool | None]:
    """The commit of this very file, and whether the code differs from it. Results do not count as code."""
    here = Path(__file__).resolve()
    if _output("git", "ls-files", "--error-unmatch", here.name, folder=here.parent) is None:
        return None, None  # installed somewhere: a repository around it is not ours
    commit = _output("git", "rev-parse", "HEAD", folder=here.parent)
    code = (":(top)", ":(top,exclude)benchmarks/results", ":(top,exclude)docs")
    changes = _output("git", "status", "--porcelain", "--", *code, folder=here.parent)
    return commit, None if changes is None else bool(changes)


def _machine() -> dict[str, Any]:
    model, flags = _cpu()
    return {
        "cpu": model,
        "cores": _usable_cores(),
        "cpu_flags": [flag for flag in _CPU_FLAGS if flag in flags],
        "gpus": _gpus(),
        "architecture": platform.machine(),
        "os": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _cpu() -> tuple[str, frozenset[str]]:
    """Name of the processor and what it can do, from where Linux or macOS keeps it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields: dict[str, str] = {}
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        flags = fields.get("flags") or fields.get("Features") or ""
        return fields.get("model name") or platform.machine(), frozenset(flags.split())
    name = _output("sysctl", "-n", "machdep.cpu.brand_string") if platform.system() == "Darwin" else None
    return name or platform.processor() or platform.machine(), frozenset()


def _usable_cores() -> int:
    """Cores this process may use, where the system tells; a container is often given fewer than there are."""
    if platform.system() == "Linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> list[str]:
    found = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return found.splitlines() if found else []


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # not installed is not a version
    return found


def _output(*command: str, folder: Path | None = None) -> str | None:
    """What a command prints; None where there is no such command, or it fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout.strip() if done.returncode == 0 else None
