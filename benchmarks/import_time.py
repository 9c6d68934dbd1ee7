"""How long `import offramp` takes: the median over fresh processes.

    python benchmarks/import_time.py [RUNS]

Prints a line for people, writes benchmarks/results/import_time.json and ends in the same as one JSON line.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from offramp.bench.provenance import provenance, write_result

LIMIT_SECONDS = 0.3
RESULT = Path(__file__).parent / "results" / "import_time.json"
PROGRAM = """
import json, sys, time
start = time.perf_counter()
import offramp
print(json.dumps([time.perf_counter() - start, "torch" in sys.modules or "transformers" in sys.modules]))
"""


def measure() -> tuple[float, bool]:
    """Seconds of one import in a fresh process, and whether it brought torch or transformers."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    seconds, heavy = json.loads(done.stdout)
    return float(seconds), bool(heavy)


def main(runs: int) -> int:
    """Measure, report, and return 1 where the promise does not hold."""
    measure()  # writes the byte code, which a user also has from the second time on
    measured = [measure() for _ in range(runs)]
    seconds = sorted(second for second, _ in measured)
    heavy = any(heavy for _, heavy in measured)
    median = round(statistics.median(seconds), 4)
    result = {
        "what": "seconds of `import offramp` in a fresh process",
        "command": f"python benchmarks/import_time.py {runs}",
        "runs": runs,
        "median": median,
        "fastest": round(seconds[0], 4),
        "slowest": round(seconds[-1], 4),
        "limit": LIMIT_SECONDS,
        "imports_torch_or_transformers": heavy,
        "provenance": provenance(),
    }
    write_result(RESULT, result)
    print(f"import offramp: {median} s (median of {runs}; {result['fastest']} to {result['slowest']})")
    print(json.dumps(result))
    return int(heavy or median >= LIMIT_SECONDS)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
