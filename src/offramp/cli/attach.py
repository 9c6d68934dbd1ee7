"""``offramp attach``: exits for a classifier that is trained already."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from offramp.cli import app
from offramp.cli.common import Columns, LabelColumn, console, parse_settings, quiet_transformers, split_columns
from offramp.cli.hub import check_there
from offramp.cli.train import check_names, layer_numbers, left_tidy, trainer_arguments
from offramp.errors import RunError, require

logger = logging.getLogger(__name__)


@app.command(
    short_help="Exits for a classifier you have already.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Any argument of transformers' Trainer may follow by its own name: --num_train_epochs 40, --seed 1, ...",
)
def attach(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Folder or hub name of a fine-tuned classifier or PEFT adapter."),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="Folder with train and dev files, a file (split 90/10), or a hub name; with labels or without.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Run folder to write.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="de3bert, deebert, fastbert, shallow_deep; for numbers joint or pabee; else by task."
        ),
    ] = None,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Afterwards train everything together: answers change, exits get better.")
    ] = False,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Learn from labels, or from the model's own answers.")
    ] = True,
    dev: Annotated[str | None, typer.Option(metavar="FILE", help="Dev rows, instead of those of --data.")] = None,
    text_columns: Columns = None,
    label_column: LabelColumn = None,
    problem_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="As the model was trained, where its config does not say."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=X", help="Change the recipe: head.width=64; may be repeated."),
    ] = None,
    exits: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Layers with an exit, such as 2,4,6; by default every layer.")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(metavar="NAME", help="What exits read: attention (default), mean, cls or backbone.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens read of a text; by default the model's limit, at most 512.")
    ] = None,
    max_train_samples: Annotated[
        int | None, typer.Option(metavar="N", help="Learn from so many rows, drawn by seed.", min=2)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was broken off.")] = False,
    max_drop: Annotated[
        float, typer.Option(metavar="X", help="Points the default operating point may lose on dev.", min=0)
    ] = 0.5,
) -> None:
    """Give a fine-tuned classifier exits; at full depth it answers as before, to the bit."""
    require("torch", extra="train")
    require("transformers", extra="train")
    check_there(model)
    from offramp.training.attach import AttachPlan
    from offramp.training.attach import attach as attach_exits

    quiet_transformers()
    arguments = trainer_arguments(context.args)
    check_names(arguments, context)
    plan = AttachPlan(
        model=model,
        data=data,
        out=out,
        recipe=recipe or "",
        dev=dev,
        text_columns=split_columns(text_columns),
        label_column=label_column,
        problem_type=problem_type,  # type: ignore[arg-type]  # make_task refuses what is none
        settings=parse_settings(setting),
        exits=layer_numbers(exits),
        pooling=pooling,  # type: ignore[arg-type]  # ExitSettings refuses what is none
        max_length=max_length,
        max_train_samples=max_train_samples,
        arguments=arguments,
        resume=resume,
        max_drop=max_drop,
        use_labels=labels,
        finetune=finetune,
    )
    _say_what_is_replaced(out)
    with left_tidy(out):
        run = attach_exits(plan)
    if run.config:  # only the first of several processes has written it
        from offramp.calibration.points import read_points

        _say_done(run.folder, read_points(run.folder)[0], finetune)


def _say_what_is_replaced(out: Path) -> None:
    """One line where a run stands there already, before anything is computed."""
    from offramp.calibration.points import read_points
    from offramp.run import Run

    try:
        run = Run.open(out)
        made = [repr(point.name) for point in read_points(run.folder) if point.promise is not None or point.asked]
    except RunError:  # there is none, or it is damaged
        return
    lost = f", and its calibrated operating points ({', '.join(made)}) go with it" if made else ""
    logger.warning("%s is a run already: when this is done it is replaced%s; another --out keeps it", out, lost)


def _say_done(folder: Path, point: Any, finetune: bool) -> None:
    from offramp.training.finish import OWN_ANSWERS

    measured = point.measured
    own = point.chosen_on == OWN_ANSWERS
    what = "agreement with the full model's own answers" if own else measured["metric"]
    full = "" if own else f" (full depth {measured['full_depth_score']:.4f})"
    depth = "It was fine-tuned: answers at full depth are new." if finetune else "At full depth it answers as before."
    console().print(
        f"Saved {folder}. {depth}\n"
        + ("No labels were used: exits learned from the model's own answers.\n" if own else "")
        + f"Default operating point ({point.criterion}): {what} {measured['score']:.4f} on {measured['n']} dev "
        f"texts{full}, layer speed-up {measured['layer_speedup']:.2f}x.\n"
        f'Next: offramp predict {shlex.quote(str(folder))} "a text"\n'
        f"      offramp compare {shlex.quote(str(folder))} --trace {shlex.quote(str(folder / 'traces' / 'dev'))}"
    )
