"""What answers mean: labels, sets of labels, numbers; how they are read, and how they are scored.

A task turns labels from files into what training and metrics use, logits into what people read, and answers into
scores. numpy only: a served model and a trace read elsewhere need no more. Every main metric is better when higher,
and none is NaN for finite answers: where a formula divides by zero (constant answers, a label that never occurs) the
score is 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from offramp.errors import DataError, KnobError
from offramp.types import PROBLEM_TYPES, ProblemType

__all__ = [
    "Label",
    "MultiLabel",
    "Regression",
    "SingleLabel",
    "Task",
    "class_name",
    "make_task",
    "split_names",
    "unrelated",
]

Label = int | float | npt.NDArray[np.bool_]
"""A class id, a number, or [C] bool: which labels apply."""

Scores = dict[str, float]
Metric = Callable[[npt.NDArray[Any], npt.NDArray[Any], int], float]
"""(answers, labels, number of outputs) -> score."""


def make_task(problem_type: str, id2label: Mapping[int, str] | Mapping[str, str], metric: str | None = None) -> Task:
    """The task of a problem type.

    Args:
        problem_type: as in transformers.
        id2label: 0..C-1 -> name (keys may be strings, as JSON has them); regression: one entry, the name of the number.
        metric: the main metric, if not the usual one (accuracy; f1_micro; pearson).

    Raises:
        KnobError: no such problem type or metric; lists those there are.
        DataError: ``id2label`` does not name 0..C-1, or names two alike.
    """
    tasks: dict[str, type[Task]] = {task.problem_type: task for task in (SingleLabel, MultiLabel, Regression)}
    if problem_type not in tasks:
        raise KnobError(f"no problem type is called {problem_type!r}: there are {', '.join(PROBLEM_TYPES)}")
    return tasks[problem_type]({int(number): name for number, name in id2label.items()}, metric or "")


@dataclass(frozen=True)
class Task(ABC):
    """One kind of answer. ``C`` is the number of outputs."""

    id2label: Mapping[int, str]
    """0..C-1 -> name."""
    main_metric: str = ""
    """The score that decides; better when higher."""

    problem_type: ClassVar[ProblemType]
    mains: ClassVar[tuple[str, ...]]
    """Metrics that may be the main one; the first is the usual one."""

    def __post_init__(self) -> None:
        if not self.main_metric:
            object.__setattr__(self, "main_metric", self.mains[0])
        if self.main_metric not in self.mains:
            raise KnobError(
                f"{self.main_metric!r} is no main metric of {self.problem_type}: choose one of {', '.join(self.mains)}"
            )
        if sorted(self.id2label) != list(range(len(self.id2label))) or not self.id2label:
            raise DataError(f"id2label must name 0, 1, 2 ... without gaps, not {sorted(self.id2label)}")
        if len(set(self.id2label.values())) < len(self.id2label):
            raise DataError(f"id2label names two labels alike: {_shortened(self.id2label.values())}")

    @property
    def num_outputs(self) -> int:
        """C: classes or labels; 1 for regression."""
        return len(self.id2label)

    @abstractmethod
    def encode(self, raw: object, where: str) -> Label:
        """A label as a file holds it, to what metrics and training use.

        Args:
            raw: name, id, number or list, by task.
            where: file and line, for messages.

        Raises:
            DataError: no label, or one that is not known; names it, the line, and the known ones.
        """

    def encode_all(self, raws: Sequence[object], wheres: Sequence[str]) -> npt.NDArray[Any]:
        """Labels of N rows: int64 [N], bool [N, C] or float32 [N]."""
        labels = [self.encode(raw, where) for raw, where in zip(raws, wheres, strict=True)]
        return self._stack(labels)

    @abstractmethod
    def _stack(self, labels: Sequence[Label]) -> npt.NDArray[Any]: ...

    @abstractmethod
    def read(self, logits: npt.NDArray[np.floating]) -> tuple[str | list[str] | float, float | None]:
        """[C] logits to the label and score of a ``Prediction``."""

    @abstractmethod
    def answers(self, logits: npt.NDArray[np.floating]) -> npt.NDArray[Any]:
        """[..., C] logits to class ids [...], bool [..., C], or numbers [...]."""

    @abstractmethod
    def _metrics(self) -> Mapping[str, Metric]: ...

    def metrics(self, answers: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Scores:
        """Every metric of the task.

        Args:
            answers: of N rows, as ``answers`` gives them.
            labels: of the same rows, as ``encode_all`` gives them.

        Raises:
            DataError: no rows.
        """
        answers, labels = self._checked(answers, labels)
        return {name: metric(answers, labels, self.num_outputs) for name, metric in self._metrics().items()}

    def score(self, answers: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
        """The main metric alone."""
        answers, labels = self._checked(answers, labels)
        return self._metrics()[self.main_metric](answers, labels, self.num_outputs)

    def _checked(
        self, answers: npt.NDArray[Any], labels: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        answers, labels = np.asarray(answers), np.asarray(labels)
        if answers.shape != labels.shape:
            raise ValueError(f"answers {answers.shape} and labels {labels.shape} differ in shape")
        if len(labels) == 0:
            raise DataError("there are no rows to score: give data that has labels")
        return answers, labels


@dataclass(frozen=True)
class _Named(Task):
    """Shared by the tasks whose labels have names."""

    @cached_property
    def _ids(self) -> dict[str, int]:
        """What a label may be called -> its id.

        Names first. Ids count as names too, but only where no name is itself a number: among the stars 1 to 5, "1"
        must not be the second. Nor where they were written as 1.0 to 5.0: a class is found under either spelling.
        """
        names = {name: number for number, name in self.id2label.items()}
        whole = {_whole(name): number for name, number in names.items()}
        if any(_is_integer(name) for name in whole):
            return whole | names
        return {str(number): number for number in self.id2label} | names

    def _id(self, raw: object, where: str) -> int:
        try:
            name = class_name(raw)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        if name is None:
            raise DataError(f"{where} has no label: every row needs one here")
        found = self._ids.get(name, self._ids.get(_whole(name)))
        if found is None:
            raise DataError(f"{where}: label {name!r} is not one of those known ({_shortened(self.id2label.values())})")
        return found


@dataclass(frozen=True)
class SingleLabel(_Named):
    """Exactly one class applies. Labels: its name, or its id (``3`` or ``"3"``)."""

    problem_type: ClassVar[ProblemType] = "single_label_classification"
    mains: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "matthews")

    def encode(self, raw: object, where: str) -> int:
        return self._id(raw, where)

    def _stack(self, labels: Sequence[Label]) -> npt.NDArray[np.int64]:
        return np.asarray(labels, dtype=np.int64)

    def read(self, logits: npt.NDArray[np.floating]) -> tuple[str, float]:
        """The most probable class, and its softmax probability."""
        shifted = np.asarray(logits, dtype=np.float64)
        best = int(shifted.argmax())
        return self.id2label[best], float(1 / np.exp(shifted - shifted[best]).sum())

    def answers(self, logits: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
        ids: npt.NDArray[np.int64] = np.asarray(np.argmax(logits, axis=-1), dtype=np.int64)
        return ids

    def _metrics(self) -> Mapping[str, Metric]:
        return {"accuracy": _accuracy, "f1": _f1, "matthews": _matthews}


@dataclass(frozen=True)
class MultiLabel(_Named):
    """Any number of labels apply. Labels: a list of names or ids, C zeros and ones, or names joined by ``|`` or ``,``.

    A list of exactly C zeros and ones is always read as such, never as ids.
    """

    problem_type: ClassVar[ProblemType] = "multi_label_classification"
    mains: ClassVar[tuple[str, ...]] = ("f1_micro", "f1_macro", "accuracy")

    def encode(self, raw: object, where: str) -> npt.NDArray[np.bool_]:
        if isinstance(raw, str):
            raw = split_names(raw, known=self._ids)
        if isinstance(raw, np.ndarray):
            raw = raw.tolist()
        if not isinstance(raw, Sequence):
            raise DataError(f"{where}: the labels must be a list of names, not {raw!r}: every row needs one here")
        if is_indicator(raw) and len(raw) == self.num_outputs:
            return np.asarray(raw, dtype=np.bool_)
        applies = np.zeros(self.num_outputs, dtype=np.bool_)
        applies[[self._id(name, where) for name in raw]] = True
        return applies

    def _stack(self, labels: Sequence[Label]) -> npt.NDArray[np.bool_]:
        return np.asarray(labels, dtype=np.bool_).reshape(len(labels), self.num_outputs)

    def read(self, logits: npt.NDArray[np.floating]) -> tuple[list[str], float]:
        """The labels more likely than not, and the probability of the least sure of them.

        Where none applies, the probability that the likeliest does not.
        """
        logits = np.asarray(logits, dtype=np.float64)
        applies = np.flatnonzero(logits > 0)
        # -max where none applies: sigmoid(-x) = 1 - sigmoid(x). Never negative, so exp cannot overflow.
        doubtful = float(logits[applies].min() if len(applies) else -logits.max())
        return [self.id2label[int(label)] for label in applies], float(1 / (1 + np.exp(-doubtful)))

    def answers(self, logits: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        return np.asarray(logits) > 0

    def _metrics(self) -> Mapping[str, Metric]:
        return {"accuracy": _exact, "f1_micro": _f1_micro, "f1_macro": _f1_macro}


@dataclass(frozen=True)
class Regression(Task):
    """A number. ``mse`` is reported, but cannot be the main metric: it is better when lower."""

    id2label: Mapping[int, str] = field(default_factory=lambda: {0: "value"})
    problem_type: ClassVar[ProblemType] = "regression"
    mains: ClassVar[tuple[str, ...]] = ("pearson", "spearman")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.id2label) != 1:
            raise DataError(f"regression has one output, but id2label names {len(self.id2label)}")

    def encode(self, raw: object, where: str) -> float:
        if raw is None or (isinstance(raw, str) and not raw.strip()):
            raise DataError(f"{where} has no label: every row needs a number here")
        try:
            number = float(raw) if not isinstance(raw, bool) else float("nan")  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = float("nan")
        if not np.isfinite(number):
            raise DataError(f"{where}: label {raw!r} is not a finite number, which regression needs")
        return number

    def _stack(self, labels: Sequence[Label]) -> npt.NDArray[np.float32]:
        return np.asarray(labels, dtype=np.float32)

    def read(self, logits: npt.NDArray[np.floating]) -> tuple[float, None]:
        return float(logits[0]), None

    def answers(self, logits: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        return np.asarray(logits)[..., 0]

    def _metrics(self) -> Mapping[str, Metric]:
        return {"pearson": _pearson, "spearman": _spearman, "mse": _mse}


def class_name(raw: object) -> str | None:
    """What a class is called, however the file writes it: 3, 3.0, "3" and " 3 " are one class; None where unlabelled.

    Unlabelled are None, the empty string and NaN. Truth values are called ``true`` and ``false``.

    Raises:
        DataError: neither a name nor a number.
    """
    if isinstance(raw, Mapping | bytes):
        raise DataError(f"a label must be a name or a number, not {raw!r}")
    if isinstance(raw, np.generic):
        raw = raw.item()
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, float):
        if np.isnan(raw):
            return None
        return str(int(raw)) if raw.is_integer() else repr(raw)
    return None if raw is None else str(raw).strip() or None


def split_names(text: str, known: Mapping[str, object]) -> list[str]:
    """Names written as one string: the whole string where it is known, else parted at ``|``, else at ``,``."""
    if text.strip() in known:
        return [text.strip()]
    parts = text.split("|" if "|" in text else ",")
    return [part.strip() for part in parts if part.strip()]


def is_indicator(raw: Sequence[object]) -> bool:
    """Whether a list is zeros and ones (or truth values), one a label, rather than names or ids."""
    return len(raw) > 0 and all(isinstance(value, bool | int | float) and value in (0, 1) for value in raw)


def _is_integer(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _whole(name: str) -> str:
    """``3.0``, as tables write a whole number in a column where some are missing, as ``3``; others as they are."""
    head, point, zeros = name.partition(".")
    return head if point and _is_integer(head) and not zeros.strip("0") else name


def _shortened(names: Any, most: int = 10) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _accuracy(answers: npt.NDArray[Any], labels: npt.NDArray[Any], outputs: int) -> float:
    return float((answers == labels).mean())


def _confusion(answers: npt.NDArray[Any], labels: npt.NDArray[Any], outputs: int) -> npt.NDArray[np.float64]:
    """[C, C]: rows of each label (first axis) that got each answer."""
    pairs = labels.astype(np.int64) * outputs + answers.astype(np.int64)
    return np.bincount(pairs, minlength=outputs * outputs).reshape(outputs, outputs).astype(np.float64)


def _f1(answers: npt.NDArray[Any], labels: npt.NDArray[Any], outputs: int) -> float:
    """Two classes: F1 of class 1. More: the mean over the classes that occur among labels or answers."""
    confusion = _confusion(answers, labels, outputs)
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    f1 = _divided(2 * np.diag(confusion), total)
    return float(f1[1] if outputs == 2 else f1[total > 0].mean())


def _matthews(answers: npt.NDArray[Any], labels: npt.NDArray[Any], outputs: int) -> float:
    """Matthews correlation; for more than two classes Gorodkin's R_K (2004)."""
    confusion = _confusion(answers, labels, outputs)
    answered, labelled, rows = confusion.sum(axis=0), confusion.sum(axis=1), confusion.sum()
    covariance = np.trace(confusion) * rows - answered @ labelled
    spread = (rows**2 - answered @ answered) * (rows**2 - labelled @ labelled)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def _exact(answers: npt.NDArray[Any], labels: npt.NDArray[Any], outputs: int) -> float:
    """Share of rows whose whole set of labels is right."""
    return float((answers == labels).all(axis=-1).mean())


def _f1_micro(answers: npt.NDArray[Any], labels: npt.NDArray[Any], outputs: int) -> float:
    return float(_divided(2 * np.sum(answers & labels), answers.sum() + labels.sum()))


def _f1_macro(answers: npt.NDArray[Any], labels: npt.NDArray[Any], outputs: int) -> float:
    f1 = _divided(2 * (answers & labels).sum(axis=0), answers.sum(axis=0) + labels.sum(axis=0))
    return float(f1.mean())


def _divided(part: Any, whole: Any) -> npt.NDArray[np.float64]:
    """A share: 0 where the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    share: npt.NDArray[np.float64] = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return share


def _pearson(answers: npt.NDArray[Any], labels: npt.NDArray[Any], outputs: int) -> float:
    x, y = (values.astype(np.float64) for values in (answers, labels))
    if np.ptp(x) == 0 or np.ptp(y) == 0:  # asked of the values: a mean that is off by a bit is no spread
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.abs(x).max(), y / np.abs(y).max()  # squares of tiny or huge numbers would vanish or overflow
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def _spearman(answers: npt.NDArray[Any], labels: npt.NDArray[Any], outputs: int) -> float:
    return _pearson(_ranks(answers), _ranks(labels), outputs)


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Rank of each value, from 1; equal values share the mean of their ranks."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last: npt.NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return last[where]


def _mse(answers: npt.NDArray[Any], labels: npt.NDArray[Any], outputs: int) -> float:
    return float(np.mean((answers.astype(np.float64) - labels.astype(np.float64)) ** 2))


_SLIGHT = 0.2
"""Agreement beyond chance (Cohen's kappa) that is called slight up to here."""


def unrelated(answers: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], num_classes: int) -> bool:
    """Whether labels [N] hardly mean the classes that a model answers [N] with.

    So it is where the model is not clearly (by two standard errors) right more often than always the commonest label
    would be, and hardly more often than answers that have nothing to do with the labels. (With a rare class a good
    model may miss the first and not the second.) Of one class alone there is no chance to compare with: there it is so
    where the model is right on less than half.
    """
    n = len(labels)
    if not n:
        return False
    given, said = (np.bincount(one, minlength=num_classes) / n for one in (labels, answers))
    right, commonest, chance = float((answers == labels).mean()), float(given.max()), float(given @ said)
    if commonest == 1:
        return right < 0.5
    clear = commonest + 2 * math.sqrt(commonest * (1 - commonest) / n)
    return right < clear and right <= chance + _SLIGHT * (1 - chance)
