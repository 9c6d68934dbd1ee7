"""What a way to serve a model looks like to ``offramp bench``: prepared once, then opened in a process of its own.

A file here has two functions. ``prepare(model, folder, texts, settings)`` writes what is served (graphs, converted
weights) and returns facts worth telling, such as how many operators were fused. ``serve(model, folder, way, settings)``
opens it. The two run in different processes, so that a server's memory and start-up are its own.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from offramp.inputs.batching import length_sorted, pad
from offramp.inputs.tokens import Encoded

__all__ = ["AS_IT_COMES", "Floats", "Job", "Server", "Way", "answered", "make_ready", "open_server", "padded"]

Floats = npt.NDArray[np.floating[Any]]


AS_IT_COMES = "as the library has it"
"""Of a setting that is left alone, such as whether idle threads spin."""


@dataclass(frozen=True)
class Way:
    """How a row uses the cores."""

    threads: int
    """Of every operator."""
    lanes: int = 1
    """Batches computed side by side."""


@dataclass(frozen=True)
class Job:
    """One row of the benchmark: which file here serves which model, and how."""

    name: str
    """Short, without spaces: ``--rows`` takes it."""
    label: str
    """As tables name it."""
    module: str
    """File here."""
    model: Path
    """Folder of the model: transformers' own, or a run's."""
    folder: Path
    """Where what is served was prepared."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    """Modules that must be there."""
    group: Literal["peer", "shallow", "full", "whole", "exits"] = "peer"
    """``peer``: a full-depth deployment to beat. Ours: ``full`` depth; ``whole``, the same without the engine;
    ``shallow``, a static exit; ``exits``."""
    family: str = ""
    """Rows of ours on one runtime in one number format share a name."""
    scenarios: tuple[str, ...] = ("Offline", "SingleStream")
    """That the row takes part in."""
    lanes: bool = False
    """It can compute batches side by side, with as many threads for each as it is told."""


class Server(Protocol):
    """A model that is being served."""

    takes_texts: bool
    """It has a tokenizer of its own and takes nothing but texts: ``answer_texts`` stands in ``answer``'s place."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Plain values: dtype, threads, spinning, what came of running (layers, padding), whatever bears on speed."""

    def answer(self, texts: Sequence[Encoded], max_rows: int) -> Floats:
        """Logits [N, C] of texts, in their order, computed at most ``max_rows`` together."""


def make_ready(job: Job, texts: Sequence[Encoded]) -> Mapping[str, Any]:
    """Write what a row serves. Returns facts.

    Args:
        job: the row.
        texts: like those that will be served, where ranges of activations are measured.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    made: Mapping[str, Any] = _module(job).prepare(job.model, job.folder, texts, job.settings)
    return made


def open_server(job: Job, way: Way) -> Server:
    """Open what was made ready."""
    server: Server = _module(job).serve(job.model, job.folder, way, job.settings)
    return server


def _module(job: Job) -> Any:
    return importlib.import_module(f"offramp.bench.deployments.{job.module}")


def answered(texts: Sequence[Encoded], max_rows: int, answer: Callable[[Any], Floats], *, lanes: int = 1) -> Floats:
    """Logits of all texts, in batches as a careful user of any library makes them: of like length, longest first.

    Args:
        texts: any number.
        max_rows: of a batch.
        answer: row numbers of a batch -> its logits [B, C].
        lanes: batches that are given out at once, each to a thread of its own.
    """
    batches = list(length_sorted([len(text) for text in texts], max_rows=max_rows))
    if lanes == 1:
        return _gathered(zip(batches, map(answer, batches), strict=True), len(texts))
    with ThreadPoolExecutor(lanes) as pool:
        return _gathered(zip(batches, pool.map(answer, batches), strict=True), len(texts))


def padded(texts: Sequence[Encoded], pad_token: int) -> dict[str, npt.NDArray[np.int64]]:
    """Inputs by the names that transformers gives them: ``input_ids``, ``attention_mask`` and, where the model has
    them, ``token_type_ids``, all int64 [B, L].
    """
    types = texts[0].token_types is not None
    given = pad(texts, range(len(texts)), pad_token=pad_token, token_types=types)
    width = given["tokens"].shape[1]
    inputs = {
        "input_ids": given["tokens"],
        "attention_mask": (np.arange(width) < given["lengths"][:, None]).astype(np.int64),
    }
    if types:
        inputs["token_type_ids"] = given["token_types"]
    return inputs


def _gathered(parts: Iterable[tuple[npt.NDArray[np.int64], Floats]], count: int) -> Floats:
    """Answers of batches, put into the order of the texts."""
    answers: Floats | None = None
    for rows, logits in parts:
        if answers is None:
            answers = np.full((count, logits.shape[1]), math.nan, dtype=np.float32)
        answers[rows] = logits
    assert answers is not None
    return answers
