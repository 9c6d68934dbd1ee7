"""Who runs next: queues of rows before each stage, and the choice of the next batch. No arrays, no clock, no model.

A batch loses rows at every exit. Where its survivors are many they go on as they are; where they are few they are
parked before the next stage until there are enough of them, from whichever batches, to fill a batch again. Each call of
``next`` is one *step* and picks, in this order:

1. **Starving rows.** The longest-parked rows, if ``patience_steps`` steps have gone by without them.
2. **The survivors of the step before** (of a lane's, where several run), if they have ``go_on`` tokens, or are all that
   is here, and have little padding: nothing of theirs has to be moved. How many are worth it depends on the machine: a
   CPU takes as long for a token among a hundred as among thousands.
3. **The deepest full stage**: ``hold`` batches of rows are parked there (``hold * max_rows``, or as many tokens).
   Deepest, because what runs there can only move rows on to emptier places. More than one batch, because survivors
   come from texts of all lengths: out of many a batch of like lengths can be taken, and padding is computed too. It
   then runs until half of them are gone or others come, its fullest batches first: they are planned once.
4. **New inputs**: those that have waited longest, in the company of waiting inputs of like length.
5. **The shallowest stage** with rows. Nothing else can arrive from above it, so going downwards each later stage
   is met by all the survivors there will ever be: the fewest batches.

What follows from it, and is tested:

- *Memory is bounded.* Inputs are admitted only when no stage is full, so before it at most ``hold * max_rows - 1`` rows
  are parked at each of the ``stages - 1`` later stages; admission adds at most ``max_rows`` and nothing else adds any.
  In flight are at most ``(stages - 1) * (hold * max_rows - 1) + max_rows`` rows, inputs not counted.
- *Nobody starves.* A parked row is passed over at most ``patience_steps`` times, plus once for every row that was
  parked before it. Inputs are admitted oldest first, and between two admissions rows can only go down and out.
- *Little is padding.* The rows of a stage are split so that padding and calls cost least together (``batches.alike``),
  and no batch computes more than ``waste`` times its real tokens, or ``max_tokens``. A longer row goes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from offramp.engine.batches import alike
from offramp.errors import KnobError

__all__ = ["Scheduler", "Work"]

_PLANNED = 64
"""Batches of inputs planned ahead: sorting a long backlog at every arrival would cost more than it saves."""


@dataclass(frozen=True)
class Work:
    """The next batch."""

    stage: int
    """0: inputs to embed; otherwise rows parked before this stage."""
    ids: list[int]


@dataclass(frozen=True)
class _Place:
    length: int
    since: int
    """Step at whose end the row came here."""


class Scheduler:
    """Queues of rows before each stage.

    Args:
        stages: how many there are.
        max_rows: most rows in a batch.
        max_tokens: most positions in a batch, padding included; None: no limit.
        patience_steps: how often parked rows may be passed over before they go next; 0: depth first.
        waste: positions computed, as a multiple of real tokens, that a batch may reach; infinity: any.
        hold: batches' worth of rows that wait before a stage until it runs.
        go_on: tokens with which the survivors of a step are the next batch; infinity: they always wait.
        call: what a batch costs besides its tokens, in tokens.
        room: with how many rows and tokens a batch of so many is computed; None: as many.

    Raises:
        KnobError: a setting outside what it may be.
    """

    def __init__(
        self,
        stages: int,
        *,
        max_rows: int,
        max_tokens: int | None,
        patience_steps: int,
        waste: float,
        hold: int = 1,
        go_on: float = math.inf,
        call: float = math.inf,
        room: Callable[[int, int], tuple[int, int]] | None = None,
    ) -> None:
        if max_rows < 1 or (max_tokens is not None and max_tokens < 1):
            raise KnobError(
                f"a batch needs room for one row and one token, not {max_rows} rows and {max_tokens} tokens"
            )
        if patience_steps < 0:
            raise KnobError(f"patience_steps must be 0 or more, not {patience_steps}")
        if not waste >= 1:
            raise KnobError(f"waste must be 1 (no padding at all) or more, not {waste!r}")
        if hold < 1:
            raise KnobError(f"hold must be 1 or more, not {hold}")
        if not go_on >= 0:
            raise KnobError(f"go_on must be 0 tokens or more, not {go_on!r}")
        if not call >= 0:
            raise KnobError(f"call must be 0 tokens or more, not {call!r}")
        self._hold, self._go_on, self._call, self._room = hold, go_on, call, room
        self._max_rows, self._max_tokens = max_rows, math.inf if max_tokens is None else max_tokens
        self._patience, self._waste = patience_steps, waste
        # Insertion order is order of arrival: the first row of a queue is its oldest.
        self._queues: list[dict[int, _Place]] = [{} for _ in range(stages)]
        self._stage_of: dict[int, int] = {}
        # Of each stage, row -> the batch that it will be in: until others come to it.
        self._plans: list[dict[int, list[int]]] = [{} for _ in range(stages)]
        self._draining: set[int] = set()  # stages that were full, and still run
        self._survivors: list[Work] = []  # that are to go on: of the step before, of each lane
        self._last: Work | None = None  # survivors of the step before, be they many or few
        self._step = 0

    def __len__(self) -> int:
        """Rows in all queues, inputs included."""
        return len(self._stage_of)

    def __contains__(self, row: int) -> bool:
        return row in self._stage_of

    @property
    def waiting(self) -> int:
        """Inputs that have not been admitted."""
        return len(self._queues[0])

    def put(self, stage: int, ids: Sequence[int], lengths: Sequence[int]) -> None:
        """Queue rows before a stage: the survivors of this step, in one call; stage 0: inputs."""
        for row, length in zip(ids, lengths, strict=True):
            self._queues[stage][row] = _Place(length, self._step)
            self._stage_of[row] = stage
        if ids:
            self._plan_anew(stage)
        if stage and ids and max(lengths) * len(ids) <= self._waste * sum(lengths):
            self._last = Work(stage, list(ids))
            if sum(lengths) >= self._go_on:
                self._survivors.append(self._last)

    def drop(self, ids: Iterable[int]) -> dict[int, int]:
        """Forget rows; those not here are left out. Returns row -> the stage it was waiting for."""
        found = {row: self._stage_of.pop(row) for row in dict.fromkeys(ids) if row in self._stage_of}
        for row, stage in found.items():
            del self._queues[stage][row]
            self._plan_anew(stage)
        self._survivors, self._last = [], None
        return found

    def _plan_anew(self, stage: int) -> None:
        self._plans[stage] = {}
        self._draining.discard(stage)

    def next(self) -> Work | None:
        """Take the next batch out of its queue; None where nothing waits."""
        if not self._stage_of:
            return None
        self._step += 1
        stage, ids = self._choose()
        self._last = None
        # Some that were to go on may have been taken along: the others of their batch wait for company.
        self._survivors = [each for each in self._survivors if each.stage != stage or not set(ids) & set(each.ids)]
        if self._plans[stage].get(ids[0]) is not ids:  # not one of the batches planned
            self._plan_anew(stage)
        for row in ids:
            del self._queues[stage][row], self._stage_of[row]
            self._plans[stage].pop(row, None)
        return Work(stage, ids)

    def _choose(self) -> tuple[int, list[int]]:
        """The five rules at the top of this file."""
        later = range(1, len(self._queues))
        starving = self._starving()
        if starving is not None:
            return starving, self._with_oldest(starving)
        if self._survivors:
            going_on = self._survivors.pop()
            return going_on.stage, going_on.ids
        if self._last is not None and len(self._last.ids) == len(self._stage_of):
            return self._last.stage, self._last.ids
        for stage in reversed(later):
            if self._full(stage):
                return stage, max(self._planned(stage).values(), key=len)
        if self._queues[0]:
            return 0, self._with_oldest(0)
        shallowest = next(stage for stage in later if self._queues[stage])
        return shallowest, self._with_oldest(shallowest)

    def _starving(self) -> int | None:
        """The stage with the longest-parked row, if that row has been passed over too often."""
        parked = [(stage, queue) for stage, queue in enumerate(self._queues) if stage and queue]
        if not parked:
            return None
        since, stage = min((next(iter(queue.values())).since, stage) for stage, queue in parked)
        passed_over = self._step - 1 - since
        return stage if passed_over >= self._patience else None

    def _full(self, stage: int) -> bool:
        """Whether as much waits as may wait, or more than half of that where it has begun to run."""
        queue, rows, tokens = self._queues[stage], self._hold * self._max_rows, self._hold * self._max_tokens
        if stage in self._draining:
            rows, tokens = rows // 2 + 1, tokens / 2 + 1
        full = len(queue) >= rows
        if not full and tokens < math.inf:
            full = sum(place.length for place in queue.values()) >= tokens
        if full:
            self._draining.add(stage)
        return full

    def _planned(self, stage: int) -> dict[int, list[int]]:
        """Row -> its batch, for the rows before a stage; of very many inputs, for those that came first."""
        oldest = next(iter(self._queues[stage]))
        if oldest not in self._plans[stage]:
            ids = list(islice(self._queues[stage], _PLANNED * self._max_rows))
            parts = alike(
                [self._queues[stage][row].length for row in ids],
                max_rows=self._max_rows, max_tokens=self._max_tokens, waste=self._waste, call=self._call,
                room=self._room,
            )  # fmt: skip
            batches = [[ids[row] for row in part] for part in parts]
            self._plans[stage] = {row: batch for batch in batches for row in batch}
        return self._plans[stage]

    def _with_oldest(self, stage: int) -> list[int]:
        return self._planned(stage)[next(iter(self._queues[stage]))]
