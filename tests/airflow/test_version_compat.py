"""Version-dependent names exist on every version, and are in one module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from airflow_sftp_backend import version_compat
from airflow_sftp_backend.version_compat import connection_from_text

PACKAGE = Path(version_compat.__file__).parent


@pytest.mark.parametrize(
    "text",
    ["sftp://user:a%2Fb@host:2022/in", '{"conn_type": "sftp", "login": "user", "password": "a/b", "port": 2022}'],
)
def test_a_connection_is_read_from_either_form_of_text(text: str) -> None:
    found = connection_from_text(text, "partner")
    assert found is not None
    assert (found.conn_id, found.conn_type, found.login, found.password, found.port) == (
        "partner", "sftp", "user", "a/b", 2022,
    )  # fmt: skip


@pytest.mark.parametrize("text", ["a password", "{", '{"no_such_column": 1}', "[]", ""])
def test_text_of_another_form_is_no_connection(text: str) -> None:
    assert connection_from_text(text, "partner") is None


def test_only_one_module_falls_back_to_another_import_of_airflow() -> None:
    """Fallbacks recognise the version of Airflow, or an optional provider."""
    guilty = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Try):
                caught = {name.id for one in node.handlers for name in ast.walk(one) if isinstance(name, ast.Name)}
                modules = [one.module or "" for one in ast.walk(node) if isinstance(one, ast.ImportFrom)]
                if "ImportError" in caught and any(module.startswith("airflow.") for module in modules):
                    guilty.append(path.name)
    assert set(guilty) == {"version_compat.py"}


def test_an_airflow_that_keeps_masks_otherwise_has_no_pattern_masker(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version_compat.pattern_masker() is not None
    monkeypatch.setattr(version_compat, "_secrets_masker", object)
    assert version_compat.pattern_masker() is None
