"""Recipe and criterion files import where torch and all that comes with it are missing: a server needs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import offramp

PACKAGE = Path(offramp.__file__).parent
FOLDERS = ("recipes", "criteria")
MODULES = sorted(
    f"offramp.{folder}" + ("" if file.stem == "__init__" else f".{file.stem}")
    for folder in FOLDERS
    for file in (PACKAGE / folder).glob("*.py")
)
PROGRAM = """
import importlib, json, sys

class Block:
    blocked = {"torch", "transformers", "accelerate", "datasets", "sklearn", "scipy", "matplotlib"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
said = {}
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
        said[module] = None
    except Exception as error:
        said[module] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, str | None]:
    """Module -> what its import said; None: it went well. The last is ours to prove that the block blocks."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *MODULES, "torch"], capture_output=True, text=True, check=True
    )
    answers: dict[str, str | None] = json.loads(done.stdout)
    return answers


def test_the_block_blocks(said: dict[str, str | None]) -> None:
    assert said["torch"] == "ModuleNotFoundError: No module named 'torch'"
    assert len(MODULES) > 6


@pytest.mark.parametrize("module", MODULES)
def test_imports_without_torch(module: str, said: dict[str, str | None]) -> None:
    assert said[module] is None
