"""What a promise says to people: a sentence from the promise of an operating point, and a section of the model card."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.calibration.points import OperatingPoint
from offramp.traces.files import write_atomically

__all__ = [
    "CONFIDENCE",
    "drop_interval",
    "percent",
    "promise_kind",
    "promise_sentence",
    "summary_sentence",
    "write_card",
]

CONFIDENCE = 0.95
"""That a promise holds, where nobody asks for another."""

_BEGIN, _END = "<!-- operating points:begin -->", "<!-- operating points:end -->"


def percent(share: float, *, digits: int = 2) -> str:
    """0.01 -> ``1.0 %``, 0.0025 -> ``0.25 %``; rounded up, so that a promise is never said smaller than it is."""
    text = f"{math.ceil(round(share * 10 ** (digits + 2), 6)) / 10**digits:.{digits}f}"
    return f"{text.removesuffix('0') if digits > 1 else text} %"


def promise_kind(promise: Mapping[str, Any]) -> str:
    """Which risk a promise is about: ``disagreement``, ``error``, ``expected disagreement``, ..."""
    return f"expected {promise['of']}" if promise.get("expected") else str(promise["of"])


def promise_sentence(promise: Mapping[str, Any]) -> str:
    """``With 95 % confidence at most 1.0 % of answers differ from the full model's.``

    Of a promise that was forced it says that it is none.
    """
    forced = promise.get("forced")
    return _what(promise) if not forced else f"{_what(promise)} But that was forced, {forced}: worth nothing."


def _what(promise: Mapping[str, Any]) -> str:
    how = "On average" if promise.get("expected") else f"With {100 * promise['confidence']:g} % confidence"
    most = percent(promise["risk"])
    if promise["of"] == "disagreement":
        return f"{how} at most {most} of answers differ from the full model's."
    if promise["of"] == "error":
        return f"{how} at most {most} of texts are answered wrongly that the full model answers rightly."
    return f"{how} the mean loss {promise['of']} is at most {most}."


def summary_sentence(leaving: Mapping[int, int], num_layers: int, promise: Mapping[str, Any] | None) -> str:
    """``Of 1,000 texts 612 leave by layer 3. 2.1x fewer layers. With 95 % confidence ...``

    The layer is the first by which half of them have left early.

    Args:
        leaving: layer of each exit -> texts that left there.
        num_layers: of the full model.
        promise: of the operating point; None: there is none, and the sentence says so.
    """
    texts = sum(leaving.values())
    mean = sum(layer * count for layer, count in leaving.items()) / max(texts, 1)
    said = "Nothing is promised." if promise is None else promise_sentence(promise)
    return f"{_leaving(leaving, texts, num_layers)} {num_layers / mean:.1f}x fewer layers. {said}"


def _leaving(leaving: Mapping[int, int], texts: int, num_layers: int) -> str:
    """How many leave early, by the layer by which half of them have; by the last early one, where fewer do."""
    of = f"Of {texts:,} text{'' if texts == 1 else 's'}"
    last = max(*leaving, num_layers)
    left, seen = 0, 0
    for layer in sorted(leaving.keys() - {last}):
        left += leaving[layer]
        seen = layer if leaving[layer] else seen
        if 2 * left >= texts:
            return f"{of} {left:,} leave by layer {layer}."
    if not left:
        return f"{of} none leaves early."
    return f"{of} only {left:,} leave early, by layer {seen}; the others go to layer {last}."


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
        "| name | leaves by | layer speed-up | promise | score | made on |",
        "|---|---|---|---|---|---|",
    ]
    for point in points:
        knobs = ", ".join(f"{name} {value:.4g}" for name, value in point.knobs.items())
        speed = point.measured.get("layer_speedup")
        lines.append(
            f"| {point.name} | {point.criterion}, {knobs} | {'?' if speed is None else f'{speed:.2f}x'} | "
            f"{'none' if point.promise is None else promise_sentence(point.promise)} | {_score(point.measured)} | "
            f"{_made_on(point)} |"
        )
    return "\n".join([*lines, "", _FOOT])


def _score(measured: Mapping[str, Any]) -> str:
    """``accuracy 91.0 (full depth 91.5)``, and the interval of the drop where there is one."""
    if not {"metric", "score", "full_depth_score"} <= measured.keys():
        return "?"
    said = f"{measured['metric']} {100 * measured['score']:.1f} (full depth {100 * measured['full_depth_score']:.1f})"
    return f"{said}; {drop_interval(measured)}" if "drop_interval" in measured else said


def drop_interval(measured: Mapping[str, Any]) -> str:
    """``drop between 0.1 and 2.0 points (95 % bootstrap interval, no guarantee)``."""
    low, high = (100 * end for end in measured["drop_interval"])
    level = 100 * measured["interval_level"]
    return f"drop between {low:.1f} and {high:.1f} points ({level:g} % bootstrap interval, no guarantee)"


def _made_on(point: OperatingPoint) -> str:
    """Texts, data, and what they ran through."""
    texts = point.measured.get("n")
    said = f"{'?' if texts is None else f'{texts:,}'} texts ({point.chosen_on or 'unknown'}"
    said += f", data hash {point.data_hash[:12]})" if point.data_hash else ")"
    if point.promise is not None and "n_fit" in point.promise:
        said += f"; {point.promise['n_fit']:,} others tuned"
    if point.runtime:
        said += f"; {point.runtime} {point.dtype}, batches of {point.batch_size}".replace("  ", " ")
    return said


_FOOT = (
    "A promise holds for texts drawn like those it was made on, for this model on this runtime and number format; the "
    "confidence is over which texts happened to be drawn for it."
)
