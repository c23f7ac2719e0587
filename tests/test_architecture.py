"""Check rules that import-linter and ruff cannot express."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from tests.support.airflow import prepared_process

TOP: Final = Path(__file__).parents[1]
PACKAGE: Final = TOP / "airflow_sftp_backend"
SOURCES: Final = sorted(
    path
    for folder in ("airflow_sftp_backend", "tests", "example_dags", "examples", "demo", "benchmarks")
    for path in (TOP / folder).rglob("*.py")
)
TESTS: Final = [path for path in SOURCES if TOP / "tests" in path.parents]

MAX_MODULE_LINES: Final = 600
MAX_FUNCTION_LINES: Final = 60
MAX_MODULES_IN_PACKAGE: Final = 16
MAX_TEST_NAME: Final = 70
NAMES_WITHOUT_SUBJECT: Final = {"util", "common", "constants", "helpers", "misc"}
HEAVY: Final = {"airflow", "asyncssh", "azure", "cryptography", "paramiko"}

# Paths of modules that may read the value of a Secret, use a class of paramiko, or catch every exception.
REVEALING: Final = {
    "_connections/config_loader.py",
    "_filesystem/secret_arguments.py",
    "_key_vault/identity.py",
    "backend/_ssh/auth.py",
    "backend/_ssh/private_keys.py",
}
CLASS_USERS: Final = {
    "PKey": {"backend/_ssh/_paramiko_compat.py", "backend/_ssh/legacy_rsa.py", "backend/_ssh/private_keys.py"},
    "SSHClient": {"backend/_ssh/", "backend/sync.py"},
    "Transport": {"backend/_ssh/"},
}
TRANSLATING: Final = {
    "_metrics.py",
    "_state_store.py",
    "backend/errors.py",
    "hooks/sftp.py",
    "operators/_worker_threads.py",
}
FILE_NAME_ATTRIBUTES: Final = {"key", "native", "native_path", "path", "source", "target"}


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """List the syntax nodes of a source."""
    return [*ast.walk(ast.parse(path.read_text()))]


@cache
def modules() -> dict[str, ast.Module]:
    """Parse the modules of the package."""
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def violations(finds: Callable[[ast.AST], bool], allowed: set[str]) -> list[str]:
    """Find nodes in modules outside the allowed paths.

    :returns: the module and line of each
    """
    return [
        f"{name}:{getattr(node, 'lineno', 0)}"
        for name, tree in modules().items()
        if not name.startswith(tuple(allowed))
        for node in ast.walk(tree)
        if finds(node)
    ]


def nodes_outside_annotations(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes of a tree without type annotations."""
    annotations = {
        id(inner)
        for node in ast.walk(tree)
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if annotation is not None
        for inner in ast.walk(annotation)
    }
    return (node for node in ast.walk(tree) if id(node) not in annotations)


def is_named(node: ast.AST, name: str) -> bool:
    """Tell whether a node is a name or an attribute."""
    return (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)


def is_broad(kind: ast.expr | None) -> bool:
    """Tell whether an except clause catches every exception."""
    if isinstance(kind, ast.Tuple):
        return any(map(is_broad, kind.elts))
    return kind is None or (isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"})


def swallows_everything(node: ast.AST) -> bool:
    """Tell whether a node catches every exception and raises none."""
    if isinstance(node, ast.ExceptHandler):
        return is_broad(node.type) and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
    return isinstance(node, ast.Call) and "suppress" in ast.dump(node.func) and any(map(is_broad, node.args))


def raw_file_names(node: ast.AST) -> list[str]:
    """List file names that a logging call formats without ``escaped``."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
        return []
    text = getattr(node.args[0], "value", None)
    if node.func.attr not in {"debug", "info", "warning", "error"} or not isinstance(text, str):
        return []
    conversions = re.findall(r"%[-.\d]*([srdfox])", text)
    return [
        ast.unparse(argument)
        for conversion, argument in zip(conversions, node.args[1:], strict=False)
        if conversion == "s"
        for name in [getattr(argument, "attr", None) or getattr(getattr(argument, "slice", None), "value", None)]
        if name in FILE_NAME_ATTRIBUTES
    ]


def function_lengths(path: Path) -> Iterator[tuple[str, int]]:
    """Yield name and length of each function, without its docstring."""
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            yield node.name, (node.end_lineno or node.lineno) - node.lineno - docstring.count("\n")


def imported_test_modules(path: Path) -> list[str]:
    """List the test modules that a module of the tests imports."""
    names: list[str] = []
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = f"tests.{node.module or ''}" if node.level else node.module or ""
            names += [f"{origin}.{alias.name}" for alias in node.names]
    return [name for name in names if re.match(r"tests\.(.*\.)?(test_|conftest\b)", name)]


def test_secrets_are_revealed_in_few_modules_only() -> None:
    assert violations(lambda node: isinstance(node, ast.Attribute) and node.attr == "reveal", REVEALING) == []


@pytest.mark.parametrize("name", CLASS_USERS)
def test_a_class_of_paramiko_is_used_in_its_modules_only(name: str) -> None:
    users = {
        module for module, tree in modules().items() for node in nodes_outside_annotations(tree) if is_named(node, name)
    }
    assert {module for module in users if not module.startswith(tuple(CLASS_USERS[name]))} == set()


def test_only_translating_modules_catch_all_exceptions() -> None:
    assert violations(swallows_everything, TRANSLATING) == []


def test_file_names_in_logs_are_escaped() -> None:
    assert violations(lambda node: raw_file_names(node) != [], {"-"}) == [], "log them with %r, or with escaped()"


def test_the_check_of_logged_names_finds_raw_ones() -> None:
    for line, count in {
        'log.info("at %s of %s", row["path"], step.source)': 2,
        'log.info("at %r of %s", row["path"], escaped(step.source))': 0,
    }.items():
        assert sum(len(raw_file_names(node)) for node in ast.walk(ast.parse(line))) == count


def test_modules_and_functions_are_short() -> None:
    modules = [path for path in SOURCES if len(path.read_text().splitlines()) > MAX_MODULE_LINES]
    functions = [
        f"{path}:{name}" for path in SOURCES for name, lines in function_lengths(path) if lines > MAX_FUNCTION_LINES
    ]
    assert (modules, functions) == ([], [])


def test_packages_are_small_and_modules_have_a_subject() -> None:
    packages = {path.parent for path in PACKAGE.rglob("*.py")}
    large = [str(package) for package in packages if len([*package.glob("*[!_].py")]) > MAX_MODULES_IN_PACKAGE]
    assert large == []
    assert [path for path in SOURCES if path.stem.strip("_") in NAMES_WITHOUT_SUBJECT] == []


def test_the_page_on_the_architecture_names_every_module() -> None:
    layout = (TOP / "docs/architecture.md").read_text().split("```")[1]
    named = set(re.findall(r"\b\w+\.py\b", layout))
    assert named == {Path(name).name for name in modules() if not name.endswith("/__init__.py")}


def test_no_test_module_imports_another() -> None:
    assert {str(path): names for path in TESTS if (names := imported_test_modules(path))} == {}


def test_names_of_tests_are_short() -> None:
    names = [name for path in TESTS for name, _ in function_lengths(path) if name.startswith("test_")]
    assert len(names) > 1000
    assert [name for name in names if len(name) > MAX_TEST_NAME] == []


def test_tests_and_their_support_are_separate() -> None:
    support = TOP / "tests" / "support"
    tests = [path for path in TESTS if path.name.startswith("test_")]
    others = [path for path in TESTS if path not in tests and path.name not in {"__init__.py", "conftest.py"}]
    assert [path for path in tests if support in path.parents] == []
    assert [path for path in others if support not in path.parents] == []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [("airflow_sftp_backend", HEAVY), ("airflow_sftp_backend.get_provider_info", HEAVY)]
    + [
        (f"airflow_sftp_backend.{name}", HEAVY - {"airflow", "cryptography"})
        for name in ("assets", "hooks", "operators", "sensors", "triggers")
    ],
)
def test_an_import_loads_nothing_heavy(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    if "airflow" in unwanted:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=TOP)
    else:
        done = prepared_process.run(["-c", code], modules=prepared_process.AIRFLOW_ONLY)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) & unwanted == set()
