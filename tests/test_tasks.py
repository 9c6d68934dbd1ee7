from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from offramp.errors import DataError, KnobError
from offramp.tasks import MultiLabel, Regression, SingleLabel, make_task

metrics = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")

SENTIMENT = {0: "negative", 1: "positive"}
STARS = {0: "1", 1: "2", 2: "5"}
TOPICS = {0: "art", 1: "food, drink", 2: "sport"}


def test_make_task_and_its_metrics() -> None:
    task = make_task("single_label_classification", SENTIMENT)
    assert isinstance(task, SingleLabel)
    assert (task.main_metric, task.num_outputs) == ("accuracy", 2)
    assert make_task("multi_label_classification", TOPICS).main_metric == "f1_micro"
    assert make_task("regression", {0: "score"}).main_metric == "pearson"
    assert make_task("single_label_classification", SENTIMENT, "matthews").main_metric == "matthews"
    assert make_task("single_label_classification", {"0": "a", "1": "b"}).id2label == {0: "a", 1: "b"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("single_label_classification", SENTIMENT, "pearson"), KnobError, "choose one of accuracy, f1, matthews"),
        (("regression", {0: "x"}, "mse"), KnobError, "choose one of pearson, spearman"),
        (("tagging", SENTIMENT), KnobError, "there are single_label_classification, multi"),
        (("regression", SENTIMENT), DataError, "one output"),
        (("single_label_classification", {1: "a", 2: "b"}), DataError, "without gaps"),
        (("single_label_classification", {0: "a", 1: "a"}), DataError, "alike"),
    ],
)
def test_tasks_that_cannot_be(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_task(*arguments)


@pytest.mark.parametrize("raw", ["positive", " positive ", 1, "1", 1.0, np.int64(1), True])
def test_single_labels_by_name_or_id(raw: object) -> None:
    names = {0: "no", 1: "true"} if raw is True else SENTIMENT
    assert make_task("single_label_classification", names).encode(raw, "here") == 1


def test_where_names_are_numbers_they_are_no_ids() -> None:
    task = make_task("single_label_classification", STARS)
    assert [task.encode(raw, "here") for raw in ("1", 2, 5.0)] == [0, 1, 2]
    with pytest.raises(DataError, match="label '0' is not one of those known"):
        task.encode(0, "here")


@pytest.mark.parametrize("names", [["1", "2", "3"], ["1.0", "2.0", "3.0"]])
def test_whole_numbers_are_one_class_however_they_are_written(names: list[str]) -> None:
    """A table with a row that lacks its label writes 1.0 where another file has 1."""
    task = make_task("single_label_classification", dict(enumerate(names)))
    assert [task.encode(raw, "here") for raw in (2, 2.0, "2", "2.0", " 2. ")] == [1] * 5
    with pytest.raises(DataError, match=r"label '0' is not one of those known"):
        task.encode(0, "here")
    versions = make_task("single_label_classification", {0: "2", 1: "2.0", 2: "2.05"})
    assert [versions.encode(raw, "here") for raw in ("2", "2.0", "2.05")] == [0, 1, 2]  # where both are names


@pytest.mark.parametrize("raw", [None, "", "  ", float("nan")])
def test_unlabelled(raw: object) -> None:
    with pytest.raises(DataError, match=r"dev\.csv, line 3 has no label"):
        make_task("single_label_classification", SENTIMENT).encode(raw, "dev.csv, line 3")


def test_labels_that_are_objects_name_the_line() -> None:
    with pytest.raises(DataError, match=r"dev.jsonl, line 3: a label must be a name or a number, not \{'a': 1\}"):
        make_task("single_label_classification", SENTIMENT).encode({"a": 1}, "dev.jsonl, line 3")


def test_unseen_labels_name_label_line_and_what_is_known() -> None:
    with pytest.raises(DataError, match=r"dev\.csv, line 3: label 'neutral' .*\(negative, positive\)"):
        make_task("single_label_classification", SENTIMENT).encode("neutral", "dev.csv, line 3")
    with pytest.raises(DataError, match=r"label '7' .*negative"):
        make_task("single_label_classification", SENTIMENT).encode(7, "x")
    many = make_task("single_label_classification", {i: f"class{i}" for i in range(77)})
    with pytest.raises(DataError, match="class9 and 67 more"):
        many.encode("unknown", "x")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (["sport", "art"], [1, 0, 1]),
        ([2, "art"], [1, 0, 1]),
        ([1, 0, 1], [1, 0, 1]),
        ([True, False, False], [1, 0, 0]),
        (np.array([0, 1, 1]), [0, 1, 1]),
        ([0, 1], [1, 1, 0]),  # two, not three: ids
        ([], [0, 0, 0]),
        ("art|sport", [1, 0, 1]),
        ("art, sport", [1, 0, 1]),
        ("food, drink", [0, 1, 0]),
        ("food, drink | art", [1, 1, 0]),
        ("", [0, 0, 0]),
    ],
)
def test_multi_labels(raw: object, expected: list[int]) -> None:
    encoded = make_task("multi_label_classification", TOPICS).encode(raw, "here")
    assert isinstance(encoded, np.ndarray)
    assert encoded.dtype == np.bool_
    np.testing.assert_array_equal(encoded, np.asarray(expected, dtype=bool))


def test_multi_labels_that_are_none() -> None:
    task = make_task("multi_label_classification", TOPICS)
    for raw, message in (
        (None, "must be a list"),
        (3, "must be a list"),
        (["war"], "label 'war'"),
        ([None], "no label"),
    ):
        with pytest.raises(DataError, match=f"line 3.*{message}"):
            task.encode(raw, "line 3")


def test_numbers() -> None:
    task = make_task("regression", {0: "score"})
    assert [task.encode(raw, "here") for raw in (4, "4.5", -1e-3)] == [4.0, 4.5, -1e-3]
    for raw in ("four", float("nan"), "nan", float("inf"), [1.0], True):
        with pytest.raises(DataError, match=r"line 3: label .* not a finite number"):
            task.encode(raw, "line 3")
    with pytest.raises(DataError, match="line 3 has no label"):
        task.encode(None, "line 3")


def test_encode_all_gives_what_metrics_take() -> None:
    single = make_task("single_label_classification", SENTIMENT).encode_all(["positive", 0], ["", ""])
    assert (single.dtype, single.tolist()) == (np.int64, [1, 0])
    multi = make_task("multi_label_classification", TOPICS).encode_all([["art"], []], ["", ""])
    assert (multi.dtype, multi.shape) == (np.bool_, (2, 3))
    assert make_task("multi_label_classification", TOPICS).encode_all([], []).shape == (0, 3)
    assert make_task("regression", {0: "score"}).encode_all([1, 2], ["", ""]).dtype == np.float32


def test_reading_answers() -> None:
    single = make_task("single_label_classification", SENTIMENT)
    label, score = single.read(np.array([1.0, 3.0], dtype=np.float32))
    assert (label, score) == ("positive", pytest.approx(1 / (1 + np.exp(-2))))
    assert single.read(np.array([-2e4, 2e4], dtype=np.float32)) == ("positive", 1.0)

    multi = make_task("multi_label_classification", TOPICS)
    assert multi.read(np.array([2.0, -5.0, 0.5])) == (["art", "sport"], pytest.approx(1 / (1 + np.exp(-0.5))))
    # None applies: the likeliest has p = sigmoid(-1), so 1 - p.
    assert multi.read(np.array([-2.0, -1.0, -9.0])) == ([], pytest.approx(1 / (1 + np.exp(-1.0))))
    assert multi.read(np.array([-2e4, -2e4, -2e4])) == ([], 1.0)

    assert make_task("regression", {0: "score"}).read(np.array([2.5])) == (2.5, None)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (4, 3), elements=st.floats(-50, 50, width=32)))
def test_read_agrees_with_answers_and_softmax(logits: np.ndarray) -> None:
    single, multi = SingleLabel(TOPICS), MultiLabel(TOPICS)
    for row, answer, applies in zip(logits, single.answers(logits), multi.answers(logits), strict=True):
        p = np.exp(row.astype(float)) / np.exp(row.astype(float)).sum()
        assert single.read(row) == (TOPICS[int(answer)], pytest.approx(p.max()))
        yes = 1 / (1 + np.exp(-row.astype(float)))
        expected = yes[applies].min() if applies.any() else 1 - yes.max()
        assert multi.read(row) == ([TOPICS[i] for i in np.flatnonzero(applies)], pytest.approx(expected))


def test_answers_keep_leading_axes() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 4, 3))
    assert SingleLabel(TOPICS).answers(logits).shape == (5, 4)
    assert MultiLabel(TOPICS).answers(logits).shape == (5, 4, 3)
    assert Regression({0: "x"}).answers(logits[..., :1]).shape == (5, 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(1, 12), st.integers(0, 10_000))
def test_single_label_metrics_are_those_of_scikit_learn(classes: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    answers, labels = rng.integers(0, classes, (2, rows))
    task = SingleLabel({i: str(i) for i in range(classes)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        average = "binary" if classes == 2 else "macro"
        expected = {
            "accuracy": metrics.accuracy_score(labels, answers),
            "f1": metrics.f1_score(labels, answers, zero_division=0, average=average),
            "matthews": metrics.matthews_corrcoef(labels, answers),
        }
    assert task.metrics(answers, labels) == pytest.approx(expected)
    assert task.score(answers, labels) == pytest.approx(expected["accuracy"])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 10_000), st.floats(0, 1))
def test_multi_label_metrics_are_those_of_scikit_learn(width: int, rows: int, seed: int, share: float) -> None:
    answers, labels = np.random.default_rng(seed).random((2, rows, width)) < share
    task = MultiLabel({i: f"l{i}" for i in range(width)})
    f1 = {
        f"f1_{average}": 2 * np.sum(answers & labels) / max(1, answers.sum() + labels.sum())
        if width == 1  # scikit-learn takes a single column for two classes
        else metrics.f1_score(labels, answers, average=average, zero_division=0)
        for average in ("micro", "macro")
    }
    expected = {"accuracy": np.mean([(a == b).all() for a, b in zip(answers, labels, strict=True)]), **f1}
    assert task.metrics(answers, labels) == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10_000), st.booleans())
def test_regression_metrics_are_those_of_scipy(rows: int, seed: int, ties: bool) -> None:
    answers, labels = np.random.default_rng(seed).normal(size=(2, rows))
    if ties:
        answers, labels = np.round(answers), np.round(labels)
    expected = {
        "pearson": stats.pearsonr(answers, labels)[0] if np.ptp(answers) * np.ptp(labels) else 0.0,
        "spearman": stats.spearmanr(answers, labels)[0] if np.ptp(answers) * np.ptp(labels) else 0.0,
        "mse": metrics.mean_squared_error(labels, answers),
    }
    assert Regression({0: "x"}).metrics(answers, labels) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_pearson_does_not_depend_on_the_scale(scale: float) -> None:
    numbers = np.array([1.0, 2.0, 4.0])
    assert Regression({0: "x"}).score(numbers * scale, numbers) == pytest.approx(1.0)


def test_nothing_is_nan() -> None:
    same, mixed = np.full(3, 0.1), np.arange(3.0)
    constant = Regression({0: "x"}).metrics(same, mixed)
    assert constant == {"pearson": 0, "spearman": 0, "mse": pytest.approx(np.mean((mixed - 0.1) ** 2))}
    assert Regression({0: "x"}).metrics(mixed[:1], mixed[:1]) == {"pearson": 0, "spearman": 0, "mse": 0}
    zeros = np.zeros(3, dtype=np.int64)
    assert SingleLabel(SENTIMENT).metrics(zeros, zeros) == {"accuracy": 1, "f1": 0, "matthews": 0}
    none = np.zeros((3, 2), dtype=bool)
    assert MultiLabel(SENTIMENT).metrics(none, none) == {"accuracy": 1, "f1_micro": 0, "f1_macro": 0}


def test_rows_to_score() -> None:
    task = SingleLabel(SENTIMENT)
    with pytest.raises(DataError, match="no rows"):
        task.metrics(np.zeros(0, dtype=int), np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="differ in shape"):
        task.metrics(np.zeros(2, dtype=int), np.zeros(3, dtype=int))


def test_labels_of_other_classes() -> None:
    from offramp.tasks import unrelated

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    assert not unrelated(labels, labels, 4)
    assert unrelated((labels + 1) % 4, labels, 4), "shifted: never right"
    assert unrelated(rng.integers(0, 4, 400), np.minimum(labels, 1), 4), "three quarters are one class"
    rare = (np.arange(400) % 20 == 0).astype(np.int64)
    careful = np.where(np.arange(400) % 13 == 0, 1, rare)  # finds all of a rare class, and cries wolf as often
    assert (careful == rare).mean() < (rare == 0).mean()
    assert not unrelated(careful, rare, 2)
    assert not unrelated(labels[:0], labels[:0], 4)
    coins = [unrelated(rng.integers(0, 2, 400), rng.integers(0, 2, 400), 2) for _ in range(200)]
    assert np.mean(coins) > 0.95
    one = np.zeros(400, dtype=np.int64)
    assert not unrelated(np.where(np.arange(400) % 10 == 0, 1, 0), one, 2), "nine of ten are of the only class there is"
    assert unrelated(1 - one, one, 2)
