"""Remove only partial files whose writer has not come back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from airflow_sftp_backend import CapabilityNotSupported, InvalidPath, NotFound, SFTPBackend
from airflow_sftp_backend.backend import PartialFile
from airflow_sftp_backend.backend._paths import RemotePath, temp_name
from airflow_sftp_backend.backend._transfers.atomic_local_file import AtomicLocalFile
from airflow_sftp_backend.backend._transfers.partial_files import clean_local
from tests.support.files import tree
from tests.support.servers import AsyncsshServer, BareAttributes, OpenSSHServer, Server, WithoutPosixRename

MakeBackend = Callable[..., SFTPBackend]
DAY = timedelta(days=1)
OLD = 2 * 24 * 3600.0
TEMP = temp_name("a.csv", "0123456789ab")
BACKUP = temp_name("a.csv", "0" * 12, "backup")
PARKED = temp_name("a.csv", "0123456789ab", "backup")


@pytest.fixture(autouse=True)
def looks_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No living writer is between two renames."""
    monkeypatch.setattr("airflow_sftp_backend.backend._transfers.partial_files._RECHECK_DELAY", 0.0)


@pytest.fixture(params=["openssh", "asyncssh", "without_posix_rename"])
def server(request: pytest.FixtureRequest, openssh: OpenSSHServer, asyncssh_plain: AsyncsshServer) -> Iterator[Server]:
    """Provide sshd, another server, and one without atomic renames."""
    if request.param == "without_posix_rename":
        with WithoutPosixRename() as other:
            yield other
    else:
        yield openssh if request.param == "openssh" else asyncssh_plain


def put(path: Path, content: bytes = b"part", age: float = OLD) -> Path:
    """Makes a file that nobody has written to for so many seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - age,) * 2)
    return path


def actions(found: list[PartialFile]) -> dict[str, str]:
    return {one.path: one.action for one in found}


def test_only_old_partial_files_are_removed_at_any_depth(server: Server, make_backend: MakeBackend) -> None:
    folder = server.fresh()
    put(folder.path / "in" / TEMP)
    put(folder.path / "in/deep/er" / temp_name("b" * 250, "0123456789ab"))
    put(folder.path / "in/new" / TEMP, age=23 * 3600)
    for name in ("a.csv", "a.csv.part", ".a.csv.part", TEMP + "x", "x" + TEMP, TEMP.replace("0123", "012g"), TEMP[:-5]):
        put(folder.path / "in" / name)
    put(folder.path / "elsewhere" / TEMP)
    before = tree(folder.path)
    backend = make_backend(server, base_path=folder.base_path)
    would = backend.clean_partials("in", DAY, dry_run=True)
    assert tree(folder.path) == before
    found = backend.clean_partials("in", DAY)
    assert actions(found) == {one.path: "removed" for one in would}
    assert {one.action for one in would} == {"would remove"}
    assert before.keys() - tree(folder.path).keys() == set(actions(found))
    assert sorted(path.count("/") for path in actions(found)) == [1, 3]
    (first,) = (one for one in found if one.path == f"in/{TEMP}")
    assert (first.size, first.modified_at is not None) == (4, True)
    assert backend.clean_partials("in", DAY) == []


def test_links_are_neither_followed_nor_removed(server: Server, make_backend: MakeBackend) -> None:
    folder = server.fresh()
    put(folder.path / "precious" / TEMP)
    (folder.path / "in").mkdir()
    (folder.path / "in/link").symlink_to("../precious")
    (folder.path / "in" / TEMP).symlink_to(f"../precious/{TEMP}")
    os.utime(folder.path / "in" / TEMP, (1, 1), follow_symlinks=False)
    before = tree(folder.path)
    backend = make_backend(server, base_path=folder.base_path)
    assert backend.clean_partials("in", DAY) == []
    with pytest.raises(InvalidPath, match="link"):
        backend.clean_partials("in/link", DAY)
    assert tree(folder.path) == before


def test_no_path_leads_out_of_the_base_path(openssh: OpenSSHServer, make_backend: MakeBackend) -> None:
    folder = openssh.fresh()
    put(folder.path / TEMP)
    put(folder.path / "base" / TEMP)
    backend = make_backend(openssh, base_path=f"{folder.base_path}/base")
    with pytest.raises(InvalidPath):
        backend.clean_partials("..", DAY)
    assert actions(backend.clean_partials("/", DAY)) == {TEMP: "removed"}
    assert (folder.path / TEMP).exists()


@pytest.mark.parametrize("name", [BACKUP, PARKED])
@pytest.mark.parametrize("age", [0.0, OLD])
def test_a_backup_whose_file_is_missing_gets_its_name_back(
    server: Server, make_backend: MakeBackend, name: str, age: float
) -> None:
    folder = server.fresh()
    put(folder.path / "in" / name, b"the only copy", age)
    backend = make_backend(server, base_path=folder.base_path)
    assert actions(backend.clean_partials("in", DAY, dry_run=True)) == {f"in/{name}": "would restore"}
    assert (folder.path / "in" / name).exists()
    assert actions(backend.clean_partials("in", DAY)) == {f"in/{name}": "restored"}
    assert tree(folder.path / "in") == {"a.csv": b"the only copy"}


@pytest.mark.parametrize("name", [BACKUP, PARKED])
def test_a_backup_whose_file_exists_is_removed(server: Server, make_backend: MakeBackend, name: str) -> None:
    folder = server.fresh()
    put(folder.path / "in" / name, b"old")
    put(folder.path / "in/a.csv", b"new")
    backend = make_backend(server, base_path=folder.base_path)
    assert actions(backend.clean_partials("in", DAY)) == {f"in/{name}": "removed"}
    assert tree(folder.path / "in") == {"a.csv": b"new"}


def test_a_backup_without_the_name_of_its_file_is_kept(server: Server, make_backend: MakeBackend) -> None:
    folder = server.fresh()
    name = temp_name("a" * 250, "0" * 12, "backup")
    put(folder.path / "in" / name, b"the only copy")
    (found,) = make_backend(server, base_path=folder.base_path).clean_partials("in", DAY)
    assert (found.action, "name of its file" in found.reason) == ("kept", True)
    assert tree(folder.path / "in") == {name: b"the only copy"}


@pytest.mark.parametrize("ahead", [timedelta(days=3), timedelta(days=-3)])
def test_the_age_is_measured_by_the_servers_clock(
    openssh: OpenSSHServer, make_backend: MakeBackend, monkeypatch: pytest.MonkeyPatch, ahead: timedelta
) -> None:
    folder = openssh.fresh()
    put(folder.path / TEMP, age=OLD)
    put(folder.path / "new" / TEMP, age=0)
    monkeypatch.setattr("time.time", lambda: datetime.now(UTC).timestamp() + ahead.total_seconds())
    found = make_backend(openssh, base_path=folder.base_path).clean_partials("", DAY)
    assert actions(found) == {TEMP: "removed"}


def test_a_file_whose_writer_resumes_is_kept(openssh: OpenSSHServer, make_backend: MakeBackend) -> None:
    folder = openssh.fresh()
    temp = put(folder.path / TEMP)
    backend = make_backend(openssh, base_path=folder.base_path)
    call = backend._session.call

    def resumed(*arguments: object, **options: object) -> object:
        if (folder.path / TEMP).exists() and not any(".clock." in name for name in os.listdir(folder.path)):
            calls.append(None)
            if len(calls) == 3:  # listed, and the clock is read
                put(temp, b"part and more", age=0)
        return call(*arguments, **options)  # type: ignore[arg-type]  # passed through

    calls: list[None] = []
    backend._session.call = resumed  # type: ignore[method-assign,assignment]  # watches from within
    (found,) = backend.clean_partials("", DAY)
    assert (found.action, found.reason) == ("kept", "its writer is active again")
    assert tree(folder.path) == {TEMP: b"part and more"}


def test_a_server_without_times_is_reported(make_backend: MakeBackend) -> None:
    with BareAttributes() as server:
        folder = server.fresh()
        put(folder.path / TEMP)
        with pytest.raises(CapabilityNotSupported, match="times"):
            make_backend(server, base_path=folder.base_path).clean_partials("", DAY)
        assert list(tree(folder.path)) == [TEMP]


def test_a_path_that_is_no_directory_and_a_low_age_are_refused(
    openssh: OpenSSHServer, make_backend: MakeBackend, tmp_path: Path
) -> None:
    folder = openssh.fresh()
    put(folder.path / "file")
    backend = make_backend(openssh, base_path=folder.base_path)
    with pytest.raises(NotFound):
        backend.clean_partials("missing", DAY)
    with pytest.raises(InvalidPath):
        backend.clean_partials("file", DAY)
    with pytest.raises(ValueError, match="at least one hour"):
        backend.clean_partials("", timedelta(minutes=59))
    with pytest.raises(ValueError, match="at least one hour"):
        clean_local(tmp_path, timedelta(minutes=59))


# -- on this machine --------------------------------------------------------------------------------------------------


def test_only_old_local_partial_files_are_removed(tmp_path: Path) -> None:
    put(tmp_path / "in/deep" / TEMP)
    put(tmp_path / "in/new" / TEMP, age=0)
    put(tmp_path / "in/a.csv.part")
    put(tmp_path / "in" / BACKUP)
    put(tmp_path / "precious" / TEMP)
    (tmp_path / "in/link").symlink_to(tmp_path / "precious")
    (tmp_path / "in" / TEMP).symlink_to(tmp_path / "precious" / TEMP)
    os.mkfifo(tmp_path / "in" / temp_name("fifo", "0123456789ab"))
    os.utime(tmp_path / "in" / temp_name("fifo", "0123456789ab"), (1, 1))
    before = {str(path) for path in tmp_path.rglob("*")}
    path = str(tmp_path / "in/deep" / TEMP)
    assert actions(clean_local(tmp_path / "in", DAY, dry_run=True)) == {path: "would remove"}
    assert actions(clean_local(tmp_path / "in", DAY)) == {path: "removed"}
    assert before - {str(found) for found in tmp_path.rglob("*")} == {path}
    with pytest.raises(OSError, match="link"):
        clean_local(tmp_path / "in/link", DAY)
    with pytest.raises(FileNotFoundError):
        clean_local(tmp_path / "missing", DAY)


def test_a_local_file_of_a_running_writer_is_kept(tmp_path: Path) -> None:
    with AtomicLocalFile(tmp_path / "a.csv", source=RemotePath("a.csv", "/a.csv"), overwrite=False) as write_target:
        write_target.write(memoryview(b"part"))
        os.utime(write_target.temp, (1, 1))
        assert clean_local(tmp_path, DAY) == []
        assert Path(write_target.temp).exists()
    assert os.listdir(tmp_path) == []
