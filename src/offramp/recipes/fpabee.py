"""F-PABEE: leave where the distribution hardly changed over several exits in a row.

Gao et al., "F-PABEE: Flexible-Patience-Based Early Exiting for Single-Label and Multi-Label Text Classification Tasks",
ICASSP 2023, https://arxiv.org/abs/2305.11916

PABEE asks whether two exits give the same answer, and its patience has only as many settings as there are exits.
F-PABEE asks how far the two distributions are apart, so that a threshold tunes it finely, and several labels a text are
no trouble. The model is trained as PABEE's.

## Formula

Loss = sum_m m loss_m / sum_m m over the layers m = 1..M with an exit.

D_m = H((p + q) / 2) - H(p) / 2 - H(q) / 2 in nats, p and q the distributions of exits m - 1 and m, H the entropy: the
Jensen-Shannon divergence, from 0 to ln 2. With several labels, the sum of each label's own. With c = 0 before the first
exit, at each exit m >= 2: c <- c + 1 if D_m < threshold, else c <- 0. Leave when c = patience, with exit m's answer.

## What we do differently

- The divergences are true ones. The released code computes H((p + q) / 2), which is large for two equal flat
  distributions and so measures confidence; `--set criterion.divergence=mean_entropy` gives that. The paper's tables
  were made with the released code, so its gains are no target here.
- Default patience 1 and threshold .02 are ours: two exits of like distribution are evidence enough to start from.
- Numbers have no distribution: they use PABEE's rule, |y_m - y_(m-1)| < delta.
- Rates, batch size and epochs are offramp's defaults, not a grid's best.
"""

from __future__ import annotations

from offramp.criteria.divergence import Divergence
from offramp.criteria.patience import PatienceDelta
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="trained as PABEE; leaves when the distribution hardly changes from exit to exit",
    source="Gao et al., F-PABEE, ICASSP 2023, https://arxiv.org/abs/2305.11916",
    head=part("linear"),
    training=(Phase(part("weighted_sum", by="depth")),),
    criteria={
        "single_label_classification": Divergence(),
        "multi_label_classification": Divergence(problem_type="multi_label_classification"),
        "regression": PatienceDelta(),
    },
)
