from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from offramp.calibration.points import FILE, FORMAT, OperatingPoint, read_points, write_points
from offramp.errors import RunError


def point(name: str = "default", **changed: Any) -> OperatingPoint:
    usual: dict[str, Any] = {
        "name": name,
        "criterion": "edr",
        "settings": {"problem_type": "single_label_classification", "lam": 5.0},
        "knobs": {"threshold": 0.25},
        "measured": {"metric": "accuracy", "score": 0.9, "n": 872},
        "chosen_on": "dev",
        "promise": {"risk": 0.01, "of": "disagreement", "confidence": 0.95, "expected": False},
        "runtime": "torch",
        "batch_size": 32,
        "data_hash": "abc",
    }
    return OperatingPoint(**(usual | changed))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    points = [point(), point("fast", promise=None, data_hash=None, knobs={})]
    write_points(tmp_path, points)
    assert read_points(tmp_path) == points
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_a_folder_without_points(tmp_path: Path) -> None:
    assert read_points(tmp_path) == []


def test_two_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="default"):
        write_points(tmp_path, [point(), point()])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "does not hold"),
        ("{}", "does not hold"),
        (json.dumps({"format": FORMAT + 1, "points": []}), "upgrade"),
        (json.dumps({"format": 1, "points": ["edr"]}), "JSON object"),
        (json.dumps({"format": 1, "points": [{"name": "a"}]}), "lacks criterion"),
        (json.dumps({"format": 1, "points": [{"name": "a", "criterion": "edr", "schedule": 3}]}), "schedule"),
        (json.dumps({"format": 1, "points": [{"name": "a", "criterion": "edr", "knobs": 3}]}), "knobs"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(RunError, match=message):
        read_points(tmp_path)


@pytest.mark.parametrize(
    "promise",
    [
        3,
        "a lot",
        [],
        {},
        {"risk": 0.01},
        {"risk": 0.01, "of": "error"},
        {"risk": "0.01", "of": "error", "confidence": 0.95},
        {"risk": None, "of": "error", "confidence": 0.95},
        {"risk": 1.5, "of": "error", "confidence": 0.95},
        {"risk": True, "of": "error", "confidence": 0.95},
        {"risk": 0.01, "of": 3, "confidence": 0.95},
        {"risk": 0.01, "of": "error", "confidence": None, "expected": False},
        {"risk": 0.01, "of": "error", "confidence": 0.95, "expected": "no"},
        {"risk": 0.01, "of": "error", "confidence": 0.95, "n_fit": "many"},
        {"risk": 0.01, "of": "error", "confidence": 0.95, "model": 7},
    ],
)
def test_damaged_promises(tmp_path: Path, promise: Any) -> None:
    content = {"format": 1, "points": [{"name": "a", "criterion": "edr", "promise": promise}]}
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(RunError, match="the promise of operating point 'a' is damaged: remove that point"):
        read_points(tmp_path)


def test_what_is_forced_is_known_by_promise_or_name() -> None:
    assert not point().forced
    assert point(promise={"risk": 0.01, "of": "error", "confidence": 0.95, "forced": "why"}).forced
    assert point("x-forced", promise=None).forced


@pytest.mark.parametrize("made", ["3", 1.5, True, None])
def test_a_damaged_count(made: Any) -> None:
    with pytest.raises(RunError, match="made of operating point 'a' must be a whole number"):
        OperatingPoint.from_json({"name": "a", "criterion": "edr", "made": made})


def test_an_expected_risk_has_no_confidence() -> None:
    promise = {"risk": 0.01, "of": "error", "confidence": None, "expected": True}
    assert OperatingPoint.from_json(point(promise=promise).to_json()).promise == promise


def test_imports_with_hardly_anything() -> None:
    blocked = ("torch", "transformers", "safetensors", "sklearn", "scipy", "matplotlib", "rich", "array_api_compat")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import offramp.calibration.points"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
