"""The contract's promises about existence, information, listings and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from airflow_sftp_backend import (
    BackendUnavailable,
    Capability,
    FileInfo,
    FolderEntry,
    FolderInfo,
    InvalidPath,
    NotFound,
    PermissionDenied,
    ResolutionPlan,
    SFTPBackend,
    SFTPBackendError,
)
from tests.support.assertions import refused
from tests.support.backends import offline
from tests.support.servers import BareAttributes, DeniesEverything, Folder, Server

NOON = int(datetime(2026, 3, 29, 12, tzinfo=UTC).timestamp())
MakeBackend = Callable[..., SFTPBackend]


def put(folder: Folder, name: str, content: bytes = b"content", *, mtime: int = NOON, mode: int = 0o644) -> Path:
    """A file on the server, made from outside."""
    path = folder.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, (mtime, mtime))
    return path


# -- exists, is_file, is_folder ---------------------------------------------------------------------------------------


def test_exists_is_file_is_folder_distinguish_files_and_directories(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "sub/file")
    queries = (backend.exists, backend.is_file, backend.is_folder)
    assert [query("sub/file") for query in queries] == [True, True, False]
    assert [query("sub") for query in queries] == [True, False, True]


def test_exists_is_file_is_folder_of_a_missing_path_are_false(backend: SFTPBackend) -> None:
    for path in ("missing", "missing/file", "a/b/c/d"):
        assert [query(path) for query in (backend.exists, backend.is_file, backend.is_folder)] == [False] * 3


def test_exists_is_file_is_folder_below_a_file_are_false(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "file")
    for path in ("file/below", "file/far/below"):
        assert [query(path) for query in (backend.exists, backend.is_file, backend.is_folder)] == [False] * 3


def test_exists_is_file_is_folder_follow_links(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "sub/file")
    (folder.path / "to_file").symlink_to("sub/file")
    (folder.path / "to_folder").symlink_to("sub")
    (folder.path / "to_nothing").symlink_to("missing")
    queries = (backend.exists, backend.is_file, backend.is_folder)
    assert [query("to_file") for query in queries] == [True, True, False]
    assert [query("to_folder") for query in queries] == [True, False, True]
    assert [query("to_folder/file") for query in queries] == [True, True, False]
    assert [query("to_nothing") for query in queries] == [False, False, False]


def test_denied_queries_are_permission_denied_and_not_false(make_backend: MakeBackend) -> None:
    with DeniesEverything() as server:
        backend = make_backend(server)
        for call in (
            backend.exists, backend.is_file, backend.is_folder, backend.get_file_info, backend.get_folder_info,
            backend.read, backend.read_bytes, backend.delete, backend.delete_folder,
        ):  # fmt: skip
            with refused(PermissionDenied, backend, "sub/file"):
                call("sub/file")
        for listing in (backend.list_files, backend.list_folders, backend.iter_children):
            with refused(PermissionDenied, backend, "sub"):
                list(listing("sub"))
        with refused(PermissionDenied, backend, "sub"):
            list(backend.list_files("sub", recursive=True))
        with refused(PermissionDenied, backend, "sub"):
            backend.find("sub/*")
        with refused(PermissionDenied, backend, "sub"):
            backend.delete_folder("sub", recursive=True)
        with refused(PermissionDenied, backend, ""):
            backend.check_health()


def test_the_root_exists_without_a_request() -> None:
    backend = offline()
    for root in ("", ".", "/", "//", "./."):
        assert backend.exists(root)
        assert backend.is_folder(root)
        assert not backend.is_file(root)
    with pytest.raises(BackendUnavailable):
        backend.exists("other")


# -- get_file_info, get_folder_info, check_health ---------------------------------------------------------------------


def test_get_file_info_gives_size_and_time_in_utc(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "sub/file", b"12345")
    info = backend.get_file_info("/sub//./file")
    assert info == FileInfo("sub/file", "file", 5, datetime(2026, 3, 29, 12, tzinfo=UTC), info.mode)
    assert info.modified_at is not None
    assert info.modified_at.tzinfo is UTC


def test_get_file_info_gives_the_mode(backend: SFTPBackend, folder: Folder) -> None:
    for mode in (0o600, 0o640, 0o755):
        put(folder, "file", mode=mode)
        assert backend.get_file_info("file").mode == mode
        assert [file.mode for file in backend.list_files("")] == [mode]


def test_get_file_info_follows_a_link(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "sub/file", b"12345")
    (folder.path / "link").symlink_to("sub/file")
    assert backend.get_file_info("link").size == 5


def test_get_file_info_of_a_missing_file_is_not_found(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "file")
    for path in ("missing", "missing/file", "file/below"):
        with refused(NotFound, backend, path):
            backend.get_file_info(path)


def test_get_file_info_many_gives_each_file_or_why_there_is_none(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "sub/file", b"12345")
    found = backend.get_file_info_many(["sub/file", "../x", "missing", "sub", "sub/file"], return_exceptions=True)
    info = backend.get_file_info("sub/file")
    assert (found[0], found[4]) == (info, info)
    assert [type(one) for one in found[1:4]] == [InvalidPath, NotFound, InvalidPath]
    assert isinstance(found[2], NotFound)
    assert (found[2].path, found[2].server) == ("missing", backend.address)
    with pytest.raises(ExceptionGroup, match="1 of 2 queries failed"):
        backend.get_file_info_many(["sub/file", "missing"])
    assert backend.get_file_info_many([]) == []


def alone(backend: SFTPBackend, path: str) -> FileInfo | tuple[type[SFTPBackendError], str]:
    """Return the result of `get_file_info`, or its error."""
    try:
        return backend.get_file_info(path)
    except SFTPBackendError as error:
        return type(error), str(error)


def assert_many_are_told_as_each_is_alone(backend: SFTPBackend, paths: list[str]) -> None:
    """Compares `get_file_info_many` with `get_file_info`."""
    expected = {path: alone(backend, path) for path in dict.fromkeys(paths)}
    infos = [
        (type(found), str(found)) if isinstance(found, SFTPBackendError) else found
        for found in backend.get_file_info_many(paths, return_exceptions=True)
    ]
    assert infos == [expected[path] for path in paths]


KINDS = ["file", "sub", "sub/file", "link", "to-sub", "to-nothing", "missing", "missing/file", "file/below", "", "../x"]


def put_kinds(folder: Folder) -> None:
    """Makes what `KINDS` name."""
    put(folder, "file", b"12345")
    put(folder, "sub/file")
    for name, target in (("link", "file"), ("to-sub", "sub"), ("to-nothing", "nothing")):
        (folder.path / name).symlink_to(target)


def test_get_file_info_many_agrees_with_get_file_info_for_thousands(backend: SFTPBackend, folder: Folder) -> None:
    put_kinds(folder)
    assert_many_are_told_as_each_is_alone(backend, [*KINDS, *(f"{number // 2}.csv" for number in range(2500)), *KINDS])


@pytest.mark.parametrize("kind", [BareAttributes, DeniesEverything])
def test_get_file_info_many_queries_as_far_as_get_file_info(
    make_backend: MakeBackend, kind: type[BareAttributes | DeniesEverything]
) -> None:
    with kind() as server:
        folder = server.fresh()
        put_kinds(folder)
        assert_many_are_told_as_each_is_alone(make_backend(server, base_path=folder.base_path), KINDS)


def test_get_file_info_of_a_folder_is_invalid_path(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "sub").mkdir()
    with refused(InvalidPath, backend, "sub"):
        backend.get_file_info("sub")
    with refused(InvalidPath, backend, ""):
        backend.get_file_info("")


def test_get_folder_info_sums_up_all_levels(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "sub/one", b"1", mtime=NOON)
    put(folder, "sub/deep/two", b"22", mtime=NOON + 60)
    put(folder, "sub/deep/er/three", b"333", mtime=NOON + 30)
    put(folder, "beside", b"not counted")
    latest = datetime(2026, 3, 29, 12, 1, tzinfo=UTC)
    assert backend.get_folder_info("sub") == FolderInfo("sub", 3, 6, latest)
    (folder.path / "empty").mkdir()
    assert backend.get_folder_info("empty") == FolderInfo("empty", 0, 0, None)
    assert backend.get_folder_info("").file_count == 4


def test_get_folder_info_of_a_missing_directory_is_not_found(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "file")
    for path in ("missing", "missing/folder", "file/below"):
        with refused(NotFound, backend, path):
            backend.get_folder_info(path)


def test_get_folder_info_of_a_file_is_invalid_path(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "file")
    with refused(InvalidPath, backend, "file"):
        backend.get_folder_info("file")


def test_check_health_is_none_on_a_folder_and_an_error_otherwise(
    make_backend: MakeBackend, server: Server, folder: Folder
) -> None:
    make_backend(server, base_path=folder.base_path).check_health()
    missing = make_backend(server, base_path=f"{folder.base_path}/missing")
    with refused(NotFound, missing, ""):
        missing.check_health()
    put(folder, "file")
    on_a_file = make_backend(server, base_path=f"{folder.base_path}/file")
    with refused(InvalidPath, on_a_file, ""):
        on_a_file.check_health()


# -- listings ---------------------------------------------------------------------------------------------------------


def test_listings_give_files_folders_and_both(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "top/one", b"1")
    put(folder, "top/sub/two", b"22")
    one = FileInfo("top/one", "one", 1, datetime.fromtimestamp(NOON, UTC), 0o644)
    sub = FolderEntry("top/sub", "sub")
    assert list(backend.list_files("top")) == [one]
    assert list(backend.list_folders("top")) == [sub]
    assert sorted(backend.iter_children("top"), key=lambda entry: entry.name) == [one, sub]


def test_listings_of_the_root_have_keys_without_a_leading_slash(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "one")
    put(folder, "sub/two")
    assert sorted(file.path for file in backend.list_files("", recursive=True)) == ["one", "sub/two"]
    assert [entry.path for entry in backend.list_folders("/")] == ["sub"]
    assert sorted(entry.path for entry in backend.iter_children(".")) == ["one", "sub"]


def test_listings_of_missing_directories_or_files_are_empty(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "file")
    for path in ("missing", "missing/below", "file", "file/below"):
        assert list(backend.list_files(path)) == []
        assert list(backend.list_files(path, recursive=True)) == []
        assert list(backend.list_folders(path)) == []
        assert list(backend.iter_children(path)) == []


def test_list_files_descends_to_max_depth(backend: SFTPBackend, folder: Folder) -> None:
    for name in ("0", "a/1", "a/b/2", "a/b/c/3"):
        put(folder, name)

    def found(max_depth: int | None) -> list[str]:
        return [file.path for file in backend.list_files("", recursive=True, max_depth=max_depth)]

    assert found(0) == ["0"]
    assert found(1) == ["0", "a/1"]
    assert found(2) == ["0", "a/1", "a/b/2"]
    assert found(None) == found(9) == ["0", "a/1", "a/b/2", "a/b/c/3"]


def test_max_depth_is_ignored_without_recursive(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "0")
    put(folder, "a/1")
    for max_depth in (None, 0, 1, 9):
        assert [file.path for file in backend.list_files("", max_depth=max_depth)] == ["0"]
    with pytest.raises(ValueError, match="from 0"):
        backend.list_files("", recursive=True, max_depth=-1)


def test_links_to_files_are_listed_and_links_to_directories_not_entered(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "sub/file", b"12345")
    (folder.path / "to_file").symlink_to("sub/file")
    (folder.path / "to_folder").symlink_to("sub")
    (folder.path / "to_nothing").symlink_to("missing")
    (folder.path / "sub" / "up").symlink_to("..")
    listed = {file.path: file.size for file in backend.list_files("", recursive=True)}
    assert listed == {"sub/file": 5, "to_file": 5}
    assert {entry.path for entry in backend.list_folders("")} == {"sub", "to_folder"}
    assert backend.get_folder_info("").file_count == 2


def test_a_link_that_the_caller_names_is_followed(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "sub/file")
    (folder.path / "link").symlink_to("sub")
    assert [file.path for file in backend.list_files("link")] == ["link/file"]
    assert [file.path for file in backend.find("link/*")] == ["link/file"]
    assert [file.path for file in backend.find("*/file")] == ["sub/file"]


def test_a_walk_does_not_leave_base_path_through_a_link(backend: SFTPBackend, folder: Folder, server: Server) -> None:
    outside = server.fresh()
    put(outside, "secret")
    (folder.path / "way_out").symlink_to(outside.path)
    assert list(backend.list_files("", recursive=True)) == []
    assert backend.find("**") == []
    assert backend.get_folder_info("").file_count == 0


def test_a_large_directory_is_listed_completely(backend: SFTPBackend, folder: Folder) -> None:
    names = {f"file-{number:04}" for number in range(1200)}
    for name in names:
        (folder.path / name).touch()
    assert {file.name for file in backend.list_files("")} == names


def test_special_files_are_not_listed(backend: SFTPBackend, folder: Folder) -> None:
    os.mkfifo(folder.path / "pipe")
    put(folder, "file")
    assert [file.path for file in backend.list_files("")] == ["file"]
    assert [entry.path for entry in backend.iter_children("")] == ["file"]
    assert backend.exists("pipe")
    assert not backend.is_file("pipe")


def test_attributes_without_permissions_and_times_are_enough(make_backend: MakeBackend) -> None:
    with BareAttributes() as server:
        folder = server.fresh()
        put(folder, "sub/file", b"12345")
        backend = make_backend(server, base_path=folder.base_path)
        assert backend.get_file_info("sub/file") == FileInfo("sub/file", "file", 5, None, None)
        assert [query("sub/file") for query in (backend.exists, backend.is_file, backend.is_folder)] == [
            True,
            True,
            False,
        ]
        assert [query("sub") for query in (backend.exists, backend.is_file, backend.is_folder)] == [True, False, True]
        assert [file.path for file in backend.list_files("sub")] == ["sub/file"]
        assert [file.path for file in backend.find("sub/*")] == ["sub/file"]
        backend.check_health()
        with refused(InvalidPath, backend, "sub"):
            backend.get_file_info("sub")
        with refused(InvalidPath, backend, "sub"):
            backend.delete("sub")
        with refused(InvalidPath, backend, "sub"):
            backend.read_bytes("sub")
        backend.write_atomic("sub/file", b"new", overwrite=True)
        assert backend.read_bytes("sub/file") == b"new"


def test_a_directory_that_may_be_a_link_is_never_entered(make_backend: MakeBackend) -> None:
    with BareAttributes() as server:
        folder, outside = server.fresh(), server.fresh()
        put(outside, "precious")
        (folder.path / "link").symlink_to(outside.path)
        (folder.path / "sub").mkdir()
        put(folder, "sub/file")
        backend = make_backend(server, base_path=folder.base_path)
        assert "sub/file" not in [file.path for file in backend.list_files("", recursive=True)]
        with pytest.raises(SFTPBackendError):
            backend.delete_folder("sub", recursive=True)
        assert (outside.path / "precious").exists()


# -- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["a.csv", "b.csv"]),
        ("?.csv", ["a.csv", "b.csv"]),
        ("[b-z].csv", ["b.csv"]),
        ("[!b].csv", ["a.csv"]),
        ("in/*", ["in/c.csv", "in/d.txt"]),
        ("*/*.csv", ["in/c.csv", "out/e.csv"]),
        ("**/*.csv", ["a.csv", "b.csv", "in/c.csv", "in/deep/f.csv", "out/e.csv"]),
        ("in/**", ["in/c.csv", "in/d.txt", "in/deep/f.csv"]),
        ("**/deep/*", ["in/deep/f.csv"]),
        ("in/**/f.csv", ["in/deep/f.csv"]),
        ("/in//./c.csv", ["in/c.csv"]),
        ("in", []),
        ("missing/*", []),
        ("missing", []),
        ("a.csv/*", []),
        ("", []),
    ],
)
def test_glob_and_find_match_segments_and_trees(
    make_backend: MakeBackend, openssh: Server, pattern: str, expected: list[str]
) -> None:
    folder = openssh.fresh()
    for name in ("a.csv", "b.csv", "in/c.csv", "in/d.txt", "in/deep/f.csv", "out/e.csv"):
        put(folder, name)
    backend = make_backend(openssh, base_path=folder.base_path)
    assert [file.path for file in backend.find(pattern)] == expected
    assert [file.path for file in backend.glob(pattern)] == expected


def test_find_takes_several_patterns_and_gives_each_file_once_sorted(backend: SFTPBackend, folder: Folder) -> None:
    for name in ("b.csv", "a.csv", "in/c.csv"):
        put(folder, name)
    found = backend.find("**/*.csv", "a.*", "b.csv", "missing.csv")
    assert [file.path for file in found] == ["a.csv", "b.csv", "in/c.csv"]
    assert found[0] == backend.get_file_info("a.csv")


NEIGHBOURS = ("in/r1.csv", "in/r[1].csv", "in/r*.csv", "in/rr.csv", "in/r?.csv", "i[n]/r[1].csv", "in/[[]", "in/[")


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_find_takes_a_file_literally_and_not_as_a_pattern(backend: SFTPBackend, folder: Folder, name: str) -> None:
    for one in NEIGHBOURS:
        put(folder, one)
    info = backend.get_file_info(name)
    assert backend.find(info) == backend.find(glob.escape(name)) == [info]
    assert backend.find_each([[info], ["nowhere"]]) == [[info], []]
    assert backend.find(info, "in/r?.csv") == sorted({info, *backend.find("in/r?.csv")}, key=lambda one: one.path)


def test_groups_of_patterns_share_a_search_and_fail_separately(backend: SFTPBackend, folder: Folder) -> None:
    for name in ("in/a.csv", "in/b", "c"):
        put(folder, name)
    groups = [["in/*.csv", "c"], ["../*"], ["nowhere/*"]]
    found, refused, nothing = backend.find_each(groups, return_exceptions=True)
    assert (found, nothing) == ([backend.get_file_info("c"), backend.get_file_info("in/a.csv")], [])
    assert isinstance(refused, InvalidPath)
    assert refused.server == backend.address
    with pytest.raises(ExceptionGroup, match="1 of 3 searches failed") as caught:
        backend.find_each(groups)
    assert [str(error) for error in caught.value.exceptions] == [str(refused)]
    assert backend.find_each(groups[::2]) == [found, []]


def test_temporary_files_are_never_listed_and_never_found(backend: SFTPBackend, folder: Folder) -> None:
    put(folder, "data.csv")
    with backend.open_atomic("data.csv", overwrite=True) as file:
        file.write(bytes(3_000_000))  # a few bytes may be held back, by the server too
        assert len(os.listdir(folder.path)) == 2
        assert [info.path for info in backend.list_files("")] == ["data.csv"]
        assert [info.path for info in backend.list_files("", recursive=True)] == ["data.csv"]
        assert [entry.path for entry in backend.iter_children("")] == ["data.csv"]
        assert [info.path for info in backend.find("**", "*", ".*")] == ["data.csv"]
        assert backend.get_folder_info("").file_count == 1


# -- what needs no server ---------------------------------------------------------------------------------------------


def test_resolve_gives_the_native_path_without_io() -> None:
    backend = offline("/data/in/")
    plan = backend.resolve("/a//b")
    assert plan == ResolutionPlan("sftp", "sftp", "a/b", "/data/in/a/b", dict(plan.details))
    assert dict(plan.details) == {"host": "127.0.0.1", "port": backend.config.port, "base_path": "/data/in"}
    with pytest.raises(TypeError):
        plan.details["host"] = "other"  # type: ignore[index]  # what is tested


@pytest.mark.parametrize("base_path", ["/", "/data", "data/in", ".", ""])
def test_to_key_and_native_path_are_inverse(base_path: str) -> None:
    backend = offline(base_path)
    for key in ("", "a", "a/b.txt", "a\\b", "ü/ß", " "):
        assert backend.to_key(backend.native_path(key)) == key


@pytest.mark.parametrize(
    ("base_path", "native"),
    [
        ("/data", "/other/file"), ("/data", "/database/file"), ("/data", "/data/../etc/passwd"),
        ("/data", "/"), ("data", "/data/file"), ("data", "file"), ("/data", "/data/a\0b"),
    ],
)  # fmt: skip
def test_to_key_outside_base_path_is_invalid_path(base_path: str, native: str) -> None:
    backend = offline(base_path)
    with refused(InvalidPath, backend, native):
        backend.to_key(native)


@pytest.mark.parametrize("base_path", ["/", "/data", "/data/in/"])
@pytest.mark.parametrize(("path", "key"), [("a", "a"), ("./a//b", "a/b"), ("data/in/a", "data/in/a"), ("", "")])
def test_to_key_of_a_relative_path_is_that_path(base_path: str, path: str, key: str) -> None:
    assert offline(base_path).to_key(path) == key


@pytest.mark.parametrize("path", ["../a", "a/../../b", "a\0b"])
def test_to_key_of_a_relative_path_that_leaves_base_path_is_invalid_path(path: str) -> None:
    backend = offline("/data")
    with refused(InvalidPath, backend, path):
        backend.to_key(path)


def test_a_backend_is_named_by_its_kind_and_its_address() -> None:
    backend = offline()
    assert (backend.name, backend.address) == ("sftp", f"sftp://127.0.0.1:{backend.config.port}")
    plan = backend.resolve("a")
    assert (plan.kind, plan.backend) == ("sftp", "sftp")


def test_capabilities_promise_no_atomic_move_and_no_user_metadata() -> None:
    capabilities = offline().capabilities
    assert capabilities == SFTPBackend.CAPABILITIES
    assert Capability.ATOMIC_WRITE in capabilities
    assert set(Capability) - set(capabilities) == {Capability.ATOMIC_MOVE, Capability.USER_METADATA}


def test_a_relative_base_path_starts_at_the_login_folder(make_backend: MakeBackend, server: Server) -> None:
    folder = server.fresh()
    put(folder, "sub/file", b"12345")
    backend = make_backend(server, base_path=folder.path.name)
    assert backend.read_bytes("sub/file") == b"12345"
    assert [file.path for file in backend.find("**")] == ["sub/file"]
    whole = make_backend(server, base_path="")
    assert whole.get_file_info(f"{folder.path.name}/sub/file").size == 5
    whole.write(f"{folder.path.name}/new/file", b"new")
    assert (folder.path / "new" / "file").read_bytes() == b"new"
