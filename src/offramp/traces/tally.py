"""Sums from which metrics follow.

Accuracy, F1, Matthews and Pearson correlation are functions of a few sums over rows (hits per class, predictions per
class, moments). A row adds its features to the sums whichever exit it leaves at, so thousands of thresholds, halves
and resamples are sums of the same features. ``offramp.tasks`` says what the metrics *are*; tests hold the two equal.
(Ranks are no sums: Spearman correlation is not here.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import DataError, KnobError
from offramp.tasks import make_task
from offramp.traces.trace import Trace

__all__ = ["Tally", "Voices", "make_tally"]

Floats = NDArray[np.float64]


class Tally(ABC):
    """The sums behind the metrics of one problem type, for one set of labels [U]."""

    counts: ClassVar[bool]
    """Features are 0 or 1: sums are whole numbers, the same in any order."""
    mains: tuple[str, ...]
    """Metrics that thresholds may be chosen by (better when higher); the first is the usual one."""
    width: int
    """S: how many sums there are."""

    @abstractmethod
    def entries(self, answers: NDArray[Any]) -> tuple[NDArray[np.int64], Floats]:
        """What answers [U, C] add: column numbers [U, K] and amounts [U, K]. A column comes once a row at most."""

    @abstractmethod
    def metrics(self, sums: Floats) -> dict[str, Floats]:
        """Sums [..., S] -> name -> [...]."""

    def metric(self, sums: Floats, name: str) -> Floats:
        """One of the metrics: [...]."""
        return self.metrics(sums)[name]

    def means(self, answers: NDArray[Any], metric: str) -> Floats | None:
        """[U] whose mean is the metric (accuracy: right or wrong), or None where it is not a mean over rows."""
        return None

    def features(self, answers: NDArray[Any]) -> Floats:
        """[U, S]: the entries written out."""
        columns, amounts = self.entries(answers)
        result = np.zeros((len(answers), self.width))
        np.put_along_axis(result, columns, amounts, axis=1)
        return result

    def measure(self, answers: NDArray[Any]) -> dict[str, float]:
        """The metrics of answers [U, C]."""
        columns, amounts = self.entries(answers)
        sums: Floats = np.bincount(columns.ravel(), weights=amounts.ravel(), minlength=self.width).astype(np.float64)
        return {name: float(value) for name, value in self.metrics(sums).items()}

    def check(self, metric: str | None) -> str:
        """The metric's name (None: the main one), or a KnobError that lists those there are."""
        if metric is not None and metric not in self.mains:
            raise KnobError(f"thresholds cannot be chosen by {metric!r} here, only by {' or '.join(self.mains)}")
        return metric or self.mains[0]


class Voices:
    """What V voices (exits, or rules with an answer of their own) add to the sums, where that is 0 or 1.

    A class is said of few units, so nearly all of a column is zeros. Only units where some voice adds to the column are
    kept: with C classes there is about C times less to add up than in the features written out.

    Args:
        tally: one that counts.
        answers: one [U, C] a voice.
    """

    def __init__(self, tally: Tally, answers: Sequence[NDArray[Any]]) -> None:
        # Each voice is asked twice, so that the features of all are never held at once.
        somewhere = np.zeros((tally.width, len(answers[0])), dtype=bool)
        for one in answers:
            somewhere |= tally.features(one).T > 0
        places = np.flatnonzero(somewhere)
        said = np.stack([(tally.features(one).T > 0).ravel()[places] for one in answers])  # [V, places]
        ends = somewhere.sum(axis=1).cumsum()[:-1]
        self.width = tally.width
        self._units = np.split(places % somewhere.shape[1], ends)
        self._said = np.split(said, ends, axis=1)

    def columns(self, voices: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.bool_]]]:
        """Each column that is not all zeros: its number, its units [n], and what these add [P, n].

        Args:
            voices: [P, U]: whose answer each unit has, in P ways.
        """
        for number, (units, said) in enumerate(zip(self._units, self._said, strict=True)):
            if len(units):
                yield number, units, said[voices[:, units], np.arange(len(units))]


def _ratio(above: Floats, below: Floats) -> Floats:
    """Quotient, and 0 where that is 0 / 0."""
    return np.where(below > 0, above / np.where(below > 0, below, 1), 0.0)


def _f1(hits: Floats, both: Floats) -> Floats:
    """Of the second class of two, or the mean over classes that occur: hits and said + true, [..., C] each."""
    f1 = _ratio(2 * hits, both)
    return f1[..., 1] if f1.shape[-1] == 2 else _ratio(f1.sum(-1), (both > 0).sum(-1))


def _matthews(hits: Floats, said: Floats, true: Floats) -> Floats:
    n, right = true.sum(-1), hits.sum(-1)
    by_chance = (said * true).sum(-1)
    spread = np.sqrt((n**2 - (said**2).sum(-1)) * (n**2 - (true**2).sum(-1)))
    return _ratio(right * n - by_chance, spread)


class _SingleLabel(Tally):
    """Columns: said class c and wrong [C], said c and right [C], truth is c [C]."""

    counts = True

    def __init__(self, labels: NDArray[np.int64], classes: int) -> None:
        self.labels, self.classes, self.width = labels, classes, 3 * classes

    def entries(self, answers: NDArray[Any]) -> tuple[NDArray[np.int64], Floats]:
        said = answers.argmax(axis=-1)
        columns = np.stack([said + self.classes * (said == self.labels), self.labels + 2 * self.classes], axis=-1)
        return columns, np.ones(columns.shape)

    def means(self, answers: NDArray[Any], metric: str) -> Floats | None:
        return (answers.argmax(axis=-1) == self.labels).astype(np.float64) if metric == "accuracy" else None

    def metrics(self, sums: Floats) -> dict[str, Floats]:
        return {name: self.metric(sums, name) for name in ("accuracy", "f1", "matthews")}

    def metric(self, sums: Floats, name: str) -> Floats:
        # One at a time: a comparison asks for millions of one metric, and with many classes each takes its time.
        c = self.classes
        hits, true = sums[..., c : 2 * c], sums[..., 2 * c :]
        if name == "accuracy":
            return _ratio(hits.sum(-1), true.sum(-1))
        said = sums[..., :c] + hits
        return _f1(hits, said + true) if name == "f1" else _matthews(hits, said, true)


class _MultiLabel(Tally):
    """Columns: label c said and true [C], said [C], true [C]; all labels right [1], rows [1]."""

    counts = True

    def __init__(self, labels: NDArray[np.bool_]) -> None:
        self.labels, self.classes = labels.astype(bool), labels.shape[1]
        self.width = 3 * self.classes + 2

    def entries(self, answers: NDArray[Any]) -> tuple[NDArray[np.int64], Floats]:
        said = answers > 0
        exact = (said == self.labels).all(axis=-1, keepdims=True)
        amounts = np.concatenate([said & self.labels, said, self.labels, exact, np.ones_like(exact)], axis=-1)
        columns = np.broadcast_to(np.arange(self.width), amounts.shape)
        return columns, amounts.astype(np.float64)

    def means(self, answers: NDArray[Any], metric: str) -> Floats | None:
        right = ((answers > 0) == self.labels).all(axis=-1)
        return right.astype(np.float64) if metric == "accuracy" else None

    def metrics(self, sums: Floats) -> dict[str, Floats]:
        c = self.classes
        hits, said, true = sums[..., :c], sums[..., c : 2 * c], sums[..., 2 * c : 3 * c]
        return {
            "accuracy": _ratio(sums[..., -2], sums[..., -1]),
            "f1_micro": _ratio(2 * hits.sum(-1), (said + true).sum(-1)),
            "f1_macro": _ratio(2 * hits, said + true).mean(-1),
        }


class _Regression(Tally):
    """Columns: rows, x, y, x x, y y, x y; numbers are taken from the labels' mean, so that little cancels."""

    counts = False

    def __init__(self, labels: NDArray[np.floating[Any]]) -> None:
        self.centre = float(np.mean(labels, dtype=np.float64)) if len(labels) else 0.0
        self.y = labels.astype(np.float64) - self.centre
        self.width = 6

    def entries(self, answers: NDArray[Any]) -> tuple[NDArray[np.int64], Floats]:
        x, y = answers[..., 0].astype(np.float64) - self.centre, self.y
        amounts = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)
        return np.broadcast_to(np.arange(6), amounts.shape), amounts

    def means(self, answers: NDArray[Any], metric: str) -> Floats | None:
        error: Floats = answers[..., 0].astype(np.float64) - self.centre - self.y
        return error**2 if metric == "mse" else None

    def metrics(self, sums: Floats) -> dict[str, Floats]:
        n, x, y, xx, yy, xy = (sums[..., i] for i in range(6))
        var_x, var_y = n * xx - x * x, n * yy - y * y
        # A constant answer leaves rounding noise for a variance: count it as none.
        some = (var_x > 1e-10 * n * xx) & (var_y > 1e-10 * n * yy)
        spread = np.sqrt(np.where(some, var_x * var_y, 0.0))
        return {"pearson": _ratio(n * xy - x * y, spread), "mse": _ratio(xx - 2 * xy + yy, n)}


def make_tally(trace: Trace) -> Tally:
    """The tally of a trace's labels.

    Raises:
        DataError: the trace has no labels, or no units.
    """
    labels = trace.labels_known()
    if trace.num_units == 0:
        raise DataError("this trace is empty, and there is nothing to score: record some data")
    tally: Tally
    if trace.problem_type == "single_label_classification":
        tally = _SingleLabel(labels.astype(np.int64), trace.logits.shape[-1])
    elif trace.problem_type == "multi_label_classification":
        tally = _MultiLabel(labels)
    else:
        tally = _Regression(labels)
    names = tally.metrics(np.zeros(tally.width))
    task = make_task(trace.problem_type, trace.id2label)
    tally.mains = tuple(name for name in task.mains if name in names)
    return tally
