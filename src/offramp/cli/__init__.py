"""The command line: one file a subcommand. ``offramp --help`` imports neither torch nor transformers."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from safetensors import SafetensorError

from offramp import __version__
from offramp.errors import OfframpError

__all__ = ["app", "main"]

COMMANDS = (
    "demo", "train", "attach", "record", "compare", "calibrate", "export", "bench", "evaluate", "predict", "inspect",
    "recipes",
)  # fmt: skip
"""The subcommands, each a file here, in the order of a first visit."""

# What typer raises where the command line itself is wrong. Older typer takes it from click, newer carries it inside.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="offramp",
    help="Early exit for BERT-style encoders: easy texts leave after a few layers, hard ones go on.",
    epilog="Options may be written with hyphens or underscores.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"offramp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before a subcommand; ``main`` takes ``--debug`` out, wherever it stands."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 2 bad input (one sentence on standard error), 130 interrupted."""
    words, debug = _prepared(sys.argv[1:] if arguments is None else arguments)
    _speak_plainly()
    _say_warnings()
    try:
        status = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        if debug:
            raise
        _leave_quietly()
    except (OfframpError, OSError, SafetensorError, KeyboardInterrupt, _UsageError) as error:
        if debug:
            raise
        _stop(error)
    sys.exit(status)


def _run(words: Sequence[str]) -> int:
    for name in COMMANDS:
        importlib.import_module(f"offramp.cli.{name}")  # puts itself into app
    command = typer.main.get_command(app)
    try:
        # Not app(): it would print usage errors and answer Ctrl-C in its own way.
        with command.make_context("offramp", list(words) or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as done:
        return int(done.exit_code)
    return 0


def _stop(error: BaseException) -> NoReturn:
    """One sentence on standard error."""
    if isinstance(error, KeyboardInterrupt):
        print(f"offramp: interrupted{error}", file=sys.stderr)
        sys.exit(130)
    print(f"offramp: error: {_sentence(error)}", file=sys.stderr)
    sys.exit(2)


def _sentence(error: BaseException) -> str:
    if isinstance(error, _UsageError):
        said: str = error.format_message().rstrip(".")
        path = error.ctx.command_path if error.ctx else "offramp"
        return f"{said[:1].lower()}{said[1:]}: see `{path} --help`"
    if isinstance(error, OSError) and error.strerror:
        # A full disk, a folder that may not be written to: the system's own words say it best.
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _leave_quietly() -> NoReturn:
    """Whoever read our output has had enough (``| head``): no message, and none at the interpreter's exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)  # as the shell reports a program that the signal of a broken pipe has ended


def _prepared(given: Sequence[str]) -> tuple[list[str], bool]:
    """Option names with hyphens (transformers' users write ``--learning_rate``), and whether --debug is among them."""
    words: list[str] = []
    for position, word in enumerate(given):
        if word == "--":
            words += given[position:]
            break
        name, equals, value = word.partition("=")
        words.append(name.replace("_", "-") + equals + value if name.startswith("--") else word)
    options = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in options
    return [word for word in options if word != "--debug"] + words[len(options) :], debug


def _speak_plainly() -> None:
    """What programs read is UTF-8, whatever the system's encoding; people are shown what their terminal can show."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue  # somebody's own, as in a test
        if stream is sys.stdout and not stream.isatty():
            stream.reconfigure(encoding="utf-8")
        else:
            stream.reconfigure(errors="backslashreplace")


class _Messages(logging.Handler):
    """Our warnings as lines on standard error, whatever that is by now."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"offramp: {record.getMessage()}", file=sys.stderr)


def _say_warnings() -> None:
    logger = logging.getLogger("offramp")
    if not any(isinstance(handler, _Messages) for handler in logger.handlers):
        logger.addHandler(_Messages(logging.WARNING))
