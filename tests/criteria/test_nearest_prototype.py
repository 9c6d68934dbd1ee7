"""Early exits answer by the nearest prototype, the last one by its own logits; sure where the next is far."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offramp.criteria import make
from offramp.errors import UnsupportedError
from offramp.types import ExitOutput, Stage

EARLY = Stage(index=0, first_layer=0, last_layer=1, layers=1, is_last=False)
LAST = Stage(index=1, first_layer=1, last_layer=2, layers=2, is_last=True)
# The classifier is sure of class 0 everywhere; the prototypes say 1, 2, 2.
LOGITS = [[9.0, 0.0, 0.0]] * 3
DISTANCES = [[4.0, 1.0, 2.0], [3.0, 3.0, 2.0], [np.inf, np.inf, 5.0]]


@pytest.mark.parametrize("library", [np.array, torch.tensor])
def test_the_nearest_answers_and_the_next_tells_how_sure(library) -> None:
    rule = make("nearest_prototype")
    output = ExitOutput(library(LOGITS), {"distances": library(DISTANCES)})
    # DR of the two nearest: 1 and 2 -> (1 - 1/2) / 2; 2 and 3 -> (1 - 1/3) / 2; 5 and nothing: nothing can be told.
    np.testing.assert_allclose(np.asarray(rule.compared(EARLY, output, {})), [0.25, 1 / 3, 0.5], atol=1e-7)
    for threshold, leaving in ((0.25, [False] * 3), (0.26, [True, False, False]), (0.51, [True] * 3)):
        decision, state = rule.step(EARLY, output, {}, {"threshold": library([threshold] * 3)})
        assert np.asarray(decision.leave).tolist() == leaving
        answer = np.asarray(decision.answer)
        assert answer.argmax(axis=-1).tolist() == [1, 2, 2]
        np.testing.assert_allclose(answer[:2], [[-16, -1, -4], [-9, -9, -4]])
        assert np.isfinite(answer).all()
        assert answer[2, 0] < -1e29
        assert state == {}


def test_the_last_exit_answers_for_itself() -> None:
    rule = make("nearest_prototype")
    output = ExitOutput(np.array(LOGITS), {"distances": np.array(DISTANCES)})
    decision, _ = rule.step(LAST, output, {}, {"threshold": np.full(3, 0.3)})
    np.testing.assert_array_equal(decision.answer, LOGITS)


def test_it_needs_prototypes() -> None:
    with pytest.raises(UnsupportedError, match="needs 'distances' at every exit"):
        make("nearest_prototype").step(EARLY, ExitOutput(np.array(LOGITS), {}), {}, {"threshold": np.full(3, 0.3)})
