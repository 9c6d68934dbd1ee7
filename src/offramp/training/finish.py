"""What ``train`` leaves behind besides weights: a trace of dev, operating points chosen on it, and a model card."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offramp.calibration.fitting import FITS
from offramp.calibration.points import OperatingPoint, write_points
from offramp.calibration.sweep import choose
from offramp.engine.record import record
from offramp.inputs.tokens import Encoded, Tokenizer
from offramp.recipes import Recipe, load_recipe
from offramp.run import weights_hash
from offramp.runtimes.torch import TorchRuntime
from offramp.traces.curves import static_exits
from offramp.traces.store import save_trace
from offramp.traces.trace import Trace
from offramp.training.data import TrainingData, row_hashes

__all__ = ["AGREEMENT", "OWN_ANSWERS", "write_measured"]

logger = logging.getLogger(__name__)

OWN_ANSWERS = "dev, by agreement with the full model: its labels are the model's own answers"
"""What operating points were chosen on where nobody gave labels."""
AGREEMENT = "agreement with the model's own answers"
"""What every metric tells there."""
_FEW = 30
"""Rows of dev on which half a point, and any point, is a matter of chance."""


def write_measured(
    folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    rows: Sequence[Encoded],
    data: TrainingData,
    recipe: Recipe,
    max_drop: float,
    chosen_on: str = "dev",
) -> OperatingPoint:
    """Record dev through every exit, choose the default operating point, and write both with a model card.

    The point is the fastest within ``max_drop`` points of full depth *on dev*, which also chose the checkpoint: it is
    a sensible start, not a promise.
    """
    trace = record(
        TorchRuntime(model),
        rows,
        pad_token=tokenizer.pad_token,
        labels=data.dev.labels,
        batch_size=32,
        id2label=data.id2label,
        hashes=row_hashes(data.dev.texts),
        model=weights_hash(folder),
    )
    (folder / "traces").mkdir(exist_ok=True)
    save_trace(trace, folder / "traces" / "dev")
    # Of one exit alone nobody leaves early, and the recipe's rule may ask for what only early exits measure.
    rules = recipe if trace.num_exits > 1 else load_recipe("plain")
    criterion = rules.criterion(data.problem_type)
    if (fit := rules.learns(data.problem_type)) is not None:
        criterion = FITS[fit](trace, criterion)
    point = choose(trace, criterion, max_drop=max_drop, or_best=True, name="default", chosen_on=chosen_on)
    write_points(folder, [point])
    _warn(trace, point)
    (folder / "README.md").write_text(_card(trace, point, recipe), encoding="utf-8")
    return point


def _warn(trace: Trace, point: OperatingPoint) -> None:
    """Say where the point rests on next to nothing, or what it is compared with is worse than leaving early."""
    rows = len(trace.lengths)
    if rows < _FEW:
        logger.warning(
            "dev has too few rows (%d) for the default operating point to say much: choose one on more", rows
        )
    if point.measured["metric"] != "accuracy" or trace.num_exits == 1:
        return
    *early, full = (one["accuracy"] for one in static_exits(trace))
    if max(early) - full > 2 * math.sqrt(0.25 / rows):
        logger.warning(
            "full depth (%.1f on dev) is well below an early exit (%.1f): train longer, or at other rates, before you "
            "compare anything with it",
            100 * full,
            100 * max(early),
        )


def _card(trace: Trace, point: OperatingPoint, recipe: Recipe) -> str:
    """The model card: what it is, what was measured, how to use it."""
    metric = point.measured["metric"]
    rows = "\n".join(f"| {exit_['layer']} | {100 * exit_[metric]:.1f} |" for exit_ in static_exits(trace))
    measured = point.measured
    told = AGREEMENT if point.chosen_on == OWN_ANSWERS else metric
    knobs = ", ".join(f"{name} {value:.4g}" for name, value in point.knobs.items())
    return f"""---
library_name: offramp
tags: [early-exit, text-classification]
---
# Early-exit classifier

{recipe.summary} ({recipe.source}).

Default operating point, chosen on the {measured["n"]} dev texts that also chose the checkpoint (so it is a start, not a
promise; {point.chosen_on}): {point.criterion} with {knobs};
{told} {100 * measured["score"]:.1f} against {100 * measured["full_depth_score"]:.1f} at full depth, layer
speed-up {measured["layer_speedup"]:.2f}x.

| layers | {told} on dev |
|---|---|
{rows}

```python
import offramp
clf = offramp.load("path/to/this/folder")
clf(["a gem", "neither here nor there"])
```

Plain `AutoModelForSequenceClassification.from_pretrained` loads the full-depth model from the same folder.
"""
