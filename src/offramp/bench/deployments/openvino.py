"""The whole model as one graph in OpenVINO: fp32, bf16, or static int8 made by NNCF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import LifoQueue
from typing import Any

from offramp.bench.deployments.base import AS_IT_COMES, Floats, Way, answered, padded
from offramp.inputs.tokens import Encoded
from offramp.runtimes.silence import without_telemetry

with without_telemetry():
    import openvino

__all__ = ["prepare", "serve"]

_CALIBRATION = 300
"""Texts on which ranges of activations are measured: NNCF's own default."""


def prepare(model: Path, folder: Path, texts: Sequence[Encoded], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``model.xml``: converted from torch, so that OpenVINO sees attention whole, and quantised where asked."""
    import torch
    from transformers import AutoModelForSequenceClassification

    loaded: Any = AutoModelForSequenceClassification.from_pretrained(str(model), dtype=torch.float32)
    loaded.eval()
    pad_token = int(settings["pad_token"])
    example = {name: torch.from_numpy(value) for name, value in padded(texts[:2], pad_token).items()}
    with without_telemetry():
        graph = openvino.convert_model(loaded, example_input=example)
    for place, name in enumerate(example):
        graph.inputs[place].get_tensor().set_names({name})
    if settings["dtype"] == "int8":
        graph = _quantised(graph, texts[:_CALIBRATION], pad_token)
    path = folder / "model.xml"
    openvino.save_model(graph, path, compress_to_fp16=False)
    kinds: dict[str, int] = {}
    for node in graph.get_ops():
        kinds[node.get_type_name()] = kinds.get(node.get_type_name(), 0) + 1
    counted = {name: kinds.get(name, 0) for name in ("ScaledDotProductAttention", "MatMul", "FakeQuantize", "MVN")}
    return {"operators": counted, "megabytes": path.with_suffix(".bin").stat().st_size / 1e6}


def _quantised(graph: Any, texts: Sequence[Encoded], pad_token: int) -> Any:
    from offramp.runtimes.export.openvino import load_nncf  # brings torch along: not where a graph is only served

    nncf = load_nncf()
    dataset = nncf.Dataset([padded([text], pad_token) for text in texts])
    return nncf.quantize(graph, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(texts))


def serve(model: Path, folder: Path, way: Way, settings: Mapping[str, Any]) -> Any:
    """``settings``: ``dtype`` (float32, bfloat16, int8), ``pad_token``."""
    return _Compiled(folder / "model.xml", way, settings)


class _Compiled:
    """A compiled model for each lane (quicker here than one with as many streams), one request after the other."""

    takes_texts = False

    def __init__(self, path: Path, way: Way, settings: Mapping[str, Any]) -> None:
        dtype = str(settings["dtype"])
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": way.threads,
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
        }
        core = openvino.Core()
        graph = core.read_model(path)
        self._requests: LifoQueue[Any] = LifoQueue()
        for _ in range(way.lanes):
            self._requests.put(core.compile_model(graph, "CPU", hints).create_infer_request())
        self._lanes = way.lanes
        self._pad_token = int(settings["pad_token"])
        self.facts = {
            "dtype": dtype,
            "batches": "sorted",
            "spinning": AS_IT_COMES,
            "hints": {name: str(value) for name, value in hints.items()},
        }

    def answer(self, texts: Sequence[Encoded], max_rows: int) -> Floats:
        def answer(rows: Any) -> Floats:
            inputs = padded([texts[row] for row in rows], self._pad_token)
            request = self._requests.get()
            try:
                logits: Floats = request.infer(inputs, share_inputs=True)[0]
            finally:
                self._requests.put(request)
            return logits

        return answered(texts, max_rows, answer, lanes=self._lanes)
