"""What is learned from a trace, by name, and scores that no row had a hand in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from offramp.calibration.fitting import FITS, Fitted, held_out_scores
from offramp.calibration.stopping import fit_stopping
from offramp.calibration.temperature import fit_temperatures
from offramp.criteria import Criterion, Scored, available, make
from offramp.criteria.learned_stopping import LearnedStopping
from offramp.errors import KnobError, UnsupportedError
from offramp.traces.replay import scores
from offramp.traces.trace import Trace

MakeTrace = Callable[..., Trace]


def test_every_criterion_that_is_learned_says_by_what() -> None:
    named = {kind.fit for kind in available().values()} - {None}
    assert named == {"stopping", "thresholds"}
    assert named <= FITS.keys()


def test_each_fit_is_what_it_says(example: MakeTrace) -> None:
    trace = example(units=40)
    assert FITS["stopping"](trace, LearnedStopping()) == fit_stopping(trace, LearnedStopping())
    assert FITS["temperature"](trace, make("confidence")) == make("confidence", temperatures=fit_temperatures(trace))


@pytest.mark.parametrize("tokens", [1, 4])
def test_held_out_scores_by_loops(example: MakeTrace, tokens: int) -> None:
    """Each text is scored, alone, by settings from the texts of the other folds."""
    trace = example(units=40, exits=3)
    count = 40 // tokens
    trace = replace(trace, lengths=trace.lengths[:count], offsets=np.arange(0, 41, tokens), hashes=None)
    found = held_out_scores(trace, make("confidence"), FITS["temperature"], folds=3, seed=2)
    folds = np.random.default_rng(2).permutation(count) % 3
    for text in range(count):
        others = [i for i in range(count) if folds[i] != folds[text]]
        rule = FITS["temperature"](trace.select(np.array(others)), make("confidence"))
        assert isinstance(rule, Scored)
        mine = slice(text * tokens, (text + 1) * tokens)
        np.testing.assert_array_equal(found[:, mine], scores(trace.select(np.array([text])), rule))


@pytest.mark.parametrize("fit", FITS)
def test_a_row_has_no_hand_in_its_own_score(example: MakeTrace, fit: str) -> None:
    trace = example(units=48, exits=3)
    criterion = make({"stopping": "learned_stopping", "temperature": "confidence", "thresholds": "per_exit"}[fit])
    before = held_out_scores(trace, criterion, FITS[fit])
    moved = 0
    for row in (0, 31, 5, 12, 20, 40):
        labels = trace.labels_known().copy()
        labels[row] = (labels[row] + 1) % 3
        after = held_out_scores(replace(trace, labels=labels), criterion, FITS[fit])
        np.testing.assert_array_equal(after[:, row], before[:, row])
        moved += bool((after != before).any())
    assert moved  # a threshold by exit stands between two rows, and not every label moves it


@pytest.mark.parametrize(
    ("criterion", "fit", "error", "message"),
    [
        (make("confidence"), "temprature", KnobError, "'temprature'.*stopping, temperature"),
        (make("patience"), "temperature", UnsupportedError, "'patience' has no score"),
    ],
)
def test_what_cannot_be_learned(criterion: Criterion, fit: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Fitted(criterion, fit)


def test_settings_of_another_criterion(example: MakeTrace) -> None:
    with pytest.raises(UnsupportedError, match="'entropy' has no temperatures"):
        FITS["temperature"](example(), make("entropy"))
    with pytest.raises(UnsupportedError, match="not for 'entropy'"):
        FITS["stopping"](example(), make("entropy"))
