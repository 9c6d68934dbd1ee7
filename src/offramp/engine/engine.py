"""The engine: a state machine without a clock. Units go in, steps are taken, finished units come out.

``predict`` is a loop around it, a server is another. It knows a runtime only through ``embed``, ``run``, ``exit`` and
what it declares, and a criterion through ``start`` and ``step``; which batch runs when is the scheduler's business.

A text alone in its batch goes through all stages in one call, where the runtime has one for the criterion.

What the host needs to know of a row (its id, length, knobs) is kept in numpy beside the runtime's arrays, so that
one stage costs one transfer: who leaves, and with which answer. Where a GPU computes, even that is not waited for: the
next batch is queued first (``ahead``), so that the GPU has work while the host reads what the batch before said.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from offramp.criteria.base import Criterion
from offramp.engine.alone import answers_in_one_call, in_one_call
from offramp.engine.lanes import Lanes
from offramp.engine.rows import Group, Rows, gathered, without_hidden
from offramp.engine.scheduler import Scheduler
from offramp.engine.transfers import Told, Transfers
from offramp.engine.units import (
    Finished,
    KnobsFor,
    Unit,
    check_fits,
    check_tokens,
    decide,
    decides_on_host,
    on_host,
    resolve_knobs,
)
from offramp.errors import DataError, KnobError, OfframpError
from offramp.inputs.batching import pad
from offramp.runtimes.base import Pads, Runtime, SharesThreads, StageCost
from offramp.types import Knobs, Stage

__all__ = ["Counts", "Engine"]

_Int = npt.NDArray[np.int64]

_CPU_TOKENS = 600.0
"""Tokens with which a batch goes on where nobody measured what a stage costs: torch on a CPU, where measuring takes
longer than many a use. Read off whole runs (docs/performance.md).
"""

_CPU_CALL = 45.0
"""Tokens for whose time torch on a CPU passes a batch through a stage, besides its tokens: read off whole runs too."""


@dataclass(frozen=True, eq=False)
class Counts:
    """What has been run, per stage. Each [stages] int64."""

    batches: _Int
    rows: _Int
    tokens: _Int
    """Without padding."""
    padded_tokens: _Int
    """Positions computed, padding included."""


@dataclass(eq=False, slots=True)
class _Asked:
    """Rows that are with an exit: who of them leaves is on its way to the host."""

    stage: Stage
    rows: Rows
    told: Told
    ids: set[int]
    """Of rows that nobody cancelled since."""


class Engine:
    """Runs a model with exits.

    Args:
        runtime: the model.
        criterion: who leaves.
        pad_token: token id that stands for padding (never read by a runtime that goes by lengths).
        max_rows: most rows in a batch.
        max_tokens: most positions in a batch, padding included; a longer text goes alone. None: no limit.
        patience_steps: how many steps parked rows may be passed over (see ``scheduler``): less is fairer, more is
            fuller batches.
        waste: most positions computed per real token in a batch.
        hold: batches' worth of rows that wait between two stages for company of like length. More is less padding,
            and more memory: twice as many rows as may wait are kept before a stage (see ``rows.Group``).
        go_on: tokens with which the survivors of a batch go on at once, as they are; infinity: they always wait for
            company. None: by what a stage costs, where that is known; or else what is right on a CPU, where a token
            costs the same in any batch of more than some hundreds (docs/performance.md).
        cost: of a stage, by which batches are split too; None: as the runtime says.
        lanes: batches that ``run`` and ``run_in_order`` compute side by side, each by a thread of its own.
        ahead: batches that are queued before the host reads what an exit said of one. They wait for nothing, and no
            text computes more for it. None: one where the runtime defers, or else none.

    Raises:
        UnsupportedError: the criterion does not fit the runtime's model.
        KnobError: a setting outside what it may be.

    Attributes:
        counts: batches, rows and tokens run at each stage so far.
    """

    def __init__(
        self,
        runtime: Runtime,
        criterion: Criterion,
        *,
        pad_token: int,
        max_rows: int = 32,
        max_tokens: int | None = None,
        patience_steps: int = 256,
        waste: float = 1.25,
        hold: int = 8,
        go_on: float | None = None,
        cost: StageCost | None = None,
        lanes: int = 1,
        ahead: int | None = None,
    ) -> None:
        check_fits(criterion, runtime.info)
        if lanes < 1:
            raise KnobError(f"lanes must be 1 or more, not {lanes}")
        self._ahead = int(runtime.info.deferred) if ahead is None else ahead
        if self._ahead < 0:
            raise KnobError(f"ahead must be 0 or more, not {ahead}")
        self._lanes = lanes
        self._lock = threading.Lock()  # around all but computing: steps may be taken by several threads
        self._runtime, self._criterion, self._pad_token, self._max_rows = runtime, criterion, pad_token, max_rows
        self._stages = runtime.info.stages
        self._runs_single = answers_in_one_call(runtime.info, criterion)
        self._on_host = decides_on_host(runtime.info)
        self._room = runtime.room if isinstance(runtime, Pads) else None
        self._shared_out = runtime.shared_out if isinstance(runtime, SharesThreads) else None
        self._scheduler = Scheduler(
            len(self._stages),
            max_rows=max_rows,
            max_tokens=max_tokens,
            patience_steps=patience_steps,
            waste=waste,
            hold=hold,
            go_on=_enough_tokens(cost or runtime.info.cost) if go_on is None else go_on,
            call=_call_in_tokens(cost or runtime.info.cost),
            room=self._room,
        )
        self._most_kept = 2 * hold * max_rows
        self._inputs: dict[int, tuple[Unit, Mapping[str, float]]] = {}
        self._parked: list[list[Group]] = [[] for _ in self._stages]
        self._asked: deque[_Asked] = deque()
        self._transfers = Transfers(runtime)
        self._token_types: bool | None = None
        self.counts = Counts(*(np.zeros(len(self._stages), dtype=np.int64) for _ in range(4)))

    @property
    def busy(self) -> bool:
        """Units are waiting, parked, or with an exit: there is something for ``step`` to do."""
        return len(self._scheduler) > 0 or bool(self._asked)

    @property
    def waiting(self) -> int:
        """Units that have not entered the first layer."""
        return self._scheduler.waiting

    @property
    def in_flight(self) -> int:
        """Units between stages: at most (stages - 1) x (hold x max_rows - 1) + max_rows after any step, and max_rows
        more for every further lane and every batch ``ahead``.
        """
        return len(self._scheduler) - self._scheduler.waiting + sum(len(asked.ids) for asked in self._asked)

    def add(self, units: Sequence[Unit], knobs: KnobsFor = None) -> None:
        """Take units in. Nothing is computed yet, and nothing is taken where any of them is refused.

        Args:
            units: with ids that no unit in the engine has.
            knobs: one mapping for all, or one for each. The criterion's knobs, and ``max_layers``: leave at the first
                exit after so many layers or more. What is left out has its default.

        Raises:
            KnobError: an unknown knob, or a value outside what it may be.
            DataError: an id that is already here, a text without tokens, or texts of different tokenizers.
        """
        each = resolve_knobs(self._criterion, knobs, len(units))
        types = self._check(units)
        if not units:
            return
        with self._lock:
            self._token_types = types
            self._inputs.update((unit.id, (unit, settings)) for unit, settings in zip(units, each, strict=True))
            self._scheduler.put(0, [unit.id for unit in units], [len(unit.encoded.tokens) for unit in units])

    def _check(self, units: Sequence[Unit]) -> bool | None:
        """Refuse units that cannot be run. Returns whether texts here have token types (None: no text yet)."""
        seen: set[int] = set()
        types = self._token_types
        for unit in units:
            if unit.id in seen or unit.id in self._scheduler or any(unit.id in asked.ids for asked in self._asked):
                raise DataError(f"unit {unit.id} is already in the engine: give every unit an id of its own")
            check_tokens(unit)
            has = unit.encoded.token_types is not None
            if types is not None and has != types:
                raise DataError(f"unit {unit.id} was encoded by a different tokenizer: only some have token types")
            types = has
            seen.add(unit.id)
        return types

    def step(self) -> list[Finished]:
        """Run one batch through one stage. Returns those that left, in no particular order: of that batch, or of one
        whose exit was asked ``ahead`` batches before.

        Several threads may do so at once. Where the runtime or criterion raises, the units of that batch are gone from
        the engine; the others go on.
        """
        with self._lock:
            work = self._scheduler.next()
            if work is None:
                asked = self._asked.popleft() if self._asked else None
            elif work.stage:
                parked = self._take(work.stage, work.ids)
            else:
                inputs = [self._inputs.pop(unit) for unit in work.ids]
        if work is None:
            return [] if asked is None else self._settle(asked)
        if work.stage:
            return self._through(self._stages[work.stage], self._gathered(parked))
        if self._runs_single and len(inputs) == 1:
            return [self._in_one_call(*inputs[0])]
        return self._through(self._stages[0], self._admit(inputs))

    def _through(self, stage: Stage, rows: Rows) -> list[Finished]:
        """Run a stage and ask its exit. Returns those that left, where it is their turn to be known."""
        all_go_on = self._nobody_leaves(stage, rows)
        # Where the next model starts from the inputs, nobody would need what this one computes.
        if not (all_go_on and self._stages[stage.index + 1].starts_from == "inputs"):
            self._compute(stage, rows)
        if all_go_on:
            self._park(stage.index + 1, rows, np.ones(len(rows.ids), dtype=bool))
            return []
        asked = self._ask(stage, rows)
        with self._lock:
            self._asked.append(asked)
            if len(self._asked) <= self._ahead:
                return []
            asked = self._asked.popleft()
        return self._settle(asked)

    def _ask(self, stage: Stage, rows: Rows) -> _Asked:
        """What the exit of a stage says, on its way to the host."""
        output, memory = self._runtime.exit(stage, rows.hidden, rows.batch, rows.memory)
        knobs: Knobs = {name: rows.knobs[name] for name in self._criterion.knobs}
        if self._on_host:
            output = on_host(output, rows.lengths)
        else:
            output = replace(output, lengths=rows.batch.lengths)
            knobs = {name: self._transfers.send(column, rows.batch.lengths) for name, column in knobs.items()}
        decision, state = decide(self._criterion, stage, output, rows.state, knobs)
        rows.memory, rows.state = memory, state
        return _Asked(stage, rows, self._transfers.fetch(decision), set(rows.ids.tolist()))

    def _settle(self, asked: _Asked) -> list[Finished]:
        """Part those that leave from those that go on."""
        stage, rows = asked.stage, asked.rows
        leave, answers = asked.told()
        leave = leave | (rows.knobs["max_layers"] <= stage.layers) | stage.is_last
        stay = ~leave
        if len(asked.ids) < len(leave):
            here = np.array([row in asked.ids for row in rows.ids.tolist()])
            leave, stay = leave & here, stay & here
        if stay.any():
            self._park(stage.index + 1, rows, stay)
        return [
            Finished(int(rows.ids[row]), answers[row].copy(), stage.layers, int(rows.executed[row]), stage.index)
            for row in np.flatnonzero(leave)
        ]

    def _in_one_call(self, unit: Unit, knobs: Mapping[str, float]) -> Finished:
        """Answer a text that is alone."""
        finished = in_one_call(self._runtime, unit, knobs)
        tokens = len(unit.encoded.tokens)
        self._count(slice(finished.exit_index + 1), rows=1, tokens=tokens, positions=tokens)
        return finished

    def _compute(self, stage: Stage, rows: Rows) -> None:
        """Run the layers of a stage."""
        shape = rows.batch.tokens.shape
        self._count(stage.index, rows=shape[0], tokens=int(rows.lengths.sum()), positions=shape[0] * shape[1])
        rows.hidden = self._runtime.run(stage, rows.hidden, rows.batch)
        rows.executed = rows.executed + (stage.last_layer - stage.first_layer)

    def _nobody_leaves(self, stage: Stage, rows: Rows) -> bool:
        """Whether it is known, without running the exit, that all rows go on."""
        if stage.is_last or self._runtime.info.remembers or (rows.knobs["max_layers"] <= stage.layers).any():
            return False
        leave = self._criterion.foresees(stage, rows.knobs)
        return leave is not None and not leave.any()

    def cancel(self, ids: Iterable[int]) -> list[int]:
        """Forget units that have not finished. Returns those that were here; they will not come out."""
        wanted = set(ids)
        with self._lock:
            found = self._scheduler.drop(wanted)
            for unit, stage in found.items():
                if stage == 0:
                    del self._inputs[unit]
            for stage in sorted(set(found.values()) - {0}):
                self._take(stage, [unit for unit, where in found.items() if where == stage])
            return [*found, *self._forget(wanted)]

    def _forget(self, ids: set[int]) -> list[int]:
        """Cancel units that are with an exit. Returns those that were."""
        found: list[int] = []
        for asked in self._asked:
            found += asked.ids & ids
            asked.ids -= ids
        self._asked = deque(asked for asked in self._asked if asked.ids)
        return found

    def run(
        self, units: Iterable[Unit], knobs: Mapping[str, float] | None = None, *, chunk: int = 1024
    ) -> Iterator[Finished]:
        """Answer a stream of units, each as soon as it is finished, in any order.

        Args:
            units: read ``chunk`` at a time, when few are left waiting: memory does not grow with the stream.
            knobs: for all of them.
            chunk: units among which texts of like length are found.

        Raises:
            KnobError: an unknown knob, a value outside what it may be, or a chunk below 1.
            OfframpError: the engine is busy with other units.
            DataError: a unit that is refused (see ``add``).
        """
        self._check_idle(chunk)
        resolve_knobs(self._criterion, knobs, 1)  # complain now, not at the first answer
        return self._run(iter(units), knobs, chunk)

    def _run(self, source: Iterator[Unit], knobs: Mapping[str, float] | None, chunk: int) -> Iterator[Finished]:
        try:
            with Lanes(self, self._lanes, self._shared_out) as lanes:
                while True:
                    if self._wants_more:
                        self.add(list(islice(source, chunk)), knobs)
                    if not lanes.busy:
                        return
                    yield from lanes.step()
        finally:
            self._clear()

    @property
    def _wants_more(self) -> bool:
        """Few are waiting, so that texts of like length are hard to find."""
        return self.waiting < self._lanes * self._max_rows

    def run_in_order(
        self, units: Iterable[Unit], knobs: Mapping[str, float] | None = None, *, chunk: int = 1024
    ) -> Iterator[Finished]:
        """Answer a stream of units in the order of the stream.

        As ``run``, but a finished unit is held back until all before it are finished. At most 2 x ``chunk`` units are
        in here at once, held-back ones included.
        """
        self._check_idle(chunk)
        resolve_knobs(self._criterion, knobs, 1)
        return self._run_in_order(iter(units), knobs, chunk)

    def _run_in_order(
        self, source: Iterator[Unit], knobs: Mapping[str, float] | None, chunk: int
    ) -> Iterator[Finished]:
        order: deque[int] = deque()
        done: dict[int, Finished] = {}
        try:
            with Lanes(self, self._lanes, self._shared_out) as lanes:
                while True:
                    if self._wants_more and len(order) <= chunk:
                        fresh = list(islice(source, chunk))
                        _check_new(fresh, done)
                        self.add(fresh, knobs)
                        order.extend(unit.id for unit in fresh)
                    if not lanes.busy:
                        return
                    done.update((finished.id, finished) for finished in lanes.step())
                    while order and order[0] in done:
                        yield done.pop(order.popleft())
        finally:
            self._clear()

    def _check_idle(self, chunk: int) -> None:
        if chunk < 1:
            raise KnobError(f"chunk must be 1 or more, not {chunk}")
        if self.busy:
            raise OfframpError("the engine is busy with other units: finish or cancel them, or use add() and step()")

    def _clear(self) -> None:
        """Forget all units: whoever reads a stream may stop in the middle."""
        parked = (int(row) for groups in self._parked for group in groups for row in group.ids)
        self.cancel([*self._inputs, *parked, *(row for asked in self._asked for row in asked.ids)])

    def _count(self, stages: int | slice, *, rows: int, tokens: int, positions: int) -> None:
        """One batch more at a stage, or at each of several."""
        with self._lock:
            self.counts.batches[stages] += 1
            self.counts.rows[stages] += rows
            self.counts.tokens[stages] += tokens
            self.counts.padded_tokens[stages] += positions

    def _admit(self, taken: Sequence[tuple[Unit, Mapping[str, float]]]) -> Rows:
        """Embed inputs: rows that have passed no exit yet."""
        ids = [unit.id for unit, _ in taken]
        texts, settings = [unit.encoded for unit, _ in taken], [each for _, each in taken]
        inputs = pad(texts, ids, pad_token=self._pad_token, token_types=bool(self._token_types))
        hidden, batch = self._runtime.embed(inputs)
        return Rows(
            ids=inputs["ids"],
            lengths=inputs["lengths"],
            knobs={name: np.array([each[name] for each in settings], dtype=np.float64) for name in settings[0]},
            executed=np.zeros(len(ids), dtype=np.int64),
            hidden=hidden,
            batch=batch,
            state=self._criterion.start(inputs["lengths"] if self._on_host else batch.lengths),
        )

    def _take(self, stage: int, ids: list[int]) -> list[Group]:
        """Take rows out of the groups parked before a stage."""
        groups = self._parked[stage]
        if groups and groups[-1].ids.tolist() == ids:  # the survivors of the step before, going on
            return [groups.pop()]
        taken, rest, these = [], [], set(ids)
        for group in groups:
            wanted = np.array([row in these for row in group.ids.tolist()])
            if wanted.any():
                taken.append(Group(group.rows, group.left[wanted]))
            if not wanted.all():
                rest.append(Group(group.rows, group.left[~wanted]))
        self._parked[stage] = self._compacted(rest)
        return taken

    def _park(self, stage: int, rows: Rows, stay: npt.NDArray[np.bool_]) -> None:
        """Let those that stay wait before a stage."""
        if self._stages[stage].starts_from == "inputs":
            rows = without_hidden(rows)
        group = Group(rows, np.flatnonzero(stay))
        with self._lock:
            self._parked[stage] = self._compacted([*self._parked[stage], group])
            self._scheduler.put(stage, group.ids.tolist(), rows.lengths[stay].tolist())

    def _compacted(self, groups: list[Group]) -> list[Group]:
        """Groups that keep, one with another, at most twice as many rows as may wait before a stage.

        Seldom is anything done here: most survivors are in their next batch before so many are kept, and copied once.
        """
        if sum(len(group.rows.ids) for group in groups) <= self._most_kept:
            return groups
        return [self._alone(group) if group.is_sparse else group for group in groups]

    def _alone(self, group: Group) -> Group:
        """A group that keeps nothing but what waits."""
        return Group(self._gathered([group]), np.arange(len(group.left)))

    def _gathered(self, groups: Sequence[Group]) -> Rows:
        return gathered(groups, self._transfers.send, self._room)


def _call_in_tokens(cost: StageCost | None) -> float:
    """What a batch costs at a stage besides its tokens, in tokens."""
    return _CPU_CALL if cost is None else cost.tokens_worth_a_call(0.5)  # that many take as long as the call


def _enough_tokens(cost: StageCost | None) -> float:
    return _CPU_TOKENS if cost is None else cost.tokens_worth_a_call()


def _check_new(units: Sequence[Unit], done: Mapping[int, Finished]) -> None:
    """Refuse an id whose first bearer is finished but held back: the two could not be told apart."""
    for unit in units:
        if unit.id in done:
            raise DataError(f"unit {unit.id} came twice: give every unit an id of its own")
