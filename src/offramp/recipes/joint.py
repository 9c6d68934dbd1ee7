"""Joint: one linear classifier an exit, all trained together with the encoder.

Teerapittayanon et al., "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks", ICPR 2016,
https://arxiv.org/abs/1709.01686

The common baseline: every paper on early exit trains this, or compares with it. Each layer gets one linear classifier
on its pooled vector, and encoder and classifiers learn together. It serves every problem type: classification leaves
on entropy, regression where the number hardly moves from exit to exit.

## Formula

Loss = sum_m w_m loss_m over the layers m = 1..M, the weights summing to 1: equal by default, or w_m in proportion to m
(`--set objective.by=depth`: PABEE, Zhou et al., NeurIPS 2020). loss_m is cross-entropy; with several labels a text,
binary cross-entropy; squared error for numbers.

Leave at the first m with

- one label: -sum_c p_c ln p_c / ln C < threshold;
- several labels: the binary entropy, in bits, of the least sure label < threshold;
- a number: |y_m - y_(m-1)| < delta, `patience` times in a row.

## What we do differently

- BranchyNet puts small networks of several layers at a few places of an image network, and gives each exit its own
  weight and threshold; here a linear classifier stands after every layer, with one threshold for all. The recipe
  `branchynet` follows the paper.
- Entropy is normalised by ln C, so that one scale serves every number of classes.
- Rules for several labels and for numbers are not in the paper: ours, and PABEE's.
- An exit reads the tokens weighed by a query that it learns (`--pooling attention`), and afterwards the exits learn 20
  epochs more (of many rows fewer), alone, on the frozen encoder (`--exit-epochs`). docs/training.md says why; the
  comparison does without both, but for rows that say so.
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
    pooling="attention",
    exit_epochs=20,
)
