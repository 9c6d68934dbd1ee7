"""PCEE-BERT: leave where several exits in a row are sure.

Zhang et al., "PCEE-BERT: Accelerating BERT Inference via Patient and Confident Early Exiting", Findings of NAACL 2022,
https://aclanthology.org/2022.findings-naacl.25

One sure exit may be wrong; several in a row seldom are. So a text counts how many exits in a row had low entropy, and
leaves when that reaches the patience. The exits need not agree, and the first one counts. The model is trained as
PABEE's.

## Formula

Loss = sum_m m loss_m / sum_m m over the layers m = 1..M with an exit.

U_m = -sum_c p_c ln p_c / ln C of exit m; with several labels, the binary entropy of the least sure one. With c = 0
before the first exit: c <- c + 1 if U_m < threshold, else c <- 0. Leave when c = patience: nobody leaves before exit
number patience. With patience 1 this is the entropy rule.

## What we do differently

- Exit m answers. `--set criterion.ensemble=run` answers with the mean distribution of the exits in the run,
  `ensemble=all` with that of all exits passed, as the released code can.
- Weights by depth are the released code's default; its rising and equal schemes are `--set objective.by=depth` and
  `equal`. Its falling scheme weighs the first exit by mistake and is left out.
- Numbers have no entropy: they use PABEE's rule, |y_m - y_(m-1)| < delta. The paper's own, if any, is unconfirmed.
- The paper's GLUE table is unconfirmed, so nothing here is held to it. Entropies fall faster than errors when deeper
  exits count more, so a threshold means something only together with its weights.
"""

from __future__ import annotations

from offramp.criteria.patience import PatienceDelta
from offramp.criteria.patience_entropy import PatienceEntropy
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="trained as PABEE; leaves when exits in a row are sure",
    source="Zhang et al., PCEE-BERT, Findings of NAACL 2022, https://aclanthology.org/2022.findings-naacl.25",
    head=part("linear"),
    training=(Phase(part("weighted_sum", by="depth")),),
    criteria={
        "single_label_classification": PatienceEntropy(),
        "multi_label_classification": PatienceEntropy(problem_type="multi_label_classification"),
        "regression": PatienceDelta(),
    },
)
