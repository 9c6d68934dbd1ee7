"""LeeBERT: every exit learns from the labels and from all other exits, and how much from whom is learned as well.

Zhu, "LeeBERT: Learned Early Exit for BERT with cross-level optimization", ACL 2021,
https://aclanthology.org/2021.acl-long.231

A linear classifier stands after every layer. Besides the label, each learns from what every other one says: the late
ones know more, the early ones keep the late ones simple. How much each of these lessons counts is learned too, on
other rows than those the lessons are taken from. A text leaves when several exits in a row agree.

## Formula

L = 1/M sum_m (w_mm CE_m + 1/(M-1) sum_{t != m} w_mt D(m <- t)),
D(m <- t) = T^2 KL(softmax(z_t / T) || softmax(z_m / T)), z_t held constant, T = 2.
w = softplus(a), brought to mean 1. Every 10 steps, with the batch in two halves,
dJ/dw_k = -<grad J(other half) + clo grad J(same half), grad term_k(same half)>, J the mean cross-entropy.
Leave when ``patience`` exits in a row agreed with the one before.

## What we do differently

There is no public code, and no public text gives the temperature, the split, the parametrisation or the rates:

- ``objective.weights=fixed`` keeps all w at 1 (the ablation to compare with); ``learned`` is the default, begun after
  a fifth of the training with fixed weights. ``objective.teachers=later`` lets exits learn from later ones only.
- The two splits are the two halves of a batch (every other row), not of the training set, so the encoder learns from
  all rows; halves change roles at every update.
- Gradients are compared over the exits' own parameters, not over the encoder: what one exit's loss does to another
  through the encoder is not seen. So the last exit, which is the model's own head, keeps w = 1.
- "Mean 1" counts each term as much as it weighs at the start: the sum of all weights never changes. The
  hyper-gradient is brought to a small fixed length, so that it has no part in how the model's gradients are clipped,
  and the main optimiser applies it, at a learning rate of its own.
- Heads are PABEE's: linear, on the pooling chosen for the model. With ``objective.distil=0``, ``objective.by=depth``
  and fixed weights, training is PABEE's.
- Classification with one label a text only.
- Not what it should be: the last exit ends more than half a point below PABEE's, with learned and with fixed weights,
  on sst2 less so with later teachers only, with a quarter of the weight of other exits, and with deep exits counting
  more (docs/comparison.md, rows `leebert` to `leebert-depth`).
  The paper says the opposite, and no code shows how.
"""

from __future__ import annotations

from offramp.criteria.patience import Patience
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="exits learn from each other with learned weights; leaves when exits in a row agree",
    source="Zhu, LeeBERT, ACL 2021, https://aclanthology.org/2021.acl-long.231",
    head=part("linear"),
    training=(Phase(part("all_pairs", weights="learned", teachers="all", temperature=2.0)),),
    criteria={"single_label_classification": Patience()},
)
