"""Learning when to stop: against brute force, on traces whose truth is known, and on rows it must not have seen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from offramp.calibration import stopping
from offramp.calibration.fitting import FITS, held_out_scores
from offramp.calibration.stopping import PRICES, fit_stopping, stopping_thresholds
from offramp.criteria import Scored, make
from offramp.criteria.learned_stopping import LearnedStopping
from offramp.errors import DataError, KnobError, MissingExtraError, UnsupportedError
from offramp.traces.curves import Curve, curve, measure, score_at_speedup
from offramp.traces.replay import replay, scores
from offramp.traces.trace import Trace

MakeTrace = Callable[..., Trace]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    """Probabilities on a grid, so that many are equal; layers with gaps; a price."""
    shape = (draw(st.integers(2, 4)), draw(st.integers(1, 7)))
    right = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 8))) / 8
    steps = draw(st.lists(st.integers(1, 3), min_size=shape[0], max_size=shape[0]))
    return right, np.cumsum(steps).astype(np.float64), draw(st.sampled_from([0.0, 0.01, 0.0625, 0.125, 0.3, 5.0]))


@given(cases())
@settings(max_examples=300, deadline=None)
def test_thresholds_against_brute_force(case: tuple[np.ndarray, np.ndarray, float]) -> None:
    """Exit by exit from the last: of all thresholds there are, none earns more, given what later exits do."""
    right, layers, price = case
    found = stopping_thresholds(right, layers, price)
    worth = [float(value) for value in right[-1]]
    for e in range(len(right) - 2, -1, -1):
        paid = price * float(layers[e + 1] - layers[e])

        def earned(stop: float, e: int = e, paid: float = paid, worth: list[float] = worth) -> list[float]:
            return [float(p) if p >= stop else value - paid for p, value in zip(right[e], worth, strict=True)]

        tried = {stop: sum(earned(stop)) for stop in [0.0, *(i / 8 + 1 / 16 for i in range(9)), 1.1]}
        assert sum(earned(found[e])) == pytest.approx(max(tried.values()), abs=1e-9)
        strict = [stop for stop, value in tried.items() if value > max(tried.values()) - 1e-9]
        assert sum(right[e] >= found[e]) == min(sum(right[e] >= stop) for stop in strict), "of equals, who goes on"
        worth = earned(found[e])


def test_thresholds_by_hand() -> None:
    """Two exits, one layer apart: stop where P(right here) is at least P(right there) - price, as one cut allows."""
    right = np.array([[0.9, 0.6, 0.5], [0.95, 0.95, 0.95]])
    layers = np.array([1.0, 2.0])
    assert stopping_thresholds(right, layers, 0.0).tolist() == [1.1]
    assert stopping_thresholds(right, layers, 0.1).tolist() == [0.75]
    assert stopping_thresholds(right, layers, 0.36).tolist() == pytest.approx([0.55])
    assert stopping_thresholds(right, layers, 0.5).tolist() == [0.0]


def test_who_cannot_be_told_apart_stops_together() -> None:
    """The first two of four equally sure rows would gain by stopping, all four would not."""
    right = np.array([[0.5, 0.5, 0.5, 0.5], [0.3, 0.4, 0.9, 0.9]])
    assert stopping_thresholds(right, np.array([1.0, 2.0]), 0.0).tolist() == [1.1]
    assert stopping_thresholds(right, np.array([1.0, 2.0]), 0.2).tolist() == [0.0]


def planted(trace_of: MakeTrace, units: int, seed: int) -> Trace:
    """The second exit is always sure; where it says what the first said it is right, elsewhere mostly wrong."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=units)
    first = np.where(rng.random(units) < 0.85, labels, 1 - labels)
    agrees = (first == labels) & (rng.random(units) < 0.6)  # about half of all
    second = np.where(agrees, first, 1 - first)
    sure = np.array([0.4, 4.0, 4.0]) + rng.random((units, 3))
    said = np.stack([first, second, labels])
    return trace_of(np.eye(2)[said] * sure.T[:, :, None], labels=labels, layers=(1, 2, 6))


def at_fraction(trace: Trace, rule: Scored, fraction: float) -> float:
    score = score_at_speedup(curve(trace, rule, metric="accuracy"), 1 / fraction)
    assert score is not None
    return score


def test_finds_what_entropy_cannot_see(trace_of: MakeTrace) -> None:
    """At a layer fraction of about .65 learned stopping errs on next to none; entropy cannot tell the halves apart."""
    train, fresh = planted(trace_of, 400, 0), planted(trace_of, 4000, 1)
    rule = fit_stopping(train, LearnedStopping())
    said = fresh.logits.argmax(axis=-1)
    agree = said[0] == said[1]
    assert 0.4 < agree.mean() < 0.6
    assert (said[1] == fresh.labels)[agree].all()
    assert (said[1] == fresh.labels)[~agree].mean() < 0.4
    fraction = (2 * agree.mean() + 6 * (1 - agree.mean())) / 6
    learned, entropy = (at_fraction(fresh, one, fraction) for one in (rule, make("entropy")))
    assert learned > 0.97
    assert learned > entropy + 0.08
    left = replay(fresh, rule, {"threshold": 0.03}).exits
    np.testing.assert_array_equal(left, np.where(agree, 1, 2))


def test_as_fast_on_fresh_rows(example: MakeTrace) -> None:
    """A threshold's layer speed-up on the rows that the tables were learned on is that on others."""
    train, fresh = example(units=300, seed=2), example(units=3000, seed=3)
    rule = fit_stopping(train, LearnedStopping())
    points, again = curve(train, rule), curve(fresh, rule)
    for wanted in (1.2, 1.5, 2.0, 3.0):
        place = int(np.abs(points.layer_speedup - wanted).argmin())
        found = measure(fresh, replay(fresh, rule, {"threshold": float(points.knobs["threshold"][place])}))
        assert found["layer_speedup"] == pytest.approx(points.layer_speedup[place], rel=0.1)
    assert np.interp(0.5, *ordered(points)) == pytest.approx(np.interp(0.5, *ordered(again)), abs=0.06)


def ordered(points: Curve) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(points.layer_fraction)
    return points.layer_fraction[order], points.score[order]


def test_a_row_is_not_among_those_it_is_scored_by(example: MakeTrace) -> None:
    trace, fit = example(units=80, exits=3), FITS["stopping"]
    before = held_out_scores(trace, LearnedStopping(), fit, seed=3)
    labels = trace.labels_known().copy()
    row = int((trace.logits.argmax(axis=-1) == labels).all(axis=0).argmax())  # right at every exit, and then at none
    labels[row] = (labels[row] + 1) % 3
    after = held_out_scores(replace(trace, labels=labels), LearnedStopping(), fit, seed=3)
    folds = np.random.default_rng(3).permutation(80) % 4
    same = (before == after).all(axis=0)
    assert same[folds == folds[row]].all()
    assert same[folds != folds[row]].mean() < 0.2, "the others' do change, where they are not at an end"


def test_folds_of_the_fit_itself_keep_a_text_whole(example: MakeTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts with three tokens each, no token is among those that say how sure another of its text is."""
    one = example(units=60, exits=3)
    many = replace(one, lengths=one.lengths[:20], offsets=np.arange(0, 61, 3), hashes=None)
    seen, held_out = [], stopping._held_out

    def watched(signals: list[np.ndarray], hits: np.ndarray, folds: np.ndarray) -> np.ndarray:
        seen.append(folds.reshape(20, 3))
        return held_out(signals, hits, folds)

    monkeypatch.setattr(stopping, "_held_out", watched)
    fit_stopping(many, LearnedStopping())
    [folds] = seen
    assert (folds == folds[:, :1]).all()
    assert np.bincount(folds[:, 0]).tolist() == [5, 5, 5, 5]
    with pytest.raises(DataError, match="8 rows"):
        fit_stopping(many.select(np.arange(7)), LearnedStopping())


def test_without_labels_it_learns_to_agree(example: MakeTrace) -> None:
    trace = example(units=120)
    said = trace.logits.argmax(axis=-1)
    with pytest.raises(DataError, match="no labels"):
        fit_stopping(replace(trace, labels=None), LearnedStopping())
    rule = fit_stopping(replace(trace, labels=None), LearnedStopping(), target="agrees")
    assert rule == fit_stopping(trace, LearnedStopping(), target="agrees"), "labels are not read"
    as_truth = fit_stopping(replace(trace, labels=said[-1]), LearnedStopping())
    assert rule.weights == as_truth.weights
    # The last exit agrees with itself for sure; as the truth of a trace it would only nearly be.
    assert np.sum(rule.stops) > np.sum(as_truth.stops)
    kept = score_at_speedup(curve(replace(trace, labels=said[-1]), rule), 1.3)
    assert kept is not None
    assert kept > 0.8


def test_the_ends_of_the_prices(example: MakeTrace) -> None:
    trace = example(units=200)
    rule = fit_stopping(trace, LearnedStopping())
    assert rule.prices == PRICES
    assert (replay(trace, rule, {"threshold": 0.0}).exits == trace.num_exits - 1).all()
    assert (replay(trace, rule, {"threshold": 1.01}).exits == 0).all()
    assert (np.diff(rule.stops, axis=1) <= 0).all()
    # At .3 a layer hardly anyone is asked to stay; at .0003 hardly anyone may go.
    shares = [(replay(trace, rule, {"threshold": p}).exits == 0).mean() for p in (3e-4, 0.3)]
    assert shares[0] < 0.2
    assert shares[1] > 0.6


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("always", [0, 1])
def test_exits_that_are_always_right_or_always_wrong(trace_of: MakeTrace, always: int) -> None:
    """One exit errs on every row, another on none; the rule sees it and no number runs away."""
    rng = np.random.default_rng(4)
    labels = rng.integers(2, size=60)
    said = np.stack([labels, labels, labels])
    said[1 - always] = 1 - labels
    logits = np.eye(2)[said] * (1 + rng.random((3, 60, 1)))
    rule = fit_stopping(trace_of(logits, labels=labels), LearnedStopping())
    fresh = trace_of(logits[:, ::-1] * 30, labels=labels[::-1])
    assert np.isfinite(scores(fresh, rule)).all()
    assert (replay(fresh, rule, {"threshold": 0.1}).exits == always).all()


@pytest.mark.filterwarnings("error")
def test_a_signal_that_never_moved_weighs_nothing(trace_of: MakeTrace) -> None:
    """All rows are equally sure in the trace; a row that is not must not be judged by rounding."""
    rng = np.random.default_rng(5)
    labels = rng.integers(2, size=80)
    said = np.stack([np.where(rng.random(80) < 0.7, labels, 1 - labels), labels])
    trace = trace_of(np.eye(2)[said] * 1.3, labels=labels)
    rule = fit_stopping(trace, LearnedStopping())
    assert rule.weights[0][1:] == (0, 0, 0, 0)
    share = (said[0] == labels).mean()
    right = rule.probability(trace.stages[0], trace.output(0), rule.start(labels))
    assert right == pytest.approx(share, abs=0.02)


def test_distances_are_used_where_all_early_exits_give_them(example: MakeTrace) -> None:
    trace = example(units=100)
    assert fit_stopping(trace, LearnedStopping()).ratio
    some = trace.extras["distances"].copy()
    some[1] = np.nan
    rule = fit_stopping(replace(trace, extras={"distances": some}), LearnedStopping(ratio=True))
    assert not rule.ratio
    assert {len(row) for row in rule.weights} == {5}


def test_noise_does_not_make_a_dearer_layer_keep_anyone(example: MakeTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    right, layers = np.random.default_rng(8).random((4, 12)), np.arange(1.0, 5.0)
    table = np.stack([stopping_thresholds(right, layers, price) for price in PRICES], axis=1)
    assert (np.diff(table, axis=1) > 0).any(), "row by row it can happen"
    monkeypatch.setattr(stopping, "_held_out", lambda *_: right)
    stops = fit_stopping(example(units=12), LearnedStopping()).stops
    assert (np.diff(stops, axis=1) <= 0).all()
    assert (np.asarray(stops) <= table).all()


def test_layers_that_an_exit_saves_count(example: MakeTrace) -> None:
    """The same exits, with the last one far away: at the same price of a layer more stop."""
    trace = example(units=200, exits=3)
    near, far = (
        fit_stopping(replace(trace, layers=np.array(layers)), LearnedStopping()) for layers in ((1, 2, 3), (1, 2, 12))
    )
    assert near.weights == far.weights
    assert np.mean(far.stops) < np.mean(near.stops)


def test_seed(example: MakeTrace) -> None:
    trace = example(units=60)
    one, two, three = (fit_stopping(trace, LearnedStopping(), seed=seed) for seed in (0, 0, 1))
    assert one == two
    assert one.weights == three.weights, "folds are only for the thresholds"
    assert one.stops != three.stops


def test_refuses(example: MakeTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = example(units=40)
    with pytest.raises(UnsupportedError, match="multi_label_classification"):
        fit_stopping(example("multi_label_classification"), LearnedStopping())
    with pytest.raises(DataError, match="this trace has 4 exits and 7 rows"):
        fit_stopping(trace.select(np.arange(7)), LearnedStopping())
    with pytest.raises(DataError, match="1 exits and 40 rows"):
        fit_stopping(example(units=40, exits=1, extras=False), LearnedStopping())
    with pytest.raises(KnobError, match="target must be right or agrees, not 'both'"):
        fit_stopping(trace, LearnedStopping(), target="both")  # type: ignore[arg-type]
    for name in ("sklearn", "sklearn.linear_model"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"sklearn.*pip install 'offramp\[train\]'"):
        fit_stopping(trace, LearnedStopping())
