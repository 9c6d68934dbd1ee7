"""Every exit learns from the labels and from the other exits, with fixed or learned weights of the terms.

Zhu, "LeeBERT: Learned Early Exit for BERT with cross-level optimization", ACL 2021. No public text gives the
temperature, how weights are parametrised or how they are updated: those are our choices (recipes/leebert.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from offramp.errors import UnsupportedError
from offramp.model.heads.base import HeadOutput
from offramp.objectives.base import ANY_TIME, Moment, exit_weights
from offramp.settings import check_choice, check_number
from offramp.types import ProblemType

__all__ = ["AllPairs", "By", "How", "Teachers", "pair_terms"]

How = Literal["fixed", "learned"]
Teachers = Literal["all", "later"]
By = Literal["equal", "depth"]

_ONE = math.log(math.expm1(1.0))
"""Its softplus is 1."""

_LENGTH = 1e-3
"""Of the hyper-gradient: next to nothing in the norm that the model's gradients are clipped by."""


def pair_terms(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Every term of the loss, mean over rows: logits [E, B, C], labels [B] -> [E, E].

    Row m holds what exit m learns from: at t the label's cross-entropy where t = m, and elsewhere
    temperature^2 KL(p_t || p_m) of the softened probabilities, where p_t is a constant.
    """
    logits = logits.float()
    exits, rows, _ = logits.shape
    own = nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(exits), reduction="none")
    said = (logits / temperature).log_softmax(dim=-1)
    taught = said.detach()
    # One teacher at a time: [E, B, C] and not [E, E, B, C]. No matrix product, which autocast would round.
    columns = [(t.exp() * (t - said)).sum(dim=-1).mean(dim=-1) for t in taught]
    terms = temperature**2 * torch.stack(columns, dim=1)
    return torch.where(_diagonal(exits, logits), own.view(exits, rows).mean(dim=1)[:, None], terms)


def _diagonal(exits: int, like: Tensor) -> Tensor:
    return torch.eye(exits, dtype=torch.bool, device=like.device)


class AllPairs(nn.Module):
    """sum_m c_m (w_mm CE_m + distil / (E - 1) sum_t w_mt D(m <- t)), the c_m summing to 1, w fixed at 1 or learned.

    Learned: w = softplus(a), brought to mean 1 (each term counted as much as it weighs at the start), for the terms of
    the early exits; the last exit's keep 1, for they touch no parameter of the heads. Every few steps ``a`` gets the
    hyper-gradient of one step ahead, -<grad J, grad term>: J is the mean cross-entropy on one half of the batch, plus
    ``clo`` times that on the half that the term is taken from; gradients are over the heads' parameters. The main
    optimiser applies it, and the loss has the value that it would have with constant weights.

    Args:
        num_exits: E.
        weights: w, 1 throughout or learned.
        teachers: an exit learns from ``all`` others, or only from ``later`` ones.
        by: c_m, the same at every exit or by depth.
        distil: weight of what an exit learns from the others together, against its label's 1.
        temperature: of the probabilities exits learn from.
        warmup: share of the training during which weights stay at 1.
        every: steps between two updates of the weights.
        clo: what the same half of the batch counts in the hyper-gradient, against the other half's 1.
        learning_rate: of the weights.
    """

    def __init__(
        self,
        num_exits: int,
        *,
        weights: How = "learned",
        teachers: Teachers = "all",
        by: By = "equal",
        distil: float = 1.0,
        temperature: float = 2.0,
        warmup: float = 0.2,
        every: int = 10,
        clo: float = 1.0,
        learning_rate: float = 1e-2,
    ) -> None:
        check_choice("objective.weights", weights, get_args(How))
        check_choice("objective.teachers", teachers, get_args(Teachers))
        check_choice("objective.by", by, get_args(By))
        check_number("objective.distil", distil, low=0)
        check_number("objective.temperature", temperature, low=0.01)
        check_number("objective.warmup", warmup, low=0, high=1)
        check_number("objective.every", every, low=1, whole=True)
        check_number("objective.clo", clo, low=0)
        check_number("objective.learning_rate", learning_rate, low=0)
        super().__init__()
        self.teachers, self.by, self.distil, self.temperature = teachers, by, distil, temperature
        self.warmup, self.every, self.clo = warmup, every, clo
        learns = weights == "learned" and num_exits > 1
        self.learning_rate = learning_rate if learns else None
        self.levels = nn.Parameter(torch.full((num_exits - 1, num_exits), _ONE)) if learns else None

    def fixed(self, layers: Sequence[int], like: Tensor) -> Tensor:
        """What every term counts before anything is learned: [E, E], row m what exit m learns from."""
        own = exit_weights(layers, self.by).to(like.device)
        exits = len(own)
        pairs = (self.distil / max(exits - 1, 1) * own)[:, None].expand(exits, exits)
        if self.teachers == "later":
            pairs = pairs.triu(1)
        return torch.where(_diagonal(exits, like), own[:, None], pairs)

    def weights(self, layers: Sequence[int], like: Tensor) -> Tensor:
        """What every term counts now: [E, E]; the sum is always that of ``fixed``."""
        fixed = self.fixed(layers, like)
        if self.levels is None:
            return fixed
        early = fixed[:-1] * nn.functional.softplus(self.levels.float())
        return torch.cat([early * (fixed[:-1].sum() / early.sum()), fixed[-1:]])

    def forward(
        self,
        outputs: Sequence[HeadOutput],
        layers: Sequence[int],
        labels: Tensor,
        problem_type: ProblemType,
        moment: Moment = ANY_TIME,
    ) -> Tensor:
        """The loss of a batch: see ``offramp.objectives.base.Objective``.

        Raises:
            UnsupportedError: the data has not one class a text.
        """
        if problem_type != "single_label_classification":
            raise UnsupportedError(f"exits teach each other the probabilities of classes; the data is {problem_type}")
        logits = torch.stack([output.logits for output in outputs])
        weights = self.weights(layers, logits)
        loss = (weights.detach() * pair_terms(logits, labels, self.temperature)).sum()
        if self._is_due(moment) and len(labels) > 1:
            hyper = self.hyper_gradient(logits, labels, moment)
            nudge = (hyper * weights[:-1]).sum()
            loss = loss + nudge - nudge.detach()
        return loss

    def _is_due(self, moment: Moment) -> bool:
        """Whether the weights are updated at this step."""
        learning = self.levels is not None and moment.training and torch.is_grad_enabled() and len(moment.heads) > 0
        return learning and moment.step % self.every == 0 and moment.progress >= self.warmup

    def hyper_gradient(self, logits: Tensor, labels: Tensor, moment: Moment) -> Tensor:
        """Which way the weights of the early exits' terms ought to fall: [E - 1, E], of a small fixed length (or 0).

        The length is set because a step of AdamW does not depend on it, and small because all gradients are clipped
        by their common norm: how the model's are must not depend on it either.
        """
        # Every other row: batches are often sorted by length. The halves change roles at every update.
        swap = moment.step // self.every % 2
        inner, outer = slice(swap, None, 2), slice(1 - swap, None, 2)
        terms = pair_terms(logits[:, inner], labels[inner], self.temperature)
        other = pair_terms(logits[:, outer], labels[outer], self.temperature)
        judged = other.diagonal().mean() + self.clo * terms.diagonal().mean()
        found = -_alignment(terms, judged, moment.heads)[:-1]
        length: Tensor = torch.linalg.vector_norm(found)
        return _LENGTH * found / length.clamp(min=torch.finfo(found.dtype).tiny)


def _alignment(terms: Tensor, judged: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """<grad of each term, grad of ``judged``> over the parameters: [E, E], constants.

    Two backward passes whatever the number of terms: the gradient of sum u_k term_k is linear in u, so its product
    with another gradient, derived by u_k, is the product of that gradient and term k's.
    """
    shares = torch.ones_like(terms, requires_grad=True)
    inside = torch.autograd.grad((shares * terms).sum(), parameters, create_graph=True, allow_unused=True)
    outside = torch.autograd.grad(judged, parameters, retain_graph=True, allow_unused=True)
    products = [(a * b).sum() for a, b in zip(inside, outside, strict=True) if a is not None and b is not None]
    if not products:
        return torch.zeros_like(terms)
    (found,) = torch.autograd.grad(torch.stack(products).sum(), shares, retain_graph=True)
    return found
