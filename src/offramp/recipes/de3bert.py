"""DE3-BERT: leave where entropy and the distance to class prototypes agree that the text is easy.

He et al., "DE3-BERT: Distance-Enhanced Early Exiting for BERT based on Prototypical Networks", 2024,
https://arxiv.org/abs/2402.05948

Two signs of doubt decide. The *entropy* of a layer's classifier sees this text alone. The *distance* of the text to
the prototypes of the classes knows where the training texts of each class lie. A text leaves at the first layer where
their weighted harmonic mean is low. Classification with one label a text only.

This is a re-implementation from the published formulas. We quote no number of the paper: its tables could not be
checked.

## Formula

M layers, C classes, layer m with the pooled vector h, classifier F (linear) and prototypical network z = W h + b.
Exits stand at m = 1..M-1; the last layer always answers.

| what | formula | where |
|---|---|---|
| entropy, normalised | Ent = -sum_c p_c ln p_c / ln C, p = softmax(F(h)); in [0, 1] | `criteria/entropy.py` |
| distances | d_k = ‖z - P_k‖, P_k the prototype of class k | `model/heads/prototypical.py` |
| prototypes | P_k <- (1 - gamma) P_k + gamma mean of z over the step's rows of class k | `model/prototypes.py` |
| distance ratio | DR = (1 + (r1 - r2) / max(r1, r2)) / 2; in [0, 1] | `criteria/distance.py` |
| exit indicator | EDR = (lambda + 1) / (lambda / DR + 1 / Ent) | `criteria/distance.py` |
| exit rule | leave at the first m with EDR < tau | `criteria/base.py` |
| loss | sum_m w_m CE_m (m = 1..M) + alpha sum_m w'_m DAR_m (m = 1..M-1) | `objectives/distance_aware.py` |
| DAR, ratio (default) | mean over rows of (1 + (d_y - d_o) / max(d_y, d_o)) / 2, d_o = min over k != y of d_k | same |
| DAR, hinge | mean of max(0, d_y - d_o + margin) | same |
| DAR, softmax | mean of -ln softmax_k(-d_k^2) at y | same |

DR is (1 - silhouette) / 2 of the text. lambda = 0 leaves entropy alone, lambda = infinity the distance ratio alone. The
harmonic mean is ruled by its smaller part: with a saturated softmax (Ent about .01) the ratio has hardly a say below
lambda = 10, so `offramp compare` tries lambda from .1 to 50.

Edges: 0 ln 0 = 0; DR is 1/2 where nothing can be told (both distances 0, identical prototypes, or fewer than two
classes with a prototype) and 1 where only the predicted class has none.

## What we do differently

The form of the regularisation, gamma, lambda, the width and the assignment of r1 and r2 are our choices, because no
public text gives them. Which choice is whose:

| choice | ours or the paper's | default | settings |
|---|---|---|---|
| DR and its harmonic fusion with entropy | paper | | `criterion.fusion`: harmonic, arithmetic, geometric, min, max |
| linear prototypical network at every layer but the last | paper, by summaries | linear | `head.network` |
| prototypes are moving averages, not learned by gradient | paper, by summaries | | |
| loss = cross-entropy + alpha DAR over layers | paper, by summaries | | |
| exit when EDR is below one threshold for all layers | paper, by summaries | | |
| r1 | ours | distance to the prototype of the class the classifier predicts | `criterion.own`: predicted, nearest |
| r2 | ours | distance to the nearest of the others | `criterion.others`: nearest, mean |
| distance | ours | Euclidean (DR does not change with scale) | `head.distance`: euclidean, squared, cosine |
| lambda | ours | 1; choose it on held-out data | `criterion.lam` |
| form of DAR | ours | ratio of the true class | `objective.form`: ratio, hinge, softmax; `objective.margin` |
| alpha | ours | 0.1 (from the same author's COSEE) | `objective.alpha` |
| gamma | ours | 0.1; first value = first batch mean; absent classes are left alone | `head.rate` |
| width of the metric space | ours | 128 (under 1 % of BERT-base's parameters) | `head.width` |
| input of the prototypical network | ours | what the classifier reads, without dropout | |
| what exits read | ours | tokens weighed by a query each exit learns | `--pooling` attention, mean, cls, backbone |
| layer weights | ours | equal | `objective.by`: equal, depth |
| gradient of DAR reaches the encoder | ours | yes, one joint stage | |
| checkpoint | the same author's code | lowest mean dev loss over exits | `--metric_for_best_model` |
| last exit | ours | the model's own head | `--last_exit` model, head |

Afterwards exits and prototypes learn 20 epochs more (of many rows fewer), alone, on the frozen encoder
(`--exit-epochs`; docs/training.md says why). The paper, as far as is known, does neither that nor lets exits weigh
tokens; the comparison does without both, but for rows that say so. On models trained so, leaving on entropy was
better than on EDR, if anything; with many classes and exits that learned with the encoder only (`--exit-epochs 0`)
EDR was ahead (docs/research/de3bert.md). So hold both against each other with `offramp compare`.

Prototypes move once per optimiser step by the class sums and counts of all its rows: k micro-batches or k processes
give what one batch gives.
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
    pooling="attention",
    exit_epochs=20,
)
