"""Shadow: several operating points at once, of which one decides, and texts that go to the last layer all the same.

For a monitor (``calibration.monitor``). It wraps other criteria, so an engine runs it as it runs any; it is no rule
of its own, and not among ``available()``. What it saw of a text travels in the answer: ``told`` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from offramp.criteria.base import Criterion, Knob
from offramp.errors import KnobError
from offramp.types import PROBLEM_TYPES, Array, Decision, ExitOutput, Knobs, ProblemType, Stage, State

__all__ = ["Shadow", "Told"]


@dataclass(frozen=True, eq=False)
class Told:
    """What one text's answer holds: R rules, C outputs."""

    answer: NDArray[Any]
    """[C]: of the rule that decided; of the last layer where none did."""
    full: NDArray[Any]
    """[C]: of the exit where the text left: the last one, if it was a shadow run."""
    layers: NDArray[np.int64]
    """[R]: where each rule would have let it leave; 0: nowhere before it left (or nobody asked that rule)."""
    answers: NDArray[Any]
    """[R, C]: with which answer."""


class _Called:
    """A name for messages. One of the class itself would put it among ``available()``."""

    name: ClassVar[str] = "shadow"


@dataclass(frozen=True, kw_only=True)
class Shadow(_Called, Criterion):
    """Leave where the rule that the knob ``rung`` names lets a text leave; with the knob ``whole``, at the last exit.

    As many rungs as there are rules: the last rung + 1 stands for full depth. With ``whole`` every rule is asked at
    every exit, and what the text would have got is in its answer: turning shadow runs on changes no answer.

    Raises:
        KnobError: no rules, or one of another problem type.
    """

    rules: tuple[tuple[Criterion, tuple[tuple[str, float], ...]], ...]
    """Criteria, each with all its knobs as pairs of name and value."""

    summary: ClassVar[str] = "several operating points at once, for a monitor"
    serves: ClassVar[frozenset[ProblemType]] = frozenset(PROBLEM_TYPES)
    knobs: ClassVar[Mapping[str, Knob]] = {
        "rung": Knob(0, 0, 1000, faster="down", integer=True),
        "whole": Knob(0, 0, 1, faster="down", integer=True),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rules or any(rule.problem_type != self.problem_type for rule, _ in self.rules):
            raise KnobError(f"a shadow needs rules, all of them for {self.problem_type}")

    def start(self, units: Array) -> State:
        xp = array_namespace(units)
        n, where = units.shape[0], device(units)
        state: dict[str, Array] = {}
        for number, (rule, _) in enumerate(self.rules):
            state[f"{number}.layers"] = xp.zeros(n, dtype=xp.int64, device=where)
            state[f"{number}.answer"] = xp.zeros((n, 1), dtype=xp.float32, device=where)  # not read before it is set
            state |= {f"{number}:{key}": values for key, values in rule.start(units).items()}
        return state

    def foresees(self, stage: Stage, knobs: Knobs) -> Array | None:
        xp = array_namespace(knobs["rung"])
        deep = (knobs["rung"] >= len(self.rules)) & (knobs["whole"] == 0)
        return ~deep if bool(xp.all(deep)) else None

    def step(self, stage: Stage, output: ExitOutput, state: State, knobs: Knobs) -> tuple[Decision, State]:
        xp = array_namespace(output.logits)
        rung, whole = knobs["rung"], knobs["whole"] == 1
        watched = bool(xp.any(whole))
        after = dict(state)
        leave, answer, told = xp.zeros_like(whole), output.logits, []
        for number in range(len(self.rules)):
            mine = rung == number
            # What a rule remembers may change its shape at the first exit: then all texts must have been asked.
            if watched or bool(xp.any(mine)) or any(key.startswith(f"{number}:") for key in state):
                now = self._ask(number, stage, output, state, after)
            else:  # nobody wants to know
                now = xp.zeros_like(output.logits)
                after[f"{number}.answer"] = now
            left = after[f"{number}.layers"] > 0
            leave = leave | (mine & left)
            answer = xp.where(mine[:, None], now, answer)
            told += [xp.astype(after[f"{number}.layers"], answer.dtype)[:, None], after[f"{number}.answer"]]
        packed = xp.concat([answer, output.logits, *(xp.astype(part, answer.dtype) for part in told)], axis=1)
        return Decision((leave & ~whole) | stage.is_last, packed), after

    def _ask(self, number: int, stage: Stage, output: ExitOutput, state: State, after: dict[str, Array]) -> Array:
        """What a rule says at an exit, into ``after``. Returns its answer: there, or where it let the text leave."""
        xp = array_namespace(output.logits)
        rule, fixed = self.rules[number]
        layers = state[f"{number}.layers"]
        if stage.is_last and not rule.needs <= output.extras.keys():
            leave, answer = xp.ones_like(layers, dtype=xp.bool), output.logits  # nothing to ask: the model's own head
        else:
            prefix = f"{number}:"
            inner = {key.removeprefix(prefix): values for key, values in state.items() if key.startswith(prefix)}
            own = {
                name: xp.full(layers.shape, value, dtype=xp.float64, device=device(output.logits))
                for name, value in fixed
            }
            decision, inner_after = rule.step(stage, output, inner, own)
            after |= {f"{prefix}{key}": values for key, values in inner_after.items()}
            leave, answer = decision.leave | stage.is_last, decision.answer
        first = leave & (layers == 0)
        before = layers > 0
        kept = state[f"{number}.answer"]
        kept = kept if kept.shape == answer.shape else xp.zeros_like(answer)  # before the first exit there is none
        said = xp.where(before[:, None], kept, answer)
        after[f"{number}.layers"] = xp.where(first, xp.full_like(layers, stage.layers), layers)
        after[f"{number}.answer"] = said
        return said

    def told(self, answer: NDArray[Any]) -> Told:
        """What a finished text's answer holds.

        Args:
            answer: ``Finished.answer``.
        """
        rules = len(self.rules)
        width = (len(answer) - rules) // (rules + 2)
        rest = answer[2 * width :].reshape(rules, 1 + width)
        return Told(answer[:width], answer[width : 2 * width], rest[:, 0].astype(np.int64), rest[:, 1:])
