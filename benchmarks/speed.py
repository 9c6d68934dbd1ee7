"""Seconds against the fastest full-depth deployments: the numbers of docs/performance.md.

    python benchmarks/speed.py [--name NAME] RUN --plain PLAIN --data DATA [other options of `offramp bench`]

RUN is trained with exits, PLAIN without, on the same data; for SST-2 both come from `python benchmarks/sst2.py`. What
`offramp bench` finds goes to benchmarks/results/NAME.json (by default speed) and its pictures to docs/performance/. The
most that the machine can do (benchmarks/limits.py) is measured before and after, and kept beside it. All rows take
about an hour, most of it quantising. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from limits import limits
from offramp.bench.provenance import write_result
from offramp.runtimes.cpu import check_threads

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "performance"


def command(arguments: Sequence[str]) -> str:
    """What to type for the same again; of folders elsewhere on this machine the name alone."""
    shown = [Path(one).name if Path(one).is_absolute() else one for one in arguments]
    return shlex.join(["python", "benchmarks/speed.py", *shown])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="speed")
    given, options = parser.parse_known_args()
    threads = check_threads(None)
    before = limits(threads)
    with tempfile.TemporaryDirectory(prefix="offramp-speed-") as out:
        done = subprocess.run([sys.executable, "-m", "offramp", "bench", *options, "--out", out], check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        result = json.loads((Path(out) / "result.json").read_text(encoding="utf-8"))
        told = {"command": command(sys.argv[1:]), "limits": [before, limits(threads)]}
        write_result(RESULTS / f"{given.name}.json", result | told)
        PICTURES.mkdir(exist_ok=True)
        for picture in ("speed", "accuracy"):
            name = picture if given.name == "speed" else f"{given.name}-{picture}"
            shutil.copyfile(Path(out) / f"{picture}.png", PICTURES / f"{name}.png")


if __name__ == "__main__":
    main()
