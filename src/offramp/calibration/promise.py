"""What a promise says to people: a sentence from the promise of an operating point, and a section of the model card."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from offramp.calibration.points import OperatingPoint
from offramp.criteria import available
from offramp.traces.files import write_atomically

__all__ = [
    "CONFIDENCE",
    "drop_interval",
    "leaves_by",
    "made_through",
    "percent",
    "promise_kind",
    "promise_sentence",
    "summary_sentence",
    "write_card",
]

CONFIDENCE = 0.95
"""That a promise holds, where nobody asks for another."""

_SHOWN = 8
"""Numbers of a setting that are shown; of more, as of a learned table, only how many there are."""

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
    return f"{_leaving(leaving, texts, num_layers)} {_times(num_layers / mean)} fewer layers. {said}"


def _times(speedup: float) -> str:
    """``2.1x``, and below 2 ``1.04x``: 1.0x would say that nothing is won."""
    return f"{speedup:.{1 if speedup >= 1.995 else 2}f}x"


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
        speed = point.measured.get("layer_speedup")
        lines.append(
            f"| {point.name} | {leaves_by(point)} | {'?' if speed is None else f'{speed:.2f}x'} | "
            f"{'none' if point.promise is None else promise_sentence(point.promise)} | {_score(point.measured)} | "
            f"{_made_on(point)} |"
        )
    return "\n".join([*lines, "", _FOOT])


def leaves_by(point: OperatingPoint) -> str:
    """``edr, lam 5, threshold 0.25``: the criterion, its settings where they are not the default, and its knobs."""
    kind = available().get(point.criterion)
    usual = {one.name: one.default for one in fields(kind) if one.default is not MISSING} if kind else {}
    set_so = {
        name: value
        for name, value in point.settings.items()
        if name in usual and name != "problem_type" and _as_tuple(value) != usual[name]
    }
    shown = (f"{name} {_shown(value)}" for name, value in (set_so | point.knobs).items())
    return ", ".join([point.criterion, *shown])


def _shown(value: Any) -> str:
    """A setting in short: four digits a number, a few numbers in a row, of longer tables their size."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if not isinstance(value, list | tuple):
        return str(value)
    if len(value) > _SHOWN or any(isinstance(one, list | tuple) and len(one) > 2 for one in value):
        return f"({len(value)} {'rows' if isinstance(value[0], list | tuple) else 'numbers'})"
    return f"({' '.join(_shown(one) for one in value)})"


def _as_tuple(value: Any) -> Any:
    """Lists as tuples, at any depth: JSON has only lists."""
    return tuple(_as_tuple(one) for one in value) if isinstance(value, list | tuple) else value


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
    return f"{said}; {made_through(point)}" if point.runtime else said


def made_through(point: OperatingPoint) -> str:
    """``torch float32, batches of 32``; where the dtype is not known, without it."""
    return f"{' '.join(filter(None, (point.runtime, point.dtype)))}, batches of {point.batch_size}"


_FOOT = (
    "A promise holds for texts drawn like those it was made on, for this model on this runtime and number format; the "
    "confidence is over which texts happened to be drawn for it."
)
