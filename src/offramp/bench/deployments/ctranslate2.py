"""The encoder in CTranslate2 with int8 weights, and the classifier behind it in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np

from offramp.bench.deployments.base import AS_IT_COMES, Floats, Way, answered
from offramp.inputs.tokens import Encoded

__all__ = ["prepare", "serve"]


def prepare(model: Path, folder: Path, texts: Sequence[Encoded], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the encoder, and keep the classifier's weights beside it.

    Raises:
        UnsupportedError: the model is no BERT with a pooler and one linear classifier.
    """
    import tempfile

    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    from offramp.errors import UnsupportedError

    loaded: Any = AutoModelForSequenceClassification.from_pretrained(str(model))
    if loaded.config.model_type != "bert":
        raise UnsupportedError(f"the CTranslate2 row is made for BERT, not {loaded.config.model_type}: leave it out")
    np.savez(
        folder / "classifier.npz",
        weight=loaded.classifier.weight.detach().numpy(),
        bias=loaded.classifier.bias.detach().numpy(),
    )
    with tempfile.TemporaryDirectory() as encoder:
        AutoModel.from_pretrained(str(model)).save_pretrained(encoder)
        AutoTokenizer.from_pretrained(str(model)).save_pretrained(encoder)
        converter = ctranslate2.converters.TransformersConverter(encoder)
        converter.convert(str(folder / "encoder"), quantization="int8", force=True)
    return {"megabytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6}


def serve(model: Path, folder: Path, way: Way, settings: Mapping[str, Any]) -> Any:
    """``settings``: none."""
    return _Encoder(folder, way)


class _Encoder:
    """One encoder; rows of a batch go in as lists of token ids, padding is its own business."""

    takes_texts = False

    def __init__(self, folder: Path, way: Way) -> None:
        self._encoder: Any = ctranslate2.Encoder(
            str(folder / "encoder"),
            device="cpu",
            compute_type="int8",
            intra_threads=way.threads,
            inter_threads=way.lanes,
        )
        self._lanes = way.lanes
        weights = np.load(folder / "classifier.npz")
        self._weight, self._bias = weights["weight"], weights["bias"]
        self.facts = {"dtype": "int8", "batches": "sorted", "spinning": AS_IT_COMES}

    def answer(self, texts: Sequence[Encoded], max_rows: int) -> Floats:
        def answer(rows: Any) -> Floats:
            said = self._encoder.forward_batch([texts[row].tokens.tolist() for row in rows])
            logits: Floats = np.asarray(said.pooler_output) @ self._weight.T + self._bias
            return logits

        return answered(texts, max_rows, answer, lanes=self._lanes)
