"""docs/comparison.md is what the stored numbers say, and the script answers without training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/compare.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_page_says_what_the_results_say() -> None:
    done = run("--check")
    assert done.returncode == 0, done.stderr


def test_running_needs_data() -> None:
    done = run("--minutes", "0")
    assert done.returncode != 0
    assert "--data" in done.stderr
