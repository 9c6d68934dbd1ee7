"""``offramp recipes``: the methods there are, a line each; with a name, all about one."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from offramp.cli import app
from offramp.cli.common import console, print_json, show
from offramp.errors import require


@app.command(short_help="List the training methods.")
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show all about one: formula, settings, knobs, commands.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a list of all, or one object for NAME.")] = False,
) -> None:
    """List the training recipes, or show one."""
    from offramp.recipes import available, load_recipe

    if as_json:
        print_json([_described(each) for each in available()] if name is None else _described(name))
    elif name is None:
        table = Table("recipe", "what it does", box=None)
        for each in available():
            table.add_row(each, load_recipe(each).summary)
        show(table)
    else:
        load_recipe(name)  # a wrong name is said first, torch or no torch
        require("torch", extra="train")
        from offramp.cli.recipe_page import page

        console().print(page(name).rstrip("\n"))


def _described(name: str) -> dict[str, Any]:
    """A recipe as JSON: by problem type the rule it leaves by, and by rule its knobs."""
    from offramp.recipes import load_recipe

    recipe = load_recipe(name)
    return {
        "name": name,
        "summary": recipe.summary,
        "source": recipe.source,
        "serves": list(recipe.criteria),
        "criterion": {kind: rule.name for kind, rule in recipe.criteria.items()},
        "knobs": {
            rule.name: {
                knob: {
                    "default": what.default,
                    "low": what.low,
                    "high": what.high,
                    "faster": what.faster,
                    "integer": what.integer,
                }
                for knob, what in rule.knobs.items()
            }
            for rule in recipe.criteria.values()
        },
    }
