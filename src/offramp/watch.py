"""A stream of texts under a monitor: operating points, shadow runs, and what is told of both.

The engine is the usual one; the criterion is ``criteria.shadow`` around the operating points that the monitor may
use, and each text carries the monitor's wish as its knobs. Answers are observed in the order of the stream, whatever
order they are computed in: those who leave early are finished first, and in that order every stream would look as if
it changed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.calibration.drift import Reference
from offramp.calibration.losses import answer_loss
from offramp.calibration.monitor import Monitor, Rung, Ticket
from offramp.calibration.points import OperatingPoint
from offramp.calibration.promise import promise_kind
from offramp.calibration.sweep import data_hash
from offramp.criteria import make
from offramp.criteria.shadow import Shadow
from offramp.engine.engine import Engine
from offramp.engine.units import Finished, Unit, check_fits
from offramp.errors import KnobError, UnsupportedError
from offramp.runtimes.base import RuntimeInfo
from offramp.tasks import Task
from offramp.traces.store import load_trace
from offramp.types import Prediction

__all__ = ["Watch", "reference_of", "safer"]

logger = logging.getLogger(__name__)


class Watch:
    """A monitor bound to an operating point of a run.

    Args:
        monitor: is bound. It begins anew, unless just this operating point, with this calibration, is what it watched
            before: see ``Monitor.bind``.
        point: to be used and watched.
        points: of the run; the safer ones among them are fallen back on.
        folder: of the run: where the trace lies that a point was chosen on.
        info: of the runtime.
        task: of the run.

    Raises:
        KnobError: there is nothing that could be watched.
        UnsupportedError: an operating point's criterion does not fit the model, or no shadow run can measure its loss.
    """

    def __init__(
        self,
        monitor: Monitor,
        point: OperatingPoint,
        points: Sequence[OperatingPoint],
        *,
        folder: Path,
        info: RuntimeInfo,
        task: Task,
    ) -> None:
        self.point, self.monitor, self._task = point, monitor, task
        used = [point, *(safer(point, points) if monitor.shadow_every is not None else ())]
        rules = [make(one.criterion, **one.settings) for one in used]
        for rule in rules:
            check_fits(rule, info)
        self.criterion = Shadow(
            rules=tuple((rule, tuple(one.knobs.items())) for rule, one in zip(rules, used, strict=True)),
            problem_type=info.problem_type,
        )
        rungs = [Rung(one.name, reference_of(one, folder), promised=_is_promised(one)) for one in used]
        self._loss, limit = _loss_and_limit(monitor, point, task)
        if rungs[0].reference is None and monitor.shadow_every is None:
            raise KnobError(
                f"operating point {point.name!r} keeps no record of what it did with its calibration texts, so drift "
                "cannot be watched: run `offramp calibrate` again, or give shadow_every"
            )
        monitor.bind(rungs, limit=limit)

    def stream(self, engine: Engine, units: Iterable[Unit], *, chunk: int) -> Iterator[tuple[int, Prediction]]:
        """Answer units, in their order.

        Args:
            engine: idle, with ``criterion``.
            units: read ``chunk`` at a time; at most 2 x ``chunk`` are on their way when the monitor changes its mind.
            chunk: units among which texts of like length are found.

        Returns:
            Ids and predictions. ``exit_layer`` of a shadow run is where its operating point let it leave.
        """
        source, order = iter(units), deque[int]()
        tickets: dict[int, Ticket] = {}
        done: dict[int, Finished] = {}
        while True:
            if len(order) <= chunk:
                fresh = list(islice(source, chunk))
                given = [self.monitor.next() for _ in fresh]
                engine.add(fresh, [{"rung": float(one.rung), "whole": float(one.whole)} for one in given])
                order.extend(unit.id for unit in fresh)
                tickets |= zip((unit.id for unit in fresh), given, strict=True)
            if not engine.busy:
                return
            done |= {finished.id: finished for finished in engine.step()}
            while order and order[0] in done:
                number = order.popleft()
                yield number, self._seen(done.pop(number), tickets.pop(number))

    def _seen(self, finished: Finished, ticket: Ticket) -> Prediction:
        """What people read of a text; the monitor has seen it."""
        told = self.criterion.told(finished.answer)
        label, score = self._task.read(told.answer)
        decided = ticket.rung < len(told.layers) and told.layers[ticket.rung] > 0
        layer = int(told.layers[ticket.rung]) if decided else finished.exit_layer
        losses = self._loss(told.answers, told.full) if ticket.whole else None
        for event in self.monitor.observe(ticket, layer, score, losses):
            logger.warning("%s", event.message)
        return Prediction(label, score, layer, finished.layers_executed)


def safer(point: OperatingPoint, points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """Those that were asked to promise less of the same risk, and are slower: those that promise the most first.

    Of the others (``--speedup``, ``--max-drop``) the promise is what it turned out to be, and to choose among such by
    it is to look at the rows that prove it.
    """
    if point.promise is None:
        return []
    kind, risk, speed = promise_kind(point.promise), point.promise["risk"], _speed(point)
    found = [
        one
        for one in points
        if one.promise is not None
        and not one.forced
        and "max_risk" in one.asked
        and _sure(one) >= _sure(point)
        and promise_kind(one.promise) == kind
        and one.promise["risk"] < risk
        and _speed(one) < speed
    ]
    return sorted(found, key=lambda one: float((one.promise or {})["risk"]), reverse=True)


def _sure(point: OperatingPoint) -> float:
    """The confidence of a promise; of an expected risk there is none."""
    return float((point.promise or {}).get("confidence") or 0.0)


def reference_of(point: OperatingPoint, folder: Path) -> Reference | None:
    """What a point did with its calibration texts: kept with it, or else by the trace that it was chosen on.

    Raises:
        RunError: what is kept cannot be read.
    """
    kept = point.measured.get("reference")
    if kept is not None:
        return Reference.from_json(kept)
    # Where exits learned from the model's own answers, the name of the trace is followed by words that say so.
    names = (point.chosen_on, point.chosen_on.partition(",")[0])
    paths = [folder / "traces" / f"{name}.safetensors" for name in names if name]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    trace = load_trace(path)
    if data_hash(trace) != point.data_hash:  # other rows, under the same name
        return None
    return Reference.of(trace, make(point.criterion, **point.settings), point.knobs)


def _is_promised(point: OperatingPoint) -> bool:
    return point.promise is not None and not point.forced


def _speed(point: OperatingPoint) -> float:
    return float(point.measured.get("layer_speedup", 1.0))


def _loss_and_limit(
    monitor: Monitor, point: OperatingPoint, task: Task
) -> tuple[Callable[[NDArray[Any], NDArray[Any]], list[float]], float | None]:
    """What a shadow run measures, and what the point promises of just that."""
    kind = "disagreement" if point.promise is None else str(point.promise["of"])
    limit = None if point.promise is None else float(point.promise["risk"])
    if monitor.shadow_every is None:
        return (lambda answers, full: []), None
    if point.promise is not None and (kind == "error" or point.promise.get("needs_labels")):
        if task.problem_type == "regression":
            raise UnsupportedError(
                f"operating point {point.name!r} promises something about {kind}, which reads labels, and there are "
                "none here: leave shadow_every out, or promise a loss that does without"
            )
        if monitor.max_risk is None:
            logger.warning(
                "operating point %r promises something about %s, and there are no labels here: shadow runs tell "
                "how often answers differ from the full model's, and raise no alarm; Monitor(max_risk=) sets a limit "
                "for that",
                point.name, "errors" if kind == "error" else kind,
            )  # fmt: skip
        kind, limit = "disagreement", None
    loss = answer_loss(kind, task)
    if point.promise is None and monitor.max_risk is None:
        logger.warning(
            "nothing is promised by operating point %r, so shadow runs only tell how often its answers differ from the "
            "full model's, raise no alarm, and nothing is fallen back on: calibrate one that promises something "
            "(offramp calibrate --max-risk 0.01) and ask for it by max_risk (--max-risk)",
            point.name,
        )

    def losses(answers: NDArray[Any], full: NDArray[Any]) -> list[float]:
        found = np.asarray(loss(answers, np.repeat(full[None], len(answers), axis=0), None), dtype=np.float64)
        return [float(value) for value in found.clip(0, 1)]

    return losses, limit
