"""A file that is opened again is complete, or fails."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from airflow_sftp_backend import BackendUnavailable, SFTPBackend, SFTPBackendError, TransferCorrupted
from airflow_sftp_backend.backend._files import pipelining
from airflow_sftp_backend.backend._files.pipelining import MAX_UNACKED_BYTES
from airflow_sftp_backend.backend._paths import is_temp_name
from airflow_sftp_backend.backend._writes import resume, write_state
from tests.support.files import tree
from tests.support.servers import AsyncsshServer, AWSTransferLike, DropBox, ForgetsTheTail, Server, TruncatesAtOpen

MakeBackend = Callable[..., SFTPBackend]
MiB = 1 << 20
SIZE = 12 * MiB + 12345
LARGE = 5 * MiB + 12345
"""Large enough, with ``small_limit``, for an interrupted upload with a resume key to be left for the next."""


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide the limit of unacknowledged bytes by eight, as the sizes here."""
    for module in (pipelining, resume, write_state):
        monkeypatch.setattr(module, "MAX_UNACKED_BYTES", MAX_UNACKED_BYTES // 8)


class Interrupted(BaseException):
    """Stand for the exception of a signal handler."""


class Cuts:
    """Progress that cuts all connections after each number of bytes."""

    def __init__(self, server: Server, *at: int) -> None:
        self.done = 0
        self.cuts = 0
        self.lowest = 0
        """The most bytes that were lost at once."""
        self._server = server
        self._at = list(at)

    def __call__(self, gained: int) -> None:
        self.done += gained
        self.lowest = min(self.lowest, gained)
        if self._at and self.done >= self._at[0]:
            self._at.pop(0)
            self.cuts += 1
            self._server.kill_sessions()


def stop_at(count: int) -> Callable[[int], None]:
    """A progress callback that interrupts after so many bytes."""
    done = 0

    def progress(gained: int) -> None:
        nonlocal done
        done += gained
        if done >= count:
            raise Interrupted

    return progress


def source(folder: Path, size: int = SIZE, *, zeros: bool = False) -> Path:
    """A local file."""
    path = folder / "source"
    path.write_bytes(bytes(size) if zeros else random.Random(size).randbytes(size))
    return path


TRUNCATING = {
    "truncates": TruncatesAtOpen,
    "and tells the old size": lambda: TruncatesAtOpen(tells_old_size=True),
    "opens one way only": lambda: TruncatesAtOpen(one_way=True),
    "shows readers the old content": lambda: TruncatesAtOpen(one_way=True, hides=True),
    "all of it": lambda: TruncatesAtOpen(tells_old_size=True, one_way=True, hides=True),
}
truncating = pytest.mark.parametrize("make", TRUNCATING.values(), ids=TRUNCATING)


@truncating
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("key", [None, "a"])
def test_an_interrupted_upload_is_complete_where_opening_truncates(
    make_backend: MakeBackend, tmp_path: Path, make: Callable[[], TruncatesAtOpen], channels: int, key: str | None
) -> None:
    local = source(tmp_path)
    with make() as server:
        folder = server.fresh()
        cuts = Cuts(server, 6 * MiB)
        backend = make_backend(server, base_path=folder.base_path)
        result = backend.upload(local, "in/file", channels=channels, resume_key=key, progress=cuts)
        assert cuts.cuts == 1
        assert tree(folder.path) == {"in": None, "in/file": local.read_bytes()}
        assert (result.size, cuts.done) == (SIZE, SIZE)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("verify", ["size", "sha256", "none"])
def test_after_repeated_losses_the_upload_is_complete_or_fails(
    make_backend: MakeBackend, tmp_path: Path, channels: int, verify: str
) -> None:
    local = source(tmp_path)
    with TruncatesAtOpen() as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(b"the old content")
        cuts = Cuts(server, MiB, 5 * MiB, 9 * MiB)  # each time further than before
        backend = make_backend(server, base_path=folder.base_path)
        backend.upload(local, "file", True, channels=channels, verify=verify, progress=cuts)  # type: ignore[arg-type]  # one of them
        assert cuts.cuts == 3
        assert tree(folder.path) == {"file": local.read_bytes()}
        again = Cuts(server, *[3 * MiB] * 40)  # never further than before
        other = tmp_path / "other"
        other.write_bytes(local.read_bytes()[::-1])
        with pytest.raises(BackendUnavailable):
            backend.upload(other, "file", True, channels=channels, verify=verify, progress=again)  # type: ignore[arg-type]  # one of them
        assert again.cuts < 40
        assert tree(folder.path) == {"file": local.read_bytes()}


@truncating
def test_zeros_in_the_source_are_not_read_as_a_hole(
    make_backend: MakeBackend, tmp_path: Path, make: Callable[[], TruncatesAtOpen]
) -> None:
    local = source(tmp_path, zeros=True)
    with make() as server:
        folder = server.fresh()
        cuts = Cuts(server, 6 * MiB)
        make_backend(server, base_path=folder.base_path).upload(local, "file", progress=cuts)
        assert tree(folder.path) == {"file": bytes(SIZE)}
        assert cuts.done == SIZE


@pytest.mark.usefixtures("small_limit")
@truncating
@pytest.mark.parametrize("channels", [1, 4])
def test_the_next_call_with_the_resume_key_is_complete(
    make_backend: MakeBackend, tmp_path: Path, make: Callable[[], TruncatesAtOpen], channels: int
) -> None:
    local = source(tmp_path, LARGE)
    with make() as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        with pytest.raises(Interrupted):
            backend.upload(local, "file", channels=channels, resume_key="a", progress=stop_at(38 * MiB // 8))
        left = list(tree(folder.path))
        assert len(left) == 1 or channels > 1  # a file that was emptied has got another name, which nobody finds again
        assert all(map(is_temp_name, left))
        make_backend(server, base_path=folder.base_path).upload(local, "file", channels=channels, resume_key="a")
        assert tree(folder.path) == {"file": local.read_bytes()}


@pytest.mark.usefixtures("small_limit")
def test_two_writers_with_one_resume_key_leave_no_hole(make_backend: MakeBackend, tmp_path: Path) -> None:
    local = source(tmp_path, LARGE + MiB)
    with TruncatesAtOpen() as server:
        folder = server.fresh()
        first, second = (make_backend(server, base_path=folder.base_path) for _ in range(2))
        done = 0
        met: list[bool] = []

        def progress(gained: int) -> None:
            nonlocal done
            done += gained
            if done >= 42 * MiB // 8 and not met:
                met.append(True)
                with pytest.raises(Interrupted):
                    second.upload(local, "file", overwrite=True, resume_key="a", progress=stop_at(MiB // 8))

        with suppress(SFTPBackendError):  # the second has taken its temporary file for an abandoned one
            first.upload(local, "file", overwrite=True, resume_key="a", progress=progress)
        assert met
        assert tree(folder.path) in ({"file": local.read_bytes()}, {})


@pytest.mark.usefixtures("small_limit")
def test_a_file_truncated_by_another_writer_is_sent_again(make_backend: MakeBackend, tmp_path: Path) -> None:
    local = source(tmp_path, LARGE)
    with TruncatesAtOpen() as server:
        folder = server.fresh()
        done = 0
        emptied: list[bool] = []

        def progress(gained: int) -> None:
            nonlocal done
            done += gained
            if done >= 20 * MiB // 8 and not emptied:
                emptied.append(True)
                (temp,) = folder.path.iterdir()
                os.truncate(temp, 0)

        make_backend(server, base_path=folder.base_path).upload(local, "file", resume_key="a", progress=progress)
        assert emptied
        assert done == LARGE
        assert tree(folder.path) == {"file": local.read_bytes()}


@pytest.mark.parametrize("channels", [1, 4])
def test_acknowledged_bytes_that_the_server_lost_are_sent_again(
    make_backend: MakeBackend, tmp_path: Path, channels: int
) -> None:
    local = source(tmp_path)
    with ForgetsTheTail(tail=3 * MiB) as server:
        folder = server.fresh()
        cuts = Cuts(server, 8 * MiB)
        make_backend(server, base_path=folder.base_path).upload(local, "file", channels=channels, progress=cuts)
        assert cuts.cuts == 1
        assert cuts.lowest < -3 * MiB
        assert tree(folder.path) == {"file": local.read_bytes()}


def test_a_server_that_lists_nothing_gets_the_file_from_its_start(make_backend: MakeBackend, tmp_path: Path) -> None:
    local = source(tmp_path)
    with DropBox() as server:
        folder = server.fresh()
        cuts = Cuts(server, 6 * MiB)
        backend = make_backend(server, base_path=folder.base_path)
        backend.upload(local, "file", verify="none", resume_key="a", progress=cuts)
        assert cuts.cuts == 1
        assert tree(folder.path) == {"file": local.read_bytes()}


@pytest.mark.usefixtures("small_limit")
def test_leftovers_on_a_server_that_lists_nothing_do_not_stop_a_retry(
    make_backend: MakeBackend, tmp_path: Path
) -> None:
    local = source(tmp_path, LARGE)
    with DropBox() as server:
        folder = server.fresh()
        with pytest.raises(Interrupted):
            make_backend(server, base_path=folder.base_path).upload(
                local, "file", verify="none", resume_key="a", progress=stop_at(38 * MiB // 8)
            )
        assert len(tree(folder.path)) == 1
        make_backend(server, base_path=folder.base_path).upload(local, "file", verify="none", resume_key="a")
        assert (folder.path / "file").read_bytes() == local.read_bytes()


def test_unexpected_bytes_beyond_the_sent_ones_are_detected(make_backend: MakeBackend, tmp_path: Path) -> None:
    local = source(tmp_path)
    with AsyncsshServer() as server:
        folder = server.fresh()
        done: list[str] = []

        def progress(gained: int) -> None:
            if not done:
                done.append("cut")
                (temp,) = folder.path.iterdir()
                server.kill_sessions()
                os.truncate(temp, SIZE + 5)

        make_backend(server, base_path=folder.base_path).upload(local, "file", progress=progress)
        assert tree(folder.path) == {"file": local.read_bytes()}


def test_a_source_replaced_after_the_loss_never_gives_a_mixed_download(
    server: Server, make_backend: MakeBackend, tmp_path: Path
) -> None:
    folder = server.fresh()
    there = folder.path / "file"
    content = random.Random(1).randbytes(SIZE)
    there.write_bytes(content)
    os.utime(there, (1_000_000, 1_000_000))
    done: list[str] = []

    def progress(gained: int) -> None:
        if not done:
            done.append("changed")
            other = folder.path / "other"
            other.write_bytes(content[::-1])
            os.utime(other, (1_000_000, 1_000_000))  # a clock that tells whole seconds may give the same one
            other.replace(there)
            server.kill_sessions()

    with pytest.raises(TransferCorrupted, match="changed while it was read"):
        make_backend(server, base_path=folder.base_path).download("file", tmp_path / "file", progress=progress)
    assert done
    assert tree(tmp_path) == {}


@truncating
def test_a_copy_opens_its_target_once(make_backend: MakeBackend, make: Callable[[], TruncatesAtOpen]) -> None:
    with make() as server:
        folder = server.fresh()
        content = random.Random(1).randbytes(SIZE)
        (folder.path / "file").write_bytes(content)
        (folder.path / "copy").write_bytes(b"the old content")
        make_backend(server, base_path=folder.base_path).copy("file", "copy", overwrite=True)
        assert tree(folder.path) == {"file": content, "copy": content}
        assert server.truncated == 0


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("verify", ["size", "sha256", "none"])
def test_a_server_without_random_writes_gets_the_file_from_its_start(
    make_backend: MakeBackend, tmp_path: Path, verify: str
) -> None:
    local = source(tmp_path, LARGE)
    with AWSTransferLike() as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        cuts = Cuts(server, 6 * MiB // 8)
        assert backend.upload(local, "file", verify=verify, progress=cuts).size == LARGE  # type: ignore[arg-type]
        assert (cuts.cuts, cuts.done) == (1, LARGE)
        with pytest.raises(Interrupted):
            backend.upload(local, "later", verify="none", resume_key="a", progress=stop_at(38 * MiB // 8))
        assert backend.upload(local, "later", verify="none", resume_key="a").size == LARGE
        assert tree(folder.path) == {"file": local.read_bytes(), "later": local.read_bytes()}


def test_a_source_overwritten_in_place_never_gives_a_mixed_download(
    server: Server, make_backend: MakeBackend, tmp_path: Path
) -> None:
    folder = server.fresh()
    there = folder.path / "file"
    content = random.Random(1).randbytes(SIZE)
    there.write_bytes(content)
    os.utime(there, (1_000_000, 1_000_000))
    done: list[str] = []

    def progress(gained: int) -> None:
        if not done:
            done.append("changed")
            with there.open("r+b") as file:  # of the same size
                file.write(content[::-1])

    backend = make_backend(server, base_path=folder.base_path)
    with pytest.raises(TransferCorrupted, match="changed while it was read"):
        backend.download("file", tmp_path / "file", progress=progress)
    assert tree(tmp_path) == {}
    backend.download("file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content[::-1]
