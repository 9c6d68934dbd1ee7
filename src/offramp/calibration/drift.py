"""Are the texts of a stream like those of the calibration, by where they leave and how sure the answers are? No labels.

Conformal test martingales: Vovk et al., "Retrain or not retrain: conformal test martingales for change-point
detection", COPA 2021, arXiv 2102.10439. Each text gets a rank among all seen so far, calibration texts included, and
bets are placed on the ranks. If all texts are drawn alike the ranks are independent and uniform, *however few* the
calibration texts were. (Taking the shares seen at calibration for the truth instead rings sooner or later on every
stream: a few hundred texts do not know them so well.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offramp.calibration.bets import Bets, rank_bets
from offramp.criteria.base import Criterion
from offramp.errors import RunError
from offramp.tasks import make_task
from offramp.traces.replay import replay
from offramp.traces.trace import Trace

__all__ = ["BINS", "Drift", "Reference", "bin_of"]

BINS = 80
"""Of the confidence. Fixed before any text is seen: bins made of the calibration texts would treat those otherwise than
the texts to come, and the ranks would not be uniform."""

_LOWEST, _WIDTH = -6.0, 0.25
"""Log-odds at which the first bin begins, and how wide each is."""

_RECENT = 0.01
"""Share of the newest text in the running mean that messages tell; of the first hundred it is the plain mean."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What an operating point did with the calibration texts: how many left at each exit, and how sure they were."""

    layers: tuple[int, ...]
    """Of the exits, growing."""
    counts: NDArray[np.int64]
    """[E, BINS]: texts by exit and confidence; regression has no confidence, and all are in bin 0."""

    @property
    def texts(self) -> int:
        """Of the calibration."""
        return int(self.counts.sum())

    @property
    def mean_layer(self) -> float:
        """At which they left."""
        return float(self.counts.sum(axis=1) @ np.array(self.layers)) / max(self.texts, 1)

    @classmethod
    def of(cls, trace: Trace, criterion: Criterion, knobs: Mapping[str, float]) -> Reference:
        """Of an operating point and a trace.

        Args:
            trace: of calibration texts; best of those that had no say in the operating point.
            criterion: of the point.
            knobs: of the point.
        """
        outcome = replay(trace, criterion, knobs)
        task = make_task(trace.problem_type, trace.id2label)
        counts = np.zeros((trace.num_exits, BINS), dtype=np.int64)
        for exit_index, answer in zip(outcome.exits, outcome.answers, strict=True):
            counts[exit_index, bin_of(task.read(answer)[1])] += 1
        return cls(tuple(int(layer) for layer in trace.layers), counts)

    def to_json(self) -> dict[str, str]:
        """Layer -> ``"bin:texts bin:texts ..."``."""
        return {
            str(layer): " ".join(f"{place}:{row[place]}" for place in np.flatnonzero(row))
            for layer, row in zip(self.layers, self.counts, strict=True)
        }

    @classmethod
    def from_json(cls, value: Any) -> Reference:
        """The inverse of ``to_json``.

        Raises:
            RunError: it is no such thing.
        """
        try:
            counts = np.zeros((len(value), BINS), dtype=np.int64)
            for row, told in zip(counts, value.values(), strict=True):
                for pair in told.split():
                    place, texts = pair.split(":")
                    row[int(place)] = int(texts)
            return cls(tuple(int(layer) for layer in value), counts)
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise RunError(
                f"an operating point's reference cannot be read ({error}): run `offramp calibrate` again"
            ) from None


def bin_of(score: float | None) -> int:
    """Bin of a confidence, by its log-odds; 0 where there is none."""
    if score is None:
        return 0
    odds = math.log(max(score, 1e-300)) - math.log(max(1 - score, 1e-300))
    return min(max(int((odds - _LOWEST) / _WIDTH), 0), BINS - 1)


class Drift:
    """Are exit layers and confidences drawn like those of the calibration?

    Two ranks a text: of its exit layer among all layers seen so far, and of its confidence among all texts that left at
    that exit; ties are broken by a coin. If the texts of calibration and stream are exchangeable, all these ranks are
    independent and uniform, together. Half of the wealth is bet on each, so one threshold serves for both.

    Args:
        reference: of the operating point in use.
        false_alarms: probability that ``rings`` is ever true of a stream that is drawn like the calibration texts,
            over the drawing of both.
        rng: of the coins.
    """

    def __init__(self, reference: Reference, *, false_alarms: float, rng: np.random.Generator) -> None:
        self.reference = reference
        self.texts = 0
        self.recent_layer = reference.mean_layer
        self._counts = reference.counts.copy()
        self._left = reference.counts.sum(axis=1)
        self._needed = 1 / false_alarms
        self._rng = rng
        self._bets = Bets(len(rank_bets(0.5)), streams=(2,))  # on layers, and on confidences
        self._rang = False

    @property
    def wealth(self) -> float:
        """Of the bets; 1 at first."""
        return float(self._bets.wealth.sum()) / 2

    @property
    def rings(self) -> bool:
        """The wealth has once reached 1 / ``false_alarms``."""
        return self._rang

    @property
    def what(self) -> Literal["layers", "confidence"]:
        """Which of the two has won more."""
        layers, scores = self._bets.wealth
        return "layers" if layers >= scores else "confidence"

    def observe(self, layer: int, score: float | None) -> None:
        """One more text of the stream; nothing more is looked at once it rings.

        Args:
            layer: where the rule let it leave. One that is no exit of the reference counts as the next that is.
            score: its confidence (``Prediction.score``).
        """
        if self._rang:
            return
        exit_index = min(int(np.searchsorted(self.reference.layers, layer)), len(self.reference.layers) - 1)
        place = bin_of(score)
        self._counts[exit_index, place] += 1  # a text is ranked among all so far, itself one of them
        self._left[exit_index] += 1
        ranks = np.array([self._rank(self._left, exit_index), self._rank(self._counts[exit_index], place)])
        factors = rank_bets(ranks)
        if score is None:
            factors[1] = 1  # nothing to bet on
        self._bets.take(factors)
        self.texts += 1
        self.recent_layer += max(_RECENT, 1 / self.texts) * (layer - self.recent_layer)
        self._rang = self.wealth >= self._needed

    def _rank(self, counts: NDArray[np.int64], place: int) -> float:
        """In [0, 1], uniform if the last text could as well have been any of them; ties are broken by a coin."""
        return float((counts[:place].sum() + self._rng.random() * counts[place]) / counts.sum())
