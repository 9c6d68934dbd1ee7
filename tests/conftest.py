"""Shared fixtures: a tiny encoder and its tokenizer, tiny data sets, tiny models of every family, runs, traces.

Nothing here touches the network, and torch is imported by the fixtures that need it, not by this file.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # on models this small, threads only wait for each other
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start what runs in the background deaf to Ctrl-C, and all that it starts. Tests send it to programs.
    signal.signal(signal.SIGINT, signal.default_int_handler)

KINDS = ("single_label_classification", "multi_label_classification", "regression")
CUES = {
    "good": ("gem", "lovely", "bright", "warm"),
    "bad": ("dull", "broken", "cold", "flat"),
    "odd": ("weird", "dreamy", "crooked", "strange"),
}
"""Class -> the words that decide it."""
FILLERS = ("the", "film", "is", "a", "story", "of", "people", "and", "their", "town", "with", "music", ",", "that")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

BERT_LIKE = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 40}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", BERT_LIKE),
    "roberta": ("RobertaConfig", BERT_LIKE),
    "distilbert": ("DistilBertConfig", {"dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 40}),
    "albert": ("AlbertConfig", BERT_LIKE | {"embedding_size": 16}),
    "electra": ("ElectraConfig", BERT_LIKE | {"embedding_size": 16}),
    "mpnet": ("MPNetConfig", BERT_LIKE),
    "deberta-v2": (
        "DebertaV2Config",
        BERT_LIKE
        | {
            "relative_attention": True,
            "position_buckets": 4,
            "max_relative_positions": 8,
            "pos_att_type": ["p2c", "c2p"],
            "conv_kernel_size": 3,
            "conv_act": "gelu",
        },
    ),
    "modernbert": (
        "ModernBertConfig",
        BERT_LIKE
        | {"num_hidden_layers": 4, "global_attn_every_n_layers": 3, "local_attention": 6, "norm_bias": True}
        | {f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep")},
    ),
}
"""Family -> class and settings of a tiny configuration."""

VECTORS = {
    # gains confidence
    "A": [0.40, 0.35, 0.25, 0.55, 0.30, 0.15, 0.75, 0.15, 0.10, 0.90, 0.06, 0.04, 0.96, 0.03, 0.01, 0.98, 0.01, 0.01],
    # confident, then changes its mind
    "B": [0.85, 0.10, 0.05, 0.45, 0.50, 0.05, 0.30, 0.60, 0.10, 0.25, 0.65, 0.10, 0.10, 0.85, 0.05, 0.04, 0.95, 0.01],
    # never confident
    "C": [0.34, 0.33, 0.33, 0.34, 0.36, 0.30, 0.42, 0.30, 0.28, 0.36, 0.30, 0.34, 0.38, 0.42, 0.20, 0.37, 0.40, 0.23],
}
"""Text -> probabilities of three classes at the first layer, at the second, ... at the sixth."""

MakeModel = Callable[..., Any]
MakeTrace = Callable[..., Any]
MakeRows = Callable[..., dict[str, Any]]


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector shall not look at it again."""
    gc.collect()
    gc.freeze()


def sentence(draw: random.Random, kinds: Sequence[str]) -> str:
    """Filler words around two cue words of every kind."""
    cues = [word for kind in kinds for word in draw.sample(CUES[kind], 2)]
    words = [*cues, *draw.choices(FILLERS, k=draw.randint(1, 12))]
    draw.shuffle(words)
    return " ".join(words)


def toy_row(kind: str, number: int, draw: random.Random) -> dict[str, Any]:
    """A text whose words decide its label."""
    names = list(CUES)
    if kind == "single_label_classification":
        name = names[number % len(names)]
        return {"text": sentence(draw, [name]), "label": name}
    if kind == "multi_label_classification":
        present = [name for bit, name in enumerate(names) if (number % 8) >> bit & 1]
        return {"text": sentence(draw, present), "labels": present}
    value = number % 3
    return {"text": sentence(draw, [names[value]]), "label": value - 1.0}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Problem type -> a folder with 96 train and 48 dev rows that are easy to learn."""
    root = tmp_path_factory.mktemp("data")

    def make(kind: str = KINDS[0]) -> str:
        folder = root / kind
        if not folder.exists():
            draw = random.Random(kind)
            for name, count in (("train", 96), ("dev", 48)):
                write_rows(folder / f"{name}.jsonl", [toy_row(kind, n, draw) for n in range(count)])
        return str(folder)

    return make


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Folder of an untrained BERT (3 layers of width 32, reads 48 tokens) and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    words = [*SPECIAL, *dict.fromkeys([*FILLERS, *(word for cues in CUES.values() for word in cues)])]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=48, **names)
    config = BertConfig(**BERT_LIKE, vocab_size=len(words), max_position_embeddings=48, initializer_range=0.2)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Each training ends with a look for garbage among all that lives: half of its time, where it is this short.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.utils.memory.clear_device_cache", lambda garbage_collection=False: None)
        yield str(folder)


@pytest.fixture(scope="session")
def make_plan(tiny_encoder: str, toy_data: Callable[[str], str]) -> Callable[..., Any]:
    """``make_plan(out, arguments={...}, data=..., ...)``: a plan that trains in less than a second, in float32.

    ``once=False``: evaluated and saved every epoch (six steps), as without the tests, and not only at the end. Exits
    learn on alone only where ``exit_epochs`` says so.
    """
    from offramp.training.train import Plan

    quick = {
        "max_steps": 24,
        "learning_rate": 5e-3,
        "head_learning_rate": 5e-3,  # all of a tiny model is fresh
        "per_device_train_batch_size": 16,
        "bf16": False,
        "logging_steps": 1,
        "disable_tqdm": True,
    }

    def make(out: Path, *, arguments: dict[str, Any] | None = None, once: bool = True, **changes: Any) -> Plan:
        given = quick | (arguments or {})
        if once:
            given = {"eval_steps": given["max_steps"], "save_steps": given["max_steps"]} | given
        plan = Plan(
            model=tiny_encoder, data=toy_data(KINDS[0]), out=out, pooling="mean", arguments=given, exit_epochs=0.0
        )
        return replace(plan, **changes)

    return make


@pytest.fixture(scope="session")
def trained(make_plan: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: DE3-BERT on the single-label toy data. Shared: do not change it."""
    from offramp.training.train import train

    folder: Path = train(make_plan(tmp_path_factory.mktemp("trained") / "run", once=False)).folder
    return folder


@pytest.fixture(scope="session")
def joint_run(
    make_plan: Callable[..., Any], toy_data: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Problem type -> a run of the recipe that serves all. Shared: do not change it."""
    from offramp.training.train import train

    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            plan = make_plan(tmp_path_factory.mktemp(kind) / "run", data=toy_data(kind), recipe="joint")
            made[kind] = train(plan).folder
        return made[kind]

    return make


@pytest.fixture(scope="session")
def plain_model() -> MakeModel:
    """``plain_model(family, scramble=0.25, **config)``: a tiny random classifier in eval mode, the same each time."""
    import torch
    import transformers

    def make(family: str, scramble: float = 0.25, **changes: Any) -> Any:
        name, settings = FAMILIES[family]
        defaults = {"vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 0, "num_labels": 3}
        config = getattr(transformers, name)(**(settings | defaults | changes))
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        return _scrambled(model, 0.12 if family == "modernbert" else scramble).eval()

    return make


@pytest.fixture(scope="session")
def tiny_model(plain_model: MakeModel) -> MakeModel:
    """``tiny_model(family, settings=ExitSettings(), **config)``: the same with exits, prototypes in place."""
    import torch

    from offramp.model.exits import ExitSettings
    from offramp.model.modeling import add_exits

    def make(family: str = "bert", settings: ExitSettings | None = None, **changes: Any) -> Any:
        model = add_exits(plain_model(family, **changes), settings or ExitSettings())
        _scrambled(model.offramp, 0.25)
        generator = torch.Generator().manual_seed(1)
        for name, buffer in model.offramp.named_buffers():
            buffer.copy_(torch.ones_like(buffer) if name.endswith("seen") else _normal(buffer, generator))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def trace_of() -> MakeTrace:
    """``trace_of(logits, kind, labels=..., layers=..., **extras)``: [E, U, C] to a trace; an exit after every layer."""
    from offramp.traces.trace import Trace

    def make(
        logits: Any, kind: Any = KINDS[0], *, labels: Any = None, layers: Sequence[int] | None = None, **extras: Any
    ) -> Trace:
        logits = np.asarray(logits, dtype=np.float32)
        return Trace(
            logits=logits,
            layers=np.arange(1, len(logits) + 1) if layers is None else np.array(layers),
            lengths=np.ones(logits.shape[1], dtype=np.int64),
            problem_type=kind,
            id2label={c: str(c) for c in range(logits.shape[2])},
            extras={name: np.asarray(values, dtype=np.float32) for name, values in extras.items()},
            labels=labels,
        )

    return make


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    """Text -> [6 layers, 3 classes]: probabilities for which every method's answer was worked out by hand."""
    return {name: np.array(rows).reshape(6, 3) for name, rows in VECTORS.items()}


@pytest.fixture(scope="session")
def vector_trace(vectors: dict[str, Any], trace_of: MakeTrace) -> Any:
    """The trace of ``vectors``: units A, B and C."""
    return trace_of(np.log(np.stack([vectors[name] for name in "ABC"], axis=1)))


def _normal(like: Any, generator: Any) -> Any:
    import torch

    return torch.randn(like.shape, generator=generator)


def _scrambled(module: Any, spread: float) -> Any:
    """Weights large enough that a wrong mask, norm or layer is seen; transformers' own 0.02 hides mistakes."""
    import torch

    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * _normal(parameter, generator))
    return module


@pytest.fixture(scope="session")
def rows() -> MakeRows:
    """``rows(lengths, labels=...)``: random token ids, padded on the right, as ``forward`` takes them."""
    import torch

    def make(lengths: Sequence[int] = (11, 3, 17, 9, 1, 14), seed: int = 1, **more: Any) -> dict[str, Any]:
        count = torch.tensor(lengths)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, 41, (len(lengths), max(lengths)), generator=generator)
        mask = (torch.arange(max(lengths)) < count[:, None]).long()
        return {"input_ids": ids * mask, "attention_mask": mask} | more

    return make


@pytest.fixture(scope="session")
def as_run(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``as_run(model)``: a run folder of an untrained model with exits; it has no trace and no operating point."""
    import shutil

    def make(model: Any) -> Path:
        folder = tmp_path_factory.mktemp("as-run") / "run"
        model.save_pretrained(folder)
        for path in Path(tiny_encoder).glob("*token*.json"):
            shutil.copy(path, folder / path.name)
        config = json.loads((folder / "config.json").read_text())
        types = (getattr(model.config, "type_vocab_size", 0) or 0) > 1
        config["offramp"] |= {"format": 1, "recipe": "joint", "max_length": 32, "token_types": types}
        config["problem_type"] = model.problem_type
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """``nowhere(model)``: a runtime that defers, on a device with shapes and no numbers.

    Whoever looks at a number gets an error: there is none to wait for. What it fetches is made up.
    """
    import copy
    from contextlib import nullcontext

    import torch

    from offramp.runtimes.torch import TorchRuntime

    # torch knows no autocast on this device; there is nothing it could cast either.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())

    class Nowhere(TorchRuntime):
        def __init__(self, model: Any) -> None:
            super().__init__(copy.deepcopy(model), device="meta")
            self._rng = np.random.default_rng(0)

        @property
        def info(self) -> Any:
            return replace(super().info, deferred=True)

        def fetch(self, array: Any) -> Callable[[], Any]:
            assert array.device.type == "meta"
            shape = tuple(array.shape)
            return lambda: self._rng.integers(0, 2, shape).astype(np.float32)

    return Nowhere
