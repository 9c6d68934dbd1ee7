"""Distance to class prototypes: the distance ratio DR, and its fusion with entropy, EDR.

He et al., "DE3-BERT: Distance-Enhanced Early Exiting for BERT based on Prototypical Networks", arXiv 2402.05948.
DR and the harmonic fusion are the paper's formulas. Which prototypes r1 and r2 mean, and everything besides the
harmonic mean, are our choices: docs/recipes/de3bert.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from array_api_compat import array_namespace, device

from offramp.criteria.base import Knob, Scored
from offramp.criteria.entropy import normalised_entropy
from offramp.errors import KnobError
from offramp.settings import check_choice
from offramp.types import Array, ExitOutput, ProblemType, Stage

__all__ = ["EDR", "DistanceRatio", "Fusion", "OtherPrototypes", "OwnPrototype", "distance_ratio", "fuse"]

OwnPrototype = Literal["predicted", "nearest"]
OtherPrototypes = Literal["nearest", "mean"]
Fusion = Literal["harmonic", "arithmetic", "geometric", "min", "max"]

_EPS = 1e-8


def distance_ratio(
    distances: Array,
    logits: Array,
    *,
    own: OwnPrototype = "predicted",
    others: OtherPrototypes = "nearest",
) -> Array:
    """DR(r1, r2) = (1 + (r1 - r2) / max(r1, r2)) / 2, in [0, 1]; low where the text sits at its own class.

    Source: DE3-BERT, exit signal. It is (1 - silhouette) / 2 of the text.

    Args:
        distances: [B, C] to the class prototypes, >= 0; ``inf`` for a class that has no prototype.
        logits: [B, C] of the exit's classifier.
        own: r1 is the distance to the prototype of the class the classifier predicts, or to the nearest one.
        others: r2 is the smallest, or the mean, distance to the prototypes of the other classes.

    Returns:
        [B]. One half where nothing can be told: r1 = r2 (also 0 = 0), or fewer than two prototypes.
        One (as unsure as can be) where only the predicted class has no prototype.
    """
    xp = array_namespace(distances, logits)
    chosen = xp.argmax(logits, axis=-1) if own == "predicted" else xp.argmin(distances, axis=-1)
    classes = xp.arange(distances.shape[-1], dtype=chosen.dtype, device=device(distances))
    is_own = classes == chosen[:, None]
    infinite = xp.full_like(distances, math.inf)
    r1 = xp.min(xp.where(is_own, distances, infinite), axis=-1)
    r2 = xp.min(xp.where(is_own, infinite, distances), axis=-1)
    if others == "mean":
        counted = xp.isfinite(distances) & ~is_own
        number = xp.sum(xp.astype(counted, distances.dtype), axis=-1)
        # Divided before they are added: a sum of large distances would overflow.
        whole = xp.maximum(number, xp.ones_like(number))[:, None]
        shares = xp.where(counted, distances, xp.zeros_like(distances)) / whole
        r2 = xp.where(number > 0, xp.sum(shares, axis=-1), r2)
    return _ratio(r1, r2)


def _ratio(r1: Array, r2: Array) -> Array:
    """DR of two distances, with the limits taken where they are 0 or infinite."""
    xp = array_namespace(r1, r2)
    larger = xp.maximum(r1, r2)
    usable = xp.isfinite(larger) & (larger > 0)
    safe = xp.where(usable, larger, xp.ones_like(larger))
    zero, half, one = xp.zeros_like(r1), xp.full_like(r1, 0.5), xp.ones_like(r1)
    difference = xp.where(usable, r1, zero) - xp.where(usable, r2, zero)
    ratio = 0.5 * (1 + difference / safe)
    return xp.where(usable, ratio, xp.where(xp.isfinite(r2) & ~xp.isfinite(r1), one, half))


def fuse(entropy: Array, ratio: Array, *, lam: float, fusion: Fusion = "harmonic") -> Array:
    """Fuse the local (entropy) and the global (distance ratio) sign of doubt, both in [0, 1].

    ``harmonic`` is the paper's EDR = (lambda + 1) / (lambda / DR + 1 / Ent); lambda = 0 is entropy alone, lambda =
    infinity the ratio alone. The weighted arithmetic and geometric means and the plain min and max (which know no
    lambda) are ablations.
    """
    xp = array_namespace(entropy, ratio)
    if fusion == "min":
        return xp.minimum(entropy, ratio)
    if fusion == "max":
        return xp.maximum(entropy, ratio)
    share = 1.0 if math.isinf(lam) else lam / (lam + 1)  # of the ratio; the rest is entropy's
    if fusion == "arithmetic":
        return share * ratio + (1 - share) * entropy
    if fusion == "geometric":
        return xp.exp(share * xp.log(ratio + _EPS) + (1 - share) * xp.log(entropy + _EPS))
    return 1 / (share / (ratio + _EPS) + (1 - share) / (entropy + _EPS))


@dataclass(frozen=True, kw_only=True)
class DistanceRatio(Scored):
    """Leave where DR < threshold: the text is much nearer to its own class than to any other."""

    own: OwnPrototype = "predicted"
    others: OtherPrototypes = "nearest"

    name: ClassVar[str] = "dr"
    summary: ClassVar[str] = "distance to the predicted class's prototype is small against the others'"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {"threshold": Knob(0.3, 0.0, 1.01, faster="up")}
    needs: ClassVar[frozenset[str]] = frozenset({"distances"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("own", self.own, get_args(OwnPrototype))
        check_choice("others", self.others, get_args(OtherPrototypes))

    def score(self, stage: Stage, output: ExitOutput) -> Array:
        distances = self.extra(output, "distances")
        return distance_ratio(distances, output.logits, own=self.own, others=self.others)


@dataclass(frozen=True, kw_only=True)
class EDR(Scored):
    """Leave where the weighted harmonic mean of entropy and distance ratio < threshold."""

    lam: float = 1.0
    fusion: Fusion = "harmonic"
    own: OwnPrototype = "predicted"
    others: OtherPrototypes = "nearest"

    name: ClassVar[str] = "edr"
    summary: ClassVar[str] = "harmonic mean of entropy and distance ratio is low (DE3-BERT)"
    serves: ClassVar[frozenset[ProblemType]] = frozenset({"single_label_classification"})
    knobs: ClassVar[Mapping[str, Knob]] = {"threshold": Knob(0.3, 0.0, 1.01, faster="up")}
    needs: ClassVar[frozenset[str]] = frozenset({"distances"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("own", self.own, get_args(OwnPrototype))
        check_choice("others", self.others, get_args(OtherPrototypes))
        check_choice("fusion", self.fusion, get_args(Fusion))
        if not isinstance(self.lam, int | float) or not self.lam >= 0:
            raise KnobError(f"lambda must be 0 or more (it weighs distance against entropy), not {self.lam!r}")

    def score(self, stage: Stage, output: ExitOutput) -> Array:
        ratio = distance_ratio(self.extra(output, "distances"), output.logits, own=self.own, others=self.others)
        return fuse(normalised_entropy(output.logits), ratio, lam=self.lam, fusion=self.fusion)
