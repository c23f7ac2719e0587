"""Create and share file systems, in threads and processes too."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
import pytest
from airflow.sdk import ObjectStoragePath

from airflow_sftp_backend import Secret, SFTPBackend
from airflow_sftp_backend._connections.parser import InvalidConnection
from airflow_sftp_backend.filesystem import SFTPBackendFileSystem, get_fs
from tests.support.airflow import prepared_process
from tests.support.airflow.connections import Connect
from tests.support.servers import AsyncsshServer, Folder

CONTENT = random.Random(3).randbytes(700_000)


def arguments(server: AsyncsshServer, folder: Folder) -> dict[str, Any]:
    return {
        "host": server.host,
        "port": server.port,
        "username": server.username,
        "pkey": server.client_key.read_text(),
        "known_host_keys": server.known_hosts,
        "base_path": folder.base_path,
    }


def test_the_arguments_are_those_of_the_backend(server: AsyncsshServer, folder: Folder) -> None:
    fs = fsspec.filesystem("sftpbackend", **arguments(server, folder))
    fs.pipe("file", CONTENT)
    assert (folder.path / "file").read_bytes() == CONTENT
    with fsspec.open("sftpbackend:///file", **arguments(server, folder)) as file:
        assert file.read() == CONTENT
    with pytest.raises(TypeError, match="hots"):
        fsspec.filesystem("sftpbackend", host="h", hots="x")
    with pytest.raises(ValueError, match="port"):
        fsspec.filesystem("sftpbackend", host="h", port=0)
    with pytest.raises(TypeError, match="unexpected arguments without host: port"):
        fsspec.filesystem("sftpbackend", port=22)
    with pytest.raises(ValueError, match="only one of host, conn_id and backend"):
        fsspec.filesystem("sftpbackend", host="h", conn_id="c")


def test_a_url_names_the_connection_and_the_path(server: AsyncsshServer, folder: Folder, connect: Connect) -> None:
    connect(server, "partner", base_path=folder.base_path)
    (folder.path / "a@b").mkdir()
    (folder.path / "a@b" / "x?y#z.csv").write_bytes(b"1")
    for path in ("/a@b/x?y#z.csv", "//a@b//x?y#z.csv"):
        fs, found = fsspec.core.url_to_fs(f"sftpbackend://partner@{path}")
        assert (fs.conn_id, found) == ("partner", "/a@b/x?y#z.csv")
        assert fs.cat(found) == b"1"
        assert fs.unstrip_protocol(found) == "sftpbackend://partner@/a@b/x?y#z.csv"
        assert fs.cat(fs.unstrip_protocol(found)) == b"1"
    assert SFTPBackendFileSystem._strip_protocol("sftpbackend:///in/x") == "/in/x"
    assert SFTPBackendFileSystem._strip_protocol("in/x/") == "/in/x"
    assert fsspec.filesystem("sftpbackend").conn_id == get_fs(None).conn_id == "sftp_backend_default"


def test_creating_a_file_system_reads_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = get_fs("nowhere")
    monkeypatch.setenv("AIRFLOW_CONN_NOWHERE", '{"conn_type": "sftp_backend"}')
    with pytest.raises(InvalidConnection, match=r"[Hh]ost"):
        fs.ls("")


def test_importing_the_module_loads_neither_paramiko_nor_azure() -> None:
    code = (
        "import sys; import airflow_sftp_backend.filesystem as module; module.get_fs('partner')\n"
        "assert not {'paramiko', 'azure'} & sys.modules.keys()"
    )
    done = prepared_process.run(["-c", code], modules=prepared_process.AIRFLOW_ONLY)
    assert done.returncode == 0, done.stderr


# -- sharing ----------------------------------------------------------------------------------------------------------


def test_a_connection_id_logs_in_once(server: AsyncsshServer, connect: Connect) -> None:
    connect(server, "partner")
    before = server.logins()
    for number in range(5):
        with fsspec.open(f"sftpbackend://partner@/{number}", "w") as file:
            file.write("x")
    assert len(fsspec.filesystem("sftpbackend", conn_id="partner").find("")) == 5
    assert server.logins() == before + 1


def test_what_fsspec_cannot_compare_is_not_shared(server: AsyncsshServer, folder: Folder) -> None:
    given = arguments(server, folder)
    first, second = (fsspec.filesystem("sftpbackend", **given) for _ in range(2))
    assert first is second
    with SFTPBackend("h") as backend, SFTPBackend("h", username="u") as another:
        assert str(backend) == str(another)
        over, over_another = (fsspec.filesystem("sftpbackend", backend=each) for each in (backend, another))
        assert over is not over_another
        assert over != over_another
        assert (over.backend, over_another.backend) == (backend, another)


def test_close_ends_own_connections_only(
    server: AsyncsshServer, connect: Connect, backend: SFTPBackend, fs: SFTPBackendFileSystem, folder: Folder
) -> None:
    fs.pipe("file", b"x")
    fs.close()
    assert backend.connections == 1
    assert fs.cat("file") == b"x"
    assert backend.connections == 1
    connect(server, "partner", base_path=folder.base_path)
    own = get_fs("partner")
    assert own.cat("file") == b"x"
    own.close()
    other = server.fresh()
    (other.path / "file").write_bytes(b"of another connection")
    connect(server, "partner", base_path=other.base_path)
    assert own.cat("file") == b"of another connection"


def test_a_file_system_works_after_its_backend_was_closed(fs: SFTPBackendFileSystem, backend: SFTPBackend) -> None:
    fs.pipe("file", CONTENT)
    backend.close()
    assert fs.cat("file") == CONTENT
    assert backend.connections == 2


def test_no_connection_is_left_at_the_end_of_a_process(server: AsyncsshServer, folder: Folder) -> None:
    code = "import sys, fsspec; fsspec.filesystem('sftpbackend', **eval(sys.stdin.read())).ls('')"
    ended = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code],
        input=repr(arguments(server, folder)), capture_output=True, text=True, check=True, timeout=50,
    )  # fmt: skip
    assert "unclosed connection" not in ended.stderr


# -- secrets ----------------------------------------------------------------------------------------------------------


def texts_of(fs: SFTPBackendFileSystem) -> list[str]:
    """Return what other programs show of a file system."""
    shown = [repr(fs), str(fs), repr(fs.storage_options), fs._fs_token, str(vars(fs))]
    return [*shown, repr(fsspec.core.OpenFile(fs, "/a")), json.dumps(fs.to_dict(include_password=False))]


@pytest.mark.parametrize(
    "given",
    [
        {"password": "hunter2-secret"},
        {"password": Secret("hunter2-secret")},
        {"connect_kwargs": {"passphrase": "hunter2-secret"}},
    ],
    ids=["password", "Secret", "connect_kwargs"],
)
def test_a_file_system_shows_no_secret(given: dict[str, Any]) -> None:
    fs = fsspec.filesystem("sftpbackend", host="h", port=2222, **given)
    assert not [text for text in texts_of(fs) if "hunter2" in text]
    token = fsspec.utils.tokenize(
        SFTPBackendFileSystem, os.getpid(), threading.get_ident(), host="h", port=2222, **given
    )
    assert fs._fs_token != token  # a hash from which a password can be guessed
    for show in (fs.to_json, fs.to_dict):
        with pytest.raises(ValueError, match="this file system has a password or private key among its arguments"):
            show()
    shown = fs.to_dict(include_password=False)
    assert {"host": "h", "port": 2222}.items() <= shown.items()
    assert "password" not in shown
    assert json.loads(fs.to_json(include_password=False)) == shown


def test_a_file_system_without_secrets_is_made_again_from_json() -> None:
    for fs in (get_fs("partner"), fsspec.filesystem("sftpbackend", host="h", username="u")):
        again = SFTPBackendFileSystem.from_json(fs.to_json())
        assert again is fs


def test_equal_passwords_share_a_file_system_and_others_do_not() -> None:
    one, same, other, wrapped = (
        fsspec.filesystem("sftpbackend", host="h", password=password)
        for password in ("aaaaa", "aaaaa", "b", Secret("b"))
    )
    assert one is same
    assert other is wrapped
    assert one != other
    copy = pickle.loads(pickle.dumps(one))
    assert copy is one
    assert copy.backend.config.password == Secret("aaaaa")


def test_a_password_in_the_settings_of_fsspec_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "sftpbackend", {"password": "hunter2-secret"})
    fs = fsspec.filesystem("sftpbackend", host="h")
    assert fs.backend.config.password == Secret("hunter2-secret")
    assert not [text for text in texts_of(fs) if "hunter2" in text]


@pytest.mark.parametrize(
    "use",
    [
        lambda: fsspec.open("sftpbackend://user:hunter2@h/a").open(),
        lambda: ObjectStoragePath("sftpbackend://user:hunter2@h/a").read_bytes(),
        lambda: fsspec.filesystem("sftpbackend", conn_id="sftp://user:hunter2@h").ls(""),
        lambda: get_fs("user:hunter2").ls(""),
    ],
    ids=["fsspec", "ObjectStoragePath", "conn_id", "get_fs"],
)
def test_a_url_with_a_password_is_refused_without_showing_it(use: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"an Airflow connection, which\s+holds") as refused:
        use()
    assert "hunter2" not in str(refused.value)


# -- threads and processes --------------------------------------------------------------------------------------------


def test_threads_read_and_write_their_own_content(fs: SFTPBackendFileSystem) -> None:
    def work(number: int) -> bool:
        content = random.Random(number).randbytes(600_000 + number)
        with fs.open(f"{number}", "wb") as target:
            for start in range(0, len(content), 50_000):
                target.write(content[start : start + 50_000])
        with fs.open(f"{number}") as source:
            pieces = [source.read(40_000) for _ in range(len(content) // 40_000 + 1)]
        return b"".join(pieces) == content == fs.cat_file(f"{number}")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(24)))
    assert len(fs.find("")) == 24


def test_threads_that_start_together_use_one_backend_each_call(server: AsyncsshServer, connect: Connect) -> None:
    connect(server, "partner")
    fs = get_fs("partner")
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(lambda _: fs.ls(""), range(16))] == [[]] * 16


def forked(act: Callable[[], bool]) -> bool:
    """The answer of a forked child."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the tests have threads, and fork says so
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if act() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_child_has_a_connection_of_its_own(fs: SFTPBackendFileSystem, server: AsyncsshServer) -> None:
    fs.pipe("file", CONTENT)
    before = server.logins()
    assert forked(lambda: fs.cat("file") == CONTENT)
    assert fs.cat("file") == CONTENT
    assert server.logins() == before + 1


def test_a_forked_child_leaves_open_files_to_its_parent(fs: SFTPBackendFileSystem, folder: Folder) -> None:
    fs.pipe("file", CONTENT)
    with fs.open("file") as reader, fs.open("new", "wb") as writer:
        head = reader.read(10)
        writer.write(b"of the parent")

        def act() -> bool:
            refusals = 0
            for call in (lambda: reader.seek(0, 2), lambda: reader.read(), lambda: writer.close()):
                try:
                    call()
                except ConnectionError:
                    refusals += 1
            return refusals == 3

        assert forked(act)
        assert head + reader.read() == CONTENT
    assert fs.cat("new") == b"of the parent"


def test_a_pickled_file_system_connects_on_its_own(
    fs: SFTPBackendFileSystem, server: AsyncsshServer, folder: Folder, connect: Connect
) -> None:
    fs.pipe("file", CONTENT)
    connect(server, "partner", base_path=folder.base_path)
    for original in (fs, get_fs("partner"), SFTPBackendFileSystem(**arguments(server, folder))):
        copy = pickle.loads(pickle.dumps(original))
        assert copy.cat("file") == CONTENT
        copy.backend.close()
