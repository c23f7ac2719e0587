"""Run programs in forks of a process that has imported Airflow once.

An import of Airflow takes seconds of processor time. A fork takes milliseconds, has the arguments, environment,
directory and output of its own, and ends as any other process.

``python -m tests.support.airflow.prepared_process MODULES`` imports the modules, separated by commas, and forks for
each line of its standard input.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[3]
AIRFLOW_ONLY = ("airflow",)
"""For a program whose own imports are tested."""
LIBRARIES = (
    "fsspec",
    "httpx",
    "jinja2.sandbox",
    "jsonschema",
    "libcst",
    "pendulum",
    "pydantic",
    "sqlalchemy.orm",
    "structlog",
)
"""For a program that imports Airflow itself, because it prepares for that: parts of Airflow that are not Airflow's."""
TASKS = (
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow_sftp_backend.decorators",
    "airflow_sftp_backend.operators",
    "airflow_sftp_backend.sensors",
    "paramiko",
    "tests.support.airflow.versions",
)
"""For tasks and commands."""


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] = os.environ,
    folder: Path = TOP,
    modules: Sequence[str] = TASKS,
    timeout: float = 170,
) -> subprocess.CompletedProcess[str]:
    """Run ``python COMMAND`` in a fork, as `subprocess.run` runs it.

    :param command: ``-m``, a module and its arguments, or ``-c``, code and its arguments.
    :param environment: all environment variables, by default those of this process. ``PYTHONPATH`` has no effect.
    :param folder: the current directory of the program.
    :param modules: imported before the fork.
    :param timeout: seconds until the program is killed.
    :returns: the status and the output of the program.
    :raises subprocess.TimeoutExpired: if the program takes longer.
    """
    key = ",".join(modules)
    if key not in _processes:
        _processes[key] = _start(key)
    process = _processes[key]
    assert process.stdin is not None
    assert process.stdout is not None
    with tempfile.TemporaryDirectory(prefix="prepared-") as made:
        files = [Path(made) / name for name in ("stdout", "stderr")]
        job = {
            "command": [*command],
            "environment": {**environment},
            "folder": str(folder),
            "files": [*map(str, files)],
        }
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired([*command], timeout)
            status = int(process.stdout.readline())
        except BaseException:  # also of a signal handler: whatever the program does, nobody waits for it any more
            _end(_processes.pop(key))
            raise
        output, errors = (file.read_text() for file in files)
    return subprocess.CompletedProcess([*command], status, output, errors)


_processes: dict[str, subprocess.Popen[bytes]] = {}
"""The process for each set of modules."""


def _start(modules: str) -> subprocess.Popen[bytes]:
    # Imports must not see the connections and settings of one test.
    hidden = ("AIRFLOW_", "AZURE_", "OPENLINEAGE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    kept |= {name: os.environ[name] for name in ("AIRFLOW_HOME", "AIRFLOW__CORE__LOAD_EXAMPLES")}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.airflow.prepared_process", modules],
        env=kept | {"PYTHONPATH": str(TOP)}, cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with process:  # closes the pipes
        process.wait()


@atexit.register
def _end_all() -> None:
    while _processes:
        _end(_processes.popitem()[1])


# ---- in the prepared process ---------------------------------------------------------------------------------------


def _next_job() -> dict[str, Any] | None:
    """Fork for each job.

    :returns: the job in a fork; None at the end of the input.
    """
    for line in sys.stdin.buffer:
        pid = os.fork()
        if pid == 0:
            found: dict[str, Any] = json.loads(line)
            return found
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()
    return None


def _become(job: dict[str, Any]) -> None:
    """Turn this fork into the program of a job."""
    for descriptor, file in enumerate((os.devnull, *job["files"])):
        opened = os.open(file, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    if "airflow" in sys.modules:
        from airflow import settings

        settings.initialize()  # type: ignore[no-untyped-call]  # reads the environment
    option, program, *arguments = job["command"]
    sys.argv = [option, *arguments]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(program, {"__name__": "__main__"})  # noqa: S102 - as python -c


if __name__ == "__main__":
    for _module in sys.argv[1].split(","):
        importlib.import_module(_module)
    gc.freeze()  # collections of the forks copy no page of these objects
    if (_job := _next_job()) is not None:
        _become(_job)
