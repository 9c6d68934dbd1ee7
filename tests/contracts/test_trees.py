"""The trees of README.md and docs/design.md are true: what stands in the folders is named there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EACH = ("bench", "calibration", "criteria", "demo", "engine", "inputs", "runtimes", "traces", "training")
"""Folders whose files the design's tree names one by one, with no `...`; `suite*` stands for several."""


def tree(page: str) -> dict[str, str]:
    """Folder (or ``.`` for the package itself) -> what the page's tree says of it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    block = re.search(r"```\n(src/offramp/\n.*?)```", text, re.DOTALL)
    assert block is not None
    found: dict[str, str] = {}
    at = "."
    for line in block[1].splitlines()[1:]:
        if folder := re.match(r" {0,2}(\w+)/\s", line):
            at = folder[1]
        elif re.match(r"  \w", line):
            at = "."
        found[at] = found.get(at, "") + " " + line
    return found


def missing(paths: list[Path], said: str) -> list[str]:
    """Names that are not said; pages are said with spaces for hyphens."""
    names = {path.name: re.escape(path.stem.replace("-", " ")) for path in paths}
    return [name for name, stem in names.items() if not re.search(rf"(?<!\w){stem}(?!\w)", said)]


@pytest.mark.parametrize("page", ["README.md", "docs/design.md"])
def test_every_folder_module_and_script_is_named(page: str) -> None:
    said = tree(page)
    package = ROOT / "src" / "offramp"
    folders = [path for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"]
    modules = [path for path in package.glob("*.py") if not path.name.startswith("__")]
    assert missing(folders, " ".join(said.values())) == []
    assert missing(modules, said["."]) == []
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    assert missing(scripts, said["scripts"]) == []
    assert missing(list((ROOT / "docs").glob("*.md")), said["docs"]) == []


@pytest.mark.parametrize("folder", EACH)
def test_the_design_names_every_file_of_a_folder(folder: str) -> None:
    files = (ROOT / "src" / "offramp" / folder).glob("*.py")
    named = [path for path in files if path.name not in ("__init__.py", "base.py") and not path.match("suite_*.py")]
    assert missing(named, tree("docs/design.md")[folder]) == []
