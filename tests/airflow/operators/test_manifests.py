"""``manifest=`` writes the rows of a task, ``from_manifest=`` reads them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, ObjectStoragePath
from fsspec.implementations.memory import MemoryFileSystem

from airflow_sftp_backend.hooks import FilesFailed
from airflow_sftp_backend.operators import SFTPDeleteOperator
from airflow_sftp_backend.operators._reporting import manifest as manifests
from airflow_sftp_backend.operators._reporting.manifest import read_manifests, write_manifest
from tests.support.airflow.context import State
from tests.support.airflow.operators import Row, actions, delete, download, move, run, run_to_manifest, upload
from tests.support.airflow.syncs import sync
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files

FILES = {"in/a.csv": b"1", "in/b é🎉.csv": b"22"}


def lines_of(path: str | Path) -> list[Row]:
    text = Path(path).read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["upload", "download", "move", "delete"])
def test_the_manifest_has_the_rows_that_the_result_would_have(remote: Path, tmp_path: Path, what: str) -> None:
    here = write_files(tmp_path / "here", FILES)
    make: dict[str, Callable[..., BaseOperator]] = {
        "upload": lambda **to: upload(f"{here}/in/", "out", if_exists="replace", **to),
        "download": lambda **to: download("in/", tmp_path / "there", if_exists="replace", **to),
        "move": lambda **to: move("in/", "out", **to),
        "delete": lambda **to: delete("in/", **to),
    }
    write_files(remote, FILES)
    rows = run(make[what]())
    write_files(remote, FILES)
    path = tmp_path / "runs" / "1" / "files.jsonl"
    if (remote / "out").exists():
        shutil.rmtree(remote / "out")
    result = run_to_manifest(make[what](manifest=str(path)))
    assert result == {"manifest": str(path), "count": 2, "size": 3}
    assert lines_of(path) == rows
    assert os.listdir(path.parent) == [path.name]


def test_a_sync_returns_its_counts_and_the_manifest(remote: Path, tmp_path: Path) -> None:
    here = write_files(tmp_path / "here", FILES)
    write_files(remote, {"extra": b"333"})
    path = tmp_path / "files.jsonl"
    result = run_to_manifest(sync(here, "/", delete=True, manifest=path))
    assert result == {
        "new": 2, "changed": 0, "unchanged": 0, "extra": 1, "deleted": 1, "size": 3,
        "manifest": str(path), "count": 3,
    }  # fmt: skip
    assert sorted(row["action"] for row in lines_of(path)) == ["deleted", "uploaded", "uploaded"]


def test_a_manifest_can_be_an_object(remote: Path, store: str) -> None:
    write_files(remote, FILES)
    url = f"{store}/runs/files.jsonl"
    result = run_to_manifest(move("in/", "out", manifest=url))
    assert result["manifest"] == url
    rows = [json.loads(line) for line in ObjectStoragePath(url).read_text().splitlines()]
    assert rows == [*read_manifests(result)]
    assert [path.name for path in ObjectStoragePath(f"{store}/runs").iterdir()] == ["files.jsonl"]
    assert len(run(delete(None, from_manifest=result))) == 2
    assert read_files(remote) == {}


@pytest.mark.parametrize("at", ["here", "store"])
def test_a_failed_write_leaves_the_old_manifest_and_no_other_file(
    tmp_path: Path, store: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "_BLOCK_SIZE", 10)
    path = str(tmp_path / "m") if at == "here" else f"{store}/m"
    rows: list[Any] = [{"path": "a", "size": 1, "action": "moved", "source": "b"}] * 3
    write_manifest(path, rows)
    with pytest.raises(OSError, match="not JSON serializable"):
        write_manifest(path, [*rows, {"path": b"", "size": 1, "action": "moved"}])  # type: ignore[typeddict-item]
    assert [*read_manifests(path)] == rows
    names = os.listdir(tmp_path) if at == "here" else [file.name for file in ObjectStoragePath(store).iterdir()]
    assert names == ["m"]


def test_nobody_sees_a_part_of_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "_BLOCK_SIZE", 10)
    path = tmp_path / "m"
    seen: list[list[str]] = []
    dumps = json.dumps

    def dump(row: object) -> str:
        seen.append([name for name in os.listdir(tmp_path) if name == "m"])
        return dumps(row)

    monkeypatch.setattr(json, "dumps", dump)
    write_manifest(str(path), [{"path": "a", "size": None, "action": "moved"}] * 9)
    assert seen == [[]] * 9
    assert len(lines_of(path)) == 9


def test_a_retry_replaces_the_manifest_and_names_the_files_of_all_attempts(remote: Path, tmp_path: Path) -> None:
    here = write_files(tmp_path / "here", FILES)
    state, path = State(), tmp_path / "m"
    operator = upload(f"{here}/in/", "out", manifest=path)
    run_to_manifest(operator, state=state)
    assert run_to_manifest(operator, state=state, try_number=2)["count"] == 2
    assert {row["action"] for row in lines_of(path)} == {"uploaded by an earlier attempt"}


def test_a_task_with_failed_files_writes_no_manifest(remote: Path, tmp_path: Path) -> None:
    write_files(remote, FILES)
    with pytest.raises(FilesFailed):
        run(move(["in/a.csv", "in/missing"], "out", manifest=tmp_path / "m"))
    assert os.listdir(tmp_path) == []


def test_a_dry_run_writes_the_plan_to_the_manifest(remote: Path, tmp_path: Path) -> None:
    write_files(remote, FILES)
    run_to_manifest(delete("in/", dry_run=True, manifest=tmp_path / "m"))
    assert {row["action"] for row in lines_of(tmp_path / "m")} == {"would delete"}
    assert read_files(remote) == FILES


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        ("{tmp}/", "ends with '/'"),
        ("{tmp}", "is a directory"),
        ("{tmp}/file/m", "is not a directory"),
        ("/proc/new/m", "no file can be created in '/proc'"),
        ("/dev/null", "is not a regular file"),
        ("{tmp}/" + 256 * "m", "longer than 255 bytes"),
        ("nostore://bucket/m", "cannot use nostore:// URLs"),
        ("None", "the text 'None'"),
        (["m"], "of type list"),
        ("s3://user:password@bucket/m", "URL with a password"),
    ],
)
def test_a_manifest_that_cannot_be_written_fails_before_any_change(
    remote: Path, tmp_path: Path, manifest: Any, text: str
) -> None:
    write_files(tmp_path, {"file": b""})
    write_files(remote, FILES)
    value = manifest.format(tmp=tmp_path) if isinstance(manifest, str) else manifest
    with pytest.raises(AirflowFailException, match=text):
        run(delete("in/", manifest=value))
    assert read_files(remote) == FILES


def test_a_failed_write_of_a_manifest_says_that_the_files_are_done(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_files(remote, FILES)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        Exception,
        match=r"cannot write the manifest .*/m': No space .*; the \d files of its rows were already processed",
    ):
        run(delete("in/", manifest=tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_a_store_that_refuses_a_manifest_is_quoted(remote: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class AccessDenied(Exception):
        """An error of a store's own library."""

    def refuse(*_: object, **__: object) -> None:
        raise AccessDenied("AccessDenied: PutObject")

    write_files(remote, FILES)
    monkeypatch.setattr(MemoryFileSystem, "_open", refuse)
    text = r"cannot write the manifest .*/m': AccessDenied: PutObject; the 2 files of its rows were already processed"
    with pytest.raises(OSError, match=text):
        run(delete("in/", manifest=f"{store}/m"))


def test_an_empty_template_of_a_manifest_fails_the_task(remote: Path) -> None:
    operator = delete("in/", manifest="{{ nothing }}")
    operator.manifest = None
    with pytest.raises(AirflowFailException, match="manifest is None"):
        run(operator)


# -- reading ----------------------------------------------------------------------------------------------------------


def test_each_operator_takes_the_files_of_the_one_before(remote: Path, tmp_path: Path) -> None:
    write_files(remote, FILES)
    moved = run_to_manifest(move("in/", "taken", manifest=tmp_path / "moved"))
    fetched = run_to_manifest(download(None, tmp_path / "here", from_manifest=moved, manifest=tmp_path / "fetched"))
    sent = run_to_manifest(upload(None, "out", from_manifest=fetched, manifest=tmp_path / "sent"))
    assert actions(run(delete(None, from_manifest=[moved, sent["manifest"]]))) == {
        "taken/a.csv": "deleted", "taken/b é🎉.csv": "deleted", "out/a.csv": "deleted", "out/b é🎉.csv": "deleted",
    }  # fmt: skip
    assert read_files(remote) == {}


def test_the_names_of_a_manifest_are_literal(remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"*": b"1", "a": b"2", "d/e": b"3"})
    (tmp_path / "m").write_text('{"path": "*"}\n\n{"path": "d/e"}')
    assert sorted(row["path"] for row in run(delete(None, from_manifest=tmp_path / "m"))) == ["*", "d/e"]
    assert read_files(remote) == {"a": b"2"}


def test_an_empty_manifest_is_an_empty_list(remote: Path, tmp_path: Path) -> None:
    (tmp_path / "m").touch()
    with pytest.raises(AirflowFailException, match="from_manifest has no rows"):
        run(delete(None, from_manifest=tmp_path / "m"))
    assert run(delete(None, from_manifest=tmp_path / "m", missing_ok=True)) == []


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b'{"path": "b"', "not JSON"),
        (b"\0\0\0", "not JSON"),
        (b'"b"', "not a JSON object with a text 'path'"),
        (b'{"size": 1}', "not a JSON object with a text 'path'"),
        (b'{"path": ""}', "not a JSON object with a text 'path'"),
        (b"[" * 100_000, "not JSON"),
        (b'"' + b"x" * (2 << 20), "not a JSON object with a text 'path'"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_changed(remote: Path, tmp_path: Path, line: bytes, cause: str) -> None:
    write_files(remote, FILES)
    path = tmp_path / "m"
    path.write_bytes(b'{"path": "in/a.csv"}\n' + line + b"\n")
    with pytest.raises(AirflowFailException) as caught:
        run(delete(None, from_manifest=path))
    assert f"the manifest {str(path)!r} is damaged, or the file is not a manifest: line 2 is {cause}" in str(
        caught.value
    )
    assert len(str(caught.value)) < 500
    assert read_files(remote) == FILES


def test_a_manifest_with_fewer_rows_than_counted_is_refused(remote: Path, tmp_path: Path) -> None:
    write_files(remote, FILES)
    result = run_to_manifest(move("in/", "out", manifest=tmp_path / "m"))
    (tmp_path / "m").write_text((tmp_path / "m").read_text().splitlines(keepends=True)[0])
    with pytest.raises(AirflowFailException, match="has 1 rows, expected 2: the file is incomplete, or another task"):
        run(delete(None, from_manifest=result))
    assert len(read_files(remote)) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("{tmp}/none", "manifest '.*/none' does not exist; a local path is that of one worker"),
        ("memory://nobody/none", "the manifest 'memory://nobody/none' does not exist$"),
        ([{"path": "in/a.csv"}], "without a text 'manifest'"),
        ("{{'manifest': 'm'}}", "a template converted to text"),
        (None, "from_manifest is None"),
        (5, "from_manifest is 5, of type int"),
    ],
)
def test_a_wrong_manifest_is_explained(remote: Path, tmp_path: Path, store: str, value: Any, text: str) -> None:
    operator = delete(None, from_manifest="m")
    operator.from_manifest = value.format(tmp=tmp_path) if isinstance(value, str) else value
    with pytest.raises(AirflowFailException, match=text):
        run(operator)


def test_the_json_text_of_a_result_is_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m"
    result = write_manifest(str(path), [{"path": "a", "size": 1, "action": "deleted"}])
    assert [row["path"] for row in read_manifests(json.dumps(result))] == ["a"]


def test_a_manifest_is_read_in_small_memory(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text('{"path": "%s"}\n' % ("x" * 200) * 50_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_manifests(path)) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_filters_do_not_apply_to_the_rows_of_a_manifest(remote: Path, tmp_path: Path) -> None:
    (tmp_path / "m").write_text('{"path": "a"}\n')
    with pytest.raises(AirflowFailException, match="from_manifest names files, and names are not filtered"):
        run(delete(None, from_manifest=tmp_path / "m", include="*.csv"))


def test_the_output_of_a_task_makes_it_an_upstream_task() -> None:
    with DAG("d", schedule=None):
        first = SFTPDeleteOperator(task_id="first", path="a", manifest="/m/{{ run_id }}")
        second = SFTPDeleteOperator(task_id="second", from_manifest=first.output)
    assert second.upstream_task_ids == {"first"}


def test_mapped_over_manifests_a_task_shows_their_names() -> None:
    operator = SFTPDeleteOperator(task_id="t", from_manifest={"manifest": "/m/one.jsonl", "count": 1, "size": 1})
    assert operator.map_label(3) == "one.jsonl"
    with DAG("d", schedule=None):
        mapped = SFTPDeleteOperator.partial(task_id="t", from_manifest="/m").expand(sftp_conn_id=["a", "b"])
    assert mapped.map_index_template is None
