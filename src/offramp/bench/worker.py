"""A process of its own for each row of the benchmark: its memory and start-up are its own, and no pool of threads
stands in another's way.

The parent sends commands through a pipe, one at a time, so that rows take turns. What a worker raises comes back as a
``Failure`` and is told as the row's result.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from offramp.errors import OfframpError
from offramp.inputs.tokens import Text

__all__ = ["Failure", "Load", "Worker", "in_a_process"]

_SAMPLE = 256
"""Texts of a sample, about."""
_CLOSED = 10.0
"""Seconds a worker has to end before it is made to."""


@dataclass(frozen=True)
class Load:
    """What every row is given to do."""

    texts: Sequence[Text]
    """For Offline."""
    single: Sequence[Text]
    """For SingleStream."""
    tokenizer: Path
    """Folder of the tokenizer."""
    max_length: int
    max_rows: int
    threads: int

    @property
    def sample(self) -> Sequence[Text]:
        """Texts on which exports measure ranges and agreement, spread over all."""
        return self.texts[:: max(1, len(self.texts) // _SAMPLE)]


@dataclass(frozen=True)
class Failure:
    """Why a row has no numbers."""

    sentence: str
    details: str


class Worker:
    """The parent's end.

    Args:
        job: a ``deployments.Job``.
        load: what it will be given to do.
        way: a ``deployments.Way``.

    Attributes:
        startup: seconds from the start of the process, imports included, to the first answer; None where it failed.
        failure: why it did not start, if it did not.
    """

    def __init__(self, job: Any, load: Load, way: Any) -> None:
        started = time.monotonic()
        self._process, self._pipe = _start(_serve, job, load, way)
        ready = self._receive()
        self.failure = ready if isinstance(ready, Failure) else None
        self.startup = None if self.failure else time.monotonic() - started

    def ask(self, command: str, *arguments: Any) -> Any:
        """Run a command (see ``_Row``) and wait for it. A ``Failure`` is returned, not raised."""
        try:
            self._pipe.send((command, arguments))
        except OSError:
            return _ended(self._process)
        return self._receive()

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            with contextlib.suppress(OSError):  # it may just have ended by itself
                self._pipe.send(None)
            self._process.join(_CLOSED)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def _receive(self) -> Any:
        return _received(self._process, self._pipe)


def in_a_process(function: Any, *arguments: Any, threads: int) -> Any:
    """Call a function in a fresh process and return what it returns, or a ``Failure``."""
    process, pipe = _start(_call, threads, function, arguments)
    said = _received(process, pipe)
    process.join()
    return said


def _start(target: Any, *arguments: Any) -> tuple[Any, Connection]:
    """A fresh process that runs ``target(pipe, *arguments)``, and this end of the pipe."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=target, args=(other, *arguments), daemon=True)
    process.start()
    other.close()
    return process, pipe


def _received(process: Any, pipe: Connection) -> Any:
    """What a process says next, or how it ended."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return _ended(process)


def _ended(process: Any) -> Failure:
    process.join()
    return Failure(f"its process ended with status {process.exitcode}", "")


def _call(pipe: Connection, threads: int, function: Any, arguments: Sequence[Any]) -> None:
    _settle(threads)
    try:
        said = function(*arguments)
    except Exception as error:  # a library of someone else's may raise anything; the row tells it
        said = _failure(error)
    pipe.send(said)


def _serve(pipe: Connection, job: Any, load: Load, way: Any) -> None:
    _settle(way.threads)
    try:
        row = _Row(job, load, way)
    except Exception as error:  # as above
        pipe.send(_failure(error))
        return
    pipe.send(True)
    while (message := pipe.recv()) is not None:
        command, arguments = message
        try:
            said = getattr(row, command)(*arguments)
        except Exception as error:  # as above
            said = _failure(error)
        pipe.send(said)


def _settle(threads: int) -> None:
    """Threads of libraries that read the environment; and quiet: what they print is not ours to show."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    if not os.environ.get("OFFRAMP_BENCH_DEBUG"):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _failure(error: Exception) -> Failure:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    sentence = said if isinstance(error, OfframpError) else f"{type(error).__name__}: {said}"
    return Failure(sentence, traceback.format_exc())


class _Row:
    """The worker's end: one server, and the commands it understands."""

    def __init__(self, job: Any, load: Load, way: Any) -> None:
        from offramp.bench.deployments import open_server
        from offramp.inputs.tokens import Tokenizer

        self._load = load
        self._tokenizer = Tokenizer.from_folder(load.tokenizer, max_length=load.max_length)
        self._server: Any = open_server(job, way)
        self._takes_texts = bool(self._server.takes_texts)
        self._answer([load.texts[0]], None)
        self._encoded = self._tokenizer.encode(load.texts)
        self._single = self._tokenizer.encode(load.single)

    def _answer(self, texts: Sequence[Text], encoded: Any) -> Any:
        if self._takes_texts:
            return self._server.answer_texts(texts, self._load.max_rows)
        given = self._tokenizer.encode(texts) if encoded is None else encoded
        return self._server.answer(given, self._load.max_rows)

    def can(self, tokenised: bool) -> bool:
        """Whether it can be timed with tokenisation, or without."""
        return tokenised or not self._takes_texts

    def offline(self, tokenised: bool) -> float:
        """Seconds for all texts."""
        start = time.perf_counter()
        self._answer(self._load.texts, None if tokenised else self._encoded)
        return time.perf_counter() - start

    def single(self, tokenised: bool) -> list[float]:
        """Seconds of each text, one after the other."""
        found = []
        for number, text in enumerate(self._load.single):
            start = time.perf_counter()
            self._answer([text], None if tokenised else self._single[number : number + 1])
            found.append(time.perf_counter() - start)
        return found

    def answers(self) -> Any:
        """Logits of the texts of Offline."""
        return self._answer(self._load.texts, self._encoded)

    def answers_one_by_one(self) -> Any:
        """The same, each text alone."""
        import numpy as np

        alone = [self._answer([text], self._encoded[n : n + 1]) for n, text in enumerate(self._load.texts)]
        return np.concatenate(alone)

    def facts(self) -> Mapping[str, Any]:
        """Of the server; lengths of the texts, each of which was run before the clock counted; and the most memory that
        the process has held, in megabytes.
        """
        lengths = {len(text) for text in self._encoded}
        return {**self._server.facts, "lengths_warmed_up": len(lengths), "peak_memory_mb": _peak_memory() / 1e6}


def _peak_memory() -> int:
    """The most bytes that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # where getrusage counts what the parent held when it started this process
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
