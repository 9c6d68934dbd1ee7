"""A run as ONNX graphs, one a stage: cut, traced, fused, quantised, checked; and only then put in its place."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from onnx import TensorProto, helper

import offramp
from offramp.calibration.points import OperatingPoint, read_points
from offramp.criteria import Criterion, Scored, make
from offramp.errors import KnobError, UnsupportedError
from offramp.inputs.batching import length_sorted, pad
from offramp.inputs.tokens import Encoded, Text, Tokenizer
from offramp.model.modeling import load_early_exit
from offramp.run import Run, weights_hash
from offramp.runtimes.base import RuntimeInfo
from offramp.runtimes.export.check import Reading, agreement, stage_errors
from offramp.runtimes.export.fuse import fuse
from offramp.runtimes.export.graph import OPSET, OUT, attention_as, can_mark, to_graph
from offramp.runtimes.export.merge import chosen_exits, useful_exits
from offramp.runtimes.export.quantise import INVARIANT, KINDS, Kind, Range, activations, quantise
from offramp.runtimes.export.sentences import SENTENCES
from offramp.runtimes.export.stages import Part, Plan, plan_stages, sample, scorable
from offramp.runtimes.manifest import FILE, Graph, Manifest, StageEntry
from offramp.runtimes.onnx import OnnxRuntime, check_threads, open_session
from offramp.runtimes.torch import TorchRuntime
from offramp.traces.files import write_atomically
from offramp.traces.store import load_trace

__all__ = ["Exits", "built_in_texts", "export_onnx"]

logger = logging.getLogger(__name__)

Exits = Literal["useful", "all"] | Sequence[int]
"""Which exits stay: those worth their cost at the default operating point, all, or those after some layers."""

_BATCH = 16


@dataclass(frozen=True)
class _Source:
    """A run, opened for export."""

    run: Run
    model: Any
    tokenizer: Tokenizer
    points: Sequence[OperatingPoint]
    live: Sequence[int]
    plans: Sequence[Plan]
    reading: Reading
    given_texts: bool

    @property
    def info(self) -> RuntimeInfo:
        return TorchRuntime(self.model).info


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
    source = _open(Path(folder), exits, texts)
    dtype = "float32" if int8 is None else "int8"
    with _placed(source.run.folder / "onnx" / dtype) as staging:
        exact = _write(staging / "exact", source, _graphs(source), None, threads)
        errors = stage_errors(source.plans, OnnxRuntime(staging / "exact", threads=threads), source.reading)
        made = exact
        if int8 is not None:
            small = _quantised(staging / "exact", source, exact, int8, threads)
            made = _write(staging / "made", source, small, int8, threads)
        kept = staging / ("exact" if int8 is None else "made")
        manifest = _checked(kept, source, made, errors, threads)
        for path in kept.iterdir():
            os.replace(path, staging / path.name)
        shutil.rmtree(staging / "exact", ignore_errors=True)
        shutil.rmtree(staging / "made", ignore_errors=True)
    return manifest


def built_in_texts(pairs: bool) -> list[Text]:
    """The sentences that come with offramp; two by two, where the model reads pairs."""
    if not pairs:
        return list(SENTENCES)
    return list(zip(SENTENCES, SENTENCES[1:] + SENTENCES[:1], strict=True))


def _open(folder: Path, exits: Exits, texts: Sequence[Text] | None) -> _Source:
    run = Run.open(folder)
    model = load_early_exit(folder)
    tokenizer = Tokenizer.from_folder(folder, max_length=run.max_length)
    points = read_points(folder)
    extras = model.offramp.extras()
    live = _live(run, model, points, exits)
    plans = plan_stages(
        model, live, token_types=tokenizer.token_types, scores=_scores(points, run, extras)
    )  # fmt: skip
    columns = run.section.get("text_columns")
    pairs = isinstance(columns, list) and len(columns) == 2
    chosen = built_in_texts(pairs) if texts is None else texts
    criterion = make(points[0].criterion, **points[0].settings) if points else None
    reading = Reading(
        texts=tokenizer.encode(chosen),
        pad_token=tokenizer.pad_token,
        id2label=run.id2label or {0: "value"},
        criterion=criterion,
        knobs=points[0].knobs if points else None,
    )
    return _Source(run, model, tokenizer, points, live, plans, reading, texts is not None)


def _scores(points: Sequence[OperatingPoint], run: Run, extras: Mapping[str, int]) -> list[Scored]:
    """Criteria whose score goes into the graphs: the operating points' own, and the plain ones."""
    found: list[Criterion] = [make(point.criterion, **point.settings) for point in points]
    if run.problem_type != "regression":
        found += [make(name, problem_type=run.problem_type) for name in ("entropy", "confidence")]
    if "distances" in extras and run.problem_type == "single_label_classification":
        found.append(make("dr"))
    kept = [rule for rule in dict.fromkeys(found) if scorable(rule, extras)]
    return [rule for rule in kept if isinstance(rule, Scored)]


def _live(run: Run, model: Any, points: Sequence[OperatingPoint], exits: Exits) -> list[int]:
    """Indices of the exits that stay."""
    everyone = list(range(len(model.stages)))
    if exits == "all":
        return everyone
    rule = make(points[0].criterion, **points[0].settings) if points else None
    remembers = any(head.remembers for head in model.offramp.early)
    fixed = remembers or bool(model.offramp.members) or (rule is not None and rule.by_exit)
    if exits != "useful":
        chosen = chosen_exits([stage.last_layer for stage in model.stages], list(exits))
        if fixed and chosen != everyone:
            why = "its exits remember" if remembers else "its models answer one after another"
            if rule is not None and rule.by_exit:
                why = f"its operating point's criterion, {rule.name!r}, goes by the exits passed"
            raise KnobError(f"no exit of this run can be left out, since {why}: leave --exits out")
        return chosen
    trace = run.folder / "traces" / "dev"
    if fixed or rule is None or not trace.with_suffix(".safetensors").is_file():
        return everyone
    recorded = load_trace(trace)
    if recorded.num_exits != len(everyone):  # a trace of an export that has fewer
        return everyone
    return useful_exits(recorded, rule, points[0].knobs)


def _graphs(source: _Source) -> dict[str, onnx.ModelProto]:
    """Name of each graph -> the graph, in float32."""
    marked = can_mark(source.model)
    made: dict[str, onnx.ModelProto] = {}
    with attention_as(source.model, marked=marked):
        for place, plan in enumerate(source.plans):
            made[f"stage-{place}"] = _graph(source, plan.layers, place)
            if plan.exit is not None:
                made[f"exit-{place}"] = _graph(source, plan.exit, place)
    return made


def _graph(source: _Source, part: Part, place: int) -> onnx.ModelProto:
    return fuse(to_graph(part, sample(part, source.model, source.plans[:place])))


def _write(
    folder: Path, source: _Source, graphs: Mapping[str, onnx.ModelProto], kind: Kind | None, threads: int
) -> Manifest:
    """Graphs and a manifest that says nothing of checks yet."""
    folder.mkdir()
    files = {name: _file(folder, name, graph) for name, graph in graphs.items()}
    info = source.info
    stages = tuple(
        StageEntry(
            first_layer=plan.stage.first_layer,
            last_layer=plan.stage.last_layer,
            layers=plan.stage.layers,
            starts_from=plan.stage.starts_from,
            layers_graph=files[f"stage-{place}"],
            exit_graph=files.get(f"exit-{place}"),
        )
        for place, plan in enumerate(source.plans)
    )
    manifest = Manifest(
        runtime="onnx",
        dtype="float32" if kind is None else "int8",
        weights=weights_hash(source.run.folder),
        stages=stages,
        problem_type=info.problem_type,
        num_outputs=info.num_outputs,
        batch_invariant=kind is None or INVARIANT[kind],
        quantisation=kind,
        extras=_extras(stages, info),
        remembers=info.remembers,
        full_layers=info.full_layers,
        left_out=tuple(stage.layers for stage in info.stages if stage.index not in source.live),
        tokenizer={
            "max_length": source.tokenizer.max_length,
            "pad_token": source.tokenizer.pad_token,
            "token_types": source.tokenizer.token_types,
        },
        family=source.model.config.model_type,
        opset=OPSET,
        fused=can_mark(source.model),
        versions={
            "offramp": offramp.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    )
    write_atomically(folder / FILE, manifest.to_json().encode())
    return manifest


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


def _extras(stages: Sequence[StageEntry], info: RuntimeInfo) -> dict[str, int]:
    """Extras of early exits -> their width: the model's own, and the scores."""
    found = dict(info.extras)
    for stage in stages[:-1]:
        for name in (stage.exit_graph or stage.layers_graph).outputs:
            if name.startswith("extras."):
                found.setdefault(name.removeprefix("extras."), 0)
    return found


def _quantised(folder: Path, source: _Source, exact: Manifest, kind: Kind, threads: int) -> dict[str, onnx.ModelProto]:
    ranges = _ranges(folder, source, exact, threads) if kind == "static" else {}
    made = {}
    for place, entry in enumerate(exact.stages):
        graph = onnx.load(folder / entry.layers_graph.file)
        made[f"stage-{place}"] = quantise(graph, kind, ranges.get(place))
        if entry.exit_graph is not None:
            made[f"exit-{place}"] = onnx.load(folder / entry.exit_graph.file)
    return made


def _ranges(folder: Path, source: _Source, exact: Manifest, threads: int) -> dict[int, dict[str, Range]]:
    """What the activations of every stage hold on the texts."""
    if not source.given_texts:
        logger.warning("ranges of static int8 are measured on built-in sentences: give --data, texts like those served")
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


def _checked(folder: Path, source: _Source, made: Manifest, errors: Sequence[float], threads: int) -> Manifest:
    """The manifest with what was measured; an export that says more of itself than was measured is set right."""
    runtime = OnnxRuntime(folder, threads=threads)
    torch_trace = source.reading.trace(TorchRuntime(source.model), 32)
    said = agreement(source.reading, torch_trace, source.live, runtime)
    alone = said["batch_1"]
    moved = min([alone.get("exits", 1.0), *alone.get("labels", ())]) < 1.0
    check = {
        "texts": len(source.reading.texts),
        "texts_given": source.given_texts,
        "float32_errors": list(errors),
        **said,
    }
    manifest = replace(made, batch_invariant=made.batch_invariant and not moved, check=check)
    if made.quantisation is None and not manifest.batch_invariant:
        raise UnsupportedError("float32 graphs answer otherwise at another batch size: serve this run with torch")
    write_atomically(folder / FILE, manifest.to_json().encode())
    return manifest


@contextmanager
def _placed(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the target's place when the block ends well, and is removed when it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging, old = (target.with_name(f".{target.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    for left in (staging, old):
        shutil.rmtree(left, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        if target.exists():
            os.rename(target, old)
        os.rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if old.exists() and not target.exists():
            os.rename(old, target)
        shutil.rmtree(old, ignore_errors=True)
        with suppress(OSError):  # the folder of all exports, where this would have been the first
            target.parent.rmdir()
