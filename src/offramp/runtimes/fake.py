"""A tiny encoder made of numpy: no download, no training, and exact.

For tests of everything above the waist, ours and other people's. It is built to catch mistakes:

- **A row never depends on its neighbours, to the last bit.** Every row is cut to its unpadded tokens and computed by
  itself, so its operations see the same shapes and values in whatever company it travels. Sums are numpy's own loop
  over a written-out product, not a BLAS call, whose kernel may be chosen by shape or by address.
- **Padding is poison.** Every padded position of a hidden state is NaN; whoever reads one gets NaN.
- **It counts** the rows and tokens that enter each layer, so "texts really stop being computed" can be checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from offramp.errors import KnobError
from offramp.runtimes.base import RuntimeInfo
from offramp.types import Array, Batch, ExitOutput, ProblemType, Stage

__all__ = ["FakeRuntime"]

_VOCABULARY = 97
_METRIC_WIDTH = 4


class FakeRuntime:
    """A deterministic random encoder with exits, in numpy.

    Args:
        num_layers: layers of the full-depth model.
        num_outputs: classes or labels; regression always has 1.
        hidden_size: width of the hidden states.
        exits: layers (1 = the first) after which an exit stands; the last layer always has one. None: every layer.
        problem_type: as in transformers.
        seed: of the random weights.
        distances: exits give ``distances`` [B, C] to class prototypes (single-label only: others have no classes).
        plain_last: the last exit gives no extras, like a model's own head that was left as it is.
        memory: heads see the mean of the pooled vectors of all exits so far, not of this exit alone.
        dtype: of the hidden states and of what the exits say.
        members: layers of smaller complete models that answer first, each the beginning of the larger; then ``exits``
            must be left out. Layers that models share are counted together.

    Attributes:
        rows_entered: [num_layers] rows that entered each layer, over all calls.
        tokens_entered: [num_layers] their unpadded tokens.
        padded_tokens_entered: [num_layers] positions computed, padding included.
    """

    def __init__(
        self,
        num_layers: int = 6,
        num_outputs: int = 3,
        hidden_size: int = 8,
        *,
        exits: Sequence[int] | None = None,
        problem_type: ProblemType = "single_label_classification",
        seed: int = 0,
        distances: bool = True,
        plain_last: bool = False,
        memory: bool = False,
        dtype: Literal["float32", "float64"] = "float32",
        members: Sequence[int] = (),
    ) -> None:
        outputs = 1 if problem_type == "regression" else num_outputs
        self._plain_last, self._memory, self._dtype = plain_last, memory, np.dtype(dtype)
        self._distances = distances and problem_type == "single_label_classification"
        self.info = RuntimeInfo(
            name="fake",
            stages=_cascade(num_layers, members) if members else _stages(num_layers, exits),
            problem_type=problem_type,
            num_outputs=outputs,
            dtype=dtype,
            batch_invariant=True,
            extras={"distances": outputs} if self._distances else {},
            remembers=memory,
            full_layers=num_layers if members else None,
        )
        self._draw_weights(np.random.default_rng(seed), num_layers, outputs, hidden_size)
        self.reset_counts()

    def _draw_weights(self, rng: np.random.Generator, layers: int, outputs: int, width: int) -> None:
        def draw(*shape: int, scale: float) -> npt.NDArray[Any]:
            return rng.normal(0.0, scale, shape).astype(self._dtype)

        self._embeddings = draw(_VOCABULARY, width, scale=1.0)
        self._types = draw(2, width, scale=0.5)
        self._own = draw(layers, width, width, scale=1.2 / width**0.5)
        self._mean = draw(layers, width, width, scale=0.8 / width**0.5)
        self._heads = draw(layers, width, outputs, scale=3.0)
        self._metric = draw(layers, width, _METRIC_WIDTH, scale=1.0)
        self._prototypes = draw(layers, outputs, _METRIC_WIDTH, scale=1.0)

    def reset_counts(self) -> None:
        """Set the counts of rows and tokens back to zero."""
        layers = self.info.num_layers
        self.rows_entered = np.zeros(layers, dtype=np.int64)
        self.tokens_entered = np.zeros(layers, dtype=np.int64)
        self.padded_tokens_entered = np.zeros(layers, dtype=np.int64)

    def embed(self, inputs: Mapping[str, Array]) -> tuple[Array, Batch]:
        """Token (and segment) embeddings, [B, L, H], NaN at padding."""
        types = inputs.get("token_types")
        batch = Batch(inputs["ids"], inputs["tokens"], inputs["lengths"], types)
        return self._embedded(batch), batch

    def _embedded(self, batch: Batch) -> npt.NDArray[Any]:
        hidden = self._poisoned(batch)
        for row, length in enumerate(batch.lengths):
            # Two steps: padding ids are never looked up, whatever they are.
            hidden[row, :length] = self._embeddings[batch.tokens[row, :length] % _VOCABULARY]
            if batch.token_types is not None:
                hidden[row, :length] += self._types[batch.token_types[row, :length] % 2]
        return hidden

    def run(self, stage: Stage, hidden: Array, batch: Batch, active: Array | None = None) -> Array:
        """Each layer mixes a token with the one before it and with the mean of its row's tokens."""
        _check(hidden, batch)
        if stage.starts_from == "inputs":
            hidden = self._embedded(batch)
        for layer in range(stage.first_layer, stage.last_layer):
            self.rows_entered[layer] += batch.lengths.shape[0]
            self.tokens_entered[layer] += int(batch.lengths.sum())
            self.padded_tokens_entered[layer] += batch.tokens.size
        out = self._poisoned(batch)
        for row, length in enumerate(batch.lengths):
            tokens = hidden[row, :length].copy()
            for layer in range(stage.first_layer, stage.last_layer):
                before = np.concatenate([np.zeros_like(tokens[:1]), tokens[:-1]])
                mean = _product(tokens.mean(axis=0), self._mean[layer])
                tokens = np.tanh(_product(tokens, self._own[layer]) + mean + self._dtype.type(0.3) * before)
            out[row, :length] = tokens
        return out

    def exit(
        self, stage: Stage, hidden: Array, batch: Batch, memory: Mapping[str, Array]
    ) -> tuple[ExitOutput, Mapping[str, Array]]:
        """Logits of the mean over a row's tokens, and distances to the prototypes."""
        _check(hidden, batch)
        rows = [self._pool(hidden[row, :length]) for row, length in enumerate(batch.lengths)]
        pooled = np.stack(rows)
        if self._memory:
            memory = _remember(pooled, memory)
            pooled = memory["mean"]
        layer = stage.last_layer - 1
        logits = np.stack([_product(vector, self._heads[layer]) for vector in pooled])
        if not self._distances or (stage.is_last and self._plain_last):
            return ExitOutput(logits), memory
        distances = np.stack([self._to_prototypes(vector, layer) for vector in pooled])
        return ExitOutput(logits, {"distances": distances}), memory

    def _pool(self, tokens: npt.NDArray[Any]) -> npt.NDArray[Any]:
        mean: npt.NDArray[Any] = tokens.copy().mean(axis=0)
        return mean

    def _to_prototypes(self, vector: npt.NDArray[Any], layer: int) -> npt.NDArray[Any]:
        apart = self._prototypes[layer] - _product(vector, self._metric[layer])
        distances: npt.NDArray[Any] = np.sqrt((apart * apart).sum(axis=-1))
        return distances

    def _poisoned(self, batch: Batch) -> npt.NDArray[Any]:
        rows, width = batch.tokens.shape
        return np.full((rows, width, self._embeddings.shape[1]), np.nan, dtype=self._dtype)


def _stages(num_layers: int, exits: Sequence[int] | None) -> tuple[Stage, ...]:
    """The stages that end at the chosen exits; the last layer always ends one."""
    chosen = sorted({*(range(1, num_layers + 1) if exits is None else exits), num_layers})
    if chosen[0] < 1 or chosen[-1] > num_layers:
        raise KnobError(f"exits stand after layers 1 to {num_layers}, not {list(exits or ())}: choose among those")
    starts = [0, *chosen[:-1]]
    return tuple(
        Stage(index=i, first_layer=first, last_layer=last, layers=last, is_last=last == num_layers)
        for i, (first, last) in enumerate(zip(starts, chosen, strict=True))
    )


def _cascade(num_layers: int, members: Sequence[int]) -> tuple[Stage, ...]:
    """A stage for each complete model, every one but the first from the inputs again."""
    depths = [*members, num_layers]
    return tuple(
        Stage(i, 0, depth, sum(depths[: i + 1]), depth == num_layers, "inputs" if i else "hidden")
        for i, depth in enumerate(depths)
    )


def _product(x: npt.NDArray[Any], weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The product x @ weights, summed in an order that depends on nothing but the last axis of x."""
    summed: npt.NDArray[Any] = (x[..., :, None] * weights).sum(axis=-2)
    return summed


def _remember(pooled: npt.NDArray[Any], memory: Mapping[str, Array]) -> Mapping[str, Array]:
    """Running mean [B, H] of the pooled vectors of all exits so far, and how many there were [B]."""
    rows = pooled.shape[0]
    seen = memory["exits"] if memory else np.zeros(rows, dtype=np.int64)
    mean = memory["mean"] if memory else np.zeros_like(pooled)
    if mean.shape != pooled.shape or seen.shape != (rows,):
        raise ValueError(f"memory of {mean.shape[0]} rows came with {rows} rows: it must pass keep and merge with them")
    count = (seen + 1).astype(pooled.dtype)[:, None]
    return {"mean": mean + (pooled - mean) / count, "exits": seen + 1}


def _check(hidden: Array, batch: Batch) -> None:
    """Refuse parts of a batch that no longer belong together, which keep, merge or trim would have to have done."""
    rows, width = batch.tokens.shape
    if hidden.shape[:2] != (rows, width) or batch.ids.shape != (rows,) or batch.lengths.shape != (rows,):
        raise ValueError(
            f"hidden {hidden.shape[:2]}, tokens {(rows, width)} and {batch.lengths.shape} lengths disagree"
        )
    if rows and not 0 < int(batch.lengths.min()) <= int(batch.lengths.max()) <= width:
        raise ValueError(f"lengths {batch.lengths} do not fit into rows of {width} tokens")
