from __future__ import annotations

import bz2
import csv
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.demo import packages
from offramp.demo.reviews import PARTS, Review, Split, read_reviews, split_by_film, write_parts
from offramp.errors import DataError


def packed(
    path: Path, rows: list[tuple[str, str, str]], columns: tuple[str, ...] = ("category", "text", "movie_name")
) -> Path:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([columns, *rows])
    path.write_bytes(bz2.compress(out.getvalue().encode()))
    return path


def some_reviews(films: int = 40, each: int = 5) -> list[Review]:
    labels = ("positive", "negative")
    return [Review(f"film {f} says {i}", labels[(f + i) % 2], f"film_{f}") for f in range(films) for i in range(each)]


def check_promises(reviews: list[Review], split: Split) -> None:
    """The slow, obvious reading of what a split promises."""
    where: dict[str, set[str]] = {}
    sentences = []
    given_ones = set(reviews)
    for name, part in split.reviews.items():
        for review in part:
            assert review in given_ones
            where.setdefault(review.film, set()).add(name)
            sentences.append(review.text.casefold())
    assert all(len(parts) == 1 for parts in where.values())
    assert len(sentences) == len(set(sentences))
    assert set(sentences) == {review.text.casefold() for review in reviews}
    assert len(sentences) + split.repeated == len(reviews)


def test_reads_labels_and_drops_plots(tmp_path: Path) -> None:
    rows = [
        ("plot", "A man, a plan.", "a"),
        ("fresh", 'A "gem",\nreally', "a"),
        ("rotten", "Café  of cards", "b"),
    ]
    assert read_reviews(packed(tmp_path / "r.csv.bz2", rows)) == [
        Review('A "gem", really', "positive", "a"),
        Review("Café of cards", "negative", "b"),
    ]


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="movie_name"):
        read_reviews(packed(tmp_path / "r.bz2", [("fresh", "x")], columns=("category", "text")))  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"line 3.*stale"):
        read_reviews(packed(tmp_path / "r.bz2", [("fresh", "x", "f"), ("stale", "y", "f")]))
    whole = packed(tmp_path / "r.bz2", [("fresh", f"x {i}", "f") for i in range(99)]).read_bytes()
    for broken in (
        whole[: len(whole) // 2],
        b"not bzip2 at all",
        bz2.compress(b"category,text,movie_name\n\xff\xfe,x,y\n"),
    ):
        (tmp_path / "broken.bz2").write_bytes(broken)
        with pytest.raises(DataError, match=r"broken\.bz2"):
            read_reviews(tmp_path / "broken.bz2")


def test_same_seed_same_split_and_another_seed_another() -> None:
    reviews = some_reviews()
    assert split_by_film(reviews, seed=3) == split_by_film(reviews, seed=3)
    assert split_by_film(reviews, seed=3).reviews["report"] != split_by_film(reviews, seed=4).reviews["report"]
    # The order of films in the file does not matter.
    assert split_by_film(reviews[::-1], seed=3) == split_by_film(reviews, seed=3)


def test_sizes_and_counts() -> None:
    split = split_by_film(some_reviews(films=400, each=3))
    for name, share in PARTS.items():
        assert abs(len(split.reviews[name]) / 1200 - share) < 0.01
        assert split.counts[name].sentences == sum(split.counts[name].labels.values())
        assert split.counts[name].films * 3 == split.counts[name].sentences
    assert sum(count.films for count in split.counts.values()) == 400


def test_repeated_sentences_stay_in_the_earliest_part() -> None:
    reviews = some_reviews()
    train = split_by_film(reviews).reviews["train"][0]
    report = split_by_film(reviews).reviews["report"][0]
    again = Review(train.text.upper(), train.label, report.film)
    split = split_by_film([*reviews, again])
    assert split.repeated == 1
    assert train in split.reviews["train"]
    assert again not in split.reviews["report"]
    check_promises([*reviews, again], split)


@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["Aa", "aa", "b", "c"]), st.booleans()), max_size=200),
    seed=st.integers(0, 5),
)
def test_promises_hold_for_any_films(rows: list[tuple[int, str, bool]], seed: int) -> None:
    reviews = some_reviews(films=60) + [Review(t, "positive" if y else "negative", f"other_{f}") for f, t, y in rows]
    check_promises(reviews, split_by_film(reviews, seed=seed))


def test_too_few_films() -> None:
    with pytest.raises(DataError, match="1 films are too few"):
        split_by_film(some_reviews(films=1))
    with pytest.raises(DataError, match="0 films"):
        split_by_film([])


def test_files(tmp_path: Path) -> None:
    split = split_by_film([*some_reviews(), Review("naïve — «yes»", "positive", "film_0")])
    paths = write_parts(split, tmp_path / "new" / "folder")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(f"{name}.jsonl" for name in PARTS)
    for name, path in paths.items():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert rows == [{"text": r.text, "label": r.label} for r in split.reviews[name]]


def test_old_files_stay_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_parts(split_by_film(some_reviews()), tmp_path)
    before = {path: path.read_bytes() for path in paths.values()}
    dumps, calls = json.dumps, []

    def fail_late(value: object, **settings: bool) -> str:
        calls.append(value)
        if len(calls) > 150:
            raise OSError(28, os.strerror(28))
        return dumps(value, ensure_ascii=settings["ensure_ascii"])

    monkeypatch.setattr(json, "dumps", fail_late)
    with pytest.raises(OSError, match="space"):
        write_parts(split_by_film(some_reviews(), seed=9), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_real_file() -> None:
    reviews_file = packages._REVIEWS
    home = packages.cache_folder() / f"{reviews_file.package}-{reviews_file.version}-{reviews_file.sha256[:8]}"
    if not home.exists():
        pytest.skip("the review sentences are not in the cache; scripts/demo fetches them")
    reviews = read_reviews(packages.review_sentences())
    assert len(reviews) == 12_808
    assert sum(review.label == "positive" for review in reviews) == 7_403
    assert len({review.film for review in reviews}) == 508
    split = split_by_film(reviews)
    check_promises(reviews, split)
    for name, share in PARTS.items():
        assert abs(len(split.reviews[name]) / len(reviews) - share) < 0.01
