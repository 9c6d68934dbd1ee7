"""DeeBERT: fine-tune first, then train the exits on the frozen encoder; leave where the entropy is low.

Xin et al., "DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference", ACL 2020,
https://arxiv.org/abs/2004.12993

Training has two stages. The first is an ordinary fine-tune: the encoder and its own head learn, the early exits are not
asked. In the second only the exits learn, each with a pooler of its own that started as a copy of the pretrained one.
So early exits cost the last layer nothing: it answers as it would without them. The price is that the early layers are
not made for classifying, so exits leave later than with joint training.

## Formula

Stage 1: loss = CE_M, of the last layer M alone. Stage 2, encoder and last exit frozen: loss = mean over m of CE_m. With
several labels a text CE is binary cross-entropy.

Exit m: F(dropout(tanh(W h + b))), h the first token's vector (or the mean over tokens, where the encoder was pretrained
with that), F linear, W and b of its own.

Leave at the first m with -sum_c p_c ln p_c / ln C < threshold.

## What we do differently

- The paper's threshold S is in nats: S = threshold * ln C. Ours has one scale for every number of classes.
- The frozen encoder runs without dropout in stage 2; the released code leaves it on.
- The mean of the exits' losses stands for their sum: to Adam it is the same.
- Rates, batch size and epochs are offramp's defaults, the same in both stages (the paper: 2e-5, 8, and 3 epochs).
- Stage 1 keeps the checkpoint with the lowest dev loss of the last exit, stage 2 the one with the lowest mean over
  exits.
- The last exit is the model's own head and never asked whether to leave; the released code has one more head after the
  last layer, untrained, through which texts can leave.
- Several labels a text: not in the paper; the least sure label decides.
- The paper's tables could not be checked, so nothing here is held to them.
"""

from __future__ import annotations

from offramp.criteria.entropy import Entropy
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="fine-tune, then exits with poolers of their own on the frozen encoder; leaves on entropy",
    source="Xin et al., DeeBERT, ACL 2020, https://arxiv.org/abs/2004.12993",
    head=part("pooled"),
    training=(
        Phase(
            part("weighted_sum", by="last"),
            train="backbone",
            arguments={"metric_for_best_model": "loss"},
            fixed=True,
        ),
        Phase(part("weighted_sum", by="equal"), train="heads"),
    ),
    criteria={
        "single_label_classification": Entropy(),
        "multi_label_classification": Entropy(problem_type="multi_label_classification"),
    },
)
