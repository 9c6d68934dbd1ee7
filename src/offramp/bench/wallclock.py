"""Wall clock of settings against each other: interleaved rounds, medians, spread.

Layers saved are not seconds saved; this measures the seconds. Rounds are interleaved so that a machine that slows
down or warms up does so for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from offramp.choosing import Setting
from offramp.engine.units import Finished, Unit
from offramp.errors import KnobError
from offramp.inputs.tokens import Encoded
from offramp.pipeline import Classifier

__all__ = ["Timing", "interleaved", "run_encoded", "time_settings"]


@dataclass(frozen=True)
class Timing:
    """Seconds of one setting, a number a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over rounds."""
        return float(np.median(self.seconds))


def run_encoded(classifier: Classifier, encoded: Sequence[Encoded], setting: Setting) -> list[Finished]:
    """Answer encoded texts, in their order; tokenisation is not part of it."""
    units = (Unit(number, item) for number, item in enumerate(encoded))
    return list(classifier.answers(units, setting, chunk=4096))


def time_settings(
    classifier: Classifier,
    encoded: Sequence[Encoded],
    settings: Mapping[str, Setting],
    *,
    rounds: int = 3,
    warm_up: bool = True,
) -> dict[str, Timing]:
    """Time settings on the same texts, interleaved, after one round that is not counted.

    Args:
        classifier: a loaded run.
        encoded: the texts.
        settings: name -> setting.
        rounds: that are counted.
        warm_up: False where every setting has just been run on these texts.

    Raises:
        KnobError: fewer than one round.
    """
    if rounds < 1:
        raise KnobError(f"there must be at least one round, not {rounds}")
    ways = {name: partial(run_encoded, classifier, encoded, setting) for name, setting in settings.items()}
    return {name: Timing(tuple(values)) for name, values in interleaved(ways, rounds, warm_up=warm_up).items()}


def interleaved(
    ways: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each way, a number a round; with ``warm_up`` one round before them is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(0 if warm_up else 1, rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds
