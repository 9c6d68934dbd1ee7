"""CascadeBERT: a small complete model answers first; only the texts it is unsure of go to the full one.

Li et al., "CascadeBERT: Accelerating Inference of Pre-trained Language Models via Calibrated Complete Models Cascade",
Findings of EMNLP 2021, https://arxiv.org/abs/2012.14682

A shallow layer of a deep model was trained to serve the layers above it; a small model that is complete was trained to
answer. So here are no exits inside a model but several whole ones, small to large, in one run folder. A text leaves
with the first that is sure enough. Whoever goes on starts anew from its tokens and pays for both: with 2 and 12 layers
a text costs 2 or 14, so sending all texts on is slower (0.86x) than the full model alone.

The small model's confidence decides, so training teaches it to be less sure of hard texts than of easy ones.

## Formula

- Loss = sum over the models of CE + beta * DAR, with
  DAR = mean over pairs of an easy and a hard text of max(0, margin - (conf_easy - conf_hard)), conf = max_c p_c of the
  smallest model.
- A text leaves at the first model with 1 - max_c p_c < threshold; at the full model always.
- Layer speed-up = layers of the full model / mean layers executed over all models a text went through.

## What we do differently

- The small model is made of the first layers of the same checkpoint (a sixth of them, at least one; `--exits 2` says
  otherwise, `--exits 2,4` makes two), with an embedding and a head of its own. The paper takes one that was pretrained
  so small.
- Which texts are hard is unconfirmed (the authors ship lists named "5seeds-2level"). Here five small models each learn
  from a random half of the training rows; a row is hard where fewer than half of the votes of those that have not seen
  it are right. A row that all have seen is easy.
- All pairs of a batch, where the authors' code draws as many hard rows as there are easy ones: the same on average.
- margin 0.3 and beta 0.5 (0.3 is the code's default, 0.5 its script's for MRPC); learning rate, batch and epochs are
  our own defaults.
- The public code runs every model on every text and works the speed out afterwards; here the full model computes only
  the texts that reach it. At full depth the small model does not run at all.
- Where the settings pool all tokens (sentence encoders), so does the small model.
- Where a trainer does not give the difficulties (a plain `Trainer`), there is no DAR.
"""

from __future__ import annotations

from offramp.criteria.confidence import Confidence
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="a small complete model answers first, the full one only where the small one is unsure",
    source="Li et al., CascadeBERT, Findings of EMNLP 2021, https://arxiv.org/abs/2012.14682",
    head=part("own"),
    training=(Phase(part("difficulty_aware", beta=0.5, margin=0.3)),),
    criteria={"single_label_classification": Confidence()},
    members=(1 / 6,),
)
