"""PABEE: leave where several exits in a row give the same answer.

Zhou et al., "BERT Loses Patience: Fast and Robust Inference with Early Exit", NeurIPS 2020,
https://arxiv.org/abs/2006.04152

A layer that only repeats what the layers before it said is not needed. So each text counts how often in a row an exit
agreed with the one before it, and leaves when that reaches the patience. No probability is looked at, so the rule
serves numbers too: there two exits agree when they differ by little. All exits are trained together with the encoder;
deeper ones count more.

## Formula

Loss = sum_m m loss_m / sum_m m over the layers m = 1..M with an exit; loss_m is cross-entropy, binary cross-entropy
with several labels a text, squared error for numbers.

With c = 0 before the first exit, at each exit m >= 2: c <- c + 1 if the answer is that of the exit before, else c <- 0;
for numbers, if |y_m - y_(m-1)| < delta. Leave when c = patience, with exit m's answer. So patience + 1 equal answers
are needed, and nobody leaves before exit patience + 1.

## What we do differently

- The count is kept for each text. In the released code all texts of a batch must agree in the same layer.
- Several labels a text: exits agree when all labels do. Not in the paper, and it happens seldom.
- Exits read the vector that the encoder was pretrained to be read by: its own pooler, which all exits share as in the
  paper, or the mean over tokens.
- Patience 0, with which the released code switches early exit off, is not a patience here: give a large one.
- The paper's training grid is unconfirmed: rates, batch size and epochs are offramp's defaults.
"""

from __future__ import annotations

from offramp.criteria.patience import Patience, PatienceDelta
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="linear exits trained jointly, deeper ones counting more; leaves when exits in a row agree",
    source="Zhou et al., PABEE, NeurIPS 2020, https://arxiv.org/abs/2006.04152",
    head=part("linear"),
    training=(Phase(part("weighted_sum", by="depth")),),
    criteria={
        "single_label_classification": Patience(),
        "multi_label_classification": Patience(problem_type="multi_label_classification"),
        "regression": PatienceDelta(),
    },
)
