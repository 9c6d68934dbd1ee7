"""Which exits are worth their cost: where hardly anybody leaves, two stages are one.

Every exit costs a head, a call and a compaction. A trace and an operating point say who leaves where; an exit goes
where those who would have left there cost less, going on to the next, than the exit costs everybody who passes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from offramp.criteria.base import Criterion
from offramp.errors import KnobError
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

__all__ = ["EXIT_COST", "chosen_exits", "useful_exits"]

EXIT_COST = 0.08
"""What passing an exit costs, in layers of the backbone: measured for small encoders, less for wide ones."""


def useful_exits(
    trace: Trace, criterion: Criterion, knobs: Mapping[str, float], *, exit_cost: float = EXIT_COST
) -> list[int]:
    """Indices of the exits that are worth keeping at an operating point; all, where the criterion counts exits.

    ``exit_cost``: what passing an exit costs, in layers.
    """
    kept = list(range(trace.num_exits))
    if criterion.by_exit:
        return kept
    cost = _cost(trace, kept, criterion, knobs, exit_cost)
    while len(kept) > 1:
        fewer = [kept[:place] + kept[place + 1 :] for place in range(len(kept) - 1)]
        costs = [_cost(trace, exits, criterion, knobs, exit_cost) for exits in fewer]
        best = int(np.argmin(costs))
        if costs[best] > cost:  # one that nobody reaches costs nothing, and goes
            break
        kept, cost = fewer[best], costs[best]
    return kept


def _cost(
    trace: Trace, exits: Sequence[int], criterion: Criterion, knobs: Mapping[str, float], exit_cost: float
) -> float:
    """Mean layers a text, exits included."""
    left = replay(trace.at_exits(exits), criterion, knobs).exits
    return float((trace.layers[list(exits)][left] + exit_cost * (left + 1)).mean())


def chosen_exits(layers: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Indices of the exits after the layers that were asked for; the last exit always stays.

    Raises:
        KnobError: the model has no exit after one of the layers.
    """
    for layer in wanted:
        if layer not in layers:
            raise KnobError(f"this model has no exit after layer {layer}: it has them after {_listed(layers)}")
    return [index for index, layer in enumerate(layers) if layer in wanted or index == len(layers) - 1]


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
