"""Cross-entropy over the exits plus distance-aware regularisation (DAR) of their metric spaces.

He et al., "DE3-BERT", arXiv 2402.05948: L = sum of cross-entropies + alpha * sum of DAR. No public text gives DAR's
formula; all three forms are ours. ``ratio`` is the distance ratio of the true class, the quantity the exit rule reads;
``hinge`` follows the margin of the same author's COSEE (arXiv 2412.13236); ``softmax`` is the prototypical loss of
Snell et al., NeurIPS 2017.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from offramp.errors import UnsupportedError
from offramp.model.heads.base import HeadOutput
from offramp.objectives.base import ANY_TIME, Moment, Weights, exit_loss, exit_weights
from offramp.settings import check_choice, check_number
from offramp.types import ProblemType

__all__ = ["DistanceAware", "Form", "distance_regularisation"]

Form = Literal["ratio", "hinge", "softmax"]


def distance_regularisation(distances: Tensor, labels: Tensor, *, form: Form = "ratio", margin: float = 0.3) -> Tensor:
    """DAR of one exit, mean over the batch.

    With d_y the distance to the true class's prototype and d_o to the nearest other one:
    ``ratio`` (1 + (d_y - d_o) / max(d_y, d_o)) / 2; ``hinge`` max(0, d_y - d_o + margin); ``softmax`` -log of the
    softmax over -d^2 at y. A row without a prototype of its own class, or without another, has no say: it gives 0 and
    is counted, so that micro-batches add up to what one batch of all their rows gives.

    Args:
        distances: [B, C] float32, ``inf`` where a class has no prototype yet.
        labels: [B].
        form: which of the three.
        margin: of the hinge.

    Returns:
        A scalar; 0 where no row has a say (the very first step).
    """
    own = nn.functional.one_hot(labels, distances.shape[1]).bool()
    absent = distances.isinf()
    rows = len(labels)
    has_say = ~(absent & own).any(dim=1) & (~absent & ~own).any(dim=1)
    if not bool(has_say.any()):
        return distances.new_zeros(())
    distances, own, labels = distances[has_say], own[has_say], labels[has_say]
    if form == "softmax":
        return nn.functional.cross_entropy(-distances.square(), labels, reduction="sum") / rows
    # Infinite distances carry no gradient: they are masked before any arithmetic touches them.
    d_own = distances.masked_fill(~own, 0.0).sum(dim=1)
    d_other = distances.masked_fill(own, math.inf).amin(dim=1)
    if form == "hinge":
        return (d_own - d_other + margin).clamp(min=0).sum() / rows
    larger = torch.maximum(d_own, d_other).clamp(min=torch.finfo(distances.dtype).tiny)
    return (0.5 * (1 + (d_own - d_other) / larger)).sum() / rows


@dataclass(frozen=True, kw_only=True)
class DistanceAware:
    """sum_i w_i (loss_i + alpha DAR_i), the weights summing to 1 over the exits that have each term."""

    form: Form = "ratio"
    alpha: float = 0.1
    margin: float = 0.3
    by: Weights = "equal"

    def __post_init__(self) -> None:
        check_choice("objective.form", self.form, get_args(Form))
        check_choice("objective.by", self.by, get_args(Weights))
        check_number("objective.alpha", self.alpha, low=0)
        check_number("objective.margin", self.margin, low=0)

    def __call__(
        self,
        outputs: Sequence[HeadOutput],
        layers: Sequence[int],
        labels: Tensor,
        problem_type: ProblemType,
        moment: Moment = ANY_TIME,
    ) -> Tensor:
        if problem_type != "single_label_classification":
            raise UnsupportedError(f"distances to class prototypes need one class a text; the data is {problem_type}")
        weights = exit_weights(layers, self.by).tolist()
        loss = sum(w * exit_loss(o.logits, labels, problem_type) for w, o in zip(weights, outputs, strict=True))
        measured = [(m, o.extras["distances"]) for m, o in zip(layers, outputs, strict=True) if "distances" in o.extras]
        if self.alpha and measured:
            shares = exit_weights([m for m, _ in measured], self.by).tolist()
            for share, (_, distances) in zip(shares, measured, strict=True):
                dar = distance_regularisation(distances, labels, form=self.form, margin=self.margin)
                loss = loss + self.alpha * share * dar
        assert isinstance(loss, Tensor)
        return loss
