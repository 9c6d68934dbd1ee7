"""What a setting is worth on labelled data: its scores, the layers it saves, the seconds it saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from offramp.bench.wallclock import run_encoded, time_settings
from offramp.choosing import Setting
from offramp.errors import DataError
from offramp.inputs.tokens import Text
from offramp.pipeline import Classifier

__all__ = ["evaluate"]


def evaluate(
    classifier: Classifier,
    texts: list[Text],
    labels: np.ndarray[Any, Any],
    setting: Setting,
    *,
    rounds: int = 3,
    where: Callable[[int], str] | None = None,
) -> dict[str, Any]:
    """Measure a setting against full depth with the same engine and batch size.

    Args:
        classifier: a loaded run.
        texts: N.
        labels: as ``Task.metrics`` takes them.
        setting: what to measure.
        rounds: of the clock, interleaved with full depth; 0: no seconds.
        where: for messages, what the text at a place is called; None: ``text 1`` and so on.

    Returns:
        ``n``; every metric of the task by name (``accuracy``, ``f1``, ...; regression: ``pearson``,
        ``spearman``, ``mse``, and ``accuracy`` None: of numbers none is simply right); ``full_depth`` with the task's
        metrics;
        ``layer_speedup`` = full layers / mean layers executed; ``token_layer_fraction`` = sum of tokens x layers over
        that of full depth; ``wall_clock_speedup`` (median of full depth / median of ours, both without tokenisation),
        ``wall_clock`` with the rounds; ``exits`` (layer -> share of texts that left after it); ``operating_point`` in
        words.

    Raises:
        DataError: no texts, or one without tokens.
    """
    if not texts:
        raise DataError("there is nothing to evaluate: the data has no rows")
    encoded = classifier.encode(texts, where)
    full = classifier.setting(full_depth=True)
    finished = {"setting": run_encoded(classifier, encoded, setting), "full": run_encoded(classifier, encoded, full)}
    scores = {
        name: classifier.task.metrics(classifier.task.answers(np.stack([one.answer for one in done])), labels)
        for name, done in finished.items()
    }
    layers = np.array([one.layers_executed for one in finished["setting"]])
    left = np.array([one.exit_layer for one in finished["setting"]])
    tokens = np.array([len(item) for item in encoded])
    depth = classifier.runtime.info.num_layers
    result: dict[str, Any] = {
        "n": len(texts),
        "accuracy": None,  # stands in every result, so that programs need not know the task
        **scores["setting"],
        "metric": classifier.task.main_metric,
        "full_depth": scores["full"],
        "layer_speedup": float(depth / layers.mean()),
        "token_layer_fraction": float((tokens * layers).sum() / (tokens.sum() * depth)),
        "wall_clock_speedup": None,
        "exits": {str(stage.layers): float((left == stage.layers).mean()) for stage in classifier.runtime.info.stages},
        "operating_point": {
            "criterion": setting.criterion.name,
            "knobs": dict(setting.knobs),
            "origin": setting.origin,
        },
        "runtime": classifier.runtime.info.name,
        "batch_size": classifier.batch_size,
        "lanes": classifier.lanes,
    }
    if rounds:
        timings = time_settings(
            classifier, encoded, {"full_depth": full, "setting": setting}, rounds=rounds, warm_up=False
        )
        result["wall_clock_speedup"] = timings["full_depth"].median / timings["setting"].median
        result["wall_clock"] = {name: list(timing.seconds) for name, timing in timings.items()}
    return result
