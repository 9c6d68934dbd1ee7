"""RightTool: each exit reads a learned mix of all layers so far, and leaves on calibrated confidence.

Schwartz, Stanovsky, Swayamdipta, Dodge and Smith, "The Right Tool for the Job: Matching Model and Instance
Complexities", ACL 2020, https://arxiv.org/abs/2004.07453

A linear classifier stands at every exit. It reads not one layer but a weighted sum of the vectors of all layers up to
its own, so that an exit can use what an earlier layer knew better. All exits are trained together with the encoder,
and afterwards each gets a temperature that makes its confidence honest. A text leaves at the first exit whose largest
probability is high enough; one trained model serves every trade-off between speed and accuracy.

## Formula

At exit k: z_k = W_k (sum_{j <= k} w_kj x_j) + b_k, where x_j is the vector at exit j and w_k = softmax(a_k).
Loss: the mean over exits of their cross-entropies. Leave where 1 - max softmax(z_k / T_k) < threshold.

## What we do differently

- The mix runs over the layers at which exits stand, not over all layers below: a stage hands its exit the last hidden
  state only. With exits after every layer the two are the same, but for the embeddings, which we leave out.
- The mixing weights are a softmax and really train; in the released code they are made anew after each forward pass,
  so that they stay as they were drawn. Begun equal, and 100 times as fast as the other weights (``head.pace``): at
  an encoder's learning rate they would hardly move.
- ``head.reads=this_layer`` leaves the mix out; ``--pooling cls`` reads the first token, as the paper does, whatever
  the encoder was pretrained with. Neither a pooler nor tanh comes in between. Earlier exits' logits are no input.
- The last exit is the model's own head and reads the last layer alone, unless ``--last_exit head``: plain
  transformers can then load the full-depth model.
- Exits stand after every layer unless ``--exits`` says otherwise; the paper has four.
- The paper's results by task could not be checked: we quote none.
"""

from __future__ import annotations

from offramp.criteria.confidence import Confidence
from offramp.recipes.base import Phase, Recipe, part

recipe = Recipe(
    summary="exits on a learned mix of the layers so far; leaves on calibrated confidence",
    source="Schwartz et al., The Right Tool for the Job, ACL 2020, https://arxiv.org/abs/2004.07453",
    head=part("mixing", reads="layers_so_far", pace=100.0),
    training=(Phase(part("weighted_sum", by="equal")),),
    fit="temperature",
    criteria={
        "single_label_classification": Confidence(),
        "multi_label_classification": Confidence(problem_type="multi_label_classification"),
    },
)
