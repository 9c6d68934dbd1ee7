"""Texts to look at: the easiest and the hardest of a trace, as some rule treats them.

Easy is who leaves first and, of those that leave at one exit, whose answer there is furthest on the right side of its
label; hard is who stays longest and is furthest from right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.traces.trace import Trace

__all__ = ["easiest_and_hardest", "margins"]

_MOST = 8


def margins(trace: Trace, answers: NDArray[Any]) -> NDArray[np.float64]:
    """How far answers [U, C] are on the right side of the labels: [U], the larger the better.

    One label: its logit less the highest other. Several: the lowest of all labels' logits, with the sign turned where a
    label does not apply; above 0 the whole set is right, as with one label. Numbers: the error, negative.
    """
    labels, said = trace.labels_known(), answers.astype(np.float64)
    found: NDArray[np.float64]
    if trace.problem_type == "regression":
        found = -np.abs(said[:, 0] - labels)
    elif trace.problem_type == "multi_label_classification":
        found = np.where(labels, said, -said).min(axis=1)
    else:
        own = np.arange(said.shape[1]) == labels[:, None]
        found = said[own] - np.where(own, -np.inf, said).max(axis=1)
    return found


def easiest_and_hardest(trace: Trace, exits: NDArray[np.int64]) -> dict[str, list[dict[str, Any]]]:
    """``easiest`` and ``hardest``: rows as ``compare`` lists them, of at most half of the units each.

    Args:
        trace: with labels.
        exits: [U] where each unit leaves.
    """
    answers = trace.logits[exits, np.arange(trace.num_units)]
    order = np.lexsort((-margins(trace, answers), exits))
    count = min(_MOST, trace.num_units // 2)

    def shown(unit: int) -> dict[str, Any]:
        return {"index": int(unit), "layer": int(trace.layers[exits[unit]]), **_answered(trace, answers[unit], unit)}

    return {
        "easiest": [shown(unit) for unit in order[:count]],
        "hardest": [shown(unit) for unit in order[::-1][:count]],
    }


def _answered(trace: Trace, logits: NDArray[Any], unit: int) -> dict[str, Any]:
    """``label`` and ``answer`` (a name, a list of names or a number), ``right`` and ``error``."""
    label = trace.labels_known()[unit]
    if trace.problem_type == "regression":
        told, true = float(logits[0]), float(label)
        return {"label": true, "answer": told, "right": None, "error": abs(told - true)}
    if trace.problem_type == "multi_label_classification":
        answer = logits > 0
        names = [[_name(trace, k) for k in np.flatnonzero(one)] for one in (label, answer)]
        return {"label": names[0], "answer": names[1], "right": bool((answer == label).all()), "error": None}
    best = int(logits.argmax())
    return {"label": _name(trace, label), "answer": _name(trace, best), "right": best == int(label), "error": None}


def _name(trace: Trace, number: Any) -> str:
    return trace.id2label[int(number)]
