"""A sync gives the files that it transfers a mode."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath

from tests.support.airflow.connections import Connect
from tests.support.airflow.syncs import counts, run_sync, set_age, sync
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files
from tests.support.servers import WithoutSetstat

FILES = {"a.csv": b"one", "sub/b.csv": b"two", "sub/deep/c.txt": b"three"}


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A local directory with three files."""
    return write_files(tmp_path / "local", FILES)


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_new_and_changed_files_get_the_mode(remote: Path, local: Path, tmp_path: Path, direction: str) -> None:
    source, target = (local, remote / "mirror") if direction == "upload" else (remote / "in", tmp_path / "out")
    ends: tuple[object, object] = (source, "mirror") if direction == "upload" else ("in", target)
    for folder in (source, target):
        write_files(folder, FILES)
        set_age(folder)
    write_files(target, {"a.csv": b"of another size"})
    (target / "sub/deep/c.txt").unlink()
    for path in (target / "a.csv", target / "sub/b.csv"):
        path.chmod(0o600)
    assert counts(run_sync(sync(*ends, direction, mode=0o604))) == (1, 1, 1, 0)
    modes = {name: (target / name).stat().st_mode & 0o7777 for name in FILES}
    assert modes == {"a.csv": 0o604, "sub/b.csv": 0o600, "sub/deep/c.txt": 0o604}  # unchanged files keep their own


def test_objects_get_the_mode_on_the_server_only(remote: Path, store: str, tmp_path: Path) -> None:
    ObjectStoragePath(f"{store}/a").write_bytes(b"object")
    run_sync(sync(store, "mirror", mode=0o604))
    assert (remote / "mirror/a").stat().st_mode & 0o7777 == 0o604
    with pytest.raises(AirflowFailException, match="mode applies to local targets and to the server, but target is"):
        run_sync(sync("mirror", f"{store}/back", "download", mode=0o604))
    assert not ObjectStoragePath(f"{store}/back").exists()


def test_a_refused_mode_fails_the_file_and_prevents_deletions(connect: Connect, local: Path) -> None:
    with WithoutSetstat() as server:
        folder = server.fresh()
        connect(server, base_path=folder.base_path)
        target = folder.path
        write_files(target / "mirror", {"a.csv": b"old content", "extra": b""})
        with pytest.raises(AirflowFailException) as refused:
            run_sync(sync(local, "mirror", delete=True, mode=0o604))
        assert str(refused.value).count("cannot set mode 604: the server does not support this operation") == 3
        assert read_files(target / "mirror") == {"a.csv": b"old content", "extra": b""}
