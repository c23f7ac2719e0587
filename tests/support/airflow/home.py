"""Set up Airflow for a test: directory, database and commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.support.airflow import prepared_process

TOP = Path(__file__).parents[3]
AIRFLOW = [sys.executable, "-m", "airflow"]
"""Airflow's command, also where its script is on no PATH."""


def airflow_home(folder: Path, **settings: str) -> dict[str, str]:
    """Environment of Airflow in ``folder`` with an empty database and ``settings``."""
    environment = os.environ | {
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder}/airflow.db",
        "PYTHONPATH": str(TOP),
        **settings,
    }
    done = prepared_process.run(["-m", "airflow", "db", "migrate"], environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return environment
