"""Provide real servers, new directories on them, and backends."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.support.contract.servers_page import ALL, Matrix
from tests.support.contract.unsupported import check_failure, unsupported
from tests.support.key_vault import Vault
from tests.support.servers import (
    REAL_SERVERS,
    SIMULATED_SERVERS,
    AsyncsshServer,
    Folder,
    OneChannel,
    OpenSSHServer,
    Server,
    WithoutExtensions,
    WithoutPosixRename,
    sshd_path,
)
from tests.support.servers.server import ALL_HOST_KEYS

if TYPE_CHECKING:
    from airflow_sftp_backend import SFTPBackend

# The tests see nothing of the user who runs them: no Airflow, no known hosts, no keys, no agent.
_HOME = tempfile.TemporaryDirectory(prefix="home-of-tests-")
os.environ |= {"HOME": _HOME.name, "AIRFLOW_HOME": f"{_HOME.name}/airflow", "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
for _name in ("SFTP_KNOWN_HOST_KEYS", "SSH_AUTH_SOCK", *(name for name in os.environ if name.startswith("AZURE_"))):
    os.environ.pop(_name, None)

# A shell starts what it puts in the background with interruptions ignored; tests send themselves some.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: no test depends on speed. No example database: nothing is left in the work tree.
for _profile, _examples in (("quick", 20), ("thorough", 100)):  # `make test` and `make test-all`
    hypothesis.settings.register_profile(_profile, deadline=None, database=None, max_examples=_examples)
hypothesis.settings.load_profile("quick")

_VARYING = r"[A-Za-z0-9+/=]{40,}|0x[0-9a-f]{8,}"

NOT_TESTED = "NOT TESTED AGAINST "
NO_SSHD = f"{NOT_TESTED}OPENSSH: sshd is not on this machine; install openssh-server"


def pytest_unconfigure() -> None:
    """Removes what the tests have left in their home folder."""
    _HOME.cleanup()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage among the imports, which leave next to none."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Exempt the collected tests and the loaded modules from garbage collection."""
    gc.collect()
    gc.freeze()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a test case without key or address, equal in all workers."""
    text = val if isinstance(val, str) else repr(val)
    return re.sub(_VARYING, "...", text) if re.search(_VARYING, text) else None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Give all skips for a missing server one location."""
    if report.skipped and isinstance(report.longrepr, tuple) and NOT_TESTED in report.longrepr[2]:
        report.longrepr = (__file__, 1, report.longrepr[2])


@pytest.fixture(scope="session")
def sshd() -> str:
    """Path of sshd; skips the test where it is missing."""
    path = sshd_path()
    if path is None:
        pytest.skip(NO_SSHD)
    return path


@pytest.fixture(scope="session")
def openssh(sshd: str) -> Iterator[OpenSSHServer]:
    """OpenSSH's sshd."""
    assert sshd
    with OpenSSHServer(host_keys=ALL_HOST_KEYS) as server:
        yield server


@pytest.fixture(scope="session")
def bastion(sshd: str) -> Iterator[OpenSSHServer]:
    """Another sshd, to go through."""
    assert sshd
    with OpenSSHServer() as server:
        yield server


@pytest.fixture(scope="session")
def asyncssh_plain() -> Iterator[AsyncsshServer]:
    """asyncssh's server with all it offers."""
    with AsyncsshServer(host_keys=ALL_HOST_KEYS) as server:
        yield server


@pytest.fixture(scope="session")
def without_posix_rename() -> Iterator[WithoutPosixRename]:
    """asyncssh's server with plain rename only."""
    with WithoutPosixRename() as server:
        yield server


@pytest.fixture(scope="session")
def without_extensions() -> Iterator[WithoutExtensions]:
    """asyncssh's server as bare SFTP version 3."""
    with WithoutExtensions() as server:
        yield server


@pytest.fixture(scope="session")
def one_channel() -> Iterator[OneChannel]:
    """asyncssh's server, one channel a connection."""
    with OneChannel() as server:
        yield server


WELL_BEHAVED = ["openssh", "asyncssh_plain", "without_posix_rename", "without_extensions", "one_channel"]
"""The servers that the ``server`` fixture stands for in every test."""
FINDERS = ["proftpd", "rclone"]
"""The real servers of other makers that find most: the contract suite runs on them in each ``make test``."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options for the servers and the page of results."""
    parser.addoption(
        "--servers", metavar="NAMES", help="servers to run the contract suite on, with commas between them, or 'all'"
    )
    parser.addoption("--servers-page", metavar="FILE", type=Path, help="write what holds on which server to this file")


def pytest_configure(config: pytest.Config) -> None:
    """Collect outcomes if the page is requested, except in parallel workers."""
    page: Path | None = config.getoption("--servers-page")
    if page is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Matrix(page))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives each test of the ``server`` fixture its servers."""
    definitions = metafunc._arg2fixturedefs.get("server", ())
    if not definitions or definitions[-1].baseid != "tests":  # a fixture of a folder or module has its own servers
        return
    names: Sequence[str] = WELL_BEHAVED
    if metafunc.module.__name__.rpartition(".")[2].startswith("test_contract_"):
        chosen = metafunc.config.getoption("--servers")
        names = [*WELL_BEHAVED, *FINDERS] if not chosen else ALL if chosen == "all" else chosen.split(",")
    metafunc.parametrize("server", names, indirect=True)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Add the server of a test to its report."""
    if isinstance(item, pytest.Function) and (name := _server_of(item)) is not None:
        item.user_properties.append(("server", name))


def _server_of(item: pytest.Function) -> str | None:
    """Return the name of a test's server, or None."""
    call = getattr(item, "callspec", None)
    name = call.params.get("server") if call is not None else None
    # Other tests have an argument of this name that is a server itself, which no report can carry.
    return name if isinstance(name, str) else None


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Let a test that is declared unsupported fail only as declared."""
    server = _server_of(pyfuncitem)
    entry = unsupported(server, pyfuncitem.function.__name__) if server is not None else None
    if entry is None:
        return (yield)
    failure: BaseException | None = None
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - judged by check_failure
        failure = error
    if (wrong := check_failure(entry, failure)) is not None:
        raise AssertionError(wrong) from failure
    pytest.xfail(entry.reason)


@pytest.fixture(scope="session")
def started() -> Iterator[Callable[[str], Server]]:
    """Return a named server, started once; skip if not installed."""
    with contextlib.ExitStack() as running:
        servers: dict[str, Server] = {}

        def start(name: str) -> Server:
            if name in REAL_SERVERS and (missing := REAL_SERVERS[name].missing()) is not None:
                pytest.skip(f"{NOT_TESTED}{REAL_SERVERS[name].title.upper()}: it needs {missing}")
            if name not in servers:
                servers[name] = running.enter_context((REAL_SERVERS | SIMULATED_SERVERS)[name]())
            return servers[name]

        yield start


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """Each server of the test in turn."""
    name: str = request.param
    by_name = name in REAL_SERVERS or name in SIMULATED_SERVERS
    found: Server = request.getfixturevalue("started")(name) if by_name else request.getfixturevalue(name)
    return found


@pytest.fixture
def folder(server: Server) -> Folder:
    """A fresh, empty folder on ``server``."""
    return server.fresh()


@pytest.fixture
def make_backend() -> Iterator[Callable[..., SFTPBackend]]:
    """``make_backend(server, base_path=..., **arguments)``: a backend for that server, closed after the test.

    It logs in with the server's client key and checks its host key strictly, unless the arguments say otherwise;
    without ``base_path`` it works in a fresh folder. Connecting is tried once, also after a lost connection.
    """
    from airflow_sftp_backend import RetryPolicy, SFTPBackend, SFTPUtils

    made: list[SFTPBackend] = []

    def make(server: Server, **arguments: Any) -> SFTPBackend:
        defaults: dict[str, Any] = {
            "port": server.port,
            "username": server.username,
            "known_host_keys": server.known_hosts,
            "retry": RetryPolicy.disabled(),
        }
        arguments["config"] = {"reconnect_timeout": 0} | dict(arguments.get("config") or {})
        if "base_path" not in arguments:
            defaults["base_path"] = server.fresh().base_path
        if not {"pkey", "password"} & arguments.keys():
            defaults["pkey"] = SFTPUtils.load_private_key(str(server.client_key), from_file=True)
        made.append(SFTPBackend(server.host, **(defaults | arguments)))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    """Key vault that accepts the login of the environment."""
    from airflow_sftp_backend._key_vault.client import default_client

    with Vault(tmp_path) as vault:
        who = vault.register(secret="of the application")
        login = {"CLIENT_ID": who.client_id, "CLIENT_SECRET": "of the application", "TENANT_ID": vault.tenant}
        for name, value in vault.environment().items() | {(f"AZURE_{name}", value) for name, value in login.items()}:
            monkeypatch.setenv(name, value)
        yield vault
        default_client.close()


@pytest.fixture
def backend(make_backend: Callable[..., SFTPBackend], server: Server, folder: Folder) -> SFTPBackend:
    """A backend for ``server`` in ``folder``."""
    return make_backend(server, base_path=folder.base_path)
