"""Seconds with twelve layers: the table of docs/performance.md for a classifier that exits were attached to.

    python benchmarks/speed_twelve.py --model RXNFP --data REACTIONS [--work runs] [other options of `offramp bench`]

RXNFP is the fine-tuned reaction classifier (12 x 256, 50 classes), REACTIONS a file whose texts alone are read. Exits
are attached on 2,500 texts, without labels; the race is run on the 1,250 that `benchmarks/attach.py` measures on, and
a point lost is one answer in a hundred that is not full depth's in float32. Some twenty minutes. Nothing else should
run on the machine. Writes benchmarks/results/speed_twelve.json and its pictures.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import offramp
from attach import attached, drawn, write
from offramp.cli.common import quiet_transformers

TEXTS, SEED = (2500, 1250, 1250), 0
KINDS = ("onnx-int8", "onnx-dynamic", "openvino-int8")
ROWS = (
    "transformers-float32", "transformers-bfloat16", "onnxruntime-int8", "openvino-int8", "ctranslate2-int8",
    *(f"offramp-{kind}-{what}" for kind in KINDS for what in ("full", "whole", "exit-11", "lost")),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs"))
    given, options = parser.parse_known_args()
    quiet_transformers()
    first, _, third = drawn(given.data, TEXTS, SEED)
    given.work.mkdir(parents=True, exist_ok=True)
    run = given.work / "twelve"
    attached(given.model, write(given.work / "twelve-attach.jsonl", first), run)
    full = offramp.load(run, device="cpu")
    last = write(given.work / "reactions.jsonl", third, [str(each.label) for each in full(third, full_depth=True)])
    script = str(Path(__file__).with_name("speed.py"))
    command = [sys.executable, script, "--name", "speed_twelve", str(run), "--data", last, "--rows", ",".join(ROWS)]
    raise SystemExit(subprocess.run([*command, "--max-lost", "1,2", *options], check=False).returncode)


if __name__ == "__main__":
    main()
