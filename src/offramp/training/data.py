"""Labelled texts for training and measuring: from a folder, a file or the Hugging Face hub.

Labels are understood once, from the training rows, and kept as ``id2label``; every other row is read with that. What
kind of labels they are (``problem_type``) is inferred: lists mean multi-label; numbers of which some are written with
a decimal point mean regression; all else is classes. Classes that are whole numbers are ordered as numbers (0..k-1
keep their ids), others by name.
"""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.errors import DataError, KnobError, require
from offramp.inputs.files import SUFFIXES, Columns, Row, find_columns, read_rows, text_of
from offramp.inputs.tokens import Text
from offramp.tasks import Task, class_name, is_indicator, make_task, split_names
from offramp.training.hub import reaches_hub, without_network
from offramp.types import ProblemType

__all__ = ["Examples", "TrainingData", "load_data", "load_examples", "load_known", "row_hashes"]

_log = logging.getLogger(__name__)

_DEV_FILES = ("dev", "validation", "valid", "test")
_DEV_SPLITS = ("validation", "dev", "valid", "validation_matched", "test")
_TEST_NOTE = "{}: there is no dev or validation part, so its test part serves as dev; report nothing on it afterwards"
_NUMBER = re.compile(r"[+-]?(\d+(?P<point>\.\d*)?|(?P<bare>\.\d+))(?P<exponent>[eE][+-]?\d+)?")


@dataclass(frozen=True)
class Examples:
    """N texts and their labels, in the order of the file."""

    texts: list[Text]
    labels: npt.NDArray[Any] | None
    """int64 [N] class ids, bool [N, C], or float32 [N]; None where labels were not needed and not all there."""
    numbers: list[int]
    """Line (Parquet and hub: row) of each text in its source, from 1."""
    source: str
    """File or hub data set."""
    noun: str = "line"
    """What ``numbers`` count, as in ``Row``."""

    def where(self, place: int) -> str:
        """For messages, where the text at a place is found: ``reviews.jsonl, line 3``."""
        return f"{self.source}, {self.noun} {self.numbers[place]}"

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: npt.NDArray[np.int64]) -> Examples:
        """Some of the rows, by their place here."""
        labels = None if self.labels is None else self.labels[rows]
        texts, numbers = [self.texts[i] for i in rows], [self.numbers[i] for i in rows]
        return replace(self, texts=texts, labels=labels, numbers=numbers)


@dataclass(frozen=True)
class TrainingData:
    """What training starts from."""

    train: Examples
    dev: Examples
    columns: Columns
    problem_type: ProblemType
    id2label: dict[int, str]
    notes: tuple[str, ...] = ()
    """Choices made for the user that they should be told of; also logged as warnings."""


@dataclass(frozen=True)
class _Origin:
    """Where the rows of one part come from; nothing is read yet."""

    rows: Iterator[Row]
    source: str
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> class names in the order of their ids, where the data set declares them."""


@dataclass(frozen=True)
class _Part:
    """Rows whose labels are not understood yet."""

    rows: list[Row]
    """Without their values: line numbers for messages."""
    texts: list[Text]
    raws: list[Any]
    columns: Columns
    origin: _Origin

    @property
    def wheres(self) -> list[str]:
        return [row.where for row in self.rows]

    def examples(self, labels: npt.NDArray[Any] | None) -> Examples:
        return Examples(self.texts, labels, [row.number for row in self.rows], self.origin.source, self.rows[0].noun)


def load_data(
    data: str,
    *,
    dev: str | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    problem_type: ProblemType | None = None,
    seed: int = 42,
    limit: int | None = None,
) -> TrainingData:
    """Training and dev rows, and what their labels mean.

    Args:
        data: a folder with ``train.*`` and ``dev.*`` (or ``validation.*``, ``valid.*``; ``test.*`` if there is none of
            them, which a note says); a file; or a hub name, with an optional configuration: ``nyu-mll/glue:sst2``.
            Without a dev part, one row in ten of the training rows becomes it: drawn by ``seed``, by class where
            there are classes.
        dev: a file of dev rows to use instead.
        text_columns: one name, or two for pairs; None: by the usual names.
        label_column: None: by the usual names.
        problem_type: None: inferred from the labels.
        seed: of the split, and of ``limit``.
        limit: at most so many rows of each part, drawn by ``seed`` over all classes. Labels are still those of
            all rows.

    Raises:
        DataError: nothing there, a row without text or label (with its line), a label in dev that training never
            saw, one class only, fewer than two rows.
        MissingExtraError: a hub name or Parquet without ``offramp[train]``.
    """
    train_origin, dev_origin, notes = _parts(data)
    if train_origin is None:
        raise DataError(f"{data} has no train file: name it train.jsonl (or {', '.join(SUFFIXES)})")
    if dev is not None:
        dev_origin, notes = _file(Path(dev)), []
    part = _read(train_origin, text_columns=text_columns, label_column=label_column, need_label=True)
    kind = problem_type or _infer(part.raws)
    _check_labelled(part, kind)
    if problem_type is None and kind == "regression":
        notes.append(f"{data}: labels are decimal numbers, so this is regression; give --problem_type to say otherwise")
    task = make_task(kind, _id2label(part, kind))
    _check_enough(part, task)
    train = part.examples(task.encode_all(part.raws, part.wheres))
    if dev_origin is None:
        train, held_out = _split(train, task, seed)
        notes.append(
            f"{data}: no dev part, so {len(held_out)} of {len(train) + len(held_out)} rows were held out as dev"
        )
    else:
        columns = part.columns
        held_out = _examples(dev_origin, task, columns.text, columns.label, need_labels=True)
    for note in notes:
        _log.warning(note)
    train, held_out = _limited(train, limit, seed), _limited(held_out, limit, seed)
    return TrainingData(train, held_out, part.columns, task.problem_type, dict(task.id2label), tuple(notes))


def load_known(
    data: str,
    id2label: Mapping[int, str],
    *,
    problem_type: ProblemType | None = None,
    dev: str | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    use_labels: bool = True,
    seed: int = 42,
) -> TrainingData:
    """Rows for a model that has its labels already; as ``load_data``, but labels must be the model's, and may lack.

    Args:
        data: as for ``load_data``.
        id2label: the model's.
        problem_type: the model's; None: a number where it has one output, several labels where the data has lists.
        dev: a file of dev rows to use instead.
        text_columns: one name, or two for pairs; None: by the usual names.
        label_column: None: by the usual names.
        use_labels: if not, whatever labels there are are not looked at.
        seed: of the split, where there is no dev part.

    Returns:
        The labels of both parts are None where one of them has a row without.

    Raises:
        DataError: as ``load_data``; a label that the model does not have.
    """
    train_origin, dev_origin, notes = _parts(data)
    if train_origin is None:
        raise DataError(f"{data} has no train file: name it train.jsonl, or give one file with --data")
    if dev is not None:
        dev_origin, notes = _file(Path(dev)), []
    part = _read(train_origin, text_columns=text_columns, label_column=label_column, need_label=False)
    parts = [part]
    if dev_origin is not None:
        columns = part.columns
        parts.append(
            _read(dev_origin, text_columns=columns.text, label_column=label_column, prefer=columns, need_label=False)
        )
    if len(part.raws) < 2:
        raise DataError(f"{part.origin.source} has fewer than two rows: there is nothing to learn from")
    several = use_labels and _infer([raw for raw in part.raws if raw is not None]) == "multi_label_classification"
    by_shape: ProblemType = "multi_label_classification" if several else "single_label_classification"
    task = make_task(problem_type or ("regression" if len(id2label) == 1 else by_shape), id2label)
    train, *held = _known_labels(parts, task, use_labels, notes)
    if not held:
        train, *held = _split(train, task, seed)
        notes.append(f"{data}: no dev part, so {len(held[0])} of {len(part.raws)} rows were held out as dev")
    for note in notes:
        _log.warning(note)
    return TrainingData(train, held[0], part.columns, task.problem_type, dict(task.id2label), tuple(notes))


def _known_labels(parts: Sequence[_Part], task: Task, use_labels: bool, notes: list[str]) -> list[Examples]:
    """Parts with a model's labels; without any where a row lacks one."""
    without = sum(_is_unlabelled(raw, task.problem_type) for part in parts for raw in part.raws)
    rows = sum(len(part.raws) for part in parts)
    if use_labels and 0 < without < rows:
        notes.append(f"{without} of {rows} rows have no label, so those of the others are not used either")
    if without or not use_labels:
        return [part.examples(None) for part in parts]
    found = []
    for part in parts:
        raws = [_by_number(raw, task.id2label) for raw in part.raws]
        try:
            found.append(part.examples(task.encode_all(raws, part.wheres)))
        except DataError as error:
            raise DataError(
                f"{error}: labels must be the model's own; give --no-labels to learn from its answers instead"
            ) from None
    return found


def _by_number(raw: Any, id2label: Mapping[int, str]) -> Any:
    """``LABEL_3`` is the fourth label of a model, also where the model has a name for it."""
    if _is_list(raw):
        return [_by_number(item, id2label) for item in raw]
    default = re.fullmatch(r"LABEL_(\d+)", raw.strip()) if isinstance(raw, str) else None
    if default is None or raw.strip() in id2label.values():
        return raw
    return id2label.get(int(default[1]), raw)


def load_examples(
    path: str,
    task: Task,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    prefer: Columns | None = None,
    need_labels: bool = True,
    read_labels: bool = True,
    limit: int | None = None,
    seed: int = 42,
) -> Examples:
    """Rows to record or evaluate: a file, the dev part of a folder, or the dev part of a hub data set.

    Args:
        path: as ``data`` of ``load_data``.
        task: what the labels mean.
        text_columns: one name, or two for pairs; None: those of ``prefer``, or else by the usual names.
        label_column: None: likewise.
        prefer: the columns a model was trained on, taken where the data has them.
        need_labels: whether a row without a label is an error. If not, labels are still read where every row has one.
        read_labels: False: they are not looked at, whatever they are.
        limit: at most so many rows, drawn by ``seed`` over all classes.
        seed: of ``limit``.

    Raises:
        DataError: as ``load_data``; a label the task does not know; a folder without a dev part.
    """
    train_origin, origin, notes = _parts(path)
    if Path(path).is_file():
        origin = train_origin
    if origin is None:
        raise DataError(f"{path} has no dev part (dev, validation, valid or test): name the file to read instead")
    for note in notes:
        _log.warning(note)
    examples = _examples(
        origin, task, text_columns, label_column, prefer=prefer, need_labels=need_labels, read_labels=read_labels
    )
    return _limited(examples, limit, seed)


def row_hashes(texts: Sequence[Text]) -> npt.NDArray[np.uint64]:
    """[N] digests by which a text is known again, though it be spaced, composed or capitalised otherwise.

    8 bytes of BLAKE2b of its UTF-8: in Unicode's NFC, case folded, without format characters (such as a space of no
    width), one space for each run of whitespace and none at the ends; pairs, each half so, are joined with U+001F.
    """
    # Runs of an earlier offramp hold hashes of texts as they stood: there only what is normal already is found.
    joined = (_normal(text) if isinstance(text, str) else "\x1f".join(map(_normal, text)) for text in texts)
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in joined)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _normal(text: str) -> str:
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    return " ".join(text.casefold().split())


# Where rows come from


def _parts(data: str) -> tuple[_Origin | None, _Origin | None, list[str]]:
    """Training and dev part of what ``data`` names, and notes. A file is a training part."""
    path = Path(data)
    if path.is_file():
        return _file(path), None, []
    if path.is_dir():
        return _folder(path)
    like_a_path = path.is_absolute() or data.startswith(".") or data.endswith("/") or data.count("/") > 1
    if path.suffix.lower() in SUFFIXES or like_a_path:
        raise DataError(f"there is no file or folder {data}: check the name")
    return _hub(data)


def _file(path: Path) -> _Origin:
    return _Origin(read_rows(path), str(path))


def _folder(folder: Path) -> tuple[_Origin | None, _Origin | None, list[str]]:
    train = _named(folder, "train")
    name, dev = next(((name, found) for name in _DEV_FILES if (found := _named(folder, name))), ("", None))
    if train is None and dev is None:
        present = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder} holds neither train.* nor dev.* (but {present}): name the files so, or give one")
    notes = [_TEST_NOTE.format(folder)] if name == "test" else []
    return _file(train) if train else None, _file(dev) if dev else None, notes


def _named(folder: Path, stem: str) -> Path | None:
    """The file of that name with any ending we read."""
    found = sorted(file for file in folder.iterdir() if file.stem == stem and file.suffix.lower() in SUFFIXES)
    if len(found) > 1:
        raise DataError(f"{folder} has several {stem} files ({', '.join(file.name for file in found)}): keep one")
    return found[0] if found else None


def _hub(data: str) -> tuple[_Origin | None, _Origin | None, list[str]]:
    datasets = require("datasets", extra="train")
    name, _, config = data.partition(":")
    reached = reaches_hub()  # datasets would ask six times, and a name of the hub's may be a folder's, misspelt
    try:
        with nullcontext() if reached else without_network():
            splits = datasets.load_dataset(name, config or None)
    except Exception as error:  # whatever the network, the hub and its files come up with
        if not reached:
            raise DataError(
                f"{data} is no file or folder here, and the hub cannot be reached: check the name, or the network"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{data} is no file or folder here, and the hub did not give a data set of that name ({reason}): "
            "check the name, or give a file"
        ) from error
    if "train" not in splits and not any(split in splits for split in _DEV_SPLITS):
        raise DataError(f"{data} has neither a train nor a validation split (but {', '.join(splits)})")
    held_out = next((split for split in _DEV_SPLITS if split in splits), None)
    notes = [_TEST_NOTE.format(data)] if held_out == "test" else []
    train = _hub_split(datasets, data, "train", splits) if "train" in splits else None
    return train, _hub_split(datasets, data, held_out, splits) if held_out else None, notes


def _hub_split(datasets: Any, data: str, name: str, splits: Any) -> _Origin:
    """One split; class ids become names, and -1, which means unlabelled, becomes None."""
    split, source = splits[name], f"{data} ({name})"
    names: dict[str, tuple[str, ...]] = {}
    for column, feature in split.features.items():
        inner = feature.feature if isinstance(feature, datasets.List | datasets.LargeList) else feature
        if isinstance(inner, datasets.ClassLabel):
            names[column] = tuple(inner.names)

    def rows() -> Iterator[Row]:
        number = 0
        for batch in split.iter(batch_size=1000):
            for values in zip(*batch.values(), strict=True):
                number += 1
                row = {key: _by_name(value, names.get(key)) for key, value in zip(batch, values, strict=True)}
                yield Row(row, number, source, "row")

    return _Origin(rows(), source, names)


def _by_name(value: Any, names: tuple[str, ...] | None) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_by_name(item, names) for item in value]
    return None if value == -1 else names[value]


def _read(
    origin: _Origin,
    *,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    prefer: Columns | None = None,
    need_label: bool,
) -> _Part:
    """All rows of a part; where the columns are is told by the first."""
    columns: Columns | None = None
    rows, texts, raws = [], [], []
    for row in origin.rows:
        if columns is None:
            columns = find_columns(
                row.values,
                text_columns=text_columns,
                label_column=label_column,
                prefer=prefer,
                need_label=need_label,
                where=origin.source,
            )
        texts.append(text_of(row, columns))
        raws.append(None if columns.label is None else row.values.get(columns.label))
        rows.append(Row({}, row.number, row.source, row.noun))
    if columns is None:
        raise DataError(f"{origin.source} is empty: no row was found in it")
    return _Part(rows, texts, raws, columns, origin)


def _examples(
    origin: _Origin,
    task: Task,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    *,
    prefer: Columns | None = None,
    need_labels: bool,
    read_labels: bool = True,
) -> Examples:
    """A part read with labels that are already understood."""
    part = _read(origin, text_columns=text_columns, label_column=label_column, prefer=prefer, need_label=need_labels)
    if not read_labels:
        return part.examples(None)
    if not need_labels and any(_is_unlabelled(raw, task.problem_type) for raw in part.raws):
        return part.examples(None)
    return part.examples(task.encode_all(part.raws, part.wheres))


# What labels mean


def _is_unlabelled(raw: Any, kind: ProblemType) -> bool:
    if kind == "multi_label_classification" and isinstance(raw, str):
        return False  # an empty string is the only way a CSV file can say that no label applies
    return not _is_list(raw) and class_name(raw) is None


def _is_list(raw: Any) -> bool:
    return isinstance(raw, list | tuple | np.ndarray)


def _check_labelled(part: _Part, kind: ProblemType) -> None:
    for row, raw in zip(part.rows, part.raws, strict=True):
        try:
            unlabelled = _is_unlabelled(raw, kind)
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from None
        if unlabelled:
            several = any(isinstance(one, str) and "|" in one for one in part.raws)
            raise DataError(
                f"{row.where} has no label: training needs one in every row"
                + " (where texts have several, and empty means none: --problem-type multi_label_classification)"
                * several
            )


def _check_enough(part: _Part, task: Task) -> None:
    if len(part.raws) < 2:
        raise DataError(f"{part.origin.source} has fewer than two rows: there is nothing to learn from")
    if task.problem_type == "single_label_classification":
        present = {class_name(raw) for raw in part.raws}
        if len(present) < 2:
            raise DataError(f"{part.origin.source}: every row has the label {present.pop()!r}: training needs two")


def _infer(raws: Sequence[Any]) -> ProblemType:
    """The kind of task that labels speak of."""
    if any(_is_list(raw) for raw in raws):
        return "multi_label_classification"
    decimal = False
    for raw in raws:
        if isinstance(raw, float):
            decimal = True
        elif isinstance(raw, str):
            number = _NUMBER.fullmatch(raw.strip())
            if number is None:
                return "single_label_classification"
            decimal = decimal or any(number.groupdict().values())
        elif isinstance(raw, bool):
            return "single_label_classification"
    return "regression" if decimal else "single_label_classification"


def _id2label(part: _Part, kind: ProblemType) -> dict[int, str]:
    """Names of the outputs, in the order of their ids."""
    label = part.columns.label or ""
    if kind == "regression":
        return {0: label}
    names = part.origin.names.get(label)
    if names is None and kind == "multi_label_classification":
        names = _label_names(part)
    elif names is None:
        names = _ordered({class_name(raw) or "" for raw in part.raws})
    return dict(enumerate(names))


def _label_names(part: _Part) -> tuple[str, ...]:
    """Names of the labels of a multi-label part: of lists of names or ids, zeros and ones, or joined strings."""
    widths = {len(raw) if _is_list(raw) and is_indicator(list(raw)) else 0 for raw in part.raws}
    if len(widths) == 1 and (width := widths.pop()) > 1:
        return tuple(map(str, range(width)))
    # A comma parts names only where no row uses a bar: names may hold commas.
    bars = any(isinstance(raw, str) and "|" in raw for raw in part.raws)
    names = set()
    for row, raw in zip(part.rows, part.raws, strict=True):
        if isinstance(raw, str):
            items: Sequence[Any] = split_names(
                raw, known={raw.strip(): 0} if bars and raw.strip() and "|" not in raw else {}
            )
        elif _is_list(raw):
            items = raw
        else:
            raise DataError(f"{row.where}: the labels must be a list of names, not {raw!r}")
        named = {class_name(item) for item in items}
        if None in named:
            raise DataError(f"{row.where} has an empty name among its labels: {list(items)!r}")
        names |= {name for name in named if name is not None}
    if not names:
        raise DataError(f"{part.origin.source}: no row has any label: there is nothing to learn from")
    return _ordered(names)


def _ordered(names: set[str]) -> tuple[str, ...]:
    """By number where all are whole numbers, else by name."""
    whole = all(re.fullmatch(r"-?\d+", name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if whole else 0, name)))


# Drawing rows


def _split(examples: Examples, task: Task, seed: int) -> tuple[Examples, Examples]:
    """Nine rows in ten for training and one, at least, for dev."""
    total = len(examples)
    order = _by_class(examples, seed)
    if task.problem_type == "single_label_classification" and examples.labels is not None:
        _, first = np.unique(examples.labels[order], return_index=True)
        rest = np.delete(order, first)  # one row of each class stays in training
        order = rest if len(rest) else order
    held_out = _spread(order, min(max(1, round(total / 10)), len(order)))
    return examples.select(np.setdiff1d(np.arange(total), held_out)), examples.select(held_out)


def _limited(examples: Examples, limit: int | None, seed: int) -> Examples:
    if limit is None or limit >= len(examples):
        return examples
    if limit < 1:
        raise KnobError(f"limit must be 1 row or more, not {limit}")
    return examples.select(_spread(_by_class(examples, seed), limit))


def _by_class(examples: Examples, seed: int) -> npt.NDArray[np.int64]:
    """Rows shuffled, and then, where there are classes, those of a class side by side."""
    order = np.random.default_rng(seed).permutation(len(examples))
    if examples.labels is None or examples.labels.dtype != np.int64:
        return order
    return order[np.argsort(examples.labels[order], kind="stable")]


def _spread(order: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Every so manieth of the rows, in file order: each run of like rows gives its share, to within one row."""
    places = ((np.arange(count) + 0.5) * len(order) / count).astype(np.int64)
    return np.sort(order[places])
