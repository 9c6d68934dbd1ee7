"""Features: what exits read of a frozen encoder, computed once and kept on disk while the exits train.

Where no weight but the exits' own moves, the layers give every epoch what they gave the epoch before. So each row goes
through them once; what the heads read of it is written to a file that is mapped into memory, and the heads train on
that. One vector an exit and text, or, for heads that read the tokens themselves, every token's.

Files are written part by part: a process that was killed goes on after the last part it finished, as long as weights,
rows and settings are the same (a fingerprint tells).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from offramp.errors import DataError, TrainingError
from offramp.inputs.batching import length_sorted
from offramp.inputs.tokens import Encoded
from offramp.model.backbone import cut
from offramp.model.modeling import SECTION, parameters_of
from offramp.training.rows import Collate, Rows, told

__all__ = [
    "CollateFeatures",
    "Dtype",
    "FeatureRows",
    "FeatureStore",
    "Features",
    "can_keep",
    "encode_features",
    "keep_features",
    "size_on_disk",
]

Dtype = Literal["float32", "float16"]

PART = 1024
"""Rows after which what was computed is safe."""
TOKENS = 8192
"""Tokens in a batch, padding counted: what bounds the memory."""
_FILES = {"features": "features.bin", "logits": "last_logits.bin", "lengths": "lengths.npy", "about": "features.json"}


@dataclass(frozen=True)
class Features:
    """What exits read of N texts, for research."""

    pooled: NDArray[np.float32]
    """[E, N, P]: of every exit the vector that its head is given, shallow to deep; the last exit's too."""
    last_logits: NDArray[np.float32]
    """[N, C]: the full-depth answers."""


def encode_features(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    *,
    pad_token: int = 0,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Features:
    """One pass over texts: the vector each exit's head is given, in memory. Heads that read tokens have none.

    Args:
        model: with exits; it is left as it was.
        rows: N encoded texts.
        pad_token: token id that stands for padding.
        batch_size: most texts in a batch.
        progress: called with the number of texts done since the last call.

    Raises:
        UnsupportedError: a model of several complete models, or exits that weigh tokens by themselves.
        DataError: there are no texts.
    """
    if not rows:
        raise DataError("there are no texts to encode: give at least one")
    pooled: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None
    parts = cut(model)
    for batch in length_sorted([len(row) for row in rows], max_rows=batch_size, max_tokens=TOKENS):
        with torch.no_grad(), _as_served(model):
            features, last = _encode(model, [rows[int(i)] for i in batch], pad_token, tokens=False)
            vectors = _pooled(model, parts, features)
        if pooled is None or logits is None:
            pooled = np.empty((len(vectors), len(rows), vectors.shape[-1]), dtype=np.float32)
            logits = np.empty((len(rows), last.shape[-1]), dtype=np.float32)
        pooled[:, batch] = vectors.float().cpu().numpy()
        logits[batch] = last.float().cpu().numpy()
        if progress is not None:
            progress(len(batch))
    assert pooled is not None
    assert logits is not None
    return Features(pooled, logits)


def _pooled(model: Any, parts: Any, features: Tensor) -> Tensor:
    """[B, E, 1, H] -> [E, B, P]: summaries as the heads are given them."""
    ones = torch.ones(len(features), dtype=torch.int64, device=features.device)
    read = [features[:, stage.index] for stage in model.stages]
    read = [*(model.offramp.rescale(index, hidden) for index, hidden in enumerate(read[:-1])), read[-1]]
    return torch.stack([model.pool(parts, hidden, ones) for hidden in read])


def can_keep(model: PreTrainedModel) -> bool:
    """Whether the weights that move now are the early exits' alone, so that what they read stays as it is."""
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    heads = {name for name, _ in parameters_of(model, "heads")}
    return moving <= heads and not model.offramp.members and len(model.stages) > 1


def size_on_disk(model: PreTrainedModel, rows: Sequence[Encoded], *, dtype: Dtype = "float32") -> int:
    """Bytes that the features of so many rows take."""
    tokens = model.offramp.reads_tokens
    vectors = sum(len(row) for row in rows) if tokens else len(rows)
    width = cut(model).hidden_size
    return int(vectors * (len(model.stages) - 1) * width * np.dtype(dtype).itemsize)


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """Features of N rows on disk. A row is a text of L vectors: one summary, or all its tokens."""

    features: NDArray[Any]
    """[all vectors, E - 1, H], rows one after the other; mapped."""
    offsets: NDArray[np.int64]
    """[N + 1]: where each row's vectors begin."""
    last_logits: NDArray[np.float32]
    """[N, C]; mapped."""
    computed: tuple[torch.dtype, torch.dtype]
    """Of vectors and of logits: what the layers gave, and the heads are to be given."""

    def __len__(self) -> int:
        return len(self.last_logits)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Some rows as ``forward`` takes them: features [B, E - 1, L, H], their mask [B, L], last_logits [B, C]."""
        starts, ends = self.offsets[rows], self.offsets[np.asarray(rows) + 1]
        lengths = ends - starts
        if lengths.max() == 1:
            features = np.asarray(self.features[starts])[:, :, None]
        else:
            shape = (len(rows), self.features.shape[1], int(lengths.max()), self.features.shape[2])
            features = np.zeros(shape, dtype=self.features.dtype)
            for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
                features[place, :, : end - start] = self.features[start:end].swapaxes(0, 1)
        mask = np.arange(features.shape[2]) < lengths[:, None]
        return {
            "features": torch.from_numpy(features).to(self.computed[0]),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "last_logits": torch.from_numpy(np.asarray(self.last_logits[rows])).to(self.computed[1]),
        }


@dataclass(frozen=True, eq=False)
class FeatureRows(Rows):
    """Rows whose features are kept. Their tokens still come along: batches are made by length."""

    store: FeatureStore | None = None

    @classmethod
    def of(cls, rows: Rows, store: FeatureStore) -> FeatureRows:
        """The same rows."""
        return cls(rows.rows, rows.labels, rows.hardness, store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "store": self.store, "row": index}


class CollateFeatures(Collate):
    """Rows with kept features to what ``forward`` takes in place of tokens."""

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        store: FeatureStore = items[0]["store"]
        return {**store.batch([item["row"] for item in items]), **told(items)}


def keep_features(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    folder: Path,
    *,
    pad_token: int,
    dtype: Dtype = "float32",
    autocast: torch.dtype | None = None,
    batch_size: int = 64,
    share: tuple[int, int] = (0, 1),
    meet: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] | None = None,
) -> FeatureStore:
    """Run rows through the frozen layers and keep what the heads read; or take what is there already.

    Args:
        model: with exits; it is left as it was.
        rows: N encoded texts.
        folder: of these rows alone; what another model, other rows or settings left there is removed.
        pad_token: token id that stands for padding.
        dtype: of the numbers on disk.
        autocast: the precision that training computes the layers in; None: the model's own.
        batch_size: most rows in a batch.
        share: (number, count) of this process among those that train together: each computes some of the parts.
        meet: waits for the others of them.
        progress: called with the number of rows done since the last call, those found on disk too.

    Raises:
        TrainingError: a number too large for float16.
        UnsupportedError: a model of several complete models.
        OSError: the disk is full.
    """
    about = _about(model, rows, dtype, autocast, batch_size)
    if share[0] == 0:
        _begin(folder, about, rows)
    meet()
    parts = _parts([len(row) for row in rows], batch_size)
    for number, part in enumerate(parts):
        done = folder / f"part-{number}"
        if number % share[1] != share[0]:
            continue
        if not done.is_file():
            computed = _write_part(model, rows, part, folder, about, pad_token, autocast)
            done.write_text(computed)
        if progress is not None:
            progress(sum(map(len, part)))
    meet()
    return _open(folder, about, len(rows))


def _about(
    model: PreTrainedModel, rows: Sequence[Encoded], dtype: Dtype, autocast: torch.dtype | None, batch_size: int
) -> dict[str, Any]:
    """What the files hold, and the fingerprint of what they were made from."""
    tokens = bool(model.offramp.reads_tokens)
    shape = [sum(len(row) for row in rows) if tokens else len(rows), len(model.stages) - 1, cut(model).hidden_size]
    about = {
        "tokens": tokens,
        "shape": shape,
        "outputs": int(model.config.num_labels),
        "dtype": dtype,
        "autocast": str(autocast),
        "exits": [stage.layers for stage in model.stages],
        "pooling": model.settings.pooling,
        "head": model.settings.head,
        "batches": [batch_size, PART, TOKENS],
        "torch": str(torch.__version__),
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    _digest_weights(digest, model)
    for row in rows:
        digest.update(np.int64(len(row)).tobytes() + row.tokens.tobytes())
        digest.update(b"" if row.token_types is None else row.token_types.tobytes())
    return {**about, "fingerprint": digest.hexdigest()}


_NAMES = ("_name_or_path", "architectures", "dtype", "transformers_version", SECTION)
"""Entries of a config that may change without the layers doing so."""


def _digest_weights(digest: Any, model: PreTrainedModel) -> None:
    """All weights and buffers but the early exits', and the config that says what is done with them."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NAMES}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        if not name.startswith(f"{SECTION}.") or name.startswith(f"{SECTION}.last."):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _begin(folder: Path, about: Mapping[str, Any], rows: Sequence[Encoded]) -> None:
    """Files of the right size; parts that were finished stay where the fingerprint is the same."""
    path = folder / _FILES["about"]
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == about:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    vectors, exits, width = about["shape"]
    sizes = {"features": vectors * exits * width * np.dtype(about["dtype"]).itemsize,
             "logits": len(rows) * about["outputs"] * 4}  # fmt: skip
    for name, size in sizes.items():
        with (folder / _FILES[name]).open("wb") as file:
            file.truncate(size)
    np.save(folder / _FILES["lengths"], np.array([len(row) if about["tokens"] else 1 for row in rows], dtype=np.int64))
    # Last: a folder without it is begun anew.
    path.with_suffix(".tmp").write_text(json.dumps(about), encoding="utf-8")
    path.with_suffix(".tmp").replace(path)


def _parts(lengths: Sequence[int], batch_size: int) -> list[list[NDArray[np.int64]]]:
    """Batches of rows of like length, some ``PART`` rows of them a part."""
    parts: list[list[NDArray[np.int64]]] = [[]]
    for batch in length_sorted(lengths, max_rows=batch_size, max_tokens=TOKENS):
        if sum(map(len, parts[-1])) >= PART:
            parts.append([])
        parts[-1].append(batch)
    return parts


def _write_part(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    part: Sequence[NDArray[np.int64]],
    folder: Path,
    about: Mapping[str, Any],
    pad_token: int,
    autocast: torch.dtype | None,
) -> str:
    """Compute some batches and write each row to its place; what types the numbers had, of vectors and of logits."""
    offsets = _offsets(folder)
    types: tuple[torch.dtype, ...] = ()
    # Written, and not assigned to a mapped file: on a full disk that would end the process without a word.
    with (folder / _FILES["features"]).open("r+b") as to, (folder / _FILES["logits"]).open("r+b") as logits_to:
        for batch in part:
            with torch.no_grad(), _as_served(model), _cast(model, autocast):
                features, last = _encode(model, [rows[int(i)] for i in batch], pad_token, tokens=about["tokens"])
            types = (features.dtype, last.dtype)
            blocks = _on_disk(features[:, :-1], about["dtype"])
            answers = last.float().cpu().numpy()
            for place, row in enumerate(batch):
                vectors = int(offsets[row + 1] - offsets[row])
                _write_at(to, int(offsets[row]), blocks[place, :, :vectors].swapaxes(0, 1))
                _write_at(logits_to, int(row), answers[place][None])
    return " ".join(str(kind).removeprefix("torch.") for kind in types)


def _on_disk(features: Tensor, dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # it is complained of below
        blocks = features.float().cpu().numpy().astype(dtype)
    if not np.isfinite(blocks).all():
        raise TrainingError(
            f"the encoder gives numbers that {dtype} does not hold: keep its features in float32"
            if dtype == "float16"
            else "the encoder gives numbers that are not finite: its weights are damaged"
        )
    return blocks


def _write_at(file: Any, place: int, block: NDArray[Any]) -> None:
    """Write vectors [n, ...] from number ``place`` on."""
    file.seek(place * block[:1].nbytes)
    file.write(np.ascontiguousarray(block).data)


def _offsets(folder: Path) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.load(folder / _FILES["lengths"]))])


def _open(folder: Path, about: Mapping[str, Any], rows: int) -> FeatureStore:
    features = np.memmap(folder / _FILES["features"], about["dtype"], "r", shape=tuple(about["shape"]))
    logits = np.memmap(folder / _FILES["logits"], np.float32, "r", shape=(rows, about["outputs"]))
    vectors, answers = (getattr(torch, kind) for kind in (folder / "part-0").read_text().split())
    return FeatureStore(features, _offsets(folder), logits, (vectors, answers))


def _encode(model: Any, rows: Sequence[Encoded], pad_token: int, *, tokens: bool) -> tuple[Tensor, Tensor]:
    """``model.encode`` of a batch of rows."""
    items = Rows(rows, np.zeros(len(rows)))
    batch = Collate(pad_token)([items[i] for i in range(len(rows))])
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    encoded: tuple[Tensor, Tensor] = model.encode(**inputs, tokens=tokens)
    return encoded


@contextmanager
def _as_served(model: Any) -> Iterator[None]:
    """The model in eval mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _cast(model: PreTrainedModel, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    if dtype is None:
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype=dtype)
