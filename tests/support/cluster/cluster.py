"""Start an Airflow of several machines.

They are database, broker, API server, scheduler, triggerers and Celery workers.
"""

from __future__ import annotations

import base64
import importlib.util
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from tests.support.airflow.home import AIRFLOW, TOP
from tests.support.cluster.airflow_api import AirflowAPI
from tests.support.cluster.link import Link
from tests.support.cluster.machine import Machine, environment_without_proxies, missing_namespaces
from tests.support.cluster.services import PostgreSQL, Redis, postgres_bin, redis_path
from tests.support.servers import OpenSSHServer, free_port, sshd_path

log = logging.getLogger("cluster")

DAGS: Final = TOP / "tests/support/cluster/dags"
CONCURRENCY: Final = 3
"""Tasks that a worker runs at once."""
CAPACITY: Final = 6
"""Waits that a triggerer takes."""
START_PATIENCE: Final = 400.0
"""Seconds for all machines to start: importing Airflow a dozen times takes minutes on a busy machine."""
HEARTBEAT_TIMEOUT: Final = 20
"""Seconds without a sign of life after which Airflow gives up an attempt."""
PATIENT_HEARTBEAT_TIMEOUT: Final = 300
"""Airflow's default."""


def missing() -> str | None:
    """Return what this machine lacks for a cluster, or None."""
    if postgres_bin() is None:
        return "PostgreSQL"
    if redis_path() is None:
        return "Redis"
    if sshd_path() is None:
        return "sshd"
    for provider in ("celery", "postgres"):
        if importlib.util.find_spec(f"airflow.providers.{provider}") is None:
            return f"Airflow's {provider} provider, which `make cluster` installs"
    return missing_namespaces()


class Worker(Machine):
    """Run a Celery worker; ``scratch`` has the files of its own directory.

    :param name: host name
    :param home: directory of the log and of ``scratch``
    :param environment: environment of Airflow
    :param shared: the path where tasks see the directory
    """

    def __init__(self, name: str, home: Path, environment: dict[str, str], shared: Path) -> None:
        self.scratch = home / f"scratch-of-{name}"
        self.scratch.mkdir()
        ready = f"{name}@{name} ready"
        super().__init__(name, home, [], environment, mounts={shared: self.scratch}, ready=ready)
        self.set_concurrency(CONCURRENCY)

    def set_concurrency(self, count: int) -> None:
        """Set the number of tasks at once, from the next start on."""
        options = ["-H", f"{self.name}@%h", "-c", str(count), "--skip-serve-logs"]
        self.command = [*AIRFLOW, "celery", "worker", *options, "--without-mingle", "--without-gossip"]


class Triggerer(Machine):
    """Run a triggerer.

    :param name: host name
    :param home: directory of the log
    :param environment: environment of Airflow
    """

    def __init__(self, name: str, home: Path, environment: dict[str, str]) -> None:
        super().__init__(name, home, [], environment)
        self.set_capacity(CAPACITY)

    def set_capacity(self, count: int) -> None:
        """Set the maximum number of waits, from the next start on."""
        self.command = [*AIRFLOW, "triggerer", "--skip-serve-logs", "--capacity", str(count)]


class Cluster:
    """Run the machines of an Airflow, and an SFTP server.

    ``scratch`` is a directory of which each worker sees only its own; all machines see ``files``.
    """

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="cluster-"))
        self.home.chmod(0o755)  # the database's user must reach its directory
        self.scratch, self.files, self._airflow_home = (self.home / name for name in ("scratch", "files", "airflow"))
        for folder in (self.scratch, self.files, self._airflow_home):
            folder.mkdir()
        self.server = OpenSSHServer({"MaxStartups": "200", "MaxSessions": "100"})
        self.database, self.broker = PostgreSQL(self.home), Redis(self.home)
        self._port = free_port()
        self.api = AirflowAPI(self._port)
        self.environment = self._environment()
        self.api_server = self._machine("api-server", "api-server", "--port", str(self._port), "--workers", "1")
        # Airflow's scheduler exits if it loses its database, and expects to be started again.
        loop = ["bash", "-c", 'while :; do "$@"; sleep 1; done', "scheduler", *AIRFLOW, "scheduler"]
        self.scheduler = Machine("scheduler", self.home, loop, self.environment)
        self.dag_processor = self._machine("dag-processor", "dag-processor")
        self.triggerers = [Triggerer(f"triggerer{number}", self.home, self.environment) for number in (1, 2)]
        self.workers = [Worker(f"worker{number}", self.home, self.environment, self.scratch) for number in (1, 2)]
        self.link: Link | None = None
        self.seconds_to_start = 0.0

    @property
    def machines(self) -> Sequence[Machine]:
        """Return all machines, in the order of their start."""
        parts = [self.api_server, self.scheduler, self.dag_processor, *self.triggerers]
        return [self.database, self.broker, *self.workers, *parts]

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException as error:
            error.add_note(self.describe())
            self.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End all machines and remove their files."""
        for machine in reversed(self.machines):
            machine.kill()
        self.api.close()
        if self.link is not None:
            self.link.close()
            self.server.stop()
        if "KEEP_CLUSTER" not in os.environ:
            shutil.rmtree(self.home, ignore_errors=True)

    def worker(self, name: str) -> Worker:
        """Return the worker with a host name."""
        return next(worker for worker in self.workers if worker.name == name)

    def other_worker(self, name: str) -> Worker:
        """Return the worker with another host name."""
        return next(worker for worker in self.workers if worker.name != name)

    def start_missing(self) -> None:
        """Start the machines that do not run."""
        for machine in self.machines:
            machine.thaw()
            machine.start()

    def restore(self) -> None:
        """Start the stopped machines, and wait until all are ready.

        :raises RuntimeError: if a machine ends
        """
        for service in (self.database, self.broker):
            service.thaw()
            service.start()
        self.wait(lambda: self.database.is_ready and self.broker.is_ready, "database and broker")
        self.start_missing()
        self._wait_until_ready()

    def restart_workers(self, concurrency: int = CONCURRENCY, heartbeat_timeout: int = HEARTBEAT_TIMEOUT) -> None:
        """Start both workers and the scheduler anew.

        :param concurrency: tasks that a worker runs at once
        :param heartbeat_timeout: seconds without a sign of life after which Airflow gives up an attempt
        """
        for machine in (*self.workers, self.scheduler):
            machine.kill()
            machine.environment |= _heartbeats(heartbeat_timeout)
        for worker in self.workers:
            worker.set_concurrency(concurrency)
        self.restore()

    def restart_triggerers(self, capacity: int) -> None:
        """Start both triggerers anew, with another number of waits that each takes."""
        for triggerer in self.triggerers:
            triggerer.kill()
            triggerer.set_capacity(capacity)
        self.restore()

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 180) -> None:
        """Wait until a condition holds, or fail with the logs' ends.

        :param condition: asked several times a second
        :param what: name of the condition
        :param timeout: seconds
        """
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {timeout:g} s for {what}\n{self.describe()}")
            time.sleep(0.05)

    def describe(self) -> str:
        """Return the last lines of all logs."""
        ends = [f"==== {machine.name}\n" + "\n".join(machine.log.splitlines()[-30:]) for machine in self.machines]
        return "\n".join(ends)

    def memory(self) -> int:
        """Return the bytes of memory of all machines.

        Shared pages are divided among the processes.
        """
        return sum(machine.memory() for machine in self.machines)

    def _start(self) -> None:
        log.disabled = False  # Airflow's import has disabled all loggers before it
        started = time.monotonic()
        self.server.start()
        self.link = Link(self.server.port)
        self.database.create()
        self.database.start()
        self.broker.start()
        self.wait(lambda: self.database.is_ready and self.broker.is_ready, "database and broker")
        for worker in self.workers:
            worker.start()
        done = subprocess.run(
            [*AIRFLOW, "db", "migrate"], env=self.environment, capture_output=True, text=True, check=False, cwd="/"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        log.info("%.0f s: the database has its tables", time.monotonic() - started)
        self.restore()
        self.seconds_to_start = time.monotonic() - started
        log.info("%.0f s: all machines are ready", self.seconds_to_start)

    def _wait_until_ready(self) -> None:
        self._wait_while_running(self.api.answers, "the API server")
        self._wait_while_running(lambda: all(worker.is_ready for worker in self.workers), "the workers")
        self._wait_while_running(self._is_healthy, "scheduler, DAG processor and triggerers")

    def _wait_while_running(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds; fail if a machine ends."""

        def holds() -> bool:
            for machine in self.machines:
                machine.check_running()
            return condition()

        self.wait(holds, what, START_PATIENCE)

    def _is_healthy(self) -> bool:
        health = self.api.get("monitor/health")
        parts = ("scheduler", "dag_processor", "triggerer")
        if any(health[part]["status"] != "healthy" for part in parts):
            return False
        jobs = self.api.get("jobs", job_type="TriggererJob", job_state="running", is_alive=True)["jobs"]
        dags = {dag["dag_id"] for dag in self.api.get("dags")["dags"]}
        errors = self.api.get("importErrors")["import_errors"]
        assert errors == [], errors
        alive = {(job["hostname"], datetime.fromisoformat(job["start_date"])) for job in jobs}
        triggerers = [any(name == one.name and start > one.started for name, start in alive) for one in self.triggerers]
        return all(triggerers) and "upload" in dags

    def _machine(self, name: str, *arguments: str) -> Machine:
        return Machine(name, self.home, [*AIRFLOW, *arguments], self.environment)

    def _environment(self) -> dict[str, str]:
        settings = {
            "API__HOST": "127.0.0.1",
            "API__SECRET_KEY": "of these tests",
            "API_AUTH__JWT_SECRET": "of these tests, and of nothing else, for ever",
            "CELERY__BROKER_URL": self.broker.url,
            "CELERY__RESULT_BACKEND": f"db+postgresql+psycopg2{self.database.url}",
            "CELERY__WORKER_PREFETCH_MULTIPLIER": "1",
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "CORE__DAGS_FOLDER": str(DAGS),
            "CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{self._port}/execution/",
            "CORE__EXECUTOR": "CeleryExecutor",
            "CORE__FERNET_KEY": base64.urlsafe_b64encode(bytes(32)).decode(),
            "CORE__HOSTNAME_CALLABLE": "socket.gethostname",
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__MAX_ACTIVE_TASKS_PER_DAG": "64",
            "CORE__PARALLELISM": "64",
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
            "DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2{self.database.url}",
            "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "3",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
            "TRIGGERER__JOB_HEARTBEAT_SEC": "2",
            "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
            # On a busy machine the API server, which is a single process here, may need many seconds.
            "WORKERS__EXECUTION_API_TIMEOUT": "60",
        }
        airflow = {f"AIRFLOW__{name}": value for name, value in settings.items()}
        more = {"AIRFLOW_HOME": str(self._airflow_home), "PYTHONPATH": str(TOP)}
        return environment_without_proxies() | airflow | more | _heartbeats(HEARTBEAT_TIMEOUT)


def _heartbeats(timeout: int) -> dict[str, str]:
    """Return the settings for the signs of life of tasks."""
    return {
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(timeout),
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": str(max(2, timeout // 10)),
    }
