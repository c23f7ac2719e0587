"""Bad input gives a clear error, and leaves nothing behind."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from airflow_sftp_backend import InvalidPath, SFTPBackend, SFTPBackendError, TransferCorrupted, WriteResult
from tests.support.assertions import refused
from tests.support.backends import offline
from tests.support.files import tree
from tests.support.servers import (
    FAILURE,
    NO_SPACE_ON_FILESYSTEM,
    DiskFull,
    FailsWrite,
    Folder,
    HostileNames,
    OpenSSHServer,
    Server,
    small_disk,
)

MakeBackend = Callable[..., SFTPBackend]


def calls_on(backend: SFTPBackend, local: Path) -> dict[str, Callable[[str], object]]:
    """Each call with a path, as a function of the path."""
    return {
        "exists": backend.exists,
        "is_file": backend.is_file,
        "is_folder": backend.is_folder,
        "get_file_info": backend.get_file_info,
        "get_folder_info": backend.get_folder_info,
        "list_files": backend.list_files,
        "list_files, recursive": lambda path: backend.list_files(path, recursive=True),
        "list_folders": backend.list_folders,
        "iter_children": backend.iter_children,
        "glob": backend.glob,
        "find": backend.find,
        "find, with wildcards": lambda path: backend.find(f"{path}/*"),
        "resolve": backend.resolve,
        "native_path": backend.native_path,
        "read": backend.read,
        "read_bytes": backend.read_bytes,
        "download": lambda path: backend.download(path, local / "target"),
        "download_many": lambda path: alone(backend.download_many([(path, local / "target")], return_exceptions=True)),
    } | writes_on(backend, local)


def alone(outcomes: list[WriteResult | SFTPBackendError | OSError]) -> WriteResult:
    """The result of the only file; its failure is raised."""
    (outcome,) = outcomes
    if isinstance(outcome, WriteResult):
        return outcome
    raise outcome


def writes_on(backend: SFTPBackend, local: Path) -> dict[str, Callable[[str], object]]:
    """Every call that changes what is under a path."""

    def open_atomic(path: str) -> None:
        with backend.open_atomic(path):
            pass

    return {
        "write": lambda path: backend.write(path, b""),
        "write_atomic": lambda path: backend.write_atomic(path, b""),
        "open_atomic": open_atomic,
        "upload": lambda path: backend.upload(local / "source", path),
        "upload_many": lambda path: alone(backend.upload_many([(local / "source", path)], return_exceptions=True)),
        "delete": lambda path: backend.delete(path, missing_ok=True),
        "delete_folder": lambda path: backend.delete_folder(path, missing_ok=True),
        "delete_folder, recursive": lambda path: backend.delete_folder(path, recursive=True),
        "move from": lambda path: backend.move(path, "other"),
        "move to": lambda path: backend.move("other", path),
        "copy from": lambda path: backend.copy(path, "other"),
        "copy to": lambda path: backend.copy("other", path),
    }


# -- names the caller gives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["..", "../other", "a/../b", "a/..", "/../etc/passwd", "nul\0byte", "\0"])
def test_dotdot_and_nul_are_invalid_path_before_any_io(tmp_path: Path, path: str) -> None:
    backend = offline()
    (tmp_path / "source").touch()
    for name, call in calls_on(backend, tmp_path).items():
        with pytest.raises(InvalidPath) as caught:
            call(path)
        assert caught.value.server == backend.address, name
        assert caught.value.path is not None, name
        assert caught.value.path.startswith(path), name
    assert tree(tmp_path) == {"source": b""}


@pytest.mark.parametrize("path", ["", ".", "/", "//", "./."])
def test_the_root_as_target_of_a_change_is_invalid_path_before_any_io(tmp_path: Path, path: str) -> None:
    backend = offline()
    (tmp_path / "source").touch()
    for call in writes_on(backend, tmp_path).values():
        with pytest.raises(InvalidPath) as caught:
            call(path)
        assert (caught.value.path, caught.value.server) == (path, backend.address)


@pytest.mark.parametrize("path", ["line\nbreak", "tab\tin", "bell\a", "del\x7f", "sub\r/file"])
def test_control_characters_in_a_target_are_invalid_path_before_any_io(tmp_path: Path, path: str) -> None:
    backend = offline()
    (tmp_path / "source").touch()
    writes = writes_on(backend, tmp_path)
    for name in ("write", "write_atomic", "open_atomic", "upload", "upload_many", "move to", "copy to"):
        with refused(InvalidPath, backend, path):
            writes[name](path)


def test_a_path_that_is_not_a_str_is_a_type_error_before_any_io(tmp_path: Path) -> None:
    backend = offline()
    for path in (None, 5, b"bytes", tmp_path):
        with pytest.raises(TypeError, match="path"):
            backend.exists(path)  # type: ignore[arg-type]  # what is tested
        with pytest.raises(TypeError, match="path"):
            backend.write(path, b"")  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize(
    "name",
    [
        "plain", "with space", " ", "ünï©ödé", "日本語", "emoji 🎉", "e\u0301", "a\\b", "\\", "-rf", "~", "$HOME", "*",
        "[a]", "?", "'quoted'", '"', ".hidden", "...", "x" * 255, "ä" * 127, "😀" * 63, "trailing.", "a:b", "%41",
    ],
)  # fmt: skip
def test_an_odd_name_is_stored_listed_read_moved_and_deleted_as_it_is(
    make_backend: MakeBackend, openssh: Server, tmp_path: Path, name: str
) -> None:
    folder = openssh.fresh()
    backend = make_backend(openssh, base_path=folder.base_path)
    backend.write_atomic(f"sub/{name}", b"content")
    assert tree(folder.path) == {"sub": None, f"sub/{name}": b"content"}
    assert [(file.path, file.name) for file in backend.list_files("sub")] == [(f"sub/{name}", name)]
    assert backend.read_bytes(f"sub/{name}") == b"content"
    backend.write(name, b"new")
    backend.move(name, f"sub/{name}", overwrite=True)
    backend.copy(f"sub/{name}", name)
    backend.download(name, tmp_path / name)
    assert tree(tmp_path) == {name: b"new"}
    backend.delete(name)
    backend.write_atomic(f"deep/{name}/file", b"x")
    assert [entry.name for entry in backend.list_folders("deep")] == [name]
    backend.delete_folder("deep", recursive=True)
    backend.delete_folder("sub", recursive=True)
    assert tree(folder.path) == {}


@pytest.mark.parametrize("name", ["x" * 256, "ä" * 128])
def test_a_name_that_is_too_long_is_refused_and_leaves_nothing(backend: SFTPBackend, folder: Folder, name: str) -> None:
    for write in (backend.write, backend.write_atomic):
        with pytest.raises(SFTPBackendError) as caught:
            write(name, b"content")
        assert (caught.value.path, caught.value.server) == (name, backend.address)
    assert tree(folder.path) == {}


def test_names_that_are_not_utf8_keep_their_bytes(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    raw = os.path.join(os.fsencode(folder.path), b"caf\xe9.txt")
    Path(os.fsdecode(raw)).write_bytes(b"content")
    (file,) = backend.list_files("")
    assert file.path == "caf\udce9.txt"
    assert backend.read_bytes(file.path) == b"content"
    backend.download(file.path, tmp_path / "local")
    backend.move(file.path, f"moved-{file.path}")
    assert os.listdir(os.fsencode(folder.path)) == [b"moved-caf\xe9.txt"]
    backend.write_atomic(f"moved-{file.path}", b"new", overwrite=True)
    backend.delete(f"moved-{file.path}")
    assert os.listdir(folder.path) == []


@pytest.mark.parametrize("base", ["with space", "ünï", "a\\b", "[x]*"])
def test_an_odd_base_path_works(make_backend: MakeBackend, openssh: Server, base: str) -> None:
    folder = openssh.fresh()
    backend = make_backend(openssh, base_path=f"{folder.base_path}/{base}")
    backend.write_atomic("sub/file", b"content")
    assert [file.path for file in backend.find("**")] == ["sub/file"]
    assert (folder.path / base / "sub" / "file").read_bytes() == b"content"


# -- names a server gives ---------------------------------------------------------------------------------------------


def test_hostile_names_in_a_listing_are_skipped_with_a_warning(
    make_backend: MakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    with HostileNames() as server:
        folder = server.fresh()
        (folder.path / "good").write_bytes(b"12345")
        backend = make_backend(server, base_path=folder.base_path)
        good = backend.get_file_info("good")
        listings: list[tuple[Callable[[], Iterable[object]], list[object]]] = [
            (lambda: backend.list_files(""), [good]),
            (lambda: backend.list_files("", recursive=True), [good]),
            (lambda: backend.iter_children(""), [good]),
            (lambda: backend.list_folders(""), []),
            (lambda: backend.find("*"), [good]),
            (lambda: backend.find("**"), [good]),
            (lambda: backend.glob("[!g]*"), []),
        ]
        for listing, expected in listings:
            caplog.clear()
            assert list(listing()) == expected
            for name in set(HostileNames.NAMES) - {b".."}:
                assert repr(name.decode()) in caplog.text


@pytest.mark.parametrize("mode", [0o100644, 0o040755])
def test_hostile_names_lead_no_deletion_or_walk_out_of_the_directory(make_backend: MakeBackend, mode: int) -> None:
    with HostileNames(mode=mode) as server:
        outer = server.fresh()
        (outer.path / "base" / "sub").mkdir(parents=True)
        (outer.path / "escaped").mkdir()
        (outer.path / "escaped" / "precious").write_bytes(b"x")
        backend = make_backend(server, base_path=f"{outer.base_path}/base")
        assert backend.get_folder_info("").file_count == 0
        backend.delete_folder("sub", recursive=True)
        assert tree(outer.path) == {"base": None, "escaped": None, "escaped/precious": b"x"}


def test_a_backslash_in_a_servers_name_is_an_ordinary_character(make_backend: MakeBackend) -> None:
    with HostileNames(names=[b"a\\b", b"..\\up", b"x\\..\\up", b"\\"]) as server:
        backend = make_backend(server)
        assert sorted(info.name for info in backend.list_files("")) == ["\\", "a\\b"]


# -- the disk is full, writes fail ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [NO_SPACE_ON_FILESYSTEM, FAILURE])
def test_a_full_disk_is_reported_and_leaves_old_content_only(
    make_backend: MakeBackend, tmp_path: Path, code: int
) -> None:
    with DiskFull(capacity=500_000, code=code) as server:
        folder = server.fresh()
        (folder.path / "old").write_bytes(b"old")
        (tmp_path / "local").write_bytes(b"x" * 2_000_000)
        backend = make_backend(server, base_path=folder.base_path)
        writes: list[Callable[[str], object]] = [
            lambda key: backend.write_atomic(key, b"x" * 2_000_000, overwrite=True),
            lambda key: backend.upload(tmp_path / "local", key, overwrite=True),
            lambda key: _write_in_pieces(backend, key),
        ]
        for write in writes:
            for key in ("old", "new"):
                with refused(SFTPBackendError, backend, key) as error:
                    write(key)
                assert code == FAILURE or "full" in error.message
                assert "no space left on device" in error.message
                assert tree(folder.path) == {"old": b"old"}
        with refused(SFTPBackendError, backend, "new"):
            backend.write("new", b"x" * 2_000_000)
        assert tree(folder.path) == {"old": b"old"}
        backend.write("small", b"x")


def _write_in_pieces(backend: SFTPBackend, key: str) -> None:
    with backend.open_atomic(key, overwrite=True) as file:
        for _ in range(20):
            file.write(b"x" * 100_000)


def test_a_real_full_disk_under_openssh(make_backend: MakeBackend, openssh: OpenSSHServer, tmp_path: Path) -> None:
    with small_disk(1 << 20) as disk:
        if disk is None:
            pytest.skip("this user may not mount a small disk")
        (disk / "old").write_bytes(b"old")
        backend = make_backend(openssh, base_path=str(disk))
        for key in ("old", "new"):
            with refused(SFTPBackendError, backend, key) as error:
                backend.write_atomic(key, b"x" * 3_000_000, overwrite=True)
            assert "full disk" in error.message
        assert tree(disk) == {"old": b"old"}
        with refused(SFTPBackendError, backend, "new"):
            backend.write("new", b"x" * 3_000_000)
        assert tree(disk) == {"old": b"old"}
        (tmp_path / "large").write_bytes(b"x" * 3_000_000)
        with pytest.raises(ExceptionGroup):
            backend.upload_many([(__file__, "small"), (tmp_path / "large", "large")])
        assert sorted(os.listdir(disk)) == ["old", "small"]
        assert (disk / "small").read_bytes() == Path(__file__).read_bytes()
        backend.close()


@pytest.mark.parametrize("nth", [1, 3, 5])
def test_a_failed_write_is_never_reported_as_success(make_backend: MakeBackend, nth: int) -> None:
    with FailsWrite(nth=nth) as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        for write in (backend.write_atomic, backend.write):
            server.nth = server.requests["write"] + nth
            with refused(SFTPBackendError, backend, "file") as error:
                write("file", b"x" * 30_000_000)
            assert "write failed" in error.message
            assert tree(folder.path) == {}
        assert backend.write_atomic("file", b"x" * 3_000_000).size == 3_000_000


# -- the local side ---------------------------------------------------------------------------------------------------


def test_a_local_source_that_is_missing_or_a_folder_is_the_plain_os_error(
    backend: SFTPBackend, folder: Folder, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        backend.upload(tmp_path / "missing", "file")
    with pytest.raises(IsADirectoryError):
        backend.upload(tmp_path, "file")
    assert tree(folder.path) == {}


def test_a_local_source_that_changes_size_is_corrupted_and_not_committed(
    backend: SFTPBackend, folder: Folder, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    (folder.path / "old").write_bytes(b"old")
    for size in (100, 31_000_000):

        def change(_moved: int, size: int = size) -> None:
            os.truncate(local, size)

        for key in ("old", "new"):
            local.write_bytes(b"x" * 30_000_000)
            with refused(TransferCorrupted, backend, key) as error:
                backend.upload(local, key, overwrite=True, progress=change)
            assert str(local) in error.message
        assert tree(folder.path) == {"old": b"old"}


def test_a_remote_source_that_changes_size_is_corrupted_and_not_committed(
    backend: SFTPBackend, folder: Folder, tmp_path: Path
) -> None:
    (tmp_path / "local").write_bytes(b"old")
    for size in (100, 31_000_000):
        (folder.path / "file").write_bytes(b"x" * 30_000_000)

        def change(_moved: int, size: int = size) -> None:
            os.truncate(folder.path / "file", size)

        with refused(TransferCorrupted, backend, "file"):
            backend.download("file", tmp_path / "local", overwrite=True, progress=change)
        assert tree(tmp_path) == {"local": b"old"}
    assert backend.download("file", tmp_path / "local", overwrite=True).size == 31_000_000


def test_an_unverified_download_of_a_growing_source_reads_to_its_end(
    backend: SFTPBackend, folder: Folder, tmp_path: Path
) -> None:
    (folder.path / "file").write_bytes(b"x" * 30_000_000)

    def grow(_moved: int) -> None:
        os.truncate(folder.path / "file", 31_000_000)

    result = backend.download("file", tmp_path / "local", verify="none", progress=grow)
    assert result.size == 31_000_000
    assert (tmp_path / "local").read_bytes() == b"x" * 30_000_000 + bytes(1_000_000)


def test_an_invalid_local_target_is_the_plain_os_error(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    (folder.path / "file").write_bytes(b"content")
    (tmp_path / "sub").mkdir()
    for overwrite in (False, True):
        with pytest.raises(IsADirectoryError):
            backend.download("file", tmp_path / "sub", overwrite)
        with pytest.raises(FileNotFoundError, match="no folder"):
            backend.download("file", tmp_path / "no folder" / "file", overwrite)
    assert tree(tmp_path) == {"sub": None}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A local folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="open-to-all-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """The block runs without root's power to read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_denied_local_access_is_the_plain_os_error(
    make_backend: MakeBackend, openssh: Server, open_folder: Path
) -> None:
    folder = openssh.fresh()
    (folder.path / "file").write_bytes(b"content")
    (open_folder / "unreadable").write_bytes(b"secret")
    (open_folder / "unreadable").chmod(0)
    (open_folder / "locked").mkdir(mode=0o500)
    backend = make_backend(openssh, base_path=folder.base_path)
    backend.check_health()
    with as_an_ordinary_user():
        with pytest.raises(PermissionError, match="unreadable"):
            backend.upload(open_folder / "unreadable", "new")
        with pytest.raises(PermissionError, match="locked"):
            backend.download("file", open_folder / "locked" / "file")
    assert tree(folder.path) == {"file": b"content"}
    assert tree(open_folder / "locked") == {}
