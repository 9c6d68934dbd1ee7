"""FastBERT: fine-tune first, then let the exits learn from the last one without labels; leave where the entropy is low.

Liu et al., "FastBERT: a Self-distilling BERT with Adaptive Inference Time", ACL 2020, https://arxiv.org/abs/2004.02178

The first stage is an ordinary fine-tune. In the second the encoder is frozen and every early exit (student) learns to
give the distribution that the last exit (teacher) gives. No label is used there, so texts that nobody labelled serve as
well. The exits are small transformers: they look at all tokens, at a width of 128.

## Formula

Stage 1: loss = CE_M, of the last layer M alone. Stage 2, encoder and last exit frozen: loss = mean over m < M of KL(p_M
|| p_m). With several labels a text, the mean over labels of the KL between the two yes-or-no distributions.

Exit m: tanh(W_1 h_t + b_1) for each token t, two-head self-attention over the tokens; of the first token's output
tanh(W_2 . + b_2), still 128 wide, and a linear layer to the classes.

Leave at the first m with -sum_c p_c ln p_c / ln C < threshold; the paper calls the threshold "speed".

## What we do differently

- KL(teacher || student) is what the released code has. Which direction the paper prints is unconfirmed.
- The last exit, the teacher, is the model's own head, so that plain transformers can load the model; the paper gives it
  the exits' form.
- Exits learn at twenty times the encoder's rate, the default of every recipe here, and at ten times in the paper
  (`--head_learning_rate` changes it). The schedule counts stage 2's own steps; in the released code the rate reaches 0
  half-way.
- The exits' inner layers begin from Xavier's uniform numbers, not from N(0, 0.02): from there 77 classes were not
  learned in three epochs.
- Epochs, batch size and learning rate are those of every recipe here; the released code takes 3 epochs at 2e-5 in
  batches of 32 for stage 1, and 5 to 10 for stage 2.
- The teacher speaks without dropout; in the released code it is on.
- The mean over exits stands for the sum: to Adam it is the same.
- Checkpoints: stage 1 keeps the lowest dev loss of the last exit, stage 2 the lowest mean divergence on dev, for which
  no label is needed either.
- A text leaves below the threshold, not at it. Several labels a text: not in the paper; the least sure one decides.
"""

from __future__ import annotations

from offramp.criteria.entropy import Entropy
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="fine-tune, then exits learn from the last one without labels; leaves on entropy",
    source="Liu et al., FastBERT, ACL 2020, https://arxiv.org/abs/2004.02178",
    head=part("attention", width=128, heads=2),
    training=(
        Phase(
            part("weighted_sum", by="last"),
            train="backbone",
            arguments={"metric_for_best_model": "loss"},
            fixed=True,
        ),
        Phase(
            part("self_distillation"),
            train="heads",
            arguments={"metric_for_best_model": "loss"},
        ),
    ),
    criteria={
        "single_label_classification": Entropy(),
        "multi_label_classification": Entropy(problem_type="multi_label_classification"),
    },
)
