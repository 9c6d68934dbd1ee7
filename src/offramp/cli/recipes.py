"""``offramp recipes``: the methods there are, a line each."""

from __future__ import annotations

from rich.table import Table

from offramp.cli import app
from offramp.cli.common import Json, print_json, show


@app.command(short_help="List the training methods.")
def recipes(as_json: Json = False) -> None:
    """List the training recipes."""
    from offramp.recipes import available, load_recipe

    loaded = {name: load_recipe(name) for name in available()}
    if as_json:
        print_json(
            [
                {"name": name, "summary": recipe.summary, "source": recipe.source, "serves": list(recipe.criteria)}
                for name, recipe in loaded.items()
            ]
        )
        return
    table = Table("recipe", "what it does", box=None)
    for name, recipe in loaded.items():
        table.add_row(name, recipe.summary)
    show(table)
