"""BranchyNet: train all exits with the encoder, the early ones counting most; leave where the entropy is low.

Teerapittayanon et al., "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks", ICPR 2016,
https://arxiv.org/abs/1709.01686

The method that began it, from image networks. Side branches are trained jointly with the trunk, and the authors found
that early branches should weigh more: what they learn helps the later ones, and they are the ones that save. A text
leaves at the first exit whose entropy is below that exit's threshold.

The paper has one or two branches. Here an exit stands after every layer unless `--exits 2,4` chooses fewer.

## Formula

Loss = sum_m w_m CE_m / sum_m w_m, with w falling evenly from 1.0 at the first exit to 0.3 at the last. With several
labels a text CE is binary cross-entropy.

Exit m: F(dropout(tanh(W h + b))), h the pooled vector, F linear, W and b of its own, starting from the pretrained
pooler.

Leave at the first m with -sum_c p_c ln p_c / ln C < threshold * scale_m; scale_m = 1 unless it is set.

## What we do differently

- The paper's branches are convolutions; on an encoder we use DeeBERT's exit.
- The paper gives w at both ends; that it falls evenly between them is ours.
- The paper's thresholds are in nats, one an exit. Ours is one number in [0, 1] that every request may set; give exits
  their own by `--set criterion.scale=[0.5,1]`, one number for each exit, the last included.
- "Start from the trained trunk" becomes: start from the pretrained encoder.
- The rule of the released code by which a fixed share of each batch leaves is left out: it would make a text's answer
  depend on its neighbours.
- Several labels a text: not in the paper; the least sure label decides.
"""

from __future__ import annotations

from offramp.criteria.entropy import Entropy
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="exits trained jointly with the encoder, early ones counting most; leaves on entropy",
    source="Teerapittayanon et al., BranchyNet, ICPR 2016, https://arxiv.org/abs/1709.01686",
    head=part("pooled"),
    training=(Phase(part("weighted_sum", by="shallow")),),
    criteria={
        "single_label_classification": Entropy(),
        "multi_label_classification": Entropy(problem_type="multi_label_classification"),
    },
)
