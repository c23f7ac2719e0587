"""Airflow finds the provider, its connection type and its form."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import airflow
import pytest
from packaging.version import Version

from airflow_sftp_backend._connections.fields import FIELDS
from airflow_sftp_backend.get_provider_info import get_provider_info
from airflow_sftp_backend.hooks import SFTPBackendHook
from tests.support.airflow import prepared_process
from tests.support.airflow.connections import Connect
from tests.support.airflow.versions import AIRFLOW_VERSION
from tests.support.servers import OpenSSHServer

INFO: dict[str, Any] = get_provider_info()
jsonschema: Any = import_module("jsonschema")  # it has no types of its own


# ---- what it says


RELEASE_TOOLS_ONLY = {"state", "source-date-epoch", "versions"}
"""Keys that Airflow's release tools want of its own providers."""


def check(info: object, schema_name: str) -> None:
    """Validate the info by the schema of the installed Airflow."""
    schema = json.loads((Path(airflow.__file__).parent / schema_name).read_text())
    schema["required"] = [key for key in schema["required"] if key not in RELEASE_TOOLS_ONLY]
    jsonschema.validators.validator_for(schema)(schema).validate(info)


@pytest.mark.parametrize("schema", ["provider.yaml.schema.json", "provider_info.schema.json"])
def test_the_provider_info_conforms_to_airflows_schema(schema: str) -> None:
    check(INFO, schema)


@pytest.mark.skipif(Version("3.2") > AIRFLOW_VERSION, reason="Airflow before 3.2 has no schema for form fields")
def test_an_unknown_form_format_would_be_detected() -> None:
    wrong = json.loads(json.dumps(INFO))
    wrong["connection-types"][0]["conn-fields"]["base_path"]["schema"]["format"] = "folder"
    with pytest.raises(jsonschema.ValidationError, match="folder"):
        check(wrong, "provider.yaml.schema.json")


def test_the_info_is_plain_data_and_new_each_time() -> None:
    assert json.loads(json.dumps(INFO)) == get_provider_info()
    get_provider_info()["connection-types"] = []
    assert get_provider_info() == INFO


def test_every_module_and_function_listed_exists() -> None:
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for entry in INFO[kind]:
            assert all(find_spec(module) is not None for module in entry["python-modules"]), kind
    for uri in INFO["asset-uris"]:
        for use in ("handler", "factory", "to_openlineage_converter"):
            module, _, name = uri[use].rpartition(".")
            assert callable(getattr(import_module(module), name))


def test_the_connection_type_is_the_hooks() -> None:
    (kind,) = INFO["connection-types"]
    module, _, name = kind["hook-class-name"].rpartition(".")
    assert getattr(import_module(module), name) is SFTPBackendHook
    assert (kind["connection-type"], kind["hook-name"]) == (SFTPBackendHook.conn_type, SFTPBackendHook.hook_name)


def test_the_entry_point_refers_to_get_provider_info() -> None:
    (point,) = distribution("airflow-sftp-backend").entry_points.select(group="apache_airflow_provider")
    assert point.load() is get_provider_info
    assert INFO["package-name"] == "airflow-sftp-backend"


# ---- what Airflow makes of it

Airflow = Callable[..., str]


@pytest.fixture(scope="module")
def airflow_cli(tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    """``airflow_cli("providers", "list", status=0, AIRFLOW__…=…)``: what Airflow's command prints in an empty home."""
    home = tmp_path_factory.mktemp("airflow")
    own = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    }

    def run(*arguments: str, status: int = 0, **environment: str) -> str:
        command = ["-m", "airflow", *arguments]
        done = prepared_process.run(command, environment=os.environ | own | environment, folder=home)
        assert done.returncode == status, done.stdout + done.stderr
        assert "sftp_backend" not in done.stderr
        return done.stdout

    return run


def rows(output: str) -> list[dict[str, str]]:
    """The JSON table in the output of a command."""
    found: list[dict[str, str]] = json.loads(output[output.index("[{") :])
    return found


def test_airflow_lists_the_provider(airflow_cli: Airflow) -> None:
    listed = {row["package_name"]: row for row in rows(airflow_cli("providers", "list", "--output", "json"))}
    assert listed["airflow-sftp-backend"]["description"] == INFO["description"]
    assert listed["airflow-sftp-backend"]["version"] == distribution("airflow-sftp-backend").version


def test_airflow_lists_the_connection_type(airflow_cli: Airflow) -> None:
    listed = {row["connection_type"]: row for row in rows(airflow_cli("providers", "hooks", "--output", "json"))}
    row = listed["sftp_backend"]
    assert (row["class"], row["conn_id_attribute_name"]) == (
        "airflow_sftp_backend.hooks.SFTPBackendHook",
        "sftp_conn_id",
    )
    assert (row["package_name"], row["hook_name"]) == ("airflow-sftp-backend", "SFTP Backend")


def test_airflow_shows_every_field_of_the_form(airflow_cli: Airflow) -> None:
    widgets = rows(airflow_cli("providers", "widgets", "--output", "json"))
    prefix = "extra__sftp_backend__"
    shown = {row["connection_parameter_name"].removeprefix(prefix) for row in widgets if prefix in str(row)}
    assert shown == {field.name for field in FIELDS if field.group}


def test_airflow_tests_a_connection(airflow_cli: Airflow, connect: Connect, openssh: OpenSSHServer) -> None:
    output = airflow_cli("connections", "test", connect(openssh), AIRFLOW__CORE__TEST_CONNECTION="Enabled")
    assert "Connection success!" in output


def test_airflow_says_why_a_connection_fails(airflow_cli: Airflow, connect: Connect, openssh: OpenSSHServer) -> None:
    test = ("connections", "test", connect(openssh, columns={"host": "", "port": 0}))
    status = 1 if Version("3.3") <= AIRFLOW_VERSION else 0  # before 3.3 the command always succeeds
    output = airflow_cli(*test, AIRFLOW__CORE__TEST_CONNECTION="Enabled", status=status)
    assert "Connection failed!" in output
    assert "Host: nothing given; expected the bare name or address of the server" in " ".join(output.split())
