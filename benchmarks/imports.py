"""Measure the import of the operators in a DAG file.

It is compared with the bases of ``airflow.sdk``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Final

from .targets import Options, Row

_PROBE: Final = """
import time
began = time.perf_counter()
from airflow.sdk import BaseHook, BaseOperator, BaseSensorOperator
bases = time.perf_counter()
import airflow_sftp_backend.operators
print((time.perf_counter() - bases) / (bases - began))
"""


def measure(options: Options) -> Iterator[Row]:
    """Measure the import in fresh processes with compiled modules.

    :param options: the rounds
    """
    with tempfile.TemporaryDirectory(prefix="bytecode-") as cache:
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        shares = [_share(environ | {"PYTHONPYCACHEPREFIX": cache}) for _ in range(options.rounds + 1)]
    share = statistics.median(shares[1:])  # the first process compiles
    yield Row("import of the operators", "% of airflow.sdk's import", 100 * share, 2)


def _share(environ: dict[str, str]) -> float:
    run = subprocess.run([sys.executable, "-c", _PROBE], check=True, capture_output=True, text=True, env=environ)
    return float(run.stdout)
