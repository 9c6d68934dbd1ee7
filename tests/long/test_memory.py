"""A million texts through ``offramp predict``: memory does not grow with them, and answers do not wait for the end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

pytestmark = pytest.mark.long

FEW, MANY = 20_000, 1_000_000
ROOM = 128e6
"""Bytes that a long stream may need beside a short one. Kept texts alone would be several times that."""


@dataclass(frozen=True)
class Answered:
    lines: int
    written_at_first: int
    """Lines that had been written when the first answer came."""
    peak: int
    """Bytes."""


def feed(stream: IO[str], count: int, written: list[int]) -> None:
    for number in range(count):
        stream.write(f"a film number {number} of its kind\n" if number % 7 else "good\n")
        written[0] = number + 1
    stream.close()


def answer(run: Path, count: int) -> Answered:
    command = [sys.executable, "-m", "offramp", "predict", str(run), "--runtime", "onnx", "--threads", "1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    written = [0]
    writer = threading.Thread(target=feed, args=(process.stdin, count, written))
    writer.start()
    first = process.stdout.readline()
    at_first = written[0]
    assert json.loads(first)["exit_layer"] >= 1
    lines = 1 + sum(1 for _ in process.stdout)
    writer.join()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return Answered(lines, at_first, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def test_a_million_lines(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from offramp.runtimes.export.onnx import export_onnx

    run = Path(shutil.copytree(trained, tmp_path / "run"))
    export_onnx(run, exits="all", threads=1)
    few, many = answer(run, FEW), answer(run, MANY)
    assert (few.lines, many.lines) == (FEW, MANY)
    assert many.written_at_first < MANY / 10
    assert many.peak < few.peak + ROOM
