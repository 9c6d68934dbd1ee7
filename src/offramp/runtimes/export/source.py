"""A run opened for export, and what every export does with it: describe itself, check itself, take its place."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import onnx
import torch
import transformers

import offramp
from offramp.calibration.points import OperatingPoint, read_points
from offramp.criteria import Criterion, Scored, make
from offramp.engine.costs import measure_cost
from offramp.errors import KnobError, UnsupportedError
from offramp.inputs.tokens import Text, Tokenizer
from offramp.model.modeling import load_early_exit
from offramp.run import Run, left_behind, weights_hash
from offramp.runtimes.base import Runtime, RuntimeInfo
from offramp.runtimes.export.check import Reading, agreement
from offramp.runtimes.export.graph import OPSET, Form, attention_as, can_mark, to_graph
from offramp.runtimes.export.merge import chosen_exits, useful_exits
from offramp.runtimes.export.sentences import SENTENCES
from offramp.runtimes.export.stages import Plan, plan_stages, sample, scorable
from offramp.runtimes.manifest import FILE, Graph, Manifest, StageEntry
from offramp.runtimes.torch import TorchRuntime
from offramp.traces.files import write_atomically
from offramp.traces.store import load_trace
from offramp.traces.trace import Trace

__all__ = [
    "Exits", "Source", "built_in_texts", "checked", "described", "graphs_of", "keep_whole", "open_source", "placed",
]  # fmt: skip

logger = logging.getLogger(__name__)
Made = TypeVar("Made")

Exits = Literal["useful", "all"] | Sequence[int]
"""Which exits stay: those worth their cost at the default operating point, all, or those after some layers."""


@dataclass(frozen=True)
class Source:
    """A run, opened for export."""

    run: Run
    model: Any
    tokenizer: Tokenizer
    points: Sequence[OperatingPoint]
    live: Sequence[int]
    plans: Sequence[Plan]
    reading: Reading
    given_texts: bool

    @property
    def info(self) -> RuntimeInfo:
        """As torch declares the model, every exit."""
        return TorchRuntime(self.model).info

    def torch_trace(self) -> Trace:
        """What torch says of the texts that the export is checked on."""
        return self.reading.trace(TorchRuntime(self.model), 32)

    def warn_of_built_in_texts(self) -> None:
        """Say so where ranges of int8 are about to be measured on texts that are nobody's."""
        if not self.given_texts:
            logger.warning(
                "ranges of static int8 are measured on built-in sentences: give --data, texts like those served"
            )


def graphs_of(source: Source, form: Form, finish: Callable[[onnx.ModelProto], Made]) -> dict[str, Made]:
    """Name of each graph (``stage-0``, and ``exit-0`` where exits stand apart) -> the graph, in float32.

    Args:
        source: the run.
        form: of attention, where the model's knows nothing but lengths; of others it stays plain.
        finish: makes of a traced graph what a runtime loads.
    """
    made: dict[str, Made] = {}
    with attention_as(source.model, form if can_mark(source.model) else "plain"):
        for place, plan in enumerate(source.plans):
            before = source.plans[:place]
            for name, part in (("stage", plan.layers), ("exit", plan.exit)):
                if part is not None:
                    made[f"{name}-{place}"] = finish(to_graph(part, sample(part, source.model, before)))
    return made


def built_in_texts(pairs: bool) -> list[Text]:
    """The sentences that come with offramp; two by two, where the model reads pairs."""
    if not pairs:
        return list(SENTENCES)
    return list(zip(SENTENCES, SENTENCES[1:] + SENTENCES[:1], strict=True))


def open_source(folder: str | Path, exits: Exits, texts: Sequence[Text] | None, *, scores: bool = True) -> Source:
    """Open a run for export.

    Args:
        folder: a run folder.
        exits: which exits stay.
        texts: to check with, and to measure ranges on; None: sentences that come with offramp.
        scores: early exits give the scores of the operating points' criteria, and of the plain ones.

    Raises:
        RunError: the folder is no run, or damaged.
        KnobError: exits that the model does not have or that its operating point needs.
        DataError: no texts.
    """
    folder = Path(folder)
    run = Run.open(folder)
    model = load_early_exit(folder)
    tokenizer = Tokenizer.from_folder(folder, max_length=run.max_length)
    points = read_points(folder)
    extras = model.offramp.extras()
    live = _live(run, model, points, exits)
    rules = _scores(points, run, extras) if scores else []
    plans = plan_stages(model, live, token_types=tokenizer.token_types, scores=rules)
    columns = run.section.get("text_columns")
    pairs = isinstance(columns, list) and len(columns) == 2
    chosen = built_in_texts(pairs) if texts is None else texts
    criterion = make(points[0].criterion, **points[0].settings) if points else None
    reading = Reading(
        texts=tokenizer.encode(chosen),
        pad_token=tokenizer.pad_token,
        id2label=run.id2label or {0: "value"},
        criterion=criterion,
        knobs=points[0].knobs if points else None,
    )
    return Source(run, model, tokenizer, points, live, plans, reading, texts is not None)


def _scores(points: Sequence[OperatingPoint], run: Run, extras: Mapping[str, int]) -> list[Scored]:
    """Criteria whose score goes into the graphs: the operating points' own, and the plain ones."""
    found: list[Criterion] = [make(point.criterion, **point.settings) for point in points]
    if run.problem_type != "regression":
        found += [make(name, problem_type=run.problem_type) for name in ("entropy", "confidence")]
    if "distances" in extras and run.problem_type == "single_label_classification":
        found.append(make("dr"))
    kept = [rule for rule in dict.fromkeys(found) if scorable(rule, extras)]
    return [rule for rule in kept if isinstance(rule, Scored)]


def _live(run: Run, model: Any, points: Sequence[OperatingPoint], exits: Exits) -> list[int]:
    """Indices of the exits that stay."""
    everyone = list(range(len(model.stages)))
    if exits == "all":
        return everyone
    rule = make(points[0].criterion, **points[0].settings) if points else None
    remembers = any(head.remembers for head in model.offramp.early)
    fixed = remembers or bool(model.offramp.members) or (rule is not None and rule.by_exit)
    if exits != "useful":
        chosen = chosen_exits([stage.last_layer for stage in model.stages], list(exits))
        if fixed and chosen != everyone:
            why = "its exits remember" if remembers else "its models answer one after another"
            if rule is not None and rule.by_exit:
                why = f"its operating point's criterion, {rule.name!r}, goes by the exits passed"
            raise KnobError(f"no exit of this run can be left out, since {why}: leave --exits out")
        return chosen
    trace = run.folder / "traces" / "dev"
    if fixed or rule is None or not trace.with_suffix(".safetensors").is_file():
        return everyone
    recorded = load_trace(trace)
    if recorded.num_exits != len(everyone):  # a trace of an export that has fewer
        return everyone
    return useful_exits(recorded, rule, points[0].knobs)


def described(
    source: Source,
    graphs: Mapping[str, Graph],
    *,
    runtime: str,
    quantisation: str | None,
    batch_invariant: bool,
    versions: Mapping[str, str],
    length_step: int = 1,
) -> Manifest:
    """A manifest that says nothing of checks yet.

    Args:
        source: the run.
        graphs: ``stage-0``, ..., and ``exit-0``, ... where exits stand apart -> the graph's files.
        runtime: that loads them.
        quantisation: how int8 was made; None: float32.
        batch_invariant: as far as is known before the checks.
        versions: of what made them, besides torch and offramp.
        length_step: see ``Manifest``.
    """
    info = source.info
    stages = tuple(
        StageEntry(
            first_layer=plan.stage.first_layer,
            last_layer=plan.stage.last_layer,
            layers=plan.stage.layers,
            starts_from=plan.stage.starts_from,
            layers_graph=graphs[f"stage-{place}"],
            exit_graph=graphs.get(f"exit-{place}"),
        )
        for place, plan in enumerate(source.plans)
    )
    own = {"offramp": offramp.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return Manifest(
        runtime=runtime,
        dtype="float32" if quantisation is None else "int8",
        weights=weights_hash(source.run.folder),
        stages=stages,
        problem_type=info.problem_type,
        num_outputs=info.num_outputs,
        batch_invariant=batch_invariant,
        quantisation=quantisation,
        extras=_extras(stages, info),
        remembers=info.remembers,
        full_layers=info.full_layers,
        left_out=tuple(stage.layers for stage in info.stages if stage.index not in source.live),
        tokenizer={
            "max_length": source.tokenizer.max_length,
            "pad_token": source.tokenizer.pad_token,
            "token_types": source.tokenizer.token_types,
        },
        family=source.model.config.model_type,
        opset=OPSET,
        fused=can_mark(source.model),
        length_step=length_step,
        versions=own | dict(versions),
    )


def _extras(stages: Sequence[StageEntry], info: RuntimeInfo) -> dict[str, int]:
    """Extras of early exits -> their width: the model's own, and the scores."""
    found = dict(info.extras)
    for stage in stages[:-1]:
        for name in (stage.exit_graph or stage.layers_graph).outputs:
            if name.startswith("extras."):
                found.setdefault(name.removeprefix("extras."), 0)
    return found


def checked(
    folder: Path,
    source: Source,
    made: Manifest,
    errors: Sequence[float],
    runtime: Runtime,
    more: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write the manifest with what was measured; an export that says more of itself than was measured is set right.

    Args:
        folder: of the graphs.
        source: the run.
        made: the manifest so far.
        errors: of the float32 stages, against torch.
        runtime: of the graphs.
        more: further measurements.

    Raises:
        UnsupportedError: float32 graphs whose answers depend on the batch size.
    """
    said = agreement(source.reading, source.torch_trace(), source.live, runtime)
    alone = said["batch_1"]
    moved = min([alone.get("exits", 1.0), *alone.get("labels", ())]) < 1.0
    check = {
        "texts": len(source.reading.texts),
        "texts_given": source.given_texts,
        "float32_errors": list(errors),
        **said,
        **(more or {}),
    }
    cost = measure_cost(
        runtime, pad_token=source.tokenizer.pad_token, token_types=source.tokenizer.token_types,
        max_length=source.tokenizer.max_length,
    )  # fmt: skip
    manifest = replace(made, batch_invariant=made.batch_invariant and not moved, cost=cost, check=check)
    if made.quantisation is None and not manifest.batch_invariant:
        raise UnsupportedError("float32 graphs answer otherwise at another batch size: serve this run with torch")
    write_atomically(folder / FILE, manifest.to_json().encode())
    return manifest


@contextmanager
def placed(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the target's place when the block ends well, and is removed when it does not.

    What a killed process left is removed; where it had only moved the target aside, that is put back first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = target.with_name(f".{target.name}")
    aside = left_behind(hidden, "old")
    if len(aside) == 1 and not target.exists():
        os.rename(aside[0], target)
    staging, old = (hidden.with_name(f"{hidden.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    for left in (staging, old, *left_behind(hidden, "new"), *left_behind(hidden, "old")):
        shutil.rmtree(left, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        if target.exists():
            os.rename(target, old)
        os.rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if old.exists() and not target.exists():
            os.rename(old, target)
        shutil.rmtree(old, ignore_errors=True)
        with suppress(OSError):  # the folder of all exports, where this would have been the first
            target.parent.rmdir()


def keep_whole(staging: Path, kept: Path) -> None:
    """Of the folders in a staging folder, one's files stay, in its place; the others go."""
    for path in kept.iterdir():
        os.replace(path, staging / path.name)
    for path in staging.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
