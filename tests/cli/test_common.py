"""What commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.testing import CliRunner

from offramp.cli.common import Json, KnobValues, RunFolder, as_typed


def test_a_command_as_it_was_typed(tmp_path: Path) -> None:
    """What was given and nothing else; of this machine's folders no more than names."""
    app = typer.Typer()

    @app.command("bench")
    def bench(
        context: typer.Context,
        run: RunFolder,
        out: Annotated[Path | None, typer.Option()] = None,
        rounds: int = 5,
        knob: KnobValues = None,
        as_json: Json = False,
    ) -> None:
        print(as_typed(context))

    def said(*words: str) -> str:
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        return done.output.strip()

    assert said("runs/x") == "offramp bench runs/x"
    words = ["--out", str(tmp_path / "a b"), "--rounds", "5", "--knob", "x=1", "--knob", "y=2", "--json", "runs/x"]
    typed = said(*words).removeprefix("offramp bench runs/x ")
    assert typed == "--out 'a b' --rounds 5 --knob x=1 --knob y=2 --json"
