"""``offramp.load``: a run folder as something to call with texts."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast, overload

from offramp.calibration.monitor import Monitor
from offramp.calibration.points import OperatingPoint, read_points
from offramp.calibration.promise import percent, promise_kind
from offramp.calibration.risk import is_number
from offramp.calibration.sweep import choose
from offramp.criteria import Criterion, make
from offramp.engine.engine import Engine
from offramp.engine.units import Finished, Unit
from offramp.errors import DataError, KnobError, RunError
from offramp.inputs.files import Columns
from offramp.inputs.tokens import Encoded, Text, Tokenizer
from offramp.run import Run, weights_hash
from offramp.runtimes import Runtime, open_runtime
from offramp.tasks import Task, make_task
from offramp.traces.store import load_trace
from offramp.traces.trace import Trace
from offramp.types import Prediction
from offramp.watch import Watch

__all__ = ["Classifier", "Setting", "load"]

logger = logging.getLogger(__name__)

_WATCHED = 2
"""Batches of texts that are read at a time under a monitor. Twice as many may be on their way when it changes its mind:
what it decides holds for those after them."""

_SURE = 0.95
"""Confidence that a promise has at least, where nobody says otherwise."""


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


def load(
    folder: str | Path,
    *,
    runtime: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    lanes: int = 1,
    monitor: Monitor | None = None,
) -> Classifier:
    """Load a run folder.

    Args:
        folder: what ``offramp train`` wrote.
        runtime: ``torch``, ``onnx``, ``openvino``; None: the fastest that the folder holds (``offramp export``) and
            that is installed.
        device: ``cpu``, ``cuda``, ...; None: a GPU where there is one.
        dtype: ``float32``, ``int8`` where that was exported, or with torch ``bfloat16`` and ``float16``, in which
            neighbours in a batch can change an answer. None: int8 where it was exported, else float32.
        batch_size: most texts computed together. In float32 it changes no answer.
        threads: of exported graphs; None: one for every core.
        lanes: batches of exported graphs that are computed side by side, sharing the threads out among them. One lane
            answers a single text soonest; with as many lanes as threads the most texts are answered in a given time.
        monitor: watches the operating point that is used first, warns where the texts change or the promise does not
            hold, and falls back (docs/drift.md). From then on every call must mean that operating point.

    Raises:
        RunError: the folder is no run, is damaged, or was written by a newer offramp; or its export is or was.
        MissingExtraError: the runtime is not installed.
        KnobError: no such runtime or dtype, or more threads than cores, or lanes than threads; or lanes with a monitor.
    """
    if monitor is not None and lanes != 1:
        raise KnobError("a monitor sees one batch after the other: leave lanes out, or the monitor")
    if batch_size < 1:
        raise KnobError(f"batch_size must be 1 or more, not {batch_size}")
    run = Run.open(folder)
    opened = open_runtime(run.folder, runtime, device=device, dtype=dtype, threads=threads, lanes=lanes)
    return Classifier(run, opened, batch_size=batch_size, lanes=lanes, monitor=monitor)


class Classifier:
    """A trained early-exit model.

    Attributes:
        run: its folder.
        runtime: what computes.
        batch_size: most texts computed together.
        lanes: batches computed side by side.
        tokenizer: texts to token ids.
        task: logits to answers.
        points: operating points, the default first.
        columns: where training found texts and labels; None where the run does not say.
        monitor: what watches the stream of texts; None: nothing does.
    """

    def __init__(
        self, run: Run, runtime: Runtime, *, batch_size: int = 32, lanes: int = 1, monitor: Monitor | None = None
    ) -> None:
        self.run = run
        self.runtime = runtime
        self.batch_size, self.lanes = batch_size, lanes
        self.tokenizer = Tokenizer.from_folder(run.folder, max_length=run.max_length)
        self.task: Task = make_task(run.problem_type, run.id2label)
        self.points: list[OperatingPoint] = read_points(run.folder)
        self.columns = _columns(run)
        self.monitor = monitor
        self._watch: Watch | None = None
        self._warned: set[str] = set()

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a string, or a tuple, is one text: never a series of texts
        self, texts: str | tuple[str, str], *, threshold: float | None = ..., speedup: float | None = ...,
        max_layers: int | None = ..., full_depth: bool = ..., knobs: Mapping[str, float] | None = ...,
        max_risk: float | None = ..., risk: str | None = ..., confidence: float = ...,
    ) -> Prediction: ...  # fmt: skip
    @overload
    def __call__(
        self, texts: Iterable[Text], *, threshold: float | None = ..., speedup: float | None = ...,
        max_layers: int | None = ..., full_depth: bool = ..., knobs: Mapping[str, float] | None = ...,
        max_risk: float | None = ..., risk: str | None = ..., confidence: float = ...,
    ) -> list[Prediction]: ...  # fmt: skip
    def __call__(
        self,
        texts: Text | Iterable[Text],
        *,
        threshold: float | None = None,
        speedup: float | None = None,
        max_layers: int | None = None,
        full_depth: bool = False,
        knobs: Mapping[str, float] | None = None,
        max_risk: float | None = None,
        risk: str | None = None,
        confidence: float = _SURE,
    ) -> Prediction | list[Prediction]:
        """Classify texts. Without options, at the default operating point.

        Args:
            texts: one text, or a list of texts. A pair of texts, where the model reads pairs, is a tuple.
            threshold: the criterion's threshold.
            speedup: layer speed-up to reach: the operating point that ``offramp calibrate --speedup`` made for it, or
                for the next higher one; or else knobs by the trace that training recorded on dev, with a warning.
            max_layers: leave after so many layers at the latest.
            full_depth: no early exit.
            knobs: any knobs of the criterion, by name.
            max_risk: the fastest operating point of those that ``offramp calibrate`` made with a promise of at most
                so much, for these weights on this runtime and dtype. In float32 a promise from another runtime is
                taken, with a warning.
            risk: which risk that is about (``disagreement``, ``error``, ...), where there are promises of several.
            confidence: that the promise has at least; of an expected risk there is none, and it is not asked for.

        Returns:
            A prediction, or a list of them in the order of the texts.

        Raises:
            DataError: a text is not a string or a pair of strings.
            KnobError: options that contradict each other or the criterion.
        """
        setting = self.setting(
            threshold=threshold, speedup=speedup, max_layers=max_layers, full_depth=full_depth, knobs=knobs,
            max_risk=max_risk, risk=risk, confidence=confidence,
        )  # fmt: skip
        if not isinstance(texts, Iterable):
            raise DataError(f"give a text or a list of texts, not {type(texts).__name__}")
        if isinstance(texts, str | tuple):
            [prediction] = self.stream([cast("Text", texts)], setting)
            return prediction
        return list(self.stream(texts, setting))

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
        confidence: float = _SURE,
    ) -> Setting:
        """What options mean for this model: see ``__call__``."""
        wishes = {
            "threshold": threshold is not None,
            "speedup": speedup is not None,
            "full_depth": full_depth,
            "knobs": knobs is not None,
            "max_risk": max_risk is not None,
        }
        if risk is not None and max_risk is None:
            raise KnobError("risk says what max_risk is about: give max_risk with it")
        if confidence != _SURE and max_risk is None:
            raise KnobError("confidence says how sure a promise shall be: give max_risk with it")
        if speedup is not None and (not is_number(speedup) or not 1 <= speedup < math.inf):
            raise KnobError(f"a layer speed-up is 1 or more, not {speedup!r}")
        chosen = [name for name, given in wishes.items() if given]
        if (full_depth or max_risk is not None) and max_layers is not None:
            chosen.append("max_layers")  # leaving sooner than the point does is not what was promised
        if len(chosen) > 1:
            raise KnobError(f"{' and '.join(chosen)} contradict each other: give one")
        cap = {} if max_layers is None else {"max_layers": float(max_layers)}
        if full_depth:
            return Setting(make("depth", problem_type=self.run.problem_type), cap, "full depth")
        if max_risk is not None:
            return self._as_it_is(self._promised(max_risk, risk, confidence))
        made = None if speedup is None else self._made_for(speedup)
        if made is not None and max_layers is None:
            return self._as_it_is(made)
        point = self.default_point
        self._check_origin(point)
        criterion = make(point.criterion, **point.settings)
        if speedup is not None:
            trace_path = self.run.folder / "traces" / "dev.safetensors"
            if not trace_path.is_file():
                raise KnobError(f"no speed-up can be promised: {self.run.folder} has no trace; run `offramp record`")
            point = choose(self._as_served(load_trace(trace_path)), criterion, speedup=speedup)
            if made is None:
                self._warn_once(
                    "no point for a speed-up",
                    f"nothing was calibrated for a layer speed-up of {speedup:g}, so thresholds are chosen on the dev "
                    f"trace of training, and nothing is promised: `offramp calibrate {self.run.folder} --data DATA "
                    f"--speedup {speedup:g}` makes a point for it",
                )
            return Setting(criterion, {**point.knobs, **cap}, f"layer speed-up of {speedup:g} on dev")
        given = dict(knobs or {}) if threshold is None else {"threshold": threshold}
        unknown = sorted(given.keys() - criterion.knobs.keys())
        if unknown:
            raise KnobError(
                f"this model leaves by {criterion.name!r}, which has no {unknown[0]}: "
                f"it has {', '.join(criterion.knobs)}"
            )
        for name, value in given.items():
            criterion.knobs[name].check(name, value)
        if not given and not cap:
            return self._as_it_is(point)
        origin = "as given" if given else f"operating point {point.name!r}"
        return Setting(criterion, {**point.knobs, **given, **cap}, origin)

    def _as_served(self, trace: Trace) -> Trace:
        """A trace at the exits that the runtime has: an export may leave some out."""
        layers = [stage.layers for stage in self.runtime.info.stages]
        exits = [index for index, layer in enumerate(trace.layers.tolist()) if layer in layers]
        return trace if len(exits) == trace.num_exits else trace.at_exits(exits)

    def _as_it_is(self, point: OperatingPoint) -> Setting:
        self._check_origin(point)
        criterion = make(point.criterion, **point.settings)
        promise = None if self._not_about_this(point) else point.promise
        return Setting(criterion, dict(point.knobs), f"operating point {point.name!r}", promise, point)

    def _promised(self, max_risk: float, risk: str | None, confidence: float) -> OperatingPoint:
        """The fastest operating point that promises at most ``max_risk``, so sure, about what is served here.

        Raises:
            KnobError: a risk or confidence that cannot be, that nothing was calibrated for, or that leaves open what it
                is about; or what was calibrated was for other weights, or another runtime or dtype.
        """
        if not is_number(max_risk) or not 0 < max_risk <= 1:
            raise KnobError(f"max_risk must be above 0 and up to 1 (0.01 is one text in a hundred), not {max_risk!r}")
        if not is_number(confidence) or not 0 < confidence < 1:
            raise KnobError(f"a confidence lies between 0 and 1, such as 0.95, not {confidence!r}")
        kinds = {point.name: promise_kind(p) for point in self.points if (p := point.promise) and "forced" not in p}
        about = sorted(set(kinds.values()) if risk is None else {risk} & set(kinds.values()))
        if len(about) > 1:
            raise KnobError(
                f"there are promises about {' and '.join(about)}: say which with risk={about[0]!r} (--risk)"
            )
        command = self._calibrating(max_risk, risk, confidence)
        promised = [(point, point.promise) for point in self.points if point.promise and kinds.get(point.name) in about]
        small = [(point, promise) for point, promise in promised if promise["risk"] <= max_risk + 1e-12]
        kept = [point for point, promise in small if _is_sure(promise, confidence)]
        if not promised:
            raise KnobError(f"no operating point of {self.run.folder} has a promise{_about(risk)}: {command} makes one")
        if not small:
            least = min(promise["risk"] for _, promise in promised)
            raise KnobError(
                f"the smallest risk that was promised{_about(risk)} is {percent(least)}: {command} makes one"
            )
        if not kept:
            surest = max(promise["confidence"] for _, promise in small)
            raise KnobError(
                f"{percent(max_risk)} was promised{_about(risk)} with a confidence of {100 * surest:g} %, not of "
                f"{100 * confidence:g} %: {command} makes one, or ask for confidence={surest:g} (--confidence)"
            )
        kept.sort(key=lambda point: float(point.measured.get("layer_speedup", 1.0)), reverse=True)
        whys = [self._not_about_this(point) for point in kept]
        if all(whys):
            raise KnobError(f"{whys[0]}: {command} makes one for here")
        return kept[whys.index("")]

    def _calibrating(self, max_risk: float, risk: str | None, confidence: float) -> str:
        """The command that makes such a promise for what is served here."""
        words = f"`offramp calibrate {self.run.folder} --data DATA --max-risk {max_risk:g}"
        if risk not in (None, "disagreement"):
            words += f" --risk {risk}".replace("--risk expected ", "--expected --risk ")
        if confidence != _SURE:
            words += f" --confidence {confidence:g}"
        info = self.runtime.info
        if (info.name, info.dtype) != ("torch", "float32"):
            words += f" --runtime {info.name} --dtype {info.dtype}"
        if not info.batch_invariant:
            words += f" --batch-size {self.batch_size}"
        return f"{words}`"

    def _not_about_this(self, point: OperatingPoint) -> str:
        """Why what a point promises is not promised here; empty: it is (or there is no promise)."""
        promise, info = point.promise, self.runtime.info
        if promise is None:
            return ""
        if promise.get("model") not in (None, self._weights):
            return (
                f"what operating point {point.name!r} promises is about other weights than those of {self.run.folder}"
            )
        there, here = self._made_on(point)
        other = [name for name in there if there[name] not in ("", "unknown", here[name])]
        if not other or (point.dtype in ("", "float32") and info.dtype == "float32"):
            return ""  # an export gives the same numbers in float32, but for the last digits
        return (
            f"what operating point {point.name!r} promises is about {_listed(there, list(there))}, and this is "
            f"{_listed(here, list(here))}"
        )

    @cached_property
    def _weights(self) -> str:
        """Hash of the weights, by which a promise knows its model. A second for a large model, so only when asked."""
        return weights_hash(self.run.folder)

    def _made_for(self, speedup: float) -> OperatingPoint | None:
        """The operating point that was calibrated for this layer speed-up, or the next higher one.

        One that was forced is the last, and among equals the one of the default's rule the first.
        """
        found = [
            ("forced" in (point.promise or {}), asked, point.criterion != self.points[0].criterion, place)
            for place, point in enumerate(self.points)
            if (asked := point.asked.get("speedup", 0.0)) >= speedup - 1e-9
        ]
        return self.points[min(found)[-1]] if found else None

    def _check_origin(self, point: OperatingPoint) -> None:
        """Warn, once, where a promise is about other weights, or a point of other numbers than this runtime gives."""
        if point.promise is not None and point.promise.get("model") not in (None, self._weights):
            self._warn_once(
                point.name,
                f"{self._not_about_this(point)}, and is not promised here: `offramp calibrate` makes one for here",
            )
        there, here = self._made_on(point)
        other = [name for name in there if there[name] not in ("", "unknown", here[name])]
        if not other:
            return
        lost = "" if point.promise is None else ", and what was promised there is not promised here"
        self._warn_once(
            point.name,
            f"operating point {point.name!r} was chosen on {_listed(there, other)} and runs on {_listed(here, other)}: "
            f"its thresholds may let other texts leave{lost}; `offramp calibrate` makes one for here",
        )

    def _made_on(self, point: OperatingPoint) -> tuple[dict[str, str], dict[str, str]]:
        """By name, what a point's numbers depend on: as it was there, and as it is here."""
        info = self.runtime.info
        there = {"runtime": point.runtime, "dtype": point.dtype}
        here = {"runtime": info.name, "dtype": info.dtype}
        if not info.batch_invariant:  # else neighbours change nothing
            there["batch size"], here["batch size"] = str(point.batch_size), str(self.batch_size)
        return there, here

    def _warn_once(self, about: str, message: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning("%s", message)

    @property
    def default_point(self) -> OperatingPoint:
        """The operating point used where nothing is asked for.

        Raises:
            RunError: the run has none.
        """
        if not self.points:
            raise RunError(f"{self.run.folder} has no operating_points.json: give --full-depth, or train it again")
        return self.points[0]

    def stream(self, texts: Iterable[Text], setting: Setting, *, chunk: int = 1024) -> Iterator[Prediction]:
        """Classify a stream of texts, in its order, holding at most a few chunks in memory.

        A warning at the end says how many were longer than the model reads.

        Raises:
            KnobError: there is a monitor, and the setting is not the operating point that it watches.
        """
        truncated: dict[int, bool] = {}
        number = cut = 0

        def units() -> Iterator[Unit]:
            nonlocal number, cut
            source = iter(texts)
            while part := list(islice(source, chunk)):
                for encoded in self._encode(part):
                    truncated[number] = encoded.truncated
                    cut += encoded.truncated
                    yield Unit(number, encoded)
                    number += 1

        if self.monitor is None:
            done = self.engine(setting).run_in_order(units(), setting.knobs, chunk=chunk)
            answers: Iterator[tuple[int, Prediction]] = ((finished.id, self.read(finished)) for finished in done)
        else:
            watch = self.watch(self.monitor, setting)
            engine = Engine(self.runtime, watch.criterion, pad_token=self.tokenizer.pad_token, max_rows=self.batch_size)
            answers = watch.stream(engine, units(), chunk=min(chunk, _WATCHED * self.batch_size))
        for text, prediction in answers:
            yield replace(prediction, truncated=True) if truncated.pop(text) else prediction
        self._say_what_was_cut(cut, number)

    def watch(self, monitor: Monitor, setting: Setting) -> Watch:
        """The monitor, bound to the setting's operating point: what it has seen so far stays.

        Raises:
            KnobError: the setting is no operating point as it is, or another than the one watched; or nothing of it
                can be watched.
        """
        point = setting.point
        if point is None:
            raise KnobError(
                f"a monitor watches an operating point as it is, and this is {setting.origin}: ask for one of "
                f"{', '.join(repr(one.name) for one in self.points)}, by max_risk or speedup, or load without a monitor"
            )
        if self._watch is None:
            usable = [one for one in self.points if not self._not_about_this(one)]  # to fall back on
            self._watch = Watch(monitor, point, usable, folder=self.run.folder, info=self.runtime.info, task=self.task)
        if self._watch.point != point:
            raise KnobError(
                f"the monitor watches operating point {self._watch.point.name!r}, and this is {point.name!r}: load the "
                "run again, with a monitor of its own"
            )
        return self._watch

    def engine(self, setting: Setting, *, max_rows: int | None = None) -> Engine:
        """A fresh engine for one setting; ``max_rows`` None: batches of ``batch_size``."""
        return Engine(
            self.runtime,
            setting.criterion,
            pad_token=self.tokenizer.pad_token,
            max_rows=self.batch_size if max_rows is None else max_rows,
            lanes=self.lanes,
        )

    def encode(self, texts: Sequence[Text]) -> list[Encoded]:
        """Token ids, and a warning where texts are longer than the model reads.

        Raises:
            DataError: a text is not a string or a pair of strings.
        """
        encoded = self._encode(texts)
        self._say_what_was_cut(sum(item.truncated for item in encoded), len(encoded))
        return encoded

    def _encode(self, texts: Sequence[Text]) -> list[Encoded]:
        for text in texts:
            if not isinstance(text, str) and not (isinstance(text, tuple) and len(text) == 2):
                raise DataError(f"a text must be a string, or a tuple of two for a pair, not {_kind(text)}")
        return self.tokenizer.encode(texts)

    def _say_what_was_cut(self, cut: int, number: int) -> None:
        if cut:
            which = "a text is" if number == 1 else f"{cut} of {number} texts {'is' if cut == 1 else 'are'}"
            logger.warning(
                "%s longer than the %d tokens this model reads, and %s cut",
                which, self.run.max_length, "was" if cut == 1 else "were",
            )  # fmt: skip

    def read(self, finished: Finished, *, truncated: bool = False) -> Prediction:
        """What people read."""
        label, score = self.task.read(finished.answer)
        return Prediction(label, score, finished.exit_layer, finished.layers_executed, truncated)


def _is_sure(promise: Mapping[str, Any], confidence: float) -> bool:
    return bool(promise.get("expected")) or promise["confidence"] >= confidence - 1e-9


def _about(risk: str | None) -> str:
    return "" if risk is None else f" about {risk}"


def _listed(values: Mapping[str, str], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {values[name]}" for name in names)


def _kind(text: object) -> str:
    return f"a tuple of {len(text)}" if isinstance(text, tuple) else type(text).__name__


def _columns(run: Run) -> Columns | None:
    """The columns that training read."""
    text = run.section.get("text_columns")
    if not isinstance(text, list) or len(text) not in (1, 2):
        return None  # a run of an offramp that did not keep them
    return Columns(cast("tuple[str] | tuple[str, str]", tuple(map(str, text))), run.section.get("label_column"))
