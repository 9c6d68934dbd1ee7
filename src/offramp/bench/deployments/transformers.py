"""transformers as it is installed: the pipeline, batches sorted by length in fp32 or bf16, and ``torch.compile``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from offramp.bench.deployments.base import AS_IT_COMES, Floats, Way, answered, padded
from offramp.inputs.tokens import Encoded, Text

__all__ = ["prepare", "serve"]


def prepare(model: Path, folder: Path, texts: Sequence[Encoded], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing is made: transformers serves the model's folder."""
    return {}


def serve(model: Path, folder: Path, way: Way, settings: Mapping[str, Any]) -> Any:
    """``settings``: ``dtype`` (float32, bfloat16), ``compile``, ``pipeline``, ``pad_token``."""
    torch.set_num_threads(way.threads)
    if settings.get("pipeline"):
        return _Pipeline(model)
    return _Sorted(model, settings)


class _Sorted:
    """Batches of like length through the model."""

    takes_texts = False

    def __init__(self, model: Path, settings: Mapping[str, Any]) -> None:
        self._pad_token = int(settings["pad_token"])
        dtype = str(settings.get("dtype", "float32"))
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(str(model), dtype=getattr(torch, dtype))
        self._attention = str(loaded.config._attn_implementation)
        loaded.eval()
        self._compiled = bool(settings.get("compile"))
        # One graph for all shapes: shape by shape, a stream of texts would be compiled for minutes.
        self._model = torch.compile(loaded, dynamic=True) if self._compiled else loaded
        self.facts = {
            "dtype": dtype,
            "compiled": self._compiled,
            "attention": self._attention,
            "batches": "sorted",
            "spinning": AS_IT_COMES,
        }

    def answer(self, texts: Sequence[Encoded], max_rows: int) -> Floats:
        def answer(rows: Any) -> Floats:
            inputs = padded([texts[row] for row in rows], self._pad_token)
            given = {name: torch.from_numpy(value) for name, value in inputs.items()}
            logits: Floats = self._model(**given).logits.float().numpy()
            return logits

        with torch.inference_mode():
            return answered(texts, max_rows, answer)


class _Pipeline:
    """What the first page of the documentation shows. It tokenises by itself, and batches texts as they come."""

    takes_texts = True

    def __init__(self, model: Path) -> None:
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(str(model), dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(model))
        self._length = min(int(loaded.config.max_position_embeddings), int(tokenizer.model_max_length))
        self._classes = {name: int(number) for number, name in loaded.config.id2label.items()}
        self._call: Any = pipeline("text-classification", model=loaded, tokenizer=tokenizer, device="cpu")
        self.facts = {
            "dtype": "float32",
            "batches": "as they come",
            "tokenizer": "its own",
            "spinning": AS_IT_COMES,
        }

    def answer_texts(self, texts: Sequence[Text], max_rows: int) -> Floats:
        given = [text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]} for text in texts]
        said = self._call(given, batch_size=max_rows, top_k=None, truncation=True, max_length=self._length)
        answers = np.zeros((len(texts), len(self._classes)), dtype=np.float32)
        for row, each in enumerate(said):
            for entry in each:
                answers[row, self._classes[entry["label"]]] = np.log(max(entry["score"], 1e-30))
        return answers
