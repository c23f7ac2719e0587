"""Operators see a file that a server replaces by two renames."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from airflow_sftp_backend import NotFound
from airflow_sftp_backend.backend._paths import RemotePath, temp_name
from airflow_sftp_backend.backend._tree_queries import restore_missing
from airflow_sftp_backend.hooks import FilesFailed
from tests.support.airflow.arguments import Glob
from tests.support.airflow.operators import delete, download, move, run
from tests.support.airflow.syncs import Serve
from tests.support.backends import MakeBackend
from tests.support.files import read_files, write_files
from tests.support.round_trips import count_round_trips
from tests.support.servers import HostileNames, OpenSSHServer, ReplacesDuringListing, WithoutPosixRename

SOURCES = ["in/", Glob("in/*"), Glob("**/b.csv"), "in/b.csv", ["in/b.csv", "in/a"]]


def operator(kind: str, source: Any, tmp_path: Path, **arguments: Any) -> Any:
    if kind == "download":
        return download(source, f"{tmp_path}/out/", **arguments)
    return move(source, "out/", **arguments) if kind == "move" else delete(source, **arguments)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("source", SOURCES[:3])
@pytest.mark.parametrize("kind", ["download", "move", "delete"])
def test_a_file_between_two_renames_is_found(
    serve: Serve, tmp_path: Path, kind: str, source: Any, dry_run: bool
) -> None:
    remote = serve(ReplacesDuringListing("b.csv"))
    write_files(remote / "in", {"a": b"1", "b.csv": b"22"})
    rows = run(operator(kind, source, tmp_path, dry_run=dry_run))
    name = "source" if kind == "move" else "path"
    assert [row["size"] for row in rows if row[name] == "in/b.csv"] == [2]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ["download", "move", "delete"])
def test_the_file_of_an_interrupted_replacement_is_found(serve: Serve, tmp_path: Path, kind: str, source: Any) -> None:
    remote = serve(WithoutPosixRename())
    backup = RemotePath("in", "in").entry("b.csv").backup.key
    write_files(remote, {"in/a": b"1", backup: b"22"})
    if source in SOURCES[2:4]:
        with pytest.raises(NotFound):
            run(operator(kind, source, tmp_path, dry_run=True))
    elif source == SOURCES[4]:
        with pytest.raises(FilesFailed):
            run(operator(kind, source, tmp_path, dry_run=True))
    else:
        assert len(run(operator(kind, source, tmp_path, dry_run=True))) == 1
    assert (remote / backup).exists()  # a dry run restores nothing
    run(operator(kind, source, tmp_path))
    target = (tmp_path if kind == "download" else remote) / "out"
    contents = [content for name, content in read_files(target).items() if name.endswith("b.csv")]
    assert contents == ([] if kind == "delete" else [b"22"])
    assert [path.name for path in (remote / "in").glob("*b.csv*")] == (["b.csv"] if kind == "download" else [])


def test_a_backup_never_leads_out_of_its_directory(make_backend: MakeBackend) -> None:
    name = temp_name("../../secret.csv", "0" * 12, "backup").encode()
    with HostileNames(names=[name], mode=stat.S_IFLNK | 0o777) as server:
        folder = server.fresh()
        write_files(folder.path, {"secret.csv": b"outside", "base/in/a.csv": b"1"})
        backend = make_backend(server, base_path=f"{folder.base_path}/base")
        assert [info.path for info in backend.find("in/*.csv")] == ["in/a.csv"]


def test_a_cut_name_or_another_pattern_matches_no_backup(serve: Serve, tmp_path: Path) -> None:
    remote = serve(WithoutPosixRename())
    folder = RemotePath("in", "in")
    backups = {folder.entry(name).backup.key: b"" for name in ("b.csv", "long-" * 50)}
    write_files(remote, {"in/a.txt": b"1", **backups})
    assert [row["path"] for row in run(download(Glob("in/*.txt"), f"{tmp_path}/"))] == ["in/a.txt"]
    with pytest.raises(NotFound):
        run(download(Glob("in/long*"), f"{tmp_path}/"))
    assert {f"in/{path.name}" for path in (remote / "in").iterdir()} == {"in/a.txt", *backups}


def test_a_missing_name_costs_nothing_where_renames_replace(
    openssh: OpenSSHServer, make_backend: MakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(openssh)
    backend.check_health()
    with count_round_trips(monkeypatch) as trips:
        assert restore_missing(backend, ["a", "b"]) == {}
    assert trips.deepest == 0
