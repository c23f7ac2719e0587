"""Unfinished files have names that the target's readers ignore."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import AlreadyExists, InvalidPath, SFTPBackend, SFTPBackendError
from airflow_sftp_backend.backend._paths import (
    RemotePath,
    TempNaming,
    check_temp_suffix,
    is_temp_name,
    name_digest,
    temp_name_token,
)
from airflow_sftp_backend.backend.models import PreparedFile
from tests.support.assertions import refused
from tests.support.backends import offline
from tests.support.faults.cases import NEW, UPLOAD, files
from tests.support.faults.points import lost
from tests.support.files import tree
from tests.support.servers import AsyncsshServer, DropsAfter, Folder

MakeBackend = Callable[..., SFTPBackend]
TOKEN = "0123456789ab"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Return a local file."""
    path = tmp_path / "local"
    path.write_bytes(b"content")
    return path


class Unfinished:
    """Note the files on the server just before the rename."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.names: list[str] = []

    def __call__(self, files: Sequence[PreparedFile]) -> None:
        self.names = [name for name in tree(self._folder.path) if is_temp_name(name.rpartition("/")[2])]
        assert {file.temp for file in files} == {name.rpartition("/")[2] for name in self.names}


@pytest.mark.parametrize("suffix", [".tmp", ".part.filepart"])
def test_an_unfinished_file_has_the_suffix(backend: SFTPBackend, folder: Folder, local: Path, suffix: str) -> None:
    seen = Unfinished(folder)
    backend.upload_many([(local, "in/a.csv")], temp_suffix=suffix, before_rename=seen)
    (name,) = seen.names
    assert name.startswith("in/.a.csv.")
    assert name.endswith(f".part{suffix}")
    backend.write_atomic("in/b.csv", b"content", temp_suffix=suffix, before_rename=seen)
    assert [name.endswith(f".part{suffix}") for name in seen.names] == [True]
    assert tree(folder.path) == {"in": None, "in/a.csv": b"content", "in/b.csv": b"content"}


def test_an_unfinished_file_lies_in_the_temp_folder(backend: SFTPBackend, folder: Folder, local: Path) -> None:
    seen = Unfinished(folder)
    pairs = [(local, "in/a.csv"), (local, "in/deep/a.csv")]  # with the same name and the same source
    backend.upload_many(pairs, temp_folder="work/tmp", temp_suffix=".tmp", resume_key="key", before_rename=seen)
    assert {name.rpartition("/")[0] for name in seen.names} == {"work/tmp"}
    assert len(seen.names) == 2
    files = {name: content for name, content in tree(folder.path).items() if content is not None}
    assert files == {"in/a.csv": b"content", "in/deep/a.csv": b"content"}
    with refused(AlreadyExists, backend, "in/a.csv"):
        backend.upload(local, "in/a.csv", temp_folder="work/tmp")
    backend.upload(local, "in/a.csv", overwrite=True, temp_folder="work/tmp", mode=0o640)
    assert tree(folder.path)["work/tmp"] is None
    assert not os.listdir(folder.path / "work/tmp")


def test_unfinished_files_are_hidden_and_removed_when_stale(backend: SFTPBackend, folder: Folder, local: Path) -> None:
    naming = TempNaming(".tmp", RemotePath("work", "work"))
    (folder.path / "work").mkdir()
    stale, other = (naming.temp(RemotePath(key, key), TOKEN).name for key in ("in/a.csv", "other/a.csv"))
    for name in (stale, other):
        (folder.path / "work" / name).write_bytes(b"half")
        os.utime(folder.path / "work" / name, (1_000_000_000, 1_000_000_000))
    assert list(backend.list_files("", recursive=True)) == []
    backend.upload(local, "in/a.csv", temp_folder="work", temp_suffix=".tmp")
    assert sorted(tree(folder.path)) == ["in", "in/a.csv", "work", f"work/{other}"]


def test_an_interrupted_upload_resumes_in_the_temp_folder(make_backend: MakeBackend, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "big").write_bytes(content)
    with DropsAfter(volume=2_000_000) as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path, config={"reconnect_timeout": 5})
        backend.upload(tmp_path / "big", "in/big", temp_folder="work", temp_suffix=".tmp")
        assert backend.connections > 1
        files = {name: data for name, data in tree(folder.path).items() if data is not None}
        assert files == {"in/big": content}


@pytest.fixture
def other_file_system() -> Iterator[Path]:
    """Return a directory on another file system than that of the servers."""
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tempfile.gettempdir()).st_dev:
        pytest.skip("this machine has one file system only")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.mark.parametrize("existing", [None, b"old"])
def test_a_temp_folder_on_another_file_system_is_a_clear_error(
    backend: SFTPBackend, folder: Folder, local: Path, other_file_system: Path, existing: bytes | None
) -> None:
    (folder.path / "elsewhere").symlink_to(other_file_system)
    if existing is not None:
        (folder.path / "a.csv").write_bytes(existing)
    with pytest.raises(SFTPBackendError, match="temp_folder 'elsewhere' must be on the file system of the target"):
        backend.upload(local, "a.csv", overwrite=True, temp_folder="elsewhere")
    assert os.listdir(other_file_system) == []
    assert {path.name for path in folder.path.iterdir()} == {"elsewhere"} | ({"a.csv"} if existing else set())
    assert existing is None or (folder.path / "a.csv").read_bytes() == existing


def test_a_missing_temp_folder_is_an_error_without_create_parents(
    asyncssh_plain: AsyncsshServer, make_backend: MakeBackend, local: Path
) -> None:
    folder = asyncssh_plain.fresh()
    backend = make_backend(asyncssh_plain, base_path=folder.base_path)
    with pytest.raises(SFTPBackendError):
        backend.upload(local, "a.csv", temp_folder="missing", create_parents=False)
    assert tree(folder.path) == {}


@pytest.mark.parametrize("suffix", ["tmp", ".", "", ".a/b", ".tmp.", ".\n", "." + "x" * 32, 7])
def test_a_suffix_that_is_none_is_refused(suffix: object) -> None:
    with pytest.raises(ValueError, match=r"temp_suffix must be a suffix such as '\.tmp'"):
        offline().upload("local", "file", temp_suffix=suffix)  # type: ignore[call-overload, unused-ignore, arg-type]


def test_a_temp_folder_outside_of_base_path_is_refused() -> None:
    with pytest.raises(InvalidPath, match=r"must not contain '\.\.'"):
        offline().upload("local", "file", temp_folder="../tmp")


@given(st.from_regex(r"\A\.[A-Za-z0-9_.-]{0,30}[A-Za-z0-9]\Z"), st.text("abcä./-", min_size=1, max_size=300))
def test_every_suffix_leaves_the_name_recognisable(suffix: str, key: str) -> None:
    check_temp_suffix(suffix)
    segments = [segment for segment in key.split("/") if segment not in ("", ".", "..")] or ["x"]
    target = RemotePath("/".join(segments), "/" + "/".join(segments))
    for folder in (None, RemotePath("tmp", "/tmp")):
        temp = TempNaming(suffix, folder).temp(target, TOKEN)
        assert is_temp_name(temp.name)
        assert temp_name_token(temp.name) == TOKEN
        assert temp.name.endswith(suffix)
        assert len(temp.name.encode()) <= 255
        assert (name_digest(target.key if folder else target.name) in temp.name) is True


def test_a_lost_reply_to_mkdir_does_not_end_an_upload_with_a_temp_folder(tmp_path: Path) -> None:
    case = replace(
        UPLOAD,
        name="upload with temp_folder",
        act=lambda backend, local: backend.upload(local / "source", "in/new/deep/target", temp_folder="work/deep"),
        before=files(in_new_deep_target=None),
        after=files(in_new_deep_target=NEW),
        paths=("in/new/deep/target",),
    )
    runs = list(lost(case, tmp_path / "faults", "cut"))
    assert [result.error for result in runs] == [None] * len(runs)
