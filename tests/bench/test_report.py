from __future__ import annotations

import re
from base64 import b64decode
from html.parser import HTMLParser
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from offramp.bench.report import as_table, render_html

IMAGE = b"\x89PNG of some kind"


class Balance(HTMLParser):
    """Counts what opens and closes, and collects every address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_holds_all_it_shows(result: dict[str, Any]) -> None:
    texts = [f"<script>alert({i})</script> & more" for i in range(40)]
    page = render_html(result, IMAGE, texts=texts, title="a <b> run", notes={"commit": "<abc>"})
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    [address] = parser.addresses
    assert b64decode(address.removeprefix("data:image/png;base64,"), validate=True) == IMAGE
    assert not re.search(r"https?:|url\(|@import|<script|<link", page)
    assert "&lt;script&gt;alert(" in page
    assert "a &lt;b&gt; run" in page
    assert "&lt;abc&gt;" in page
    assert "&lt;no&gt;" in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    for row in result["rows"]:
        assert f">{row['name']}</td>" in page
    assert "not reached" in page


def test_long_texts_are_cut(result: dict[str, Any]) -> None:
    page = render_html(result, IMAGE, texts=["x" * 5000] * 40)
    assert "x" * 400 + " ..." in page
    assert "x" * 401 not in page


def test_without_texts_rows_are_numbered(result: dict[str, Any]) -> None:
    assert f"row {result['examples']['hardest'][0]['index']}<" in render_html(result, IMAGE)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("multi_label_classification", ("<td>a, &lt;b&gt;</td><td>(none) (wrong)</td>", "the whole set is right")),
        ("regression", ("<td>2.5</td><td>0.1235 (off by 2.377)</td>", "the error, the smaller the better")),
    ],
)
def test_examples_of_other_tasks(result: dict[str, Any], kind: str, told: tuple[str, str]) -> None:
    one = {"index": 0, "layer": 2, "label": ["a", "<b>"], "answer": [], "right": False, "error": None}
    if kind == "regression":
        one |= {"label": 2.5, "answer": 0.12345, "right": None, "error": 2.37655}
    examples = {"by": "some row", "easiest": [one], "hardest": [one]}
    page = render_html(result | {"problem_type": kind, "examples": examples}, IMAGE)
    assert "By where some row lets them leave at 2x" in page
    for part in told:
        assert part in page
    for heading in ("Easiest: leave first", "Hardest: stay longest"):
        assert heading in page


def test_without_examples_there_is_no_heading(result: dict[str, Any]) -> None:
    page = render_html(result | {"examples": {"by": None, "easiest": [], "hardest": []}}, IMAGE)
    assert "asiest" not in page


def test_table(result: dict[str, Any]) -> None:
    output = StringIO()
    Console(file=output, width=140).print(as_table(result))
    shown = output.getvalue()
    cell = result["rows"][0]["cells"][1]
    assert f"{100 * cell['score']:.1f} ({cell['layer_speedup']:.2f}x)" in shown
    assert f"{100 * cell['interval'][0]:.1f} to {100 * cell['interval'][1]:.1f}" in shown
    assert "not reached" in shown
    assert "full depth" in shown
    assert "oracle" in shown
    assert result["oracle"]["rule"] not in shown  # it goes by what the table scores


def test_an_oracle_that_goes_by_another_score_than_the_table_says_so(result: dict[str, Any]) -> None:
    rule = "The oracle goes by <accuracy>."
    other = result | {"metric": "f1_micro", "oracle": result["oracle"] | {"rule": rule}}
    output = StringIO()
    Console(file=output, width=140).print(as_table(other))
    assert rule in output.getvalue()
    assert "The oracle goes by &lt;accuracy&gt;." in render_html(other, IMAGE)
    assert "oracle" not in render_html(result | {"oracle": None}, IMAGE)
