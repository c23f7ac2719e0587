"""Ambiguous or invalid input is refused, not guessed or skipped."""

from __future__ import annotations

import json
import os
import random
import re
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseOperator, ObjectStoragePath
from airflow.sdk.definitions._internal.types import NOTSET
from fsspec.implementations.memory import MemoryFileSystem

from airflow_sftp_backend import AlreadyExists, BackendUnavailable, NotFound, SFTPBackend, TransferCorrupted
from airflow_sftp_backend.backend import BackendConfig
from airflow_sftp_backend.hooks import FilesFailed
from airflow_sftp_backend.sensors import SFTPFileSensor
from tests.support.airflow.arguments import Glob
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import State, context
from tests.support.airflow.operators import delete, download, file_errors, move, run, upload
from tests.support.airflow.supervised_task import run as run_supervised
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer, StallsAfter

# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "./", "//", " /".strip()])
def test_deleting_the_base_path_is_refused(remote: Path, path: str) -> None:
    write_files(remote, {"a": b"1", "deep/b": b"2"})
    for dry_run in (True, False):
        with pytest.raises(AirflowFailException, match="path is the base path"):
            run(delete(path, dry_run=dry_run))
    assert sorted(read_files(remote)) == ["a", "deep/b"]


def test_a_list_rendered_as_text_is_reported(remote: Path) -> None:
    with pytest.raises(AirflowFailException, match="render_template_as_native_obj=True"):
        run(delete("['in/a', 'in/b']", missing_ok=True))


def test_a_pattern_ending_with_a_slash_matches_no_files(remote: Path) -> None:
    write_files(remote, {"logs/a": b"1", "logs/old/b": b"2"})
    with pytest.raises(AirflowFailException, match="matches directories, not files"):
        run(delete(Glob("logs/*/")))
    assert sorted(read_files(remote)) == ["logs/a", "logs/old/b"]


@pytest.mark.parametrize("operator", [delete("deep", missing_ok=True), move("deep", "there", missing_ok=True)])
def test_a_directory_without_a_trailing_slash_is_not_reported_missing(remote: Path, operator: BaseOperator) -> None:
    write_files(remote, {"deep/a": b"1"})
    with pytest.raises(AirflowFailException, match="the path is a directory; to select its files"):
        run(operator)
    assert sorted(read_files(remote)) == ["deep/a"]


def test_a_target_is_one_path(remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"a": b"1"})
    with pytest.raises(AirflowFailException, match="target is of type list; expected one path"):
        run(download("a", [str(tmp_path / "1"), str(tmp_path / "2")]))


NOT_UTF_8 = os.fsdecode(b"caf\xe9.csv")


@pytest.mark.parametrize("what", ["upload", "download", "move", "delete", "delete folder"])
def test_a_name_that_is_not_utf8_is_refused_and_the_others_are_not(remote: Path, tmp_path: Path, what: str) -> None:
    folder = write_files(tmp_path / "src" if what == "upload" else remote / "in", {"a": b"1", NOT_UTF_8: b"2"})
    make: dict[str, Callable[[], BaseOperator]] = {
        "upload": lambda: upload(f"{folder}/", "out/"),
        "download": lambda: download(Glob("in/*"), f"{tmp_path}/out/"),
        "move": lambda: move(Glob("in/*"), "out/"),
        "delete": lambda: delete(Glob("in/*")),
        "delete folder": lambda: delete("in/"),
    }
    with pytest.raises(AirflowFailException, match="1 of 2 files failed") as caught:
        run(make[what](), state=State())
    text = str(caught.value)
    assert "not UTF-8" in text
    assert r"caf\\xe9.csv" in text
    assert text.encode()
    assert NOT_UTF_8 in read_files(folder)
    assert ("a" in read_files(folder)) == (what in ("upload", "download"))
    out = {"download": tmp_path / "out"}.get(what, remote / "out")
    assert read_files(out) == ({} if what.startswith("delete") else {"a": b"1"})


@pytest.mark.timeout(120)
def test_a_name_that_is_not_utf8_breaks_no_real_task(remote: Path, tmp_path: Path) -> None:
    write_files(remote / "in", {"a": b"1", NOT_UTF_8: b"2"})
    dag = """
        from airflow.sdk import DAG
        from airflow_sftp_backend.operators import SFTPMoveOperator
        with DAG("moving"):
            SFTPMoveOperator(task_id="mv", pattern="in/*", target="out/")
    """
    write_files(tmp_path, {"dags/moving.py": textwrap.dedent(dag).encode()})
    lines = run_supervised(tmp_path / "dags", "moving", "mv", tmp_path / "mv.log")
    assert read_files(remote) == {"out/a": b"1", f"in/{NOT_UTF_8}": b"2"}
    assert any("moved out/a (1 B) <- in/a" in str(line["event"]) for line in lines)
    failed = [line for line in lines if "error_detail" in line]
    assert "the name is not UTF-8" in json.dumps(failed[0]["error_detail"])


@pytest.mark.parametrize("operator", [move([], "there/", missing_ok=True), delete([], missing_ok=True)])
def test_an_empty_list_succeeds_if_allowed(remote: Path, operator: BaseOperator) -> None:
    assert run(operator) == []


@pytest.mark.parametrize(
    ("operator", "argument"),
    [
        (move("x", "there/", missing_ok=True), "source"),
        (move(Glob("x"), "there/", missing_ok=True), "pattern"),
        (delete("x", missing_ok=True), "path"),
        (upload("a", "t"), "target"),
    ],
)
@pytest.mark.parametrize("rendered", [None, "None", NOTSET, 1, 1_000, 1.5, b"x", {"a"}, [1], [None], True])
def test_an_argument_rendered_to_another_type_is_reported(
    remote: Path, operator: BaseOperator, argument: str, rendered: object
) -> None:
    write_files(remote, {"None": b"", "1": b"", "1000": b"", "True": b"", "x": b"", "a": b""})
    setattr(operator, argument, rendered)
    with pytest.raises(AirflowFailException, match=rf"^{argument} (is|has) .*") as caught:
        run(operator)
    assert re.search("a task's output|a task as it is|source=wait.output", str(caught.value))
    assert sorted(read_files(remote)) == ["1", "1000", "None", "True", "a", "x"]


def test_a_target_is_literal(remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"in/a.csv": b"1", "archive/a{b}": b"old"})
    assert run(move("in/a.csv", "archive/{date}/a{b}[*].csv"))[0]["path"] == "archive/{date}/a{b}[*].csv"
    run(upload(write_files(tmp_path, {"x": b"2"}) / "x", "archive/{name}?"))
    assert read_files(remote) == {"archive/{date}/a{b}[*].csv": b"1", "archive/a{b}": b"old", "archive/{name}?": b"2"}


@pytest.mark.parametrize("missing_ok", [True, False])
def test_a_file_deleted_before_its_move_is_missing(
    remote: Path, monkeypatch: pytest.MonkeyPatch, missing_ok: bool
) -> None:
    write_files(remote, {"in/a.csv": b"1", "in/b.csv": b"2"})
    moving = SFTPBackend.move_many

    def late(self: SFTPBackend, *args: Any, **kwargs: Any) -> Any:
        (remote / "in/a.csv").unlink()
        return moving(self, *args, **kwargs)

    monkeypatch.setattr(SFTPBackend, "move_many", late)
    if missing_ok:
        assert [row["source"] for row in run(move(Glob("in/*.csv"), "out/", missing_ok=True))] == ["in/b.csv"]
    else:
        with pytest.raises(FilesFailed) as caught:
            run(move(Glob("in/*.csv"), "out/"))
        assert [type(error) for error in file_errors(caught.value)] == [NotFound]
    assert read_files(remote) == {"out/b.csv": b"2"}


def test_directories_and_dangling_links_occupy_numbered_names(remote: Path) -> None:
    write_files(remote, {"in/a.csv": b"1", "in/b.csv": b"2", "out/a.csv/in-it": b"", "out/a-1.csv/in-it": b""})
    (remote / "out/b.csv").symlink_to("nowhere")
    rows = run(move(Glob("in/*.csv"), "out/", if_exists="number"))
    assert {row["source"]: row["path"] for row in rows} == {"in/a.csv": "out/a-2.csv", "in/b.csv": "out/b-1.csv"}
    assert (remote / "out/b.csv").is_symlink()


# -- folders of this machine ------------------------------------------------------------------------------------------


def test_a_directory_is_uploaded_with_the_targets_of_its_links(remote: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "src", {"a": b"1"})
    write_files(tmp_path / "other", {"b": b"2"})
    (tmp_path / "src" / "linked").symlink_to(tmp_path / "other")
    run(upload(f"{tmp_path}/src/", "t/"))
    assert sorted(read_files(remote)) == ["t/a", "t/linked/b"]


def test_circular_and_dangling_local_links_are_reported(remote: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "src", {"deep/a": b"1"})
    (tmp_path / "src/deep/again").symlink_to(tmp_path / "src")
    with pytest.raises(AirflowFailException, match="leads to one of its parent directories"):
        run(upload(f"{tmp_path}/src/", "t/"))
    (tmp_path / "src/deep/again").unlink()
    (tmp_path / "src/broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="broken"):
        run(upload(f"{tmp_path}/src/", "t/"))
    assert read_files(remote) == {}


def test_an_unsendable_name_does_not_stop_other_files(remote: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "src", {"bad\nname": b"1", "good": b"2"})
    with pytest.raises(AirflowFailException, match="control characters"):
        run(upload(f"{tmp_path}/src/", "t/"))
    assert sorted(read_files(remote)) == ["t/good"]


def test_a_local_directory_error_does_not_stop_other_files(remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"a/x": b"1", "b/x": b"2"})
    write_files(tmp_path, {"into/a": b"a file in the way"})
    with pytest.raises(FilesFailed, match="1 of 2 files failed") as caught:
        run(download(Glob("**/x"), f"{tmp_path}/into/"))
    assert isinstance(file_errors(caught.value)[0], OSError)
    assert (tmp_path / "into/b/x").read_bytes() == b"2"


@pytest.mark.parametrize("if_exists", ["skip", "skip_same", "replace", "fail"])
def test_a_directory_at_the_target_is_not_an_existing_file(remote: Path, tmp_path: Path, if_exists: str) -> None:
    write_files(remote, {"a": b"1"})
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        run(download("a", tmp_path / "folder", if_exists=if_exists))


# -- the next try -----------------------------------------------------------------------------------------------------


def test_a_pattern_is_done_only_if_its_own_files_were_moved(remote: Path) -> None:
    write_files(remote, {"a/1.csv": b"1"})
    state = State()
    for try_number in (1, 2):
        with pytest.raises(FilesFailed) as caught:
            run(move(Glob("a/*.csv", "b/*.csv"), "there/"), try_number=try_number, state=state)
        assert [getattr(error, "path", "") for error in file_errors(caught.value)] == ["b/*.csv"]


@pytest.mark.parametrize("if_exists", ["fail", "skip"])
def test_what_was_never_moved_is_not_reported_as_moved(remote: Path, if_exists: str) -> None:
    write_files(remote, {"a.csv": b"new", "there/a.csv": b"old"})
    state = State()
    if if_exists == "fail":
        with pytest.raises(AlreadyExists):
            run(move("a.csv", "there/"), state=state)
    else:
        run(move("a.csv", "there/", if_exists="skip"), state=state)
    (remote / "a.csv").unlink()
    with pytest.raises(NotFound):
        run(move("a.csv", "there/"), try_number=2, state=state)


def test_a_lost_server_is_not_retried_for_every_file(connect: Connect) -> None:
    with StallsAfter(requests=6) as stalling:
        folder = stalling.fresh()
        write_files(folder.path, {f"{number}": b"" for number in range(20)})
        connect(stalling, base_path=folder.base_path, io_timeout=1, timeout=1, conn_retry_attempts=1)
        with pytest.raises((BackendUnavailable, FilesFailed)):
            run(delete(Glob("*")))
        assert stalling.connections() <= 3


@pytest.mark.parametrize("what", ["upload", "download"])
def test_a_retry_resumes_where_the_server_was_lost(
    connect: Connect, server: AsyncsshServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level("INFO")
    content = random.Random(1).randbytes(80 << 20)
    with StallsAfter(requests=60) as stalling:
        folder = stalling.fresh()
        write_files(folder.path if what == "download" else tmp_path, {"big": content})
        operator = upload(tmp_path / "big", "big") if what == "upload" else download("big", tmp_path / "big")
        connect(stalling, base_path=folder.base_path, io_timeout=1, timeout=1, conn_retry_attempts=1)
        with pytest.raises(BackendUnavailable):
            run(operator)
        connect(server, base_path=folder.base_path)
        run(operator, try_number=2)
        assert re.search(r"resuming after \d{7,} bytes of an earlier attempt", caplog.text)
        assert read_files(folder.path) == read_files(tmp_path) == {"big": content}


def test_one_failed_move_or_deletion_does_not_stop_two_hundred_others(remote: Path) -> None:
    names = [f"{number:03}.csv" for number in range(200)]
    write_files(remote, dict.fromkeys(names, b"1") | {"done/100.csv": b"old"})
    with pytest.raises(FilesFailed, match="1 of 200 files failed") as caught:
        run(move(Glob("*.csv"), "done/"))
    assert [type(error) for error in file_errors(caught.value)] == [AlreadyExists]
    assert read_files(remote) == {f"done/{name}": b"1" for name in names} | {"100.csv": b"1", "done/100.csv": b"old"}
    (remote / "folder").mkdir()
    with pytest.raises(AirflowFailException, match="1 of 201 files failed:\n- the path is a directory"):
        run(delete(["done/", "folder"]))
    assert read_files(remote) == {"100.csv": b"1"}


# -- stores -----------------------------------------------------------------------------------------------------------


def test_an_incomplete_object_does_not_replace_the_old_one(connect: Connect, store: str) -> None:
    with StallsAfter(requests=8) as stalling:
        folder = stalling.fresh()
        write_files(folder.path, {"big": os.urandom(8 << 20)})
        connect(stalling, base_path=folder.base_path, io_timeout=1, timeout=1, conn_retry_attempts=1)
        target = ObjectStoragePath(f"{store}/big")
        target.write_bytes(b"the old one")
        with pytest.raises(BackendUnavailable):
            run(download("big", f"{store}/big", if_exists="replace"))
        assert target.read_bytes() == b"the old one"
        assert [path.name for path in target.parent.iterdir()] == ["big"]


def test_an_object_store_that_loses_bytes_is_detected(
    remote: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(remote, {"a": b"x" * 100})
    opened = MemoryFileSystem.open

    def damaging(self: MemoryFileSystem, path: str, mode: str = "rb", **options: Any) -> Any:
        if "r" in mode:
            self.store[self._strip_protocol(path)].write(b"?")
        return opened(self, path, mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "open", damaging)
    with pytest.raises(TransferCorrupted, match="does not have the SHA-256 of the received bytes"):
        run(download("a", f"{store}/a", verify="sha256"))
    assert not ObjectStoragePath(f"{store}/a").exists()


def test_a_source_that_ends_early_is_not_committed(remote: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ObjectStoragePath(f"{store}/a").write_bytes(b"whole file")
    opened = MemoryFileSystem.open

    def cut(self: MemoryFileSystem, path: str, mode: str = "rb", **options: Any) -> Any:
        if "r" in mode:
            self.store[self._strip_protocol(path)].truncate(2)
        return opened(self, path, mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "open", cut)
    with pytest.raises(TransferCorrupted, match="read 2 bytes from the source, expected 10"):
        run(upload(f"{store}/a", "a"))
    assert read_files(remote) == {}


@pytest.mark.parametrize("kind", ["path", "url"])
def test_parents_are_created_only_if_configured(remote: Path, tmp_path: Path, store: str, kind: str) -> None:
    ObjectStoragePath(f"{store}/a").write_bytes(b"1")
    source = f"{store}/a" if kind == "url" else str(write_files(tmp_path, {"a": b"1"}) / "a")
    with pytest.raises(NotFound):
        run(upload(source, "no/such/folder/a", create_parents=False))
    assert not (remote / "no").exists()
    if kind == "path":
        write_files(remote, {"a": b"1"})
        with pytest.raises(FileNotFoundError):
            run(download("a", tmp_path / "no/such/a", create_parents=False))


def test_a_file_url_is_a_path_of_this_machine(remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"a": b"1"})
    (row,) = run(download("a", f"file://{tmp_path}/deep/a"))
    assert row["target"] == f"{tmp_path}/deep/a"
    assert (tmp_path / "deep/a").read_bytes() == b"1"


def test_a_target_on_the_server_is_literal_though_it_begins_as_a_file_url(remote: Path, tmp_path: Path) -> None:
    source = write_files(tmp_path, {"a": b"1"}) / "a"
    (row,) = run(upload(source, "file://in/a"))
    assert row["path"] == "file:/in/a"
    (row,) = run(move("file:/in/a", "file://out/b"))
    assert row["path"] == "file:/out/b"
    assert (remote / "file:/out/b").read_bytes() == b"1"


# -- secrets ----------------------------------------------------------------------------------------------------------


def test_a_secret_in_the_wrong_argument_is_never_shown(
    connect: Connect, server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    connect(server, columns={"host": "sftp://partner:hunter2@sftp.example.org"})
    with pytest.raises(AirflowFailException) as caught:
        delete("a").execute(context())
    assert "hunter2" not in f"{caught.value}{caught.value.__cause__}{capsys.readouterr()}"
    assert "hunter2" not in repr(BackendConfig(host="h", proxy_command="ncat --proxy-auth u:hunter2 %h %p"))


# -- arguments do what they say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["size", "sha256", "none"])
def test_the_configured_verification_is_used(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    verify_arguments: list[object] = []

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            verify_arguments.append(kwargs["verify"])
            return call(*args, **kwargs)

        return noted

    for name in ("upload_many", "download_many"):
        monkeypatch.setattr(SFTPBackend, name, noting(getattr(SFTPBackend, name)))
    run(upload(write_files(tmp_path, {"a": b"1"}) / "a", "a", verify=verify))
    run(download("a", tmp_path / "back", verify=verify))
    assert verify_arguments == [verify, verify]


def test_a_dry_run_with_something_missing_fetches_nothing(remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"a": b"1"})
    with pytest.raises(FilesFailed, match="1 of 2 files failed"):
        run(download(["a", "missing"], f"{tmp_path}/into/", dry_run=True))
    assert read_files(tmp_path) == {}


def test_a_missing_directory_is_reported_missing(remote: Path) -> None:
    with pytest.raises(NotFound):
        run(delete("missing/"))
    assert run(delete("missing/", missing_ok=True)) == []


def test_concurrent_tasks_with_one_target_all_keep_their_files(remote: Path) -> None:
    write_files(remote, {f"{number}/r.csv": str(number).encode() for number in range(12)})
    moving = [move(f"{number}/r.csv", "there", rename="{name}", if_exists="number") for number in range(12)]
    with ThreadPoolExecutor(12) as threads:
        rows = list(threads.map(run, moving))
    assert sorted(read_files(remote).values()) == sorted(str(number).encode() for number in range(12))
    assert sorted(row["path"] for (row,) in rows) == sorted(read_files(remote))
    assert set(read_files(remote)) == {"there/r.csv"} | {f"there/r-{number}.csv" for number in range(1, 12)}


def test_a_retried_deletion_recognises_any_number_of_files(remote: Path) -> None:
    state = State()
    write_files(remote, {f"in/{number}": b"" for number in range(510)})
    assert len(run(delete("in/"), state=state)) == 510
    assert run(delete("in/"), try_number=2, state=state) == []
    with pytest.raises(NotFound):
        run(delete(["in/", "other/"]), try_number=2, state=state)


def test_a_retried_move_recognises_any_number_of_files(remote: Path) -> None:
    write_files(remote, {f"in/{number}": b"" for number in range(510)})
    state = State()
    assert len(run(move(Glob("in/*"), "out/"), state=state)) == 510
    assert max(map(len, state.values.values())) < 65_535
    assert len(run(move(Glob("in/*"), "out/"), try_number=2, state=state)) == 510


def test_latin1_names_are_rows_of_tasks(server: AsyncsshServer, connect: Connect, tmp_path: Path) -> None:
    folder = server.fresh()
    connect(server, base_path=folder.base_path, name_encoding="Latin-1")
    (folder.path / os.fsdecode(b"caf\xe9.csv")).write_bytes(b"content")
    rows = SFTPFileSensor(task_id="wait", pattern="*.csv").execute(context())
    assert [row["path"] for row in rows] == ["café.csv"]
    (row,) = run(download(rows, tmp_path))
    assert Path(row["target"]).read_bytes() == b"content"
    run(upload(row["target"], "out/übergabe"))
    run(move(rows, "archivé/"))
    written = {
        os.path.relpath(os.path.join(directory, name), os.fsencode(folder.path))
        for directory, _, names in os.walk(os.fsencode(folder.path))
        for name in names
    }
    assert written == {b"archiv\xe9/caf\xe9.csv", b"out/\xfcbergabe"}
