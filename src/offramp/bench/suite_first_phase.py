"""What trainings of a suite have in common at their beginning is trained once.

DeeBERT and FastBERT begin with the plain fine-tune that row ``plain`` is; exits that learn on alone begin with the
joint training of the row without. The run folder of the first of them is left in the work folder, and those that come
later take its weights in place of their own first phase.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offramp.bench.suite import Cell, Suite, changed_fields
from offramp.errors import KnobError
from offramp.recipes import Phase, Recipe

__all__ = ["first_phase_folder", "goes_on", "keep_first_phase"]


def first_phase_folder(suite: Suite, cell: Cell, work: Path) -> Path:
    """Where the run folder lies, or would lie, whose weights are what the cell's first phase comes to."""
    return work / f"first-phase-{cell.task}-{_key(suite, cell)}"


def keep_first_phase(suite: Suite, cell: Cell, run: Path, work: Path) -> None:
    """Leave a run's weights for those that begin alike, where they still are those after its first phase."""
    folder = first_phase_folder(suite, cell, work)
    if folder.is_dir() or not _stands_still_afterwards(suite, cell) or not _is_wanted(suite, cell, folder, work):
        return
    staging = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        shutil.copy2(run / name, staging / name)
    os.rename(staging, folder)


def goes_on(suite: Suite, cell: Cell) -> bool:
    """Whether there is something to train after the first phase."""
    entry = suite.entries[cell.recipe]
    return len(entry.loaded().training) > 1 or bool(entry.exit_epochs)


def _is_wanted(suite: Suite, cell: Cell, folder: Path, work: Path) -> bool:
    """Whether another cell begins alike: weights that nobody takes over would only fill the disk."""
    for other in suite.cells():
        if (other.task, other.seed) != (cell.task, cell.seed) or other.recipe == cell.recipe:
            continue
        try:
            if goes_on(suite, other) and first_phase_folder(suite, other, work) == folder:
                return True
        except KnobError:  # a recipe that is not there
            continue
    return False


def _stands_still_afterwards(suite: Suite, cell: Cell) -> bool:
    """Whether no later phase moves what the first one trains."""
    entry = suite.entries[cell.recipe]
    recipe = entry.loaded()
    later = recipe.training[1:]
    if _is_plain(recipe):
        return all(phase.train not in ("all", "backbone") for phase in later)
    return not later and not entry.exit_epochs


def _is_plain(recipe: Recipe) -> bool:
    """Whether the first phase is ordinary fine-tuning, which exits have no part in."""
    first = recipe.training[0]
    if recipe.members:
        return False
    return recipe.exits == "last" or (first.train == "backbone" and _by_the_last(first))


def _by_the_last(phase: Phase) -> bool:
    return phase.objective.name == "weighted_sum" and phase.objective.settings.get("by") == "last"


def _key(suite: Suite, cell: Cell) -> str:
    """Of all that decides what the first phase comes to."""
    entry = suite.entries[cell.recipe]
    recipe = entry.loaded()
    first = recipe.training[0]
    arguments = {**recipe.arguments, **first.arguments, **suite.plan_arguments(cell)}
    if arguments.get("load_best_model_at_end") is False:
        arguments.pop("metric_for_best_model", None)
    exits: Mapping[str, Any] = {
        "head": changed_fields(recipe.head),
        "phase": changed_fields(first),
        "exits": [recipe.exits, recipe.shared, list(recipe.members)],
        "pooling": entry.pooling,
    }
    return suite.digest(cell, {"arguments": arguments, "exits": None if _is_plain(recipe) else exits})
