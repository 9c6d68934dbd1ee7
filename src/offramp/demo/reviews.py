"""Film review sentences for the demo, split four ways by film.

One sentence often quotes what another says of the same film, so a film is in one part only. Four parts because four
things are decided: weights (``train``), which checkpoint to keep (``checkpoint``), which criterion and threshold
(``choose``), and only then what is reported (``report``).
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from offramp.errors import DataError

__all__ = ["PARTS", "Part", "Review", "Split", "read_reviews", "split_by_film", "write_parts"]

PARTS: Mapping[str, float] = {"train": 0.60, "checkpoint": 0.10, "choose": 0.15, "report": 0.15}
"""Part -> share of the sentences, roughly: films are not cut."""

_LABELS = {"fresh": "positive", "rotten": "negative"}
_COLUMNS = ("category", "text", "movie_name")


@dataclass(frozen=True)
class Review:
    """One sentence about one film."""

    text: str
    label: str
    """``positive`` or ``negative``."""
    film: str


@dataclass(frozen=True)
class Part:
    """How much is in one part."""

    sentences: int
    films: int
    labels: Mapping[str, int]
    """Label -> sentences."""


@dataclass(frozen=True)
class Split:
    """Four parts that share no film and no sentence."""

    reviews: Mapping[str, Sequence[Review]]
    """Part -> its sentences."""
    repeated: int
    """Sentences left out because they were seen before, in this part or an earlier one."""

    @property
    def counts(self) -> dict[str, Part]:
        """Part -> how much is in it."""
        return {
            name: Part(len(part), len({r.film for r in part}), dict(sorted(Counter(r.label for r in part).items())))
            for name, part in self.reviews.items()
        }


def read_reviews(path: str | Path) -> list[Review]:
    """Labelled sentences of the packaged csv.bz2; plot summaries, which carry no label, are left out.

    Raises:
        DataError: the file is damaged, a column is missing, or a category is unknown.
    """
    try:
        with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            missing = [column for column in _COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                raise DataError(f"{path} has no column {', '.join(missing)}: this is not the file of review sentences")
            return [_review(row, path, rows.line_num) for row in rows if row["category"] != "plot"]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path} ({error}): remove it, and it is fetched again") from error


def _review(row: Mapping[str, str | None], path: str | Path, line: int) -> Review:
    label = _LABELS.get(row["category"] or "")
    text, film = row["text"], row["movie_name"]
    if label is None or not text or not film:
        raise DataError(f"{path}, line {line}: expected fresh or rotten, a text and a film, got {dict(row)}")
    return Review(" ".join(text.split()), label, film)


def split_by_film(reviews: Iterable[Review], *, seed: int = 0) -> Split:
    """Give every film to one part, by a hash of its name and the seed, so the same on every machine.

    The sizes are those of ``PARTS`` give or take a film. A sentence that occurs twice (capitals and spaces aside)
    stays in the first part that has it: two titles of one film bring the same reviews.

    Raises:
        DataError: too few films for four parts.
    """
    films: dict[str, list[Review]] = {}
    for review in reviews:
        films.setdefault(review.film, []).append(review)
    parts: dict[str, list[Review]] = {name: [] for name in PARTS}
    total, given = sum(map(len, films.values())), 0
    for film in sorted(films, key=lambda name: _shuffle_key(name, seed)):
        parts[_part_at(given / total)] += films[film]
        given += len(films[film])
    seen: set[str] = set()
    unique = {name: _first_seen(part, seen, seed) for name, part in parts.items()}
    empty = [name for name, part in unique.items() if not part]
    if empty:
        raise DataError(f"{len(films)} films are too few for four parts: nothing is left for {', '.join(empty)}")
    return Split(unique, total - sum(map(len, unique.values())))


def _part_at(share: float) -> str:
    """The part that holds this share (0 to below 1) of all sentences."""
    end = 0.0
    for name, size in PARTS.items():
        end += size
        if share < end:
            return name
    return name  # the shares add up to 1 within a rounding error


def _first_seen(reviews: Iterable[Review], seen: set[str], seed: int) -> list[Review]:
    """Reviews whose sentence is not in ``seen`` (which grows), in shuffled order."""
    kept = []
    for review in reviews:
        key = review.text.casefold()
        if key not in seen:
            seen.add(key)
            kept.append(review)
    return sorted(kept, key=lambda review: _shuffle_key(review.text, seed))


def _shuffle_key(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def write_parts(split: Split, folder: str | Path) -> dict[str, Path]:
    """Write each part as ``PART.jsonl`` with ``text`` and ``label``; a part is replaced only once all are written.

    Returns:
        Part -> file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jsonl" for name in split.reviews}
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in paths}
    try:
        for name, reviews in split.reviews.items():
            with temporary[name].open("w", encoding="utf-8", newline="\n") as file:
                for review in reviews:
                    file.write(json.dumps({"text": review.text, "label": review.label}, ensure_ascii=False) + "\n")
        for name, path in paths.items():
            os.replace(temporary[name], path)
    finally:
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)
    return paths
