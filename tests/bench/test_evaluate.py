from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offramp
from offramp.bench.evaluate import evaluate
from offramp.errors import DataError
from offramp.pipeline import Classifier
from offramp.traces.replay import scores as scores_of
from offramp.training.data import Examples, load_examples


@pytest.fixture(scope="module")
def classifier(trained: Path) -> Classifier:
    return offramp.load(trained)


@pytest.fixture(scope="module")
def examples(classifier: Classifier, toy_data: Callable[..., str]) -> Examples:
    return load_examples(toy_data(), classifier.task)


def middle(classifier: Classifier) -> float:
    """A threshold between two scores of the first exit, that some texts reach there."""
    from offramp.criteria import make
    from offramp.traces.store import load_trace

    criterion: Any = make("edr")
    trace = load_trace(classifier.run.folder / "traces" / "dev")
    scores = np.sort(scores_of(trace, criterion)[:2].ravel())
    place = 20 + int(np.argmax(np.diff(scores[20:40])))
    return float(scores[place] + scores[place + 1]) / 2


def test_against_the_trace(classifier: Classifier, examples: Examples) -> None:
    """The same rows, the same rule: what the engine measures is what a replay of the trace says."""
    from offramp.criteria import make
    from offramp.traces.curves import measure
    from offramp.traces.replay import replay
    from offramp.traces.store import load_trace

    setting = classifier.setting(threshold=middle(classifier))
    assert examples.labels is not None
    result = evaluate(classifier, examples.texts, examples.labels, setting, rounds=0)
    trace = load_trace(classifier.run.folder / "traces" / "dev")
    expected = measure(trace, replay(trace, make("edr"), dict(setting.knobs)))
    for name in ("accuracy", "f1", "matthews", "layer_speedup", "token_layer_fraction"):
        assert result[name] == pytest.approx(expected[name], abs=1e-9)
    assert 1 < result["layer_speedup"] < 3
    assert sum(result["exits"].values()) == pytest.approx(1)
    assert result["wall_clock_speedup"] is None


def test_full_depth_is_measured_against_itself(classifier: Classifier, examples: Examples) -> None:
    assert examples.labels is not None
    setting = classifier.setting(full_depth=True)
    result = evaluate(classifier, examples.texts, examples.labels, setting, rounds=2)
    assert {name: result[name] for name in result["full_depth"]} == result["full_depth"]
    assert (result["layer_speedup"], result["token_layer_fraction"], result["exits"]["3"]) == (1, 1, 1)
    clock = result["wall_clock"]
    assert {name: len(seconds) for name, seconds in clock.items()} == {"full_depth": 2, "setting": 2}
    ratio = np.median(clock["full_depth"]) / np.median(clock["setting"])
    assert result["wall_clock_speedup"] == pytest.approx(ratio)


def test_nothing_to_evaluate(classifier: Classifier) -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(classifier, [], np.zeros(0, dtype=np.int64), classifier.setting())
