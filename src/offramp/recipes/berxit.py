"""BERxiT: a gate learns where exits are wrong, and training turns between the last exit and all of them.

Xin, Tang, Yu and Lin, "BERxiT: Early Exiting for BERT with Better Fine-Tuning and Extension to Regression",
EACL 2021, https://aclanthology.org/2021.eacl-main.8

Training all exits together costs the last one accuracy; training the encoder for the last one alone leaves the early
ones weak. So steps take turns: one minimises the last exit's loss, the next the sum of all. Beside them learns a small
gate, one for all exits, how likely the exit's answer is to be wrong. A text leaves where the gate sees little risk.
As the gate does not look at probabilities, this works for regression too.

## Formula

Even steps: L = CE_M + G; odd steps: L = sum_{m <= M} CE_m + G (squared errors for regression).
G = mean over early exits and rows of (u - u*)^2, u = sigmoid(v . h + c) of the exit's pooled vector h after dropout.
u* = 0 where the exit's answer is the label, else 1; for regression |tanh(answer - label)|. Leave where u < threshold.

## What we do differently

- The odd steps count the last exit's loss too. The released code does so without the gate, and leaves it out with it.
- The last exit is the model's own head, whole, and has no gate: G is over the early exits only. In the released code
  it includes the last layer.
- What u means in the paper's own words could not be checked: here it is uncertainty, and a text leaves below the
  threshold, which says the same as certainty above one less the threshold.
- A pooler starts from the pretrained one where the family has one of the same width. It reads the vector of the
  pooling chosen: the first token's, or the mean where the encoder was pretrained so.
- The gate learns on training rows, where late exits are nearly always right, so u is low and useful thresholds are
  small (the paper's default is 0.005): choose one on dev.
- ``objective.steps=joint`` sums all exits' losses at every step, to compare with. The paper's other routines are
  recipes of their own. Its numbers for regression could not be checked.
"""

from __future__ import annotations

from offramp.criteria.gate import Gate
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="training alternates between the last exit and all; leaves where a learned gate sees little risk",
    source="Xin et al., BERxiT, EACL 2021, https://aclanthology.org/2021.eacl-main.8",
    head=part("gated"),
    training=(Phase(part("alternating", steps="alternate", gate=1.0)),),
    criteria={
        "single_label_classification": Gate(),
        "regression": Gate(problem_type="regression"),
    },
)
