"""What a promise says to people: a sentence from the promise of an operating point, and a section of the model card."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.calibration.points import OperatingPoint
from offramp.traces.files import write_atomically

__all__ = ["percent", "promise_kind", "promise_sentence", "summary_sentence", "write_card"]

_BEGIN, _END = "<!-- operating points:begin -->", "<!-- operating points:end -->"


def percent(share: float, *, digits: int = 2) -> str:
    """0.01 -> ``1.0 %``, 0.0025 -> ``0.25 %``; rounded up, so that a promise is never said smaller than it is."""
    text = f"{math.ceil(round(share * 10 ** (digits + 2), 6)) / 10**digits:.{digits}f}"
    return f"{text.removesuffix('0') if digits > 1 else text} %"


def promise_kind(promise: Mapping[str, Any]) -> str:
    """Which risk a promise is about: ``disagreement``, ``error``, ``expected disagreement``, ..."""
    return f"expected {promise['of']}" if promise.get("expected") else str(promise["of"])


def promise_sentence(promise: Mapping[str, Any]) -> str:
    """``With 95 % confidence at most 1.0 % of answers differ from the full model's.``"""
    how = "On average" if promise.get("expected") else f"With {100 * promise['confidence']:g} % confidence"
    most = percent(promise["risk"])
    if promise["of"] == "disagreement":
        return f"{how} at most {most} of answers differ from the full model's."
    if promise["of"] == "error":
        return f"{how} at most {most} of texts are answered wrongly that the full model answers rightly."
    return f"{how} the mean loss {promise['of']} is at most {most}."


def summary_sentence(leaving: Mapping[int, int], num_layers: int, promise: Mapping[str, Any] | None) -> str:
    """``Of 1,000 texts 612 leave by layer 3. 2.1x fewer layers. With 95 % confidence ...``

    Args:
        leaving: layer of each exit -> texts that left there.
        num_layers: of the full model.
        promise: of the operating point; None: there is none, and the sentence says so.
    """
    texts = sum(leaving.values())
    middle = max((layer for layer in leaving if layer <= num_layers / 2), default=min(leaving))
    left = sum(count for layer, count in leaving.items() if layer <= middle)
    mean = sum(layer * count for layer, count in leaving.items()) / max(texts, 1)
    said = "Nothing is promised." if promise is None else promise_sentence(promise)
    return f"Of {texts:,} texts {left:,} leave by layer {middle}. {num_layers / mean:.1f}x fewer layers. {said}"


def write_card(folder: Path, points: Sequence[OperatingPoint]) -> None:
    """Say in the run folder's README.md what its operating points promise; the section is replaced where it is there.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = folder / "README.md"
    page = path.read_text(encoding="utf-8") if path.is_file() else "# Early-exit classifier\n"
    section = f"{_BEGIN}\n{_section(points)}\n{_END}"
    pattern = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)
    page = pattern.sub(lambda _: section, page) if pattern.search(page) else f"{page.rstrip()}\n\n{section}\n"
    write_atomically(path, page.encode())


def _section(points: Sequence[OperatingPoint]) -> str:
    lines = [
        "## Operating points",
        "",
        "| name | leaves by | layer speed-up | promise | measured on |",
        "|---|---|---|---|---|",
    ]
    for point in points:
        knobs = ", ".join(f"{name} {value:.4g}" for name, value in point.knobs.items())
        speed, texts = point.measured.get("layer_speedup"), point.measured.get("n")
        lines.append(
            f"| {point.name} | {point.criterion}, {knobs} | {'?' if speed is None else f'{speed:.2f}x'} | "
            f"{'none' if point.promise is None else promise_sentence(point.promise)} | "
            f"{'?' if texts is None else f'{texts:,}'} texts ({point.chosen_on or 'unknown'}) |"
        )
    return "\n".join([*lines, "", _FOOT])


_FOOT = (
    "A promise holds for texts drawn like those it was made on, for this model on this runtime and number format; the "
    "confidence is over which texts happened to be drawn for it."
)
