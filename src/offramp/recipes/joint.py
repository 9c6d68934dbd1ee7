"""Joint: one linear classifier an exit, all trained together with the encoder; the baseline of every paper.

The objective is the mean of the exits' losses (Teerapittayanon et al., "BranchyNet", ICPR 2016, with equal weights;
``--set objective.by=depth`` gives PABEE's weights, Zhou et al., NeurIPS 2020). Serves every problem type:
classification leaves on entropy, regression when the number hardly moves.
"""

from __future__ import annotations

from offramp.criteria.entropy import Entropy
from offramp.criteria.patience import PatienceDelta
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="linear exits trained jointly with the encoder; leaves on entropy",
    source="the common baseline; Teerapittayanon et al., BranchyNet, ICPR 2016, https://arxiv.org/abs/1709.01686",
    head=part("linear"),
    training=(Phase(part("weighted_sum", by="equal")),),
    criteria={
        "single_label_classification": Entropy(),
        "multi_label_classification": Entropy(problem_type="multi_label_classification"),
        "regression": PatienceDelta(),
    },
)
