"""Write docs/recipes/ from the recipe files: a page each, and README.md that lists them.

    python benchmarks/recipe_pages.py [--check]

``--check`` changes nothing and fails where a page is not what the recipe says (the tests run it). A page whose recipe
is gone is removed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from offramp.cli.recipe_page import index, page
from offramp.recipes import available

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "recipes"


def pages() -> dict[str, str]:
    """File name -> what it should say."""
    mark = "<!-- Written by `python benchmarks/recipe_pages.py` from src/offramp/recipes/{}: change that. -->\n"
    written = {f"{name}.md": mark.format(f"{name}.py") + page(name) for name in available()}
    return {"README.md": mark.format("") + index(), **written}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is out of date")
    check = parser.parse_args().check
    wanted = pages()
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if check and stale:
        sys.exit(f"docs/recipes: {', '.join(stale)} not as the recipes say: run python benchmarks/recipe_pages.py")
    for name in stale:
        if name in wanted:
            (FOLDER / name).write_text(wanted[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()


if __name__ == "__main__":
    main()
