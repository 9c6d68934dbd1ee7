"""``calibration.compare`` for chosen rules: each under its own name and settings, and no others.

``compare`` runs every criterion with its defaults; a suite has recipes whose criteria have settings of their own, and
a hundred traces. The parts are those of ``compare``, so the numbers are the same to the last digit (a test says so).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from offramp.calibration import compare as parts
from offramp.criteria import Criterion
from offramp.traces.tally import make_tally
from offramp.traces.trace import Trace

__all__ = ["compare_rules"]


def compare_rules(
    trace: Trace,
    rules: Mapping[str, Sequence[Criterion]],
    *,
    targets: Sequence[float],
    splits: int = 50,
    seed: int = 0,
    resamples: int = 1000,
    metric: str | None = None,
) -> dict[str, Any]:
    """The result of ``compare`` without histogram and examples, with these rows.

    Args:
        trace: with labels, of rows that were not trained on.
        rules: name of a row -> one criterion with every setting that may be chosen. Gaps are taken against the row
            called ``entropy``, or else the one called ``depth``.
        targets: layer speed-ups.
        splits: random halvings.
        seed: of halvings and bootstrap.
        resamples: of the bootstrap.
        metric: by default the task's main one.

    Raises:
        As ``compare``.
    """
    tally = make_tally(trace)
    bench = parts._Bench(trace, tally, tally.check(metric), splits, seed, resamples)
    reach = trace.num_layers / int(trace.layers[0])
    curve_targets = [target for target in parts.CURVE_TARGETS if target <= reach]
    contenders, found = {}, {}
    for name, tried in rules.items():
        rule = tried[0]
        contenders[name] = parts._enter(bench, name, rule.name, rule.summary, [asdict(one) for one in tried])
        found[name] = parts._results(bench, contenders[name], {*targets, *curve_targets})
    baseline = next((name for name in ("entropy", "depth") if name in rules), None)
    return {
        **parts._about(bench),
        "targets": [float(target) for target in targets],
        "baseline": baseline,
        "full_depth": bench.answer(trace.logits[-1]),
        "exits": parts._static(bench),
        "oracle": parts._oracle(bench),
        "rows": [
            {
                "name": name,
                "criterion": contender.criterion,
                **parts._areas(bench, contender),
                "cells": [parts._cell(bench, found[name][t], found[baseline or name][t]) for t in targets],
                "curve": [point for t in curve_targets if (point := parts._point(found[name][t]))],
            }
            for name, contender in contenders.items()
        ],
    }
