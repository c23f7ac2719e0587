"""An attempt resumes only partial files of its writer and source."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import AlreadyExists, BackendUnavailable, InvalidPath, SFTPBackend, SFTPBackendError
from airflow_sftp_backend.backend._files import pipelining, samples
from airflow_sftp_backend.backend._files.pipelining import MAX_UNACKED_BYTES, UploadSource
from airflow_sftp_backend.backend._files.samples import SAMPLE_SIZE, sample_ranges
from airflow_sftp_backend.backend._paths import Jail, fresh_token, is_temp_name, resume_token, same_writer
from airflow_sftp_backend.backend._protocol.messages import Write
from airflow_sftp_backend.backend._writes import resume, write_state
from airflow_sftp_backend.backend._writes.atomic_write import write_atomic
from airflow_sftp_backend.backend._writes.write_state import ResumeState
from airflow_sftp_backend.backend._writes.write_target import WriteTarget
from tests.support.files import tree
from tests.support.memory_server import MemoryServer
from tests.support.scripted_channel import contents
from tests.support.servers import DiskFull, Folder, OpenSSHServer, Server

MakeBackend = Callable[..., SFTPBackend]
MiB = 1 << 20
REAL_SIZE = 80 * MiB + 12345
"""Bytes of a file that is striped, and larger than what a server may have to acknowledge."""
SIZE = REAL_SIZE // 8
UNACKED = MAX_UNACKED_BYTES // 8
OLD = b"the old content"


@pytest.fixture(scope="module")
def real_content() -> bytes:
    return random.Random(5).randbytes(REAL_SIZE)


@pytest.fixture(scope="module")
def content(real_content: bytes) -> bytes:
    return real_content[:SIZE]


@pytest.fixture
def real_big(tmp_path: Path, real_content: bytes) -> Path:
    """A large local file."""
    path = tmp_path / "big"
    path.write_bytes(real_content)
    return path


@pytest.fixture
def big(tmp_path: Path, content: bytes, small_limit: None) -> Path:
    """A local file that is large beside the small limit."""
    path = tmp_path / "big"
    path.write_bytes(content)
    return path


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide the limit of unacknowledged bytes by eight, as the sizes here."""
    for module in (pipelining, resume, write_state):
        monkeypatch.setattr(module, "MAX_UNACKED_BYTES", UNACKED)


class Interrupted(BaseException):
    """Stand for the exception of a signal handler."""


class Stop:
    """A progress callback that counts, and interrupts after so many bytes."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.done = 0
        self.first: int | None = None

    def __call__(self, gained: int) -> None:
        self.first = gained if self.first is None else self.first
        self.done += gained
        if self.done >= self.at:
            raise Interrupted


def interrupted(
    backend: SFTPBackend, local: Path, path: str, *, at: int = 60 * MiB // 8, key: str = "a", channels: int = 1
) -> None:
    with pytest.raises(Interrupted):
        backend.upload(local, path, channels=channels, resume_key=key, progress=Stop(at))


# -- uploads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("verify", ["size", "sha256"])
def test_the_next_attempt_resumes_an_interrupted_upload(
    openssh: OpenSSHServer, make_backend: MakeBackend, real_big: Path, real_content: bytes, channels: int, verify: str
) -> None:
    folder = openssh.fresh()
    interrupted(make_backend(openssh, base_path=folder.base_path), real_big, "in/big", at=60 * MiB, channels=channels)
    (left,) = [name for name in tree(folder.path) if is_temp_name(Path(name).name)]
    sent = (folder.path / left).stat().st_size
    assert sent >= 60 * MiB
    seen = Stop(float("inf"))
    backend = make_backend(openssh, base_path=folder.base_path)
    result = backend.upload(real_big, "in/big", channels=channels, resume_key="a", verify=verify, progress=seen)  # type: ignore[arg-type]  # one of them
    assert (result.size, seen.done) == (REAL_SIZE, REAL_SIZE)
    assert seen.first == sent - MAX_UNACKED_BYTES
    assert tree(folder.path) == {"in": None, "in/big": real_content}


def test_an_attempt_without_the_same_resume_key_starts_over(
    server: Server, make_backend: MakeBackend, big: Path, content: bytes
) -> None:
    folder = server.fresh()
    backend = make_backend(server, base_path=folder.base_path)
    interrupted(backend, big, "big", key="mine")
    (left,) = tree(folder.path)
    for key in (None, "another's"):
        seen = Stop(float("inf"))
        backend.upload(big, "big", overwrite=True, resume_key=key, progress=seen)
        assert seen.first is not None
        assert seen.first <= MiB
        assert sorted(tree(folder.path)) == sorted([left, "big"])
    backend.upload(big, "big", overwrite=True, resume_key="mine")
    assert tree(folder.path) == {"big": content}


@pytest.mark.parametrize("change", ["longer", "shorter", "later", "same time"])
def test_a_changed_source_is_sent_from_its_start(
    openssh: OpenSSHServer, make_backend: MakeBackend, big: Path, content: bytes, change: str
) -> None:
    folder = openssh.fresh()
    interrupted(make_backend(openssh, base_path=folder.base_path), big, "big")
    before = big.stat()
    other = {
        "longer": content + b"more", "shorter": content[:-9], "later": content[::-1], "same time": content[::-1],
    }[change]  # fmt: skip
    big.write_bytes(other)
    if change == "same time":
        os.utime(big, ns=(before.st_atime_ns, before.st_mtime_ns))
    seen = Stop(float("inf"))
    make_backend(openssh, base_path=folder.base_path).upload(big, "big", resume_key="a", progress=seen)
    assert seen.first is not None
    assert seen.first <= MiB
    assert tree(folder.path) == {"big": other}


@pytest.mark.parametrize("damage", ["cut", "hole", "longer", "a folder", "a link"])
def test_changes_to_the_partial_file_do_not_reach_the_target(
    openssh: OpenSSHServer, make_backend: MakeBackend, big: Path, content: bytes, damage: str
) -> None:
    folder = openssh.fresh()
    interrupted(make_backend(openssh, base_path=folder.base_path), big, "big")
    (left,) = folder.path.iterdir()
    elsewhere = folder.path / "elsewhere"
    if damage == "cut":
        os.truncate(left, 5 * MiB)
    elif damage == "hole":
        with left.open("r+b") as file:
            file.seek(left.stat().st_size - UNACKED - MiB)
            file.write(bytes(MiB))
    elif damage == "longer":
        os.truncate(left, SIZE + 1)
    else:
        left.unlink()
        if damage == "a folder":
            left.mkdir()
        else:
            elsewhere.write_bytes(content)
            os.utime(elsewhere, ns=(10**18, 10**18))
            left.symlink_to(elsewhere)
    backend = make_backend(openssh, base_path=folder.base_path)
    backend.upload(big, "big", resume_key="a")
    assert (folder.path / "big").read_bytes() == content
    if damage == "a link":
        assert elsewhere.read_bytes() == content
        assert elsewhere.stat().st_mtime_ns == 10**18
        elsewhere.unlink()
    if damage != "a folder":  # which is nobody's part, and stays
        assert tree(folder.path) == {"big": content}


def test_a_lost_server_keeps_the_sent_part_for_the_next_attempt(
    openssh: OpenSSHServer, make_backend: MakeBackend, big: Path, content: bytes
) -> None:
    folder = openssh.fresh()
    backend = make_backend(openssh, base_path=folder.base_path)
    stopped = Stop(float("inf"))

    def progress(gained: int) -> None:
        stopped(gained)
        if stopped.done >= 60 * MiB // 8:
            openssh.kill_sessions()
            raise BackendUnavailable("as if no new connection could be had")

    with pytest.raises(BackendUnavailable):
        backend.upload(big, "big", resume_key="a", progress=progress)
    (left,) = folder.path.iterdir()
    assert is_temp_name(left.name)
    seen = Stop(float("inf"))
    backend.upload(big, "big", resume_key="a", progress=seen)
    assert seen.first is not None
    assert seen.first >= 20 * MiB // 8
    assert tree(folder.path) == {"big": content}


def test_a_refused_upload_leaves_no_partial_file_on_a_full_disk(make_backend: MakeBackend, big: Path) -> None:
    with DiskFull(capacity=60 * MiB // 8) as full:
        folder = full.fresh()
        with pytest.raises(SFTPBackendError):
            make_backend(full, base_path=folder.base_path).upload(big, "big", resume_key="a")
        assert tree(folder.path) == {}


@pytest.mark.parametrize("standing", ["file", "folder"])
def test_an_existing_target_is_refused_and_keeps_no_partial_file(
    openssh: OpenSSHServer, make_backend: MakeBackend, big: Path, standing: str
) -> None:
    folder = openssh.fresh()
    backend = make_backend(openssh, base_path=folder.base_path)
    interrupted(backend, big, "big")
    target = folder.path / "big"
    target.write_bytes(OLD) if standing == "file" else target.mkdir()
    with pytest.raises(AlreadyExists if standing == "file" else InvalidPath):
        backend.upload(big, "big", resume_key="a")
    assert tree(folder.path) == {"big": OLD if standing == "file" else None}


def test_a_small_partial_file_is_not_kept(server: Server, make_backend: MakeBackend, big: Path) -> None:
    folder = server.fresh()
    interrupted(make_backend(server, base_path=folder.base_path), big, "big", at=20 * MiB // 8)
    assert tree(folder.path) == {}


def test_concurrent_writers_do_not_mix_even_with_one_resume_key(
    server: Server, make_backend: MakeBackend, tmp_path: Path, content: bytes, small_limit: None
) -> None:
    folder = server.fresh()
    other = content[::-1]
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(content)
    two.write_bytes(other)
    os.utime(two, ns=(one.stat().st_atime_ns, one.stat().st_mtime_ns))
    first, second = (make_backend(server, base_path=folder.base_path) for _ in range(2))
    nested: list[bool] = []

    def progress(gained: int) -> None:
        if not nested:
            nested.append(True)
            second.upload(two, "big", overwrite=True, resume_key="a")

    with suppress(SFTPBackendError):  # the second has taken its temporary file for one of a try that ended
        first.upload(one, "big", overwrite=True, resume_key="a", progress=progress)
    assert nested
    assert tree(folder.path) in ({"big": content}, {"big": other})


def test_the_next_attempt_resumes_each_of_many_uploads(
    openssh: OpenSSHServer, make_backend: MakeBackend, tmp_path: Path, content: bytes, small_limit: None
) -> None:
    folder = openssh.fresh()
    sources = {f"{number}": content[number : number + 60 * MiB // 8] for number in range(3)}
    for name, held in sources.items():
        (tmp_path / name).write_bytes(held)
    pairs = [(tmp_path / name, name) for name in sources]
    with pytest.raises(Interrupted):
        make_backend(openssh, base_path=folder.base_path).upload_many(
            pairs, resume_key="a", channels=1, progress=Stop(150 * MiB // 8)
        )
    seen = Stop(float("inf"))
    make_backend(openssh, base_path=folder.base_path).upload_many(pairs, resume_key="a", progress=seen, overwrite=True)
    assert seen.done == 180 * MiB // 8
    assert seen.first is not None
    assert seen.first > MiB
    assert tree(folder.path) == sources


# -- downloads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def there(openssh: OpenSSHServer, content: bytes) -> Folder:
    """A folder of OpenSSH's that holds a file."""
    folder = openssh.fresh()
    (folder.path / "big").write_bytes(content)
    return folder


@pytest.fixture
def real_there(openssh: OpenSSHServer, real_content: bytes) -> Folder:
    """A folder of OpenSSH's that holds a large file."""
    folder = openssh.fresh()
    (folder.path / "big").write_bytes(real_content)
    return folder


def cut_short(backend: SFTPBackend, local: Path, *, at: int = 5 * MiB, key: str | None = "a") -> None:
    with pytest.raises(Interrupted):
        backend.download("big", local, resume_key=key, progress=Stop(at))


@pytest.mark.parametrize("verify", ["size", "sha256"])
def test_the_next_attempt_resumes_an_interrupted_download(
    openssh: OpenSSHServer, make_backend: MakeBackend, there: Folder, tmp_path: Path, content: bytes, verify: str
) -> None:
    cut_short(make_backend(openssh, base_path=there.base_path), tmp_path / "here")
    (left,) = tmp_path.iterdir()
    assert left.stat().st_mode & 0o777 == 0o600
    sent = left.stat().st_size
    seen = Stop(float("inf"))
    backend = make_backend(openssh, base_path=there.base_path)
    result = backend.download("big", tmp_path / "here", resume_key="a", verify=verify, progress=seen)  # type: ignore[arg-type]  # one of them
    assert (result.size, seen.first, seen.done) == (SIZE, sent, SIZE)
    if verify == "sha256":
        assert result.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert tree(tmp_path) == {"here": content}


def test_an_interrupted_download_without_a_resume_key_leaves_nothing(
    openssh: OpenSSHServer, make_backend: MakeBackend, there: Folder, tmp_path: Path
) -> None:
    cut_short(make_backend(openssh, base_path=there.base_path), tmp_path / "here", key=None)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "change", ["another size", "another time", "same time", "hole", "longer", "a link", "a hard link", "a folder"]
)
def test_a_partial_file_of_another_source_is_not_used(
    openssh: OpenSSHServer, make_backend: MakeBackend, there: Folder, tmp_path: Path, content: bytes, change: str
) -> None:
    cut_short(make_backend(openssh, base_path=there.base_path), tmp_path / "here")
    (left,) = tmp_path.iterdir()
    source = there.path / "big"
    before, expected = source.stat(), content
    if change in ("another size", "another time", "same time"):
        expected = content[1:] if change == "another size" else content[::-1]
        source.write_bytes(expected)
        later = 0 if change == "same time" else 10**10
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + later))
    elif change == "hole":
        with left.open("r+b") as file:
            file.seek(left.stat().st_size - MiB)
            file.write(bytes(MiB))
    elif change == "longer":
        os.truncate(left, SIZE + 1)
    elif change == "a hard link":
        (tmp_path / "elsewhere").hardlink_to(left)
    else:
        left.rename(tmp_path / "elsewhere")
        left.mkdir() if change == "a folder" else left.symlink_to(tmp_path / "elsewhere")
    seen = Stop(float("inf"))
    make_backend(openssh, base_path=there.base_path).download("big", tmp_path / "here", resume_key="a", progress=seen)
    assert (tmp_path / "here").read_bytes() == expected
    assert seen.first is not None
    assert seen.first <= MiB
    if change == "a hard link":
        assert set(tree(tmp_path)) == {"here", "elsewhere"}
        assert (tmp_path / "elsewhere").stat().st_size < SIZE
    elif change in ("a link", "a folder"):  # nobody's part: they stay
        assert set(tree(tmp_path)) == {"here", "elsewhere", left.name}
        assert (tmp_path / "elsewhere").stat().st_size < SIZE
    else:
        assert set(tree(tmp_path)) == {"here"}


@pytest.mark.parametrize("key", ["another's", None])
def test_local_partial_files_are_removed_after_an_hour(
    openssh: OpenSSHServer, make_backend: MakeBackend, there: Folder, tmp_path: Path, content: bytes, key: str | None
) -> None:
    cut_short(make_backend(openssh, base_path=there.base_path), tmp_path / "here")
    (left,) = tmp_path.iterdir()
    (tmp_path / "there").touch()
    backend = make_backend(openssh, base_path=there.base_path)
    backend.download("big", tmp_path / "here", resume_key=key)
    assert set(tree(tmp_path)) == {"here", "there", left.name}
    os.utime(left, (time.time() - 3700,) * 2)
    backend.download("big", tmp_path / "there", overwrite=True, resume_key=key)
    assert set(tree(tmp_path)) == {"here", "there", left.name}
    backend.download("big", tmp_path / "here", overwrite=True, resume_key=key)
    assert tree(tmp_path) == {"here": content, "there": content}


def test_a_partial_file_of_a_running_writer_is_not_adopted(
    openssh: OpenSSHServer, make_backend: MakeBackend, there: Folder, tmp_path: Path, content: bytes
) -> None:
    nested: list[int] = []
    second = make_backend(openssh, base_path=there.base_path)
    counted = Stop(float("inf"))

    def progress(gained: int) -> None:
        counted(gained)
        if counted.done >= 5 * MiB and not nested:
            seen = Stop(float("inf"))
            second.download("big", tmp_path / "here", resume_key="a", progress=seen)
            nested.append(seen.first or 0)

    make_backend(openssh, base_path=there.base_path).download(
        "big", tmp_path / "here", overwrite=True, resume_key="a", progress=progress
    )
    assert nested
    assert nested[0] <= MiB
    assert tree(tmp_path) == {"here": content}


# -- kill -9 ----------------------------------------------------------------------------------------------------------


def killed(server: OpenSSHServer, base_path: str, **work: object) -> bool:
    """Return whether the work completes in a process that kills itself."""
    connection = {
        "host": server.host, "port": server.port, "username": server.username, "base_path": base_path,
        "pkey": server.client_key.read_text(), "config": {"known_host_keys": server.known_hosts},
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.support.killed_transfer", json.dumps(work | {"connection": connection})]
    root = Path(__file__).parents[3]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode != 0


@pytest.mark.system
@pytest.mark.timeout(240)
def test_after_any_kill_of_this_process_the_next_upload_is_complete(
    openssh: OpenSSHServer, make_backend: MakeBackend, real_big: Path, real_content: bytes
) -> None:
    chance = random.Random(7)
    folder = openssh.fresh()
    resumed = 0
    for number in range(25):
        for _ in range(chance.choice([1, 1, 2])):
            killed(
                openssh, folder.base_path, work="up", local=str(real_big), path="big", key=f"try of {number}",
                channels=chance.choice([1, 4]), kill_at=chance.randrange(1, REAL_SIZE + MiB),
            )  # fmt: skip
        seen = Stop(float("inf"))
        backend = make_backend(openssh, base_path=folder.base_path)
        with suppress(AlreadyExists):  # killed after it had its name, or not at all
            backend.upload(real_big, "big", resume_key=f"try of {number}", progress=seen)
        resumed += (seen.first or 0) > MiB
        backend.close()
        assert tree(folder.path) == {"big": real_content}
        (folder.path / "big").unlink()
    assert resumed >= 3


@pytest.mark.system
@pytest.mark.timeout(240)
def test_after_any_kill_of_the_server_the_next_upload_is_complete(
    make_backend: MakeBackend, real_big: Path, real_content: bytes
) -> None:
    chance = random.Random(9)
    resumed = 0
    with OpenSSHServer() as server:
        folder = server.fresh()
        for _ in range(25):
            dies_at = chance.randrange(1, REAL_SIZE)
            done = 0

            def progress(gained: int, dies_at: int = dies_at) -> None:
                nonlocal done
                done += gained
                if done >= dies_at:
                    server.die()

            with pytest.raises(BackendUnavailable):
                make_backend(server, base_path=folder.base_path).upload(
                    real_big, "big", resume_key="a", channels=chance.choice([1, 4]), progress=progress
                )
            server.revive()
            seen = Stop(float("inf"))
            make_backend(server, base_path=folder.base_path).upload(real_big, "big", resume_key="a", progress=seen)
            resumed += (seen.first or 0) > MiB
            assert tree(folder.path) == {"big": real_content}
            (folder.path / "big").unlink()
    assert resumed >= 3


@pytest.mark.system
@pytest.mark.timeout(240)
def test_after_any_kill_of_this_process_the_next_download_is_complete(
    openssh: OpenSSHServer, make_backend: MakeBackend, real_there: Folder, tmp_path: Path, real_content: bytes
) -> None:
    chance = random.Random(11)
    resumed = 0
    here = tmp_path / "here"
    for _ in range(12):
        assert killed(
            openssh, real_there.base_path, work="down", local=str(here), path="big", key="a",
            kill_at=chance.randrange(1, REAL_SIZE),
        )  # fmt: skip
        seen = Stop(float("inf"))
        backend = make_backend(openssh, base_path=real_there.base_path)
        backend.download("big", here, resume_key="a", progress=seen)
        backend.close()
        resumed += (seen.first or 0) > MiB
        assert tree(tmp_path) == {"here": real_content}
        here.unlink()
    assert resumed >= 6


# -- algorithms -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4 << 20) | st.integers(1, 1 << 40))
def test_samples_lie_within_the_file_and_cover_its_end_or_all_of_2_mib(size: int) -> None:
    compared = sample_ranges(size)
    assert all(start >= 0 and 0 < length <= SAMPLE_SIZE and start + length <= size for start, length in compared)
    covered = size
    for start, length in reversed(compared):
        if start + length < covered:
            break
        covered = start
    assert covered <= (0 if size <= 2 * MiB else size - MiB)
    gaps = [after[0] - before[0] for before, after in itertools.pairwise(compared)]
    assert not gaps or max(gaps) <= max(SAMPLE_SIZE, size // 32 + 1)


@given(st.text(), st.text(), st.integers(0, 1 << 60), st.integers(-(1 << 60), 1 << 60))
def test_writer_tokens_identify_the_writer(key: str, other: str, size: int, changed: int) -> None:
    token = resume_token(key, size, changed)
    assert is_temp_name(Jail("/").resolve("a").temp(token).name)
    assert same_writer(token, resume_token(key, size + 1, changed))
    assert same_writer(token, fresh_token(token, "0123456789ab"))
    assert resume_token(key, size + 1, changed) != token


def write_target() -> WriteTarget:
    target = Jail("/").resolve("in/target")
    return WriteTarget(target, target.temp("aaaaaa000000"), target.temp("f" * 12), overwrite=True)


def with_resume_key(spare: int = 999999) -> ResumeState:
    """The state of a new write whose temporary file later calls find."""
    target = write_target()
    return ResumeState(temp=target.temp, fresh_temp=target.path.temp(f"aaaaaa{spare:06}"))


@given(
    source=contents(1, 300),
    left=contents(0, 320).map(lambda content: content[::-1]) | st.binary(max_size=320),
    whole=st.booleans(),
    keep=st.integers(0, 300),
    piece=st.integers(1, 9),
)
def test_whatever_the_partial_file_holds_the_result_is_the_source(
    source: bytes, left: bytes, whole: bool, keep: int, piece: int
) -> None:
    part = source[:keep] if whole else left
    server = MemoryServer({"/in": None, "/in/target": OLD, write_target().temp.native: part})
    with (
        patch.object(resume, "MAX_UNACKED_BYTES", 20),
        patch.object(write_state, "MAX_UNACKED_BYTES", 20),
        patch.object(samples, "SAMPLE_SIZE", piece),
        patch.object(samples, "WHOLE_SIZE", 32 * piece),
    ):
        server.run(write_atomic(server, write_target(), UploadSource(source), None, with_resume_key()))
    # what is compared is a sample: of parts so small, all of it
    if whole or 32 * piece >= len(left) - 20:
        assert server.content() == {"/in/target": source}
    assert not server.open
    written = sum(len(request.data) for request in server.requests if isinstance(request, Write))
    if whole and 20 < keep <= len(source):
        assert written == len(source) - (min(keep, len(source)) - 20)


@given(source=contents(60, 300), lost=st.lists(st.integers(1, 90), min_size=1, max_size=4))
def test_after_losses_at_any_requests_the_last_attempt_is_complete(source: bytes, lost: list[int]) -> None:
    held: dict[str, bytes] = {"/in/target": OLD}
    with patch.object(resume, "MAX_UNACKED_BYTES", 20), patch.object(write_state, "MAX_UNACKED_BYTES", 20):
        for times, number in enumerate([*lost, 0]):
            server = MemoryServer({"/in": None} | held, fail_at={number}, failure="lost before")
            try:
                server.run(write_atomic(server, write_target(), UploadSource(source), None, with_resume_key(times + 1)))
            except BackendUnavailable:
                assert server.content()["/in/target"] in (OLD, source)
            held = server.content()
    assert held.pop("/in/target") == source
    assert write_target().temp.native not in held  # other names of the writer are found by listing the folder
