"""The README and the guides agree with the code."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import airflow_sftp_backend
from airflow_sftp_backend import SFTPBackend, SFTPBackendError, sensors
from airflow_sftp_backend._connections.fields import FIELDS, Field
from airflow_sftp_backend._connections.parser import ConnectionRecord, ConnectionValues
from airflow_sftp_backend.backend._ssh.known_hosts import KnownHosts
from airflow_sftp_backend.cli import _parser
from tests.support.servers import AsyncsshServer

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text()
GUIDE = (TOP / "docs/connections.md").read_text()
BACKEND_GUIDE = (TOP / "docs/backend.md").read_text()
PAGES = sorted(path.relative_to(TOP).as_posix() for path in [*TOP.glob("*.md"), *TOP.glob("docs/*.md")])


def _cell(field: Field) -> str:
    where = "form" if field.column else f"form, Extra `{field.name}`" if field.group else f"Extra `{field.name}`"
    default = "" if field.default is None else f"`{str(field.default).lower()}`"
    names = f"; also {', '.join(f'`{alias}`' for alias in field.aliases)}" if field.aliases else ""
    return f"| {field.label} | {where}{names} | {default} | {field.description} |"


def test_the_connection_table_is_the_table_of_fields() -> None:
    table = "\n".join(["| field | where | default | |", "|---|---|---|---|", *map(_cell, FIELDS)])
    found = re.search(r"<!-- fields.FIELDS -->\n(.*?)\n?<!-- /fields.FIELDS -->", GUIDE, re.DOTALL)
    assert found is not None
    assert found[1] == table, f"it should be\n{table}"


def test_the_commands_are_the_ones_ci_runs() -> None:
    commands = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[0]
    steps = re.search(r"for step in (.*); do", (TOP / ".ci/run").read_text())
    assert steps is not None
    assert {f"make {step}" for step in steps[1].split()} >= set(commands.splitlines())
    assert "make help" in README
    for target in re.findall(r"`make (\w+)`", README + "".join(path.read_text() for path in TOP.glob("docs/*.md"))):
        assert re.search(rf"^{target}:", (TOP / "Makefile").read_text(), re.MULTILINE), target


@pytest.mark.parametrize("page", [README, GUIDE], ids=["README", "guide"])
def test_the_command_is_shown_as_it_is_typed(page: str) -> None:
    shown = re.findall(r"^airflow-sftp-backend (.+)$", page, re.MULTILINE)
    assert shown
    for arguments in shown:
        assert _parser().parse_args(shlex.split(arguments)).command in {"check", "ls", "scan-host-keys"}


def test_the_dag_is_ten_lines_that_make_a_dag() -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert len(code.strip().splitlines()) <= 10
    namespace: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), namespace)  # noqa: S102 - our own text
    tasks = {name: namespace[name] for name in ("send", "wait", "keep")}
    assert [type(task).__name__ for task in tasks.values()] == [
        "SFTPUploadOperator",
        "SFTPFileSensor",
        "SFTPMoveOperator",
    ]


def test_the_example_without_airflow_moves_files(
    tmp_path: Path, asyncssh_plain: AsyncsshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, here = asyncssh_plain.fresh(), tmp_path / "here"
    (folder.path / "inbox/deep").mkdir(parents=True)
    (folder.path / "inbox/deep/a.csv").write_bytes(b"content")
    (folder.path / "inbox/a.csv").write_bytes(b"another of that name")
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/known_hosts").write_text(asyncssh_plain.known_hosts)
    here.mkdir()
    (here / "report.csv").write_bytes(b"report")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(here)
    code = re.findall(r"```python\n(.*?)```", BACKEND_GUIDE, re.DOTALL)[0]
    for named, real in (
        ('"sftp.example.com"', f'"{asyncssh_plain.host}", port={asyncssh_plain.port}'),
        ('"partner"', f'"{asyncssh_plain.username}"'),
        ('"…"', f'"{asyncssh_plain.password}"'),
        ('"/exchange"', f'"{folder.base_path}"'),
    ):
        assert named in code
        code = code.replace(named, real)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - our own text
    assert (here / "inbox/deep/a.csv").read_bytes() == b"content"
    assert (here / "inbox/a.csv").read_bytes() == b"another of that name"
    assert (folder.path / "archive/inbox/a.csv").read_bytes() == b"another of that name"
    assert (folder.path / "archive/inbox/deep/a.csv").read_bytes() == b"content"
    assert (folder.path / "outbox/report.csv").read_bytes() == b"report"
    assert not (folder.path / "inbox/deep/a.csv").exists()


def test_the_example_program_exchanges_files(tmp_path: Path, asyncssh_plain: AsyncsshServer) -> None:
    folder = asyncssh_plain.fresh()
    (folder.path / "inbox").mkdir()
    (folder.path / "inbox/orders.csv").write_bytes(b"an order")
    done = subprocess.run(
        [
            sys.executable,
            TOP / "examples/backend.py",
            asyncssh_plain.host,
            str(asyncssh_plain.port),
            asyncssh_plain.username,
            folder.base_path,
        ],
        env={
            **os.environ,
            "SFTP_PASSWORD": asyncssh_plain.password,
            "SFTP_KNOWN_HOST_KEYS": asyncssh_plain.known_hosts,
        },
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(b"order,amount\n1,10.00\n").hexdigest()
    lines = done.stdout.splitlines()
    assert lines[0] == f"sent outbox/report.csv: 21 bytes, sha256:{digest}"
    assert lines[1].startswith("not sent again: ")
    assert lines[2:] == [
        "received inbox/orders.csv: 8 bytes",
        "settings: defaults",
        "outbox: report.csv, summary.txt",
    ]
    assert (folder.path / "archive/orders.csv").read_bytes() == b"an order"


def test_the_methods_in_the_backend_guide_exist() -> None:
    table = BACKEND_GUIDE[BACKEND_GUIDE.index("## Methods") : BACKEND_GUIDE.index("## Configuration")]
    methods = {
        name
        for row in re.findall(r"^\| [a-z]+ \| (`.*`) \|$", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    public = {name for name in dir(SFTPBackend) if not name.startswith("_") and callable(getattr(SFTPBackend, name))}
    assert methods <= public
    assert public - methods == {"from_config"}


def test_the_errors_in_the_backend_guide_are_all_there_are() -> None:
    table = BACKEND_GUIDE[BACKEND_GUIDE.index("## Errors") : BACKEND_GUIDE.index("## Async use")]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))))
    public = {name: getattr(airflow_sftp_backend, name) for name in airflow_sftp_backend.__all__}
    assert named == {
        name for name, kind in public.items() if isinstance(kind, type) and issubclass(kind, SFTPBackendError)
    }


def test_the_arguments_in_the_table_exist() -> None:
    from airflow_sftp_backend import operators

    rows = re.findall(r"^\| `(SFTP\w+)` \| (.*?) \|", README, re.MULTILINE)
    assert len(rows) == 6
    for name, arguments in rows:
        kind = getattr(operators, name, None) or getattr(sensors, name)
        accepted = {argument for one in kind.__mro__ for argument in getattr(one.__init__, "__annotations__", {})}
        assert set(re.findall(r"`(\w+)`", arguments)) <= accepted, name


@pytest.mark.parametrize(
    "page",
    [
        *sorted(path.relative_to(TOP).as_posix() for path in TOP.glob("docs/*.md")),
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
    ],
)
def test_the_links_lead_to_files(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (TOP / page).read_text()):
        assert (TOP / page).parent.joinpath(target).exists(), target


# ---- the guide to connections


@pytest.mark.parametrize("text", re.findall(r"```json\n(.*?)```", README + GUIDE, re.DOTALL))
def test_the_documented_connections_are_valid(text: str) -> None:
    shown = json.loads(text)
    connection = ConnectionRecord("shown", **{**shown, "extra": json.dumps(shown["extra"])})
    values = ConnectionValues.of(connection)
    assert values.validate() == []
    assert shown["extra"].keys() <= {name for field in FIELDS for name in field.names}
    if "known_host_keys" in shown["extra"]:
        known = KnownHosts.parse(shown["extra"]["known_host_keys"], pinned=True)
        assert (known.problems, len(known.entries)) == ((), 1)


def test_every_documented_message_exists_in_the_code() -> None:
    rows = GUIDE[GUIDE.index("## What to do, by message") : GUIDE.index("## Every field")]
    messages = re.findall(r"^\| `(.*?)` \|", rows, re.MULTILINE)
    assert len(messages) > 10
    source_text = "".join(path.read_text() for path in (TOP / "airflow_sftp_backend").rglob("*.py"))
    source_text = re.sub(r'"\n\s*f?"', "", source_text)  # texts that go on in the next line
    assert [message for message in messages if message not in source_text] == []


def test_every_name_in_the_guide_exists() -> None:
    from airflow_sftp_backend import operators

    rows = re.findall(r"^\| `.*?` \| (.*) \|$", GUIDE[: GUIDE.index("## What to do, by message")], re.MULTILINE)
    assert rows
    for ours in rows:
        for method in re.findall(r"`backend\.(\w+)\(", ours):
            assert hasattr(airflow_sftp_backend.SFTPBackend, method), method
        for kind in re.findall(r"`(SFTP\w+(?:Operator|Sensor))\(", ours):
            assert hasattr(operators, kind) or hasattr(sensors, kind), kind


@pytest.mark.parametrize("name", ["SFTPBackend", "SyncBackendAdapter", "SFTPBackendError"])
def test_the_names_exist(name: str) -> None:
    assert name in BACKEND_GUIDE
    assert hasattr(airflow_sftp_backend, name)
