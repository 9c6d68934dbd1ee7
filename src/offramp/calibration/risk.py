"""Promises from counts: how sure a calibration set makes us that a risk is at most so much.

Angelopoulos et al., "Learn then Test", 2021, arXiv 2110.01052 (p-values, fixed sequence testing); Bates et al.,
"Distribution-Free, Risk-Controlling Prediction Sets", 2021 (Hoeffding-Bentkus); Angelopoulos et al., "Conformal Risk
Control", ICLR 2024; Jazbec et al., "Fast yet Safe", NeurIPS 2024 (all of them for early exits).

A risk is the mean over texts of a loss in [0, 1]. Candidates stand in a fixed order, from the safest to the riskiest,
and that order was made on other rows. Nothing here knows of traces, criteria or models.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import KnobError, require
from offramp.settings import is_number

__all__ = [
    "accepted",
    "binomial_p",
    "check_promise",
    "conformal_accepted",
    "conformal_limit",
    "hoeffding_bentkus_p",
    "p_values",
    "smallest_provable",
    "texts_needed",
    "upper_bound",
]

Floats = NDArray[np.float64]

_ROUNDING = 1e-9
"""Losses of which some are no whole numbers add up to a whole number but for this."""


def check_promise(risk: float, confidence: float) -> None:
    """Raise KnobError where a risk or a confidence cannot be promised."""
    if not is_number(risk) or not 0 < risk <= 1:
        never = ": no number of texts can prove a risk of 0" if risk == 0 else ""
        raise KnobError(f"a risk is promised above 0 and up to 1 (0.01 is one text in a hundred), not {risk!r}{never}")
    if not is_number(confidence) or not 0 < confidence < 1:
        raise KnobError(f"a confidence lies between 0 and 1, such as 0.95, not {confidence!r}")


def binomial_p(losses: NDArray[Any], n: int, risk: float) -> Floats:
    """P-values of "the true risk is above ``risk``", exact for losses that are 0 or 1.

    Args:
        losses: [P] whole numbers: texts of ``n`` that lost something.
        n: texts.
        risk: to be proved.

    Returns:
        [P]: the chance of so few losses, or fewer, were the risk as large as ``risk``.
    """
    result: Floats = _scipy().binom.cdf(np.asarray(losses), n, risk)
    return result


def hoeffding_bentkus_p(losses: NDArray[Any], n: int, risk: float) -> Floats:
    """The same for losses anywhere in [0, 1]: the smaller of Hoeffding's and Bentkus's bounds.

    Args:
        losses: [P]: sums over ``n`` texts.
        n: texts.
        risk: to be proved.
    """
    sums = np.asarray(losses, dtype=np.float64)
    bentkus = math.e * _scipy().binom.cdf(np.ceil(sums - _ROUNDING), n, risk)
    hoeffding = np.exp(-n * _divergence(np.minimum(sums / n, risk), risk))
    result: Floats = np.minimum(np.minimum(bentkus, hoeffding), 1.0)
    return result


def p_values(losses: NDArray[Any], n: int, risk: float, *, binary: bool) -> Floats:
    """``binomial_p`` where each text loses 0 or 1, ``hoeffding_bentkus_p`` otherwise."""
    if binary:
        return binomial_p(np.rint(losses).astype(np.int64), n, risk)
    return hoeffding_bentkus_p(losses, n, risk)


def accepted(p: Floats, delta: float) -> int:
    """How many candidates, from the first on, are proved together with confidence 1 - delta: fixed sequence testing.

    Each is tested at the whole delta, and the first that fails ends it: a candidate that passes after that is luck.

    Raises:
        MissingExtraError: mapie is not installed.
    """
    control: Any = require("mapie.risk_control", extra="calibrate").control_fwer
    return len(control(np.asarray(p, dtype=np.float64), delta, "fixed_sequence"))


def conformal_limit(n: int, risk: float, *, bound: float = 1.0) -> float:
    """The mean loss of n texts up to which conformal risk control accepts; below 0: nothing is."""
    return ((n + 1) * risk - bound) / n


def conformal_accepted(means: NDArray[Any], n: int, risk: float, *, bound: float = 1.0) -> int:
    """How many candidates, from the first on, conformal risk control accepts; the first that fails ends it.

    The guarantee is for losses that never fall along the candidates, text by text: make them so first.

    Args:
        means: [P]: mean losses on n texts.
        n: texts.
        risk: the *expected* risk to be kept.
        bound: the largest loss there can be.
    """
    fails = np.asarray(means) > conformal_limit(n, risk, bound=bound) + 1e-12
    return int(fails.argmax()) if fails.any() else len(fails)


def smallest_provable(n: int, confidence: float, *, expected: bool = False) -> float:
    """The smallest risk that n texts can prove, were not one of them to lose anything.

    ``1 - (1 - confidence) ** (1 / n)`` with both kinds of p-values; the expected risk (whose confidence is not asked
    for): ``1 / (n + 1)``.
    """
    if expected:
        return 1 / (n + 1)
    return 1.0 if n == 0 else -math.expm1(math.log1p(-confidence) / n)


def texts_needed(risk: float, confidence: float, *, expected: bool = False) -> int:
    """How many texts could prove a risk, were not one of them to lose anything: the inverse of that."""
    if risk == 1:
        return 0 if expected else 1
    # An exact answer must not become one more by rounding.
    exact = 1 / risk - 1 if expected else math.log1p(-confidence) / math.log1p(-risk)
    return math.ceil(exact - 1e-9)


def upper_bound(losses: float, n: int, confidence: float, *, binary: bool) -> float:
    """The smallest risk that so many losses of n texts prove, of one candidate that these texts did not choose.

    With losses of 0 or 1 this is Clopper and Pearson's bound.
    """
    delta = 1 - confidence
    if losses >= n:
        return 1.0
    if binary:
        return float(_scipy().beta.ppf(confidence, round(losses) + 1, n - round(losses)))

    def excess(risk: float) -> float:  # falls as the risk grows
        return float(p_values(np.array([losses]), n, risk, binary=False)[0]) - delta

    return float(require("scipy.optimize", extra="calibrate").brentq(excess, losses / n, 1.0, xtol=1e-15))


def _divergence(a: Floats, b: float) -> Floats:
    """Kullback-Leibler divergence of two coins, elementwise; 0 ln 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        heads = np.where(a > 0, a * np.log(a / b), 0.0)
        tails = np.where(a < 1, (1 - a) * np.log((1 - a) / (1 - b)), 0.0)
    return heads + tails


def _scipy() -> Any:
    return require("scipy.stats", extra="calibrate")
