"""``offramp.load``: a run folder as something to call with texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Unpack, cast, overload

from offramp.calibration.monitor import Monitor
from offramp.calibration.points import OperatingPoint, read_points
from offramp.choosing import Chooser, Setting, Wishes
from offramp.engine.alone import Alone
from offramp.engine.costs import measure_cost
from offramp.engine.engine import Engine
from offramp.engine.units import Finished, Unit
from offramp.errors import DataError, KnobError
from offramp.inputs.batching import most_tokens
from offramp.inputs.files import Columns
from offramp.inputs.tokens import Encoded, Text, Tokenizer
from offramp.run import Run
from offramp.runtimes import Runtime, open_runtime
from offramp.runtimes.base import StageCost
from offramp.tasks import Task, make_task
from offramp.types import Prediction
from offramp.watch import Watch

__all__ = ["Classifier", "load"]

logger = logging.getLogger(__name__)

_WATCHED = 2
"""Batches of texts that are read at a time under a monitor. Twice as many may be on their way when it changes its mind:
what it decides holds for those after them."""


def load(
    folder: str | Path,
    *,
    runtime: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int = 32,
    batch_tokens: int | None = None,
    threads: int | None = None,
    lanes: int = 1,
    compile: bool = False,
    attention: str | None = None,
    monitor: Monitor | None = None,
) -> Classifier:
    """Load a run folder.

    Warnings say so where texts that share a batch change one another's answers, as far as the export measured it, and
    where the default operating point was chosen on another runtime.

    Args:
        folder: what ``offramp train`` wrote.
        runtime: ``torch``, ``onnx``, ``openvino``; None: the fastest that the folder holds (``offramp export``) and
            that is installed.
        device: ``cpu``, ``cuda``, ...; None: a GPU where there is one.
        dtype: ``float32``, ``int8`` where that was exported, or with torch ``bfloat16`` and ``float16``, in which
            neighbours in a batch can change an answer. None: int8 where it was exported, else float32.
        batch_size: most texts computed together. In float32 it changes no answer.
        batch_tokens: most tokens computed together, padding included, so that long texts take no more memory than
            short ones; a longer text goes alone. None: 2,048 on a CPU, 16,384 elsewhere.
        threads: of exported graphs; None: one for every core.
        lanes: batches that are computed side by side on a CPU, sharing the threads out among them. One lane
            answers a single text soonest; with as many lanes as threads the most texts are answered in a given time.
        compile: with torch, let ``torch.compile`` make code of each stage when it is first run, which takes minutes
            once; for many texts.
        attention: with torch, what computes it, as ``attn_implementation`` of transformers: ``eager``, ``sdpa``,
            ``flash_attention_2``, a kernel of the hub, ... None: transformers' choice.
        monitor: watches the operating point that is used first, warns where the texts change or the promise does not
            hold, and falls back (docs/drift.md). From then on every call must mean that operating point.

    Raises:
        RunError: the folder is no run, is damaged, or was written by a newer offramp; or its export is or was.
        MissingExtraError: the runtime is not installed.
        KnobError: no such runtime or dtype, or a number out of range; or more threads than cores, or lanes than
            threads; or lanes with a monitor or on a GPU; or compile or attention of another runtime than torch; or
            attention that is not installed.
        UnsupportedError: attention by another implementation than the one that the model's family has.
    """
    if monitor is not None and lanes != 1:
        raise KnobError("a monitor sees one batch after the other: leave lanes out, or the monitor")
    counts = {"batch_size": batch_size, "lanes": lanes} | (
        {} if batch_tokens is None else {"batch_tokens": batch_tokens}
    )
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise KnobError(f"{name} must be a whole number of 1 or more, not {count!r}")
    run = Run.open(folder)
    opened = open_runtime(
        run.folder, runtime, device=device, dtype=dtype, threads=threads, lanes=lanes, compile=compile,
        attention=attention,
    )  # fmt: skip
    classifier = Classifier(run, opened, batch_size=batch_size, batch_tokens=batch_tokens, lanes=lanes, monitor=monitor)
    classifier._chooser.warn_of_neighbours()
    classifier._chooser.warn_of_default_point()
    return classifier


class Classifier:
    """A trained early-exit model.

    Attributes:
        run: its folder.
        runtime: what computes.
        batch_size: most texts computed together.
        batch_tokens: most tokens computed together, padding included.
        lanes: batches computed side by side.
        tokenizer: texts to token ids.
        task: logits to answers.
        columns: where training found texts and labels; None where the run does not say.
        monitor: what watches the stream of texts; None: nothing does.
    """

    def __init__(
        self,
        run: Run,
        runtime: Runtime,
        *,
        batch_size: int = 32,
        batch_tokens: int | None = None,
        lanes: int = 1,
        monitor: Monitor | None = None,
    ) -> None:
        self.run = run
        self.runtime = runtime
        self.batch_size, self.lanes = batch_size, lanes
        self.batch_tokens = most_tokens(runtime.info.device) if batch_tokens is None else batch_tokens
        self.tokenizer = Tokenizer.from_folder(run.folder, max_length=run.max_length)
        self.task: Task = make_task(run.problem_type, run.id2label)
        self.columns = _columns(run)
        self.monitor = monitor
        self._watch: Watch | None = None
        self._alone: tuple[Setting, Alone] | None = None
        self._chooser = Chooser(run, read_points(run.folder), runtime.info, batch_size)

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a string, or a tuple, is one text: never a series of texts
        self, texts: str | tuple[str, str], **wishes: Unpack[Wishes]
    ) -> Prediction: ...
    @overload
    def __call__(self, texts: Iterable[Text], **wishes: Unpack[Wishes]) -> list[Prediction]: ...
    def __call__(self, texts: Text | Iterable[Text], **wishes: Unpack[Wishes]) -> Prediction | list[Prediction]:
        """Classify texts. Without options, at the default operating point.

        Args:
            texts: one text, or a list of texts. A pair of texts, where the model reads pairs, is a tuple.
            threshold: the criterion's threshold.
            speedup: layer speed-up to reach: the operating point that ``offramp calibrate --speedup`` made for it, or
                for the next higher one. Where it made none at all, knobs by the trace that training recorded on dev,
                with a warning; where all that it made are for less, a refusal.
            max_layers: leave after so many layers at the latest.
            full_depth: no early exit.
            knobs: any knobs of the criterion, by name.
            max_risk: an operating point that ``offramp calibrate --max-risk`` made with a promise of at most so much,
                for these weights on this runtime and dtype: that of the largest such risk, and among equals, as of
                several criteria, the one made last. (Not the fastest: who picks by what was measured picks the
                luckiest, and keeps no promise. For the same reason points of ``--speedup`` and ``--max-drop`` do not
                count.) In float32 a promise from another runtime is taken, with a warning.
            risk: which risk that is about (``disagreement``, ``error``, ...), where there are promises of several.
            confidence: that the promise has at least; of an expected risk there is none, and it is not asked for.

        Returns:
            A prediction, or a list of them in the order of the texts.

        Raises:
            DataError: a text is not a string or a pair of strings, or has no token at all (an empty text, where the
                tokenizer adds no special tokens).
            KnobError: options that contradict each other or the criterion, or that nothing was calibrated for.
        """
        setting = self.setting(**wishes)
        if not isinstance(texts, Iterable) or isinstance(texts, Mapping | bytes):
            raise DataError(f"give a text or a list of texts, not {type(texts).__name__}")
        if isinstance(texts, str | tuple):
            return self._one(cast("Text", texts), setting)
        return list(self.stream(texts, setting))

    def setting(self, **wishes: Unpack[Wishes]) -> Setting:
        """What the options of a call mean for this model, to be given to ``stream``: see ``__call__``."""
        return self._chooser.setting(**wishes)

    @property
    def points(self) -> Sequence[OperatingPoint]:
        """Operating points that a call may mean, the default first."""
        return self._chooser.points

    @points.setter
    def points(self, points: Sequence[OperatingPoint]) -> None:
        self._chooser.points = points

    @property
    def default_point(self) -> OperatingPoint:
        """The operating point used where nothing is asked for.

        Raises:
            RunError: the run has none.
        """
        return self._chooser.default_point

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
                for encoded in self._encode(part, partial(_numbered, number + 1)):
                    truncated[number] = encoded.truncated
                    cut += encoded.truncated
                    yield Unit(number, encoded)
                    number += 1

        if self.monitor is None:
            done = self.answers(units(), setting, chunk=chunk)
            answers: Iterator[tuple[int, Prediction]] = ((finished.id, self.read(finished)) for finished in done)
        else:
            watch = self.watch(self.monitor, setting)
            engine = self.engine(replace(setting, criterion=watch.criterion))
            answers = watch.stream(engine, units(), chunk=min(chunk, _WATCHED * self.batch_size))
        for text, prediction in answers:
            yield replace(prediction, truncated=True) if truncated.pop(text) else prediction
        self._say_what_was_cut(cut, number)

    def _one(self, text: Text, setting: Setting) -> Prediction:
        """A text that comes by itself."""
        if self.monitor is not None:
            [prediction] = self.stream([text], setting)
            return prediction
        [encoded] = self._encode([text])
        self._say_what_was_cut(int(encoded.truncated), 1)
        return self.read(self.alone(setting).answer(Unit(0, encoded)), truncated=encoded.truncated)

    def answers(self, units: Iterable[Unit], setting: Setting, *, chunk: int = 1024) -> Iterator[Finished]:
        """Answer encoded texts, in their order.

        Args:
            units: with ids that differ among those on their way.
            setting: for all of them.
            chunk: units among which texts of like length are found.
        """
        if self.batch_size == self.lanes == 1:
            return map(self.alone(setting).answer, units)
        return self.engine(setting).run_in_order(units, setting.knobs, chunk=chunk)

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
            usable = [one for one in self.points if not self._chooser.not_about_this(one)]  # to fall back on
            self._watch = Watch(monitor, point, usable, folder=self.run.folder, info=self.runtime.info, task=self.task)
        if self._watch.point != point:
            raise KnobError(
                f"the monitor watches operating point {self._watch.point.name!r}, and this is {point.name!r}: load the "
                "run again, with a monitor of its own"
            )
        return self._watch

    def alone(self, setting: Setting) -> Alone:
        """What answers texts that come one at a time."""
        last = self._alone
        if last is None or last[0] is not setting:
            self._alone = last = (setting, Alone(self.runtime, setting.criterion, setting.knobs))
        return last[1]

    def engine(self, setting: Setting, *, max_rows: int | None = None) -> Engine:
        """A fresh engine for one setting; ``max_rows`` None: batches of ``batch_size``."""
        return Engine(
            self.runtime,
            setting.criterion,
            pad_token=self.tokenizer.pad_token,
            max_rows=self.batch_size if max_rows is None else max_rows,
            max_tokens=self.batch_tokens,
            lanes=self.lanes,
            cost=self._cost,
        )

    @cached_property
    def _cost(self) -> StageCost | None:
        """Of a stage, measured at first use where the model is not on a CPU; None: as the runtime says."""
        info = self.runtime.info
        if info.cost is not None or info.device == "cpu":
            return None
        tokenizer = self.tokenizer
        return measure_cost(
            self.runtime, pad_token=tokenizer.pad_token, token_types=tokenizer.token_types,
            max_length=tokenizer.max_length,
        )  # fmt: skip

    def encode(self, texts: Sequence[Text], where: Callable[[int], str] | None = None) -> list[Encoded]:
        """Token ids, and a warning where texts are longer than the model reads.

        Args:
            texts: what to encode.
            where: for messages, what the text at a place is called, from 0; None: ``text 1`` and so on.

        Raises:
            DataError: a text is not a string or a pair of strings, or has no token at all.
        """
        encoded = self._encode(texts, where)
        self._say_what_was_cut(sum(item.truncated for item in encoded), len(encoded))
        return encoded

    def _encode(self, texts: Sequence[Text], where: Callable[[int], str] | None = None) -> list[Encoded]:
        for text in texts:
            if not isinstance(text, str) and not (isinstance(text, tuple) and len(text) == 2):
                raise DataError(f"a text must be a string, or a tuple of two for a pair, not {_kind(text)}")
        return self.tokenizer.encode(texts, where)

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


def _numbered(first: int, place: int) -> str:
    return f"text {first + place}"


def _kind(text: object) -> str:
    return f"a tuple of {len(text)}" if isinstance(text, tuple) else type(text).__name__


def _columns(run: Run) -> Columns | None:
    """The columns that training read."""
    text = run.section.get("text_columns")
    if not isinstance(text, list) or len(text) not in (1, 2):
        return None  # a run of an offramp that did not keep them
    return Columns(cast("tuple[str] | tuple[str, str]", tuple(map(str, text))), run.section.get("label_column"))
