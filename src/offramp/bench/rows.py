"""The rows of ``offramp bench``: which deployments stand against each other, and what each of them serves.

The peers run a plain fine-tune of the same backbone at full depth, each as a careful user would deploy it. Ours run a
trained run: at full depth on every runtime (what the engine costs), without the engine, cut off at one exit, and with
exits at a loss of accuracy that is allowed. How fast to go is chosen on one half of the data, together with texts that
are for choosing only where some are given, and scored on the other (``bench.exit_choice``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.bench.deployments.base import Job, Way, make_ready, open_server
from offramp.bench.exit_choice import Costs, ExitChoice, choose_exits
from offramp.bench.export import VARIANTS, Variant
from offramp.bench.speed import SCENARIOS, ways
from offramp.bench.worker import Failure, Load, in_a_process
from offramp.calibration.points import read_points
from offramp.criteria import Scored, make
from offramp.errors import KnobError, UnsupportedError
from offramp.inputs.tokens import Text, Tokenizer
from offramp.run import Run
from offramp.traces.trace import Trace

__all__ = ["Bench", "Ready", "depth_of", "our_rows", "peer_rows", "peers", "reference_of", "row_names"]

_SEVERAL = 9
"""Timings whose median is a cost."""

Say = Callable[[str], None]
Ready = tuple[Job, Mapping[str, Any] | Failure]
"""A row, and what came of preparing it."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What to measure."""

    run: Path
    """Run folder, ours."""
    plain: Path
    """Folder of the plain fine-tune that the peers serve."""
    texts: Sequence[Text]
    labels: npt.NDArray[np.int64]
    more_texts: Sequence[Text] = ()
    """Texts on which is chosen how fast to go, beside halves of the others; nothing is scored or timed on them."""
    more_labels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    work: Path
    """Where graphs are written; what is there is made anew."""
    criterion: str | None = None
    """By which rows with exits leave; None: the run's own, or entropy where that is none that holds one number of each
    exit against a threshold."""
    max_lost: Sequence[float] = (0.5, 1.0)
    """Points that rows with exits may lose."""
    rows: Sequence[str] = ()
    """Only rows whose name begins with one of these; empty: all."""
    scenarios: Sequence[str] = SCENARIOS
    rounds: int = 7
    threads: int = 1
    max_rows: int = 32
    single: int = 200
    """Texts of SingleStream, spread over the data."""
    splits: int = 50
    seed: int = 0

    def wants(self, name: str) -> bool:
        """Whether a row takes part."""
        return not self.rows or any(name.startswith(prefix) for prefix in self.rows)

    @property
    def rule(self) -> Scored:
        """The criterion.

        Raises:
            KnobError: it is none of that kind.
        """
        if self.criterion is not None:
            rule = make(self.criterion)
            if not isinstance(rule, Scored) or rule.by_exit:
                raise KnobError(
                    f"bench takes criteria with a threshold for one number, such as entropy, not {rule.name}"
                )
            return rule
        points = read_points(self.run)
        own = make(points[0].criterion, **points[0].settings) if points else None
        if isinstance(own, Scored) and not own.by_exit:
            return own
        entropy = make("entropy")
        assert isinstance(entropy, Scored)
        return entropy

    @property
    def every_text(self) -> Sequence[Text]:
        """Texts that are scored, then those that are chosen on only."""
        return [*self.texts, *self.more_texts]

    @property
    def every_label(self) -> npt.NDArray[np.int64]:
        """Of ``every_text``."""
        return np.concatenate([self.labels, self.more_labels])

    @property
    def load(self) -> Load:
        """What every row is given to do."""
        run = Run.open(self.run)
        every = max(1, len(self.texts) // self.single)
        return Load(
            self.texts, self.texts[::every][: self.single], run.folder, run.max_length, self.max_rows, self.threads
        )


def peers(pad_token: int) -> list[Job]:
    """Full-depth deployments to beat, each as its documentation has it."""

    def job(name: str, label: str, module: str, needs: Sequence[str], **settings: Any) -> Job:
        given = {**settings, "pad_token": pad_token}
        lanes = module != "transformers"  # torch's threads are those of its process
        return Job(name, label, module, Path(), Path(), given, needs=tuple(needs), lanes=lanes)

    torch, onnx = ("torch", "transformers"), ("torch", "transformers", "onnx", "onnxruntime")
    vino = ("torch", "transformers", "openvino")
    return [
        job("transformers-pipeline", "transformers pipeline fp32", "transformers", torch, pipeline=True),
        job("transformers-float32", "transformers fp32", "transformers", torch, dtype="float32"),
        job("transformers-bfloat16", "transformers bf16", "transformers", torch, dtype="bfloat16"),
        job("torch-compile", "torch.compile fp32", "transformers", torch, dtype="float32", compile=True),
        job("onnxruntime-float32", "ONNX Runtime fp32", "onnxruntime", onnx, dtype="float32"),
        job("onnxruntime-int8", "ONNX Runtime int8", "onnxruntime", onnx, dtype="int8"),
        job("openvino-float32", "OpenVINO fp32", "openvino", vino, dtype="float32"),
        job("openvino-bfloat16", "OpenVINO bf16", "openvino", vino, dtype="bfloat16"),
        job("openvino-int8", "OpenVINO int8", "openvino", (*vino, "nncf"), dtype="int8"),
        job("ctranslate2-int8", "CTranslate2 int8", "ctranslate2", ("torch", "transformers", "ctranslate2")),
    ]


def row_names(run: Path, max_lost: Sequence[float], scenarios: Sequence[str]) -> list[str]:
    """Names of all rows that can be made here."""
    found = [job.name for job in peers(0)]
    for variant in _variants():
        stem = f"offramp-{variant.name}"
        found.append(f"{stem}-full")
        if variant.runtime != "torch":
            found.append(f"{stem}-whole")
        if variant.dtype == "int8":
            found += [f"{stem}-exit-{layer}" for layer in _early_layers(run)]
        found += [f"{stem}-{_lost_name(lost, scenario)}" for lost in max_lost for scenario in scenarios]
    return found


def _lost_name(lost: float, scenario: str) -> str:
    return f"lost-{lost:g}-{scenario.lower()}"


def depth_of(run: Run) -> int:
    """Layers of a run's encoder."""
    return int(run.config.get("num_hidden_layers") or run.config["n_layers"])  # DistilBERT has a word of its own


def _early_layers(folder: Path) -> Sequence[int]:
    """Layers after which a run has early exits."""
    run = Run.open(folder)
    depth = depth_of(run)
    given = run.section["layers"]
    return [layer for layer in (range(1, depth) if given is None else given) if layer < depth]


def peer_rows(bench: Bench, load: Load, say: Say) -> list[Ready]:
    """Rows of the peers, ready."""
    found = []
    for job in peers(_tokenizer(load).pad_token):
        if bench.wants(job.name):
            say(f"preparing {job.label}")
            job = replace(job, model=bench.plain, folder=bench.work / job.name, scenarios=tuple(bench.scenarios))
            found.append((job, _made(job, load)))
    return found


def _made(job: Job, load: Load) -> Mapping[str, Any] | Failure:
    """Make a row ready in a process of its own; what is missing is said in the row."""
    missing = [name for name in job.needs if importlib.util.find_spec(name) is None]
    if missing:
        return Failure(f"{missing[0]} is not installed: pip install 'offramp[bench]'", "")
    made: Mapping[str, Any] | Failure = in_a_process(_make, job, load, threads=load.threads)
    return made


def _make(job: Job, load: Load) -> Mapping[str, Any]:
    return make_ready(job, _tokenizer(load).encode(load.sample))


def _tokenizer(load: Load) -> Tokenizer:
    return Tokenizer.from_folder(load.tokenizer, max_length=load.max_length)


def reference_of(bench: Bench, load: Load) -> tuple[npt.NDArray[np.bool_], str]:
    """[N] whether the better of the two models is right at full depth in fp32, and which one it is.

    Of ``bench.every_text``; the better one is that which is better on those scored.
    """
    right = {}
    models = {"the plain fine-tune": bench.plain, "our full depth": bench.run}
    if bench.plain == bench.run:
        del models["the plain fine-tune"]
    for name, folder in models.items():
        settings = {"dtype": "float32", "pad_token": _tokenizer(load).pad_token}
        answers = in_a_process(
            _answers, Job(name, name, "transformers", folder, bench.work, settings), load, bench.every_text,
            threads=load.threads,
        )  # fmt: skip
        if isinstance(answers, Failure):
            raise UnsupportedError(f"{folder} cannot be served by transformers: {answers.sentence}")
        right[name] = answers.argmax(axis=-1) == bench.every_label
    best = max(right, key=lambda name: float(right[name][: len(bench.texts)].mean()))
    return right[best], best


def _answers(job: Job, load: Load, texts: Sequence[Text]) -> Any:
    return open_server(job, Way(load.threads)).answer(_tokenizer(load).encode(texts), load.max_rows)


def _variants() -> list[Variant]:
    """Of ours, those that can be made here."""
    return [variant for variant in VARIANTS if variant.there]


def our_rows(bench: Bench, load: Load, reference: npt.NDArray[np.bool_], say: Say) -> list[Ready]:
    """Rows of ours, ready."""
    found = []
    for variant in _variants():
        found += _Ours(bench, load, variant, say).rows(reference)
    return found


class _Ours:
    """Rows of ours on one runtime with one dtype."""

    def __init__(self, bench: Bench, load: Load, variant: Variant, say: Say) -> None:
        self._bench, self._load, self._variant, self._say = bench, load, variant, say
        self.name, self.label = f"offramp-{variant.name}", f"offramp {variant.label}"
        self._ready: dict[Path, Mapping[str, Any] | Failure] = {}

    def rows(self, reference: npt.NDArray[np.bool_]) -> list[Ready]:
        """Jobs, each with what came of preparing it."""
        found = []
        full = self._job("full", "full depth", "full", [])
        if self._bench.wants(full.name):
            found.append((full, self._make(full)))
        whole = self._job("whole", "whole graph, no engine", "whole", [], bare="whole")
        if self._bench.wants(whole.name) and self._variant.runtime != "torch":
            found.append((whole, self._make(whole)))
        if self._variant.dtype == "int8":
            found += self._shallow()
        return found + self._with_exits(reference)

    def _shallow(self) -> list[Ready]:
        """Static exits: the graph ends there."""
        jobs = [
            self._job(f"exit-{k}", f"exit {k} only", "shallow", [k], bare="first")
            for k in _early_layers(self._bench.run)
        ]
        return [(job, self._make(job)) for job in jobs if self._bench.wants(job.name)]

    def _with_exits(self, reference: npt.NDArray[np.bool_]) -> list[Ready]:
        wanted = [
            (lost, scenario) for lost in self._bench.max_lost for scenario in self._bench.scenarios
            if self._bench.wants(f"{self.name}-{_lost_name(lost, scenario)}")
        ]  # fmt: skip
        if not wanted:
            return []
        every = self._job("all", "every exit", "exits", "all")
        made = self._make(every)
        survey = made if isinstance(made, Failure) else self._surveyed(every)
        return [self._row(lost, scenario, survey, reference) for lost, scenario in wanted]

    def _surveyed(self, every: Job) -> Any:
        full = self._job("full", "full depth", "full", [])
        made = self._make(full)
        if isinstance(made, Failure):
            return made
        self._say(f"recording and timing {every.label}")
        texts, labels = self._bench.every_text, self._bench.every_label
        return in_a_process(_survey, every, full, self._load, texts, labels, threads=self._load.threads)

    def _row(self, lost: float, scenario: str, survey: Any, reference: npt.NDArray[np.bool_]) -> Ready:
        """A row with exits: choose them, then make it."""
        name, label = _lost_name(lost, scenario), f"at most {lost:g} points lost"
        if isinstance(survey, Failure):
            return self._job(name, label, "exits", [], scenarios=(scenario,)), survey
        trace, costs = survey[scenario]
        choice = choose_exits(
            trace, reference, [self._bench.rule], costs, max_lost=lost, splits=self._bench.splits,
            seed=self._bench.seed, scored=len(self._bench.texts),
        )  # fmt: skip
        exits = list(choice.layers)
        job = self._job(name, label, "exits", exits, scenarios=(scenario,), point=choice.point)
        made = self._make(job)
        if isinstance(made, Failure):
            return job, made
        return job, {**made, **_chosen(choice, costs, lost)}

    def _job(
        self, name: str, label: str, group: Any, exits: Any, *, scenarios: Sequence[str] | None = None, **settings: Any
    ) -> Job:
        slug = "all" if exits == "all" else "-".join(map(str, exits)) or "none"
        rule = self._bench.rule
        given = {
            "variant": self._variant.name,
            "exits": exits,
            "rule": {"criterion": rule.name, "settings": asdict(rule)},
            "texts": self._load.sample,
            **settings,
        }
        return Job(
            name=f"{self.name}-{name}",
            label=f"{self.label}, {label}",
            module="ours",
            model=self._bench.run,
            folder=self._bench.work / f"{self.name}-exits-{slug}",
            settings=given,
            group=group,
            family=self.name,
            lanes=self._variant.runtime != "torch",
            scenarios=tuple(scenarios or self._bench.scenarios),
        )

    def _make(self, job: Job) -> Mapping[str, Any] | Failure:
        """One export for all rows that serve the same exits."""
        if job.folder not in self._ready:
            self._say(f"preparing {job.label}")
            self._ready[job.folder] = _made(job, self._load)
        return self._ready[job.folder]


def _chosen(choice: ExitChoice, costs: Costs, lost: float) -> dict[str, Any]:
    return {
        "max_lost": lost,
        "exits": list(choice.layers),
        "point": None if choice.point is None else dict(choice.point),
        "held_out": dict(choice.held_out),
        "costs": {"layer_ms": 1000 * costs.layer, "exit_ms": 1000 * costs.exit},
    }


def _survey(
    every: Job, full: Job, load: Load, texts: Sequence[Text], labels: npt.NDArray[np.int64]
) -> dict[str, tuple[Trace, Costs]]:
    """Of each scenario: what every exit says of texts, and what layers and exits cost with those that are timed."""
    from offramp.bench.costs import measure_costs
    from offramp.bench.deployments.ours import open_run, rule_of, variant_of
    from offramp.engine.record import record

    variant, rule = variant_of(every.settings), rule_of(every.settings)
    classifier = open_run(every.folder, variant, Way(load.threads))
    encoded = _tokenizer(load).encode(texts)
    traces: dict[int, Trace] = {}
    found = {}
    for scenario, rows in zip(SCENARIOS, (load.max_rows, 1), strict=True):
        batch = load.max_rows if classifier.runtime.info.batch_invariant else rows
        if batch not in traces:
            traces[batch] = record(
                classifier.runtime, encoded, pad_token=classifier.tokenizer.pad_token,
                id2label=classifier.run.id2label, labels=labels, batch_size=batch,
            )  # fmt: skip
        each = []
        for way in ways(every, scenario, load.threads):
            asked, whole = (open_run(job.folder, variant, way) for job in (every, full))
            each.append(measure_costs(asked, whole, rule, encoded[: len(load.texts)], max_rows=rows, repeats=_SEVERAL))
        found[scenario] = traces[batch], min(each, key=lambda one: one.layer)  # the way it will most likely be served
    return found
