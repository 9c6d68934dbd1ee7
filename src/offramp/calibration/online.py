"""CeeBERT: a threshold that learns while it serves, without labels.

Bajpai and Hanawal, "CeeBERT: Cross-Domain Inference in Early Exit BERT", Findings of ACL 2024 (the single-exit case:
the same authors' "UBERT"). Every candidate threshold is an arm of a bandit. What a text tells about the arm that it was
answered with: how much surer the exit where it left was than the first exit, less the price of the layers in between.
Upper confidence bounds (UCB1) pick the arm of the next text.

Confidence is not correctness: where a model is sure and wrong, as it may be on texts of another kind, this learns to
leave early. docs/drift.md has what it is worth.

What we do differently: the paper's terms for many exits are not known for certain, so the price is ``cost`` times the
share of the layers between the first exit and the last. A text also tells what every *lower* threshold would have
done with it (``share="lower"``). The released notebooks use whatever is implied, which for higher thresholds is known
for the surest texts only and so speaks too well of them (``"implied"``). And accuracy is that of the thresholds as
they were played; the notebooks apply the arm found best at the end to the whole stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offramp.criteria.confidence import doubt
from offramp.errors import KnobError, UnsupportedError
from offramp.traces.trace import Trace

__all__ = ["ARMS", "OnlineThreshold", "Played", "confidences", "exits_of_arms", "play", "rewards"]

Floats = NDArray[np.float64]

ARMS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Confidences from which on a text leaves: 0.5, 0.55, ... 0.95."""


class OnlineThreshold:
    """Upper confidence bounds over thresholds.

    Args:
        layers: of the model's exits, growing.
        arms: candidate confidences, growing.
        cost: of all layers between the first exit and the last, in confidence; 0: depth is never penalised.
        exploration: weight of the confidence bound.
        share: which arms learn from a text: the one ``played``, all ``lower`` ones too, or all whose outcome is
            ``implied`` by what was seen.

    Raises:
        KnobError: arms that do not grow between 0 and 1, or a setting outside what it may be.

    Attributes:
        counts: [A]: texts that each arm has learned from.
        means: [A]: mean rewards.
    """

    def __init__(
        self,
        layers: Sequence[int],
        arms: Sequence[float] = ARMS,
        *,
        cost: float = 0.1,
        exploration: float = 2.0,
        share: Literal["played", "lower", "implied"] = "lower",
    ) -> None:
        self.arms = np.asarray(arms, dtype=np.float64)
        if len(self.arms) == 0 or (np.diff(self.arms) <= 0).any() or self.arms[0] < 0 or self.arms[-1] > 1:
            raise KnobError(f"arms must be confidences that grow from 0 to 1, not {list(arms)}")
        if not (0 <= cost < math.inf and 0 <= exploration < math.inf):
            raise KnobError(f"cost and exploration must be numbers, 0 or more, not {cost!r} and {exploration!r}")
        if share not in ("played", "lower", "implied"):
            raise KnobError(f"share must be played, lower or implied, not {share!r}")
        self.exploration, self.share = exploration, share
        self.prices = _prices(layers, cost)
        self.counts = np.zeros(len(self.arms), dtype=np.int64)
        self.means = np.zeros(len(self.arms))
        self._pending = np.zeros(len(self.arms), dtype=np.int64)
        self._picked = 0

    def pick(self) -> int:
        """Place of the arm for the next text. Several may be picked before any is learned from (a batch)."""
        known = self.counts + self._pending
        unknown = np.flatnonzero(known == 0)
        if len(unknown):
            arm = int(unknown[0])
        else:
            bonus = self.exploration * np.sqrt(math.log(self._picked + 1) / known)
            arm = int((self.means + bonus).argmax())
        self._pending[arm] += 1
        self._picked += 1
        return arm

    def knobs(self, arm: int) -> dict[str, float]:
        """Of the criterion ``confidence``, which leaves where doubt is *below* a threshold."""
        return {"threshold": float(np.nextafter(1 - self.arms[arm], 2))}

    def update(self, arm: int, seen: Sequence[float] | Floats) -> None:
        """What the model saw of a text that was answered with an arm.

        Args:
            arm: its place, from ``pick``.
            seen: confidences at the exits up to where it left.
        """
        self._pending[arm] -= 1
        sure = np.asarray(seen, dtype=np.float64)
        for other in self._told(arm, sure):
            place = _first(sure, float(self.arms[other]))
            reward = float(sure[place] - sure[0] - self.prices[place])
            self.counts[other] += 1
            self.means[other] += (reward - self.means[other]) / self.counts[other]

    def _told(self, arm: int, sure: Floats) -> Sequence[int]:
        """Arms that learn from a text."""
        if self.share == "played":
            return [arm]
        if self.share == "lower":
            return range(arm + 1)
        whole = len(sure) == len(self.prices)
        return [other for other, least in enumerate(self.arms) if whole or other <= arm or (sure >= least).any()]


@dataclass(frozen=True, eq=False)
class Played:
    """A stream, as it went."""

    arms: NDArray[np.int64]
    """[T]: place of the arm that each text was answered with."""
    exits: NDArray[np.int64]
    """[T]: where it left."""


def play(sure: Floats, learner: OnlineThreshold, *, batch: int = 1) -> Played:
    """Let a learner answer texts, one after the other.

    Args:
        sure: [E, T]: confidences of every exit, in the order in which the texts come.
        learner: goes on from what it knows.
        batch: texts whose arms are picked before any of them is learned from.
    """
    length = sure.shape[1]
    arms, exits = np.empty(length, dtype=np.int64), np.empty(length, dtype=np.int64)
    for start in range(0, length, batch):
        texts = range(start, min(start + batch, length))
        for text in texts:
            arms[text] = learner.pick()
        for text in texts:
            exits[text] = _first(sure[:, text], float(learner.arms[arms[text]]))
            learner.update(int(arms[text]), sure[: exits[text] + 1, text])
    return Played(arms, exits)


def confidences(trace: Trace) -> Floats:
    """[E, U]: largest probability of every exit.

    Raises:
        UnsupportedError: the answers have no such thing.
    """
    if trace.problem_type == "regression":
        raise UnsupportedError("a confidence is a probability, and regression has none: learn a threshold for classes")
    return np.stack([1 - np.asarray(doubt(logits.astype(np.float64), trace.problem_type)) for logits in trace.logits])


def exits_of_arms(sure: Floats, arms: Sequence[float] | Floats) -> NDArray[np.int64]:
    """[A, U]: where confidences [E, U] let texts leave at each arm."""
    found = np.stack([(sure >= arm) for arm in arms])
    found[:, -1] = True
    exits: NDArray[np.int64] = found.argmax(axis=1)
    return exits


def rewards(sure: Floats, layers: Sequence[int], arms: Sequence[float] | Floats, *, cost: float = 0.1) -> Floats:
    """[A, U]: what each arm would have got for each text."""
    exits = exits_of_arms(sure, arms)
    found: Floats = np.take_along_axis(sure, exits, axis=0) - sure[0] - _prices(layers, cost)[exits]
    return found


def _first(sure: Floats, least: float) -> int:
    """Exit at which a text leaves, of those it came to: the last of them where none is sure enough."""
    enough = np.flatnonzero(sure >= least)
    return int(enough[0]) if len(enough) else len(sure) - 1


def _prices(layers: Sequence[int], cost: float) -> Floats:
    """[E]: of going on to each exit."""
    depth = np.asarray(layers, dtype=np.float64)
    found: Floats = cost * (depth - depth[0]) / max(float(depth[-1] - depth[0]), 1.0)
    return found
