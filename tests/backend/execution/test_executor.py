"""A transfer reconnects and resumes while it makes progress."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_sftp_backend import (
    AlreadyExists,
    AuthenticationFailed,
    BackendUnavailable,
    HostKeyRejected,
    RetryPolicy,
    SFTPBackend,
    SFTPBackendError,
)
from airflow_sftp_backend.backend._ssh.host_key_verification import HostKeyVerifier
from airflow_sftp_backend.backend._ssh.session import Session
from tests.support.files import tree
from tests.support.servers import AsyncsshServer, DropsAfter, DropsAtRename, OpenSSHServer, free_port
from tests.support.sessions import config_of, round_trip

MakeBackend = Callable[..., SFTPBackend]
KiB, MiB = 1 << 10, 1 << 20
SIZE = 8 * MiB + 12345
CONTENT = random.Random(3).randbytes(SIZE)
DEFAULT: dict[str, object] = {"reconnect_timeout": 60.0}


class Time:
    """Clock that advances by sleeping only; calls ``then`` once."""

    def __init__(self, at: float = float("inf"), then: Callable[[], object] = lambda: None) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self._at = at
        self._then = then

    def sleep(self, seconds: float) -> None:
        """Moves it."""
        self.slept.append(seconds)
        self.now += seconds
        if self.now >= self._at:
            self._at = float("inf")
            self._then()

    def drive(self, backend: SFTPBackend) -> None:
        """Becomes the time of a backend."""
        backend._session._clock = lambda: self.now
        backend._session._sleep = self.sleep


class Once:
    """A progress callback that does something when so many bytes have come."""

    def __init__(self, at: int, then: Callable[[], object]) -> None:
        self.done = 0
        self._at = float(at)
        self._then = then

    def __call__(self, gained: int) -> None:
        self.done += gained
        if self.done >= self._at:
            self._at = float("inf")
            self._then()


class Nowhere:
    """An address at which nothing listens."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self.port = free_port()


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A local file."""
    path = tmp_path / "here"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("away", [8, 55])
@pytest.mark.parametrize("work", ["upload", "download"])
def test_a_transfer_resumes_when_the_server_is_back(
    sshd: str, make_backend: MakeBackend, local: Path, tmp_path: Path, work: str, away: int
) -> None:
    with OpenSSHServer() as server:
        folder = server.fresh()
        (folder.path / "there").write_bytes(CONTENT)
        backend = make_backend(server, base_path=folder.base_path, config=DEFAULT)
        time = Time(away, lambda: server.revive(same_port=True))
        time.drive(backend)
        progress = Once(3 * MiB, server.die)
        if work == "upload":
            backend.upload(local, "file", progress=progress)
            assert (folder.path / "file").read_bytes() == CONTENT
        else:
            backend.download("there", tmp_path / "file", progress=progress)
            assert (tmp_path / "file").read_bytes() == CONTENT
        assert progress.done == SIZE
        assert away <= time.now <= away + 5
        assert max(time.slept) <= 5


def test_after_the_timeout_the_error_names_the_loss_and_its_cause(make_backend: MakeBackend, local: Path) -> None:
    with AsyncsshServer() as server:
        backend = make_backend(server, config={"reconnect_timeout": 20})
        time = Time()
        time.drive(backend)
        with pytest.raises(
            BackendUnavailable, match=r"lost.*; cannot connect again: .*refuses connections.*; tried [0-9]+ times"
        ) as caught:
            backend.upload(local, "file", progress=Once(3 * MiB, server._stop))
        assert 10 <= time.now <= 20
        assert caught.value.path is None or caught.value.path == "file"


def test_a_reconnect_timeout_of_0_is_one_attempt(make_backend: MakeBackend, local: Path) -> None:
    with AsyncsshServer() as server:
        backend = make_backend(server, config={"reconnect_timeout": 0})
        time = Time()
        time.drive(backend)
        with pytest.raises(BackendUnavailable, match="cannot connect again"):
            backend.upload(local, "file", progress=Once(3 * MiB, server._stop))
        assert time.slept == []


def test_a_refused_login_ends_reconnecting_at_once(make_backend: MakeBackend, local: Path) -> None:
    with AsyncsshServer() as server:
        backend = make_backend(server, password=server.password, config=DEFAULT)
        time = Time()
        time.drive(backend)

        def change() -> None:
            server.password = "another"
            server.kill_sessions()

        with pytest.raises(AuthenticationFailed, match="cannot connect again"):
            backend.upload(local, "file", progress=Once(3 * MiB, change))
        assert time.slept == []


def test_a_refused_host_key_ends_reconnecting_at_once(make_backend: MakeBackend, local: Path) -> None:
    with AsyncsshServer() as server:
        backend = make_backend(server, config=DEFAULT)
        time = Time()
        time.drive(backend)

        def change() -> None:
            changed = config_of(server, known_host_keys=f"SHA256:{'A' * 43}")
            backend._session._checker = HostKeyVerifier(changed, {})
            server.kill_sessions()

        with pytest.raises(HostKeyRejected, match="cannot connect again"):
            backend.upload(local, "file", progress=Once(3 * MiB, change))
        assert time.slept == []


def test_the_end_of_the_task_ends_reconnecting_at_once(make_backend: MakeBackend, local: Path) -> None:
    with AsyncsshServer() as server:
        backend = make_backend(server, config=DEFAULT)
        time = Time(1, lambda: backend.abort_within(0))
        time.drive(backend)
        with pytest.raises(BackendUnavailable):
            backend.upload(local, "file", progress=Once(3 * MiB, server._stop))
        assert time.now <= 3


def test_a_real_backoff_ends_when_the_task_does() -> None:
    session = Session(config_of(Nowhere()))
    session.abort_within(0)
    session.pause(3600)


def test_reconnecting_ends_when_no_attempt_makes_progress(make_backend: MakeBackend, local: Path) -> None:
    with AsyncsshServer() as server:
        backend = make_backend(server, config=DEFAULT)
        time = Time()
        time.drive(backend)
        done = 0

        def progress(gained: int) -> None:
            nonlocal done
            done += gained
            if done >= 3 * MiB:
                server.kill_sessions()
                for file in server.root.rglob("*.part"):  # the server forgets what it was sent
                    file.write_bytes(b"")

        with pytest.raises(BackendUnavailable, match="lost"):
            backend.upload(local, "file", progress=progress)
        assert 4 <= server.logins() <= 12
        assert 1 <= time.now < 60


def test_a_copy_that_loses_its_connection_starts_over(make_backend: MakeBackend) -> None:
    with DropsAfter(volume=6 * MiB) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(CONTENT)
        make_backend(server, base_path=folder.base_path, config=DEFAULT).copy("file", "copy")
        assert server.dropped
        assert tree(folder.path) == {"file": CONTENT, "copy": CONTENT}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("old", [None, b"old", CONTENT[::-1]], ids=["new", "smaller", "same size"])
@pytest.mark.parametrize("key", [None, "a"])
def test_a_rename_whose_reply_is_lost_is_checked(
    make_backend: MakeBackend, local: Path, after: bool, old: bytes | None, key: str | None
) -> None:
    with DropsAtRename(after=after) as server:
        folder = server.fresh()
        if old is not None:
            (folder.path / "file").write_bytes(old)
        backend = make_backend(server, base_path=folder.base_path)
        gained: list[int] = []
        result = backend.upload(local, "file", old is not None, resume_key=key, digest=True, progress=gained.append)
        assert (result.size, result.digest) == (SIZE, f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
        assert tree(folder.path) == {"file": CONTENT}
        assert sum(gained) == SIZE
        assert server.logins() == 2
        assert server.requests["write"] * 32 * KiB <= SIZE + MiB  # no byte is sent twice


@pytest.mark.parametrize("after", [False, True])
def test_a_lost_rename_does_not_replace_a_concurrent_file(make_backend: MakeBackend, local: Path, after: bool) -> None:
    with DropsAtRename(after=after) as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        cut = server.cut

        def cut_and_write(connection: Any) -> None:
            cut(connection)
            if not after:
                (folder.path / "file").write_bytes(b"theirs")

        server.cut = cut_and_write  # type: ignore[method-assign]  # another writer comes just then
        if after:
            backend.upload(local, "file")
            assert tree(folder.path) == {"file": CONTENT}
        else:
            with pytest.raises(AlreadyExists):
                backend.upload(local, "file")
            assert tree(folder.path) == {"file": b"theirs"}


def test_repeatedly_lost_renames_are_committed_or_an_error(make_backend: MakeBackend, local: Path) -> None:
    with DropsAtRename(after=False, drops=100) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(b"old")
        backend = make_backend(server, base_path=folder.base_path, config=DEFAULT)
        time = Time()
        time.drive(backend)
        with pytest.raises(BackendUnavailable):
            backend.upload(local, "file", True)
        assert tree(folder.path) == {"file": b"old"}
        assert server.logins() <= 6


@pytest.mark.parametrize("seconds", [-1, float("nan"), "soon", True])
def test_a_reconnect_timeout_that_is_not_a_number_is_refused(seconds: object) -> None:
    with pytest.raises(ValueError, match="reconnect_timeout must be seconds from 0"):
        SFTPBackend("h", config={"reconnect_timeout": seconds})


def test_the_retry_policy_applies_to_first_connections_only() -> None:
    time = Time()
    config = config_of(Nowhere(), retry=RetryPolicy(max_attempts=2, jitter=0), reconnect_timeout=30)
    session = Session(config, clock=lambda: time.now, sleep=time.sleep)
    with pytest.raises(SFTPBackendError, match="tried 2 times"):
        session.call(round_trip)
    assert time.slept == [1]
    with pytest.raises(SFTPBackendError, match=r"tried [0-9]+ times"):
        session.call(round_trip, reconnecting=True)
    assert time.now == pytest.approx(31, abs=5)
