"""One way to call every runtime's export."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import require

__all__ = ["EXPORTS", "Export", "export_run"]


@dataclass(frozen=True)
class Export:
    """A runtime that runs can be exported for."""

    dtypes: tuple[str, ...]
    needs: tuple[str, ...]

    @property
    def there(self) -> bool:
        """Everything it needs is installed."""
        return all(importlib.util.find_spec(name) is not None for name in self.needs)


EXPORTS = {
    "onnx": Export(("float32", "int8"), ("onnx", "onnxruntime")),
    "openvino": Export(("float32", "bfloat16", "int8"), ("onnx", "openvino", "nncf")),
}
"""Runtime -> how it is made. bfloat16 runs the graphs of float32."""


def export_run(
    run: Path, runtime: str, *, dtype: str, exits: Any, texts: Sequence[Any] | None, kind: str | None = None
) -> Any:
    """Export a run. Returns the manifest.

    Args:
        run: run folder.
        runtime: one of ``EXPORTS``.
        dtype: one of its dtypes.
        exits: layers after which exits stay, or "all".
        texts: to check with, and to measure ranges on.
        kind: how int8 is made; None: as the runtime does by default.
    """
    for module in EXPORTS[runtime].needs:
        require(module, extra="export")
    int8: Any = None
    if runtime == "openvino":
        from offramp.runtimes.export.openvino import export_openvino

        int8 = (kind or "static") if dtype == "int8" else None
        return export_openvino(run, int8=int8, exits=exits, texts=texts)
    from offramp.runtimes.export.onnx import export_onnx

    int8 = (kind or "rows") if dtype == "int8" else None
    return export_onnx(run, int8=int8, exits=exits, texts=texts)
