"""How careful a choice of exits has to be: what was allowed beside what rows unseen lose (docs/performance.md).

    python benchmarks/exit_choice.py [--splits N]

Takes the traces that the comparison of methods kept (benchmarks/results/suite), models of single labels with four exits
and more; for each, exits and threshold are chosen by entropy on one half of dev, with 0, 1/2, 1 and 2 standard errors
between what seems to be lost and what may be, and scored on the other. Writes benchmarks/results/exit_choice.json. A
few minutes; nothing is timed: an exit is counted as a twentieth of a layer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offramp.bench.exit_choice import Costs, choose_exits
from offramp.bench.provenance import provenance, write_result
from offramp.bench.suite_traces import load_small
from offramp.criteria import Scored, make
from offramp.traces.trace import Trace

RESULTS = Path(__file__).parent / "results"
SUITE, RESULT = RESULTS / "suite", RESULTS / "exit_choice.json"
ALLOWED, ERRORS = (0.5, 1.0), (0.0, 0.5, 1.0, 2.0)
COSTS = Costs(layer=1.0, exit=0.05)
FEWEST_EXITS = 4


def models() -> Iterator[tuple[dict[str, Any], Trace]]:
    """Every trained model of the suite once."""
    seen = set()
    for cell in json.loads((SUITE / "suite.json").read_text(encoding="utf-8"))["cells"]:
        if cell["status"] != "done" or cell["trace"] in seen:
            continue
        seen.add(cell["trace"])
        trace = load_small(SUITE / cell["trace"])
        if trace.problem_type == "single_label_classification" and trace.num_exits >= FEWEST_EXITS:
            yield {name: cell[name] for name in ("task", "recipe", "seed", "trace")}, trace


def measured(trace: Trace, splits: int) -> list[dict[str, float]]:
    """One model, at every allowance and with every caution."""
    entropy = make("entropy")
    assert isinstance(entropy, Scored)
    reference = trace.logits[-1].argmax(axis=-1) == trace.labels_known()
    found = []
    for allowed in ALLOWED:
        for errors in ERRORS:
            choice = choose_exits(
                trace, reference, [entropy], COSTS, max_lost=allowed, standard_errors=errors, splits=splits
            )
            kept = ("lost", "layer_speedup", "cost_fraction")
            found.append({"allowed": allowed, "errors": errors, **{name: choice.held_out[name] for name in kept}})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=20)
    given = parser.parse_args()
    rows = []
    for about, trace in models():
        rows.append({**about, "n": trace.num_units, "choices": measured(trace, given.splits)})
        print(f"{about['task']} / {about['recipe']} / seed {about['seed']}", flush=True)
    write_result(RESULT, {**provenance(), "splits": given.splits, "exit_cost_in_layers": COSTS.exit, "models": rows})


if __name__ == "__main__":
    main()
