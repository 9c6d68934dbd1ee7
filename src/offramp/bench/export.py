"""Ways to run a run that ``offramp bench`` tries, and one way to call every runtime's export."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import require

__all__ = ["VARIANTS", "Variant", "export_run"]

_NEEDS = {
    "torch": ("torch", "transformers"),
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino", "nncf"),
}


@dataclass(frozen=True)
class Variant:
    """A runtime and a number format."""

    name: str
    """In names of rows."""
    label: str
    """In tables."""
    runtime: str
    dtype: str
    kind: str | None = None
    """How int8 is made."""

    @property
    def there(self) -> bool:
        """Everything it needs is installed."""
        return all(importlib.util.find_spec(name) is not None for name in _NEEDS[self.runtime])


VARIANTS = (
    Variant("torch-float32", "torch fp32", "torch", "float32"),
    Variant("onnx-float32", "ONNX Runtime fp32", "onnx", "float32"),
    Variant("onnx-int8", "ONNX Runtime int8", "onnx", "int8", "rows"),
    Variant("onnx-static", "ONNX Runtime static int8", "onnx", "int8", "static"),
    Variant("onnx-dynamic", "ONNX Runtime dynamic int8", "onnx", "int8", "dynamic"),
    Variant("openvino-float32", "OpenVINO fp32", "openvino", "float32"),
    Variant("openvino-bfloat16", "OpenVINO bf16", "openvino", "bfloat16"),
    Variant("openvino-int8", "OpenVINO int8", "openvino", "int8", "static"),
    Variant("openvino-rows", "OpenVINO row int8", "openvino", "int8", "rows"),
)


def export_run(run: Path, variant: Variant, *, exits: Any, texts: Sequence[Any] | None) -> Any:
    """Export a run. Returns the manifest.

    Args:
        run: run folder.
        variant: any but torch's. bfloat16 runs the graphs of float32.
        exits: layers after which exits stay, or "all".
        texts: to check with, and to measure ranges on.
    """
    for module in _NEEDS[variant.runtime]:
        require(module, extra="export")
    int8: Any = variant.kind
    if variant.runtime == "openvino":
        from offramp.runtimes.export.openvino import export_openvino

        return export_openvino(run, int8=int8, exits=exits, texts=texts)
    from offramp.runtimes.export.onnx import export_onnx

    return export_onnx(run, int8=int8, exits=exits, texts=texts)
