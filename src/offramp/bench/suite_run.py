"""Running a suite: cell by cell, in a box of time, going on where it was interrupted.

A cell goes through a folder of its own under the work folder: ``train`` keeps checkpoints there, then a run folder.
Its trace is kept among the results and the run folder is removed. Killed at any moment, the next run finds the
checkpoints, or the run folder, or the record, and goes on from there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from offramp.bench.provenance import provenance, write_result
from offramp.bench.suite import Cell, Suite, SuiteTask, select
from offramp.bench.suite_first_phase import first_phase_folder, goes_on, keep_first_phase
from offramp.bench.suite_inputs import check_inputs, data_files, data_hash, encoder_hash, missing_data
from offramp.bench.suite_results import BEGUN, NOT_YET, Results
from offramp.errors import DataError, InUseError, KnobError, OfframpError, RunError
from offramp.run import Run
from offramp.traces.curves import full_depth, static_exits
from offramp.traces.store import load_trace
from offramp.traces.tally import make_tally

if TYPE_CHECKING:
    from offramp.training.train import Plan

__all__ = ["Places", "run_suite", "why_not"]

logger = logging.getLogger(__name__)

CAUTION = 1.1
"""Expected seconds are multiplied by this before a cell is begun."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a suite finds and puts things."""

    data: Path
    """Root of the tasks' folders."""
    work: Path
    """Checkpoints and run folders of the cells under way."""
    results: Path
    model: str | None = None
    """Folder of the encoder; None: the name the suite gives."""
    keep_runs: bool = False
    """Leave the run folders of finished cells in the work folder."""


class _TimeIsUp(BaseException):
    """Not an Exception, so that nothing on the way takes it for one of its own."""


def run_suite(
    suite: Suite,
    places: Places,
    *,
    minutes: float | None = None,
    tasks: Sequence[str] = (),
    recipes: Sequence[str] = (),
    train: Callable[[Plan], object] | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run what is not done yet, the most useful first, and write ``suite.json`` after every cell.

    Args:
        suite: what to run.
        places: where from and where to.
        minutes: no cell is begun that is not expected to end in time, and one under way is stopped then; its
            checkpoints stay. None: until all is done.
        tasks: only these; none named: all.
        recipes: only these entries; none named: all.
        train: by default ``offramp.training.train.train``.
        say: told of each cell, a line each.

    Returns:
        The cells of ``suite.json``.

    Raises:
        KnobError: a task or recipe that the suite does not have, or minutes below 0.
        DataError: the root of the data is no folder.
        RunError: the results hold cells of another encoder, or of other rows.
    """
    if minutes is not None and not minutes >= 0:
        raise KnobError(f"--minutes must be 0 or more, not {minutes}")
    if not places.data.is_dir():
        raise DataError(f"there is no folder {places.data}: --data takes the folder that holds a folder for each task")
    end = None if minutes is None else time.monotonic() + 60 * minutes
    runner = _Runner(suite, places, Results(places.results), train or _train, say)
    runner.check_what_is_there()
    runner.write()
    tried: set[str] = set()
    for cell in select(suite.cells(), tasks=tasks, recipes=recipes):
        key, reason = runner.status(cell)
        if key is None or key in tried or reason is None or why_not(suite, places, cell) is not None:
            continue
        tried.add(key)
        left = None if end is None else end - time.monotonic()
        if not runner.fits(cell, key, left):
            continue
        try:
            with _limit(left):
                runner.run(cell, key)
        except _TimeIsUp:
            say(f"{_name(cell)}: stopped, the time is up; its checkpoints stay in {runner.folder(cell, key)}.training")
            break
        runner.write()
    return runner.write()


def why_not(suite: Suite, places: Places, cell: Cell) -> str | None:
    """Why a cell cannot be run, in words; None where it can."""
    try:
        suite.entries[cell.recipe].rule(suite.tasks[cell.task].problem_type)
    except OfframpError as error:
        return str(error)
    return missing_data(suite.tasks[cell.task], places.data)


@dataclass
class _Runner:
    suite: Suite
    places: Places
    results: Results
    train: Callable[[Plan], object]
    say: Callable[[str], None]
    hashes: dict[str, str] = field(default_factory=dict)
    """Task -> of its rows, as far as they were asked for."""

    def folder(self, cell: Cell, key: str) -> Path:
        """Run folder of a cell under way."""
        return self.places.work / f"{cell.task}-{key}"

    def status(self, cell: Cell) -> tuple[str | None, str | None]:
        """Key of a cell's training, and why it is not run; no reason where it is done."""
        try:
            self.suite.entries[cell.recipe].rule(self.suite.tasks[cell.task].problem_type)
        except OfframpError as error:
            return None, str(error)
        key = self.suite.key(cell)
        if self.results.record(cell.task, key) is not None:
            return key, None
        reason = why_not(self.suite, self.places, cell) or self.results.failure(cell.task, key)
        return key, reason or (BEGUN if _begun(self.folder(cell, key)) else NOT_YET)

    @cached_property
    def encoder(self) -> str:
        """Hash of the encoder."""
        return encoder_hash(self.places.model or self.suite.encoder)

    def data(self, task: str) -> str:
        """Hash of a task's rows, which are there."""
        if task not in self.hashes:
            self.hashes[task] = data_hash(self.suite.tasks[task], self.places.data)
        return self.hashes[task]

    def check_what_is_there(self) -> None:
        """Complain of cells that were trained from something else. Tasks whose rows are not here are not asked."""
        for cell in self.suite.cells():
            key, reason = self.status(cell)
            if key is None or reason is not None or missing_data(self.suite.tasks[cell.task], self.places.data):
                continue
            record = self.results.record(cell.task, key)
            assert record is not None, "a cell without a record is not done"
            check_inputs(record, encoder=self.encoder, data=self.data(cell.task), results=self.places.results)

    def write(self) -> list[dict[str, Any]]:
        """Write the list of cells."""
        return self.results.write(self.suite, self.status)

    def fits(self, cell: Cell, key: str, left: float | None) -> bool:
        """Whether to begin a cell with so many seconds left. One that is half trained is always gone on with."""
        if left is None:
            return True
        expected = self.expected(cell)
        if left > 0 and (_begun(self.folder(cell, key)) or expected is None or CAUTION * expected <= left):
            return True
        if left > 0 and expected is not None:
            self.say(
                f"{_name(cell)}: not begun, it takes about {expected / 60:.0f} minutes and {left / 60:.0f} are left"
            )
        return False

    def expected(self, cell: Cell) -> float | None:
        """Seconds a cell should take, from those that are done; None where nothing is known.

        The median of them: one cell that a busy machine slowed down says nothing of the next, and one that takes
        longer than thought is stopped in time and keeps its checkpoints.
        """
        records = [one for one in self.results.records() if one["seconds"] and one["epochs"]]
        epochs = _epochs(self.suite, cell)
        kin = [one for one in records if one["task"] == cell.task]
        like = [one for one in kin if one["recipe"] == cell.recipe]
        if like or kin:
            return float(median(one["seconds"] / one["epochs"] for one in like or kin) * epochs)
        rows = _rows(self.suite.tasks[cell.task], self.places.data)
        rates = [one["seconds"] / (one["epochs"] * one["rows"]["train"]) for one in records]
        return None if rows is None or not rates else float(median(rates) * rows * epochs)

    def run(self, cell: Cell, key: str) -> None:
        """Train a cell where it is not trained, and keep its trace. What goes wrong is kept as its reason."""
        from offramp.training.lock import only_training

        self.say(f"{_name(cell)}: training")
        try:
            with only_training(self.folder(cell, key)):
                record = self._record(cell, key, *self._trained(cell, key))
        except InUseError:
            self.say(f"{_name(cell)}: left out, another process trains it")
            return
        except Exception as error:  # one broken recipe must not end a night's work
            known = isinstance(error, OfframpError)
            logger.warning("%s failed: %s", _name(cell), error, exc_info=not known)
            self.results.failed(cell.task, key, str(error) if known else f"{type(error).__name__}: {error}")
            self.say(f"{_name(cell)}: failed, {error}")
            return
        self.say(f"{_name(cell)}: {record['metric']} {100 * record['full_depth']:.1f}, {record['seconds']:.0f} s")

    def _record(self, cell: Cell, key: str, seconds: float, pieces: int) -> dict[str, Any]:
        """Keep the trace of a run folder, with what it came from, and remove the folder."""
        folder = self.folder(cell, key)
        trained = _read_json(folder / "training.json")
        trace = load_trace(folder / "traces" / "dev")
        metric = make_tally(trace).check(self.suite.tasks[cell.task].metric)
        record = {
            "task": cell.task,
            "recipe": cell.recipe,
            "seed": cell.seed,
            "key": key,
            "num_layers": self.suite.entries[cell.recipe].num_layers,
            "arguments": self.suite.plan_arguments(cell),
            "epochs": _epochs(self.suite, cell),
            "rows": trained["rows"],
            "encoder_hash": self.encoder,
            "data_hash": self.data(cell.task),
            "seconds": round(seconds, 1),
            "pieces": pieces,
            "first_phase": "taken over" if "taken from" in trained["phases"][0] else "trained",
            "metric": metric,
            "full_depth": full_depth(trace)[metric],
            "exits": [one[metric] for one in static_exits(trace)],
            **provenance(seeds=[cell.seed]),
        }
        self.results.keep(trace, record)
        keep_first_phase(self.suite, cell, folder, self.places.work)
        if not self.places.keep_runs:
            shutil.rmtree(folder, ignore_errors=True)
        _clock(folder).unlink(missing_ok=True)
        return record

    def _trained(self, cell: Cell, key: str) -> tuple[float, int]:
        """Seconds of training and the pieces it came in; the run folder is there afterwards."""
        folder = self.folder(cell, key)
        before = _before(folder)
        if _is_run(folder):  # killed after training, before its trace was kept
            return before["seconds"], before["pieces"]
        begun = _begun(folder)
        if not begun:
            shutil.rmtree(_checkpoints(folder), ignore_errors=True)  # killed before its plan was written
        plan = self._plan(cell, folder)
        now = {"seconds": before["seconds"] if begun else 0.0, "pieces": before["pieces"] + 1 if begun else 1}
        write_result(_clock(folder), {**now, "since": time.time()})
        start = time.monotonic()
        try:
            self.train(replace(plan, resume=begun))
        except (KnobError, RunError) as error:
            if not begun:
                raise
            logger.warning("%s is trained from its beginning, not resumed: %s", _name(cell), error)
            shutil.rmtree(_checkpoints(folder), ignore_errors=True)
            self.train(plan)
        seconds = now["seconds"] + time.monotonic() - start
        write_result(_clock(folder), {**now, "seconds": seconds, "since": None})
        return seconds, int(now["pieces"])

    def _plan(self, cell: Cell, folder: Path) -> Plan:
        from offramp.training.train import Plan, pretrained_pooling

        entry, task = self.suite.entries[cell.recipe], self.suite.tasks[cell.task]
        first = first_phase_folder(self.suite, cell, self.places.work)
        model = self.places.model or self.suite.encoder
        pooling = entry.pooling or pretrained_pooling(model)
        if entry.num_layers is not None:
            name = f"first-{entry.num_layers}-layers-{self.encoder[:12]}"
            model = str(_first_layers(model, entry.num_layers, self.places.work / name))
        return Plan(
            model=model,
            data=str(self.places.data / task.folder),
            out=folder,
            recipe=entry.recipe,
            problem_type=task.problem_type,
            settings=entry.settings,
            pooling=pooling,
            max_length=self.suite.max_length,
            max_train_samples=task.train_rows,
            arguments=self.suite.plan_arguments(cell),
            first_phase=first if first.is_dir() and goes_on(self.suite, cell) else None,
            exit_epochs=None if entry.exit_epochs == "recipe" else entry.exit_epochs,
        )


def _train(plan: Plan) -> None:
    from offramp.training.train import train

    train(plan)


def _first_layers(model: str, count: int, folder: Path) -> Path:
    """A folder with an encoder's first layers and its tokenizer; made where it is not there."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    if folder.is_dir():
        return folder
    depth = AutoConfig.from_pretrained(model).num_hidden_layers
    if not 1 <= count <= depth:
        raise KnobError(f"{model} has {depth} layers, so num_layers must lie between 1 and {depth}, not {count}")
    staging = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    AutoModel.from_pretrained(model, num_hidden_layers=count).save_pretrained(staging)
    AutoTokenizer.from_pretrained(model).save_pretrained(staging)
    os.rename(staging, folder)
    return folder


@contextmanager
def _limit(seconds: float | None) -> Iterator[None]:
    """Raise _TimeIsUp in the block after so many seconds; where there is no alarm, the block runs to its end."""
    alarmed = os.name != "nt" and threading.current_thread() is threading.main_thread()
    if seconds is None or not alarmed:
        yield
        return

    def ring(*_: object) -> None:
        raise _TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))  # inside: it may ring before the block begins
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _epochs(suite: Suite, cell: Cell) -> float:
    """Passes over the training rows, all phases together."""
    from offramp.training.arguments import DEFAULTS

    recipe, given = suite.entries[cell.recipe].loaded(), suite.plan_arguments(cell)
    every: list[Mapping[str, Any]] = [
        {**DEFAULTS, **recipe.arguments, **phase.arguments, **given} for phase in recipe.training
    ]
    return float(sum(one["num_train_epochs"] for one in every))


def _rows(task: SuiteTask, root: Path) -> int | None:
    """Training rows, by lines of the file; None where it has no lines."""
    path = data_files(task, root)["train"]
    if path is None or path.suffix == ".parquet":
        return task.train_rows
    with path.open("rb") as file:
        lines = sum(1 for _ in file)
    return lines if task.train_rows is None else min(lines, task.train_rows)


def _checkpoints(folder: Path) -> Path:
    """Where ``train`` keeps them until the run folder is complete."""
    return folder.with_name(folder.name + ".training")


def _begun(folder: Path) -> bool:
    """Whether a training was interrupted there."""
    return (_checkpoints(folder) / "plan.json").is_file()


def _clock(folder: Path) -> Path:
    return folder.with_name(folder.name + ".clock.json")


def _before(folder: Path) -> dict[str, Any]:
    """Seconds spent on a cell before now, as far as their work is kept, and in how many pieces."""
    if not _clock(folder).is_file():
        return {"seconds": 0.0, "pieces": 0}
    clock = _read_json(_clock(folder))
    seconds = clock["seconds"]
    if clock["since"] is not None:  # killed on the way: what was done since the last checkpoint is done again
        saved = [path.stat().st_mtime for path in _checkpoints(folder).glob("phase-*/checkpoint-*/trainer_state.json")]
        trained = _read_json(folder / "training.json")["seconds"] if _is_run(folder) else 0.0
        seconds += max(0.0, trained, *(moment - clock["since"] for moment in saved))
    return {"seconds": seconds, "pieces": clock["pieces"]}


def _is_run(folder: Path) -> bool:
    try:
        Run.open(folder)
    except RunError:
        return False
    return True


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _name(cell: Cell) -> str:
    return f"{cell.task} / {cell.recipe} / seed {cell.seed}"
