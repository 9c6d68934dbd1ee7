"""How hard rows are, against slow loops over rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import KnobError
from offramp.inputs.tokens import Tokenizer
from offramp.model.exits import ExitSettings
from offramp.model.modeling import add_exits, load_plain
from offramp.training import hardness
from offramp.training.hardness import difficulties, measure_hardness, memorised_layers
from offramp.training.rows import Collate, Rows


def slowly(right: list[bool], layers: list[int]) -> int:
    """Walk from the last exit downwards while the answers are right."""
    found = layers[-1]
    for layer, well in zip(reversed(layers), reversed(right), strict=True):
        if not well:
            break
        found = layer
    return found


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=8))
@settings(deadline=None, max_examples=100)
def test_memorised_layers_equal_a_slow_walk(right: list[list[bool]]) -> None:
    layers = [2, 3, 5, 6]
    found = memorised_layers(np.array(right).T, layers)
    assert found.tolist() == [slowly(row, layers) for row in right]


@pytest.mark.parametrize(
    ("answers", "label", "layer"),
    [
        ([0, 0, 0, 0, 0, 0], 0, 1),
        ([0, 1, 1, 1, 1, 1], 1, 2),
        ([0, 1, 1, 1, 1, 1], 0, 6),
        ([0, 1, 0, 0, 1, 1], 1, 5),
    ],
)
def test_the_vectors_of_methods_section_19(answers: list[int], label: int, layer: int) -> None:
    """What the three texts A, B and C of that section answer layer by layer."""
    right = np.array(answers)[:, None] == label
    assert memorised_layers(right, range(1, 7)).tolist() == [layer]


VOTES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=5)


@given(st.lists(VOTES, min_size=1, max_size=6))
@settings(deadline=None, max_examples=100)
def test_difficulties_equal_a_slow_count(rows: list[list[tuple[bool, bool]]]) -> None:
    right, voted = np.moveaxis(np.array(rows), (0, 1, 2), (2, 1, 0))
    found = difficulties(right, voted)
    for row, hard in zip(rows, found.tolist(), strict=True):
        votes = [well for well, counts in row if counts]
        assert hard == (bool(votes) and votes.count(True) < len(votes) / 2)


def test_half_of_the_votes_is_enough_and_no_vote_is_easy() -> None:
    right = np.array([[1, 0, 0], [0, 0, 0]], dtype=bool)
    voted = np.array([[1, 1, 0], [1, 1, 0]], dtype=bool)
    assert difficulties(right, voted).tolist() == [False, True, False]


@pytest.fixture(scope="module")
def cascade(tiny_encoder: str) -> Any:
    """An untrained cascade of 1 and 3 layers."""
    model = load_plain(tiny_encoder, num_labels=3, problem_type="single_label_classification")
    torch.manual_seed(0)
    return add_exits(model, ExitSettings(head="own", members=(1,), pooling="mean", objective="difficulty_aware"))


@pytest.fixture(scope="module")
def mislabelled(tiny_encoder: str, toy_data: Callable[[str], str]) -> tuple[Rows, np.ndarray[Any, Any]]:
    """Training rows of which every eighth has a wrong label, and which they are."""
    names = {"bad": 0, "good": 1, "odd": 2}
    lines = (Path(toy_data("single_label_classification")) / "train.jsonl").read_text().splitlines()
    texts = [json.loads(line) for line in lines]
    labels = np.array([names[row["label"]] for row in texts])
    wrong = np.arange(len(texts)) % 8 == 0
    labels[wrong] = (labels[wrong] + 1) % 3
    encoded = Tokenizer.from_folder(Path(tiny_encoder), max_length=48).encode([row["text"] for row in texts])
    return Rows(encoded, labels), wrong


def test_rows_with_a_wrong_label_are_hard(
    cascade: Any, mislabelled: tuple[Rows, np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardness, "STEPS", 40)
    rows, wrong = mislabelled
    before = {name: value.clone() for name, value in cascade.state_dict().items()}
    cascade.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = measure_hardness("difficulty", cascade, rows, Collate(0), seed=1, learning_rate=5e-3)
    assert found.dtype == np.float32
    assert set(found.tolist()) == {0.0, 1.0}
    assert found[wrong].mean() > found[~wrong].mean() + 0.4
    # Neither the model nor what is drawn after it knows of this.
    assert cascade.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in cascade.state_dict().items())


def test_the_same_seed_finds_the_same(
    cascade: Any, mislabelled: tuple[Rows, np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardness, "STEPS", 6)  # badly trained, so that much is left to chance
    rows, _ = mislabelled
    found = []
    for chance, seed in ((1, 1), (2, 1), (1, 2)):
        torch.manual_seed(chance)
        found.append(measure_hardness("difficulty", cascade, rows, Collate(0), seed=seed, learning_rate=1e-3))
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_difficulty_needs_a_smaller_model(tiny_model: Any, mislabelled: tuple[Rows, np.ndarray[Any, Any]]) -> None:
    with pytest.raises(KnobError, match="this recipe has none: give members"):
        measure_hardness("difficulty", tiny_model("bert"), mislabelled[0], Collate(0))
