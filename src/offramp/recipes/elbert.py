"""ELBERT: the model's own head answers after every layer; leaves on low entropy, or on a trend over the last exits.

Xie, Lu, Wang and Wang, "ELBERT: Fast ALBERT with Confidence-Window Based Early Exit", ICASSP 2021,
https://arxiv.org/abs/2107.00175

No exit is added at all: the head that answers at full depth is asked after every layer, and training teaches it to
read them all. How much each layer's loss counts is learned. A text leaves where the entropy is low, or, where it is
not, when the last few answers show a trend. Made for ALBERT, whose layers are one layer used again and again; it runs
on every family.

## Formula

L = 1/M (sum_{m < M} sigmoid(t_m) CE_m + (M - sum_{m < M} sigmoid(t_m)) CE_M), t_m learned from 4.0 at a rate of 0.01.
Leave where H(p) / ln C < threshold, or where the last ``window`` exits all predict the same class.

## What we do differently

- The released code follows the probability of class 0, which serves two classes; our trend is that of the predicted
  class, for any number of them. ``criterion.rule`` has the paper's three rules,
  the first without the margin about one half that its code has for two classes.
- Its decision is by row; the released code averages the entropy over the batch.
- The loss is divided by M, as our other losses are; AdamW's steps do not depend on it. Nothing holds the t_m back, in
  the paper neither: weight drifts towards the exits that are better than the last.
- The head reads what it reads at full depth (the first token in most families), whatever ``--pooling`` says.
- Pre-norm encoders (ModernBERT) also get a norm for each exit, without which the head could not read early layers:
  there, and only there, are more parameters added than the M - 1 numbers t_m.
- Dropout is the backbone's own; the released configuration has none.
"""

from __future__ import annotations

from offramp.criteria.window import Window
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="the model's own head after every layer, learned loss weights; leaves on entropy or a trend",
    source="Xie et al., ELBERT, ICASSP 2021, https://arxiv.org/abs/2107.00175",
    head=part("own"),
    training=(Phase(part("learned_weights", initial=4.0, learning_rate=1e-2)),),
    criteria={"single_label_classification": Window()},
)
