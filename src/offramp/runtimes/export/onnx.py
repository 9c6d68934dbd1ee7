"""A run as ONNX graphs, one a stage: cut, traced, fused, quantised, checked; and only then put in its place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from offramp.errors import KnobError
from offramp.inputs.batching import length_sorted, pad
from offramp.inputs.tokens import Encoded, Text
from offramp.runtimes.cpu import check_threads
from offramp.runtimes.export.check import stage_errors
from offramp.runtimes.export.fuse import fuse
from offramp.runtimes.export.quantise import INVARIANT, KINDS, Kind, Range, activations, quantise
from offramp.runtimes.export.single import single_graph, single_score
from offramp.runtimes.export.source import Exits, Source, checked, described, graphs_of, keep_whole, open_source, placed
from offramp.runtimes.manifest import FILE, OUT, Graph, Manifest, Single
from offramp.runtimes.onnx import OnnxRuntime, open_session
from offramp.traces.files import write_atomically

__all__ = ["export_onnx"]

_BATCH = 16
_LARGEST = 2_000_000_000
"""Bytes of a graph: what protobuf can write."""


def export_onnx(
    folder: str | Path,
    *,
    int8: Kind | None = None,
    exits: Exits = "useful",
    texts: Sequence[Text] | None = None,
    threads: int | None = None,
) -> Manifest:
    """Write ``RUN/onnx/float32`` or ``RUN/onnx/int8``, whole or not at all.

    Args:
        folder: a run folder.
        int8: how to quantise (``quantise.KINDS``); None: float32.
        exits: which exits stay.
        texts: to check with, and to measure ranges on for ``static``; None: sentences that come with offramp.
        threads: for the checks.

    Returns:
        The manifest that stands beside the graphs; ``check`` says what was measured.

    Raises:
        RunError: the folder is no run, or damaged.
        KnobError: exits that the model does not have or that its operating point needs, or no such kind of int8.
        UnsupportedError: the model cannot be exported, or its graphs do not say what torch says.
        DataError: no texts.
    """
    if int8 is not None and int8 not in KINDS:
        raise KnobError(f"int8 is made by {', '.join(KINDS)}, not {int8!r}")
    threads = check_threads(threads)
    source = open_source(folder, exits, texts)
    dtype = "float32" if int8 is None else "int8"
    with placed(source.run.folder / "onnx" / dtype) as staging:
        graphs, kept = graphs_of(source, "marked", fuse), staging / "exact"
        made = _write(kept, source, graphs, None, single=int8 is None)
        errors = stage_errors(source.plans, OnnxRuntime(kept, threads=threads), source.reading)
        if int8 is not None:
            ranges = _ranges(kept, source, made, threads) if int8 == "static" else {}
            graphs, kept = _quantised(graphs, int8, ranges), staging / "made"
            made = _write(kept, source, graphs, int8, single=True)
        manifest = checked(kept, source, made, errors, OnnxRuntime(kept, threads=threads))
        keep_whole(staging, kept)
    return manifest


def _write(
    folder: Path, source: Source, graphs: Mapping[str, onnx.ModelProto], kind: Kind | None, *, single: bool
) -> Manifest:
    """Graphs, with ``single`` the one of all stages too, and a manifest that says nothing of checks yet."""
    folder.mkdir()
    manifest = described(
        source,
        {name: _file(folder, name, graph) for name, graph in graphs.items()},
        runtime="onnx",
        quantisation=kind,
        batch_invariant=kind is None or INVARIANT[kind],
        versions={"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
    )
    if single:
        manifest = replace(manifest, single=_single(folder, source, graphs))
    write_atomically(folder / FILE, manifest.to_json().encode())
    return manifest


def _single(folder: Path, source: Source, graphs: Mapping[str, onnx.ModelProto]) -> Single | None:
    """All stages as one graph, where every one goes on from the one before it and a file can hold them all."""
    if any(plan.exit is not None or plan.stage.starts_from == "inputs" for plan in source.plans):
        return None
    if sum(graph.ByteSize() for graph in graphs.values()) > _LARGEST:
        return None
    stages = [graphs[f"stage-{place}"] for place in range(len(source.plans))]
    score = single_score(source.reading.criterion, stages)
    return None if score is None else Single(graph=_file(folder, "single", single_graph(stages, score)), score=score)


def _file(folder: Path, name: str, graph: onnx.ModelProto) -> Graph:
    data = graph.SerializeToString()
    path = folder / f"{name}.onnx"
    path.write_bytes(data)
    return Graph(
        file=path.name,
        inputs=tuple(each.name for each in graph.graph.input),
        outputs=tuple(each.name.removeprefix(OUT) for each in graph.graph.output),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _quantised(
    graphs: Mapping[str, onnx.ModelProto], kind: Kind, ranges: Mapping[int, Mapping[str, Range]]
) -> dict[str, onnx.ModelProto]:
    """The layers in int8; exits that stand apart stay as they are."""
    made = dict(graphs)
    for place, name in enumerate(name for name in graphs if name.startswith("stage-")):
        made[name] = quantise(graphs[name], kind, ranges.get(place))
    return made


def _ranges(folder: Path, source: Source, exact: Manifest, threads: int) -> dict[int, dict[str, Range]]:
    """What the activations of every stage hold on the texts."""
    source.warn_of_built_in_texts()
    sessions, names = [], []
    for entry in exact.stages:
        graph = onnx.load(folder / entry.layers_graph.file)
        names.append(activations(graph))
        graph.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names[-1])
        sessions.append(open_session(graph.SerializeToString(), threads=threads))
    found: dict[int, dict[str, Range]] = {place: {} for place in range(len(sessions))}
    texts, pad_token = source.reading.texts, source.reading.pad_token
    for rows in length_sorted([len(text) for text in texts], max_rows=_BATCH):
        _see(found, sessions, names, exact, [texts[row] for row in rows], pad_token)
    return found


def _see(
    found: dict[int, dict[str, Range]],
    sessions: Sequence[Any],
    names: Sequence[Sequence[str]],
    exact: Manifest,
    texts: Sequence[Encoded],
    pad_token: int,
) -> None:
    """Widen the ranges by what one batch shows; padding does not count."""
    given: dict[str, Any] = dict(
        pad(texts, list(range(len(texts))), pad_token=pad_token, token_types=texts[0].token_types is not None)
    )
    real = np.arange(given["tokens"].shape[1]) < given["lengths"][:, None]
    for place, (session, wanted, entry) in enumerate(zip(sessions, names, exact.stages, strict=True)):
        graph = entry.layers_graph
        said = session.run(None, {name: given[name] for name in graph.inputs})
        given |= dict(zip(graph.outputs, said[: len(graph.outputs)], strict=True))
        for name, value in zip(wanted, said[len(graph.outputs) :], strict=True):
            seen = value[real] if value.shape[:2] == real.shape else value
            low, high = found[place].get(name, (np.inf, -np.inf))
            found[place][name] = (min(low, float(seen.min())), max(high, float(seen.max())))
