"""What several subcommands share: options, output, settings."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from offramp.errors import KnobError

__all__ = [
    "Attention", "BatchSize", "BatchTokens", "Columns", "Compile", "Confidence", "Device", "Dtype", "FullDepth",
    "Json", "KnobValues", "LabelColumn", "Lanes", "MaxLayers", "MaxRisk", "RiskKind", "RunFolder",
    "RuntimeName", "Speedup", "Threads", "Threshold", "as_typed", "console", "options_given", "parse_knobs",
    "parse_settings", "print_json", "progress", "quiet_transformers", "show", "split_columns",
]  # fmt: skip

RunFolder = Annotated[Path, typer.Argument(help="Run folder that `offramp train` wrote.", metavar="RUN")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1; by default a GPU where there is one.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="float32, int8 (exported), bfloat16 or float16; by default the fastest there is."
    ),
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help="Threads of exported graphs; by default one for every core.", min=1)
]
Lanes = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Batches computed side by side on a CPU; as many as threads answer the most texts.",
        min=1,
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="With torch: torch.compile makes code of each stage, in minutes when first run."),
]
Attention = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="With torch: eager, sdpa, flash_attention_2, ...; by default transformers' choice."
    ),
]
RuntimeName = Annotated[
    str | None,
    typer.Option("--runtime", metavar="NAME", help="torch, onnx or openvino; by default the fastest there is."),
]
BatchSize = Annotated[
    int, typer.Option(metavar="N", help="Most texts computed together; changes no answer in float32.", min=1)
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1,
        help="Most tokens computed together, padding included; by default 2048 on a CPU, 16384 elsewhere.",
    ),
]  # fmt: skip
Threshold = Annotated[
    float | None, typer.Option(metavar="X", help="The criterion's threshold, instead of the default point's.")
]
Speedup = Annotated[
    float | None,
    typer.Option(metavar="X", help="Least layer speed-up: the point calibrated for so much, or by dev's trace."),
]
MaxRisk = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="Risk promised at most, such as 0.01: the point calibrated for so much, or for the next less."
    ),
]
Confidence = Annotated[
    float, typer.Option(metavar="X", help="That the promise of --max-risk has at least.", show_default=True)
]
RiskKind = Annotated[
    str | None,
    typer.Option(
        "--risk",
        metavar="NAME",
        help="What --max-risk is about, where several risks were promised: disagreement, error.",
    ),
]
FullDepth = Annotated[bool, typer.Option("--full-depth", help="No early exit.")]
MaxLayers = Annotated[
    int | None, typer.Option(metavar="N", help="Leave at the first exit after N layers or more, at the latest.", min=1)
]
KnobValues = Annotated[
    list[str] | None,
    typer.Option("--knob", metavar="NAME=X", help="A knob of the criterion, such as patience=2; may be repeated."),
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="A[,B]", help="Text column, or two for pairs; by default those trained on, or the usual names."
    ),
]
LabelColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="Label column; by default the one trained on, or the usual names.")
]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich calls this where it caught one, and would exit with 1


def console() -> Console:
    """For people. Prints what it is given (a label may be called ``[b]``), and cuts nothing where no one looks on."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    return _Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=width)


def show(table: Table) -> None:
    """Print a table."""
    console().print(table)


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """One JSON value on standard output; numbers that JSON does not know become null."""
    json.dump(_plain(value), sys.stdout, ensure_ascii=False, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar with time left on standard error; silent where that is no terminal."""
    with tqdm(total=total, desc=what, unit="text", disable=None, leave=False) as bar:
        yield lambda done: (bar.update(done), None)[1]


def split_columns(columns: str | None) -> list[str] | None:
    """``"premise,hypothesis"`` to a list; a name that holds a comma stands in double quotes, as in CSV."""
    return None if columns is None else [name.strip() for name in next(csv.reader([columns], skipinitialspace=True))]


def parse_settings(given: list[str] | None) -> dict[str, Any]:
    """``["head.width=64", "objective.form=hinge"]`` to a dict; values are JSON where they can be."""
    settings: dict[str, Any] = {}
    for item in given or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise KnobError(f"--set takes name=value, such as head.width=64, not {item!r}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def parse_knobs(given: list[str] | None) -> dict[str, float] | None:
    """``["patience=2", "delta=0.1"]`` to a dict; None where nothing is given."""
    knobs: dict[str, float] = {}
    for item in given or []:
        name, _, value = item.partition("=")
        try:
            knobs[name.strip()] = float(value)
        except ValueError:
            raise KnobError(f"--knob takes name=number, such as patience=2, not {item!r}") from None
    return knobs or None


def options_given(context: typer.Context) -> list[str]:
    """Parameters that stand on the command line. By name: whose click typer brings along depends on its version."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def as_typed(context: typer.Context) -> str:
    """The command under way, to type it again; of files and folders elsewhere on this machine the name alone."""
    words, given = ["offramp", str(context.info_name)], set(options_given(context))
    for parameter in context.command.params:
        if parameter.name not in given:
            continue
        value = context.params[parameter.name]
        flag = [] if parameter.param_type_name == "argument" else [parameter.opts[0]]
        for one in value if isinstance(value, list | tuple) else [value]:
            shown = Path(str(one)).name if Path(str(one)).is_absolute() else str(one)
            words += flag if one is True else [*flag, shown]
    return shlex.join(words)


def quiet_transformers() -> None:
    """No load reports and shard bars of transformers between our own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
