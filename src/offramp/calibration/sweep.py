"""Choosing an operating point on a trace: the fastest that loses little, or the most accurate that is fast enough."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from offramp.calibration.points import OperatingPoint
from offramp.criteria import Criterion, available
from offramp.errors import KnobError
from offramp.traces.curves import Curve, curve, measure
from offramp.traces.replay import replay
from offramp.traces.tally import make_tally
from offramp.traces.trace import Trace

__all__ = ["LAMBDAS", "candidates", "choose", "data_hash"]

LAMBDAS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
"""Weights of distance against entropy that are tried; the mean is ruled by its smaller part, so they go far above 1."""

_GRIDS: Mapping[str, tuple[Any, ...]] = {"lam": LAMBDAS}
"""Settings that are tried out wherever a criterion has them."""


def candidates(trace: Trace) -> list[tuple[str, list[dict[str, Any]]]]:
    """Criteria that can be run on a trace (by problem type, and by what its exits give), with settings to try.

    Those whose settings are learned are not among them: ``calibration.fitting``.

    Returns:
        (name, settings), each of the settings fit for ``offramp.criteria.make(name, **settings)``.
    """
    given = frozenset.intersection(*(trace.gives(e) for e in range(max(1, trace.num_exits - 1))))
    found = []
    for name, kind in available().items():
        if trace.problem_type in kind.serves and kind.needs <= given and kind.fit is None:
            settings: list[dict[str, Any]] = [{"problem_type": trace.problem_type}]
            for setting in fields(kind):
                if setting.name in _GRIDS:
                    settings = [s | {setting.name: value} for s in settings for value in _GRIDS[setting.name]]
            found.append((name, settings))
    return found


def choose(
    trace: Trace,
    criterion: Criterion,
    *,
    speedup: float | None = None,
    max_drop: float | None = None,
    or_best: bool = False,
    knobs: Mapping[str, float] | None = None,
    metric: str | None = None,
    name: str | None = None,
    chosen_on: str = "",
    max_points: int = 2000,
) -> OperatingPoint:
    """An operating point of a criterion, by exactly one of ``speedup``, ``max_drop`` and ``knobs``.

    What is measured on the trace that the knobs were chosen on is kinder than the truth: measure again elsewhere.

    Args:
        trace: with labels; never of rows that were trained on.
        criterion: one that fits the trace.
        speedup: the most accurate knobs with at least this layer speed-up (the faster of equals).
        max_drop: the fastest knobs that score at most so many points (hundredths of the metric) below full depth.
        or_best: where no knobs lose so little (a rule may answer otherwise than full depth even where nobody leaves
            early), take those that score best instead of complaining.
        knobs: these, only measured.
        metric: by default the task's main one.
        name: by default made of what was asked for.
        chosen_on: which data this is, in words.
        max_points: thresholds tried.

    Raises:
        KnobError: not exactly one wish, one that cannot be met, or knobs out of their range.
        DataError: the trace has no labels, or no units.
        UnsupportedError: the criterion does not fit the trace.
    """
    wishes = {"speedup": speedup, "max_drop": max_drop, "knobs": knobs}
    if sum(value is not None for value in wishes.values()) != 1:
        raise KnobError("an operating point is chosen by exactly one of speedup, max_drop and knobs")
    main = make_tally(trace).check(metric)
    if knobs is not None:
        chosen, default_name = {key: float(value) for key, value in knobs.items()}, "custom"
    else:
        points = curve(trace, criterion, max_points=max_points, metric=main)
        if speedup is not None:
            place, default_name = _fast_enough(points, speedup), f"speedup-{speedup:g}"
        else:
            assert max_drop is not None
            place, default_name = _good_enough(points, max_drop, or_best), f"max-drop-{max_drop:g}"
        chosen = {key: float(values[place]) for key, values in points.knobs.items()}
    return OperatingPoint(
        name=name or default_name,
        criterion=criterion.name,
        settings=asdict(criterion),
        knobs=chosen,
        measured=_measured(trace, criterion, chosen, main),
        chosen_on=chosen_on,
        runtime=trace.runtime,
        dtype=trace.dtype,
        batch_size=trace.batch_size,
        data_hash=data_hash(trace),
    )


def _fast_enough(points: Curve, speedup: float) -> int:
    """Index of the most accurate point with at least this layer speed-up; the fastest of equals."""
    if not speedup >= 1:
        raise KnobError(f"a layer speed-up is 1 or more, not {speedup!r}")
    reached = np.flatnonzero(points.layer_fraction <= 1 / speedup + 1e-12)
    if len(reached) == 0:
        raise KnobError(
            f"criterion {points.criterion!r} reaches a layer speed-up of {points.layer_speedup.max():.2f} at most on "
            f"this data, not {speedup:g}: ask for less, or choose another criterion"
        )
    score = points.score[reached]
    return int(reached[np.flatnonzero(score == score.max())[-1]])


def _good_enough(points: Curve, max_drop: float, or_best: bool) -> int:
    """Index of the fastest point that loses at most so many hundredths against full depth; or else of the best."""
    if not max_drop >= 0:
        raise KnobError(f"a drop is 0 points or more, not {max_drop!r}")
    # Rounding must not turn away a point that loses exactly what is allowed.
    good = np.flatnonzero(points.score >= points.ends[1][1] - max_drop / 100 - 1e-9)
    if len(good) == 0 and or_best:
        good = np.flatnonzero(points.score == points.score.max())
    if len(good) == 0:
        raise KnobError(
            f"criterion {points.criterion!r} loses more than {max_drop:g} points with every knob on this data: "
            "allow more, or choose another criterion"
        )
    return int(good[-1])


def _measured(trace: Trace, criterion: Criterion, knobs: Mapping[str, float], metric: str) -> dict[str, Any]:
    values = measure(trace, replay(trace, criterion, dict(knobs)))
    speeds = {key: values.pop(key) for key in ("layer_speedup", "layer_fraction", "token_layer_fraction")}
    full = make_tally(trace).measure(trace.logits[-1])[metric]
    score = {"metric": metric, "score": values[metric], "full_depth_score": full}
    return score | speeds | {"n": trace.num_units, "metrics": values}


def data_hash(trace: Trace) -> str | None:
    """One hash of the rows, whatever their order; None where the trace has no hashes."""
    if trace.hashes is None:
        return None
    return hashlib.sha256(np.sort(trace.hashes).tobytes()).hexdigest()
