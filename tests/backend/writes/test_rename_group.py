"""Callers learn of complete files before the renames, once for many files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from airflow_sftp_backend import AlreadyExists, SFTPBackend, SFTPBackendError
from airflow_sftp_backend.backend import PreparedFile
from airflow_sftp_backend.backend._writes.rename_group import RenameGroup
from tests.support.files import tree
from tests.support.servers import DropsAfter, OpenSSHServer, RenameReplaces, StallsAfter, wait_until

MakeBackend = Callable[..., SFTPBackend]
MiB = 1 << 20


class Recorder:
    """Record each argument, and the content under its name then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.groups: list[list[PreparedFile]] = []
        self.named: list[set[str]] = []
        self.temps: set[str] = set()

    def __call__(self, files: Sequence[PreparedFile]) -> None:
        names = set(os.listdir(self.folder))
        self.groups.append([*files])
        self.named.append({name for name in names if not name.endswith(".part")})
        assert {file.temp for file in files} <= names
        assert all((self.folder / file.temp).stat().st_size == file.size for file in files)

    @property
    def files(self) -> dict[str, PreparedFile]:
        """All files it heard of, by name."""
        return {os.path.basename(file.path): file for group in self.groups for file in group}


def many(folder: Path, count: int) -> list[Path]:
    """Small local files."""
    folder.mkdir()
    paths = [folder / f"{number:03}" for number in range(count)]
    for path in paths:
        path.write_bytes(path.name.encode() * 7)
    return paths


def test_many_uploads_are_recorded_together_before_their_renames(
    openssh: OpenSSHServer, make_backend: MakeBackend, tmp_path: Path
) -> None:
    folder = openssh.fresh()
    record = Recorder(folder.path)
    local = many(tmp_path / "local", 200)
    backend = make_backend(openssh, base_path=folder.base_path)
    backend.upload_many([(path, path.name) for path in local], digest=True, before_rename=record)
    assert tree(folder.path) == {path.name: path.read_bytes() for path in local}
    assert len(record.groups) <= 8
    assert record.named[0] == set()
    for name, file in record.files.items():
        stat = (folder.path / name).stat()
        assert (file.size, file.mtime) == (stat.st_size, int(stat.st_mtime))
        assert file.digest is not None
    for group, named in zip(record.groups, record.named, strict=True):
        assert not named & {file.path for file in group}


def test_a_download_of_many_files_is_recorded_before_they_get_their_names(
    openssh: OpenSSHServer, make_backend: MakeBackend, tmp_path: Path
) -> None:
    folder = openssh.fresh()
    remote = many(folder.path / "in", 100)
    (tmp_path / "out").mkdir()
    record = Recorder(tmp_path / "out")
    backend = make_backend(openssh, base_path=folder.base_path)
    backend.download_many([(f"in/{path.name}", tmp_path / "out" / path.name) for path in remote], before_rename=record)
    assert sorted(record.files) == sorted(os.listdir(tmp_path / "out")) == [path.name for path in remote]
    assert len(record.groups) <= 4
    for name, file in record.files.items():
        assert file.mtime == (tmp_path / "out" / name).stat().st_mtime_ns


def test_write_atomic_is_recorded_before_its_rename(openssh: OpenSSHServer, make_backend: MakeBackend) -> None:
    folder = openssh.fresh()
    record = Recorder(folder.path)
    make_backend(openssh, base_path=folder.base_path).write_atomic("a", b"abc", before_rename=record)
    assert (record.files["a"].size, record.named) == (3, [set()])


def test_a_small_file_waits_for_a_large_one_at_most_a_second() -> None:
    now = [0.0]
    heard: list[list[str]] = []
    group = RenameGroup(lambda files: heard.append([file.path for file in files]), lambda: now[0])
    with group.active_transfer(), group.active_transfer():
        waiting = group.wait_until_recorded(PreparedFile("small", "t", 1, None, None))
        next(waiting)
        for now[0] in (0.5, 0.9):
            group.record_if_due()
        assert heard == []
        now[0] = 1.0
        group.record_if_due()
    assert heard == [["small"]]


def test_a_failed_file_does_not_delay_the_others(
    openssh: OpenSSHServer, make_backend: MakeBackend, tmp_path: Path
) -> None:
    folder = openssh.fresh()
    local = many(tmp_path / "local", 100)
    for path in local[::2]:
        (folder.path / path.name).write_bytes(b"theirs")
    record = Recorder(folder.path)
    backend = make_backend(openssh, base_path=folder.base_path)
    outcomes = backend.upload_many(
        [*((path, path.name) for path in local), (tmp_path / "missing", "missing")],
        before_rename=record, return_exceptions=True,
    )  # fmt: skip
    assert [isinstance(outcome, AlreadyExists) for outcome in outcomes[:-1]] == [True, False] * 50
    assert sorted(record.files) == [path.name for path in local[1::2]]


@pytest.mark.parametrize(
    "error", [RuntimeError("mine"), OSError("mine"), SFTPBackendError("mine"), KeyboardInterrupt()]
)
def test_nothing_is_renamed_or_left_when_recording_fails(
    openssh: OpenSSHServer, make_backend: MakeBackend, tmp_path: Path, error: BaseException
) -> None:
    folder = openssh.fresh()
    local = many(tmp_path / "local", 10)

    def fail(files: Sequence[PreparedFile]) -> None:
        raise error

    backend = make_backend(openssh, base_path=folder.base_path)
    with pytest.raises((type(error), ExceptionGroup)):
        backend.upload_many([(path, path.name) for path in local], before_rename=fail)
    wait_until(
        lambda: tree(folder.path) == {}, "the clean-up"
    )  # the last removals are sent, and nobody waits for the replies


def test_after_a_lost_connection_the_remaining_files_are_committed(make_backend: MakeBackend, tmp_path: Path) -> None:
    with DropsAfter(volume=12 * MiB) as dropping:
        folder = dropping.fresh()
        record = Recorder(folder.path)
        local = [*many(tmp_path / "local", 20), tmp_path / "big"]
        local[-1].write_bytes(os.urandom(24 * MiB))
        backend = make_backend(dropping, base_path=folder.base_path)
        outcomes = backend.upload_many(
            [(path, path.name) for path in local], before_rename=record, return_exceptions=True
        )
        assert dropping.dropped
        done = {path.name for path, outcome in zip(local, outcomes, strict=True) if not isinstance(outcome, Exception)}
        assert {name for name in tree(folder.path) if not name.endswith(".part")} == done
        assert "big" in done
        assert done <= set(record.files)


def test_a_target_that_appears_during_recording_is_not_replaced(make_backend: MakeBackend) -> None:
    with RenameReplaces() as server:
        folder = server.fresh()

        def race(files: Sequence[PreparedFile]) -> None:
            (folder.path / "a").write_bytes(b"theirs")

        with pytest.raises(AlreadyExists):
            make_backend(server, base_path=folder.base_path).write_atomic("a", b"ours", before_rename=race)
        assert tree(folder.path) == {"a": b"theirs"}


def test_a_server_that_stalls_before_the_commit_is_an_error(make_backend: MakeBackend, tmp_path: Path) -> None:
    with StallsAfter(requests=60) as server:
        folder = server.fresh()
        local = many(tmp_path / "local", 40)
        backend = make_backend(server, base_path=folder.base_path, io_timeout=1.0)
        outcomes = backend.upload_many(
            [(path, path.name) for path in local], before_rename=Recorder(folder.path), return_exceptions=True
        )
        assert any(isinstance(outcome, SFTPBackendError) for outcome in outcomes)
