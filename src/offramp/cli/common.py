"""What several subcommands share: options, output, loading."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from offramp.errors import KnobError

__all__ = [
    "BatchSize", "Columns", "Device", "Dtype", "FullDepth", "Json", "LabelColumn", "MaxLayers", "RunFolder",
    "RuntimeName", "Speedup", "Threshold", "console", "parse_settings", "print_json", "progress", "quiet_transformers",
    "show", "split_columns",
]  # fmt: skip

RunFolder = Annotated[Path, typer.Argument(help="Run folder that `offramp train` wrote.", metavar="RUN")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default a GPU where there is one.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
RuntimeName = Annotated[str | None, typer.Option("--runtime", help="torch; by default the fastest that is there.")]
BatchSize = Annotated[int, typer.Option(help="Most texts computed together; changes no answer in float32.", min=1)]
Threshold = Annotated[float | None, typer.Option(help="The criterion's threshold, instead of the default point's.")]
Speedup = Annotated[float | None, typer.Option(help="Layer speed-up to reach, by the trace recorded on dev.")]
FullDepth = Annotated[bool, typer.Option("--full-depth", help="No early exit.")]
MaxLayers = Annotated[int | None, typer.Option(help="Leave after so many layers at the latest.", min=1)]
Columns = Annotated[str | None, typer.Option(help="Text column, or two joined by a comma for pairs.")]
LabelColumn = Annotated[str | None, typer.Option(help="Label column.")]


def console() -> Console:
    """Standard output for people."""
    return Console(highlight=False, soft_wrap=True)


def show(table: Table) -> None:
    """Print a table."""
    console().print(table)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output; numbers that JSON does not know become null."""
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
    """``"premise,hypothesis"`` to a list."""
    return None if columns is None else [name.strip() for name in columns.split(",")]


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


def quiet_transformers() -> None:
    """No load reports and shard bars of transformers between our own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
