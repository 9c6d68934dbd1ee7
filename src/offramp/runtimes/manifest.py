"""What stands beside exported graphs: which layers each holds, what goes in and comes out, and what was measured.

A run folder holds its exports side by side, each whole: ``RUN/onnx/float32``, ``RUN/openvino/int8``, each with a
``manifest.json``. Reading one needs numpy and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from offramp.errors import RunError
from offramp.runtimes.base import InCompany, RuntimeInfo, StageCost
from offramp.types import PROBLEM_TYPES, ProblemType, Stage

__all__ = [
    "EXIT", "FILE", "FORMAT", "LAST", "OUT", "THRESHOLD", "Graph", "Manifest", "Single", "StageEntry", "check_files",
    "in_company", "read_manifest",
]  # fmt: skip

FORMAT = 1
"""Of manifest.json; a reader refuses what is newer than itself."""

FILE = "manifest.json"

OUT = "out."
"""Before the names of a graph's outputs: hidden states go in and come out, and a graph has each name once."""

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
            in_company=in_company(self.check),
            extras=dict(self.extras),
            remembers=self.remembers,
            full_layers=self.full_layers,
            single="" if self.single is None else self.single.score,
            cost=self.cost,
        )

    def to_json(self) -> str:
        """As it stands in a folder."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=2, ensure_ascii=False) + "\n"


def in_company(check: Mapping[str, Any]) -> InCompany | None:
    """What an export measured of batches beside texts alone, of ``Manifest.check`` or a part of it; None: nothing."""
    found = check.get("batch_1")
    if found is None:
        return None
    return InCompany(
        difference=float(found["largest_difference"]),
        labels=min(map(float, found["labels"])) if "labels" in found else None,
        exits=float(found["exits"]) if "exits" in found else None,
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported variant.

    Raises:
        RunError: there is none, it is damaged or says what cannot be, or a newer offramp wrote it.
    """
    path = folder / FILE
    if not path.is_file():
        raise RunError(f"{folder} is no export: it has no {FILE}; `offramp export` makes one")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        number = value["format"]
        if _is_whole(number) and number > FORMAT:
            raise RunError(
                f"{path} has export format {number} and this offramp reads up to {FORMAT}: "
                "upgrade with pip install -U offramp"
            )
        manifest = _manifest(value)
        fault = next(_faults(number, manifest), None)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({error!r}): run `offramp export` again") from None
    if fault is not None:
        raise RunError(f"{path} is damaged ({fault}): run `offramp export` again")
    return manifest


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
    if not all(isinstance(value[name], list) for name in ("inputs", "outputs")):
        raise TypeError("inputs and outputs of a graph are lists of names")
    graph = Graph(**(value | {"inputs": tuple(value["inputs"]), "outputs": tuple(value["outputs"])}))
    texts = (graph.file, graph.sha256, graph.weights, graph.weights_sha256, *graph.inputs, *graph.outputs)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("names of a graph are texts")
    return graph


def _faults(number: object, manifest: Manifest) -> Iterator[str]:
    """What is well-formed and cannot be."""
    for name, well in _plain(manifest).items():
        if not well:
            yield f"{name} cannot be {getattr(manifest, name)!r}"
    if not _is_whole(number, least=1):
        yield f"format cannot be {number!r}"
    yield from _faults_of_stages(manifest)
    full = manifest.full_layers
    if full is not None and full != manifest.stages[-1].last_layer:
        yield f"full_layers is {full}, and the last stage ends at layer {manifest.stages[-1].last_layer}"
    for check in (manifest.check, manifest.check.get("bfloat16", {})):
        in_company(check)  # raises where it is not as it was written


def _plain(manifest: Manifest) -> dict[str, bool]:
    """Name -> whether that part of a manifest is what it may be, whatever the others are."""
    cost, tokenizer = manifest.cost, manifest.tokenizer
    return {
        "runtime": isinstance(manifest.runtime, str),
        "dtype": manifest.dtype in ("float32", "int8"),
        "weights": isinstance(manifest.weights, str),
        "problem_type": manifest.problem_type in PROBLEM_TYPES,
        "num_outputs": _is_whole(manifest.num_outputs, least=1),
        "batch_invariant": isinstance(manifest.batch_invariant, bool),
        "quantisation": manifest.quantisation is None or isinstance(manifest.quantisation, str),
        "extras": isinstance(manifest.extras, dict) and all(map(_is_whole, manifest.extras.values())),
        "remembers": isinstance(manifest.remembers, bool),
        "full_layers": manifest.full_layers is None or _is_whole(manifest.full_layers, least=1),
        "left_out": all(_is_whole(layer, least=1) for layer in manifest.left_out),
        "tokenizer": isinstance(tokenizer, dict) and _is_whole(tokenizer.get("max_length", 1), least=1),
        "length_step": _is_whole(manifest.length_step, least=1),
        "cost": cost is None or all(0 <= seconds < math.inf for seconds in (cost.call, cost.token)),
        "check": isinstance(manifest.check, dict),
    }


def _faults_of_stages(manifest: Manifest) -> Iterator[str]:
    """Where a stage does not follow on those before it; one that starts from the inputs is a model of its own."""
    reached = executed = 0
    for index, stage in enumerate(manifest.stages):
        if stage.starts_from not in ("hidden", "inputs"):
            yield f"starts_from of stage {index} cannot be {stage.starts_from!r}"
        for name in ("first_layer", "last_layer", "layers"):
            if not _is_whole(getattr(stage, name)):
                yield f"{name} of stage {index} cannot be {getattr(stage, name)!r}"
                return
        first = 0 if stage.starts_from == "inputs" else reached
        executed += stage.last_layer - first
        if (stage.first_layer, stage.layers) != (first, executed) or stage.last_layer <= first:
            yield (
                f"stage {index} cannot run layers {stage.first_layer} to {stage.last_layer}, {stage.layers} executed "
                f"in all, where it begins at {first}"
            )
        reached = stage.last_layer
        yield from _faults_of_graphs(manifest, index, stage)


def _faults_of_graphs(manifest: Manifest, index: int, stage: StageEntry) -> Iterator[str]:
    """Where its graphs do not read what comes before it, or do not give what the manifest says of every exit."""
    start = "tokens" if index == 0 or stage.starts_from == "inputs" else "hidden"
    if start not in stage.layers_graph.inputs:
        yield f"the graph of stage {index} does not read {start}"
    if manifest.remembers != (stage.exit_graph is not None):
        yield f"stage {index} {'lacks' if manifest.remembers else 'has'} a graph of its exit"
    last = index == len(manifest.stages) - 1
    said = ["logits", *(() if last else (f"extras.{name}" for name in manifest.extras))]
    for name in said:
        if name not in (stage.exit_graph or stage.layers_graph).outputs:
            yield f"the exit of stage {index} does not give {name}"


def _is_whole(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


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
