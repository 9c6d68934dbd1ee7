"""The contract that holds the table of docs/design.md is itself able to fail."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

grimp = pytest.importorskip("grimp", reason="import-linter is not installed")
FILE = Path(__file__).parents[2] / "scripts" / "may_know.py"


@pytest.fixture(scope="module")
def may_know() -> ModuleType:
    spec = importlib.util.spec_from_file_location("may_know_under_test", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TABLE = [
    "types |  |",
    "recipes | types recipes.base |",
    "recipes.* | types recipes.base |",
    "runtimes | types |",
    "runtimes.* | types | numpy",
    "runtimes.torch | types model | torch",
    "model | types | torch",
    "cli | * | *",
]
MODULES = (
    "types", "recipes", "recipes.base", "recipes.one", "recipes.two", "runtimes", "runtimes.base", "runtimes.torch",
    "runtimes.torch.parts", "model", "model.heads", "cli",
)  # fmt: skip


def problems(may_know: ModuleType, imports: list[tuple[str, str]], extra: tuple[str, ...] = ()) -> list[str]:
    graph = grimp.ImportGraph()
    graph.add_module("app")
    for module in (*MODULES, *extra):
        graph.add_module(f"app.{module}")
    for outside in ("torch", "numpy", "json"):
        graph.add_module(outside, is_squashed=True)
    for importer, imported in imports:
        graph.add_import(importer=importer, imported=imported, line_number=7, line_contents="import")
    contract = may_know.MayKnow("table", {"root_packages": ["app"]}, {"table": TABLE})
    return list(contract.check(graph, verbose=False).metadata["broken"])


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("app.recipes.one", "app.recipes.base"),
        ("app.recipes.one", "app.types"),
        ("app.runtimes.torch", "app.model.heads"),
        ("app.runtimes.torch.parts", "torch"),
        ("app.runtimes.torch.parts", "app.runtimes.torch"),
        ("app.model", "app.model.heads"),
        ("app.types", "json"),
        ("app.types", "app"),
        ("app.cli", "app.runtimes.torch"),
        ("app.cli", "numpy"),
    ],
)
def test_allowed(may_know: ModuleType, importer: str, imported: str) -> None:
    assert problems(may_know, [(importer, imported)]) == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("app.recipes.one", "app.recipes.two"),
        ("app.recipes.one", "app.cli"),
        ("app.recipes.base", "app.recipes.two"),
        ("app.types", "numpy"),
        ("app.runtimes.base", "torch"),
        ("app.runtimes.base", "app.runtimes.torch"),
        ("app.runtimes.torch", "numpy"),
        ("app.model.heads", "app.recipes.one"),
    ],
)
def test_refused(may_know: ModuleType, importer: str, imported: str) -> None:
    (problem,) = problems(may_know, [(importer, imported)])
    assert problem.startswith(f"{importer}:7 imports {imported}")


def test_a_module_without_a_row(may_know: ModuleType) -> None:
    (problem,) = problems(may_know, [], extra=("serve",))
    assert problem.startswith("app.serve has no row")
    assert problems(may_know, [], extra=("model_zoo",)) != []  # a row for `model` does not hold for it


def test_a_line_that_is_no_row(may_know: ModuleType) -> None:
    with pytest.raises(Exception, match=r"three|ours") as caught:
        may_know.MayKnow("table", {"root_packages": ["app"]}, {"table": ["types | errors"]})
    assert "types | errors" in str(caught.value.errors)
