"""A monitor of what a running model sees: rings where the world has changed, and falls back; constant time per text.

Two things are watched. *Drift* (``calibration.drift``), without labels: are exit layers and confidences still drawn
like those of the calibration texts? *Risk* (``calibration.bets``), by shadow runs: one text in so many goes to the
last layer all the same, and shows how often an operating point answers otherwise than the full model. Every operating
point that there is to fall back on is held against the same shadow runs, so what is safe now is known when it is
needed.

Nothing here knows of models, criteria or engines: ``offramp.load(run, monitor=Monitor(...))`` brings them together.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from offramp.calibration.bets import RiskBounds, RiskTest
from offramp.calibration.drift import Drift, Reference
from offramp.calibration.promise import percent
from offramp.errors import KnobError

__all__ = ["FULL_DEPTH", "Event", "Monitor", "Rung", "Ticket"]

logger = logging.getLogger(__name__)

FULL_DEPTH = "full depth"
"""What stands below all operating points."""


@dataclass(frozen=True)
class Rung:
    """An operating point among those that a monitor may use: the first is used first, full depth is below all."""

    name: str
    reference: Reference | None = None
    """None: its drift is not watched."""
    promised: bool = False
    """It has a promise, of which messages about drift speak."""

    def is_like(self, other: Rung) -> bool:
        """Whether it is the same operating point, calibrated on the same texts."""
        if self.name != other.name or self.reference is None or other.reference is None:
            return self.name == other.name and self.reference is other.reference
        one, two = self.reference, other.reference
        return one.layers == two.layers and np.array_equal(one.counts, two.counts)


@dataclass(frozen=True)
class Ticket:
    """What is to be done with the next text."""

    rung: int
    """Which operating point decides; as many as there are: none, full depth."""
    whole: bool
    """Shadow run: it goes on to the last layer, and every operating point is held against that."""
    epoch: int
    """Changes whenever the operating point does."""


@dataclass(frozen=True)
class Event:
    """Something that people should know."""

    kind: Literal["drift", "risk", "back"]
    texts: int
    """After how many."""
    point: str
    """The operating point from here on; ``full depth`` where there is none."""
    message: str


class _Watched:
    """A rung's risk: the test against it, and the bounds since it was begun to be used, or to be doubted."""

    def __init__(self) -> None:
        self.suspended = False
        self.times = 0
        self.bounds = RiskBounds()
        self.test: RiskTest | None = None

    def begin(self, limit: float | None, false_alarms: float) -> None:
        """Trust it (again). Every time there is half as much left to be wrong with."""
        self.suspended, self.bounds = False, RiskBounds()
        self.test = None if limit is None else RiskTest(limit, false_alarms=false_alarms / 2**self.times)

    def suspend(self) -> None:
        """Doubt it."""
        self.suspended, self.bounds = True, RiskBounds()
        self.times += 1


class Monitor:
    """Watches a stream of texts at an operating point, rings, and falls back.

    Args:
        false_alarms: probability that it ever rings over a whole stream, however long, in which nothing has changed
            and the operating point keeps its promise. Half of it goes to drift and half to risk, where both are
            watched.
        shadow_every: one text in so many, drawn by the seed, goes to the last layer all the same; None: none does, and
            the risk is not watched.
        max_risk: that the operating point shall keep; None: what it promises. Without either no alarm is raised about
            the risk, and it is only told.
        on_drift: ``warn``, or ``fall_back`` to full depth: where no shadow run tells what drift has done to the risk.
        come_back: an operating point that was left is used again once shadow runs *since then* have proved, with
            ``confidence``, that its risk is at most ``max_risk``. Never without shadow runs.
        confidence: of the bounds that are told, and of coming back.
        seed: of coins and of which texts are shadow runs.

    Raises:
        KnobError: a setting outside what it may be.

    Attributes:
        texts: seen so far.
        shadowed: of them.
        events: the last hundred.
    """

    def __init__(
        self,
        *,
        false_alarms: float = 0.01,
        shadow_every: int | None = None,
        max_risk: float | None = None,
        on_drift: Literal["warn", "fall_back"] = "warn",
        come_back: bool = True,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> None:
        if not 0 < false_alarms < 1:
            raise KnobError(f"false_alarms is a probability above 0 and below 1, such as 0.01, not {false_alarms!r}")
        if not 0 < confidence < 1:
            raise KnobError(f"a confidence lies between 0 and 1, such as 0.95, not {confidence!r}")
        if shadow_every is not None and shadow_every < 1:
            raise KnobError(f"shadow_every must be 1 or more (20 is one text in twenty), not {shadow_every!r}")
        if max_risk is not None and not 0 < max_risk <= 1:
            raise KnobError(f"max_risk must be above 0 and up to 1 (0.01 is one text in a hundred), not {max_risk!r}")
        if on_drift not in ("warn", "fall_back"):
            raise KnobError(f"on_drift must be 'warn' or 'fall_back', not {on_drift!r}")
        self.false_alarms, self.shadow_every, self.max_risk = false_alarms, shadow_every, max_risk
        self.on_drift, self.come_back, self.confidence = on_drift, come_back, confidence
        self._rng = np.random.default_rng(seed)
        self.rungs: tuple[Rung, ...] = ()
        self.limit: float | None = max_risk
        self.reset()

    def bind(self, rungs: Sequence[Rung], *, limit: float | None) -> None:
        """Begin with operating points, the one to be used first.

        What was seen before stays where names, references and limit are the same as then: so a monitor that was
        pickled goes on in a server that is started anew. Otherwise it is forgotten.

        Args:
            rungs: from the one used first to the safest.
            limit: the risk that the first promises; None: it promises nothing. ``max_risk`` goes before it.
        """
        before, old_limit = self.rungs, self.limit
        self.rungs = tuple(rungs)
        self.limit = limit if self.max_risk is None else self.max_risk
        same = len(before) == len(self.rungs) and all(map(Rung.is_like, before, self.rungs))
        if not same or self.limit != old_limit:
            if before and self.texts:
                logger.warning(
                    "what the monitor saw of %d texts is forgotten: it was about other operating points", self.texts
                )
            self.reset()

    def reset(self) -> None:
        """Forget all that was seen: somebody has looked, and trusts the operating point again."""
        self.texts = self.shadowed = 0
        self.events: list[Event] = []
        self._epoch = self._asked = self._turn = self._given = 0
        self._watched = [_Watched() for _ in self.rungs]
        for watched in self._watched:
            watched.begin(self.limit, self._share)
        self._drifted = False
        self._drift = self._new_drift()

    @property
    def bound(self) -> bool:
        """It has operating points to watch."""
        return bool(self.rungs)

    @property
    def rung(self) -> int:
        """The operating point in use: the first that is not doubted; ``len(rungs)``: full depth."""
        return next((n for n, watched in enumerate(self._watched) if not watched.suspended), len(self.rungs))

    @property
    def point(self) -> str:
        """Its name."""
        return self.rungs[self.rung].name if self.rung < len(self.rungs) else FULL_DEPTH

    @property
    def _share(self) -> float:
        """Of the false alarms, for each of drift and risk."""
        both = self.shadow_every is not None and self.limit is not None and any(r.reference for r in self.rungs)
        return self.false_alarms / 2 if both else self.false_alarms

    def next(self) -> Ticket:
        """What is to be done with the next text of the stream."""
        whole = False
        self._given += 1
        if self.shadow_every is not None:
            place = self._asked % self.shadow_every
            if place == 0:  # one text in each so many, no one knows which: the stream may have a rhythm of its own
                self._turn = int(self._rng.integers(self.shadow_every))
            whole = place == self._turn
            self._asked += 1
        return Ticket(self.rung, whole, self._epoch)

    def observe(
        self, ticket: Ticket, layer: int, score: float | None, losses: Sequence[float] | None = None
    ) -> list[Event]:
        """One text has been answered.

        Args:
            ticket: that it was given.
            layer: where its operating point let it leave (shadow run or not).
            score: the confidence of the answer there; None: there is none.
            losses: of a shadow run, in [0, 1]: what each of the operating points would have lost on it.

        Returns:
            What has happened: seldom anything.
        """
        self.texts += 1
        events = []
        if losses is not None:
            self.shadowed += 1
            events += self._look_at_risk(losses)
        if self._drift is not None and ticket.epoch == self._epoch:
            self._drift.observe(layer, score)
            if self._drift.rings and not self._drifted:
                events.append(self._drift_rang(self._drift))
        self.events = [*self.events, *events][-100:]
        return events

    def _look_at_risk(self, losses: Sequence[float]) -> list[Event]:
        before = self.rung
        for watched, loss in zip(self._watched, losses, strict=True):
            watched.bounds.observe(loss)
            if watched.suspended:
                if self._may_come_back(watched):
                    watched.begin(self.limit, self._share)
            elif watched.test is not None:
                watched.test.observe(loss)
        left = self._watched[before].bounds if before < len(self.rungs) else None
        for watched in self._watched:
            if not watched.suspended and watched.test is not None and watched.test.rings:
                watched.suspend()
        if self.rung == before:
            return []
        self._moved()
        return [self._fell_back(before, left) if self.rung > before else self._came_back()]

    def _may_come_back(self, watched: _Watched) -> bool:
        if not self.come_back or self.limit is None:
            return False
        return watched.bounds.is_below(self.limit, 1 - (1 - self.confidence) / 2**watched.times)

    def _moved(self) -> None:
        """The operating point is another one: what it does with texts is held against its own calibration."""
        self._epoch += 1
        self._drift = None if self._drifted else self._new_drift()

    def _new_drift(self) -> Drift | None:
        reference = self.rungs[self.rung].reference if self.rung < len(self.rungs) else None
        return None if reference is None else Drift(reference, false_alarms=self._share, rng=self._rng)

    def _fell_back(self, before: int, seen: RiskBounds | None) -> Event:
        assert seen is not None
        assert self.limit is not None
        sure = f"{100 * self.confidence:g} %"
        message = (
            f"operating point {self.rungs[before].name!r} loses more than the {percent(self.limit)} it shall keep: "
            f"{seen.total:g} of {seen.n:,} shadow runs, so at least {percent(seen.lower(self.confidence))} of all with "
            f"{sure} confidence; {self._instead()}"
        )
        return Event("risk", self.texts, self.point, message)

    def _instead(self) -> str:
        used = "full depth is used" if self.point == FULL_DEPTH else f"operating point {self.point!r} is used"
        proved = self.come_back and self.shadow_every is not None and self.limit is not None
        until = "shadow runs prove the risk anew" if proved else "somebody resets the monitor"
        return f"{self._from_here()} {used} until {until}"

    def _from_here(self) -> str:
        """Texts that have their ticket already are answered as it says."""
        return f"from text {max(self._given, self.texts) + 1:,} on"

    def _came_back(self) -> Event:
        assert self.limit is not None
        message = (
            f"operating point {self.point!r} is used again {self._from_here()}: shadow runs since it was "
            f"left prove that it loses at most {percent(self.limit)}"
        )
        return Event("back", self.texts, self.point, message)

    def _drift_rang(self, drift: Drift) -> Event:
        self._drifted = True
        change = (
            f"they leave after {drift.recent_layer:.1f} layers in the mean, and after "
            f"{drift.reference.mean_layer:.1f} at calibration"
            if drift.what == "layers"
            else "their confidences are others than at calibration"
        )
        said = (
            f"after {drift.texts:,} texts they are not like those of the calibration any more: {change} (a false alarm "
            f"has probability {self._share:.2g} at most)"
        )
        if self.rungs[self.rung].promised:
            said += ". What was promised is not promised for them"
        if self.on_drift == "fall_back":
            for watched in self._watched:
                watched.suspend()
            self._moved()
            return Event("drift", self.texts, self.point, f"{said}; {self._instead()}")
        then = (
            "calibrate on such texts, or let shadow runs watch the risk"
            if self.shadow_every is None
            else "shadow runs go on to watch the risk"
        )
        return Event("drift", self.texts, self.point, f"{said}; {then}")

    def status(self) -> dict[str, Any]:
        """Where it stands, in plain values.

        Returns:
            ``texts``, ``shadowed``, ``point``, ``drifted``, ``drift_wealth`` (None: not watched), ``false_alarms``,
            ``limit``, ``risks``: for each operating point ``point``, ``doubted``, ``n``, ``mean``, ``lower`` and
            ``upper`` since it began to be used or doubted; and ``events``.
        """
        side = (1 + self.confidence) / 2
        return {
            "texts": self.texts,
            "shadowed": self.shadowed,
            "point": self.point,
            "drifted": self._drifted,
            "drift_wealth": None if self._drift is None else self._drift.wealth,
            "false_alarms": self.false_alarms,
            "limit": self.limit,
            "confidence": self.confidence,
            "risks": [
                {
                    "point": rung.name,
                    "doubted": watched.suspended,
                    "n": watched.bounds.n,
                    "mean": watched.bounds.mean,
                    "lower": watched.bounds.lower(side),
                    "upper": watched.bounds.upper(side),
                }
                for rung, watched in zip(self.rungs, self._watched, strict=True)
            ],
            "events": [asdict(event) for event in self.events],
        }

    def summary(self) -> str:
        """``5,000 texts, 250 shadow runs: 0.80 % of answers differ ...; no alarm`` for people."""
        said = f"{self.texts:,} text{'' if self.texts == 1 else 's'} watched"
        if self.shadowed and self.rung < len(self.rungs):
            now = self.status()["risks"][self.rung]
            said += (
                f", {self.shadowed:,} shadow runs: operating point {now['point']!r} lost {percent(now['mean'])} of "
                f"{now['n']:,} ({percent(now['lower'])} to {percent(now['upper'])} with {100 * self.confidence:g} % "
                "confidence)"
            )
        alarms = [event for event in self.events if event.kind != "back"]
        told = (
            f"; {len(alarms)} alarm{'' if len(alarms) == 1 else 's'}, now at {self.point}" if alarms else "; no alarm"
        )
        return said + told
