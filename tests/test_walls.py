"""The rules of the house, read off the source: who may import whom, who may name what, and how long a thing may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
PACKAGE = TOP / "airflow_sftp_backend"

# From the roof down. A room imports from its own floor or below, never in a circle.
FLOORS = (
    {""},  # the front door: names what is public, wherever it lives
    {"provider", "cli"},
    {"operators", "sensors"},
    {"operators.upload", "operators.download", "operators.move", "operators.delete"},
    {"operators._base"},
    {"lineage", "triggers"},
    {"tries"},
    {"_transfer_records"},
    {"arrivals", "shared"},
    {"memory"},
    {"plans", "waiting"},
    {"hooks"},
    {"sources"},
    {"_state_store"},
    {"connection", "assets", "ends", "masking", "progress"},
    {"_file_filters", "_path_arguments"},
    {"_arguments", "_file_rows", "killed"},
    {"fields", "keyvault"},
    {"azure_identity"},
    {"backend"},
    {"backend.aio", "backend._probes"},
    {"backend._diagnosis", "backend._link_query"},
    {"backend._backend"},
    {"backend._file_transfers", "backend._maintenance"},
    {"backend._partial_files"},
    {"backend._comparison"},
    {"backend._door", "backend._jobs", "backend._handles", "backend._local", "backend._tree"},
    {"backend._copy", "backend._scan", "backend._session"},
    {"backend._atomic_write", "backend._cleanup"},
    {"backend._opening", "backend._rename", "backend._resume", "backend._modes"},
    {"backend._write_target", "backend._backups"},
    {"backend._deletion"},
    {"backend._links"},
    {"backend._jump"},
    {"backend._operations", "backend._login", "backend._legacy", "backend._stream", "backend._further"},
    {"backend._transfer", "backend._keys", "backend._local_landing"},
    {"backend._paramiko_compat", "backend._pem"},
    {"backend._hostkeys"},
    {"backend._spread", "backend._group_commit"},
    {"backend._wire"},
    {"backend._lane"},
    {"backend._messages", "backend._handle_table"},
    {"backend._codec"},
    {"backend._server_traits"},
    {"backend._limits", "backend._paths", "backend._progress", "backend._regular_files"},
    {"backend._errors"},
    {"backend._models", "backend._config", "backend._ssh_config"},
)

# Who may name a package or a class of one, anywhere in the room; nobody may who is not listed.
AIRFLOW_ROOMS = {
    "_path_arguments", "_state_store", "arrivals", "assets", "cli", "ends", "hooks", "lineage", "masking", "memory",
    "operators._base", "sensors", "sources", "triggers", "tries",
}  # fmt: skip
AZURE_ROOMS = {"keyvault", "azure_identity"}
SSH_ROOMS = {
    f"backend.{name}"
    for name in ("_further", "_jump", "_keys", "_legacy", "_login", "_opening", "_paramiko_compat", "_session")
}
PARAMIKO_ROOMS = SSH_ROOMS | {"backend._errors", "backend._backend", "backend._ssh_config"}  # the last in functions
CLASS_ROOMS = {
    "PKey": {"backend._keys", "backend._legacy", "backend._paramiko_compat"},
    "SSHClient": SSH_ROOMS - {"backend._keys"} | {"backend._backend"},  # _backend: unwrap() is asked for it by name
    "Transport": SSH_ROOMS - {"backend._keys"},
}
REVEALING_ROOMS = {"backend._login", "backend._keys", "azure_identity", "sources"}
TRANSLATING_ROOMS = {"backend._errors", "hooks", "_state_store"}

LONGEST_MODULE = 600
LONGEST_FUNCTION = 60
HOMELESS = {"utils", "util", "common", "constants", "helpers", "misc"}


@dataclass(frozen=True)
class Import:
    """``what`` (dotted) is imported on ``line``; ``late`` inside a function, ``typing_only`` under TYPE_CHECKING."""

    what: str
    line: int
    late: bool
    typing_only: bool


@dataclass
class Room:
    """A module of the package; ``name`` is relative to the package, "" for its ``__init__``."""

    path: Path
    name: str = field(init=False)

    def __post_init__(self) -> None:
        parts = self.path.relative_to(PACKAGE).with_suffix("").parts
        self.name = ".".join(part for part in parts if part != "__init__")

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed source."""
        return ast.parse(self.path.read_text(), str(self.path))

    @cached_property
    def imports(self) -> list[Import]:
        """Everything it imports, wherever in the room."""
        return list(self._imports_in(self.tree, late=False, typing_only=False))

    def _imports_in(self, node: ast.AST, *, late: bool, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, late, typing_only)
            elif isinstance(child, ast.ImportFrom):
                for alias in child.names:
                    yield Import(f"{self._origin(child)}.{alias.name}", child.lineno, late, typing_only)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            guard = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            yield from self._imports_in(child, late=late or function, typing_only=typing_only or guard)

    def _origin(self, node: ast.ImportFrom) -> str:
        """The absolute name of the module after ``from``."""
        if not node.level:
            return node.module or ""
        package = ["airflow_sftp_backend", *self.path.relative_to(PACKAGE).parts[:-1]]
        base = package[: len(package) - node.level + 1]
        return ".".join([*base, *([node.module] if node.module else [])])


ROOMS = {room.name: room for room in sorted(map(Room, PACKAGE.rglob("*.py")), key=lambda room: room.name)}
SOURCES = sorted(
    path
    for folder in ("airflow_sftp_backend", "tests", "example_dags", "demo", "benchmarks")
    for path in (TOP / folder).rglob("*.py")
)

rooms = pytest.mark.parametrize("room", ROOMS.values(), ids=lambda room: room.name or "airflow_sftp_backend")
sources = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))


def room_of(dotted: str) -> str | None:
    """The room an imported name lies in; None outside the package."""
    package, _, inner = dotted.partition(".")
    if package != "airflow_sftp_backend":
        return None
    while inner and inner not in ROOMS:
        inner = inner.rpartition(".")[0]
    return inner


def floor_of(name: str) -> int:
    """The index of a room in FLOORS."""
    return next(number for number, floor in enumerate(FLOORS) if name in floor)


def neighbours(room: Room, *, late: bool) -> set[str]:
    """The other rooms it imports from when it runs; with ``late`` also from inside functions."""
    found = (room_of(i.what) for i in room.imports if not i.typing_only and (late or not i.late))
    return {name for name in found if name is not None and name != room.name}


# ---- where a room stands


@rooms
def test_every_room_stands_on_exactly_one_floor(room: Room) -> None:
    assert sum(room.name in floor for floor in FLOORS) == 1, f"give {room.name!r} its place in FLOORS"


@rooms
def test_imports_point_down_or_to_the_side(room: Room) -> None:
    up = [
        f"line {i.line}: {there}"
        for i in room.imports
        if (there := room_of(i.what)) is not None and floor_of(there) < floor_of(room.name)
    ]
    assert up == []


def test_no_imports_go_in_a_circle() -> None:
    open_rooms = {name: neighbours(room, late=True) for name, room in ROOMS.items() if name}
    while leaves := [name for name, below in open_rooms.items() if not below & open_rooms.keys()]:
        for name in leaves:
            del open_rooms[name]
    assert open_rooms == {}


# ---- who may name what


@rooms
@pytest.mark.parametrize(
    ("package", "allowed"),
    [("airflow", AIRFLOW_ROOMS), ("azure", AZURE_ROOMS), ("paramiko", PARAMIKO_ROOMS), ("asyncssh", set[str]())],
)
def test_a_foreign_package_is_imported_in_its_rooms_only(room: Room, package: str, allowed: set[str]) -> None:
    found = [i.line for i in room.imports if i.what.split(".")[0] == package]
    assert found == [] or room.name in allowed, f"lines {found}"


@rooms
def test_paramiko_and_azure_are_loaded_late_outside_the_ssh_rooms(room: Room) -> None:
    early = [i.line for i in room.imports if i.what.split(".")[0] in {"paramiko", "azure"} and not i.late]
    typing_only = {i.line for i in room.imports if i.typing_only}
    assert set(early) <= typing_only or room.name in SSH_ROOMS, f"lines {early}"


@rooms
@pytest.mark.parametrize("name", CLASS_ROOMS)
def test_a_class_of_paramiko_is_used_in_its_rooms_only(room: Room, name: str) -> None:
    annotations = {
        id(inner)
        for node in ast.walk(room.tree)
        for note in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if note is not None
        for inner in ast.walk(note)
    }
    lines = [
        node.lineno
        for node in ast.walk(room.tree)
        if (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)
        if id(node) not in annotations
    ]
    assert lines == [] or room.name in CLASS_ROOMS[name], f"lines {lines}"


@rooms
def test_secrets_are_revealed_in_two_rooms_only(room: Room) -> None:
    lines = [node.lineno for node in ast.walk(room.tree) if isinstance(node, ast.Attribute) and node.attr == "reveal"]
    assert lines == [] or room.name in REVEALING_ROOMS, f"lines {lines}"


# ---- errors


def is_broad(kind: ast.expr | None) -> bool:
    """True for what catches every exception."""
    if isinstance(kind, ast.Tuple):
        return any(map(is_broad, kind.elts))
    return kind is None or (isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"})


@rooms
def test_only_the_translating_rooms_catch_everything_without_passing_it_on(room: Room) -> None:
    swallowed = [
        node.lineno
        for node in ast.walk(room.tree)
        if isinstance(node, ast.ExceptHandler) and is_broad(node.type)
        if not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
    ]
    swallowed += [
        node.lineno
        for node in ast.walk(room.tree)
        if isinstance(node, ast.Call) and "suppress" in ast.dump(node.func) and any(map(is_broad, node.args))
    ]
    assert swallowed == [] or room.name in TRANSLATING_ROOMS, f"lines {swallowed}"


# ---- logs

FOREIGN_NAMES = {"key", "native", "native_path", "path", "source", "target"}


def raw_names(call: ast.Call) -> list[str]:
    """The names of files that a logging call puts raw into its line: with %s, and without ``escaped``."""
    is_log = isinstance(call.func, ast.Attribute) and call.func.attr in {"debug", "info", "warning", "error"}
    if not is_log or not call.args or not isinstance(text := getattr(call.args[0], "value", None), str):
        return []
    conversions = re.findall(r"%[-.\d]*([srdfox])", text)
    return [
        ast.unparse(argument)
        for conversion, argument in zip(conversions, call.args[1:], strict=False)
        if conversion == "s"
        for name in [getattr(argument, "attr", None) or getattr(getattr(argument, "slice", None), "value", None)]
        if name in FOREIGN_NAMES
    ]


@rooms
def test_names_of_files_are_escaped_in_logs(room: Room) -> None:
    raw = [name for node in ast.walk(room.tree) if isinstance(node, ast.Call) for name in raw_names(node)]
    assert raw == [], "log them with %r, or with escaped()"


def test_a_name_that_is_logged_raw_is_found() -> None:
    for line, raw in {
        'log.info("at %s of %s", row["path"], step.source)': 2,
        'log.info("at %r of %s", row["path"], escaped(step.source))': 0,
    }.items():
        (call,) = (node for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Call) and node.args[1:])
        assert len(raw_names(call)) == raw


# ---- size


@sources
def test_a_module_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < LONGEST_MODULE


@sources
def test_a_function_is_short(path: Path) -> None:
    long = {
        node.name: length
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1) >= LONGEST_FUNCTION
    }
    assert long == {}


@sources
def test_a_module_is_named_after_what_it_does(path: Path) -> None:
    assert path.stem.strip("_") not in HOMELESS


# ---- what an import costs


def loaded_by(module: str) -> set[str]:
    """The top-level packages in sys.modules after ``import module`` in a fresh interpreter."""
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=TOP)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("airflow_sftp_backend") & {"airflow", "asyncssh", "azure", "cryptography", "paramiko"} == set()


def test_importing_the_provider_info_loads_nothing_heavy() -> None:
    assert loaded_by("airflow_sftp_backend.provider") & {"airflow", "azure", "cryptography", "paramiko"} == set()


@pytest.mark.parametrize("module", ["operators", "sensors", "triggers", "hooks"])
def test_importing_what_a_dag_file_names_loads_no_ssh_and_no_azure(module: str) -> None:
    assert loaded_by(f"airflow_sftp_backend.{module}") & {"asyncssh", "azure", "paramiko"} == set()
