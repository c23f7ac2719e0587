"""Task messages use the operators' arguments and suggest a remedy."""

from __future__ import annotations

import pickle
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseOperator

from airflow_sftp_backend import AlreadyExists, SFTPBackend, SFTPBackendError
from airflow_sftp_backend.hooks import FilesFailed
from tests.support.airflow.arguments import Glob
from tests.support.airflow.connections import Connect
from tests.support.airflow.operators import delete, download, move, run, upload
from tests.support.airflow.syncs import sync
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer


@pytest.mark.parametrize("what", ["upload", "download", "download object", "move"])
def test_an_existing_target_is_explained_with_operator_arguments(
    remote: Path, tmp_path: Path, store: str, what: str
) -> None:
    here = write_files(tmp_path, {"a": b"1", "b": b"2"}) / "a"
    write_files(remote, {"a": b"1", "b": b"2"})
    make: dict[str, Callable[[], BaseOperator]] = {
        "upload": lambda: upload(here, "a"),
        "download": lambda: download("a", here),
        "download object": lambda: download("a", f"{store}/a"),
        "move": lambda: move("a", "b"),
    }
    if what == "download object":
        run(make[what]())
    with pytest.raises(AlreadyExists, match="; set if_exists='replace' to replace the file") as caught:
        run(make[what]())
    assert "overwrite" not in str(caught.value)


def test_backend_errors_name_backend_arguments(remote: Path, server: AsyncsshServer, tmp_path: Path) -> None:
    write_files(remote, {"a": b"1", "b": b"1"})
    here = write_files(tmp_path, {"a": b"1"}) / "a"
    with SFTPBackend(
        server.host, port=server.port, username=server.username, password=server.password,
        known_host_keys=server.known_hosts, base_path=str(remote),
    ) as backend:  # fmt: skip
        calls: list[Callable[[], object]] = [
            lambda: backend.write("a", b""), lambda: backend.upload(here, "a"), lambda: backend.move("a", "b"),
            lambda: backend.download("a", here),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(AlreadyExists, match="; pass overwrite=True to replace it"):
                call()


def test_each_file_is_one_log_line_and_an_empty_total_is_omitted(
    remote: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = write_files(tmp_path, {"a": b"abc"}) / "a"
    run(upload(here, "in/a"))
    run(download("in/a", tmp_path / "back"))
    run(move("in/a", "out/"))
    run(delete("out/a"))
    log = capsys.readouterr().out
    for line in (
        f"uploaded in/a (3 B) <- {here}", f"downloaded in/a (3 B) -> {tmp_path}/back", "moved out/a (3 B) <- in/a",
        "deleted out/a (3 B)", "uploaded 1 file, 3 B in",
    ):  # fmt: skip
        assert re.search(rf"{re.escape(line)}\s", log), line
    for operator in (upload(here, "x/.."), download("no", tmp_path / "no"), move("no", "out/"), delete("no")):
        with pytest.raises((SFTPBackendError, AirflowFailException)):
            run(operator)
    assert " 0 files" not in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 2])
def test_an_expected_failure_has_no_traceback_into_the_backend(remote: Path, tmp_path: Path, count: int) -> None:
    names = [f"{number}" for number in range(count)]
    write_files(remote, dict.fromkeys(names, b"1"))
    here = write_files(tmp_path / "here", dict.fromkeys(names, b"1"))
    with pytest.raises((AlreadyExists, FilesFailed)) as caught:
        run(upload(f"{here}/", "./"))
    text = "".join(traceback.format_exception(caught.value))
    assert "/airflow_sftp_backend/operators/" in text
    assert "/airflow_sftp_backend/backend/" not in text
    assert "the name is taken" in text


def test_a_failure_that_a_retry_cannot_fix_has_one_traceback(remote: Path, tmp_path: Path) -> None:
    with pytest.raises(AirflowFailException) as caught:
        run(download("../a", tmp_path / "a"))
    text = "".join(traceback.format_exception(caught.value))
    assert text.count("Traceback (most recent call last)") == 1
    assert "raise_failures" in text


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_the_log_names_a_deleted_file_by_one_path(
    remote: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], direction: str
) -> None:
    here = write_files(tmp_path, {"a": b"abc", "b": b""} if direction == "download" else {"b": b""})
    write_files(remote, {"in/a": b"abc", "in/b": b""} if direction == "upload" else {"in/b": b""})
    ends = (str(here), "in") if direction == "upload" else ("in", str(here))
    run(sync(*ends, direction=direction, delete=True))
    deleted = "in/a" if direction == "upload" else f"{here}/a"
    assert re.search(rf"deleted {re.escape(deleted)} \(3 B\)\s", capsys.readouterr().out)


# -- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda name: download(name, "/nowhere/"), lambda name: move(name, "t/"), delete])
def test_a_missing_trailing_slash_is_explained_and_not_retried(remote: Path, make: Any) -> None:
    write_files(remote, {"inbox/a": b""})
    with pytest.raises(AirflowFailException, match="the path is a directory; to select its files, end the path"):
        run(make("inbox"))
    assert read_files(remote) == {"inbox/a": b""}


BASED: dict[str, Callable[[str, Path], BaseOperator]] = {
    "upload target": lambda path, here: upload(here / "a", path),
    "download source": lambda path, here: download(path, f"{here}/x"),
    "download list": lambda path, here: download(["a", path], f"{here}/x"),
    "download pattern": lambda path, here: download(Glob(f"{path}*"), f"{here}/x"),
    "move source": lambda path, here: move(path, "t"),
    "move target": lambda path, here: move("a", path),
    "delete path": lambda path, here: delete(path),
    "delete directory": lambda path, here: delete(f"{path}/"),
}


@pytest.mark.parametrize("what", BASED)
def test_a_path_that_repeats_the_base_path_is_refused_with_both_readings(
    connect: Connect, server: AsyncsshServer, tmp_path: Path, what: str
) -> None:
    base = server.fresh()
    write_files(base.path, {"a": b"", "outbox/x": b""})
    write_files(tmp_path, {"a": b""})
    connect(server, base_path=base.base_path)
    before = read_files(base.path)
    with pytest.raises(AirflowFailException, match="begins with the base path of the connection") as caught:
        run(BASED[what](f"{base.base_path}/outbox/x", tmp_path))
    text = str(caught.value)
    assert f"for {base.base_path}/outbox/x" in text  # one reading,
    assert f"for {base.base_path}{base.base_path}/outbox/x" in text  # and the other
    assert read_files(base.path) == before


def test_a_path_with_a_similar_prefix_is_accepted(connect: Connect, server: AsyncsshServer) -> None:
    base = server.fresh()
    connect(server, base_path=base.base_path)
    name = base.base_path.lstrip("/")
    write_files(base.path, {f"{name}x/a": b"", f"{name}/b": b"", "c": b""})
    assert len(run(delete([f"{base.base_path}x/a", f"{name}/b", "/c"]))) == 3
    assert read_files(base.path) == {}


@pytest.mark.parametrize("what", ["download", "move", "delete"])
def test_an_unlistable_name_does_not_stop_other_files(remote: Path, tmp_path: Path, what: str) -> None:
    bad = "in/b\x01d"
    names = ["in/a", bad, "../climbs", "nul\0", "in/c"]
    write_files(remote, {"in/a": b"1", bad: b"2", "in/c": b"3"})
    make: dict[str, Callable[[], BaseOperator]] = {
        "download": lambda: download(names, f"{tmp_path}/"),
        "move": lambda: move(names, "out/"),
        "delete": lambda: delete(names),
    }
    with pytest.raises(AirflowFailException, match=r"of 5 files failed"):
        run(make[what]())
    done = {"download": tmp_path, "move": remote / "out", "delete": remote / "in"}[what]
    assert {"a", "c"} <= set(read_files(done)) or (what == "delete" and not {"a", "c"} & set(read_files(done)))


def test_a_blank_at_the_end_of_the_base_path_is_kept(connect: Connect, server: AsyncsshServer, tmp_path: Path) -> None:
    base = server.fresh()
    connect(server, base_path=f"{base.base_path}/in ")
    run(upload(write_files(tmp_path, {"a": b"1"}) / "a", "a"))
    assert read_files(base.path) == {"in /a": b"1"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: download("no", "/nowhere/"),
        lambda: delete("sub"),
        lambda: move(Glob("no*"), "t"),
        lambda: move("a", "b"),
    ],
)
def test_every_error_names_the_path_on_the_server(remote: Path, make: Any) -> None:
    write_files(remote, {"sub/x": b"", "a": b"1", "b": b"2"})
    with pytest.raises((SFTPBackendError, AirflowFailException), match=rf" as '{remote}/(no|sub|b)") as caught:
        run(make())
    if isinstance(caught.value, SFTPBackendError):
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
