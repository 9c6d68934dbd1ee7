"""``offramp train``: data and an encoder to a run folder."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors import SafetensorError

from offramp.cli import app
from offramp.cli.common import Columns, LabelColumn, console, parse_settings, quiet_transformers, split_columns
from offramp.cli.hub import check_there
from offramp.errors import KnobError, TrainingError, require


@app.command(
    short_help="Data and an encoder in, a run folder out.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Any argument of transformers' Trainer may follow by its own name: --num_train_epochs 8, "
    "--learning_rate 3e-5, --per_device_train_batch_size 16, --seed 1, --gradient_accumulation_steps 2, ...",
)
def train(
    context: typer.Context,
    model: Annotated[str, typer.Option(metavar="MODEL", help="Folder or hub name of an encoder.")],
    data: Annotated[
        str,
        typer.Option(metavar="DATA", help="Folder with train and dev files, one file (split 90/10), or a hub name."),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Run folder to write.")],
    recipe: Annotated[str, typer.Option(metavar="NAME", help="Method: see `offramp recipes`.")] = "de3bert",
    dev: Annotated[str | None, typer.Option(metavar="FILE", help="Dev rows, instead of those of --data.")] = None,
    text_columns: Columns = None,
    label_column: LabelColumn = None,
    problem_type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", help="single_label_classification, multi_label_classification or regression; else inferred."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=X", help="Change the recipe: head.width=64, objective.form=hinge; may be repeated."
        ),
    ] = None,
    exits: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Layers with an exit, such as 2,4,6; by default every layer.")
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="cls, mean, attention or backbone; by default as recipe or encoder has it."),
    ] = None,
    shared_head: Annotated[bool, typer.Option("--shared-head", help="One head for all early exits.")] = False,
    last_exit: Annotated[
        str, typer.Option(metavar="NAME", help="model (its own head, whole) or head (one like the others).")
    ] = "model",
    max_length: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens read of a text; by default the model's limit, at most 512.")
    ] = None,
    max_train_samples: Annotated[
        int | None, typer.Option(metavar="N", help="Train on so many rows, drawn by seed.", min=2)
    ] = None,
    head_learning_rate: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Of the exits and the model's own head, while the encoder learns; by default twenty times its rate.",
        ),
    ] = None,
    exit_epochs: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Epochs that exits learn alone afterwards, the encoder frozen; else as the recipe says. At a rate of "
            "their own, and --max_steps is not about them; 0: none.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    max_drop: Annotated[
        float, typer.Option(metavar="X", help="Points the default operating point may lose on dev.", min=0)
    ] = 0.5,
) -> None:
    """Train an early-exit classifier and write a run folder with a default operating point."""
    require("torch", extra="train")
    require("transformers", extra="train")
    from offramp.training.train import Plan
    from offramp.training.train import train as run_training

    quiet_transformers()
    check_there(model)
    arguments = trainer_arguments(context.args)
    check_names(arguments, context)
    if head_learning_rate is not None:
        arguments["head_learning_rate"] = head_learning_rate
    plan = Plan(
        model=model,
        data=data,
        out=out,
        recipe=recipe,
        dev=dev,
        text_columns=split_columns(text_columns),
        label_column=label_column,
        problem_type=problem_type,  # type: ignore[arg-type]  # load_data refuses what is none
        settings=parse_settings(setting),
        exits=layer_numbers(exits),
        pooling=pooling,  # type: ignore[arg-type]  # ExitSettings refuses what is none
        shared=shared_head,
        last_exit=last_exit,  # type: ignore[arg-type]
        max_length=max_length,
        max_train_samples=max_train_samples,
        arguments=arguments,
        exit_epochs=exit_epochs,
        resume=resume,
        max_drop=max_drop,
    )
    with left_tidy(out):
        run = run_training(plan)
    if run.config:  # only the first of several processes has written it
        from offramp.calibration.points import read_points

        held_out = dev is None and Path(data).is_file()
        _say_done(run.folder, read_points(run.folder)[0], None if held_out else dev or data)


def _say_done(folder: Path, point: Any, data: str | None) -> None:
    """``data``: where dev is; None: it was part of the training file, and only the trace knows which part."""
    measured = point.measured
    console().print(
        f"Saved {folder}.\n"
        f"Default operating point ({point.criterion}): {measured['metric']} {measured['score']:.4f} on dev, full depth "
        f"{measured['full_depth_score']:.4f}, layer speed-up {measured['layer_speedup']:.2f}x.\n"
        f'Next: offramp predict {shlex.quote(str(folder))} "a text"\n'
        f"      offramp compare {shlex.quote(str(folder))} {'--trace' if data is None else '--data'} "
        f"{shlex.quote(str(folder / 'traces' / 'dev') if data is None else data)}"
    )


@contextmanager
def left_tidy(out: Path) -> Iterator[None]:
    """After a failure the work folder stays only where there is something in it to go on from; what to do is said."""
    from offramp.training.lock import what_to_go_on_from

    work = out.parent / f"{out.name}.training"
    try:
        yield
    except BaseException as error:
        begun = what_to_go_on_from(work)
        # plan.json is what makes the folder ours: nobody else's is removed.
        if begun is None and not isinstance(error, TrainingError) and (work / "plan.json").is_file():
            shutil.rmtree(work, ignore_errors=True)
        again = "" if begun is None else f"the same command with --resume goes on from {begun}"
        if isinstance(error, KeyboardInterrupt) and begun is not None:
            raise KeyboardInterrupt(f": {again}") from None
        if _is_failed_write(error):
            reason = str(error).splitlines()[0]
            raise TrainingError(
                f"cannot write to {work} or {out}, is the disk full? ({reason}): make room, then "
                + (again or "train again")
            ) from error
        raise


def _is_failed_write(error: BaseException) -> bool:
    """A full disk where it is no OSError: safetensors has an error of its own, torch.save a RuntimeError."""
    archive = ("PytorchStreamWriter", "inline_container")
    return isinstance(error, SafetensorError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in archive)
    )


def layer_numbers(exits: str | None) -> tuple[int, ...] | None:
    """``2,4,6`` to numbers; None where nothing is given."""
    if exits is None:
        return None
    try:
        return tuple(int(layer) for layer in exits.split(","))
    except ValueError:
        raise KnobError(f"--exits takes layer numbers joined by commas, such as 2,4,6, not {exits!r}") from None


def trainer_arguments(words: list[str]) -> dict[str, Any]:
    """``["--num-train-epochs", "8", "--fp16"]`` to ``{"num_train_epochs": "8", "fp16": True}``."""
    arguments: dict[str, Any] = {}
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise KnobError(f"{word!r} belongs to no option: texts and folders are given with --data and --out")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        arguments[name.replace("-", "_")] = value
    return arguments


def check_names(arguments: dict[str, Any], context: typer.Context) -> None:
    """Complain of a misspelt option of ours; ``make_arguments`` does of a misspelt argument of Trainer's."""
    from offramp.training.arguments import ExitTrainingArguments

    known = {"--" + f.name.replace("_", "-") for f in fields(ExitTrainingArguments)}
    ours = {option for parameter in context.command.params for option in parameter.opts}
    for name in arguments:
        option = "--" + name.replace("_", "-")
        near = get_close_matches(option, known | ours, n=1)
        if option not in known and near and near[0] not in known:
            raise KnobError(f"no option is called --{name}: did you mean {near[0]}?")
