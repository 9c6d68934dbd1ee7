from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import DataError
from offramp.inputs.files import LABELS, PAIRS, SINGLES, Columns, Row, find_columns, read_rows, text_of


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> list[tuple[int, Any]]:
    return [(row.number, dict(row.values)) for row in read_rows(path)]


ROWS = [{"text": 'a "gem", they\u2028say', "label": "good"}, {"text": "two\nlines\tünïcödé", "label": "bad"}]


def test_every_format_holds_the_same_rows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    write(tmp_path / "a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    write(tmp_path / "lines.json", "\n".join(map(json.dumps, ROWS)))
    write(tmp_path / "list.json", json.dumps(ROWS, indent=2))
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    numbers = {"a.jsonl": [1, 2], "lines.json": [1, 2], "list.json": [1, 2], "a.parquet": [1, 2]}
    numbers |= {"a.csv": [2, 3], "a.tsv": [2, 3]}
    for name, expected in numbers.items():
        assert read(tmp_path / name) == list(zip(expected, ROWS, strict=True)), name


@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")), min_size=2, max_size=2),
        min_size=1,
    )
)
def test_whatever_csv_writes_is_read_back_with_its_line(rows: list[list[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(["a", "b"])
    starts = []
    for row in rows:
        starts.append(text.getvalue().count("\n") + 1)
        writer.writerow(row)
    text.seek(0)
    found = list(read_rows(text, format="csv"))
    assert [list(row.values.values()) for row in found] == rows
    assert [row.number for row in found] == starts


def test_csv_particulars(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "\ufefftext , label\r\n\r\nshort\r\n" + '"' + "x" * 200_000 + '",1\r\n')
    rows = read(path)
    assert rows[0] == (3, {"text": "short", "label": None})
    assert rows[1][0] == 4
    assert len(rows[1][1]["text"]) == 200_000


def test_plain_text_is_one_text_a_line_blank_lines_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffa gem\r\n\nlast one")
    assert read(path) == [(1, {"text": "a gem"}), (2, {"text": ""}), (3, {"text": "last one"})]


def test_json_lines_pass_over_blank_lines_and_bom(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '\ufeff{"text": "a"}\n\n{"text": "b"}\r\n')
    assert read(path) == [(1, {"text": "a"}), (3, {"text": "b"})]


def test_reading_is_streaming(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\nnot json\n')
    rows = read_rows(path)
    assert next(rows).values == {"text": "a"}
    with pytest.raises(DataError, match="line 2"):
        next(rows)


@pytest.mark.parametrize("kind", [io.StringIO, lambda text: io.TextIOWrapper(io.BytesIO(text.encode()))])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\n  \n" + '{"text": "a"}\n{"text": "b"}', [(3, {"text": "a"}), (4, {"text": "b"})]),
        ("a gem\n{not json\n", [(1, {"text": "a gem"}), (2, {"text": "{not json"})]),
        ("\nsecond", [(1, {"text": ""}), (2, {"text": "second"})]),
    ],
)
def test_standard_input(monkeypatch: pytest.MonkeyPatch, kind: Any, content: str, expected: Any) -> None:
    monkeypatch.setattr(sys, "stdin", kind(content))
    assert [(row.number, row.values) for row in read_rows("-")] == expected


def test_standard_input_is_utf8_whatever_the_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("gëm".encode()), encoding="latin-1"))
    assert next(read_rows("-")).values == {"text": "gëm"}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"fine\n\xff\n")))
    with pytest.raises(DataError, match=r"standard input, line 2: bytes that are not UTF-8"):
        list(read_rows("-"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(DataError, match="standard input is empty"):
        list(read_rows("-"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.jsonl", b"\n \n", r"a\.jsonl is empty"),
        ("a.csv", b"text,label\n", r"a\.csv is empty"),
        ("a.txt", b"", r"a\.txt is empty"),
        ("a.json", b"[]", r"a\.json is empty"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b\xe9"}\n', r"a\.jsonl, line 2: bytes that are not UTF-8"),
        ("a.csv", b'text\n"a\nb"\nc\xff\n', r"a\.csv, line 4: bytes that are not UTF-8"),
        ("a.txt", "ok\n".encode("utf-16"), r"a\.txt, line 1: bytes that are not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b', r"a\.jsonl, line 2 is not JSON, or is cut short"),
        ("a.jsonl", b'{"text": "a"}\n\n[1]\n', r"a\.jsonl, line 3 is not a JSON object but a list"),
        ("a.jsonl", b"[" * 200_000, r"a\.jsonl, line 1 is not JSON"),
        ("a.json", b'[{"text": "a"},\n{"text": ', r"a\.json, line 2 is not JSON, or is cut short"),
        ("a.json", b'[{"text": "a"}, 3]', r"a\.json, item 2 is not a JSON object but a number"),
        ("a.csv", b"text,label\na,b\na,b,c\n", r"a\.csv, line 3 has 3 fields, but the header names 2 columns"),
        ("a.csv", b'text,label\na,b\n"open,b\nmore\n', r"a\.csv, line 3 begins a row that cannot be read"),
        ("a.csv", b"text,label,text\na,b,c\n", r"a\.csv, line 1 names column 'text' twice"),
        ("a.parquet", b"nothing of the kind", r"a\.parquet cannot be read as Parquet"),
        ("a.xlsx", b"x", r"a\.xlsx has no ending .* \.jsonl, .*\.csv, \.tsv, \.parquet, \.txt"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(path))
    assert "\n" not in str(caught.value)


CUT_SHORT = [
    ('{"text": "a"', "Expecting ',' delimiter at character 13"),
    ('{"text": "a",', "at character 14"),
    ('{"text": "a gem', "Unterminated string starting at character 10"),
    ('{"text": "a" ', "at character 13"),
    ('{"text": a}', "Expecting value at character 10"),
    ("{", "at character 2"),
]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", '\n{"text": "next"}\n'])
@pytest.mark.parametrize(("line", "reason"), CUT_SHORT)
def test_a_line_cut_short_is_named_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, reason: str, end: str
) -> None:
    content = '\ufeff{"text": "a"}\n\n' + line + end
    sources: list[Any] = ["-", write(tmp_path / "a.jsonl", content), io.StringIO(content)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    for source in sources:
        with pytest.raises(DataError, match=r"line 3 is not JSON") as caught:
            list(read_rows(source, format="jsonl"))
        assert f"{reason})" in str(caught.value)


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
def test_a_list_cut_short_is_named_with_the_place(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "a.json", '[{"text": "a"},\n {"text": "b"}' + end)
    with pytest.raises(DataError, match=r"a\.json, line 2 is not JSON.* at character 15\)"):
        list(read_rows(path))


def test_what_is_no_file_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*a\.csv"):
        read_rows(tmp_path / "a.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match="no format is called 'xml'"):
        read_rows(tmp_path / "a.csv", format="xml")  # type: ignore[arg-type]


def test_a_format_given_wins_over_the_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.data", '{"text": "a"}')
    assert next(read_rows(path, format="jsonl")).values == {"text": "a"}
    assert next(read_rows(path, format="text")).values == {"text": '{"text": "a"}'}


def test_a_text_stream_with_bad_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n')
    with path.open(encoding="utf-8") as stream, pytest.raises(DataError, match=r"at or after line 1: bytes"):
        list(read_rows(stream))


@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_are_found_in_their_own_order(pair: tuple[str, str]) -> None:
    assert find_columns(["label", *reversed(pair), "idx"], need_label=True) == Columns(pair, "label")


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("single", SINGLES)
def test_usual_names_are_found(single: str, label: str) -> None:
    assert find_columns(["id", single, label], need_label=True) == Columns((single,), label)


def test_ambiguity_pairs_first_then_the_earlier_name() -> None:
    assert find_columns(["sentence", "question", "text"], need_label=False).text == ("question", "sentence")
    assert find_columns(["review", "text"], need_label=False).text == ("text",)
    assert find_columns(["text", "category", "label"], need_label=True).label == "label"
    assert find_columns(["Text", "Sentiment"], need_label=True) == Columns(("Text",), "Sentiment")


def test_given_columns_win() -> None:
    columns = ["text", "body", "label", "category"]
    assert find_columns(columns, text_columns=["body"], label_column="category", need_label=True) == Columns(
        ("body",), "category"
    )
    assert find_columns(columns, text_columns=["body", "text"], need_label=True).text == ("body", "text")
    # A column that is text is not the label.
    assert find_columns(["category", "score"], text_columns=["category"], need_label=True).label == "score"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (["a", "b"], {}, "no text column .* a, b.* --text_columns"),
        (["text", "b"], {}, "no label column .* text, b.* --label_column"),
        (["text", "label"], {"text_columns": ["x"]}, "no column 'x' .*text, label.* --text_columns"),
        (["text", "label"], {"label_column": "y"}, "no column 'y' .*text, label.* --label_column"),
        (["text", "label"], {"text_columns": ["a", "b", "c"]}, "two for pairs, not 3"),
        ([], {}, "no columns"),
        ([f"c{i}" for i in range(20)], {}, "c11 and 8 more"),
    ],
)
def test_missing_columns_say_what_is_there_and_what_to_give(
    columns: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        find_columns(columns, need_label=True, where="a.csv", **options)


def test_labels_may_be_absent_where_they_are_not_needed() -> None:
    assert find_columns(["text"], need_label=False) == Columns(("text",), None)
    assert find_columns(["text", "label"], need_label=False).label == "label"


def test_texts_of_rows() -> None:
    row = Row({"a": "x", "b": "", "n": 3, "half": "\ud83d"}, 7, "f.jsonl")
    assert text_of(row, Columns(("a",))) == "x"
    assert text_of(row, Columns(("b",))) == ""
    assert text_of(row, Columns(("b", "a"))) == ("", "x")
    for column, message in (("absent", "has no 'absent'"), ("n", "'n' is a number"), ("half", "surrogate")):
        with pytest.raises(DataError, match=rf"f\.jsonl, line 7.*{message}"):
            text_of(row, Columns((column,)))


def test_tsv_that_knows_no_quotes_and_tsv_that_does(tmp_path: Path) -> None:
    """A quote at the beginning of a text begins a quoted field only where the line would be no row otherwise."""
    path = tmp_path / "a.tsv"
    path.write_text(
        'text\tlabel\n"a quote begins\tgood\nanother\tbad\nends here"\tgood\n"a ""b"" c"\tbad\n'
        '"two\nlines\tand a tab"\tgood\nlast\tbad\n',
        encoding="utf-8",
    )
    rows = list(read_rows(path))
    assert [row.values["text"] for row in rows] == [
        '"a quote begins', "another", 'ends here"', 'a "b" c', "two\nlines\tand a tab", "last",
    ]  # fmt: skip
    assert [row.values["label"] for row in rows] == ["good", "bad", "good", "bad", "good", "bad"]
    assert [row.number for row in rows] == [2, 3, 4, 5, 6, 8]
    path.write_text('text\tlabel\n"never closed\nmore\tgood\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 2 begins a row that cannot be read"):
        list(read_rows(path))


@pytest.mark.parametrize("text", ['[\n {"text": "a"},\n {"text": "b"}\n]\n', '[{"text": "a"}, {"text": "b"}]'])
def test_a_json_list_on_a_stream(text: str) -> None:
    rows = list(read_rows(io.BytesIO(text.encode())))
    assert [row.values for row in rows] == [{"text": "a"}, {"text": "b"}]


def test_a_text_on_a_stream_may_begin_with_a_bracket() -> None:
    rows = list(read_rows(io.BytesIO(b"[sic] a gem\nanother\n")))
    assert [row.values["text"] for row in rows] == ["[sic] a gem", "another"]
