"""The whole model as one graph in ONNX Runtime: exported, fused by its own optimiser, quantised dynamically."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from offramp.bench.deployments.base import Floats, Way, answered, padded
from offramp.inputs.tokens import Encoded

__all__ = ["prepare", "serve"]


def prepare(model: Path, folder: Path, texts: Sequence[Encoded], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``model.onnx``, as ONNX Runtime's documentation says for BERT: fused, and int8 a channel at a time."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    exact = folder / "exact.onnx"
    config = export_whole(model, exact, texts, int(settings["pad_token"]))
    heads, width = int(config.num_attention_heads), int(config.hidden_size)
    optimised = optimize_model(
        str(exact), model_type="bert", num_heads=heads, hidden_size=width, optimization_options=FusionOptions("bert")
    )
    fused = {name: int(count) for name, count in optimised.get_fused_operator_statistics().items() if count}
    served = folder / "model.onnx"
    if settings["dtype"] == "int8":
        optimised.save_model_to_file(str(folder / "fused.onnx"))
        _quantise(folder / "fused.onnx", served)
        os.remove(folder / "fused.onnx")
    else:
        optimised.save_model_to_file(str(served))
    os.remove(exact)
    return {"fused": fused, "megabytes": served.stat().st_size / 1e6}


def _quantise(given: Path, made: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(given), str(made), per_channel=True, weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )  # fmt: skip


def export_whole(model: Path, path: Path, texts: Sequence[Encoded], pad_token: int) -> Any:
    """Write transformers' model as one ONNX graph, batch and length free. Returns its configuration."""
    import torch
    from transformers import AutoModelForSequenceClassification

    # Eager attention: the pattern that the optimiser knows how to fuse.
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(
        str(model), dtype=torch.float32, attn_implementation="eager"
    )
    loaded.eval()
    inputs = {name: torch.from_numpy(value) for name, value in padded(texts[:2], pad_token).items()}
    names = list(inputs)

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = loaded

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(**dict(zip(names, values, strict=True))).logits
            return logits

    axes = {name: {0: "batch", 1: "length"} for name in names} | {"logits": {0: "batch"}}
    torch.onnx.export(
        Whole(), tuple(inputs.values()), str(path), input_names=names, output_names=["logits"], dynamic_axes=axes,
        opset_version=17, dynamo=False,
    )  # fmt: skip
    return loaded.config


def serve(model: Path, folder: Path, way: Way, settings: Mapping[str, Any]) -> Any:
    """``settings``: ``dtype`` (float32, int8), ``pad_token``."""
    return _Session(folder / "model.onnx", way, settings)


class _Session:
    """One session with its default settings: all optimisations, threads that spin between operators. Lanes share it."""

    takes_texts = False

    def __init__(self, path: Path, way: Way, settings: Mapping[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = way.threads
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [each.name for each in self._session.get_inputs()]
        self._pad_token, self._lanes = int(settings["pad_token"]), way.lanes
        self.facts = {"dtype": settings["dtype"], "spinning": True, "batches": "sorted"}

    def answer(self, texts: Sequence[Encoded], max_rows: int) -> Floats:
        def answer(rows: Any) -> Floats:
            inputs = padded([texts[row] for row in rows], self._pad_token)
            logits: Floats = self._session.run(None, {name: inputs[name] for name in self._names})[0]
            return logits

        return answered(texts, max_rows, answer, lanes=self._lanes)
