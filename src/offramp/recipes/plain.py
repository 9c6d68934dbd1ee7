"""Plain: an ordinary fine-tune with no exit but the last, to be measured against.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019,
https://arxiv.org/abs/1810.04805

Every text runs through every layer. What exits cost in quality can only be told beside a model that was trained
without them: this one.

## Formula

Loss = the last layer's own: cross-entropy, binary cross-entropy (several labels a text) or squared error (numbers).
Nobody leaves early.

## What we do differently

- Pooling, learning rate and choice of checkpoint are those of all recipes here (docs/training.md), so that only the
  exits differ.
"""

from __future__ import annotations

from offramp.criteria.depth import Depth
from offramp.recipes.base import Phase, Recipe, part
from offramp.types import PROBLEM_TYPES

recipe = Recipe(
    summary="ordinary fine-tuning without early exits; what the others are measured against",
    source="Devlin et al., BERT, NAACL 2019, https://arxiv.org/abs/1810.04805",
    head=part("linear"),
    training=(Phase(part("weighted_sum", by="equal")),),
    criteria={kind: Depth(problem_type=kind) for kind in PROBLEM_TYPES},
    exits="last",
)
