"""``offramp recipes``: the methods there are, a line each."""

from __future__ import annotations

from rich.table import Table

from offramp.cli import app
from offramp.cli.common import Json, show


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the training recipes."""
    import json
    import sys

    from offramp.recipes import available, load_recipe

    listed = [
        {"name": name, "summary": recipe.summary, "source": recipe.source, "serves": sorted(recipe.criteria)}
        for name in available()
        for recipe in [load_recipe(name)]
    ]
    if as_json:
        json.dump(listed, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table("recipe", "what it does", box=None)
    for entry in listed:
        table.add_row(str(entry["name"]), str(entry["summary"]))
    show(table)
