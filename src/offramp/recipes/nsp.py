"""NSP: leave where the logits are large and little of the text's vector lies where the classifier cannot see.

He et al., "Improving Prediction Certainty Estimation for Reliable Early Exiting via Null Space Projection", IJCAI 2025,
https://arxiv.org/abs/2506.17249

A linear classifier reads only a few directions of the pooled vector: as many as there are classes. What lies in all the
others is of no use to it, and a vector made mostly of that should not be trusted, whatever the logits say. The share of
the vector that lies there (the NSP score) joins the logits as one more class; its probability is the certainty-aware
probability, CAP. Training is plain: any model with linear exits would do. Classification with one label a text only.

## Formula

Loss = mean over m = 1..M of CE_m.

Exit m has weights W [C, H] and bias b, and x is the pooled vector. x' = x + pinv(W) b, so that W x' = W x + b; P is the
orthogonal projection on the span of W's rows; s = sqrt(1 - |P x'|^2 / |x'|^2), from 0 to 1.

Leave at the first m with softmax([W x + b, alpha * s])'s last entry < threshold.

## What we do differently

- s is computed as |x' - P x'| / |x'|, the same number without the digits that the square root loses near 0, in float32
  from a decomposition in float64 that is kept while the weights stay. A vector of length 0 gets 1.
- x is read without dropout, and s is not computed while training.
- alpha is .1, from the released scripts; which value the paper recommends is unconfirmed.
- With as many classes as the vector has numbers nothing is out of sight: s is 0 and the rule looks at the logits alone.
- The scores by task could not be found; the paper reports a mean layer speed-up of 2.19x over GLUE.
"""

from __future__ import annotations

from offramp.criteria.null_space import CAP
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="trained as joint; leaves when little of the vector is out of the classifier's sight and logits are large",
    source="He et al., NSP, IJCAI 2025, https://arxiv.org/abs/2506.17249",
    head=part("linear", null_space=True),
    training=(Phase(part("weighted_sum", by="equal")),),
    criteria={"single_label_classification": CAP(alpha=0.1)},
)
