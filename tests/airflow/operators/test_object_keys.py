"""Objects whose keys are no paths fail alone."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_sftp_backend.backend import InvalidPath
from tests.support.airflow.arguments import Glob
from tests.support.airflow.operators import file_errors, run, upload
from tests.support.airflow.syncs import run_sync, sync
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files

UNIVERSAL_PATHLIB = tuple(int(part) for part in version("universal-pathlib").split(".")[:2])
KEYS = {"a/b": b"1", "a//b": b"22", "/c": b"333", "d/../e": b"4", "./f": b"5", "g": b"6"}
EXPRESSIBLE = {"a/b": b"1", "g": b"6"}


@pytest.fixture
def keys(store: str) -> str:
    """The URL of objects whose keys are partly no paths."""
    for key, content in KEYS.items():
        MemoryFileSystem().pipe_file(f"{store}/{key}", content)
    return store


@pytest.mark.parametrize("select", ["directory", "pattern"])
def test_an_object_whose_key_is_no_path_fails_alone(keys: str, remote: Path, select: str) -> None:
    source = f"{keys}/" if select == "directory" else Glob(f"{keys}/**")
    with pytest.raises(AirflowFailException) as failed:
        run(upload(source, "out/"))
    errors = file_errors(failed.value)
    assert {error.path for error in errors if isinstance(error, InvalidPath)} == {
        f"{keys}/{key}" for key in KEYS if key not in EXPRESSIBLE
    }
    assert all("the object's key has an empty segment (//)" in str(error) for error in errors)
    assert read_files(remote) == {f"out/{key}": content for key, content in EXPRESSIBLE.items()}


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_sync_fails_only_for_keys_that_are_no_paths(keys: str, remote: Path, dry_run: bool) -> None:
    write_files(remote, {"out/extra": b"old"})
    with pytest.raises(AirflowFailException) as failed:
        run_sync(sync(keys, "out", delete=True, dry_run=dry_run))
    errors = file_errors(failed.value)
    assert {error.path for error in errors if isinstance(error, InvalidPath)} == {
        f"{keys}/{key}" for key in KEYS if key not in EXPRESSIBLE
    }
    written = {} if dry_run else {f"out/{key}": content for key, content in EXPRESSIBLE.items()}
    assert read_files(remote) == written | {"out/extra": b"old"}


def test_a_sync_leaves_excluded_keys_and_those_of_the_target(keys: str, remote: Path) -> None:
    result = run_sync(sync(keys, "out", exclude=["b", "c", "e", "f"]))
    assert (result["new"], read_files(remote)) == (1, {"out/g": b"6"})
    run_sync(sync("out", keys, "download", delete=True))
    assert MemoryFileSystem().cat_file(f"{keys}/a//b") == b"22"


@pytest.mark.skipif(UNIVERSAL_PATHLIB < (0, 3), reason="universal-pathlib before 0.3 removes empty segments")
def test_an_object_with_an_empty_segment_is_sent_alone(keys: str, remote: Path) -> None:
    run(upload(f"{keys}/a//b", "out/x"))
    assert read_files(remote) == {"out/x": b"22"}


@pytest.mark.skipif(UNIVERSAL_PATHLIB >= (0, 3), reason="universal-pathlib 0.3 and newer keep empty segments")
@pytest.mark.parametrize("key", ["a//b", "./f", "/c", "g/."])
def test_another_object_than_the_named_one_is_never_sent(keys: str, remote: Path, key: str) -> None:
    with pytest.raises(AirflowFailException, match="cannot name an object whose key has an empty segment"):
        run(upload(f"{keys}/{key}", "out/x"))
    assert read_files(remote) == {}
