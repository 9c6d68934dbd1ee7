"""Rows from files, one at a time, each with the line it stood on, so that every complaint can name the line.

JSON lines, CSV, TSV, Parquet and plain text; standard input too. Files are UTF-8, with or without a byte order mark.
Nothing is held in memory but the row at hand (a ``.json`` file that is one list excepted).

Which columns hold the texts is found by the usual names. Where several fit: pairs come before single texts
(``question`` + ``sentence`` before ``sentence``), and earlier names before later ones in ``PAIRS``, ``SINGLES`` and
``LABELS``. The order within a pair is the one written there, whatever the order of the columns in the file.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO, cast, get_args

from offramp.errors import DataError, require
from offramp.inputs.tokens import Text

__all__ = [
    "LABELS",
    "PAIRS",
    "SINGLES",
    "SUFFIXES",
    "Columns",
    "Format",
    "Row",
    "find_columns",
    "read_rows",
    "text_of",
]

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "text"]

SUFFIXES: Mapping[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
}
"""File name endings and what they mean. ``json``: one list of objects, or JSON lines."""

PAIRS: tuple[tuple[str, str], ...] = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "answer"),
    ("query", "passage"),
    ("query", "document"),
    ("text", "text_pair"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
)
SINGLES: tuple[str, ...] = (
    "text", "sentence", "review", "content", "question", "query", "comment", "tweet", "message", "utterance",
    "document", "body", "title",
)  # fmt: skip
LABELS: tuple[str, ...] = (
    "label", "labels", "target", "class", "category", "score", "rating", "sentiment", "intent", "stars",
)  # fmt: skip

_BOM = "\ufeff"
_STDIN = "standard input"


@dataclass(frozen=True, slots=True)
class Row:
    """One example as it stands in a file."""

    values: Mapping[str, object]
    """Column -> value: strings from CSV, TSV and text; whatever JSON and Parquet hold. Absent fields are None."""
    number: int
    """Its line in the file, from 1 (where it begins); its place for Parquet, JSON lists and hub data sets."""
    source: str
    """Which file, for messages."""
    noun: str = "line"
    """What ``number`` counts: ``line``, ``row`` or ``item``."""

    @property
    def where(self) -> str:
        """For messages: ``reviews.jsonl, line 3``."""
        return f"{self.source}, {self.noun} {self.number}"


@dataclass(frozen=True)
class Columns:
    """Where a row's texts and label are."""

    text: tuple[str] | tuple[str, str]
    label: str | None = None


def read_rows(source: str | Path | TextIO, *, format: Format | None = None) -> Iterator[Row]:
    """Rows of a file, of standard input (``"-"``), or of an open text stream.

    A file's format is told by its ending. A stream holds JSON lines if its first character besides white space is
    ``{``, a JSON list of objects if it begins as one, and one text a line (column ``text``) if not. Blank lines are
    rows of a text file (their text is empty), and are passed over elsewhere.

    Args:
        source: where to read.
        format: read it as this, whatever its name or first character says.

    Raises:
        DataError: at once, where the file is missing, a folder, or of no known format; while rows are drawn, where
            there are none, and where bytes are not UTF-8, JSON is cut short or no object, a CSV row has more fields
            than the header, or a quote is not closed; always with the line.
        MissingExtraError: Parquet without pyarrow.
    """
    if format is not None and format not in get_args(Format):
        raise DataError(f"no format is called {format!r}: there are {', '.join(get_args(Format))}")
    if not isinstance(source, str | Path):
        return _rows_of_stream(source, _name(source), format)
    if str(source) == "-":
        # The bytes beneath, where there are any: the terminal's encoding is not the data's.
        stream = sys.stdin.buffer if isinstance(sys.stdin, io.TextIOWrapper) else sys.stdin
        return _rows_of_stream(stream, _STDIN, format)
    path = Path(source)
    if not path.exists():
        raise DataError(f"there is no file {path}: check the name")
    if path.is_dir():
        raise DataError(f"{path} is a folder: name a file in it")
    return _rows_of_file(path, format or _format_of(path))


def _name(stream: TextIO) -> str:
    name = stream.name if isinstance(stream, io.TextIOWrapper) else None  # StringIO has none
    return name if isinstance(name, str) else "the stream"  # and a pipe's is a number


def _format_of(path: Path) -> Format:
    try:
        return SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise DataError(
            f"{path} has no ending that says how to read it: rename it to one of {', '.join(SUFFIXES)}"
        ) from None


def _rows_of_file(path: Path, format: Format) -> Iterator[Row]:
    source = str(path)
    if format == "parquet":
        yield from _never_empty(_parquet(path), source)
        return
    try:
        opened = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    with opened:
        yield from _parse(opened, source, format)


def _rows_of_stream(stream: BinaryIO | TextIO, source: str, format: Format | None) -> Iterator[Row]:
    if format == "parquet":
        raise DataError(f"{source} cannot be read as Parquet, which has no lines: name the file instead")
    return _parse(stream, source, format)  # whoever opened it closes it


def _parse(stream: BinaryIO | TextIO, source: str, format: Format | None) -> Iterator[Row]:
    lines = _lines(stream, source)
    if format is None:
        first, lines = _first_line(lines)
        format = "jsonl" if first.startswith("{") else "json" if _LIST.match(first) else "text"
    elif format == "json":
        first, lines = _first_line(lines)
        format = "json" if first.startswith("[") else "jsonl"
    yield from _never_empty(_PARSERS[format](lines, source), source)


def _never_empty(rows: Iterator[Row], source: str) -> Iterator[Row]:
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source} is empty: no row was found in it")
    yield first
    yield from rows


def _lines(stream: BinaryIO | TextIO, source: str) -> Iterator[str]:
    """Decoded lines with their ends. Only a newline ends a line: JSON may hold U+2028 and its like."""
    number = 0
    try:
        for raw in stream:
            line = raw if isinstance(raw, str) else raw.decode("utf-8")
            yield line.removeprefix(_BOM) if number == 0 else line
            number += 1
    except UnicodeDecodeError as error:
        at = "at or after line" if isinstance(stream, io.TextIOBase) else "line"  # text streams decode ahead
        raise DataError(
            f"{source}, {at} {number + 1}: bytes that are not UTF-8 ({error.reason}): save the file as UTF-8"
        ) from error


_LIST = re.compile(r"\[\s*(\{|$)")
"""How a list of JSON objects begins; a text may begin with a bracket too."""


def _first_line(lines: Iterator[str]) -> tuple[str, Iterator[str]]:
    """The first line that is not empty, without white space around it (empty: there is none), and all lines again."""
    seen = []
    for line in lines:
        seen.append(line)
        if stripped := line.strip():
            return stripped, itertools.chain(seen, lines)
    return "", iter(seen)


def _json_lines(lines: Iterable[str], source: str) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line.rstrip("\r\n"))  # or a string cut short would be one with a line break in it
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{source}, line {number} is not JSON, or is cut short ({_reason(error)}): "
                "each line must be one whole object"
            ) from error
        if not isinstance(values, dict):
            raise DataError(
                f"{source}, line {number} is not a JSON object but {_kind(values)}: "
                'write each row as {"text": ..., "label": ...}'
            )
        yield Row(values, number, source)


def _reason(error: Exception) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg.removesuffix(' at')} at character {_place(error)[1]}"


def _place(error: json.JSONDecodeError) -> tuple[int, int]:
    """Line and character, from 1. What ends too soon ends with its last line, not with the empty one after it."""
    at = min(error.pos, len(error.doc.rstrip()))
    return error.doc.count("\n", 0, at) + 1, at - error.doc.rfind("\n", 0, at)


def _kind(value: object) -> str:
    """A JSON value's type in words."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", int: "a number"}
    return names.get(type(value), "a number" if isinstance(value, float) else type(value).__name__)


def _json_list(lines: Iterable[str], source: str) -> Iterator[Row]:
    try:
        items = json.loads("".join(lines))
    except (ValueError, RecursionError) as error:
        line = f", line {_place(error)[0]}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{source}{line} is not JSON, or is cut short ({_reason(error)})") from error
    for number, values in enumerate(items, 1):
        if not isinstance(values, dict):
            raise DataError(f"{source}, item {number} is not a JSON object but {_kind(values)}")
        yield Row(values, number, source, "item")


def _plain(lines: Iterable[str], source: str) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        yield Row({"text": line.removesuffix("\n").removesuffix("\r")}, number, source)


def _reader(lines: Iterable[str], delimiter: str) -> Any:
    csv.field_size_limit(2**31 - 1)  # the module's limit of 131,072 is less than a long document
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _comma_separated(lines: Iterable[str], source: str) -> Iterator[Row]:
    reader = _reader(lines, ",")
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        fields = _next_fields(reader, source, number)
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = _header(fields, source, number)
        else:
            yield _row(header, fields, source, number)


def _next_fields(reader: Iterator[list[str]], source: str, number: int) -> list[str] | None:
    """Fields of the next row; None: there is none."""
    try:
        return next(reader, None)
    except csv.Error as error:
        raise DataError(
            f"{source}, line {number} begins a row that cannot be read ({error}): a field with quotes, line "
            'breaks or separators stands in "quotes", and a quote inside it is doubled'
        ) from error


def _row(header: list[str], fields: list[str], source: str, number: int) -> Row:
    if len(fields) > len(header):
        raise DataError(
            f"{source}, line {number} has {len(fields)} fields, but the header names {len(header)} columns: "
            'put fields that hold the separator in "quotes"'
        )
    missing = len(header) - len(fields)
    return Row(dict(zip(header, [*fields, *[None] * missing], strict=True)), number, source)


def _header(fields: list[str], source: str, number: int) -> list[str]:
    names = [field.strip() for field in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{source}, line {number} names column {twice[0]!r} twice: rename one of them")
    return names


def _tab_separated(lines: Iterable[str], source: str) -> Iterator[Row]:
    """Most TSV knows no quotes, and then one at the beginning of a text begins nothing: a line is a row, if it can be.

    Where it has another number of fields than the header, and one of them opens a quote that its end does not close,
    it is read as CSV is: the field may hold tabs, and go on over lines.
    """
    rest, number = iter(lines), 0
    header: list[str] | None = None
    for line in rest:
        number += 1
        bare = line.rstrip("\r\n")
        if not bare:
            continue
        fields, begun = bare.split("\t"), number
        if header is not None and len(fields) != len(header) and any(map(_is_open, fields)):
            reader = _reader(itertools.chain([line], rest), "\t")
            fields = _next_fields(reader, source, begun) or []
            number += reader.line_num - 1
        else:
            fields = [_unquoted(field) for field in fields]
        if header is None:
            header = _header(fields, source, begun)
        else:
            yield _row(header, fields, source, begun)


_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def _is_open(field: str) -> bool:
    """Whether a field begins with a quote that does not end with it."""
    return field.startswith('"') and not _QUOTED.fullmatch(field)


def _unquoted(field: str) -> str:
    """What stands in quotes, if a whole field does."""
    quoted = _QUOTED.fullmatch(field)
    return quoted[1].replace('""', '"') if quoted else field


_PARSERS: Mapping[Format, Callable[[Iterator[str], str], Iterator[Row]]] = {
    "jsonl": _json_lines,
    "json": _json_list,
    "text": _plain,
    "csv": _comma_separated,
    "tsv": _tab_separated,
}


def _parquet(path: Path) -> Iterator[Row]:
    parquet = require("pyarrow.parquet", extra="train")
    arrow = require("pyarrow", extra="train")
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, number, str(path), "row")
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet (after row {number}): {error}") from error


def find_columns(
    columns: Iterable[str],
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    prefer: Columns | None = None,
    need_label: bool,
    where: str = "the data",
) -> Columns:
    """Which columns hold the texts and the label: those given, else those preferred, else those with the usual names.

    Names are compared without regard to case. The label is looked for also where it is not needed; a column that holds
    text is never taken for it.

    Args:
        columns: names present.
        text_columns: one name, or two for pairs.
        label_column: its name.
        prefer: what a model was trained on: taken where nothing is given and it is there.
        need_label: whether it is an error to find no label.
        where: the file, for messages.

    Raises:
        DataError: a given column is absent, or none has a usual name; lists the columns and says what option to give.
            Pairs were found where single texts are preferred, or the other way round.
    """
    present = list(columns)
    if text_columns is None and prefer is not None and set(prefer.text) <= set(present):
        text_columns = prefer.text
    if label_column is None and prefer is not None and prefer.label in present:
        label_column = prefer.label
    text = _given_text(present, text_columns, where) if text_columns is not None else _usual_text(present)
    if text is None:
        raise DataError(
            f"{where} has no text column with a usual name (it has {_listed(present)}): name one, or two for pairs, "
            "with --text_columns"
        )
    if text_columns is None and prefer is not None and len(text) != len(prefer.text):
        raise DataError(
            f"{where} has text in {' and '.join(text)}, but the model was trained on {_listed(prefer.text)}, "
            + _how_to_give(prefer)
        )
    if label_column is not None:
        if label_column not in present:
            raise DataError(
                f"{where} has no column {label_column!r} (it has {_listed(present)}): name the label with "
                "--label_column"
            )
        if label_column in text:
            raise DataError(f"column {label_column!r} cannot be text and label at once: give another --label_column")
        return Columns(text, label_column)
    label = next(iter(_matching(LABELS, [name for name in present if name not in text])), None)
    if label is None and need_label:
        raise DataError(
            f"{where} has no label column with a usual name (it has {_listed(present)}): name it with --label_column"
        )
    return Columns(text, label)


def _how_to_give(columns: Columns) -> str:
    """What a row must look like for a model that was trained on these columns."""
    if len(columns.text) == 1:
        return "a single text: name the column to read with --text_columns"
    row = ", ".join(f"{json.dumps(name, ensure_ascii=False)}: ..." for name in columns.text)
    return f"a pair: give both in each row, such as {{{row}}}, or name the two columns to read with --text_columns"


def _given_text(present: list[str], names: Sequence[str], where: str) -> tuple[str] | tuple[str, str]:
    names = (names,) if isinstance(names, str) else tuple(names)
    if len(names) not in (1, 2):
        raise DataError(f"--text_columns takes one column, or two for pairs, not {len(names)}")
    for name in names:
        if name not in present:
            raise DataError(
                f"{where} has no column {name!r} (it has {_listed(present)}): name the text with --text_columns"
            )
    if len(set(names)) < len(names):
        raise DataError(f"--text_columns names {names[0]!r} twice: a pair is made of two columns")
    return cast("tuple[str] | tuple[str, str]", names)


def _usual_text(present: list[str]) -> tuple[str] | tuple[str, str] | None:
    for pair in PAIRS:
        found = _matching(pair, present)
        if len(found) == 2:
            return found[0], found[1]
    single = _matching(SINGLES, present)
    return (single[0],) if single else None


def _matching(names: Iterable[str], present: Sequence[str]) -> list[str]:
    """Those of ``names`` that are there, in the order of ``names``, as the file spells them."""
    spelled = {column.strip().lower(): column for column in reversed(present)}  # of several, the first
    return [spelled[name.lower()] for name in names if name.lower() in spelled]


def _listed(columns: Sequence[str], most: int = 12) -> str:
    more = f" and {len(columns) - most} more" if len(columns) > most else ""
    return (", ".join(columns[:most]) or "no columns") + more


def text_of(row: Row, columns: Columns) -> Text:
    """A row's text, or its pair of texts. Empty strings are texts.

    Raises:
        DataError: a text is missing, not a string, or not Unicode (half of a surrogate pair); names the line.
    """
    texts = tuple(_text(row, name) for name in columns.text)
    return texts[0] if len(texts) == 1 else cast("tuple[str, str]", texts)


def _text(row: Row, name: str) -> str:
    text = row.values.get(name)
    if text is None:
        raise DataError(f"{row.where} has no {name!r}: every row needs its text")
    if not isinstance(text, str):
        raise DataError(f"{row.where}: {name!r} is {_kind(text)}, not a string")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(
                f"{row.where}: {name!r} holds half of a surrogate pair, which is no character: clean the text"
            ) from None
    return text
