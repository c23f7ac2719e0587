"""Mapped tasks show the names of their files with either rendering."""

from __future__ import annotations

import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, task_group

from airflow_sftp_backend.operators import (
    SFTPDeleteOperator,
    SFTPDownloadOperator,
    SFTPMoveOperator,
    SFTPSyncOperator,
    SFTPUploadOperator,
)
from airflow_sftp_backend.sensors import SFTPFileSensor
from tests.support.airflow.supervised_task import messages_to_airflow, run
from tests.support.files import write_files

LONG = "d" * 60 + "/" + "n" * 115 + "/" + "x" * 120 + ".csv"
MAPPED = [
    SFTPDeleteOperator.partial(task_id="rm").expand(path=["a"]),
    SFTPDownloadOperator.partial(task_id="get", target="in/").expand(source=["a"]),
    SFTPMoveOperator.partial(task_id="mv", target="in/").expand(pattern=["*.csv"]),
    SFTPSyncOperator.partial(task_id="sync", target="in", direction="upload").expand(source=["a"]),
    SFTPUploadOperator.partial(task_id="put", target="in/").expand(source=["a"]),
    SFTPFileSensor.partial(task_id="wait").expand(path=["a"]),
]


def label(value: object, argument: str = "source", *, native: bool = True, map_index: int = 3) -> object:
    """Render the label of an instance as Airflow does, after the arguments."""
    dag = DAG("labels", schedule=None, render_template_as_native_obj=native)
    arguments: dict[str, Any] = {argument: value}
    operator = SFTPMoveOperator(task_id="mv", target="in/", dag=dag, **arguments)
    template = SFTPMoveOperator.partial(task_id="x", target="").expand(source=[]).map_index_template
    assert template is not None
    context = {"ti": SimpleNamespace(task=operator, map_index=map_index)}
    rendered: object = dag.get_template_env().from_string(template).render(context)
    return rendered


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("inbox/a.csv", "a.csv"),
        ({"path": "inbox/a.csv", "size": 1}, "a.csv"),
        ("inbox/2026/", "inbox/2026/"),
        ([{"path": "in/a"}, {"path": "in/b"}, {"path": "c"}], "a and 2 more"),
        ('[{"path": "in/a"}, {"path": "in/b"}]', "a and 1 more"),
        ("in/2024", "./2024"),
        ("None.csv", "None.csv"),
        ({"path": "None"}, "./None"),
        ({"path": "[1]"}, "./[1]"),
        ("'a'", "./'a'"),
        ("a\tb\udcff", "a\\tb\\udcff"),
        ("", "#3"),
        (2024, "#3"),
        ([], "#3"),
        (iter(["a"]), "#3"),
    ],
)
def test_a_label_is_the_text_of_the_name_in_native_rendering_too(value: object, expected: str, native: bool) -> None:
    assert label(value, native=native) == expected


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", ["x" * 300 + ".csv", "9" * 250, "9" * 300])
def test_a_label_is_a_text_of_at_most_250_characters(name: str, native: bool) -> None:
    shown = label(name, native=native)
    assert isinstance(shown, str)
    assert len(shown) <= 250
    assert shown.endswith(name[-20:])


def test_a_pattern_is_its_own_label() -> None:
    assert label("inbox/*/a-*.csv", "pattern") == "inbox/*/a-*.csv"
    assert label(["in/*", "out/*"], "pattern") == "in/* and 1 more"


@pytest.mark.parametrize("mapped", MAPPED, ids=lambda mapped: mapped.task_id)
def test_every_mapped_operator_has_labels(mapped: Any) -> None:
    assert "map_label" in mapped.map_index_template


def test_a_task_keeps_its_own_template_and_an_unmapped_task_has_none() -> None:
    own = SFTPMoveOperator.partial(task_id="mv", target="in/", map_index_template="{{ 1 }}").expand(source=["a"])
    assert own.map_index_template == "{{ 1 }}"
    with DAG("labels", schedule=None, default_args={"map_index_template": "{{ 2 }}"}):
        own = SFTPMoveOperator.partial(task_id="mv", target="in/").expand(source=["a"])
    assert own.map_index_template == "{{ 2 }}"
    assert SFTPMoveOperator(task_id="mv", source="a", target="in/").map_index_template is None


def test_a_task_that_is_mapped_over_another_argument_keeps_its_number() -> None:
    mapped = SFTPMoveOperator.partial(task_id="mv", source="a", target="in/").expand(sftp_conn_id=["a", "b"])
    assert mapped.map_index_template is None


def test_a_task_of_a_mapped_group_has_labels() -> None:
    with DAG("labels", schedule=None):

        @task_group
        def handle(row: object) -> None:
            moved: Any = {"source": row}
            operators.append(SFTPMoveOperator(task_id="mv", target="in/", **moved))

        operators: list[SFTPMoveOperator] = []
        handle.expand(row=["a", "b"])
    assert "map_label" in str(operators[0].map_index_template)


@pytest.mark.parametrize(
    ("task_id", "map_index", "state", "expected"),
    [
        ("mapped", 0, "success", "./2024"),
        ("mapped", 1, "failed", LONG.rpartition("/")[2]),
        ("mapped", 2, "success", "./2024"),
        ("handle.get", 0, "success", "plain"),
        ("unmapped", -1, "success", None),
    ],
)
def test_airflow_receives_the_label_of_a_natively_rendered_task(
    remote: Path, tmp_path: Path, task_id: str, map_index: int, state: str, expected: str | None
) -> None:
    write_files(remote, {"in/2024": b"1", "2024": b"2", "plain": b"3"})
    body = f"""
    from airflow.sdk import DAG, task_group
    from airflow_sftp_backend.operators import SFTPDownloadOperator

    with DAG("labels", schedule=None, render_template_as_native_obj=True):
        to = {str(tmp_path)!r} + "/in/"
        SFTPDownloadOperator.partial(task_id="mapped", target=to).expand(
            source=["in/2024", {LONG!r}, {{"path": "2024"}}]
        )
        SFTPDownloadOperator(task_id="unmapped", source="plain", target=to)

        @task_group
        def handle(name):
            SFTPDownloadOperator(task_id="get", source=name, target=to)

        handle.expand(name=[["plain"]])
    """
    write_files(tmp_path, {"dags/labels.py": textwrap.dedent(body).encode()})
    log = tmp_path / "task.log"
    run(tmp_path / "dags", "labels", task_id, log, map_index=map_index)
    final = [message for message in messages_to_airflow(log) if isinstance(message, dict) and "state" in message][-1]
    assert (final["state"], final.get("rendered_map_index")) == (state, expected)
