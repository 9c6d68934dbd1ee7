"""The sentences people read."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.calibration.points import OperatingPoint
from offramp.calibration.promise import percent, promise_kind, promise_sentence, summary_sentence, write_card

PROMISE = {"risk": 0.01, "of": "disagreement", "confidence": 0.95, "expected": False}


def test_the_sentence_a_manager_understands() -> None:
    leaving = {1: 200, 2: 212, 3: 200, 4: 100, 5: 88, 6: 200}
    said = summary_sentence(leaving, 6, PROMISE)
    assert said == (
        "Of 1,000 texts 612 leave by layer 3. 1.8x fewer layers. "
        "With 95 % confidence at most 1.0 % of answers differ from the full model's."
    )
    assert summary_sentence(leaving, 6, None).endswith("1.8x fewer layers. Nothing is promised.")
    assert summary_sentence({4: 5, 6: 5}, 6, None).startswith("Of 10 texts 5 leave by layer 4. 1.2x fewer")


@pytest.mark.parametrize(
    ("share", "text"), [(0.01, "1.0 %"), (0.0025, "0.25 %"), (0.005, "0.5 %"), (0.01482, "1.49 %"), (1, "100.0 %")]
)
def test_percent_is_never_said_smaller_than_it_is(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("changes", "sentence", "kind"),
    [
        ({"of": "error"}, "With 95 % confidence at most 1.0 % of texts are answered wrongly that the full", "error"),
        ({"expected": True}, "On average at most 1.0 % of answers differ", "expected disagreement"),
        ({"of": "m:f", "confidence": 0.9}, "With 90 % confidence the mean loss m:f is at most 1.0 %.", "m:f"),
    ],
)
def test_other_promises(changes: dict[str, object], sentence: str, kind: str) -> None:
    assert promise_sentence(PROMISE | changes).startswith(sentence)
    assert promise_kind(PROMISE | changes) == kind


def test_the_card_gets_one_section(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n\nWords.\n")
    point = OperatingPoint(name="a", criterion="edr", knobs={"threshold": 0.2}, promise=PROMISE, chosen_on="logs",
                           measured={"layer_speedup": 2.1, "n": 500})  # fmt: skip
    write_card(tmp_path, [OperatingPoint(name="default", criterion="entropy", measured={})])
    write_card(tmp_path, [point])
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("# Mine\n\nWords.\n\n")
    assert page.count("## Operating points") == 1
    assert "| a | edr, threshold 0.2 | 2.10x | With 95 % confidence at most 1.0 %" in page
    assert "500 texts (logs)" in page
    assert "entropy" not in page
