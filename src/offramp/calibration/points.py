"""Operating points: a criterion with its knobs fixed, and what was measured there. No model, no trace, only JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from offramp.errors import RunError
from offramp.settings import is_number
from offramp.traces.files import write_atomically

__all__ = ["FILE", "FORCED", "FORMAT", "OperatingPoint", "read_points", "write_points"]

FORMAT = 1
"""Number of the format written here; a file of a higher number is refused."""

FILE = "operating_points.json"
_WITHOUT = "remove it, and `offramp calibrate` makes another (until then ask for --full-depth)"

FORCED = "-forced"
"""What the names of points end in that were forced: whatever they promise is worth nothing."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """A criterion with its knobs fixed. ``offramp.criteria.make(point.criterion, **point.settings)`` makes it."""

    name: str
    criterion: str
    settings: dict[str, Any] = field(default_factory=dict)
    """What the criterion is made with, ``problem_type`` among it."""
    knobs: dict[str, float] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    """On the data it was chosen on: metric, score, full_depth_score, layer_speedup, layer_fraction,
    token_layer_fraction, n, metrics (all of them by name)."""
    chosen_on: str = ""
    """Which data, in words."""
    promise: dict[str, Any] | None = None
    """A guarantee, where calibration gave one: risk, of (which risk), confidence, expected, method, n_fit, n_promise,
    seen (the mean loss on the rows that promise), tested, seed, model (hash of the weights), needs_labels (its loss
    reads them), and forced, where it is worth nothing: why."""
    asked: dict[str, float] = field(default_factory=dict)
    """What calibration was asked for: speedup, max_drop or max_risk."""
    runtime: str = ""
    dtype: str = ""
    """Of the runtime the trace was recorded on; empty: not known."""
    batch_size: int = 1
    data_hash: str | None = None
    """Hash of the rows it was chosen on."""
    made: int = 0
    """Counts the points that calibration made for a run: the larger, the later. 0: not known."""

    @property
    def forced(self) -> bool:
        """Whether somebody wanted it though it is worth nothing."""
        return "forced" in (self.promise or {}) or self.name.endswith(FORCED)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a run folder."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> OperatingPoint:
        """The inverse of ``to_json``.

        Raises:
            RunError: it is no operating point, or has entries that this offramp does not know.
        """
        if not isinstance(value, dict):
            raise RunError(f"an operating point must be a JSON object, not {value!r}")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(value) - known):
            raise RunError(
                f"operating point {value.get('name')!r} has entries that this offramp does not know "
                f"({', '.join(unknown)}): upgrade offramp, it was written by a newer one"
            )
        if missing := {"name", "criterion"} - set(value):
            raise RunError(f"an operating point lacks {', '.join(sorted(missing))}: remove it and train again")
        if not isinstance(value["name"], str) or not isinstance(value["criterion"], str):
            raise RunError("an operating point's name and criterion must be strings: remove the file and train again")
        wrong = [key for key in ("settings", "knobs", "measured", "asked") if not isinstance(value.get(key, {}), dict)]
        if wrong:
            raise RunError(f"{wrong[0]} of operating point {value['name']!r} must be a JSON object")
        made = value.get("made", 0)
        if not isinstance(made, int) or isinstance(made, bool):
            raise RunError(f"made of operating point {value['name']!r} must be a whole number, not {made!r}")
        if not _is_promise(value.get("promise")):
            raise RunError(
                f"the promise of operating point {value['name']!r} is damaged: remove that point from {FILE}, and run "
                "`offramp calibrate` again"
            )
        return cls(**value)


def _is_promise(value: Any) -> bool:
    """Whether what others read of a promise is there, and is what it should be."""
    if value is None:
        return True
    if not isinstance(value, dict) or not isinstance(value.get("of"), str):
        return False
    numbers = {"risk": value.get("risk"), "confidence": value.get("confidence")}
    if value.get("expected", False) is True:
        numbers.pop("confidence")
    within = all(one is not None and is_number(one) and 0 <= one <= 1 for one in numbers.values())
    counts = (value.get(key, 0) for key in ("n_fit", "n_promise"))
    words = (value.get(key) for key in ("model", "forced"))
    flags = (value.get(key, False) for key in ("expected", "needs_labels"))
    return (
        within
        and all(isinstance(one, int) for one in counts)
        and all(one is None or isinstance(one, str) for one in words)
        and all(isinstance(one, bool) for one in flags)
    )


def write_points(folder: Path | str, points: Iterable[OperatingPoint]) -> None:
    """Write ``operating_points.json`` of a run folder, whole or not at all; the first point is the default.

    Raises:
        RunError: two points have one name.
        OSError: the folder cannot be written to.
    """
    listed = [point.to_json() for point in points]
    names = [point["name"] for point in listed]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RunError(f"two operating points are called {twice[0]!r}: give each its own name")
    text = json.dumps({"format": FORMAT, "points": listed}, indent=2, ensure_ascii=False)
    write_atomically(Path(folder) / FILE, (text + "\n").encode())


def read_points(folder: Path | str) -> list[OperatingPoint]:
    """The operating points of a run folder; none where it has no ``operating_points.json``.

    Raises:
        RunError: the file is damaged, or was written by a newer offramp.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}): {_WITHOUT}") from None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("format"), int)
        or not isinstance(content.get("points", []), list)
    ):
        raise RunError(f"{path} does not hold operating points: {_WITHOUT}")
    if content["format"] > FORMAT:
        raise RunError(f"{path} has format {content['format']}, this offramp reads up to {FORMAT}: upgrade it")
    return [OperatingPoint.from_json(point) for point in content.get("points", [])]
