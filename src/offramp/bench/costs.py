"""What a layer and an exit cost on this machine, by the clock: the cost model that exits are chosen by."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from offramp.bench.exit_choice import Costs
from offramp.choosing import Setting
from offramp.criteria import Scored
from offramp.engine.units import Unit
from offramp.inputs.tokens import Encoded
from offramp.pipeline import Classifier

__all__ = ["measure_costs"]

_MOST = 256
"""Texts, spread over those given."""


def measure_costs(
    every: Classifier, full: Classifier, rule: Scored, encoded: Sequence[Encoded], *, max_rows: int, repeats: int
) -> Costs:
    """Time a model with all its exits, nobody leaving, against the same at full depth without any.

    Args:
        every: with every exit.
        full: without early exits, on the same runtime.
        rule: that exits are asked by.
        encoded: texts.
        max_rows: of a batch.
        repeats: timings of each, interleaved, after one that does not count; medians are taken.
    """
    texts = encoded[:: max(1, len(encoded) // _MOST)][:_MOST]
    asked = Setting(rule, {"threshold": rule.knobs["threshold"].low}, "costs")
    whole = full.setting(full_depth=True)
    seconds: dict[str, list[float]] = {"asked": [], "whole": []}
    for number in range(repeats + 1):
        for name, classifier, setting in (("asked", every, asked), ("whole", full, whole)):
            taken = _seconds(classifier, setting, texts, max_rows)
            if number:
                seconds[name].append(taken)
    depth, exits = full.runtime.info.num_layers, max(1, len(every.runtime.info.stages) - 1)
    whole_seconds = float(np.median(seconds["whole"]))
    more = max(0.0, float(np.median(seconds["asked"])) - whole_seconds)
    return Costs(layer=whole_seconds / depth / len(texts), exit=more / exits / len(texts))


def _seconds(classifier: Classifier, setting: Setting, texts: Sequence[Encoded], max_rows: int) -> float:
    units = [Unit(number, text) for number, text in enumerate(texts)]
    start = time.perf_counter()
    if max_rows > 1:
        list(classifier.engine(setting, max_rows=max_rows).run_in_order(units, setting.knobs))
    else:
        for unit in units:
            classifier.alone(setting).answer(unit)
    return time.perf_counter() - start
