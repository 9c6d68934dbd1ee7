"""Sentences to choose on have nothing in common with those that are scored."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from offramp.demo.reviews import Review

LONG = "A slow, stately film about a clockmaker and the sea, and none the worse for it"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def test_only_what_shares_no_run_of_letters_is_kept() -> None:
    module = importlib.import_module("review_sentences")
    other = "Nobody in this comedy of errors seems to have read the script before they shot it"
    given = [
        Review(LONG.upper(), "positive", "a"),
        Review(f"The critic writes: {LONG[5:60].lower()} ...", "positive", "a"),
        Review(other, "negative", "b"),
        Review(other.replace(" ", "  "), "negative", "c"),
        Review("Too short to tell", "negative", "d"),
    ]
    assert list(module.unrelated(given, [LONG, "and the sea"])) == [given[2]]
    assert list(module.unrelated(given, [])) == [given[0], given[1], given[2]]
    # A short row stands whole in a longer sentence; a few words that anybody writes are no row.
    assert list(module.unrelated(given[:3], ["This comedy of errors!"])) == given[:2]
    assert list(module.unrelated(given[:3], ["the script"])) == given[:3]
