"""Entropy: leave where the classifier's distribution is peaked.

Teerapittayanon et al., "BranchyNet", ICPR 2016, and Xin et al., "DeeBERT", ACL 2020 (raw nats); Liu et al.,
"FastBERT", ACL 2020 (normalised, which is what we ship: one scale for every number of classes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from offramp.criteria.base import Knob, Scored, log_sigmoid, log_softmax
from offramp.types import Array, ExitOutput, ProblemType, Stage

__all__ = ["Entropy", "binary_entropy", "normalised_entropy"]


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


@dataclass(frozen=True, kw_only=True)
class Entropy(Scored):
    """Leave where entropy / ln C < threshold; multi-label: where the *least sure* label's binary entropy is."""

    name: ClassVar[str] = "entropy"
    summary: ClassVar[str] = "normalised entropy of the exit's distribution is low"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification", "multi_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {"threshold": Knob(0.3, 0.0, 1.01, faster="up")}

    def score(self, stage: Stage, output: ExitOutput) -> Array:
        if self.problem_type == "multi_label_classification":
            return array_namespace(output.logits).max(binary_entropy(output.logits), axis=-1)
        return normalised_entropy(output.logits)
