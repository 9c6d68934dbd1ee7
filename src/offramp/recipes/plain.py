"""Plain: an ordinary fine-tune with no exit but the last, to be measured against."""

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
