"""Transfers resume over a new connection with exact bytes."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_sftp_backend import BackendUnavailable, NotFound, SFTPBackend, SFTPBackendError, TransferCorrupted
from airflow_sftp_backend.backend._files.pipelining import UploadSource
from airflow_sftp_backend.backend._paths import Jail, is_temp_name
from airflow_sftp_backend.backend._protocol.messages import Write
from airflow_sftp_backend.backend._writes.atomic_write import write_atomic
from airflow_sftp_backend.backend._writes.cleanup import roll_back
from airflow_sftp_backend.backend._writes.write_state import ResumeState
from airflow_sftp_backend.backend._writes.write_target import WriteTarget
from tests.support.files import tree
from tests.support.memory_server import MemoryServer
from tests.support.servers import DropsAfter, OpenSSHServer, Server

MakeBackend = Callable[..., SFTPBackend]
MiB = 1 << 20
BIG = random.Random(3).randbytes(24 * MiB)
OLD, NEW = b"the old content", b"the new content, which is rather longer"
LONG = NEW * 20


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A large local file."""
    path = tmp_path / "big"
    path.write_bytes(BIG)
    return path


# -- real servers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["size", "sha256", "none"])
def test_a_resumed_upload_sends_only_the_window_in_flight_again(
    make_backend: MakeBackend, big: Path, verify: str
) -> None:
    with DropsAfter(volume=12 * MiB) as dropping:
        folder = dropping.fresh()
        backend = make_backend(dropping, base_path=folder.base_path)
        seen: list[int] = []
        result = backend.upload(big, "in/big", verify=verify, progress=seen.append)  # type: ignore[arg-type]  # one of them
        assert dropping.dropped
        assert tree(folder.path) == {"in": None, "in/big": BIG}
        assert (result.size, sum(seen), dropping.logins()) == (len(BIG), len(BIG), 2)
        if verify != "sha256":  # which reads it all back
            assert dropping.moved <= len(BIG) + 9 * MiB


@pytest.mark.parametrize("channels", [1, 4])
def test_an_upload_survives_many_losses(
    openssh: OpenSSHServer, make_backend: MakeBackend, big: Path, channels: int
) -> None:
    folder = openssh.fresh()
    backend = make_backend(openssh, base_path=folder.base_path)
    sent, killed = 0, 0

    def progress(gained: int) -> None:
        nonlocal sent, killed
        sent += gained
        if sent >= (killed + 1) * 5 * MiB:
            killed += 1
            openssh.kill_sessions()

    before = openssh.logins()
    assert backend.upload(big, "big", channels=channels, progress=progress).size == len(BIG)
    assert tree(folder.path) == {"big": BIG}
    assert sent == len(BIG)
    assert killed >= 3
    assert openssh.logins() - before >= 3


def test_many_interrupted_uploads_all_resume(make_backend: MakeBackend, tmp_path: Path) -> None:
    contents = {f"{number}": random.Random(number).randbytes(2 * MiB + number) for number in range(8)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with DropsAfter(volume=7 * MiB) as dropping:
        folder = dropping.fresh()
        backend = make_backend(dropping, base_path=folder.base_path)
        outcomes = backend.upload_many([(tmp_path / name, name) for name in contents])
        assert [getattr(outcome, "size", outcome) for outcome in outcomes] == [len(c) for c in contents.values()]
        assert tree(folder.path) == contents
        assert dropping.dropped


@pytest.mark.parametrize("requests", range(30, 60, 3))
def test_interrupted_uploads_leave_no_temporary_file(make_backend: MakeBackend, tmp_path: Path, requests: int) -> None:
    contents = {f"{number}": bytes([number]) * (3 * MiB if number == 9 else 70_000) for number in range(10)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with DropsAfter(requests=requests) as dropping:
        folder = dropping.fresh()
        backend = make_backend(dropping, base_path=folder.base_path)
        outcomes = backend.upload_many([(tmp_path / name, name) for name in contents], return_exceptions=True)
        assert dropping.dropped
        for name, outcome in zip(contents, outcomes, strict=True):
            assert isinstance(outcome, BackendUnavailable) or (folder.path / name).read_bytes() == contents[name]
        assert [path.name for path in folder.path.iterdir() if is_temp_name(path.name)] == []


def test_a_source_that_changes_during_the_loss_is_not_committed(make_backend: MakeBackend, big: Path) -> None:
    with DropsAfter(volume=8 * MiB) as dropping:
        folder = dropping.fresh()
        (folder.path / "big").write_bytes(OLD)

        def progress(gained: int) -> None:
            os.utime(big, ns=(1, 1))

        with pytest.raises(TransferCorrupted, match="changed while it was read"):
            make_backend(dropping, base_path=folder.base_path).upload(big, "big", True, progress=progress)
        assert tree(folder.path) == {"big": OLD}


def test_a_source_that_shrinks_during_the_loss_leaves_nothing(make_backend: MakeBackend, big: Path) -> None:
    with DropsAfter(volume=8 * MiB) as dropping:
        folder = dropping.fresh()
        with pytest.raises(TransferCorrupted, match="changed while it was read"):
            make_backend(dropping, base_path=folder.base_path).upload(
                big, "big", progress=lambda _: os.truncate(big, 5)
            )
        assert tree(folder.path) == {}


def test_a_server_that_does_not_come_back_is_unavailable(make_backend: MakeBackend, big: Path) -> None:
    dropping = DropsAfter(volume=8 * MiB)
    dropping.start()
    stopped: list[bool] = []

    def progress(gained: int) -> None:
        if not stopped:
            stopped.append(True)
            dropping.stop()

    try:
        with pytest.raises(BackendUnavailable):
            make_backend(dropping, timeout=5).upload(big, "big", progress=progress)
    finally:
        dropping.stop()


def test_a_temporary_file_changed_by_others_is_sent_again(server: Server, make_backend: MakeBackend, big: Path) -> None:
    folder = server.fresh()
    backend = make_backend(server, base_path=folder.base_path)
    sent = 0
    done: list[str] = []

    def progress(gained: int) -> None:
        nonlocal sent
        sent += gained
        if sent >= 6 * MiB and not done:
            done.append("cut")
            (temp,) = folder.path.iterdir()
            os.truncate(temp, 5)
            server.kill_sessions()
        elif sent >= 12 * MiB and len(done) == 1:
            done.append("removed")
            (temp,) = folder.path.iterdir()
            temp.unlink()
            server.kill_sessions()

    assert backend.upload(big, "big", progress=progress).size == len(BIG)
    assert done == ["cut", "removed"]
    assert tree(folder.path) == {"big": BIG}
    assert sent == len(BIG)


# -- downloads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["size", "sha256", "none"])
def test_a_resumed_download_reads_only_the_window_in_flight_again(
    make_backend: MakeBackend, tmp_path: Path, verify: str
) -> None:
    with DropsAfter(volume=12 * MiB) as dropping:
        folder = dropping.fresh()
        (folder.path / "big").write_bytes(BIG)
        backend = make_backend(dropping, base_path=folder.base_path)
        seen: list[int] = []
        result = backend.download("big", tmp_path / "big", verify=verify, progress=seen.append)  # type: ignore[arg-type]  # one of them
        assert dropping.dropped
        assert tree(tmp_path) == {"big": BIG}
        assert (result.size, sum(seen), dropping.logins()) == (len(BIG), len(BIG), 2)
        assert dropping.moved <= len(BIG) + 21 * MiB


def test_many_downloads_survive_many_losses(openssh: OpenSSHServer, make_backend: MakeBackend, tmp_path: Path) -> None:
    folder = openssh.fresh()
    contents = {f"{number}": random.Random(number).randbytes(5 * MiB + number) for number in range(4)}
    for name, content in contents.items():
        (folder.path / name).write_bytes(content)
    backend = make_backend(openssh, base_path=folder.base_path)
    came, killed = 0, 0

    def progress(gained: int) -> None:
        nonlocal came, killed
        came += gained
        if came >= (killed + 1) * 4 * MiB:
            killed += 1
            openssh.kill_sessions()

    outcomes = backend.download_many([(name, tmp_path / name) for name in contents], progress=progress)
    assert [getattr(outcome, "size", outcome) for outcome in outcomes] == [len(c) for c in contents.values()]
    assert tree(tmp_path) == contents
    assert came == sum(map(len, contents.values()))
    assert killed >= 3


@pytest.mark.parametrize("change", ["longer", "newer", "gone"])
def test_a_source_replaced_during_the_loss_is_not_committed(
    server: Server, make_backend: MakeBackend, tmp_path: Path, change: str
) -> None:
    folder = server.fresh()
    source = folder.path / "big"
    source.write_bytes(BIG)
    os.utime(source, (1_000_000, 1_000_000))
    done: list[str] = []

    def progress(gained: int) -> None:
        if not done:
            done.append(change)
            if change == "longer":
                source.write_bytes(BIG + b"more")
            elif change == "newer":
                os.utime(source, (2_000_000, 2_000_000))
            else:
                source.unlink()
            server.kill_sessions()

    with pytest.raises(NotFound if change == "gone" else TransferCorrupted):
        make_backend(server, base_path=folder.base_path).download("big", tmp_path / "big", progress=progress)
    assert tree(tmp_path) == {}


def test_failed_downloads_leave_no_handle_open(server: Server, make_backend: MakeBackend, tmp_path: Path) -> None:
    backend = make_backend(server)
    backend.check_health()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], len(os.listdir("/proc/self/fd")) + 150), before[1]))
    try:
        pairs = [(f"missing-{number}", tmp_path / f"{number}") for number in range(400)]
        outcomes = backend.download_many(pairs, return_exceptions=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert {type(outcome) for outcome in outcomes} == {NotFound}
    assert tree(tmp_path) == {}


# -- every request ----------------------------------------------------------------------------------------------------


def write_target(*, overwrite: bool) -> WriteTarget:
    target = Jail("/").resolve("in/target")
    return WriteTarget(target, target.temp("0" * 12), target.temp("f" * 12), overwrite)


@pytest.mark.parametrize("failure", ["lost before", "lost after"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_whichever_request_is_lost_the_upload_resumes_or_changes_nothing(failure: str, overwrite: bool) -> None:
    files: dict[str, bytes | None] = {"/in": None, **({"/in/target": OLD} if overwrite else {})}
    whole = MemoryServer(dict(files))
    whole.run(write_atomic(whole, write_target(overwrite=overwrite), UploadSource(NEW, with_digest=True)))
    resumed = 0
    for number in range(1, len(whole.requests) + 1):
        server = MemoryServer(dict(files), fail_at={number}, failure=failure)  # type: ignore[arg-type]  # one of them
        resume_state = ResumeState()
        seen: list[int] = []
        try:
            server.run(
                write_atomic(server, write_target(overwrite=overwrite), UploadSource(NEW), seen.append, resume_state)
            )
        except BackendUnavailable:
            server.reconnect()
        else:  # nobody waits for that reply
            assert server.content() == {"/in/target": NEW}, number
            continue
        if resume_state.resumable:
            resumed += 1
            server.run(
                write_atomic(server, write_target(overwrite=overwrite), UploadSource(NEW), seen.append, resume_state)
            )
            assert server.content() == {"/in/target": NEW}, number
            assert sum(seen) == len(NEW)
            assert not server.open
        else:
            server.run(roll_back(server, write_target(overwrite=overwrite)))
            assert server.content().get("/in/target") in ((OLD, NEW) if overwrite else (None, NEW)), number
        assert not [path for path in server.files if is_temp_name(path.rpartition("/")[2])], number
    assert resumed >= sum(isinstance(request, Write) for request in whole.requests)


def lost_in_the_middle() -> tuple[MemoryServer, ResumeState]:
    """Server after a connection lost between acknowledged blocks."""
    server = MemoryServer({"/in": None}, fail_at={150}, failure="lost before")
    resume_state = ResumeState()
    with pytest.raises(BackendUnavailable):
        server.run(write_atomic(server, write_target(overwrite=False), UploadSource(LONG), None, resume_state))
    server.reconnect()
    assert resume_state.resumable
    assert resume_state.transferred_bytes
    return server, resume_state


def test_a_file_that_cannot_be_reopened_is_sent_from_its_start() -> None:
    server, resume_state = lost_in_the_middle()
    server._fail_at, server._failure = {len(server.requests) + 1}, "denied"
    server.run(write_atomic(server, write_target(overwrite=False), UploadSource(LONG), None, resume_state))
    assert server.content() == {"/in/target": LONG}


def test_a_resumption_refused_at_every_request_commits_nothing() -> None:
    server, resume_state = lost_in_the_middle()
    next_request = len(server.requests) + 1
    server._fail_at, server._failure = range(next_request, next_request + 50), "denied"
    with pytest.raises(SFTPBackendError, match="refused by the test"):
        server.run(write_atomic(server, write_target(overwrite=False), UploadSource(LONG), None, resume_state))
    assert "/in/target" not in server.content()
