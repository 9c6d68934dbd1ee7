"""The import-linter contract behind the table of docs/design.md: what each module may know.

import-linter's own contracts list what is forbidden; the table lists what is allowed. So a module that is new, or
that a row does not name, is refused until someone decides, and the rows in pyproject.toml read like the table:

    "engine | types errors inputs criteria traces.trace runtimes.base | numpy array_api_compat"

    module | what of ours it may import | what from outside

A row holds for the module and all below it, unless a longer row fits better. ``recipes.*`` makes every child of
``recipes`` a row of its own: siblings do not know each other. A name allows all below it; ``*`` allows anything.
Only direct imports are looked at, those inside functions too; the standard library is free. What must not come in
by a detour (torch) is the business of a ``forbidden`` contract.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from importlinter.application import output
from importlinter.domain import fields
from importlinter.domain.contract import Contract, ContractCheck, InvalidContractOptions

if TYPE_CHECKING:
    from grimp import ImportGraph


class Row(NamedTuple):
    """One line of the table."""

    module: str
    ours: tuple[str, ...]
    outside: tuple[str, ...]


def parse(line: str) -> Row:
    """``module | ours | outside`` as a row.

    Raises:
        ValueError: the line has not three columns.
    """
    columns = line.split("|")
    if len(columns) != 3 or not columns[0].strip():
        raise ValueError(f"a row is 'module | ours | outside', got {line!r}")
    return Row(columns[0].strip(), tuple(columns[1].split()), tuple(columns[2].split()))


def within(module: str, names: tuple[str, ...]) -> bool:
    """Whether the module is one of the names, or below one."""
    return any(name == "*" or module == name or module.startswith(name + ".") for name in names)


def made_out(row: Row, module: str) -> Row:
    """A ``parent.*`` row written out for the child of the parent that holds the module; other rows as they are."""
    parent, star, _ = row.module.partition(".*")
    if not star or not module.startswith(parent + "."):
        return row
    return row._replace(module=".".join(module.split(".")[: parent.count(".") + 2]))


def row_of(module: str, rows: list[Row]) -> Row | None:
    """The longest row that holds for a module; of two as long, the one that is no pattern."""
    holding = [(made, made is row) for row in rows if within(module, ((made := made_out(row, module)).module,))]
    return max(holding, key=lambda found: (len(found[0].module), found[1]))[0] if holding else None


class MayKnow(Contract):
    """``table``: a list of rows, see the module."""

    type_name = "may_know"
    table = fields.ListField(subfield=fields.StringField())

    def validate(self) -> None:
        """Refuse a table with a line that is no row."""
        try:
            self.rows = [parse(line) for line in self.table]  # type: ignore[attr-defined]
        except ValueError as error:
            raise InvalidContractOptions({"table": str(error)}) from None

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Compare every import in the graph with the table."""
        root: str = self.session_options["root_packages"][0]
        broken = [
            problem
            for module in sorted(graph.find_descendants(root))
            for problem in self._problems(graph, root, module)
        ]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def _problems(self, graph: ImportGraph, root: str, module: str) -> list[str]:
        name = module.removeprefix(root + ".")
        row = row_of(name, self.rows)
        if row is None:
            return [f"{module} has no row in the table: decide what it may know"]
        problems = []
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            if not self._allowed(row, root, imported):
                lines = [d["line_number"] for d in graph.get_import_details(importer=module, imported=imported)]
                problems.append(f"{module}:{lines[0]} imports {imported}, which the row '{row.module}' does not allow")
        return problems

    def _allowed(self, row: Row, root: str, imported: str) -> bool:
        top = imported.partition(".")[0]
        if top != root:
            return top in sys.stdlib_module_names or within(imported, row.outside)
        if imported == root:  # the version, and names that are looked up when used
            return True
        name = imported.removeprefix(root + ".")
        home = row_of(name, self.rows)
        return within(name, row.ours) or (home is not None and home.module == row.module)

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print a line for each import that the table does not allow."""
        broken: Any = check.metadata["broken"]
        for problem in broken:
            output.print_error(problem)
