"""Measure the import of the operators in a DAG file, beside the bases of ``airflow.sdk``."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Final

LIMIT: Final = 0.02
"""Share of the bases' time that the operators may add."""

_PROBE: Final = """
import time
began = time.perf_counter()
from airflow.sdk import BaseHook, BaseOperator, BaseSensorOperator
bases = time.perf_counter()
import airflow_sftp_backend.operators
print((time.perf_counter() - bases) / (bases - began))
"""


def measure(rounds: int) -> float:
    """The share added: the median of ``rounds`` fresh processes."""
    return statistics.median(
        float(subprocess.run([sys.executable, "-c", _PROBE], check=True, capture_output=True, text=True).stdout)
        for _ in range(rounds)
    )
