"""Depth: leave after a fixed number of layers, whatever the exit says.

The static baseline every paper should print, and, with no cap in reach, the full-depth model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from offramp.criteria.base import Criterion, Knob
from offramp.types import PROBLEM_TYPES, Array, Decision, ExitOutput, Knobs, ProblemType, Stage, State

__all__ = ["Depth"]


@dataclass(frozen=True, kw_only=True)
class Depth(Criterion):
    """Leave at the first exit that stands after ``layers`` layers or more."""

    name: ClassVar[str] = "depth"
    summary: ClassVar[str] = "every text leaves after the same number of layers (no early exit by default)"
    serves: ClassVar[frozenset[ProblemType]] = frozenset(PROBLEM_TYPES)
    knobs: ClassVar[Mapping[str, Knob]] = {"layers": Knob(1000, 1, 1000, faster="down", integer=True, counts="layers")}

    @property
    def by_exit(self) -> bool:
        return False

    def start(self, units: Array) -> State:
        return {}

    def foresees(self, stage: Stage, knobs: Knobs) -> Array | None:
        return knobs["layers"] <= stage.layers

    def step(self, stage: Stage, output: ExitOutput, state: State, knobs: Knobs) -> tuple[Decision, State]:
        return Decision(knobs["layers"] <= stage.layers, output.logits), state
