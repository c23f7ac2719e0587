"""Transfers give files the specified names, modes and times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath

from tests.support.airflow.connections import Connect
from tests.support.airflow.context import State
from tests.support.airflow.operators import download, run, upload
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files
from tests.support.servers import RefusesRename


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Return a local directory with a file."""
    return write_files(tmp_path / "local", {"a.csv": b"one"})


def test_transfers_take_a_template_for_new_names(remote: Path, local: Path, tmp_path: Path) -> None:
    rows = run(upload(local / "a.csv", "out", rename="{stem}-{timestamp}{suffix}"))
    assert [row["path"] for row in rows] == ["out/a-20260201T003000.csv"]
    rows = run(download("out/", tmp_path / "back", rename="{date}/{time}{suffix}"))
    assert [row["target"] for row in rows] == [f"{tmp_path}/back/2026-02-01/003000.csv"]
    assert read_files(tmp_path / "back") == {"2026-02-01/003000.csv": b"one"}
    for make in (upload, download):
        with pytest.raises(ValueError, match=r"rename has \{day\} in it"):
            make("a", "b", rename="{day}")
        assert "rename" in make("a", "b", rename="{{ ds }}-{name}").template_fields


def test_transfers_set_modes_and_keep_times(remote: Path, local: Path, tmp_path: Path, store: str) -> None:
    os.utime(local / "a.csv", (1_000_000_001, 1_000_000_001))
    run(upload(local / "a.csv", "up.csv", mode=0o640, keep_times=True))
    run(download("up.csv", tmp_path / "down.csv", mode=0o604, keep_times=True))
    for path, mode in ((remote / "up.csv", 0o640), (tmp_path / "down.csv", 0o604)):
        state = path.stat()
        assert (state.st_mode & 0o7777, state.st_mtime) == (mode, 1_000_000_001)
    ObjectStoragePath(f"{store}/a").write_bytes(b"object")
    run(upload(f"{store}/a", "object", mode=0o640, keep_times=True))
    state = (remote / "object").stat()
    assert state.st_mode & 0o7777 == 0o640
    assert int(state.st_mtime) == int(ObjectStoragePath(f"{store}/a").stat()["created"].timestamp())
    with pytest.raises(AirflowFailException, match="mode and keep_times apply to local targets"):
        run(download("up.csv", f"{store}/b", mode=0o640))
    with pytest.raises(ValueError, match="mode must be an octal number: write 0o640, because 640 is 0o1200"):
        upload("a", "b", mode=640)


def test_unfinished_uploads_have_the_specified_names(remote: Path, local: Path, store: str) -> None:
    ObjectStoragePath(f"{store}/b.csv").write_bytes(b"object")
    names: list[str] = []
    state = State()
    put = state.set

    def note(key: str, value: object, **options: object) -> None:
        names.extend(path.relative_to(remote).as_posix() for path in remote.rglob(".*"))
        put(key, value, **options)

    state.set = note  # type: ignore[method-assign] # called just before the renames
    sources = [f"{local}/a.csv", f"{store}/b.csv"]
    run(upload(sources, "out/", temp_suffix=".tmp", temp_folder="work/"), state=state)
    assert [name.rpartition("/")[0] for name in names] == ["work", "work"]
    assert [name.endswith(".part.tmp") for name in names] == [True, True]
    assert read_files(remote) == {"out/a.csv": b"one", "out/b.csv": b"object"}
    with pytest.raises(ValueError, match="temp_suffix must be a suffix"):
        upload("a", "b", temp_suffix="tmp")


def test_a_temp_folder_that_repeats_the_base_path_is_refused(remote: Path, local: Path) -> None:
    with pytest.raises(AirflowFailException, match="temp_folder"):
        run(upload(f"{local}/", "out/", temp_folder=f"{remote}/work"))
    assert read_files(remote) == {}


def test_direct_uploads_need_no_rename(connect: Connect, local: Path, store: str) -> None:
    with RefusesRename() as server:
        folder = server.fresh()
        connect(server, base_path=folder.base_path)
        state = State()
        for attempt, action in ((1, "uploaded"), (2, "uploaded by an earlier attempt")):
            rows = run(upload(local / "a.csv", "out/", direct=True), try_number=attempt, state=state)
            assert [row["action"] for row in rows] == [action]
        assert read_files(folder.path) == {"out/a.csv": b"one"}
        ObjectStoragePath(f"{store}/b").write_bytes(b"object")
        with pytest.raises(AirflowFailException, match="direct applies to local files, but the source has URLs"):
            run(upload(f"{store}/b", "out/", direct=True))
    with pytest.raises(ValueError, match="direct writes under the final names; omit temp_suffix and temp_folder"):
        upload("a", "b", direct=True, temp_suffix=".tmp")


def test_a_retry_recognises_files_with_kept_times(remote: Path, local: Path, tmp_path: Path) -> None:
    os.utime(local / "a.csv", (1_000_000_001, 1_000_000_001))
    sent, fetched = State(), State()
    for try_number, suffix in ((1, ""), (2, " by an earlier attempt")):
        up = upload(local / "a.csv", "up.csv", keep_times=True)
        assert [row["action"] for row in run(up, try_number=try_number, state=sent)] == [f"uploaded{suffix}"]
        down = download("up.csv", tmp_path / "down.csv", keep_times=True)
        assert [row["action"] for row in run(down, try_number=try_number, state=fetched)] == [f"downloaded{suffix}"]
