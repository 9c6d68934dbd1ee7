"""How hard each training row is, for objectives that weigh rows by it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import KnobError
from offramp.model.backbone import cut
from offramp.training.rows import Collate, Rows

__all__ = ["difficulties", "measure_hardness", "memorised_layers"]

RUNS = 5
"""Small models that vote on how hard a row is."""
STEPS = 100
"""Optimiser steps that each of them takes at least; one pass over its rows where that is more."""
BATCH = 32


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


def difficulties(right: NDArray[np.bool_], voted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which rows are hard: fewer than half of the votes on them are right. Nobody voted: easy.

    Li et al., "CascadeBERT", Findings of EMNLP 2021, sort rows by five runs; how is not published, so this is ours.

    Args:
        right: [R, N]: whether each model answers each row rightly.
        voted: [R, N]: whether its answer counts, as it was not trained on the row.

    Returns:
        [N].
    """
    hard: NDArray[np.bool_] = 2 * (right & voted).sum(axis=0) < voted.sum(axis=0)
    return hard


def measure_hardness(
    kind: str, model: Any, rows: Rows, collate: Collate, *, seed: int = 0, learning_rate: float = 5e-5
) -> NDArray[np.float32]:
    """[N] hardness of training rows.

    Args:
        kind: ``memorised_layer``: the layer, by the model as it is. ``difficulty``: 1 hard, 0 easy, by the votes of
            small models that are trained for it.
        model: with exits; ``difficulty``: with smaller complete models. It is left as it was.
        rows: with class ids.
        collate: pads them.
        seed: of ``difficulty``.
        learning_rate: of the models trained for ``difficulty``.

    Raises:
        KnobError: ``difficulty`` of a model that has no smaller one.
    """
    if kind == "difficulty":
        return _difficulty(model, rows, collate, seed, learning_rate).astype(np.float32)
    assert kind == "memorised_layer", kind
    right = answers_of(model, rows, collate) == rows.labels
    return memorised_layers(right, [stage.layers for stage in model.stages]).astype(np.float32)


@torch.no_grad()
def answers_of(model: Any, rows: Rows, collate: Collate, *, batch_size: int = 64) -> NDArray[np.int64]:
    """[E, N]: the class that every exit answers, in eval mode, rows of like length together."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    answers = np.zeros((len(model.stages), len(rows)), dtype=np.int64)
    for chosen, batch in _by_length(rows, collate, batch_size):
        inputs = {name: batch[name].to(device) for name in batch if name not in ("labels", "hardness")}
        answers[:, chosen] = model(**inputs).exit_logits.argmax(dim=-1).T.cpu().numpy()
    model.train(training)
    return answers


def _by_length(rows: Rows, collate: Collate, size: int) -> Iterator[tuple[NDArray[np.int64], dict[str, Tensor]]]:
    """Numbers of rows of like length, and their batch."""
    order = np.argsort([len(row) for row in rows.rows], kind="stable")
    for start in range(0, len(rows), size):
        chosen = order[start : start + size]
        yield chosen, collate([rows[int(i)] for i in chosen])


def _difficulty(model: Any, rows: Rows, collate: Collate, seed: int, learning_rate: float) -> NDArray[np.bool_]:
    """Each of ``RUNS`` small models learns from a random half of the rows and votes on the other half."""
    if not model.offramp.members:
        raise KnobError("the difficulty of rows is found with a smaller model, and this recipe has none: give members")
    right, voted = np.zeros((2, RUNS, len(rows)), dtype=np.bool_)
    with torch.random.fork_rng():  # the training that follows is the same with and without this
        for run in range(RUNS):
            torch.manual_seed(seed + run)
            draw = np.random.default_rng([seed, run])
            half = draw.permutation(len(rows))[: (len(rows) + 1) // 2]
            small = _Small(model)
            _learn(small, rows, half, collate, draw, learning_rate)
            right[run] = _answers(small, rows, collate) == rows.labels
            voted[run] = True
            voted[run, half] = False
    return difficulties(right, voted)


class _Small:
    """A copy of a model's smallest member, as it is asked there."""

    def __init__(self, model: Any) -> None:
        self.module: Any = copy.deepcopy(model.offramp.members[0]).requires_grad_(True)
        self.device = next(self.module.parameters()).device
        self._model, self._parts = model, cut(self.module)

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, C]."""
        inputs = {name: value.to(self.device) for name, value in batch.items()}
        lengths, stage = inputs["attention_mask"].sum(dim=1), self._model.stages[0]
        hidden = self._parts.embed(inputs["input_ids"], lengths, inputs.get("token_type_ids"))
        hidden = self._model.run_stage(self._parts, stage, hidden, lengths)
        output, _ = self._model.run_exit(self._parts, stage, hidden, lengths, {})
        logits: Tensor = output.logits.float()
        return logits


def _learn(
    small: _Small, rows: Rows, chosen: NDArray[np.int64], collate: Collate, draw: np.random.Generator, rate: float
) -> None:
    """Train on the chosen rows, the learning rate falling to 0."""
    steps = max(STEPS, -(-len(chosen) // BATCH))
    optimizer = torch.optim.AdamW(small.module.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    order = np.concatenate([draw.permutation(chosen) for _ in range(-(-steps * BATCH // len(chosen)))])
    small.module.train()
    for step in range(steps):
        batch = collate([rows[int(i)] for i in order[step * BATCH : (step + 1) * BATCH]])
        loss = torch.nn.functional.cross_entropy(small(batch), batch["labels"].to(small.device))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


@torch.no_grad()
def _answers(small: _Small, rows: Rows, collate: Collate) -> NDArray[np.int64]:
    """[N]."""
    small.module.eval()
    answers = np.zeros(len(rows), dtype=np.int64)
    for chosen, batch in _by_length(rows, collate, 64):
        answers[chosen] = small(batch).argmax(dim=-1).cpu().numpy()
    return answers
