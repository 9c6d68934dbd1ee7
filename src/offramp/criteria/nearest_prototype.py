"""Answer by the nearest class prototype: early exits speak by distance, and the classifier keeps the last word.

Ours, on DE3-BERT's prototypes (He et al., arXiv 2402.05948; there a distance says when to leave, never what to answer).
An average of a few texts is a classifier that needs no training: with many classes and few rows of each, prototypes are
right at layers where classifiers trained for as long are not (docs/research/de3bert.md). With few classes they are not,
and ``edr`` or ``entropy`` is the better choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from offramp.criteria.base import Criterion, Knob
from offramp.criteria.distance import distance_ratio
from offramp.types import Array, Decision, ExitOutput, Knobs, ProblemType, Stage, State

__all__ = ["NearestPrototype"]

_FARTHEST = 1e15
"""Counts as the distance to a class without a prototype: its square is still a float32."""


@dataclass(frozen=True, kw_only=True)
class NearestPrototype(Criterion):
    """Leave where the nearest prototype is much nearer than the next: DR of these two < threshold.

    Who leaves early gets -distance^2 to the prototypes in place of logits: the class of the nearest, and after a
    softmax the probabilities of equal round Gaussians about them. At the last exit the model's own head answers.
    """

    name: ClassVar[str] = "nearest_prototype"
    summary: ClassVar[str] = "the nearest prototype answers, where it is much nearer than the next"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {"threshold": Knob(0.3, 0.0, 1.01, faster="up")}
    needs: ClassVar[frozenset[str]] = frozenset({"distances"})

    @property
    def by_exit(self) -> bool:
        return False

    def start(self, units: Array) -> State:
        return {}

    def compared(self, stage: Stage, output: ExitOutput, state: State) -> Array:
        return distance_ratio(self.extra(output, "distances"), output.logits, own="nearest")

    def step(self, stage: Stage, output: ExitOutput, state: State, knobs: Knobs) -> tuple[Decision, State]:
        leave = self.compared(stage, output, state) < knobs["threshold"]
        if stage.is_last:
            return Decision(leave, output.logits), state
        distances = self.extra(output, "distances")
        xp = array_namespace(distances)
        near = xp.minimum(distances, xp.full_like(distances, _FARTHEST))
        return Decision(leave, -near * near), state
