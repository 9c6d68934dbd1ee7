"""offramp itself: a run on one of its runtimes, with exits or at full depth; without the engine; or cut at an exit."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offramp.bench.deployments.base import AS_IT_COMES, Floats, Way, answered
from offramp.bench.export import VARIANTS, Variant, export_run
from offramp.calibration.points import OperatingPoint, write_points
from offramp.choosing import Setting
from offramp.criteria import Scored, make
from offramp.engine.engine import Counts
from offramp.engine.units import Finished, Unit
from offramp.inputs.batching import pad
from offramp.inputs.tokens import Encoded
from offramp.pipeline import Classifier, load
from offramp.runtimes.base import RuntimeInfo
from offramp.runtimes.manifest import read_manifest

__all__ = ["Bare", "open_run", "prepare", "rule_of", "serve", "variant_of"]

_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
"""Of a run folder, without which it cannot be served."""

_SPINNING = {"onnx": "within a stage", "openvino": AS_IT_COMES, "torch": AS_IT_COMES}
"""Runtime -> whether idle threads burn their time: only of ONNX Runtime's have we a say."""


def prepare(model: Path, folder: Path, texts: Sequence[Encoded], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run folder with one export in it.

    ``settings``: ``variant`` (a name in ``bench.export``), ``exits`` (layers, or "all"), ``rule`` (criterion and
    settings, that exits are asked by), ``texts`` (for ranges, and to measure agreement on).
    """
    for name in _FILES:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    write_points(folder, [OperatingPoint(name="benchmark", **settings["rule"])])
    variant = variant_of(settings)
    if variant.runtime == "torch":
        return {"megabytes": (folder / "model.safetensors").stat().st_size / 1e6}
    made = export_run(folder, variant, exits=settings["exits"], texts=settings["texts"])
    graphs = folder / variant.runtime / ("int8" if variant.dtype == "int8" else "float32")
    return {
        "stages": [stage.layers for stage in made.stages],
        "quantisation": made.quantisation,
        "batch_invariant": made.batch_invariant,
        "operators": _operators(graphs, variant.runtime),
        "megabytes": sum(path.stat().st_size for path in graphs.rglob("*")) / 1e6,
    }


def _operators(graphs: Path, runtime: str) -> dict[str, int]:
    """How many operators of each kind the stages' graphs hold, fused ones among them."""
    counts: Counter[str] = Counter()
    for stage in read_manifest(graphs).stages:
        for graph in filter(None, (stage.layers_graph, stage.exit_graph)):
            counts.update(_KINDS[runtime](graphs / graph.file))
    return dict(counts.most_common())


def _onnx_kinds(path: Path) -> list[str]:
    import onnx

    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def _openvino_kinds(path: Path) -> list[str]:
    from offramp.runtimes.openvino import core

    return [node.get_type_name() for node in core().read_model(path).get_ops() if node.get_type_name() != "Constant"]


_KINDS = {"onnx": _onnx_kinds, "openvino": _openvino_kinds}


def serve(model: Path, folder: Path, way: Way, settings: Mapping[str, Any]) -> Any:
    """``settings``: as for ``prepare``, and ``point`` (criterion, settings, knobs; None: full depth) or ``bare``
    (whole: the stages one after the other, no engine; first: the first stage alone, a static exit).
    """
    variant = variant_of(settings)
    if variant.runtime == "torch":
        import torch

        torch.set_num_threads(way.threads)
    classifier = open_run(folder, variant, way)
    if settings.get("bare"):
        return Bare(classifier, first=settings["bare"] == "first")
    return _WithEngine(classifier, settings)


def open_run(folder: Path, variant: Variant, way: Way) -> Classifier:
    """A prepared folder, loaded as its variant is served."""
    threads = None if variant.runtime == "torch" else way.threads * way.lanes
    return load(folder, runtime=variant.runtime, dtype=variant.dtype, device="cpu", threads=threads, lanes=way.lanes)


def variant_of(settings: Mapping[str, Any]) -> Variant:
    """What a row of ours runs on."""
    return next(variant for variant in VARIANTS if variant.name == settings["variant"])


def rule_of(settings: Mapping[str, Any]) -> Scored:
    """What a row of ours leaves by."""
    rule = make(settings["rule"]["criterion"], **settings["rule"]["settings"])
    assert isinstance(rule, Scored)
    return rule


class _WithEngine:
    """What ``offramp.load`` gives."""

    takes_texts = False

    def __init__(self, classifier: Any, settings: Mapping[str, Any]) -> None:
        self._classifier = classifier
        point = settings.get("point")
        if point is None:
            self._setting = classifier.setting(full_depth=True)
        else:
            self._setting = Setting(make(point["criterion"], **point["settings"]), dict(point["knobs"]), "benchmark")
        self._ran = _Ran(classifier.runtime.info)
        info = classifier.runtime.info
        self._facts = {"dtype": info.dtype, "batch_invariant": info.batch_invariant, "spinning": _SPINNING[info.name]}

    @property
    def facts(self) -> Mapping[str, Any]:
        return self._facts | self._ran.facts()

    def answer(self, texts: Sequence[Encoded], max_rows: int) -> Floats:
        if len(texts) == 1:
            finished = [self._classifier.alone(self._setting).answer(Unit(0, texts[0]))]
            self._ran.add(texts, finished)
            return np.stack([finished[0].answer])
        engine = self._classifier.engine(self._setting)
        units = (Unit(number, text) for number, text in enumerate(texts))
        finished = list(engine.run_in_order(units, self._setting.knobs, chunk=4096))
        self._ran.add(texts, finished, engine.counts)
        return np.stack([one.answer for one in finished])


class _Ran:
    """Layers, tokens and padding of everything that was run."""

    def __init__(self, info: RuntimeInfo) -> None:
        self._depth = info.num_layers
        self._texts = self._layers = self._tokens = self._token_layers = self._run = self._padded = 0

    def add(self, texts: Sequence[Encoded], finished: Sequence[Finished], counts: Counts | None = None) -> None:
        """Count one pass; without counts nothing was padded."""
        for text, one in zip(texts, finished, strict=True):
            self._layers += one.layers_executed
            self._tokens += len(text)
            self._token_layers += len(text) * one.layers_executed
        self._texts += len(texts)
        if counts is not None:
            self._run += int(counts.tokens.sum())
            self._padded += int(counts.padded_tokens.sum())

    def facts(self) -> dict[str, Any]:
        """Means over all that was counted."""
        if not self._texts:
            return {}
        return {
            "layer_speedup": self._depth * self._texts / self._layers,
            "token_layer_fraction": self._token_layers / (self._depth * self._tokens),
            "padding": self._padded / self._run if self._run else 1.0,
        }


class Bare:
    """The runtime alone, batches sorted by length: what a whole graph costs, or a static exit."""

    takes_texts = False

    def __init__(self, classifier: Classifier, *, first: bool = False) -> None:
        self._runtime, self._pad_token = classifier.runtime, classifier.tokenizer.pad_token
        self._lanes = classifier.lanes
        stages = self._runtime.info.stages
        self._stages = stages[:1] if first else stages
        self.facts = {
            "dtype": self._runtime.info.dtype,
            "batches": "sorted",
            "spinning": _SPINNING[self._runtime.info.name],
            "layers": self._stages[-1].layers,
        }

    def answer(self, texts: Sequence[Encoded], max_rows: int) -> Floats:
        def answer(rows: Any) -> Floats:
            return self.compute([texts[row] for row in rows], rows.tolist())

        return answered(texts, max_rows, answer, lanes=self._lanes)

    def compute(self, texts: Sequence[Encoded], names: Sequence[int]) -> Floats:
        """Logits [B, C] of one batch."""
        types = texts[0].token_types is not None
        given = pad(texts, names, pad_token=self._pad_token, token_types=types)
        hidden, batch = self._runtime.embed(given)
        for stage in self._stages:
            hidden = self._runtime.run(stage, hidden, batch)
        logits: Floats = self._runtime.exit(self._stages[-1], hidden, batch, {})[0].logits
        return logits
