"""How hard each training row is, for objectives that weigh rows by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.training.rows import Collate, Rows

__all__ = ["measure_hardness", "memorised_layers"]


def memorised_layers(right: NDArray[np.bool_], layers: Sequence[int]) -> NDArray[np.int64]:
    """The layer from which on a row is answered rightly: Zeng et al., "ConsistentEE", AAAI 2024, section 3.

    Walks from the last exit towards the first while the answers are right.

    Args:
        right: [E, N]: whether each exit answers each row rightly.
        layers: [E] cumulative layers of the exits.

    Returns:
        [N]: the layer of the shallowest exit of that unbroken run; the last layer where the last exit is wrong.
    """
    unbroken = np.logical_and.accumulate(right[::-1], axis=0)[::-1]
    first = len(right) - unbroken.sum(axis=0)
    found: NDArray[np.int64] = np.asarray(layers, dtype=np.int64)[np.minimum(first, len(right) - 1)]
    return found


def measure_hardness(kind: str, model: Any, rows: Rows, collate: Collate) -> NDArray[np.float32]:
    """[N] hardness of training rows.

    Args:
        kind: ``memorised_layer``.
        model: with exits; it is left in the mode it was in.
        rows: with class ids.
        collate: pads them.
    """
    assert kind == "memorised_layer", kind
    right = answers_of(model, rows, collate) == rows.labels
    return memorised_layers(right, [stage.layers for stage in model.stages]).astype(np.float32)


@torch.no_grad()
def answers_of(model: Any, rows: Rows, collate: Collate, *, batch_size: int = 64) -> NDArray[np.int64]:
    """[E, N]: the class that every exit answers, in eval mode, rows of like length together."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    answers = np.zeros((len(model.stages), len(rows)), dtype=np.int64)
    order = np.argsort([len(row) for row in rows.rows], kind="stable")
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([rows[int(i)] for i in chosen])
        inputs = {name: batch[name].to(device) for name in batch if name not in ("labels", "hardness")}
        answers[:, chosen] = model(**inputs).exit_logits.argmax(dim=-1).T.cpu().numpy()
    model.train(training)
    return answers
