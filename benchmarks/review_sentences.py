"""Sentences to choose thresholds of SST-2 models on: film reviews that have nothing in common with its train or dev.

    python benchmarks/review_sentences.py --data SST2 --out runs/reviews.jsonl

Dev has 872 rows, and half of them cannot tell half a point of accuracy from nothing. The demo's review sentences are of
the same kind as SST-2's, and most of SST-2's own are among them: whichever shares a run of 30 letters with any row of
SST-2, or holds a whole row of 15 letters and more, is left out, so nothing is chosen on what is scored, or on what was
trained on. What is left is labelled by its critic's verdict on the film, not by raters of the sentence, so every model
is less accurate on it; what an early exit loses *beside full depth* is alike, and that is all it is for
(`offramp bench --choose`). A few seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from offramp.demo.packages import review_sentences
from offramp.demo.reviews import Review, read_reviews
from offramp.traces.files import write_atomically

RUN = 30
"""Letters and digits in a row that two sentences of one origin share, and hardly any others."""
SHORTEST = 15
"""Known rows of fewer letters are phrases that anybody writes."""


def unrelated(reviews: Iterable[Review], known: Iterable[str]) -> Iterator[Review]:
    """Reviews that share no run of ``RUN`` letters with a known sentence, hold no shorter one whole (of ``SHORTEST``
    letters and more), and have at least ``RUN`` letters themselves; each once.
    """
    spelt = [_letters(sentence) for sentence in known]
    seen = {run for letters in spelt for run in _runs(letters)}
    short = {letters for letters in spelt if SHORTEST <= len(letters) < RUN}
    told = set()
    for review in reviews:
        letters = _letters(review.text)
        runs = set(_runs(letters))
        if runs and letters not in told and seen.isdisjoint(runs) and short.isdisjoint(_parts(letters)):
            told.add(letters)
            yield review


def _letters(sentence: str) -> str:
    """Spelling aside: capitals, spaces and punctuation differ from one collection to the other."""
    return "".join(character for character in sentence.lower() if character.isascii() and character.isalnum())


def _runs(letters: str, length: int = RUN) -> Iterator[str]:
    return (letters[start : start + length] for start in range(len(letters) - length + 1))


def _parts(letters: str) -> Iterator[str]:
    """Everything that a short row could be."""
    return (part for length in range(SHORTEST, RUN) for part in _runs(letters, length))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of SST-2 with train.jsonl and dev.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="file to write, JSON lines")
    given = parser.parse_args()
    known = [
        json.loads(line)["sentence"]
        for part in ("train", "dev")
        for line in (given.data / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    reviews = read_reviews(review_sentences(say=print))
    kept = list(unrelated(reviews, known))
    lines = [json.dumps({"sentence": review.text, "label": review.label}, ensure_ascii=False) for review in kept]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out, "\n".join([*lines, ""]).encode())
    print(json.dumps({"reviews": len(reviews), "kept": len(kept), "out": str(given.out)}))


if __name__ == "__main__":
    main()
