"""Entropy: leave where the classifier's distribution is peaked.

Teerapittayanon et al., "BranchyNet", ICPR 2016, and Xin et al., "DeeBERT", ACL 2020 (raw nats); Liu et al.,
"FastBERT", ACL 2020 (normalised, which is what we ship: one scale for every number of classes). BranchyNet, DeeBERT
and BERxiT allow each exit a threshold of its own: ``scale``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from offramp.criteria.base import Knob, Scored, at_exit, check_by_exit, log_sigmoid, log_softmax
from offramp.types import Array, ExitOutput, ProblemType, Stage

__all__ = ["Entropy", "binary_entropy", "normalised_entropy", "uncertainty"]


def normalised_entropy(logits: Array) -> Array:
    """H(softmax(logits)) / ln C, in [0, 1].

    Args:
        logits: [B, C], C >= 2, finite. Probabilities that underflow count as 0 ln 0 = 0.
    """
    xp = array_namespace(logits)
    log_p = log_softmax(logits)
    return -xp.sum(xp.exp(log_p) * log_p, axis=-1) / math.log(logits.shape[-1])


def binary_entropy(logits: Array) -> Array:
    """Entropy of each label's own yes or no, in bits: [B, C] -> [B, C] in [0, 1]."""
    xp = array_namespace(logits)
    log_yes, log_no = log_sigmoid(logits), log_sigmoid(-logits)
    return -(xp.exp(log_yes) * log_yes + xp.exp(log_no) * log_no) / math.log(2)


def uncertainty(logits: Array, problem_type: ProblemType) -> Array:
    """[B] in [0, 1]: normalised entropy; multi-label: the binary entropy of the label that is least sure."""
    if problem_type == "multi_label_classification":
        return array_namespace(logits).max(binary_entropy(logits), axis=-1)
    return normalised_entropy(logits)


@dataclass(frozen=True, kw_only=True)
class Entropy(Scored):
    """Leave where entropy / ln C < threshold; multi-label: where the *least sure* label's binary entropy is.

    ``scale`` gives each exit a threshold of its own: exit e leaves below ``threshold * scale[e]``.
    """

    scale: tuple[float, ...] = ()
    """One number above 0 for each exit; empty: the same threshold for all. Only the numbers' ratios matter: with a
    smallest of 1 the threshold can open every exit."""

    name: ClassVar[str] = "entropy"
    summary: ClassVar[str] = "normalised entropy of the exit's distribution is low"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification", "multi_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {"threshold": Knob(0.3, 0.0, 1.01, faster="up")}

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", check_by_exit("scale", self.scale))

    @property
    def by_exit(self) -> bool:
        return bool(self.scale)

    def score(self, stage: Stage, output: ExitOutput) -> Array:
        return uncertainty(output.logits, self.problem_type) / at_exit("scale", self.scale, stage)
