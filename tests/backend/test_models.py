"""Returned values can be compared and pickled, and cannot be changed."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_sftp_backend import Capability, FileInfo, FolderEntry, FolderInfo, ResolutionPlan, SFTPBackend, WriteResult

AT = datetime(2026, 2, 3, tzinfo=UTC)
VALUES = [
    FileInfo("in/a", "a", 3, AT, 0o644),
    FolderEntry("in", "in"),
    FolderInfo("in", 2, 10, AT),
    WriteResult("in/a", 3, digest="sha256:00"),
    ResolutionPlan("sftp", "sftp://h:22", "in/a", "/data/in/a", {"host": "h", "port": 22, "base_path": "/data"}),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_is_equal_to_its_copies(value: Any) -> None:
    copies = [copy.deepcopy(value), pickle.loads(pickle.dumps(value))]
    assert copies == [value, value]
    assert {value, *copies} == {value}


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_cannot_be_changed(value: Any) -> None:
    for field in fields(value):
        with pytest.raises(FrozenInstanceError):
            setattr(value, field.name, "other")


def test_the_details_of_a_plan_are_read_only_and_a_copy() -> None:
    details: dict[str, str | int] = {"host": "h", "port": 22, "base_path": "/"}
    plan = ResolutionPlan("sftp", "sftp://h:22", "a", "/a", details)
    details["host"] = "elsewhere"
    assert plan.details == {"host": "h", "port": 22, "base_path": "/"}
    with pytest.raises(TypeError):
        plan.details["host"] = "elsewhere"  # type: ignore[index]  # what is tested


def test_a_write_result_is_native_and_written_unless_said_otherwise() -> None:
    result = WriteResult("a", 1)
    assert (result.source, result.digest, result.action) == ("native", None, "written")


def test_the_capabilities_are_those_every_server_gives() -> None:
    has = SFTPBackend("h").capabilities
    assert set(Capability) - set(has) == {Capability.ATOMIC_MOVE, Capability.USER_METADATA}
    assert Capability.ATOMIC_WRITE in has
