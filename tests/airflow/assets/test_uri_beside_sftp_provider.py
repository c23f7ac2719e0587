"""Asset URIs stay the same beside Airflow's sftp provider.

`make test` puts that provider into a directory of its own, so that all other tests run without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SFTP_PROVIDER = Path(sys.prefix, "sftp-provider")
ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(
    not SFTP_PROVIDER.is_dir(),
    reason="NOT TESTED BESIDE AIRFLOW'S SFTP PROVIDER: `make test` installs it into .venv/sftp-provider",
)


def beside(*arguments: str) -> str:
    """Run Python beside the sftp provider; its standard output."""
    path = os.pathsep.join([str(SFTP_PROVIDER), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_asset_tests_pass_if_the_sftp_provider_owns_the_scheme() -> None:
    output = beside("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/airflow/assets/test_uri.py")
    assert "skipped" not in output


def test_create_asset_makes_the_spelling_that_the_operators_report() -> None:
    script = (
        "from airflow.providers.sftp.assets import sftp as official\n"
        "from airflow.sdk import Asset\n"
        "from tests.support.airflow.versions import ProvidersManagerTaskRuntime\n"
        "from airflow_sftp_backend.assets.uri import create_asset, file_uri\n"
        "from airflow_sftp_backend.backend import BackendConfig\n"
        "owner = ProvidersManagerTaskRuntime().asset_uri_handlers['sftp']\n"
        "assert owner.__module__ == official.__name__, owner\n"
        "reported = file_uri(BackendConfig(host='H.example'), 'a b')\n"
        "created = create_asset(host='H.example', path='a b')\n"
        "print(Asset(reported).uri, created.uri, Asset('sftp://H.example/a b').uri)\n"
    )
    reported, created, written = beside("-c", script).strip().splitlines()[-1].split(" ", 2)
    assert reported == created == "sftp://h.example:22/a%20b"
    assert written != reported, "the sftp provider normalises the URI: docs/tasks.md no longer needs to ask for it"
