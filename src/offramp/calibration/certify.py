"""An operating point with a promise: tuned on one part of a trace, proved on the other.

Part A tunes: temperatures, learned stopping, thresholds by exit, which knobs are worth trying and in which order they
are tested. Part B proves, and has no say in any of that. Learn-then-Test (Angelopoulos et al., 2021) keeps the risk
with a stated confidence; conformal risk control (ICLR 2024) keeps its expectation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.calibration.grid import Candidates, candidates, in_order, told, variants
from offramp.calibration.losses import Loss, Risk, make_risk
from offramp.calibration.points import FORCED, OperatingPoint
from offramp.calibration.promise import CONFIDENCE, percent
from offramp.calibration.risk import (
    accepted,
    check_promise,
    conformal_accepted,
    conformal_limit,
    p_values,
    smallest_provable,
    texts_needed,
    upper_bound,
)
from offramp.calibration.sweep import data_hash
from offramp.criteria.base import Criterion
from offramp.errors import DataError, KnobError
from offramp.tasks import unrelated
from offramp.traces.curves import measure, resamples
from offramp.traces.replay import Outcome, replay
from offramp.traces.tally import make_tally
from offramp.traces.trace import Trace

__all__ = [
    "FEWEST",
    "FORCED",
    "TUNING_SHARE",
    "certify",
    "check_enough",
    "choose_measured",
    "doubt_labels",
    "halves",
    "repeats",
]

Floats = NDArray[np.float64]

TUNING_SHARE = 0.4
"""Of the rows, for part A: proving takes more rows than ordering."""

FEWEST = 40
"""Rows below which nothing is calibrated."""

_MOST_TEXTS = 10**7
"""More than anybody calibrates on: beyond it, no number of texts is named."""

_WALKED = 60
"""Candidates at which a drop is looked at: each takes a bootstrap."""

_METHODS = {
    (True, False): "learn-then-test: exact binomial p-values, fixed sequence",
    (False, False): "learn-then-test: Hoeffding-Bentkus p-values, fixed sequence",
    (True, True): "conformal risk control on losses made monotone",
    (False, True): "conformal risk control on losses made monotone",
}


def certify(
    trace: Trace,
    criterion: Criterion,
    *,
    max_risk: float,
    confidence: float = CONFIDENCE,
    risk: str | Loss = "disagreement",
    expected: bool = False,
    fixed: Collection[str] = (),
    cap_depth: bool = False,
    tuning_share: float = TUNING_SHARE,
    seed: int = 0,
    max_points: int = 200,
    metric: str | None = None,
    name: str | None = None,
    chosen_on: str = "",
    forced: str = "",
    batch_invariant: bool = True,
) -> OperatingPoint:
    """The fastest operating point of a criterion whose risk is proved to be at most ``max_risk``.

    Args:
        trace: of rows that neither training nor anyone's choice of a model has seen. Labels are read where the risk is
            about them, and to report scores.
        criterion: one that fits the trace, with the settings to start from (``grid.variants`` says what is tried).
        max_risk: above 0, up to 1.
        confidence: that the promise holds, over the rows that happened to be drawn for part B.
        risk: ``disagreement`` with the full model, ``error`` (texts that it alone answers rightly), or a function.
        expected: keep the *expected* risk instead (conformal risk control): the mean over many calibrations is at
            most ``max_risk``, and any one of them may be above. The confidence is not used.
        fixed: names of settings that are not to be tuned.
        cap_depth: try every early exit as the last that anybody reaches, too (the knob ``max_layers``).
        tuning_share: of the rows, for part A.
        seed: of the split.
        max_points: thresholds tried for each setting.
        metric: reported where there are labels; by default the task's main one. One that was asked for, or is no mean
            over texts, has a bootstrap interval, and no guarantee.
        name: by default made of what was asked for, and of the runtime where that is not torch in float32.
        chosen_on: which data this is, in words.
        forced: why the promise is worth nothing, where somebody wants it all the same; the point is called so.
        batch_invariant: neighbours in a batch change no answer there; where they do, the name says the batch size.

    Raises:
        KnobError: a risk or a confidence that cannot be, or that so few rows cannot prove; the message says what they
            could.
        DataError: too few rows, or no labels where the risk needs them.
        UnsupportedError: a risk or criterion that does not fit the trace.
        MissingExtraError: mapie or scipy is not installed.
    """
    check_promise(max_risk, confidence)
    asked = make_risk(risk, trace)
    tuning, proving = halves(trace, share=tuning_share, seed=seed)
    _check_provable(proving.num_units, len(trace.lengths), max_risk, confidence, expected)
    tried = candidates(
        tuning, variants(tuning, criterion, asked, fixed=fixed), max_points=max_points, cap_depth=cap_depth
    )
    line, tuned = _line(tuning, tried, asked)
    n = proving.num_units
    if expected:
        rising = np.maximum.accumulate(line.losses(proving, asked), axis=0)
        count = conformal_accepted(rising.mean(axis=1), n, max_risk)
        layers = line.run(proving, asked)[1]
    else:
        losses, layers = line.run(proving, asked)
        count = accepted(p_values(losses, n, max_risk, binary=asked.binary), 1 - confidence)
    layers = (layers * n + tuned.layers * tuning.num_units) / (n + tuning.num_units)
    # Conformal risk control answers for the last candidate accepted, Learn-then-Test for all of them.
    best = count - 1 if expected else int(layers[:count].argmin()) if count else -1
    if best < 0 or layers[best] >= layers.max():
        raise KnobError(_nothing(line, tuned, tuning.num_units, n, max_risk, confidence, asked, expected))
    rule, knobs = line.rules[int(line.rule[best])], line.knobs[best]
    outcome = replay(proving, rule, dict(knobs))
    promise = {
        "risk": max_risk,
        "of": asked.name,
        "confidence": None if expected else confidence,
        "expected": expected,
        "method": _METHODS[asked.binary, expected],
        "n_fit": tuning.num_units,
        "n_promise": n,
        "seen": float(asked.of(proving, outcome.answers).mean()),
        "tested": len(line),
        **_circumstances(trace, asked, seed, forced),
    }
    measured = _measured(proving, outcome, metric)
    if metric is not None or _is_no_mean(proving, outcome):
        measured |= _interval(proving, outcome, metric, confidence, seed)
    return _point(trace, rule, knobs, measured, promise, chosen_on,
                  name or _name(criterion, promise) + _how_deep(cap_depth) + _where(trace, batch_invariant),
                  {"max_risk": max_risk}, forced)  # fmt: skip


def choose_measured(
    trace: Trace,
    criterion: Criterion,
    *,
    speedup: float | None = None,
    max_drop: float | None = None,
    confidence: float = CONFIDENCE,
    risk: str | Loss = "disagreement",
    fixed: Collection[str] = (),
    cap_depth: bool = False,
    tuning_share: float = TUNING_SHARE,
    seed: int = 0,
    metric: str | None = None,
    name: str | None = None,
    chosen_on: str = "",
    forced: str = "",
    batch_invariant: bool = True,
) -> OperatingPoint:
    """An operating point chosen on part A by speed or score, and measured on part B, which did not choose it.

    The score has a bootstrap interval and no guarantee. The promise is what part B proves of this one point: the
    smallest risk that its losses allow at that confidence. In regression no answer is simply another, so without a risk
    of one's own the point has no promise: those that answer nearest to the full model are the safest.

    Args:
        trace: as for ``certify``. Without labels the score is agreement with the full model.
        criterion: as for ``certify``.
        speedup: the one with the least risk of those with at least this layer speed-up on part A (the slowest of
            equals: small parts often see no loss, and slower is safer).
        max_drop: the fastest that, by the upper end of a bootstrap interval on part A, loses at most so many points
            (hundredths of the metric).
        confidence: of promise and interval.
        risk: that is bounded.
        fixed: names of settings that are not to be tuned.
        cap_depth: as for ``certify``.
        tuning_share: of the rows, for part A.
        seed: of the split and the bootstrap.
        metric: by default the task's main one.
        name: by default made of what was asked for, of risk and confidence where they are not the usual ones, and of
            the runtime where that is not torch in float32.
        chosen_on: which data this is, in words.
        forced: why the promise is worth nothing, where somebody wants it all the same; the point is called so.
        batch_invariant: as for ``certify``.

    Raises:
        KnobError: not exactly one wish, or one that cannot be met.
        DataError, UnsupportedError, MissingExtraError: as ``certify``.
    """
    check_promise(0.5, confidence)
    promised = trace.problem_type != "regression" or risk != "disagreement"
    asked = make_risk(risk, trace) if promised else _departure(trace)
    tuning, proving = halves(trace, share=tuning_share, seed=seed)
    wish: dict[str, float] = {k: v for k, v in {"speedup": speedup, "max_drop": max_drop}.items() if v is not None}
    if len(wish) != 1:
        raise KnobError("an operating point is chosen by exactly one of speedup, max_drop and max_risk")
    tried = candidates(tuning, variants(tuning, criterion, asked, fixed=fixed), cap_depth=cap_depth)
    if speedup is not None:
        rule, knobs = _fast_enough(tuning, tried, asked, speedup)
    else:
        assert max_drop is not None
        rule, knobs = _good_enough(told(tuning), tried, asked, max_drop, metric, confidence, seed)
    outcome = replay(proving, rule, dict(knobs))
    promise = None
    if promised:
        promise = _bound(asked, asked.of(proving, outcome.answers), confidence, tuning.num_units)
        promise |= _circumstances(trace, asked, seed, forced)
    measured = _measured(proving, outcome, metric) | _interval(proving, outcome, metric, confidence, seed)
    if name is None:
        by = metric if max_drop is not None else None
        name = _wished(criterion, wish, by, asked.name if promised else None, confidence)
        name += _how_deep(cap_depth) + _where(trace, batch_invariant)
    return _point(trace, rule, knobs, measured, promise, chosen_on, name, wish, forced)


def _bound(risk: Risk, losses: Floats, confidence: float, n_fit: int) -> dict[str, Any]:
    """What losses [U] prove of the one point that had them."""
    n = len(losses)
    return {
        "risk": upper_bound(float(losses.sum()), n, confidence, binary=risk.binary),
        "of": risk.name,
        "confidence": confidence,
        "expected": False,
        "method": f"{'exact binomial' if risk.binary else 'Hoeffding-Bentkus'} bound on one point",
        "n_fit": n_fit,
        "n_promise": n,
        "seen": float(losses.mean()),
        "tested": 1,
    }


def _departure(trace: Trace) -> Risk:
    """How far a number is from the full model's, as a share of the span of those: an order of safety, not a promise."""
    span = float(np.ptp(trace.logits[-1])) or 1.0

    def loss(answers: NDArray[Any], full: NDArray[Any], labels: NDArray[Any] | None) -> NDArray[Any]:
        far: Floats = np.minimum(np.abs(answers[:, 0].astype(np.float64) - full[:, 0]) / span, 1.0)
        return far

    return Risk("departure", loss, binary=False, needs_labels=False)


def _fast_enough(tuning: Trace, tried: Candidates, risk: Risk, speedup: float) -> tuple[Criterion, dict[str, float]]:
    if not 1 <= speedup < math.inf:
        raise KnobError(f"a layer speed-up is 1 or more, not {speedup!r}")
    losses, layers = tried.run(tuning, risk)
    reached = np.flatnonzero(layers <= tuning.num_layers / speedup + 1e-9)
    if len(reached) == 0:
        raise KnobError(
            f"criterion {tried.rules[0].name!r} reaches a layer speed-up of {tuning.num_layers / layers.min():.2f} at "
            f"most on this data, not {speedup:g}: ask for less, or choose another criterion"
        )
    best = reached[np.lexsort((-layers[reached], losses[reached]))[0]]
    return tried.rules[int(tried.rule[best])], tried.knobs[int(best)]


def _good_enough(
    tuning: Trace,
    tried: Candidates,
    risk: Risk,
    max_drop: float,
    metric: str | None,
    confidence: float,
    seed: int,
) -> tuple[Criterion, dict[str, float]]:
    """From the safest on, as long as the upper end of the drop's bootstrap interval is small enough.

    What the drop merely happens to be on a few hundred texts would allow far too much.
    """
    if not max_drop >= 0:
        raise KnobError(f"a drop is 0 points or more, not {max_drop!r}")
    losses, layers = tried.run(tuning, risk)
    line = in_order(losses, layers)
    line = line[np.unique(np.linspace(0, len(line) - 1, _WALKED).round().astype(np.int64))]
    best: int | None = None
    for place in map(int, line):
        outcome = replay(tuning, tried.rules[int(tried.rule[place])], dict(tried.knobs[place]))
        drops = _resampled(tuning, outcome, metric, seed, number=400)[1]
        if np.quantile(drops, confidence) > max_drop / 100 + 1e-9:
            break
        best = place
    if best is None or layers[best] >= layers.max():
        raise KnobError(
            f"criterion {tried.rules[0].name!r} may lose more than {max_drop:g} points as soon as texts leave early, "
            f"by {tuning.num_units} texts: allow more, give more texts, or choose another criterion"
        )
    return tried.rules[int(tried.rule[best])], tried.knobs[best]


def check_enough(
    items: int,
    *,
    max_risk: float | None = None,
    confidence: float = CONFIDENCE,
    expected: bool = False,
    tuning_share: float = TUNING_SHARE,
) -> None:
    """Raise where so many texts are too few, before anybody records them.

    Raises:
        KnobError: a share that leaves rows to one part only, or a risk that they cannot prove, were none to be lost.
        DataError: fewer than ``FEWEST``.
    """
    tuning = _tuning(items, tuning_share)
    if max_risk is not None:
        _check_provable(items - tuning, items, max_risk, confidence, expected)


def _tuning(items: int, share: float) -> int:
    """How many of so many texts tune."""
    if not 0 < share < 1:
        raise KnobError(f"the share of rows that tune must lie between 0 and 1, not {share!r}")
    if items < FEWEST:
        raise DataError(f"{items} texts are too few to tune on one part and prove on the other: give {FEWEST} at least")
    return max(1, min(items - 1, round(share * items)))


def halves(trace: Trace, *, share: float, seed: int) -> tuple[Trace, Trace]:
    """Part A, which tunes, and part B, which proves: whole texts, drawn by the seed.

    Raises:
        KnobError: no share that leaves rows to both.
        DataError: fewer rows than ``FEWEST``.
    """
    items = len(trace.lengths)
    tuning = _tuning(items, share)
    order = np.random.default_rng(seed).permutation(items)
    return trace.select(np.sort(order[:tuning])), trace.select(np.sort(order[tuning:]))


@dataclass(frozen=True, eq=False)
class _Tuned:
    """What the line of candidates costs on part A."""

    losses: Floats
    """[P] sums."""
    layers: Floats
    """[P] means."""


def _line(tuning: Trace, tried: Candidates, risk: Risk) -> tuple[Candidates, _Tuned]:
    """The candidates in the order in which they are tested."""
    losses, layers = tried.run(tuning, risk)
    order = in_order(losses, layers)
    return tried.take(order), _Tuned(losses[order], layers[order])


def _check_provable(n: int, items: int, max_risk: float, confidence: float, expected: bool) -> None:
    smallest = smallest_provable(n, confidence, expected=expected)
    if smallest <= max_risk + 1e-12:
        return
    sure = "in expectation" if expected else f"at {100 * confidence:g} %"
    needed = texts_needed(max_risk, confidence, expected=expected)
    raise KnobError(
        f"with {_texts(n)} the smallest provable risk {sure} is {percent(smallest, digits=1)}: {percent(max_risk)} "
        f"takes {needed:,} texts that prove, so give about {math.ceil(needed * items / n):,} in all (part of them "
        "tunes), or allow more risk"
    )


def _nothing(
    line: Candidates,
    tuned: _Tuned,
    n_tuning: int,
    n: int,
    max_risk: float,
    confidence: float,
    risk: Risk,
    expected: bool,
) -> str:
    """Why nothing faster than full depth is promised, and what would be needed; told from part A alone."""
    # The slowest candidate that saves a twentieth of the layers.
    early = np.flatnonzero(tuned.layers <= 0.95 * tuned.layers.max())
    place = int(early[0]) if len(early) else len(line) - 1
    rate = float(tuned.losses[place]) / n_tuning
    possible = (rate * n + 1) / (n + 1) if expected else upper_bound(
        math.ceil(rate * n), n, confidence, binary=risk.binary
    )  # fmt: skip
    sure = "in expectation" if expected else f"at {100 * confidence:g} %"
    lost = f"the first step that saves layers lost {percent(rate)} on the {_texts(n_tuning)} that tune"
    hope = "allow more risk, give more texts, or try another criterion on other texts"
    # What would have done by these can still fail on the others, and then it is they who say so.
    if possible <= max_risk:
        lost += ", but too much on those that prove"
    else:
        lost += f" and would take about {percent(possible)}"
        needed = _texts_for(rate, n, max_risk, confidence, risk, expected)
        if needed is None:
            hope = (
                "at such a rate no number of texts helps; allow more risk, try another criterion on other texts, or "
                "train the exits further"
            )
        else:
            hope = (
                f"at that rate it takes about {needed:,} texts that prove, so give about "
                f"{math.ceil(needed * (n + n_tuning) / n):,} in all, allow more risk, or try another criterion on "
                "other texts"
            )
    return (
        f"nothing faster than full depth can be promised {sure} on {_texts(n)} for a risk ({risk.name}) of "
        f"{percent(max_risk)}: {lost}; {hope}"
    )


def _texts_for(rate: float, n: int, max_risk: float, confidence: float, risk: Risk, expected: bool) -> int | None:
    """About how many texts that lose at this rate prove a risk, where n are not enough; None: no number anybody has."""
    if rate >= max_risk:
        return None

    def enough(n: int) -> bool:
        if expected:
            return rate <= conformal_limit(n, max_risk)
        lost = math.ceil(rate * n - 1e-9) if risk.binary else rate * n
        return float(p_values(np.array([lost]), n, max_risk, binary=risk.binary)[0]) <= 1 - confidence

    low, high = n, 2 * n
    while not enough(high):
        low, high = high, 2 * high
        if high > _MOST_TEXTS:
            return None
    return _first(enough, low, high)


def _first(enough: Callable[[int], bool], low: int, high: int) -> int:
    """The first number above ``low`` that is enough, as ``high`` is: where nearly all above it are enough too."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def doubt_labels(trace: Trace) -> str:
    """What says that labels do not mean the model's classes (``tasks.unrelated``); empty: nothing does.

    Of several labels a text, and of numbers, there is no such plain measure: they are not doubted.
    """
    if trace.labels is None or trace.problem_type != "single_label_classification":
        return ""
    answers = trace.logits[-1].argmax(axis=-1)
    if not unrelated(answers, trace.labels, trace.logits.shape[-1]):
        return ""
    commonest = np.bincount(trace.labels).max() / trace.num_units
    return (
        f"the full model answers {100 * (answers == trace.labels).mean():.1f} % of these texts as they are labelled, "
        f"and always the commonest label would {100 * commonest:.1f} %"
    )


def repeats(trace: Trace, most: float = 0.01) -> int:
    """How many distinct texts there are, where more than so large a share of rows repeat others; 0: they do not.

    A copy proves nothing that its original does not, and one that tunes while the other proves makes the proof too
    kind.
    """
    if trace.hashes is None:
        return 0
    distinct = len(np.unique(trace.hashes))
    return distinct if len(trace.hashes) - distinct > most * len(trace.hashes) else 0


def _measured(trace: Trace, outcome: Outcome, metric: str | None) -> dict[str, Any]:
    """What an outcome is worth; without labels the score is agreement with the full model."""
    leaving = np.bincount(outcome.exits, minlength=trace.num_exits)
    exits = {str(int(layer)): int(count) for layer, count in zip(trace.layers, leaving, strict=True)}
    if trace.problem_type == "regression" and trace.labels is None:
        mean = float(trace.layers[outcome.exits].mean()) / trace.num_layers
        return {"layer_speedup": 1 / mean, "layer_fraction": mean, "n": trace.num_units, "exits": exits}
    given = told(trace)
    tally = make_tally(given)
    main = "accuracy" if trace.labels is None else tally.check(metric)
    values = measure(given, outcome)
    speeds = {key: values.pop(key) for key in ("layer_speedup", "layer_fraction", "token_layer_fraction")}
    score = {"metric": main, "score": values[main], "full_depth_score": tally.measure(given.logits[-1])[main]}
    if trace.labels is None:
        score["metric"], values = "agreement", {"agreement": values[main]}
    return score | speeds | {"n": trace.num_units, "metrics": values, "exits": exits}


def _circumstances(trace: Trace, risk: Risk, seed: int, forced: str) -> dict[str, Any]:
    """What else there is to know of a promise."""
    found: dict[str, Any] = {"seed": seed, "model": trace.model, "needs_labels": risk.needs_labels}
    return found | {"forced": forced} if forced else found


def _is_no_mean(trace: Trace, outcome: Outcome) -> bool:
    """Whether the task's main metric is none over texts, such as F1: a difference of two of them says little alone."""
    if trace.labels is None:
        return False
    tally = make_tally(trace)
    return tally.means(outcome.answers, tally.check(None)) is None


def _interval(trace: Trace, outcome: Outcome, metric: str | None, level: float, seed: int) -> dict[str, Any]:
    """Percentile bootstrap over texts of the score and of the drop against full depth (paired)."""
    if trace.problem_type == "regression" and trace.labels is None:
        return {}
    given = told(trace)
    ends = ((1 - level) / 2, (1 + level) / 2)
    score, drop = (
        np.quantile(values, ends).tolist()
        for values in _resampled(given, outcome, None if trace.labels is None else metric, seed, number=1000)
    )
    return {"interval": score, "drop_interval": drop, "interval_level": level, "guarantee": "none"}


def _resampled(trace: Trace, outcome: Outcome, metric: str | None, seed: int, *, number: int) -> tuple[Floats, Floats]:
    """Bootstrap samples of the score and of the drop against full depth."""
    tally = make_tally(trace)
    main = tally.check(metric)
    means = [tally.means(answers, main) for answers in (outcome.answers, trace.logits[-1])]
    scores: list[Floats] = []
    full: list[Floats] = []
    for counts in resamples(trace.num_units, number, seed):
        weights = counts.astype(np.float64)
        for found, answers, mean in zip((scores, full), (outcome.answers, trace.logits[-1]), means, strict=True):
            found.append(
                tally.metric(weights @ tally.features(answers), main) if mean is None else weights @ mean / len(mean)
            )
    score = np.concatenate(scores)
    return score, np.concatenate(full) - score


def _point(
    trace: Trace,
    rule: Criterion,
    knobs: Mapping[str, float],
    measured: dict[str, Any],
    promise: dict[str, Any] | None,
    chosen_on: str,
    name: str,
    asked: dict[str, float],
    forced: str,
) -> OperatingPoint:
    if forced and not name.endswith(FORCED):
        name += FORCED  # so that it never takes the place of an honest one
    return OperatingPoint(
        name=name,
        criterion=rule.name,
        settings=asdict(rule),
        knobs=dict(knobs),
        measured=measured,
        chosen_on=chosen_on,
        promise=promise,
        asked=asked,
        runtime=trace.runtime,
        dtype=trace.dtype,
        batch_size=trace.batch_size,
        data_hash=data_hash(trace),
    )


def _name(criterion: Criterion, promise: Mapping[str, Any]) -> str:
    """``edr-disagreement-0.01-at-0.95``; a function's name has a colon, and a point's may have one too."""
    sure = "expected" if promise["expected"] else f"at-{promise['confidence']:g}"
    return f"{criterion.name}-{promise['of']}-{promise['risk']:g}-{sure}"


def _wished(
    criterion: Criterion, wish: Mapping[str, float], metric: str | None, risk: str | None, confidence: float
) -> str:
    """``edr-speedup-2``, ``edr-max-drop-1-f1``; with risk and confidence where they are not the usual ones."""
    parts = [criterion.name, *(f"{key.replace('_', '-')}-{value:g}" for key, value in wish.items())]
    parts += [part for part in (metric, risk) if part not in (None, "disagreement")]
    return "-".join([*parts, *([] if confidence == CONFIDENCE else [f"at-{confidence:g}"])])


def _how_deep(cap_depth: bool) -> str:
    """``-capped`` where the last layer that anybody reaches was chosen too."""
    return "-capped" if cap_depth else ""


def _where(trace: Trace, batch_invariant: bool) -> str:
    """``-onnx-int8-at-batch-1``: what serves; nothing of torch in float32, or where nobody knows."""
    known = trace.runtime not in ("", "unknown") and (trace.runtime, trace.dtype) != ("torch", "float32")
    there = f"-{trace.runtime}-{trace.dtype}".removesuffix("-") if known else ""
    return there if batch_invariant else f"{there}-at-batch-{trace.batch_size}"


def _texts(number: int) -> str:
    return f"{number:,} text{'' if number == 1 else 's'}"
