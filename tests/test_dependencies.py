"""The package imports only requirements of pyproject.toml."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).parents[1]
PACKAGE: Final = "airflow_sftp_backend"
# apache-airflow is a distribution without modules; it requires these two at its own version.
PARTS_OF_AIRFLOW: Final = {"apache-airflow-core", "apache-airflow-task-sdk"}
EXTRAS_OF_USERS: Final = ("openlineage",)


def normalized(name: str) -> str:
    """Spell the name of a distribution as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    """Read the required distributions, with optional features."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    extras = [line for name in EXTRAS_OF_USERS for line in project["optional-dependencies"][name]]
    lines: list[str] = [*project["dependencies"], *extras]
    return {normalized(re.split(r"[<>=!~\[; ]", line)[0]) for line in lines}


def imports(node: ast.AST) -> Iterator[str]:
    """Yield the foreign modules that are imported when the program runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and not child.level:
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from imports(ast.Module([other], []))
        else:
            yield from imports(child)


@cache
def module_owners() -> Mapping[str, list[str]]:
    """Map the modules to the distributions that are installed."""
    return packages_distributions()


@cache
def files(name: str) -> set[str]:
    """List the files of a distribution that is installed."""
    return {str(file) for file in distribution(name).files or ()}


@cache
def distributions(module: str) -> set[str]:
    """Find the distributions of a module or imported name."""
    top, *_ = module.split(".")
    candidates = set(module_owners().get(top, ()))
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        path = "/".join(parts[:length])
        wanted = {f"{path}.py", f"{path}/__init__.py", f"{path}.pyi"}
        owners = {name for name in candidates if wanted & files(name)}
        if owners:
            return {normalized(name) for name in owners}
    return {normalized(name) for name in candidates}


def imported() -> set[str]:
    """List the foreign modules that the package imports."""
    trees = [ast.parse(path.read_text()) for path in (TOP / PACKAGE).rglob("*.py")]
    modules = {module for tree in trees for module in imports(tree)}
    return {module for module in modules if module.split(".")[0] not in {*sys.stdlib_module_names, PACKAGE}}


def test_everything_that_is_imported_is_declared() -> None:
    names = declared() | PARTS_OF_AIRFLOW
    missing = {module: owners for module in imported() if not (owners := distributions(module)) & names}
    # Modules of other versions of Airflow are not installed; their package is.
    assert {module: owners for module, owners in missing.items() if module.split(".")[0] != "airflow" or owners} == {}


def test_everything_that_is_declared_is_imported() -> None:
    used = {owner for module in imported() for owner in distributions(module)}
    assert declared() - used - {"apache-airflow"} == set()
