"""The sentences people read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offramp.calibration.points import OperatingPoint
from offramp.calibration.promise import percent, promise_kind, promise_sentence, summary_sentence, write_card

PROMISE = {"risk": 0.01, "of": "disagreement", "confidence": 0.95, "expected": False}


def test_the_sentence_a_manager_understands() -> None:
    leaving = {1: 200, 2: 212, 3: 200, 4: 100, 5: 88, 6: 200}
    said = summary_sentence(leaving, 6, PROMISE)
    assert said == (
        "Of 1,000 texts 612 leave by layer 3. 1.84x fewer layers. "
        "With 95 % confidence at most 1.0 % of answers differ from the full model's."
    )
    assert summary_sentence(leaving, 6, None).endswith("1.84x fewer layers. Nothing is promised.")
    assert summary_sentence({4: 5, 6: 5}, 6, None).startswith("Of 10 texts 5 leave by layer 4. 1.20x fewer")


@pytest.mark.parametrize(
    ("leaving", "said"),
    [
        # By half of the layers nobody has left, and still there is something to tell.
        ({1: 0, 2: 0, 3: 0, 4: 0, 5: 700, 6: 300}, "Of 1,000 texts 700 leave by layer 5. 1.13x"),
        ({1: 600, 2: 100, 6: 300}, "Of 1,000 texts 600 leave by layer 1. 2.3x"),
        (
            {1: 0, 4: 100, 5: 200, 6: 700},
            "Of 1,000 texts only 300 leave early, by layer 5; the others go to layer 6. 1.07x",
        ),
        ({3: 10, 5: 0, 6: 90}, "Of 100 texts only 10 leave early, by layer 3; the others go to layer 6. 1.05x"),
        ({5: 1, 6: 20}, "Of 21 texts only 1 leave early, by layer 5; the others go to layer 6. 1.01x"),
        ({1: 0, 6: 20}, "Of 20 texts none leaves early. 1.00x"),
        ({6: 20}, "Of 20 texts none leaves early. 1.00x"),
        ({2: 49, 6: 51}, "Of 100 texts only 49 leave early, by layer 2; the others go to layer 6. 1.49x"),
        ({3: 999, 6: 1}, "Of 1,000 texts 999 leave by layer 3. 2.0x"),
        ({2: 20}, "Of 20 texts 20 leave by layer 2. 3.0x"),
    ],
)
def test_where_texts_leave(leaving: dict[int, int], said: str) -> None:
    assert summary_sentence(leaving, 6, None).startswith(said)


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


def test_the_card_tells_what_a_promise_rests_on(tmp_path: Path) -> None:
    measured = {"layer_speedup": 2.1, "n": 500, "metric": "f1", "score": 0.9, "full_depth_score": 0.91,
                "drop_interval": [0.001, 0.02], "interval_level": 0.95}  # fmt: skip
    point = OperatingPoint(name="a", criterion="edr", promise={**PROMISE, "n_fit": 1200, "n_promise": 500},
                           chosen_on="logs", measured=measured, runtime="onnx", dtype="int8", batch_size=16,
                           data_hash="0123456789abcdef")  # fmt: skip
    write_card(tmp_path, [point])
    page = (tmp_path / "README.md").read_text()
    assert "500 texts (logs, data hash 0123456789ab); 1,200 others tuned; onnx int8, batches of 16 |" in page
    assert "f1 90.0 (full depth 91.0); drop between 0.1 and 2.0 points (95 % bootstrap interval, no guarantee)" in page


def card(folder: Path, **point: Any) -> str:
    write_card(folder, [OperatingPoint(**{"name": "a", "criterion": "edr"} | point)])
    return (folder / "README.md").read_text()


def test_the_card_tells_settings_that_are_not_the_default(tmp_path: Path) -> None:
    settings = {"problem_type": "single_label_classification", "lam": 5.0}
    assert "| a | edr, lam 5, threshold 0.2 |" in card(tmp_path, settings=settings, knobs={"threshold": 0.2})
    assert "| a | edr, threshold 0.2 |" in card(tmp_path, settings={"lam": 1.0}, knobs={"threshold": 0.2})
    assert "| a | confidence, temperatures (1.25 0.5), threshold 0.2 |" in card(
        tmp_path, criterion="confidence", settings={"temperatures": [1.25, 0.5]}, knobs={"threshold": 0.2}
    )
    assert "| a | confidence |" in card(tmp_path, criterion="confidence", settings={"temperatures": []})
    assert "| a | per_exit, scale (12 numbers), threshold 1 |" in card(
        tmp_path, criterion="per_exit", settings={"of": "entropy", "scale": [0.5] * 12}, knobs={"threshold": 1.0}
    )
    learned = {"weights": [[0.1] * 5] * 3, "prices": [0.1] * 20}
    assert "| a | learned_stopping, weights (3 rows), prices (20 numbers) |" in card(
        tmp_path, criterion="learned_stopping", settings=learned
    )
    assert "| a | of_tomorrow, threshold 1 |" in card(
        tmp_path, criterion="of_tomorrow", settings={"x": 3}, knobs={"threshold": 1.0}
    )


def test_the_card_where_the_dtype_is_not_known(tmp_path: Path) -> None:
    assert "; torch, batches of 32 |" in card(tmp_path, runtime="torch", batch_size=32)
    assert "batches" not in card(tmp_path)


def test_what_was_forced_is_worth_nothing() -> None:
    promise = {**PROMISE, "forced": "on texts the model was trained on"}
    said = "differ from the full model's. But that was forced, on texts the model was trained on: worth nothing."
    assert promise_sentence(promise).endswith(said)
    assert summary_sentence({1: 5, 2: 5}, 2, promise).endswith(said)
