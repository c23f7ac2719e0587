"""A direct upload needs no rename and leaves no partial file."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_sftp_backend import AlreadyExists, BackendUnavailable, InvalidPath, SFTPBackend, WriteResult
from airflow_sftp_backend.backend.models import PreparedFile, Verify
from tests.support.assertions import refused
from tests.support.backends import offline
from tests.support.faults.cases import NEW, OLD, UPLOAD, World, run
from tests.support.faults.network import Fault
from tests.support.faults.points import messages
from tests.support.files import tree
from tests.support.servers import (
    AsyncsshServer,
    DropsAfter,
    Folder,
    FollowsLinks,
    IgnoresExclusive,
    RefusesRename,
    Server,
)

MakeBackend = Callable[..., SFTPBackend]


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Return a local file with a time in 2001."""
    path = tmp_path / "local"
    path.write_bytes(b"content")
    os.utime(path, (1_000_000_001, 1_000_000_001))
    return path


@pytest.mark.parametrize("verify", ["size", "sha256", "none"])
def test_a_direct_upload_stores_the_file_with_mode_and_time(
    backend: SFTPBackend, folder: Folder, local: Path, verify: Verify
) -> None:
    recorded: list[PreparedFile] = []
    (result,) = backend.upload_many(
        [(local, "in/a")],
        verify=verify, direct=True, mode=0o640, keep_times=True, digest=True, before_rename=recorded.extend,
    )  # fmt: skip
    assert (result.path, result.size) == ("in/a", 7)
    state = (folder.path / "in/a").stat()
    assert (state.st_mode & 0o7777, state.st_mtime) == (0o640, 1_000_000_001)
    assert tree(folder.path) == {"in": None, "in/a": b"content"}
    assert [(file.path, file.temp, file.size, file.mtime) for file in recorded] == [("in/a", "a", 7, 1_000_000_001)]
    assert recorded[0].digest is not None


def test_a_server_that_forbids_renames_accepts_direct_uploads(make_backend: MakeBackend, local: Path) -> None:
    with RefusesRename() as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        backend.upload(local, "a", direct=True)
        backend.upload(local, "a", overwrite=True, direct=True)
        assert tree(folder.path) == {"a": b"content"}


def test_an_existing_target_stays_without_overwrite(backend: SFTPBackend, folder: Folder, local: Path) -> None:
    (folder.path / "file").write_bytes(b"old")
    (folder.path / "sub").mkdir()
    with refused(AlreadyExists, backend, "file"):
        backend.upload(local, "file", direct=True)
    with refused(InvalidPath, backend, "sub"):
        backend.upload(local, "sub", overwrite=True, direct=True)
    assert tree(folder.path) == {"file": b"old", "sub": None}


@pytest.mark.parametrize("kind", ["asyncssh", "follows", "ignores-exclusive", "openssh", "proftpd"])
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("target", ["file", "missing"])
def test_a_link_at_the_target_is_not_written_through(
    request: pytest.FixtureRequest, make_backend: MakeBackend, local: Path, kind: str, overwrite: bool, target: str
) -> None:
    with ExitStack() as stack:
        if kind == "openssh":
            server: Server = request.getfixturevalue("openssh")
        elif kind == "proftpd":
            server = request.getfixturevalue("started")("proftpd")
        else:
            kinds = {"asyncssh": AsyncsshServer, "follows": FollowsLinks, "ignores-exclusive": IgnoresExclusive}
            server = stack.enter_context(kinds[kind]())
        outside, folder = server.fresh().path, server.fresh()
        (outside / "file").write_bytes(b"outside")
        (folder.path / "link").symlink_to(outside / target)
        backend = make_backend(server, base_path=folder.base_path)
        with pytest.raises((InvalidPath, AlreadyExists), match="link"):
            backend.upload(local, "link", overwrite=overwrite, direct=True)
        assert tree(outside) == {"file": b"outside"}
        assert (folder.path / "link").is_symlink()


def test_a_lost_connection_leaves_no_incomplete_file(make_backend: MakeBackend, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(3_000_000))
    with DropsAfter(volume=1_000_000) as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        with pytest.raises(BackendUnavailable):
            backend.upload(tmp_path / "big", "big", direct=True)
        assert tree(folder.path) == {}
        backend.upload(tmp_path / "big", "big", direct=True)
        assert tree(folder.path) == {"big": bytes(3_000_000)}


def test_a_lost_reply_leaves_no_emptied_file(tmp_path: Path) -> None:
    local = tmp_path / "faults"
    case = replace(
        UPLOAD,
        name="direct upload",
        act=lambda backend, local: backend.upload(local / "source", "in/target", overwrite=True, direct=True),
    )
    for number in range(1, messages(case, local) + 1):
        result = run(case, World.of(case, local), [Fault("cut", "before reply", number)])
        # None: the file was open, and was removed.
        assert result.world.server.files().get("/data/in/target") in (OLD, NEW, None), number


def test_failures_of_several_direct_uploads_hide_nothing(backend: SFTPBackend, folder: Folder, local: Path) -> None:
    (folder.path / "b").write_bytes(b"old")
    pairs = [(local, "a"), (local, "b"), (local.parent / "missing", "c"), (local, "..")]
    results = backend.upload_many(pairs, direct=True, return_exceptions=True)
    assert [type(result) for result in results] == [WriteResult, AlreadyExists, FileNotFoundError, InvalidPath]
    assert tree(folder.path) == {"a": b"content", "b": b"old"}


def test_names_of_unfinished_files_contradict_a_direct_upload() -> None:
    with pytest.raises(ValueError, match="direct writes under the final name"):
        offline().upload("local", "file", direct=True, temp_suffix=".tmp")
    with pytest.raises(ValueError, match="direct writes under the final name"):
        offline().upload("local", "file", direct=True, temp_folder="work")
