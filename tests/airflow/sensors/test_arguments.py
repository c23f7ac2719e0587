"""The sensor takes either names or patterns, and refuses ambiguous arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_sftp_backend.sensors import SFTPFileSensor
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import context
from tests.support.airflow.sensors import Mode, meanwhile, names, wait
from tests.support.airflow.versions import AirflowFailException, AirflowSensorTimeout
from tests.support.files import write_files
from tests.support.servers import AsyncsshServer


def test_arguments_are_templated_and_every_one_is_documented() -> None:
    assert set(SFTPFileSensor.template_fields) == {
        "path",
        "pattern",
        "sftp_conn_id",
        "newer_than",
        "older_than",
        "done_file",
    }
    code = SFTPFileSensor.__init__.__code__
    for argument in code.co_varnames[1 : 1 + code.co_kwonlyargcount]:
        assert f":param {argument}:" in (SFTPFileSensor.__doc__ or "")


@pytest.mark.parametrize("given", [{}, {"path": "a", "pattern": "b"}])
def test_names_or_pattern_are_required_when_the_dag_is_parsed(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="specify exactly one of path and pattern"):
        SFTPFileSensor(task_id="wait", **given)


def test_a_name_with_wildcards_is_waited_for_and_not_what_it_matches(remote: Path, mode: Mode) -> None:
    write_files(remote, {"in/r1.csv": b"1"})
    with meanwhile(lambda: write_files(remote, {"in/r[1].csv": b"22"})):
        rows = wait(mode, path="in/r[1].csv")
    assert [(row["path"], row["size"]) for row in rows] == [("in/r[1].csv", 2)]


@pytest.mark.parametrize("path", ["i[n]/", ["i[n]/", {"path": "never/"}]])
def test_a_directory_with_wildcards_in_its_name_is_that_directory(remote: Path, mode: Mode, path: Any) -> None:
    write_files(remote, {"in/a": b"", "i[n]/b": b"", "i[n]/deep/c": b"", "i[n]/d.part": b""})
    assert names(wait(mode, path=path)) == ["i[n]/b", "i[n]/deep/c"]


def test_a_name_that_looks_like_a_pattern_gets_a_hint(remote: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(remote, {"in/a.csv": b""})
    with pytest.raises(AirflowSensorTimeout):
        wait("poke", path="in/*.csv", timeout=0.3)
    assert "path 'in/*.csv' has a wildcard, but names are literal; pass globs as pattern=" in capsys.readouterr().out


def test_filters_apply_to_matches_and_not_to_names(remote: Path, mode: Mode) -> None:
    write_files(remote, {"in/a.csv": b"", "in/b.txt": b"", "in/.c.csv": b"", "in/old/d.csv": b""})
    assert names(wait(mode, path="in/", include="*.csv", exclude=["old", ".*"])) == ["in/a.csv"]
    assert names(wait(mode, pattern="in/**", include=["*.csv", "*.txt"], exclude=None, min_files=4)) == [
        "in/.c.csv", "in/a.csv", "in/b.txt", "in/old/d.csv",
    ]  # fmt: skip
    assert names(wait(mode, path="in/.c.csv", include="*.txt")) == ["in/.c.csv"]


@pytest.mark.parametrize("given", [{"path": "{base}/in/a"}, {"path": "{base}/in/"}, {"pattern": "{base}/*/a"}])
def test_a_path_that_repeats_the_base_path_is_refused(remote: Path, mode: Mode, given: dict[str, str]) -> None:
    write_files(remote, {"in/a": b""})
    arguments = {name: text.format(base=remote) for name, text in given.items()}
    with pytest.raises(AirflowFailException, match="begins with the base path of the connection") as caught:
        wait(mode, **arguments)
    assert f"write '{next(iter(given.values())).partition('/')[2].rstrip('/')}' for {remote}/" in str(caught.value)
    assert names(wait(mode, path="/in/a")) == ["in/a"]


def test_a_row_waits_for_its_file(connect: Connect, server: AsyncsshServer) -> None:
    folder = server.fresh()
    connect(server, base_path=folder.base_path)
    write_files(folder.path, {"None": b"", "['a']": b""})
    rows: list[dict[str, object]] = [{"path": "None", "size": 3}, {"path": "['a']"}]
    found = SFTPFileSensor(task_id="wait", path=rows, min_files=2).execute(context())
    assert names(found) == ["None", "['a']"]
