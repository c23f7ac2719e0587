"""No transfer or move writes two files under one name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.airflow.context import context
from tests.support.airflow.operators import download, move, run, upload
from tests.support.airflow.syncs import Serve, counts, run_sync, sync
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer, IgnoresCase, LikeWindows

NAMES = [("A.csv", "a.csv"), ("sub/x", "Sub/X"), ("a", "a."), ("sub/b", "sub\\b")]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("kind", ["upload", "download"])
def test_two_targets_that_are_one_name_are_refused(
    serve: Serve, tmp_path: Path, kind: str, names: tuple[str, str], dry_run: bool
) -> None:
    caseless = serve(LikeWindows(), "caseless")
    files = {**dict.fromkeys(names, b"1"), "other": b"2"}
    arguments: dict[str, Any] = {"if_exists": "replace", "dry_run": dry_run}
    if kind == "upload":
        operator: Any = upload(f"{write_files(tmp_path, files)}/", "out", sftp_conn_id="caseless", **arguments)
    else:
        write_files(serve(AsyncsshServer()) / "in", files)
        operator = download("in/", "sftpbackend://caseless@/out", **arguments)
    with pytest.raises(AirflowFailException, match="for one name"):
        run(operator)
    assert not (caseless / "out").exists()


def test_a_move_of_two_files_to_one_name_is_refused(serve: Serve) -> None:
    caseless = serve(IgnoresCase())
    files = {"1/A.csv": b"1", "2/a.csv": b"2"}
    write_files(caseless, files)
    for dry_run in (True, False):
        with pytest.raises(AirflowFailException, match="for one name"):
            run(move([*files], "out", rename="{name}", if_exists="replace", dry_run=dry_run))
    assert read_files(caseless) == files


@pytest.mark.parametrize("if_exists", ["fail", "replace"])
def test_names_in_different_case_are_transferred_where_they_differ(
    remote: Path, tmp_path: Path, store: str, if_exists: str
) -> None:
    files = {"in/A.csv": b"1", "in/a.csv": b"2", "in/a.csv.": b"3"}
    write_files(tmp_path, files)
    run(upload(f"{tmp_path}/in/", "out", if_exists=if_exists))
    expected = {name.replace("in/", "out/"): content for name, content in files.items()}
    assert read_files(remote) == expected
    for target in (f"{tmp_path}/back", f"{store}/back"):
        assert len(run(download("out/", target, if_exists=if_exists))) == 3
    assert read_files(tmp_path / "back") == read_files(tmp_path / "in")
    run(move("out/", "moved", if_exists=if_exists))
    assert read_files(remote / "moved") == read_files(tmp_path / "in")


def test_a_move_numbers_names_that_the_server_does_not_distinguish(serve: Serve) -> None:
    caseless = serve(IgnoresCase())
    write_files(caseless, {"1/A.csv": b"1", "2/a.csv": b"2"})
    run(move(["1/A.csv", "2/a.csv"], "out", rename="{name}", if_exists="number"))
    assert sorted(read_files(caseless / "out").values()) == [b"1", b"2"]


def test_a_file_too_deep_to_be_listed_is_not_uploaded(remote: Path, tmp_path: Path) -> None:
    listed, too_deep = "d/" * 256 + "a", "d/" * 257 + "a"
    here = write_files(tmp_path / "in", {"a": b"1", listed: b"2", too_deep: b"3"})
    for operator in (upload(f"{here}/", "out"), sync(here, "out")):
        with pytest.raises(AirflowFailException, match=r"1 of 3 files failed:\n- .*more than 256 directories"):
            operator.execute(context())
        assert (remote / "out" / listed).read_bytes() == b"2"
    (here / too_deep).unlink()
    assert counts(run_sync(sync(here, "out")))[2] == 2
