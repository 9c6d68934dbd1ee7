"""A run as OpenVINO graphs, one a stage: traced, quantised by NNCF, checked; and only then put in its place.

Int8 is made in one of two ways, and in neither do a text's neighbours change its answer.

``rows``: the weights are kept in eight bits, and each token's numbers are rounded as they come, by a scale for every
`runtimes.openvino.GROUP` of them: OpenVINO's dynamic quantisation. No texts are needed, and next to nothing is lost.

``static``: a range for each product's input, measured on texts beforehand; a little faster, and more is lost. Each
stage is calibrated on the hidden states that the stages before it give it. Activations of a channel that runs large are
scaled down into the weights first (SmoothQuant, Xiao et al., 2022, https://arxiv.org/abs/2211.10438), and what rounding
does to each product's mean is taken back, product after product. (NNCF's fast way of doing that, its default, leaves a
constant error in what pooled exits read: on SST-2 it moved one text in three to another exit, instead of one in six.)

Attention itself stays float32, and so do the heads' products over one vector a text: they cost nothing, and thresholds
hang on them.

Scores of criteria are not computed in these graphs, as they are in those for ONNX Runtime: here every operator costs
some microseconds however small its work is, and numpy is done with entropy and distances sooner.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from offramp.errors import KnobError, UnsupportedError
from offramp.inputs.batching import pad
from offramp.inputs.tokens import Text
from offramp.model.pooling import BLOCK
from offramp.runtimes.cpu import check_threads
from offramp.runtimes.export.check import agreement, stage_errors
from offramp.runtimes.export.fuse import prune
from offramp.runtimes.export.graph import can_mark
from offramp.runtimes.export.quantise import SMALLEST
from offramp.runtimes.export.source import Exits, Source, checked, described, graphs_of, keep_whole, open_source, placed
from offramp.runtimes.exported import feeds
from offramp.runtimes.manifest import FILE, OUT, Graph, Manifest
from offramp.runtimes.openvino import OpenvinoRuntime, core, has_bfloat16
from offramp.runtimes.silence import without_telemetry
from offramp.traces.files import write_atomically

with without_telemetry():
    import openvino

__all__ = ["LENGTH_STEP", "compressed", "export_openvino", "load_nncf", "quantised"]

LENGTH_STEP = 4
"""Tokens: a compromise between kernels for ever more widths, and tokens computed for nothing."""

_KINDS = ("rows", "static")
"""Ways to make int8."""

_FLAT = 2
"""Axes of what a product reads that has one vector a text."""


def export_openvino(
    folder: str | Path,
    *,
    int8: str | None = None,
    exits: Exits = "useful",
    texts: Sequence[Text] | None = None,
    threads: int | None = None,
) -> Manifest:
    """Write ``RUN/openvino/float32`` or ``RUN/openvino/int8``, whole or not at all.

    Args:
        folder: a run folder.
        int8: ``rows`` or ``static``; None: float32, which serves bfloat16 too.
        exits: which exits stay.
        texts: to check with, and to measure ranges on for static int8; None: sentences that come with offramp.
        threads: for the checks.

    Returns:
        The manifest that stands beside the graphs; ``check`` says what was measured.

    Raises:
        RunError: the folder is no run, or damaged.
        KnobError: exits that the model does not have or that its operating point needs, or no such kind of int8.
        UnsupportedError: the model cannot be exported, or its graphs do not say what torch says.
        DataError: no texts.
    """
    if int8 not in (None, *_KINDS):
        raise KnobError(f"for openvino int8 is made by {', '.join(_KINDS)}, not {int8!r}")
    threads = check_threads(threads)
    # Without scores: they cost more inside these graphs than in numpy, and depend on neighbours there (research log).
    source = open_source(folder, exits, texts, scores=False)
    dtype = "float32" if int8 is None else "int8"
    with placed(source.run.folder / "openvino" / dtype) as staging:
        kept = staging / "exact"
        graphs = graphs_of(source, "blocks", partial(_read, kind=source.model.config.model_type))
        made = _write(kept, source, graphs, None)
        runtime = OpenvinoRuntime(kept, threads=threads)
        errors = stage_errors(source.plans, runtime, source.reading)
        more: dict[str, Any] = {}
        if int8 is not None:
            small = _quantised(kept, source, runtime, int8)
            kept = staging / "made"
            made = _write(kept, source, small, int8)
            runtime = OpenvinoRuntime(kept, threads=threads)
        elif has_bfloat16():
            half = OpenvinoRuntime(kept, dtype="bfloat16", threads=threads)
            more["bfloat16"] = agreement(source.reading, source.torch_trace(), source.live, half)
        manifest = checked(kept, source, made, errors, runtime, more)
        del runtime  # its files are mapped into memory
        keep_whole(staging, kept)
    return manifest


def _read(traced: onnx.ModelProto, kind: str) -> Any:
    """A traced graph as OpenVINO's own; ``kind``: of model, for the complaint."""
    prune(traced.graph)
    try:
        return core().read_model(traced.SerializeToString())
    except Exception as error:  # openvino's errors share no class but this one
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UnsupportedError(
            f"{kind} models with these exits cannot be exported for openvino ({reason}): "
            "serve the run with onnx or torch"
        ) from error


def _write(folder: Path, source: Source, graphs: Mapping[str, Any], kind: str | None) -> Manifest:
    """Graphs and a manifest that says nothing of checks yet."""
    folder.mkdir()
    versions = {"openvino": openvino.get_version(), "onnx": onnx.__version__}
    if kind is not None:
        versions["nncf"] = load_nncf().__version__
    manifest = described(
        source,
        {name: _file(folder, name, graph) for name, graph in graphs.items()},
        runtime="openvino",
        quantisation=kind,
        batch_invariant=True,
        versions=versions,
        length_step=LENGTH_STEP if can_mark(source.model) else BLOCK,
    )
    write_atomically(folder / FILE, manifest.to_json().encode())
    return manifest


def _file(folder: Path, name: str, graph: Any) -> Graph:
    path = folder / f"{name}.xml"
    openvino.save_model(graph, path, compress_to_fp16=False)
    weights = path.with_suffix(".bin")
    return Graph(
        file=path.name,
        inputs=tuple(each.any_name for each in graph.inputs),
        outputs=tuple(each.any_name.removeprefix(OUT) for each in graph.outputs),
        sha256=_hash(path),
        weights=weights.name,
        weights_sha256=_hash(weights),
    )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_nncf() -> Any:
    """NNCF, which speaks only of what went wrong, and leaves other people's logging alone."""
    loggers = logging.getLoggerClass()
    with without_telemetry():
        import nncf
    logging.setLoggerClass(loggers)  # importing it makes its own the class of all that follow
    # Not by its set_log_level, which sets every handler found there: those of whoever listens, too.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


def _quantised(folder: Path, source: Source, exact: OpenvinoRuntime, kind: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    ways: list[Any] = [compressed] * len(exact.manifest.stages)
    if kind == "static":
        source.warn_of_built_in_texts()
        ways = [partial(quantised, given=given) for given in _seen(source, exact)]
    for place, (entry, way) in enumerate(zip(exact.manifest.stages, ways, strict=True)):
        made[f"stage-{place}"] = way(core().read_model(folder / entry.layers_graph.file))
        if entry.exit_graph is not None:
            made[f"exit-{place}"] = core().read_model(folder / entry.exit_graph.file)
    return made


def _seen(source: Source, exact: OpenvinoRuntime) -> list[list[dict[str, Any]]]:
    """What goes into each stage's graph, text by text: nothing of it is padding."""
    found: list[list[dict[str, Any]]] = [[] for _ in exact.info.stages]
    for text in source.reading.texts:
        inputs = pad([text], [0], pad_token=source.reading.pad_token, token_types=text.token_types is not None)
        hidden, batch = exact.embed(inputs)
        for stage, entry, given in zip(exact.info.stages, exact.manifest.stages, found, strict=True):
            arrays = feeds(entry.layers_graph, hidden, batch, {})
            given.append({name: np.array(array) for name, array in arrays.items()})
            hidden = exact.run(stage, hidden, batch)
    return found


def quantised(graph: Any, given: Sequence[Mapping[str, Any]]) -> Any:
    """A copy of a stage's graph with int8 products.

    Args:
        graph: in float32.
        given: its inputs, by name, as many times as there are texts.
    """
    nncf = load_nncf()
    with redirect_stdout(io.StringIO()):  # bars of progress
        return nncf.quantize(
            graph,
            nncf.Dataset(list(given)),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(given),
            fast_bias_correction=False,
            ignored_scope=_exact(graph),
        )


def compressed(graph: Any) -> Any:
    """A stage's graph with the weights of products, and embeddings, in eight bits: a scale for each output or token."""
    nncf = load_nncf()
    with redirect_stdout(io.StringIO()):
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=_exact(graph))


def _exact(graph: Any) -> Any:
    """What stays float32, as NNCF wants it."""
    names = [node.get_friendly_name() for node in graph.get_ordered_ops() if _stays_exact(node)]
    return load_nncf().IgnoredScope(names=names, validate=False)


def _stays_exact(node: Any) -> bool:
    """Whether a node is a product that stays float32: a head's, over one vector a text, or attention's own.

    Likewise one that is narrow, such as a token's with an exit's query.
    """
    if node.get_type_name() != "MatMul":
        return False
    of_texts = node.input(0).get_partial_shape().rank.get_length() == _FLAT
    constant = node.input_value(1).get_node().get_type_name() == "Constant"
    return bool(of_texts or not constant or min(node.input(1).get_shape()) < SMALLEST)
