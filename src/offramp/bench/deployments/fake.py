"""A deployment without a model, to try the benchmark itself: its answers are the lengths of the texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offramp.bench.deployments.base import Floats, Way
from offramp.inputs.tokens import Encoded

__all__ = ["prepare", "serve"]


def prepare(model: Path, folder: Path, texts: Sequence[Encoded], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write how many texts there were. ``settings``: ``refuses`` ("prepare", "serve" or "answer")."""
    if settings.get("refuses") == "prepare":
        raise ValueError("this row refuses to be prepared")
    (folder / "texts").write_text(str(len(texts)))
    return {"texts": len(texts)}


def serve(model: Path, folder: Path, way: Way, settings: Mapping[str, Any]) -> Any:
    """As ``prepare``."""
    if settings.get("refuses") == "serve":
        raise ValueError("this row refuses to be served")
    return _Lengths(way, settings)


class _Lengths:
    """Two logits: minus the length, and the length."""

    takes_texts = False

    def __init__(self, way: Way, settings: Mapping[str, Any]) -> None:
        self.facts = {"threads": way.threads, "lanes": way.lanes}
        self._refuses = settings.get("refuses") == "answer"
        self._calls = 0

    def answer(self, texts: Sequence[Encoded], max_rows: int) -> Floats:
        self._calls += 1
        if self._refuses and self._calls > 1:
            raise ValueError("this row refuses to answer")
        lengths = np.array([len(text) for text in texts], dtype=np.float32)
        return np.stack([-lengths, lengths], axis=1)
