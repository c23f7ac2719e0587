"""The contract's promises about opening, sharing and closing the connection."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import random
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import paramiko
import pytest

from airflow_sftp_backend import (
    AuthenticationFailed,
    BackendUnavailable,
    CapabilityNotSupported,
    HostKeyRejected,
    RetryPolicy,
    Secret,
    SFTPBackend,
)
from tests.support.backends import offline
from tests.support.files import tree
from tests.support.servers import (
    AsyncsshServer,
    DropsAfter,
    Folder,
    Listener,
    Server,
    StallsAfter,
    free_port,
    mute_listener,
)

MakeBackend = Callable[..., SFTPBackend]
BIG = random.Random(10).randbytes(2_000_000)


# -- arguments --------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_the_first_backend_call() -> None:
    with Listener() as listener:
        backend = SFTPBackend(listener.host, port=listener.port, retry=RetryPolicy.disabled())
        assert backend.address == f"sftp://{listener.host}:{listener.port}"
        assert repr(backend)
        backend.resolve("a")
        backend.close()
        assert listener.connections == 0


def test_an_address_in_brackets_is_that_address() -> None:
    assert SFTPBackend("[::1]").resolve("a").details["host"] == "::1"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"host": ""}, "host"),
        ({"host": "  "}, "host"),
        ({"host": "sftp.example.com:2222"}, "pass port=2222"),
        ({"host": "[::1]:2222"}, "pass port=2222"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"port": "22"}, "port"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"io_timeout": 0}, "io_timeout"),
        ({"io_timeout": float("nan")}, "io_timeout"),
        ({"host_key_policy": "lenient"}, "lenient"),
        ({"base_path": "/data/../etc"}, "base_path"),
        ({"base_path": "/data\0"}, "base_path"),
        ({"config": {"known_host": ""}}, "known_host"),
        ({"pkey": "this is no key"}, "key"),
    ],
)
def test_a_wrong_argument_is_a_value_error_that_names_it(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SFTPBackend(**({"host": "sftp.example.com"} | arguments))  # type: ignore[arg-type]  # what is tested


def test_the_password_is_never_shown(make_backend: MakeBackend) -> None:
    with AsyncsshServer() as server:
        backend = make_backend(server, password="wrong horse")
        with pytest.raises(AuthenticationFailed) as caught:
            backend.check_health()
        assert caught.value.server == backend.address
        for text in (str(caught.value), repr(caught.value), repr(backend), repr(backend.config), str(backend.config)):
            assert "wrong horse" not in text
        assert server.logins() == 0
        right = make_backend(server, password=Secret(server.password or ""))
        right.check_health()
        assert server.logins() == 1


def test_a_changed_host_key_is_rejected_before_anything_is_sent(make_backend: MakeBackend, openssh: Server) -> None:
    with AsyncsshServer() as other:
        lines = other.known_hosts.replace(f":{other.port} ", f":{openssh.port} ")
        backend = make_backend(openssh, known_host_keys=lines)
        before = openssh.logins()
        with pytest.raises(HostKeyRejected) as caught:
            backend.check_health()
        assert caught.value.server == backend.address
        assert "SHA256:" in str(caught.value)
        assert openssh.logins() == before


def test_an_unreachable_host_is_unavailable() -> None:
    backend = SFTPBackend("127.0.0.1", port=free_port(), retry=RetryPolicy.disabled())
    with pytest.raises(BackendUnavailable, match="refuses connections") as caught:
        backend.exists("a")
    assert caught.value.server == backend.address


def test_a_silent_host_is_unavailable_after_the_timeout() -> None:
    with mute_listener() as listener:
        backend = SFTPBackend(listener.host, port=listener.port, timeout=0.5, retry=RetryPolicy.disabled())
        with pytest.raises(BackendUnavailable) as caught:
            backend.read_bytes("a")
        assert caught.value.server == backend.address


# -- opening and closing ----------------------------------------------------------------------------------------------


def test_all_calls_share_one_login(make_backend: MakeBackend, server: Server, tmp_path: Path) -> None:
    before = server.logins()
    backend = make_backend(server)
    backend.write("a", b"1")
    backend.copy("a", "b")
    backend.download("b", tmp_path / "b")
    with backend.read("a") as file:
        file.read()
    assert len(backend.find("*")) == 2
    assert server.logins() == before + 1


def test_close_is_idempotent_and_the_next_call_connects_again(make_backend: MakeBackend, server: Server) -> None:
    backend = make_backend(server)
    backend.close()
    before = server.logins()
    for _ in range(2):
        backend.write("file", b"content", overwrite=True)
        backend.close()
        backend.close()
    assert server.logins() == before + 2


@pytest.mark.parametrize("after", [0.0, 0.5])
def test_an_aborted_backend_ends_its_call_and_starts_no_other(make_backend: MakeBackend, after: float) -> None:
    with StallsAfter(requests=10**9) as stalling:
        backend = make_backend(stalling, base_path=stalling.fresh().base_path)
        assert not backend.exists("a")
        stalling.limit = 0
        ending = threading.Timer(after, backend.abort_within, [0.5])
        start = time.monotonic()
        ending.start()
        with pytest.raises(BackendUnavailable):
            backend.write_atomic("a", b"content")
        with pytest.raises(BackendUnavailable):
            backend.exists("a")
        assert time.monotonic() - start < 2.5
        backend.close()


def test_a_call_that_ends_before_the_abort_deadline_is_undisturbed(make_backend: MakeBackend, server: Server) -> None:
    backend = make_backend(server, base_path=server.fresh().base_path)
    backend.abort_within(20)
    assert backend.write_atomic("a", b"content").size == 7
    backend.abort_within(0.0)
    with pytest.raises(BackendUnavailable):
        backend.exists("a")


def test_the_context_manager_closes(make_backend: MakeBackend, server: Server) -> None:
    with make_backend(server) as backend:
        client = backend.unwrap(paramiko.SSHClient)
        transport = client.get_transport()
        assert transport is not None
        assert transport.is_active()
    assert not transport.is_active()
    with pytest.raises(KeyError), backend:
        client = backend.unwrap(paramiko.SSHClient)
        raise KeyError
    assert client.get_transport() is None


def test_a_forgotten_open_backend_warns_and_does_not_leak(make_backend: MakeBackend, server: Server) -> None:
    config = make_backend(server).config
    threads = set(threading.enumerate())
    kept = [SFTPBackend.from_config(config)]
    kept[0].check_health()

    def forget() -> None:
        kept.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed"):
        forget()
    _until(lambda: set(threading.enumerate()) <= threads)


def test_a_closed_backend_is_forgotten_without_a_warning(make_backend: MakeBackend, server: Server) -> None:
    backend: SFTPBackend | None = SFTPBackend.from_config(make_backend(server).config)
    assert backend is not None
    backend.check_health()
    backend.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend = None
        gc.collect()


def test_unwrap_gives_parts_of_the_open_connection(make_backend: MakeBackend, server: Server) -> None:
    backend = make_backend(server)
    before = server.logins()
    client = backend.unwrap(paramiko.SSHClient)
    assert isinstance(client, paramiko.SSHClient)
    transport = client.get_transport()
    assert transport is not None
    assert transport.is_active()
    assert client is backend.unwrap(paramiko.SSHClient)
    backend.write("file", b"content")
    assert server.logins() == before + 1
    for kind in (int, paramiko.Transport, SFTPBackend):
        with pytest.raises(CapabilityNotSupported) as caught:
            backend.unwrap(kind)
        assert caught.value.server == backend.address


def test_unwrap_gives_an_sftp_client_if_a_second_channel_is_available(
    make_backend: MakeBackend, openssh: Server, one_channel: Server
) -> None:
    folder = openssh.fresh()
    backend = make_backend(openssh, base_path=folder.base_path)
    backend.write("file", b"content")
    client = backend.unwrap(paramiko.SFTPClient)
    assert client is backend.unwrap(paramiko.SFTPClient)
    assert client.stat(backend.native_path("file")).st_size == 7
    assert backend.read_bytes("file") == b"content"
    single = make_backend(one_channel)
    single.write("file", b"content")
    with pytest.raises(BackendUnavailable) as caught:
        single.unwrap(paramiko.SFTPClient)
    assert caught.value.server == single.address
    assert single.read_bytes("file") == b"content"


# -- losing it --------------------------------------------------------------------------------------------------------


def test_queries_and_listings_resume_after_a_lost_connection(backend: SFTPBackend, server: Server) -> None:
    backend.write("sub/file", b"content")
    calls: list[Callable[[], object]] = [
        lambda: backend.exists("sub/file"),
        lambda: backend.is_file("sub/file"),
        lambda: backend.is_folder("sub"),
        lambda: backend.get_file_info("sub/file"),
        lambda: backend.get_folder_info("sub"),
        lambda: backend.read_bytes("sub/file"),
        lambda: list(backend.list_files("", recursive=True)),
        lambda: list(backend.list_folders("")),
        lambda: list(backend.iter_children("")),
        lambda: backend.find("**"),
        backend.check_health,
    ]
    before = server.logins()
    expected = [call() for call in calls]
    assert server.logins() == before
    for call, outcome in zip(calls, expected, strict=True):
        server.kill_sessions()
        assert call() == outcome
    assert server.logins() == before + len(calls)


def test_a_query_that_loses_its_connection_is_repeated_exactly_once(make_backend: MakeBackend) -> None:
    with DropsAfter(requests=2) as server:
        backend = make_backend(server)
        backend.check_health()
        assert not backend.exists("missing")
        assert server.dropped
        assert server.logins() == 2
    with StallsAfter(requests=2) as server:
        backend = make_backend(server, io_timeout=0.3)
        backend.check_health()
        with pytest.raises(BackendUnavailable, match="io_timeout"):
            backend.exists("missing")
        assert server.logins() == 2


def test_a_write_that_loses_its_connection_fails_and_the_next_reconnects(
    make_backend: MakeBackend,
) -> None:
    with DropsAfter(requests=2) as server:
        backend = make_backend(server)
        backend.check_health()
        with pytest.raises(BackendUnavailable) as caught:
            backend.write("file", b"content")
        assert caught.value.server == backend.address
        backend.check_health()
        assert server.logins() == 2


def test_a_listing_begun_before_a_loss_resumes_after_it(backend: SFTPBackend, server: Server) -> None:
    for name in ("1", "a/2", "a/b/3"):
        backend.write(name, b"x")
    found = []
    for file in backend.list_files("", recursive=True):
        found.append(file.path)
        server.kill_sessions()
    assert found == ["1", "a/2", "a/b/3"]


# -- threads, processes, copies ---------------------------------------------------------------------------------------


def test_twenty_threads_each_get_their_own_result(backend: SFTPBackend, folder: Folder, server: Server) -> None:
    before = server.logins()

    def work(number: int) -> list[bool]:
        right = []
        content = bytes([number]) * (number * 20_000)
        for turn in range(5):
            key = f"{turn}/{number}"
            right.append(backend.write_atomic(key, content).size == len(content))
            right.append(backend.read_bytes(key) == content)
            right.append(backend.get_file_info(key).size == len(content))
            right.append(f"{turn}/{number}" in [file.path for file in backend.find(f"{turn}/*")])
            backend.delete(key)
            right.append(not backend.exists(key))
        return right

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(work, range(20)))
    assert answers == [[True] * 25] * 20
    assert server.logins() == before + 1
    assert [name for name, content in tree(folder.path).items() if content is not None] == []


def _answer(backend: SFTPBackend, content: bytes, result: str) -> None:
    backend.write("from the child", content)
    Path(result).write_bytes(backend.read_bytes("file"))
    backend.close()


def test_a_forked_process_has_a_connection_of_its_own(backend: SFTPBackend, server: Server, tmp_path: Path) -> None:
    backend.write("file", BIG)
    before = server.logins()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the tests have threads, and fork says so
        child = os.fork()
    if child == 0:
        try:
            _answer(backend, b"child", str(tmp_path / "result"))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "result").read_bytes() == BIG
    assert backend.read_bytes("from the child") == b"child"
    assert server.logins() == before + 1


def test_a_spawned_process_receives_the_settings(make_backend: MakeBackend, openssh: Server, tmp_path: Path) -> None:
    backend = make_backend(openssh)
    backend.write("file", BIG)
    before = openssh.logins()
    child = multiprocessing.get_context("spawn").Process(
        target=_answer, args=(backend, b"child", str(tmp_path / "result"))
    )
    child.start()
    child.join(50)
    assert child.exitcode == 0
    assert (tmp_path / "result").read_bytes() == BIG
    assert backend.read_bytes("from the child") == b"child"
    assert openssh.logins() == before + 1


def test_an_open_reader_cannot_be_used_in_a_forked_child(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(BIG)
    with backend.read("file") as file:
        assert file.read(10) == BIG[:10]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                file.seek(1_500_000)
                file.read(10)
            except BackendUnavailable:
                os._exit(7)
            finally:
                os._exit(8)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert file.read() == BIG[10:]


def test_a_backend_without_reconnection_stays_lost_as_does_its_copy(backend: SFTPBackend, server: Server) -> None:
    once = SFTPBackend.from_config(backend.config, reconnects=False)
    for one in (once, pickle.loads(pickle.dumps(once)), copy.copy(once)):
        with one:
            one.check_health()
            server.kill_sessions()
            for _ in range(2):
                with pytest.raises(BackendUnavailable):
                    one.check_health()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda backend: pickle.loads(pickle.dumps(backend))])
def test_a_copy_has_the_settings_and_not_the_connection(
    backend: SFTPBackend, server: Server, duplicate: Callable[[SFTPBackend], SFTPBackend]
) -> None:
    backend.write("file", b"content")
    before = server.logins()
    with duplicate(backend) as other:
        assert (other.address, other.native_path("x")) == (backend.address, backend.native_path("x"))
        assert other.read_bytes("file") == b"content"
        assert server.logins() == before + 1
    assert backend.read_bytes("file") == b"content"
    assert server.logins() == before + 1


def test_a_backend_that_was_never_used_copies_too() -> None:
    backend = offline()
    assert copy.deepcopy(backend).config == backend.config
    assert pickle.loads(pickle.dumps(backend)).config == backend.config


def test_calls_within_calls_share_the_connection(backend: SFTPBackend, folder: Folder, server: Server) -> None:
    (folder.path / "a").write_bytes(BIG)
    before = server.logins()
    with backend.read("a") as source:
        backend.write("b", source)
    with backend.read("a") as source:
        backend.write_atomic("c", source, progress=lambda _: backend.check_health())
    with backend.read("a") as source, backend.open_atomic("d") as target:
        while piece := source.read(100_000):
            target.write(piece)
            assert backend.exists("a")
    assert tree(folder.path) == dict.fromkeys("abcd", BIG)
    assert server.logins() <= before + 1


def test_a_reader_ends_with_its_connection(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(BIG)
    file = backend.read("file")
    backend.close()
    with pytest.raises(BackendUnavailable, match="Open the file again"):
        file.read()
    file.close()
    assert backend.read_bytes("file") == BIG


def test_a_forgotten_reader_warns_and_its_handle_is_closed(make_backend: MakeBackend) -> None:
    with AsyncsshServer() as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(BIG)
        backend = make_backend(server, base_path=folder.base_path)
        with pytest.warns(ResourceWarning, match="file"):
            _read_and_forget(backend, "file")
        backend.check_health()
        _until(lambda: server.requests["close"] == 1)


def _read_and_forget(backend: SFTPBackend, path: str) -> None:
    backend.read(path).read(1)
    gc.collect()


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
