"""Shallow-Deep Networks: exits gain weight as training goes on; where none is sure enough, the surest one answers.

Kaya et al., "Shallow-Deep Networks: Understanding and Mitigating Network Overthinking", ICML 2019,
https://arxiv.org/abs/1810.07052

Networks overthink: a right answer at an early exit is sometimes lost on the way to the last. So a text that no exit is
sure about gets the answer of the surest exit, not of the last. In training, early exits begin with almost no weight, so
that they do not bend the encoder before it has learned anything.

From a trace, `offramp.traces.diagnostics` tells how often going on was wasteful or destructive (`overthinking`), and
how far the exits of each text disagree (`confusion`, which predicts errors).

## Formula

Loss = loss_M + sum over m < M of tau_m loss_m, with tau_m = min(C_m, .01 + C_m * progress), C_m = m / M and progress
from 0 to 1 over the training's steps.

Leave at the first m with 1 - max p < threshold. Where no exit, the last included, is below it: the answer of the exit
with the largest max p (at full cost).

## What we do differently

- Exits are linear on the pooled vector; the paper's mix maximum and mean over an image.
- The schedule moves with every step; the paper's with every epoch. Trained by another trainer than ours, which does not
  say how far it is, tau_m = C_m throughout.
- C_m is the share of layers below the exit; the paper's six exits stand at 15 to 90 % of the operations.
- We start from a pretrained encoder; the paper trains from scratch.
- The paper's other mode trains exits only, on a frozen network. `--set head.detach=true` is its like: no exit's loss
  but the last's reaches the encoder, which is then trained as without exits, and the exits learn beside it. Two stages
  in a row, with a pooler an exit, are `--recipe deebert`.
- `offramp compare` also shows plain `confidence`, which answers with the last exit. Several labels a text: not in the
  paper; the least sure label decides. The paper's numbers are unconfirmed.
"""

from __future__ import annotations

from offramp.criteria.fallback import ConfidenceFallback
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="linear exits that gain weight during training; leaves on confidence, else the surest exit answers",
    source="Kaya et al., Shallow-Deep Networks, ICML 2019, https://arxiv.org/abs/1810.07052",
    head=part("linear"),
    training=(Phase(part("scheduled")),),
    criteria={
        "single_label_classification": ConfidenceFallback(),
        "multi_label_classification": ConfidenceFallback(problem_type="multi_label_classification"),
    },
)
