"""DE3-BERT: leave where entropy and the distance to class prototypes agree that the text is easy.

He et al., "DE3-BERT: Distance-Enhanced Early Exiting for BERT based on Prototypical Networks", 2024,
https://arxiv.org/abs/2402.05948

Re-implemented from the published formulas (the distance ratio and its harmonic fusion with entropy). The form of the
distance-aware regularisation, gamma, lambda, the width and the assignment of r1 and r2 are our choices:
docs/recipes/de3bert.md says which is which.
"""

from __future__ import annotations

from offramp.criteria.distance import EDR
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="classifier and prototypical network at each exit; leaves on the harmonic mean of entropy and distance",
    source="He et al., DE3-BERT, 2024, https://arxiv.org/abs/2402.05948",
    head=part("prototypical", network="linear", width=128, distance="euclidean", rate=0.1),
    training=(Phase(part("distance_aware", form="ratio", alpha=0.1, by="equal")),),
    criteria={"single_label_classification": EDR(lam=1.0)},
)
