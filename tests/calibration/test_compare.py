"""The comparison against a slow twin, and against traces whose truth is known."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from offramp.calibration.compare import _Bench, _envelopes, _fit_side, _mixed, compare, usual_rules
from offramp.calibration.fitting import FITS, Fitted, held_out_scores
from offramp.calibration.sweep import LAMBDAS, candidates
from offramp.criteria import make
from offramp.criteria.base import Scored
from offramp.errors import DataError, KnobError
from offramp.traces.curves import area, curve, knob_grid, mean_score, measure, resamples, thresholds
from offramp.traces.replay import Outcome, replay, running_minimum, scores
from offramp.traces.tally import Voices, make_tally
from offramp.traces.trace import Trace

MakeTrace = Callable[..., Trace]
KINDS = ("single_label_classification", "multi_label_classification", "regression")
CHOOSERS = ("entropy", "patience", "window", "static")
"""Rules with a threshold, a whole number, both, and an exit to choose."""


def row_of(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in result["rows"] if row["name"] == name)


def slow_choice(measured: list[dict[str, float]], metric: str, target: float) -> tuple[int, int, float] | None:
    """The best that a budget of layers buys, out of all candidates and all pairs of them: which, and what share goes by
    the second.
    """
    cost = np.array([one["layer_fraction"] for one in measured])
    score = np.array([one[metric] for one in measured])
    fast, slow = np.flatnonzero(cost <= 1 / target + 1e-12), np.flatnonzero(cost > 1 / target + 1e-12)
    if not len(fast):
        return None
    alone = max(fast, key=lambda i: (round(score[i], 9), -cost[i], -i))
    share = (1 / target - cost[fast, None]).clip(0) / (cost[slow] - cost[fast, None])
    worth = (1 - share) * score[fast, None] + share * score[slow]
    if worth.max(initial=-1) <= score[alone] + 1e-9:
        return alone, alone, 0.0
    ties = zip(*np.nonzero(worth >= worth.max() - 1e-9), strict=True)
    i, j = min(ties, key=lambda ij: (-cost[fast[ij[0]]], cost[slow[ij[1]]], fast[ij[0]], slow[ij[1]]))
    return fast[i], slow[j], share[i, j]


def slow_lots(trace: Trace, splits: int, seed: int) -> np.ndarray:
    """[splits, U]: one for all units of an item."""
    drawn = np.random.default_rng(seed + 2).random((splits, len(trace.lengths)))
    return np.repeat(drawn, np.diff(trace.offsets), axis=1)


def slow_cells(
    trace: Trace,
    name: str,
    settings: list[dict[str, Any]],
    targets: tuple[float, ...],
    splits: int,
    seed: int,
    metric: str,
) -> list[tuple[float, float] | None]:
    """Score and layer speed-up, by loops: choose on one half, answer the other, both ways, for every split."""
    outcomes = []
    for setting in settings:
        rule = make(name, **setting)
        if isinstance(rule, Scored):
            lowest = running_minimum(scores(trace, rule))
            grid = [{"threshold": float(t)} for t in thresholds(lowest, rule.knobs["threshold"], max_points=300)]
        else:
            grid = knob_grid(trace, rule)
        outcomes += [replay(trace, rule, dict(knobs)) for knobs in grid]
    rng = np.random.default_rng(seed)
    halves = []
    for _ in range(splits):
        first = np.zeros(trace.num_units, dtype=bool)
        first[rng.permutation(trace.num_units)[: trace.num_units // 2]] = True
        halves += [first, ~first]
    measured = []
    for half in halves:
        rows = trace.select(half)
        measured.append([measure(rows, Outcome(o.exits[half], o.answers[half])) for o in outcomes])
    cells: list[tuple[float, float] | None] = []
    lots = slow_lots(trace, splits, seed)
    for target in targets:
        results, layers = [], []
        answers, left = np.empty(trace.logits.shape[1:], dtype=np.float32), np.empty(trace.num_units, dtype=np.int64)
        for number, (half, found) in enumerate(zip(halves, measured, strict=True)):
            choice = slow_choice(found, metric, target)
            if choice is None:
                break
            for unit in np.flatnonzero(~half):
                outcome = outcomes[choice[int(lots[number // 2, unit] < choice[2])]]
                answers[unit], left[unit] = outcome.answers[unit], outcome.exits[unit]
            if number % 2:
                results.append(make_tally(trace).measure(answers)[metric])
                layers.append(trace.layers[left].mean())
        reached = len(results) == splits
        cells.append((float(np.mean(results)), trace.num_layers / float(np.mean(layers))) if reached else None)
    return cells


@pytest.mark.parametrize(
    ("kind", "metric", "classes"),
    [
        ("single_label_classification", "accuracy", 3),
        ("single_label_classification", "matthews", 3),
        ("single_label_classification", "f1", 2),
        ("single_label_classification", "f1", 8),
        ("multi_label_classification", "f1_micro", 3),
        ("multi_label_classification", "f1_macro", 5),
        ("regression", "pearson", 3),
    ],
)
def test_equals_the_slow_twin(example: MakeTrace, kind: str, metric: str, classes: int) -> None:
    trace = example(kind, units=21, classes=classes)
    targets, splits, seed = (1.3, 2.0, 3.0), 2, 5
    # Every criterion once a kind of task; a kind of rule each for the other metrics.
    every = (metric, classes) in (("accuracy", 3), ("f1_micro", 3), ("pearson", 3))
    chosen = [(n, s) for n, s in candidates(trace) if every or n in ("entropy", "edr", "patience", "depth")]
    rules = {"static" if name == "depth" else name: [make(name, **one) for one in some] for name, some in chosen}
    result = compare(trace, rules=rules, targets=targets, splits=splits, seed=seed, resamples=20, metric=metric)
    for name, settings in chosen:
        row = row_of(result, "static" if name == "depth" else name)
        cells = slow_cells(trace, name, settings, targets, splits, seed, metric)
        for target, cell, expected in zip(targets, row["cells"], cells, strict=True):
            assert (cell is None) == (expected is None), (name, target)
            if cell is not None and expected is not None:
                assert cell["score"] == pytest.approx(expected[0], abs=1e-6), (name, target)
                assert cell["layer_speedup"] == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("single_label_classification", "f1"),
        ("single_label_classification", "matthews"),
        ("multi_label_classification", "f1_macro"),
    ],
)
def test_counts_column_by_column_are_those_of_all_features(
    example: MakeTrace, kind: str, metric: str, tokens: int
) -> None:
    """Halves and resamples of what is said, where a metric is made of counts: not a bit differs."""
    trace = example(kind, units=30, classes=9)
    trace = replace(trace, lengths=trace.lengths[: 30 // tokens], offsets=np.arange(0, 31, tokens), hashes=None)
    bench = _Bench(trace, make_tally(trace), metric, splits=4, seed=0, resamples=70)
    fast, slow = bench.table(trace.logits), np.stack([bench.features(logits) for logits in trace.logits])
    assert isinstance(fast, Voices)
    voices = np.random.default_rng(1).integers(trace.num_exits, size=(4, trace.num_units))
    np.testing.assert_array_equal(bench.summed(fast, voices), bench.summed(slow, voices))
    np.testing.assert_array_equal(bench.halved(fast, voices, bench.sides), bench.halved(slow, voices, bench.sides))
    samples = bench.samples(fast, voices)
    np.testing.assert_array_equal(samples, bench.samples(slow, voices))
    assert samples.shape == (70,)
    assert samples.std() > 0


def test_progress(example: MakeTrace) -> None:
    calls: list[tuple[int, int]] = []
    trace = example()
    rules = {name: [make(name)] for name in CHOOSERS[:3]}
    once = {"rules": rules, "splits": 2, "resamples": 5}
    result = compare(trace, **once, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert result == compare(trace, **once)

    def enough(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(trace, **once, progress=enough)


@pytest.mark.parametrize("kind", KINDS)
def test_form_of_the_result(example: MakeTrace, kind: str) -> None:
    trace = example(kind)
    result = compare(trace, splits=4, resamples=30)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    usual = {
        "single_label_classification": ["entropy", "confidence", "patience", "dr", "edr", "edr (lam 1)"],
        "multi_label_classification": ["entropy", "confidence", "patience"],
        "regression": [],
    }[kind]
    *rules, last = [row["name"] for row in result["rows"]]
    assert (rules[: len(usual)], last) == (usual, "static")
    fitting = {name for name, _ in candidates(trace)} - {"depth"}
    assert {row["criterion"] for row in result["rows"][:-1]} == fitting, "new criteria stand between the two"
    assert result["baseline"] == ("static" if kind == "regression" else "entropy")
    assert (result["oracle"] is None) == (kind == "regression")
    assert [one["layer"] for one in result["exits"]] == [1, 2, 3, 4]
    assert result["exits"][-1]["score"] == result["full_depth"]["score"]
    for row in result["rows"]:
        assert len(row["cells"]) == len(result["targets"])
        for cell in filter(None, row["cells"]):
            assert sum(cell["shares"]) == pytest.approx(1)
            mean_layers = np.dot(cell["shares"], result["layers"])
            assert result["num_layers"] / mean_layers == pytest.approx(cell["layer_speedup"])
            assert cell["interval"][0] <= cell["score"] + 1e-9
            assert cell["interval"][1] >= cell["score"] - 1e-9
            make(row["criterion"], **cell["settings"])


def test_the_baseline_does_not_differ_from_itself(example: MakeTrace) -> None:
    rules = {name: [make(name)] for name in ("confidence", "entropy")}
    for cell in row_of(compare(example(), rules=rules, splits=3, resamples=20), "entropy")["cells"]:
        assert cell["against_baseline"] == {"mean": 0, "interval": [0, 0]}


def test_same_seed_same_result(example: MakeTrace) -> None:
    trace = example()
    rules = {name: rule for name, rule in usual_rules(trace).items() if name in CHOOSERS}
    one, two, three = (compare(trace, rules=rules, splits=3, resamples=20, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one["rows"] != three["rows"]


def test_areas(example: MakeTrace) -> None:
    """A row's area is that of settings chosen on the other half: below what choosing in hindsight would give."""
    trace = example(units=40)
    result = compare(trace, targets=(), splits=20, resamples=2)
    one = row_of(result, "entropy")
    assert one["area"] == pytest.approx(one["areas"][0]["area"])
    assert one["area"] == pytest.approx(area(curve(trace, make("entropy"))), abs=0.02)
    many = row_of(result, "edr")
    assert [a["settings"]["lam"] for a in many["areas"]] == list(LAMBDAS)
    assert many["area"] < max(a["area"] for a in many["areas"])


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("single_label_classification", "accuracy"), ("single_label_classification", "f1"), ("regression", "pearson")],
)
def test_the_interval_of_an_area_is_that_of_a_curve(example: MakeTrace, kind: str, metric: str) -> None:
    """Curve after curve, of rows drawn anew."""
    trace = example(kind, units=40, classes=8)
    rule = make("depth" if kind == "regression" else "patience", problem_type=kind)
    found = row_of(compare(trace, rules={"row": [rule]}, splits=3, resamples=60, metric=metric), "row")
    outcomes = [replay(trace, rule, knobs) for knobs in knob_grid(trace, rule)]
    areas = []
    for counts in np.concatenate(list(resamples(40, 60, 1))):
        units = np.repeat(np.arange(40), counts.astype(int))
        tally = make_tally(trace)

        def score(answers: np.ndarray, drawn: np.ndarray = units, tally: Any = tally) -> float:
            return float(tally.metrics(tally.features(answers)[drawn].sum(0))[metric])

        cost = np.array([trace.layers[one.exits[units]].mean() for one in outcomes]) / trace.num_layers
        ends = ((trace.layers[0] / trace.num_layers, score(trace.logits[0])), (1.0, score(trace.logits[-1])))
        areas.append(mean_score(cost, np.array([score(one.answers) for one in outcomes]), ends))
    expected = np.quantile(areas, [0.025, 0.975]) - np.mean(areas) + found["area"]
    assert found["area_interval"] == pytest.approx(expected, abs=1e-5)


def test_not_reached(example: MakeTrace) -> None:
    trace = example()
    rules = {name: rule for name, rule in usual_rules(trace).items() if name in CHOOSERS}
    result = compare(trace, rules=rules, targets=(1.1, 3.0), splits=3, resamples=20)
    assert row_of(result, "patience")["cells"][1] is None, "patience needs two of four exits"
    assert row_of(result, "static")["cells"][1] is not None
    assert result["histogram"]["shares"]["patience"] is not None


def test_without_distances(example: MakeTrace) -> None:
    names = [row["name"] for row in compare(example(extras=False), splits=2, resamples=10)["rows"]]
    assert names[:3] == ["entropy", "confidence", "patience"]
    assert not {"dr", "edr"} & set(names)


def known(units: int, seed: int) -> Trace:
    """Two exits. The first is right on easy rows, where it is sure, and guesses the others; the last is right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=units)
    easy = rng.random(units) < 0.5
    said = np.where(easy, labels, rng.integers(2, size=units))
    sureness = np.where(easy, 4.0, 0.5) + rng.random(units) * 0.1
    first = np.where(np.eye(2)[said] > 0, sureness[:, None], 0)
    last = 5 * np.eye(2)[labels]
    # Distances know nothing.
    return Trace(
        logits=np.array([first, last], dtype=np.float32),
        layers=np.array([1, 2]),
        lengths=np.ones(units, dtype=np.int64),
        problem_type="single_label_classification",
        id2label={0: "a", 1: "b"},
        extras={"distances": rng.random((2, units, 2)).astype(np.float32)},
        labels=labels,
    )


def test_known_truth() -> None:
    """At 4/3 half may leave: entropy sends the easy ones and loses nothing; distances send any and lose 1/8."""
    trace = known(4000, 0)
    rules = {name: rule for name, rule in usual_rules(trace).items() if name in ("entropy", "dr", "edr")}
    result = compare(trace, rules=rules, targets=(1.3,), splits=10, resamples=100)
    entropy, ratio = (row_of(result, name)["cells"][0] for name in ("entropy", "dr"))
    assert entropy["score"] > 0.995
    gap = ratio["against_baseline"]
    assert gap["interval"][0] < -0.115 < gap["interval"][1] + 0.02
    assert gap["interval"][1] < -0.09, "clearly worse"
    assert row_of(result, "edr")["cells"][0]["settings"]["lam"] == 0.1, "as much entropy as there is"
    assert result["oracle"]["score"] == 1


def test_chosen_knobs_do_not_see_the_rows_they_are_scored_on() -> None:
    """Labels are coin tosses: in-sample choice would look better than chance, scoring elsewhere must not."""
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        trace = Trace(
            logits=rng.normal(size=(6, 40, 2)).astype(np.float32),
            layers=np.arange(1, 7),
            lengths=np.ones(40, dtype=np.int64),
            problem_type="single_label_classification",
            id2label={0: "a", 1: "b"},
            labels=rng.integers(2, size=40),
        )
        rules = {name: rule for name, rule in usual_rules(trace).items() if name in CHOOSERS}
        result = compare(trace, rules=rules, targets=(1.0,), splits=10, resamples=2)
        found.append(np.mean([row["cells"][0]["score"] for row in result["rows"]]))
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


def test_a_coarse_knob_spends_the_budget_too() -> None:
    """Exits after 1, 2 and 4 of 4 layers, each right more often than the one before: lots are drawn between two."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=3000)
    right = np.sort(rng.random(3000)) < np.array([[0.6], [0.8], [0.9]])
    said = np.where(right, labels, 1 - labels)
    trace = Trace(
        logits=np.stack([said == 0, said == 1], axis=-1).astype(np.float32),
        layers=np.array([1, 2, 4]),
        lengths=np.ones(3000, dtype=np.int64),
        problem_type="single_label_classification",
        id2label={0: "a", 1: "b"},
        labels=labels,
    )
    targets = (1.25, 4 / 3, 2.0, 2.5, 3.0, 4.0, 4.1)
    result = compare(trace, rules={"static": [make("depth")]}, targets=targets, splits=10, resamples=50)
    *cells, last = row_of(result, "static")["cells"]
    assert last is None
    for target, cell in zip(targets, cells, strict=False):
        assert cell["layer_speedup"] == pytest.approx(target, rel=0.01)
        expected = np.interp(4 / target, [1, 2, 4], [0.6, 0.8, 0.9])
        assert cell["score"] == pytest.approx(expected, abs=0.02)
    assert cells[2]["knobs"] == {"layers": 2}
    assert cells[0]["knobs"] == {"layers": 4}


def test_layers_that_are_worth_nothing_are_not_spent() -> None:
    """The middle exit is the best: at 1.5x it is taken whole, and the row says that it is faster."""
    trace = known(400, 0)
    logits = np.concatenate([trace.logits[:1], trace.logits[1:], -trace.logits[1:]])
    trace = replace(trace, logits=logits, layers=np.array([1, 2, 4]), extras={}, hashes=None)
    result = compare(trace, rules={"static": [make("depth")]}, targets=(1.5,), splits=4, resamples=50)
    [cell] = row_of(result, "static")["cells"]
    assert (cell["layer_speedup"], cell["score"], cell["shares"]) == (2, 1, [0, 1, 0])


def test_interval_covers_the_truth() -> None:
    """The first exit is right on .75 of rows (half easy, half guessed)."""
    covered = 0
    for seed in range(20):
        rules = {"entropy": [make("entropy")]}
        result = compare(known(100, seed), rules=rules, targets=(), splits=1, resamples=200, seed=seed)
        low, high = result["exits"][0]["interval"]
        covered += low <= 0.75 <= high
    assert covered >= 16


def test_samples_are_kept_where_they_are_asked_for() -> None:
    """Beside every interval, and drawn alike for other models on the same rows."""
    trace, rules = known(60, 0), {"entropy": [make("entropy")]}
    swapped = replace(trace, logits=trace.logits[::-1])
    one, other = (compare(t, rules=rules, splits=2, resamples=40, keep_samples=True) for t in (trace, swapped))
    found = list(_with_intervals(one))
    assert len(found) > 8
    for owner, name in found:
        samples = owner[f"{name}samples"]
        assert samples.shape == (40,)
        assert owner[f"{name}interval"] == pytest.approx(np.quantile(samples, [0.025, 0.975]))
    assert one["exits"][0]["samples"].std() > 0
    assert (one["exits"][0]["samples"] == other["full_depth"]["samples"]).all()
    again = compare(trace, rules=rules, splits=2, resamples=40)
    assert all(f"{name}samples" not in owner for owner, name in _with_intervals(again))


def _with_intervals(value: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every part of a result that holds an interval, and what its name begins with."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key.endswith("interval"):
                yield value, key.removesuffix("interval")
            yield from _with_intervals(item)
    elif isinstance(value, list):
        for item in value:
            yield from _with_intervals(item)


def test_texts_of_many_units_stay_whole(example: MakeTrace) -> None:
    """Tokens of one text are in one half and are drawn together."""
    one = example(units=20)
    many = Trace(
        logits=np.repeat(one.logits, 3, axis=1),
        layers=one.layers,
        lengths=one.lengths,
        offsets=np.arange(0, 61, 3),
        problem_type=one.problem_type,
        id2label=one.id2label,
        extras={name: np.repeat(v, 3, axis=1) for name, v in one.extras.items()},
        labels=np.repeat(one.labels_known(), 3),
    )
    rules = {name: rule for name, rule in usual_rules(one).items() if name in (*CHOOSERS, "edr")}
    texts, tokens = (compare(t, rules=rules, splits=4, resamples=50) for t in (one, many))
    for a, b in zip(texts["rows"], tokens["rows"], strict=True):
        for x, y in zip(a["cells"], b["cells"], strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                assert x["score"] == pytest.approx(y["score"])
                assert x["interval"] == pytest.approx(y["interval"], abs=1e-5)


def test_examples(example: MakeTrace) -> None:
    trace = example()
    examples = compare(trace, rules={"entropy": [make("entropy")]}, splits=3, resamples=10)["examples"]
    easiest, hardest = examples["easiest"], examples["hardest"]
    assert {one["index"] for one in easiest}.isdisjoint(one["index"] for one in hardest)
    assert max(one["layer"] for one in easiest) <= min(one["layer"] for one in hardest)
    for one in (*easiest, *hardest):
        assert one["right"] == (one["label"] == one["answer"])
        assert one["label"] == str(trace.labels_known()[one["index"]])


@pytest.mark.parametrize(
    ("kind", "metric", "said"),
    [
        ("single_label_classification", None, "that is right, at the last where none is."),
        (
            "single_label_classification",
            "f1",
            "that is right, at the last where none is: it goes by accuracy, not by f1.",
        ),
        ("multi_label_classification", "accuracy", "whose whole set of labels is right, at the last where none is."),
        (
            "multi_label_classification",
            None,
            "whose whole set of labels is right, at the last where none is: it goes by accuracy (exact match), not by "
            "f1_micro: by that score another row may be better.",
        ),
    ],
)
def test_the_oracle_says_what_it_goes_by(example: MakeTrace, kind: str, metric: str | None, said: str) -> None:
    trace = example(kind)
    rules = {"entropy": [make("entropy", problem_type=kind)]}
    found = compare(trace, rules=rules, splits=2, resamples=5, metric=metric)["oracle"]
    assert (found["by"], found["rule"]) == ("accuracy", f"The oracle leaves at the first exit {said}")


def test_the_oracle_is_no_bound_on_f1() -> None:
    """One exit is nearly right, the last is all wrong: the oracle, which wants the whole set, waits for the last."""
    labels = np.ones((40, 3), dtype=bool)
    first, last = np.where([True, True, False], 1, -1), -np.ones(3)
    trace = Trace(
        logits=np.stack([np.tile(first, (40, 1)), np.tile(last, (40, 1))]).astype(np.float32),
        layers=np.array([1, 2]),
        lengths=np.ones(40, dtype=np.int64),
        problem_type="multi_label_classification",
        id2label={0: "a", 1: "b", 2: "c"},
        labels=labels,
    )
    result = compare(trace, splits=2, resamples=5, targets=(2.0,))
    assert row_of(result, "static")["cells"][0]["score"] == pytest.approx(0.8)
    assert result["oracle"]["score"] == 0
    assert "another row may be better" in result["oracle"]["rule"]


@pytest.mark.parametrize(("kind", "by"), [("multi_label_classification", "entropy"), ("regression", "patience_delta")])
def test_examples_of_other_tasks(example: MakeTrace, kind: str, by: str) -> None:
    trace = replace(
        example(kind, units=60), id2label={0: "red", 1: "green", 2: "blue"} if kind[0] == "m" else {0: "value"}
    )
    examples = compare(trace, splits=3, resamples=10)["examples"]
    assert examples["by"] == by
    easiest, hardest = examples["easiest"], examples["hardest"]
    assert len(easiest) == len(hardest) == 8
    assert max(one["layer"] for one in easiest) <= min(one["layer"] for one in hardest)
    for rows, sign in ((easiest, 1), (hardest, -1)):
        far = []
        for one in rows:
            said = trace.logits[trace.layers.tolist().index(one["layer"]), one["index"]]
            true = trace.labels_known()[one["index"]]
            if kind == "regression":
                error = abs(float(said[0]) - float(true))
                assert (one["answer"], one["label"], one["right"]) == (float(said[0]), float(true), None)
                assert one["error"] == pytest.approx(error)
                far.append((sign * one["layer"], sign * error))
                continue
            for key, applies in (("answer", said > 0), ("label", true)):
                assert one[key] == [name for name, yes in zip(("red", "green", "blue"), applies, strict=True) if yes]
            assert one["right"] == (one["answer"] == one["label"])
            assert one["error"] is None
            worst = min(float(logit if yes else -logit) for logit, yes in zip(said, true, strict=True))
            assert (worst > 0) == one["right"]
            far.append((sign * one["layer"], -sign * worst))
        assert far == sorted(far)


def test_examples_where_nothing_tells_texts_apart(example: MakeTrace) -> None:
    trace = example("regression")
    examples = compare(trace, rules={"static": [make("depth", problem_type="regression")]}, splits=3, resamples=10)[
        "examples"
    ]
    assert examples["by"] == "static"
    assert examples["easiest"][0]["error"] < examples["hardest"][0]["error"]


def test_what_is_refused(example: MakeTrace) -> None:
    trace = example()
    with pytest.raises(KnobError, match="1 or more"):
        compare(trace, targets=(0.5,))
    with pytest.raises(KnobError, match="split"):
        compare(trace, splits=0)
    with pytest.raises(KnobError, match="bleu"):
        compare(trace, metric="bleu")
    with pytest.raises(DataError, match="too few"):
        compare(trace.select(np.arange(3)))


# Rows whose settings are learned


def slow_fitted(
    trace: Trace, fitted: Fitted, targets: tuple[float, ...], splits: int, seed: int, metric: str
) -> tuple[list[tuple[float, float] | None], float]:
    """Cells and area, one half, threshold, row and exit after the other."""
    rng, fit, items = np.random.default_rng(seed), FITS[fitted.fit], len(trace.lengths)
    item_of_unit = np.repeat(np.arange(items), np.diff(trace.offsets))
    found, areas = [], []
    for _ in range(splits):
        first = np.zeros(items, dtype=bool)
        first[rng.permutation(items)[: items // 2]] = True
        for half in (first, ~first):
            mine, other = trace.select(half), trace.select(~half)
            rule = fit(mine, fitted.criterion)
            assert isinstance(rule, Scored)
            held = held_out_scores(mine, fitted.criterion, fit, seed=seed)
            knob = rule.knobs["threshold"]
            tried = []
            for value in thresholds(running_minimum(held), knob, max_points=300):
                exits = [next((e for e in range(len(held) - 1) if row[e] < value), len(held) - 1) for row in held.T]
                tried.append(Outcome(np.array(exits), mine.logits[exits, np.arange(len(exits))]))
            own = [float(v) for v in thresholds(running_minimum(scores(mine, rule)), knob, max_points=300)]
            pace = [mine.layers[replay(mine, rule, {"threshold": value}).exits].mean() for value in own]
            knobs = [own[int(np.argmin([abs(mine.layers[one.exits].mean() - p) for p in pace]))] for one in tried]
            outcomes = [replay(other, rule, {"threshold": value}) for value in knobs]
            found.append((~half[item_of_unit], [measure(mine, one) for one in tried], outcomes))
            told = [measure(other, outcome) for outcome in outcomes]
            ends = [make_tally(other).measure(logits)[metric] for logits in (other.logits[0], other.logits[-1])]
            areas.append(
                mean_score(
                    np.array([one["layer_fraction"] for one in told]),
                    np.array([one[metric] for one in told]),
                    ((float(trace.layers[0]) / trace.num_layers, ends[0]), (1.0, ends[1])),
                )
            )
    lots = slow_lots(trace, splits, seed)
    return [slow_fitted_cell(trace, found, target, metric, lots) for target in targets], float(np.mean(areas))


def slow_fitted_cell(
    trace: Trace,
    found: list[tuple[np.ndarray, list[dict[str, float]], list[Outcome]]],
    target: float,
    metric: str,
    lots: np.ndarray,
) -> tuple[float, float] | None:
    results, layers = [], []
    answers, left = np.empty(trace.logits.shape[1:], dtype=np.float32), np.empty(trace.num_units, dtype=np.int64)
    for number, (other, measured, outcomes) in enumerate(found):
        choice = slow_choice(measured, metric, target)
        if choice is None:
            return None
        for place, unit in enumerate(np.flatnonzero(other)):
            outcome = outcomes[choice[int(lots[number // 2, unit] < choice[2])]]
            answers[unit], left[unit] = outcome.answers[place], outcome.exits[place]
        if number % 2:
            results.append(make_tally(trace).measure(answers)[metric])
            layers.append(trace.layers[left].mean())
    return float(np.mean(results)), trace.num_layers / float(np.mean(layers))


STOPPING, TEMPERATURE = Fitted(make("learned_stopping"), "stopping"), Fitted(make("confidence"), "temperature")


@pytest.mark.parametrize(
    ("fitted", "metric", "classes", "tokens", "splits"),
    [
        (STOPPING, "accuracy", 3, 1, 1),
        (STOPPING, "accuracy", 3, 2, 1),
        (TEMPERATURE, "accuracy", 2, 1, 2),
        (TEMPERATURE, "f1", 8, 1, 2),
        (TEMPERATURE, "matthews", 3, 3, 2),
    ],
)
def test_learned_settings_equal_the_slow_twin(
    example: MakeTrace, fitted: Fitted, metric: str, classes: int, tokens: int, splits: int
) -> None:
    trace = example(units=48, classes=classes)
    items = 48 // tokens
    trace = replace(trace, lengths=trace.lengths[:items], offsets=np.arange(0, 49, tokens), hashes=None)
    targets, seed = (1.0, 1.5, 2.0, 3.0, 4.1), 5
    result = compare(
        trace, rules={"row": fitted}, targets=targets, splits=splits, seed=seed, resamples=5, metric=metric
    )
    row = row_of(result, "row")
    cells, area = slow_fitted(trace, fitted, targets, splits, seed, metric)
    assert row["area"] == pytest.approx(area, abs=1e-6)
    assert row["areas"] == [{"settings": {"problem_type": trace.problem_type}, "area": row["area"]}]
    assert [cell is None for cell in cells] == [False, False, False, False, True]
    for cell, expected in zip(row["cells"], cells, strict=True):
        assert (cell is None) == (expected is None)
        if cell is not None and expected is not None:
            assert (cell["score"], cell["layer_speedup"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("fitted", [STOPPING, TEMPERATURE])
def test_what_is_learned_and_chosen_does_not_see_the_labels_it_is_scored_by(example: MakeTrace, fitted: Fitted) -> None:
    trace = example(units=80, exits=3)
    bench = _Bench(trace, make_tally(trace), "accuracy", splits=1, seed=0, resamples=2)
    other = ~bench.halves[:, 0]
    labels = np.where(other, (trace.labels_known() + 1) % 3, trace.labels_known())
    changed = replace(trace, labels=labels)
    wrong = _Bench(changed, make_tally(changed), "accuracy", splits=1, seed=0, resamples=2)
    one, two = (_fit_side(b, fitted, b.table(list(trace.logits)), 0) for b in (bench, wrong))
    for name in ("values", "exits", "scored", "fraction"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.area != two.area, "they are what it is scored by"
    for target in (1.0, 1.5, 2.5):
        chosen = []
        for side in (one, two):
            scored, fraction = side.scored[:, None], side.fraction[:, None]
            chosen.append(_mixed(_envelopes(scored, fraction), fraction, target))
        for name in ("one", "other", "share"):
            np.testing.assert_array_equal(getattr(chosen[0], name), getattr(chosen[1], name))


def test_learned_settings_are_as_fast_as_they_were_chosen_to_be(example: MakeTrace) -> None:
    """Settings learned on fewer rows spread their scores otherwise; what is chosen there must not be slower here."""
    ratios = []
    for seed in range(3):
        trace = example(units=240, seed=seed)
        bench = _Bench(trace, make_tally(trace), "accuracy", splits=1, seed=seed, resamples=2)
        table = bench.table(list(trace.logits))
        for side in (_fit_side(bench, STOPPING, table, number) for number in (0, 1)):
            fractions = [trace.layers[side.exits[:, who]].mean(axis=1) for who in (side.mine, ~side.mine)]
            ratios.append(
                [fractions[1][i] / fractions[0][i] for i in np.linspace(20, len(side.values) - 20, 5).astype(int)]
            )
    assert np.mean(ratios, axis=0) == pytest.approx(np.ones(5), abs=0.05)


def test_the_usual_rules_are_the_default(example: MakeTrace) -> None:
    trace = example(units=64, exits=3)
    rules = usual_rules(trace)
    assert {"learned_stopping", "confidence (temperatures)"} < set(rules)
    assert list(rules)[-1] == "static"
    default = compare(trace, splits=1, resamples=5)
    assert [row["name"] for row in default["rows"]] == list(rules)
    some = {name: rules[name] for name in ("entropy", "edr", "learned_stopping")}
    assert compare(trace, rules=some, splits=1, resamples=5)["rows"] == [row_of(default, name) for name in some]
    learned = row_of(default, "learned_stopping")
    assert learned["criterion"] == "learned_stopping"
    assert learned["label"].endswith("(fitted)")
    assert learned["cells"][0]["against_baseline"] is not None
    assert json.loads(json.dumps(default, allow_nan=False)) == default


def test_when_nothing_is_learned(example: MakeTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = {"learned_stopping", "confidence (temperatures)"}
    assert learned < set(usual_rules(example(units=64)))
    assert not learned & set(usual_rules(example(units=63))), "too few rows"
    assert not learned & set(usual_rules(example(units=64, exits=1, extras=False))), "nowhere to leave"
    assert not learned & set(usual_rules(example("multi_label_classification", units=64)))
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert learned & set(usual_rules(example(units=64))) == {"confidence (temperatures)"}


def test_more_halvings_than_are_learned_on(example: MakeTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning takes its time, so only the first halvings are used."""
    monkeypatch.setattr("offramp.calibration.compare._FIT_SPLITS", 2)
    trace = example(units=64)
    few, many = (compare(trace, rules={"row": TEMPERATURE}, splits=splits, resamples=5) for splits in (2, 5))
    assert few["rows"] == many["rows"]
