"""The command line: one file a subcommand. ``offramp --help`` imports neither torch nor transformers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from offramp.errors import OfframpError

__all__ = ["app", "main"]

app = typer.Typer(
    name="offramp",
    help="Early exit for BERT-style encoders: easy texts leave after a few layers, hard ones go on.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 bad input (one sentence on standard error), 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    logging.basicConfig(format="offramp: %(message)s", level=logging.WARNING)
    try:
        _register()
        app(_normalised([word for word in given if word != "--debug"]), prog_name="offramp")
    except OfframpError as error:
        if debug:
            raise
        _stop(f"error: {error}", 2)
    except OSError as error:
        if debug:
            raise
        # A full disk, a folder that may not be written to: the system's own words say it best.
        _stop(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", 2)
    except KeyboardInterrupt:
        _stop("interrupted", 130)


def _stop(message: str, status: int) -> NoReturn:
    print(f"offramp: {message}", file=sys.stderr)
    sys.exit(status)


def _normalised(words: Sequence[str]) -> list[str]:
    """Option names with hyphens: transformers' users write ``--learning_rate``, others ``--learning-rate``."""
    result = []
    for position, word in enumerate(words):
        if word == "--":
            return [*result, *words[position:]]
        name, equals, value = word.partition("=")
        result.append(name.replace("_", "-") + equals + value if name.startswith("--") else word)
    return result


def _register() -> None:
    """Import the subcommand files; each puts itself into ``app``."""
    from offramp.cli import compare, demo, evaluate, inspect, predict, recipes, record, train  # noqa: F401
