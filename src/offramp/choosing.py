"""Which criterion and knobs a request means: of the operating points that a run has, on the runtime that serves it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict

from offramp.calibration.points import OperatingPoint
from offramp.calibration.promise import CONFIDENCE, percent, promise_kind
from offramp.calibration.sweep import choose
from offramp.criteria import Criterion, make
from offramp.errors import KnobError, OfframpError, RunError
from offramp.recipes import load_recipe
from offramp.run import Run, weights_hash
from offramp.runtimes import RuntimeInfo
from offramp.runtimes.base import InCompany
from offramp.settings import is_number
from offramp.traces.store import load_trace
from offramp.traces.trace import Trace

__all__ = ["Chooser", "Setting", "Wishes"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """A criterion and its knobs, as one request uses them."""

    criterion: Criterion
    knobs: Mapping[str, float]
    origin: str
    """Where they come from, in words."""
    promise: Mapping[str, Any] | None = None
    """Of the operating point, where it is used as it is."""
    point: OperatingPoint | None = None
    """Where it is used as it is."""


class Wishes(TypedDict, total=False):
    """What a request may ask for: see ``Chooser.setting``."""

    threshold: float | None
    speedup: float | None
    max_layers: int | None
    full_depth: bool
    knobs: Mapping[str, float] | None
    max_risk: float | None
    risk: str | None
    confidence: float


class Chooser:
    """Picks among a run's operating points what a request means, and refuses what was never calibrated.

    Args:
        run: its folder.
        points: operating points, the default first.
        info: of the runtime that serves it.
        batch_size: most texts computed together there.
    """

    def __init__(self, run: Run, points: Sequence[OperatingPoint], info: RuntimeInfo, batch_size: int) -> None:
        self.run = run
        self.points = points
        self.info = info
        self.batch_size = batch_size
        self._warned: set[str] = set()

    def setting(
        self,
        *,
        threshold: float | None = None,
        speedup: float | None = None,
        max_layers: int | None = None,
        full_depth: bool = False,
        knobs: Mapping[str, float] | None = None,
        max_risk: float | None = None,
        risk: str | None = None,
        confidence: float = CONFIDENCE,
    ) -> Setting:
        """What the options of a request mean: see ``Classifier.__call__``.

        Raises:
            KnobError: options that contradict each other or the criterion, or that nothing was calibrated for.
            RunError: the run has no operating points.
        """
        wishes = {
            "threshold": threshold is not None,
            "speedup": speedup is not None,
            "full_depth": full_depth,
            "knobs": knobs is not None,
            "max_risk": max_risk is not None,
        }
        if risk is not None and max_risk is None:
            raise KnobError("risk says what max_risk is about: give max_risk with it")
        if confidence != CONFIDENCE and max_risk is None:
            raise KnobError("confidence says how sure a promise shall be: give max_risk with it")
        chosen = [name for name, given in wishes.items() if given]
        if (full_depth or max_risk is not None) and max_layers is not None:
            chosen.append("max_layers")  # leaving sooner than the point does is not what was promised
        if len(chosen) > 1:
            raise KnobError(f"{' and '.join(chosen)} contradict each other: give one")
        if max_layers is not None and not is_number(max_layers):
            raise KnobError(f"max_layers must be a number, not {max_layers!r}")
        cap = {} if max_layers is None else {"max_layers": float(max_layers)}
        if full_depth:
            return Setting(make("depth", problem_type=self.run.problem_type), cap, "full depth")
        if max_risk is not None:
            return self._as_it_is(self._promised(max_risk, risk, confidence))
        if speedup is not None:
            return self._as_fast(speedup, cap)
        return self._with_knobs(knobs or {} if threshold is None else {"threshold": threshold}, cap)

    def warn_of_neighbours(self) -> None:
        """Say so where texts that share a batch change one another's answers, and how much where that was measured."""
        info = self.info
        if info.batch_invariant or self.batch_size == 1:
            return
        command = f"offramp calibrate {self.run.folder} --data DATA --max-risk 0.01{self._on_what_serves()}"
        self._warn_once(
            "neighbours",
            f"on runtime {info.name} in {info.dtype} answers depend a little on which texts share a batch "
            f"({_beside_alone(info.in_company)}): calibrate thresholds with the batch size that serves, `{command}`",
        )

    def warn_of_default_point(self) -> None:
        """Say so where it was chosen on another runtime; of other points that is said when they are used."""
        if self.points:
            self._check_runtime(self.points[0])

    def _with_knobs(self, given: Mapping[str, float], cap: Mapping[str, float]) -> Setting:
        """The default operating point, or its criterion with other knobs."""
        if not given:
            point = self.default_point
            return self._capped(point, cap) if cap else self._as_it_is(point)
        criterion, knobs = self._rule()
        if not isinstance(given, Mapping):
            raise KnobError(f"knobs must be a mapping from names to numbers, not {given!r}")
        unknown = sorted(given.keys() - criterion.knobs.keys())
        if unknown:
            raise KnobError(
                f"this model leaves by {criterion.name!r}, which has no {unknown[0]}: "
                f"it has {', '.join(criterion.knobs)}"
            )
        for name, value in given.items():
            criterion.knobs[name].check(name, value)
        return Setting(criterion, {**knobs, **given, **cap}, "as given")

    def _rule(self, command: str = "") -> tuple[Criterion, Mapping[str, float]]:
        """The criterion whose knobs a request sets, and what they are unless it does.

        The default operating point's; of a run without one the recipe's, as long as nothing of it had to be learned.

        Raises:
            RunError: there is none.
        """
        if self.points:
            point = self.default_point
            self._check_origin(point)
            return make(point.criterion, **point.settings), point.knobs
        criterion, whole = self._of_recipe
        if criterion is None or not whole:
            raise self._no_points(command)
        self._warn_once(
            "no points",
            f"{self.run.folder} has no operating_points.json: leaving by {criterion.name!r}, as its recipe "
            f"{self.run.recipe!r} has it",
        )
        return criterion, {name: knob.default for name, knob in criterion.knobs.items()}

    @cached_property
    def _of_recipe(self) -> tuple[Criterion | None, bool]:
        """The criterion of the run's recipe, where that is known; and whether nothing of it was learned in training."""
        settings = self.run.section.get("recipe_settings") or {}
        try:
            recipe = load_recipe(self.run.recipe).changed(settings)
            criterion = recipe.criterion(self.run.problem_type)
        except OfframpError:  # of an offramp, or of somebody, that had another recipe of that name
            return None, False
        return criterion, recipe.learns(self.run.problem_type) is None and criterion.fit is None

    def _no_points(self, command: str = "") -> RunError:
        """What to do about a run without operating points; ``command``: how what was asked for is made."""
        criterion, whole = self._of_recipe
        name = "CRITERION" if criterion is None else criterion.name
        knob = "--threshold" if criterion is not None and "threshold" in criterion.knobs else "--knob"
        command = command or f"offramp calibrate {self.run.folder} --data DATA --max-risk 0.01"
        return RunError(
            f"{self.run.folder} has no operating_points.json: `{command} --criterion {name}{self._on_what_serves()}` "
            f"makes one, or give {f'{knob} or ' if whole else ''}--full-depth"
        )

    def _capped(self, point: OperatingPoint, cap: Mapping[str, float]) -> Setting:
        """An operating point that leaves sooner than it was made to: nothing is promised of that."""
        self._check_origin(point)
        criterion = make(point.criterion, **point.settings)
        return Setting(criterion, {**point.knobs, **cap}, f"operating point {point.name!r}")

    def _as_fast(self, speedup: float, cap: Mapping[str, float]) -> Setting:
        """The operating point that was calibrated for this layer speed-up; where none ever was, one by the dev trace.

        Raises:
            KnobError: no speed-up, one above all that were calibrated, or one that the dev trace does not reach.
        """
        if not is_number(speedup) or not 1 <= speedup < math.inf:
            raise KnobError(f"a layer speed-up is 1 or more, not {speedup!r}")
        made = self._made_for(speedup)
        if made is not None:
            return self._as_it_is(made) if not cap else self._capped(made, cap)
        calibrate = f"offramp calibrate {self.run.folder} --data DATA --speedup {speedup:g}"
        command = f"`{calibrate}"
        if calibrated := [asked for point in self.points if (asked := point.asked.get("speedup"))]:
            raise KnobError(
                f"no operating point of {self.run.folder} was calibrated for a layer speed-up of {speedup:g}, the "
                f"highest is {max(calibrated):g}: {command}{self._on_what_serves()}` makes one, or ask for less"
            )
        criterion, _ = self._rule(calibrate)
        if not self.points:
            command += f" --criterion {criterion.name}"
        dev = self.run.folder / "traces" / "dev.safetensors"
        if not dev.is_file():
            raise KnobError(
                f"{self.run.folder} has no traces/dev, by which thresholds for a layer speed-up are chosen: "
                f"{command}{self._on_what_serves()}` makes a point"
            )
        chosen = choose(self._as_served(load_trace(dev)), criterion, speedup=speedup)
        self._warn_once(
            f"no point for a speed-up of {speedup:g}",
            f"nothing was calibrated for a layer speed-up of {speedup:g}, so thresholds are chosen on the dev "
            f"trace of training, and nothing is promised: {command}{self._on_what_serves()}` makes a point for it",
        )
        return Setting(criterion, {**chosen.knobs, **cap}, f"layer speed-up of {speedup:g} on dev")

    @property
    def default_point(self) -> OperatingPoint:
        """The operating point used where nothing is asked for.

        Raises:
            RunError: the run has none.
        """
        if not self.points:
            raise self._no_points()
        return self.points[0]

    def not_about_this(self, point: OperatingPoint) -> str:
        """Why what a point promises is not promised here; empty: it is (or there is no promise)."""
        promise, info = point.promise, self.info
        if promise is None:
            return ""
        if promise.get("model") is not None and promise["model"] != self._weights:
            return (
                f"what operating point {point.name!r} promises is about other weights than those of {self.run.folder}"
            )
        there, here = self._made_on(point)
        if not self._others(point) or (point.dtype in ("", "float32") and info.dtype == "float32"):
            return ""  # an export gives the same numbers in float32, but for the last digits
        return (
            f"what operating point {point.name!r} promises is about {_listed(there, list(there))}, and this is "
            f"{_listed(here, list(here))}"
        )

    def _as_it_is(self, point: OperatingPoint) -> Setting:
        self._check_origin(point)
        criterion = make(point.criterion, **point.settings)
        promise = None if self.not_about_this(point) else point.promise
        return Setting(criterion, dict(point.knobs), f"operating point {point.name!r}", promise, point)

    def _promised(self, max_risk: float, risk: str | None, confidence: float) -> OperatingPoint:
        """The operating point of the largest risk up to ``max_risk`` that was asked for and promised, so sure, here.

        Nothing that calibration measured has a say in it. A point is promised with a confidence of its own: whoever
        takes the fastest of several, or one whose bound happens to be small enough (as ``--speedup`` and ``--max-drop``
        leave behind), picks the luckiest of them, and the confidence is no longer what it says. Of points with the
        same risk, as of several criteria, the one made last is meant.

        Raises:
            KnobError: a risk or confidence that cannot be, that nothing was calibrated for, or that leaves open what it
                is about; or what was calibrated was for other weights, or another runtime or dtype.
        """
        if not is_number(max_risk) or not 0 < max_risk <= 1:
            raise KnobError(f"max_risk must be above 0 and up to 1 (0.01 is one text in a hundred), not {max_risk!r}")
        if not is_number(confidence) or not 0 < confidence < 1:
            raise KnobError(f"a confidence lies between 0 and 1, such as 0.95, not {confidence!r}")
        command = self._calibrating(max_risk, risk, confidence)
        promised = self._asked_for(risk, command)
        small = [(point, promise) for point, promise in promised if promise["risk"] <= max_risk + 1e-12]
        if not small:
            least = min(promise["risk"] for _, promise in promised)
            raise KnobError(
                f"the smallest risk that was promised{_about(risk)} is {percent(least)}: {command} makes one"
            )
        kept = [(point, promise) for point, promise in small if _is_sure(promise, confidence)]
        if not kept:
            surest = max(promise["confidence"] for _, promise in small)
            raise KnobError(
                f"{percent(max_risk)} was promised{_about(risk)} with a confidence of {100 * surest:g} %, not of "
                f"{100 * confidence:g} %: {command} makes one, or ask for confidence={surest:g} (--confidence)"
            )
        # The default is listed first, whenever it was made; points without a number are listed as they were made.
        order = sorted(
            (
                (promise["risk"], not self._others(point), point.made, place)
                for place, (point, promise) in enumerate(kept)
            ),
            reverse=True,
        )
        whys = [self.not_about_this(kept[place][0]) for *_, place in order]
        if all(whys):
            raise KnobError(f"{whys[0]}: {command} makes one for here")
        return kept[order[whys.index("")][-1]][0]

    def _asked_for(self, risk: str | None, command: str) -> list[tuple[OperatingPoint, Mapping[str, Any]]]:
        """Points and promises of one risk that was asked for, and not forced.

        Raises:
            KnobError: there are none, or of several risks.
        """
        honest = [(point, point.promise) for point in self.points if point.promise and not point.forced]
        asked = [(point, promise) for point, promise in honest if "max_risk" in point.asked]
        kinds = {promise_kind(promise) for _, promise in asked}
        about = sorted(kinds if risk is None else {risk} & kinds)
        if len(about) > 1:
            raise KnobError(
                f"there are promises about {' and '.join(about)}: say which with risk={about[0]!r} (--risk)"
            )
        if not about:
            others = any(risk in (None, promise_kind(promise)) for _, promise in honest)
            why = " that was asked for (--speedup and --max-drop only tell what they cost)" if others else ""
            raise KnobError(
                f"no operating point of {self.run.folder} has a promise{_about(risk)}{why}: {command} makes one"
            )
        return [(point, promise) for point, promise in asked if promise_kind(promise) == about[0]]

    def _calibrating(self, max_risk: float, risk: str | None, confidence: float) -> str:
        """The command that makes such a promise for what is served here."""
        words = f"`offramp calibrate {self.run.folder} --data DATA --max-risk {max_risk:g}"
        if risk not in (None, "disagreement"):
            words += f" --risk {risk}".replace("--risk expected ", "--expected --risk ")
        if confidence != CONFIDENCE:
            words += f" --confidence {confidence:g}"
        return f"{words}{self._on_what_serves()}`"

    def _on_what_serves(self) -> str:
        """Options of ``offramp calibrate`` by which its point is about what is served here."""
        info, words = self.info, ""
        if (info.name, info.dtype) != ("torch", "float32"):
            words += f" --runtime {info.name} --dtype {info.dtype}"
        if not info.batch_invariant:
            words += f" --batch-size {self.batch_size}"
        return words

    def _made_for(self, speedup: float) -> OperatingPoint | None:
        """The operating point that was calibrated for this layer speed-up, or the next higher one.

        One that was forced is the last, then one that was made on other numbers than are served here; among equals the
        one of the default's rule is the first.
        """
        found = [
            (point.forced, bool(self._others(point)), asked, point.criterion != self.points[0].criterion, place)
            for place, point in enumerate(self.points)
            if (asked := point.asked.get("speedup", 0.0)) >= speedup - 1e-9
        ]
        return self.points[min(found)[-1]] if found else None

    def _as_served(self, trace: Trace) -> Trace:
        """A trace at the exits that the runtime has: an export may leave some out."""
        layers = [stage.layers for stage in self.info.stages]
        exits = [index for index, layer in enumerate(trace.layers.tolist()) if layer in layers]
        return trace if len(exits) == trace.num_exits else trace.at_exits(exits)

    def _check_origin(self, point: OperatingPoint) -> None:
        """Warn where a promise is about other weights, or a point of other numbers than this runtime gives."""
        model = None if point.promise is None else point.promise.get("model")
        if model is not None and model != self._weights:
            self._warn_once(
                point.name,
                f"{self.not_about_this(point)}, and is not promised here: `offramp calibrate` makes one for here",
            )
        self._check_runtime(point)

    def _check_runtime(self, point: OperatingPoint) -> None:
        """Warn, once, where this runtime gives other numbers than those that a point was chosen on."""
        there, here = self._made_on(point)
        other = self._others(point)
        if not other:
            return
        lost = "" if point.promise is None else ", and what was promised there is not promised here"
        self._warn_once(
            f"{point.name}, made elsewhere",
            f"operating point {point.name!r} was chosen on {_listed(there, other)} and runs on {_listed(here, other)}: "
            f"its thresholds may let other texts leave{lost}; `offramp calibrate` makes one for here",
        )

    def _made_on(self, point: OperatingPoint) -> tuple[dict[str, str], dict[str, str]]:
        """By name, what a point's numbers depend on: as it was there, and as it is here."""
        info = self.info
        there = {"runtime": point.runtime, "dtype": point.dtype}
        here = {"runtime": info.name, "dtype": info.dtype}
        if not info.batch_invariant:  # else neighbours change nothing
            there["batch size"], here["batch size"] = str(point.batch_size), str(self.batch_size)
        return there, here

    def _others(self, point: OperatingPoint) -> list[str]:
        """Names of what a point's numbers depend on that is otherwise here; what nobody knows is not counted."""
        there, here = self._made_on(point)
        return [name for name in there if there[name] not in ("", "unknown", here[name])]

    @cached_property
    def _weights(self) -> str:
        """Hash of the weights, by which a promise knows its model. A second for a large model, so only when asked."""
        return weights_hash(self.run.folder)

    def _warn_once(self, about: str, message: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning("%s", message)


def _beside_alone(measured: InCompany | None) -> str:
    """How much texts in a batch are answered otherwise than alone, in words."""
    if measured is None:
        return "how much was not measured"
    shares = {"labels at the worst exit": measured.labels, "exits": measured.exits}
    alike = [f"{_at_least(share)} of {name}" for name, share in shares.items() if share is not None]
    said = [f"{' and '.join(alike)} agree with batch size 1"] if alike else []
    if measured.labels is None:  # answers are numbers
        said.insert(0, f"a number differs by up to {measured.difference:.2g} from that at batch size 1")
    return f"{' and '.join(said)}, as the export measured in batches of 32"


def _at_least(share: float) -> str:
    """0.9996 -> ``99.9 %``: rounded down, so that agreement is never said greater than it is."""
    return f"{math.floor(round(1000 * share, 6)) / 10:.1f} %"


def _is_sure(promise: Mapping[str, Any], confidence: float) -> bool:
    return bool(promise.get("expected")) or promise["confidence"] >= confidence - 1e-9


def _about(risk: str | None) -> str:
    return "" if risk is None else f" about {risk}"


def _listed(values: Mapping[str, str], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {values[name]}" for name in names)
