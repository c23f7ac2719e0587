"""Many names of one directory take one listing."""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from airflow_sftp_backend import SFTPBackend, SFTPBackendError
from airflow_sftp_backend.backend._paths import Jail, RemotePath
from airflow_sftp_backend.hooks import FilesFailed
from airflow_sftp_backend.operators import SFTPDeleteOperator, _named_files
from airflow_sftp_backend.operators.delete import DeletePlan
from tests.support.airflow.operators import actions, delete, move, run, upload
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer

NAMES = [f"in/{number:04}" for number in range(300)]


@pytest.fixture(autouse=True)
def _few_paths_take_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_named_files, "_MIN_PATHS_TO_LIST", 200)


def test_unchanged_files_of_a_directory_are_found_by_one_listing(
    remote: Path, server: AsyncsshServer, tmp_path: Path
) -> None:
    here = write_files(tmp_path, dict.fromkeys(NAMES, b"abc"))
    run(upload(f"{here}/in/", "in"))
    before = server.requests.copy()
    rows = run(upload(f"{here}/in/", "in", if_exists="skip_same"))
    assert {row["action"] for row in rows} == {"skipped"}
    requests = server.requests - before
    assert requests["stat"] + requests["lstat"] < 10
    assert requests["opendir"] == 1


def test_named_files_of_a_directory_are_deleted_after_one_listing(remote: Path, server: AsyncsshServer) -> None:
    write_files(remote, dict.fromkeys(NAMES, b"abc"))
    before = server.requests.copy()
    assert len(run(delete([{"path": name} for name in NAMES]))) == 300
    requests = server.requests - before
    assert (requests["opendir"], requests["remove"]) == (1, 300)
    assert requests["stat"] < 10
    assert read_files(remote) == {}


def test_each_named_file_is_resolved_for_its_plan_and_its_deletion_only(
    remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(remote, dict.fromkeys(NAMES, b"abc"))
    resolved: list[str] = []
    resolve = Jail.resolve

    def counting(self: Jail, path: str) -> RemotePath:
        resolved.append(path)
        return resolve(self, path)

    monkeypatch.setattr(Jail, "resolve", counting)
    run(delete([{"path": name} for name in NAMES]))
    assert max(Counter(resolved)[name] for name in NAMES) == 2


def test_the_collector_pauses_for_a_plan_only(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(remote, dict.fromkeys(NAMES, b"abc"))
    states: dict[str, bool] = {}
    plan, delete_many = SFTPDeleteOperator._plan, SFTPBackend.delete_many

    def planning(self: SFTPDeleteOperator, *arguments: Any) -> DeletePlan:
        states["plan"] = gc.isenabled()
        return plan(self, *arguments)

    def deleting(self: SFTPBackend, paths: list[str], **options: Any) -> list[SFTPBackendError | OSError | None]:
        states["delete"] = gc.isenabled()
        return delete_many(self, paths, **options)

    monkeypatch.setattr(SFTPDeleteOperator, "_plan", planning)
    monkeypatch.setattr(SFTPBackend, "delete_many", deleting)
    run(delete([{"path": name} for name in NAMES]))
    assert states == {"plan": False, "delete": True}
    assert gc.isenabled()


def test_names_that_a_listing_lacks_are_examined_one_by_one(remote: Path) -> None:
    write_files(remote, dict.fromkeys(NAMES, b"abc") | {"in/.hidden.0123456789ab-0123456789ab.part": b"temp"})
    os.symlink("0000", remote / "in" / "link")
    os.symlink("nowhere", remote / "in" / "dangling")
    (remote / "in" / "directory").mkdir()
    names = [*NAMES, "in/.hidden.0123456789ab-0123456789ab.part", "in/link", "in/missing", "in/directory"]
    with pytest.raises(FilesFailed) as caught:
        run(move(names, "out"))
    assert "2 of 304 files failed" in str(caught.value)
    assert "in/missing" in str(caught.value)
    assert "in/directory" in str(caught.value)
    assert len(os.listdir(remote / "out")) == 302


def test_a_listing_leaves_other_files_alone(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_named_files, "_MIN_PATHS_TO_LIST", 2)
    write_files(remote, dict.fromkeys(NAMES, b"abc"))
    assert actions(run(delete([NAMES[0], NAMES[-1]]))) == {NAMES[0]: "deleted", NAMES[-1]: "deleted"}
    assert len(read_files(remote)) == 298


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every directory")
def test_in_a_directory_that_cannot_be_listed_names_are_examined(remote: Path) -> None:
    write_files(remote, dict.fromkeys(NAMES, b"abc"))
    (remote / "in").chmod(0o300)
    try:
        assert len(run(move(NAMES, "out"))) == 300
    finally:
        (remote / "in").chmod(0o700)
