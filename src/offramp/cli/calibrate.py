"""``offramp calibrate``: an operating point with a promise, from a trace."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli import app
from offramp.cli.common import (
    BatchSize,
    Columns,
    Device,
    Json,
    LabelColumn,
    RunFolder,
    RuntimeName,
    console,
    parse_settings,
    print_json,
    split_columns,
)  # fmt: skip
from offramp.errors import DataError, KnobError, RunError
from offramp.run import Run, check_writable, weights_hash

if TYPE_CHECKING:
    from offramp.calibration.points import OperatingPoint
    from offramp.criteria import Criterion
    from offramp.pipeline import Classifier
    from offramp.traces.trace import Trace

logger = logging.getLogger(__name__)


@app.command(short_help="An operating point with a promise: so much risk, so sure.")
def calibrate(
    run: RunFolder,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="File, folder (its dev part) or hub name; the model never saw it."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A trace that `offramp record` wrote, instead of --data.")
    ] = None,
    max_risk: Annotated[
        float | None, typer.Option(metavar="X", help="Promise at most this risk, such as 0.01; be as fast as can be.")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(metavar="X", help="Reach this layer speed-up; promise what that allows.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="X", help="Lose at most so many points of the metric (no guarantee); labels needed."),
    ] = None,
    confidence: Annotated[float, typer.Option(metavar="X", help="That the promise holds.")] = 0.95,
    risk: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="disagreement with the full model (no labels), error (labels), or module:function, a loss per text.",
        ),
    ] = "disagreement",
    expected: Annotated[
        bool, typer.Option("--expected", help="Promise the expected risk instead (conformal risk control).")
    ] = False,
    criterion: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who leaves; by default as the run's default point.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=X", help="A setting of the criterion, not to be tuned; may be repeated."),
    ] = None,
    cap_depth: Annotated[
        bool,
        typer.Option(
            "--cap-depth",
            help="Choose the last layer that anybody reaches, too: faster where deep layers add little.",
        ),
    ] = False,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="accuracy, f1, matthews, ...; by default the task's main one.")
    ] = None,
    tuning_share: Annotated[
        float, typer.Option(metavar="X", help="Of the texts, for tuning; the others make the promise.")
    ] = 0.4,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the split.", min=0)] = 0,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the operating point.")] = None,
    default: Annotated[
        bool, typer.Option("--default", help="Make it the point that is used where nothing is asked for.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Go on all the same: on rows of training, another model's trace, labels that do not fit.",
        ),
    ] = False,
    text_columns: Columns = None,
    label_column: LabelColumn = None,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Read labels where there are any, or leave them alone.")
    ] = True,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="float32, bfloat16 or float16; of a trace: what it must be.")
    ] = None,
    runtime: RuntimeName = None,
    as_json: Json = False,
) -> None:
    """Choose an operating point by risk, speed or score, and say what can be promised of it."""
    from offramp.calibration.points import read_points
    from offramp.traces.store import save_trace

    wishes = {"max_risk": max_risk, "speedup": speedup, "max_drop": max_drop}
    if (data is None) == (trace is None):
        raise KnobError("give --data to record and calibrate on, or --trace for one that is recorded")
    need_labels = max_drop is not None or risk == "error"
    reading = {
        "--label_column": label_column is not None, "--metric": metric is not None, "--risk error": risk == "error",
        "--max-drop": max_drop is not None,
    }  # fmt: skip
    if not labels and any(reading.values()):
        other = next(name for name, given in reading.items() if given)
        raise KnobError(f"--no-labels and {other} contradict each other: give one")
    opened = Run.open(run)
    for folder in (run, run / "traces"):
        check_writable(folder)
    _check_wishes(wishes, confidence=confidence, expected=expected, risk=risk, problem_type=opened.problem_type)
    loss = _loss(risk)
    points = read_points(opened.folder)
    rule, fixed = _criterion(opened, points, criterion, parse_settings(settings))
    if trace is not None:
        recorded, forced = _from_trace(opened, trace, runtime=runtime, dtype=dtype, force=force)
        told = trace.stem
    else:
        from offramp.cli.recording import check_unseen, record_data, trace_path

        def check(classifier: Classifier, texts: int) -> None:
            more = {"confidence": confidence, "expected": expected, "tuning_share": tuning_share}
            _check_before(classifier, texts, rule, max_risk=max_risk, metric=metric, **more)

        assert data is not None
        recorded, _ = record_data(
            run, data, text_columns=split_columns(text_columns), label_column=label_column, batch_size=batch_size,
            device=device, dtype=dtype or "float32", runtime=runtime, unseen=not force, need_labels=need_labels,
            read_labels=labels, check=check,
        )  # fmt: skip
        forced = check_unseen(opened, recorded.hashes, force=True) if force else ""
        kept = trace_path(run, data, recorded)
        told = kept.name
        save_trace(recorded, kept)
    if not labels:
        recorded = replace(recorded, labels=None)
    _warn_of_repeats(recorded)
    doubted = _check_labels(recorded, loss, max_drop=max_drop, force=force)
    forced = " and ".join(filter(None, (forced, doubted)))
    more: dict[str, Any] = {
        "confidence": confidence, "risk": loss, "fixed": fixed, "cap_depth": cap_depth,
        "tuning_share": tuning_share, "seed": seed, "metric": metric, "name": name, "chosen_on": told, "forced": forced,
        "batch_invariant": _batch_invariant(opened, recorded),
    }  # fmt: skip
    point = _remembered(_point(recorded, rule, wishes, expected=expected, more=more), recorded, tuning_share, seed)
    point = replace(point, made=1 + max((one.made for one in points), default=0))
    replaced = next((one for one in points if one.name == point.name), None)
    _save(opened, points, point, default=default or not points)
    _show(point, replaced, recorded, as_json)


def _check_wishes(
    wishes: Mapping[str, float | None], *, confidence: float, expected: bool, risk: str, problem_type: str
) -> None:
    """Raise KnobError or UnsupportedError for what no data could bring."""
    from offramp.calibration.losses import check_risk
    from offramp.calibration.promise import CONFIDENCE
    from offramp.calibration.risk import check_promise

    max_risk, speedup, max_drop = (wishes[wish] for wish in ("max_risk", "speedup", "max_drop"))
    if sum(value is not None for value in wishes.values()) != 1:
        raise KnobError("give exactly one of --max-risk, --speedup and --max-drop")
    if expected and max_risk is None:
        raise KnobError("--expected is about a risk that is asked for: give --max-risk with it")
    if expected and confidence != CONFIDENCE:
        raise KnobError("an expected risk is promised without a confidence: give --expected or --confidence")
    check_promise(0.5 if max_risk is None else max_risk, confidence)
    if speedup is not None and not 1 <= speedup < math.inf:
        raise KnobError(f"a layer speed-up is 1 or more, not {speedup:g}")
    if max_drop is not None and not max_drop >= 0:
        raise KnobError(f"a drop is 0 points or more, not {max_drop:g}")
    unpromised = problem_type == "regression" and risk == "disagreement" and max_risk is None
    if ":" not in risk and not unpromised:  # numbers have a speed and a score without a promise
        check_risk(risk, problem_type)


def _check_before(
    classifier: Classifier, texts: int, rule: Criterion, *, max_risk: float | None, metric: str | None, **more: Any
) -> None:
    """Raise for what would come to nothing, before every layer is run for every text."""
    from offramp.calibration.certify import check_enough
    from offramp.cli.recording import check_metric
    from offramp.engine.units import check_fits

    check_enough(texts, max_risk=max_risk, **more)
    check_fits(rule, classifier.runtime.info)
    check_metric(classifier, metric)


def _warn_of_repeats(trace: Trace) -> None:
    from offramp.calibration.certify import repeats

    if distinct := repeats(trace):
        logger.warning(
            "the %d rows are %d distinct texts, and copies count here as if they were texts of their own: what is "
            "promised is too kind; give each text once, unless the texts to come repeat themselves as these do",
            len(trace.lengths), distinct,
        )  # fmt: skip


def _check_labels(trace: Trace, loss: Any, *, max_drop: float | None, force: bool) -> str:
    """Refuse labels that do not mean the model's classes where the point depends on them; elsewhere only warn.

    Returns:
        Why a promise by these labels is worth nothing, where it was forced; else nothing.

    Raises:
        DataError: the labels do not fit.
    """
    from offramp.calibration.certify import doubt_labels
    from offramp.calibration.losses import make_risk

    seen = doubt_labels(trace)
    if not seen:
        return ""
    if max_drop is None and not make_risk(loss, trace).needs_labels:
        logger.warning(
            "%s: do labels mean the model's classes? If not, the scores told here mean nothing: give --no-labels", seen
        )
        return ""
    if force:
        return "with labels that the model's answers do not fit"
    way = "disagreement, which needs none" if max_drop is None else "--max-risk, which needs none"
    raise DataError(
        f"{seen}: these seem to be labels of other classes; look at the label column (--label-column), promise {way} "
        "(--no-labels), or give --force"
    )


def _batch_invariant(run: Run, trace: Trace) -> bool:
    """Whether neighbours changed no answer where a trace was recorded: by the manifest, where that was an export."""
    from offramp.runtimes.manifest import FILE, read_manifest

    folder = run.folder / trace.runtime / trace.dtype
    if trace.dtype in ("bfloat16", "float16"):
        return False
    return read_manifest(folder).batch_invariant if (folder / FILE).is_file() else trace.dtype != "int8"


def _point(
    trace: Trace, rule: Criterion, wishes: Mapping[str, float | None], *, expected: bool, more: Mapping[str, Any]
) -> OperatingPoint:
    from offramp.calibration.certify import certify, choose_measured

    max_risk, speedup, max_drop = (wishes[wish] for wish in ("max_risk", "speedup", "max_drop"))
    if max_risk is not None:
        return certify(trace, rule, max_risk=max_risk, expected=expected, **more)
    if max_drop is not None and trace.labels is None:
        raise DataError("--max-drop is about scores, and there are no labels: give labelled data, or --max-risk")
    return choose_measured(trace, rule, speedup=speedup, max_drop=max_drop, **more)


def _remembered(point: OperatingPoint, trace: Trace, tuning_share: float, seed: int) -> OperatingPoint:
    """The point, with what it did with the texts that did not tune it: a monitor compares with that."""
    from offramp.calibration.certify import halves
    from offramp.calibration.drift import Reference
    from offramp.criteria import make

    proving = halves(trace, share=tuning_share, seed=seed)[1]
    reference = Reference.of(proving, make(point.criterion, **point.settings), point.knobs)
    return replace(point, measured=point.measured | {"reference": reference.to_json()})


def _criterion(
    run: Run, points: Sequence[OperatingPoint], name: str | None, settings: Mapping[str, Any]
) -> tuple[Criterion, frozenset[str]]:
    """The criterion with the settings to start from, and the names of those that stay."""
    from offramp.criteria import make

    start: dict[str, Any] = {"problem_type": run.problem_type}
    if name is None and not points:
        raise RunError(f"{run.folder} has no operating point whose criterion could be taken: give --criterion")
    if name is None or (points and name == points[0].criterion):
        name, start = points[0].criterion, dict(points[0].settings)
    return make(name, **{**start, **settings}), frozenset(settings)


def _loss(risk: str) -> Any:
    from offramp.calibration.losses import import_loss

    return import_loss(risk) if ":" in risk else risk


def _from_trace(run: Run, path: Path, *, runtime: str | None, dtype: str | None, force: bool) -> tuple[Trace, str]:
    """A trace that is of this very model, of the runtime that is asked for, and of rows that were not trained on.

    With ``force`` it may be of another model (and then does not say of which), or of such rows; what is forced is told.

    Raises:
        RunError: it is of another model or runtime.
        DataError: its labels or answers are not those of the run, or the model was trained on its rows.
    """
    from offramp.cli.recording import check_unseen
    from offramp.traces.store import load_trace

    trace = load_trace(path)
    if trace.problem_type != run.problem_type or (run.id2label and dict(trace.id2label) != run.id2label):
        raise DataError(
            f"{path} is of {trace.problem_type} with {_names(trace.id2label)}, and {run.folder} of "
            f"{run.problem_type} with {_names(run.id2label)}: give a trace of this run"
        )
    for what, there, wanted in (("runtime", trace.runtime, runtime), ("dtype", trace.dtype, dtype)):
        if wanted not in (None, there):
            raise RunError(f"{path} was recorded on {what} {there}, not {wanted}: record it on what will serve")
    if trace.model != weights_hash(run.folder):
        if trace.model is None and not force:
            raise RunError(f"{path} does not say which weights it was recorded from: record it again, or give --force")
        if not force:
            raise RunError(f"{path} was recorded from other weights than those of {run.folder}: record it again")
        whose = "of weights that nobody knows" if trace.model is None else "of another model"
        return replace(trace, model=None), f"on a trace {whose}"
    return trace, check_unseen(run, trace.hashes, force=force)


def _names(id2label: Mapping[int, str], most: int = 6) -> str:
    names = [id2label[number] for number in sorted(id2label)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _save(run: Run, points: Sequence[OperatingPoint], point: OperatingPoint, *, default: bool) -> None:
    """Into operating_points.json and the model card; one of the same name is replaced."""
    from offramp.calibration.points import write_points
    from offramp.calibration.promise import write_card

    if points and points[0].name == point.name:
        default = True  # it was the default, and stays it
    others = [other for other in points if other.name != point.name]
    listed = [point, *others] if default else [*others, point]
    write_points(run.folder, listed)
    write_card(run.folder, listed)


def _show(point: OperatingPoint, replaced: OperatingPoint | None, trace: Trace, as_json: bool) -> None:
    from offramp.calibration.promise import leaves_by, made_through, summary_sentence

    leaving = {int(layer): count for layer, count in point.measured["exits"].items()}
    said = summary_sentence(leaving, trace.num_layers, point.promise)
    if as_json:
        print_json({"summary": said, "point": asdict(point), "replaced": replaced is not None})
        return
    lines = [
        said,
        "",
        _how(point, trace),
        *_scores(point.measured),
        f"Operating point {point.name!r}: {leaves_by(point)}; {made_through(point)}.",
    ]
    if replaced is not None:
        lines.append(
            f"It replaces the operating point of that name (made on {replaced.chosen_on or '?'}; "
            f"{leaves_by(replaced)}): another --name would have kept both."
        )
    console().print("\n".join(lines))


def _how(point: OperatingPoint, trace: Trace) -> str:
    """On how many texts it was tuned, and promised or measured."""
    promise, texts = point.promise, point.measured["n"]
    if promise is None:
        return (
            f"Tuned on {len(trace.lengths) - texts} texts, measured on {texts} others. Numbers nearly always change a "
            "little, so how often they do is no promise to make: --risk module:function promises a loss of your own."
        )
    return (
        f"Tuned on {promise['n_fit']} texts, promised on {promise['n_promise']} others: {promise['method']}; "
        f"seen there {100 * promise['seen']:.2f} % ({promise['of']})."
    )


def _scores(measured: Mapping[str, Any]) -> list[str]:
    """Score against full depth on the texts of the promise; with its interval, where there is one."""
    from offramp.calibration.promise import drop_interval

    if "metric" not in measured:
        return []
    line = (
        f"{measured['metric']} {100 * measured['score']:.1f} against {100 * measured['full_depth_score']:.1f} at full "
        "depth"
    )
    return [f"{line}; {drop_interval(measured)}." if "drop_interval" in measured else f"{line}."]
