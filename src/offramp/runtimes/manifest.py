"""What stands beside exported graphs: which layers each holds, what goes in and comes out, and what was measured.

A run folder holds its exports side by side, each whole: ``RUN/onnx/float32``, ``RUN/openvino/int8``, each with a
``manifest.json``. Reading one needs numpy and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from offramp.errors import RunError
from offramp.runtimes.base import RuntimeInfo, StageCost
from offramp.types import ProblemType, Stage

__all__ = [
    "EXIT", "FILE", "FORMAT", "LAST", "THRESHOLD", "Graph", "Manifest", "Single", "StageEntry", "check_files",
    "read_manifest",
]  # fmt: skip

FORMAT = 1
"""Of manifest.json; a reader refuses what is newer than itself."""

FILE = "manifest.json"

THRESHOLD, LAST, EXIT = "threshold", "last_stage", "exit"
"""What a graph of all stages reads besides a text (``last_stage``: the one that nobody goes beyond), and gives besides
its answer: the stage where the text left."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One file that a runtime loads."""

    file: str
    inputs: tuple[str, ...]
    """``tokens``, ``token_types``, ``hidden``, ``lengths``, ``memory.NAME``."""
    outputs: tuple[str, ...]
    """``hidden``, ``logits``, ``extras.NAME``, ``memory.NAME``."""
    sha256: str = ""
    weights: str = ""
    """The file of its weights, where they stand apart."""
    weights_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    """One stage: its layers, and the graphs that run it."""

    first_layer: int
    last_layer: int
    layers: int
    """Layers executed in all when a text leaves here."""
    starts_from: str
    layers_graph: Graph
    """Layers, and, where the exit reads no memory, the exit too."""
    exit_graph: Graph | None = None
    """The exit alone, where it reads what exits before it remembered."""


@dataclass(frozen=True, kw_only=True)
class Single:
    """All stages as one graph, for a text alone."""

    graph: Graph
    """Reads tokens, ``threshold`` and ``last_stage``; gives ``logits`` and ``exit``."""
    score: str
    """What is held against the threshold (``criteria.base.score_name``)."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One exported variant of a run."""

    runtime: str
    dtype: str
    """``float32`` or ``int8``."""
    weights: str
    """SHA-256 of the weights it was made of (``run.weights_hash``)."""
    stages: tuple[StageEntry, ...]
    problem_type: ProblemType
    num_outputs: int
    batch_invariant: bool
    quantisation: str | None = None
    """How activations and weights became int8; None: they did not."""
    extras: Mapping[str, int] = field(default_factory=dict)
    """Every early exit's extras -> their width (0: one number a text). Scores of criteria are among them."""
    remembers: bool = False
    full_layers: int | None = None
    single: Single | None = None
    """None: the stages are all there is."""
    left_out: tuple[int, ...] = ()
    """Layers after which the model has an exit that this export leaves out."""
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    """max_length, pad_token, token_types: what its inputs are made with."""
    family: str = ""
    opset: int = 0
    fused: bool = False
    """Attention is one operator of the runtime, or made to become one."""
    length_step: int = 1
    """The runtime pads texts to multiples of so many tokens."""
    versions: Mapping[str, str] = field(default_factory=dict)
    cost: StageCost | None = None
    """Of a stage, on the machine that exported it; None: an older offramp did."""
    check: Mapping[str, Any] = field(default_factory=dict)
    """What the export measured of itself, against torch."""

    @property
    def info(self) -> RuntimeInfo:
        """As a runtime declares it."""
        last = len(self.stages) - 1
        return RuntimeInfo(
            name=self.runtime,
            stages=tuple(
                Stage(
                    index=index,
                    first_layer=stage.first_layer,
                    last_layer=stage.last_layer,
                    layers=stage.layers,
                    is_last=index == last,
                    starts_from="inputs" if stage.starts_from == "inputs" else "hidden",
                )
                for index, stage in enumerate(self.stages)
            ),
            problem_type=self.problem_type,
            num_outputs=self.num_outputs,
            dtype=self.dtype,
            batch_invariant=self.batch_invariant,
            extras=dict(self.extras),
            remembers=self.remembers,
            full_layers=self.full_layers,
            single="" if self.single is None else self.single.score,
            cost=self.cost,
        )

    def to_json(self) -> str:
        """As it stands in a folder."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=2, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported variant.

    Raises:
        RunError: there is none, it is damaged, or a newer offramp wrote it.
    """
    path = folder / FILE
    if not path.is_file():
        raise RunError(f"{folder} is no export: it has no {FILE}; `offramp export` makes one")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        number = value["format"]
        if isinstance(number, int) and number > FORMAT:
            raise RunError(
                f"{path} has export format {number} and this offramp reads up to {FORMAT}: "
                "upgrade with pip install -U offramp"
            )
        return _manifest(value)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({error!r}): run `offramp export` again") from None


def _manifest(value: dict[str, Any]) -> Manifest:
    known = {name: value[name] for name in (each.name for each in fields(Manifest)) if name in value}
    known["stages"] = tuple(_stage(stage) for stage in value["stages"])
    if not known["stages"]:
        raise ValueError("it has no stages")
    known["left_out"] = tuple(known.get("left_out", ()))
    if (single := known.get("single")) is not None:
        graph = _graph(single["graph"])
        # Graphs of older exports know no last stage: there the stages are all there is.
        known["single"] = Single(graph=graph, score=str(single["score"])) if LAST in graph.inputs else None
    if (cost := known.get("cost")) is not None:
        known["cost"] = StageCost(call=float(cost["call"]), token=float(cost["token"]))
    return Manifest(**known)


def _stage(value: dict[str, Any]) -> StageEntry:
    exit_graph = value.get("exit_graph")
    graphs = {
        "layers_graph": _graph(value["layers_graph"]),
        "exit_graph": None if exit_graph is None else _graph(exit_graph),
    }
    return StageEntry(**(value | graphs))


def _graph(value: dict[str, Any]) -> Graph:
    return Graph(**(value | {"inputs": tuple(value["inputs"]), "outputs": tuple(value["outputs"])}))


def check_files(folder: Path, graph: Graph) -> Path:
    """Where a graph's file is; it, and that of its weights, must be those that were exported.

    Raises:
        RunError: one is absent, or not that file: cut short, damaged, or of another export.
    """
    for name, sha256 in ((graph.file, graph.sha256), (graph.weights, graph.weights_sha256)):
        if name:
            with _there(folder / name).open("rb") as file:
                _check(folder / name, hashlib.file_digest(file, "sha256").hexdigest(), sha256)
    return folder / graph.file


def _there(path: Path) -> Path:
    if not path.is_file():
        raise RunError(f"{path.parent} is damaged: it has no {path.name}; run `offramp export` again")
    return path


def _check(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise RunError(
            f"{path} is not the file that was exported (cut short, or damaged on the way): run `offramp export` again"
        )
