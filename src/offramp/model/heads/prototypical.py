"""Prototypical: a linear classifier, and beside it a small network into a metric space with class prototypes.

He et al., "DE3-BERT", arXiv 2402.05948 (a linear prototypical network at every layer but the last). The width, that
it reads the pooled vector before dropout, and the networks besides the linear one are our choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from offramp.model.heads.base import Head, HeadOutput, Reader, Surroundings, make_dropout
from offramp.model.pooling import weighed
from offramp.model.prototypes import Prototypes
from offramp.settings import check_choice, check_number
from offramp.types import Lazily

__all__ = ["Distance", "Network", "Prototypical", "distances_to"]

Network = Literal["linear", "mlp", "identity", "attention"]
Distance = Literal["euclidean", "squared", "cosine"]


def distances_to(embedded: Tensor, means: Tensor, seen: Tensor, *, distance: Distance = "euclidean") -> Tensor:
    """Distances to every prototype: [B, width], [C, width], [C] bool -> [B, C] float32, ``inf`` where none is.

    Each row is computed by itself (no matrix product over the batch), so a text's distances do not depend on its
    neighbours; the gradient at distance 0 is 0.
    """
    embedded, means = embedded.float(), means.float()
    if distance == "cosine":
        result = 1 - nn.functional.cosine_similarity(embedded[:, None], means[None], dim=-1)
        result = result.clamp(min=0)
    else:
        result = torch.cdist(embedded, means, compute_mode="donot_use_mm_for_euclid_dist")
        if distance == "squared":
            result = result.square()
    return result.masked_fill(~seen, math.inf)


class TokenAttention(nn.Module):
    """One learned query over the unpadded tokens, then a linear map: [B, L, H] -> [B, width]."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(hidden_size, 1)
        self.project = nn.Linear(hidden_size, width)

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        projected: Tensor = self.project(weighed(hidden, self.score(hidden).squeeze(-1), lengths))
        return projected


class Prototypical(Head):
    """Classifier, prototypical network and prototypes of one exit. Gives ``distances`` [B, C].

    Args:
        network: ``linear``, ``mlp`` (one hidden layer of the same width, GELU) and ``identity`` read the pooled
            vector; ``attention`` mixes the tokens by itself.
        width: of the metric space (``identity`` keeps the pooled vector's).
        distance: between a text and a prototype.
        rate: of the prototypes' moving average.
        dropout: before the classifier; the prototypical network reads the vector without it.
    """

    def __init__(
        self,
        around: Surroundings,
        *,
        network: Network = "linear",
        width: int = 128,
        distance: Distance = "euclidean",
        rate: float = 0.1,
        dropout: float | None = None,
    ) -> None:
        check_choice("head.network", network, get_args(Network))
        check_choice("head.distance", distance, get_args(Distance))
        check_number("head.width", width, low=1, whole=True)
        super().__init__()
        self.kind = network
        self.reads_tokens = network == "attention"
        self.distance: Distance = distance
        self.dropout = make_dropout(around, dropout)
        self.classifier = nn.Linear(around.pooled_size, around.num_outputs)
        width = around.pooled_size if network == "identity" else width
        self.network = _network(network, around, width)
        self.prototypes = Prototypes(around.num_outputs, width, rate=rate)

    def extras(self) -> dict[str, int]:
        return {"distances": self.prototypes.means.shape[0]}

    @property
    def pending(self) -> bool:
        return self.prototypes.pending

    def learn(self, output: HeadOutput, labels: Tensor) -> None:
        assert output.embedded is not None
        self.prototypes.gather(output.embedded, labels)

    def advance(self) -> None:
        self.prototypes.advance()

    def forward(
        self, hidden: Tensor, lengths: Tensor, reader: Reader, memory: Mapping[str, Tensor]
    ) -> tuple[HeadOutput, Mapping[str, Tensor]]:
        pooled = reader.pool(hidden, lengths)
        logits = self.classifier(self.dropout(pooled))
        embed = partial(self.network, hidden, lengths) if self.kind == "attention" else partial(self.network, pooled)
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            embedded = embed()
            return HeadOutput(logits, {"distances": self._distances(embedded)}, embedded), memory
        # Not every criterion reads distances, and beside a small batch they take as long as the classifier.
        return HeadOutput(logits, Lazily({"distances": lambda: self._distances(embed())})), memory

    def _distances(self, embedded: Tensor) -> Tensor:
        """[B, width] -> [B, C]: to the prototypes."""
        # float32 whatever autocast says: bfloat16 distances of near points have no digits left.
        with torch.autocast(embedded.device.type, enabled=False):
            return distances_to(embedded, self.prototypes.means, self.prototypes.seen, distance=self.distance)


def _network(kind: Network, around: Surroundings, width: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(around.pooled_size, width)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(around.pooled_size, width), nn.GELU(), nn.Linear(width, width))
    if kind == "attention":
        return TokenAttention(around.hidden_size, width)
    return nn.Identity()
