"""Encoded rows as Trainer wants them: one at a time, and padded together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.inputs.tokens import Encoded

__all__ = ["Collate", "Rows", "told"]


@dataclass(frozen=True, eq=False)
class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """N encoded rows with their labels."""

    rows: Sequence[Encoded]
    labels: NDArray[Any]
    """[N] class ids, [N, C] zeros and ones, or [N] numbers."""
    hardness: NDArray[np.float32] | None = None
    """[N]: how hard each row is, where an objective asks for it."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        item = {"input_ids": row.tokens, "labels": self.labels[index]}
        if row.token_types is not None:
            item["token_type_ids"] = row.token_types
        if self.hardness is not None:
            item["hardness"] = self.hardness[index]
        return item


@dataclass(frozen=True)
class Collate:
    """Rows to padded tensors."""

    pad_token: int

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(item["input_ids"]) for item in items)
        names = [name for name in ("input_ids", "token_type_ids") if name in items[0]]
        batch = {name: np.zeros((len(items), width), dtype=np.int64) for name in names}
        batch["input_ids"].fill(self.pad_token)
        mask = np.zeros((len(items), width), dtype=np.int64)
        for i, item in enumerate(items):
            mask[i, : len(item["input_ids"])] = 1
            for name in names:
                batch[name][i, : len(item[name])] = item[name]
        tensors = {name: torch.from_numpy(value) for name, value in (*batch.items(), ("attention_mask", mask))}
        return {**tensors, **told(items)}


def told(items: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """What is known of rows besides their tokens: labels and hardness, where they have them."""
    names = [name for name in ("labels", "hardness") if name in items[0]]
    return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in names}
