"""Betting against a hypothesis, text by text: tests and bounds that hold at every moment of a stream, not at one
chosen in advance.

Somebody bets against "nothing has changed". If it is true no bet is worth more than its stake, so the wealth of 1
that one begins with ever reaches 1 / alpha with probability alpha at most (Ville's inequality): one may look after
every text, and for ever. Shafer, "Testing by betting", JRSS A 2021; Waudby-Smith and Ramdas, "Estimating means of
bounded random variables by betting", JRSS B 2024, whose bets adapt to what they see; ours are a mixture of fixed
ones, so that two numbers are all there is to remember, and the bounds are about the mean risk so far even where the
risk changes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bets", "RiskBounds", "RiskTest", "rank_bets"]

Floats = NDArray[np.float64]

_POWERS: Floats = np.array([1.25, 2.0, 4.0, 8.0])
"""Of bets on ranks: the density a * rank ** (a - 1) likes high ones, the more the larger a."""

_TILTS: Floats = np.geomspace(0.02, 8.0, 13)
"""Of bets on losses: how much more likely (in log-odds) a bet takes a loss to be."""


class Bets:
    """Wealth of a gambler who does not know when the world will change, nor how: a test martingale.

    K kinds of bets, each begun anew before every text with a share of what is left, and held from then on. Before
    text t the share of 1 that has not been staked yet is 1 / (1 + ln t), so a change after t texts costs about ln t
    in log-wealth, whenever it comes. Time and memory are those of K numbers.

    Args:
        kinds: K.
        streams: shape of streams that are bet on side by side, as a simulation does.
    """

    def __init__(self, kinds: int, *, streams: tuple[int, ...] = ()) -> None:
        self._running = np.zeros((*streams, kinds))
        self._kept = 1.0
        self._texts = 0

    @property
    def wealth(self) -> Floats:
        """[streams], or a number; 1 at first."""
        wealth: Floats = self._running.sum(axis=-1) + self._kept
        return wealth

    def take(self, factors: Floats) -> None:
        """One more text: by what each kind of bet multiplies its stake.

        Args:
            factors: [streams, K], 0 or more; each of mean 1 (or less) given what came before, if there is nothing to be
                found.
        """
        self._texts += 1
        kept = 1 / (1 + math.log1p(self._texts))
        self._running += (self._kept - kept) / self._running.shape[-1]
        self._running *= factors
        self._kept = kept


def rank_bets(rank: float | Floats) -> Floats:
    """[..., K]: densities over ranks [...] in [0, 1]: high ranks, low ranks, both ends, the middle."""
    high = np.asarray(rank, dtype=np.float64)[..., None]
    low, ends = 1 - high, (2 * high - 1) ** 2
    parts = (_POWERS * high ** (_POWERS - 1), _POWERS * low ** (_POWERS - 1), 3 * ends, 1.5 * (1 - ends))
    return np.concatenate(parts, axis=-1)


class RiskTest:
    """Is the risk above a limit?

    Args:
        limit: the risk that was promised.
        false_alarms: probability that ``rings`` is ever true where the expected loss of each text, given what came
            before it, is at most ``limit``.
    """

    def __init__(self, limit: float, *, false_alarms: float) -> None:
        self._needed = 1 / false_alarms
        self._bets = Bets(len(_TILTS))
        # A convex function of a loss in [0, 1] is at most the line between its ends: no more than these in the mean.
        self._mean = 1 + np.expm1(_TILTS) * limit
        self._rang = False

    @property
    def rings(self) -> bool:
        """The bets have once reached 1 / ``false_alarms``."""
        return self._rang

    def observe(self, loss: float) -> None:
        """One more loss, in [0, 1]."""
        self._bets.take(self.factors(loss))
        self._rang = self._rang or float(self._bets.wealth) >= self._needed

    def factors(self, losses: float | Floats) -> Floats:
        """[..., K]: by what losses [...] multiply each bet; of mean 1 at most while the risk keeps its limit."""
        found: Floats = np.exp(_TILTS * np.asarray(losses)[..., None]) / self._mean
        return found


class RiskBounds:
    """The mean risk so far, between bounds that hold at all times at once.

    Losses in [0, 1] come one after the other; the expected loss of each, given those before it, may change. With
    probability ``confidence`` the mean of these is at all times above ``lower(confidence)``; likewise below ``upper``.
    A mixture of bets exp(tilt * sum - n * ln(1 + (e^tilt - 1) * mean)): the logarithm is concave in the mean, so
    it is the mean risk alone that matters, not how it moved.
    """

    def __init__(self) -> None:
        self.n = 0
        self.total = 0.0

    @property
    def mean(self) -> float:
        """Of the losses seen; 0 where there are none."""
        return self.total / self.n if self.n else 0.0

    def observe(self, loss: float) -> None:
        """One more loss, in [0, 1]."""
        self.n += 1
        self.total += loss

    def lower(self, confidence: float = 0.95) -> float:
        """Below the mean risk so far, at all times, with this probability."""
        return self._edge(_TILTS, confidence, low=0.0, high=self.mean)

    def upper(self, confidence: float = 0.95) -> float:
        """Above the mean risk so far, at all times, with this probability."""
        return self._edge(-_TILTS, confidence, low=1.0, high=self.mean)

    def is_below(self, limit: float, confidence: float) -> bool:
        """Whether ``upper(confidence) <= limit``, without looking for it."""
        return self._evidence(limit, -_TILTS) >= -math.log(1 - confidence)

    def _edge(self, tilts: Floats, confidence: float, *, low: float, high: float) -> float:
        """Where evidence against a risk begins to be enough: from ``low``, refuted if anything is, to ``high``."""
        needed = -math.log(1 - confidence)
        if self._evidence(low, tilts) < needed:
            return low
        for _ in range(40):
            middle = (low + high) / 2
            if self._evidence(middle, tilts) >= needed:
                low = middle
            else:
                high = middle
        return low

    def _evidence(self, risk: float, tilts: Floats) -> float:
        """Log-wealth of bets against "the mean risk so far is ``risk``"."""
        logs = tilts * self.total - self.n * np.log1p(np.expm1(tilts) * risk)
        top = float(logs.max())
        return top + math.log(float(np.exp(logs - top).mean()))
