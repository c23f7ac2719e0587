"""Run a scenario on the cluster, with its own directory and connection."""

from __future__ import annotations

import filecmp
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.cluster.airflow_api import Task
from tests.support.cluster.cluster import Cluster
from tests.support.cluster.link import Link
from tests.support.servers import OpenSSHServer

log = logging.getLogger("cluster")

MIB = 1 << 20
UNACKNOWLEDGED = 32 * MIB
"""Bytes that an upload may have to send again: it resumes before those of the last 32 MiB."""
BYTES_OF_LOGIN = 128 << 10
"""Bytes that a connection may need for keys and file names; 1 % of the content is for packets' headers."""


@dataclass
class Run:
    """Hold a run of a DAG."""

    cluster: Cluster
    dag: str
    run_id: str

    def tasks(self, name: str | None = None) -> list[Task]:
        """List the task instances, or those of one task."""
        tasks = self.cluster.api.tasks(self.dag, self.run_id)
        return [one for one in tasks if name in (None, one.name)]

    def task(self) -> Task:
        """Return the only task instance."""
        (task,) = self.tasks()
        return task

    def wait_until(self, condition: Callable[[Task], bool], what: str, timeout: float = 180) -> Task:
        """Wait until the only task satisfies a condition.

        :returns: the task then
        """
        self.cluster.wait(lambda: condition(self.task()), f"{self.run_id} {what}", timeout)
        return self.task()

    def finish(self, timeout: float = 300) -> list[Task]:
        """Wait until all tasks have succeeded, and return them."""
        path = f"dags/{self.dag}/dagRuns/{self.run_id}"
        end = {"success", "failed"}
        self.cluster.wait(lambda: self.cluster.api.get(path)["state"] in end, f"the end of {self.run_id}", timeout)
        tasks = self.tasks()
        log.info("%s is over: %s", self.run_id, {(one.state, one.attempt, one.worker) for one in tasks})
        failed = [one for one in tasks if one.state != "success"]
        assert not failed, f"{failed}\n{self.log_of(failed[0])}"
        return tasks

    def log_of(self, task: Task) -> str:
        """Return the logs of all attempts of a task."""
        folder = self.cluster.environment["AIRFLOW_HOME"]
        pattern = f"logs/dag_id={self.dag}/run_id={self.run_id}/task_id={task.name}/**/attempt=*.log"
        return "\n".join(f"---- {path}\n{path.read_text()}" for path in sorted(Path(folder).glob(pattern)))


@dataclass
class Scenario:
    """Hold what belongs to one scenario, and measure it.

    ``title``, ``results`` and ``sent_again`` are the cells of its row on the page.

    :param name: id of the connection
    :param cluster: the cluster, all of whose machines are ready
    :param link: the link to its server
    :param remote: an empty directory on the server
    """

    name: str
    cluster: Cluster
    link: Link
    remote: Path
    title: str = ""
    results: list[str] = field(default_factory=list)
    sent_again: str = ""
    _connections: set[str] = field(default_factory=set)
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._sent_before, self._received_before = self.link.sent, self.link.received

    def entitle(self, title: str) -> None:
        """Set the name of the scenario on the page, and log it."""
        self.title = title
        self.log(title)

    @property
    def sent(self) -> int:
        """Return the bytes from clients since the start of the scenario."""
        return self.link.sent - self._sent_before

    @property
    def received(self) -> int:
        """Return the bytes to clients since the start of the scenario."""
        return self.link.received - self._received_before

    def source(self, name: str, size: int) -> Path:
        """Create a file of random bytes that all machines see."""
        path = self.cluster.files / f"{self.name}-{name}"
        with path.open("wb") as file:
            for start in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - start)))
        return path

    def connect(
        self,
        name: str | None = None,
        *,
        server: OpenSSHServer | None = None,
        link: Link | None = None,
        **extra: object,
    ) -> None:
        """Give Airflow a connection to a server.

        :param name: its id; that of the scenario by default
        :param server: the server of the cluster by default
        :param link: the link to the server
        :param extra: fields in ``extra``
        """
        server, link = server or self.cluster.server, link or self.link
        fields = {
            "base_path": str(self.remote),
            "private_key": server.client_key.read_text(),
            "known_host_keys": server.known_hosts.replace(f":{server.port} ", f":{link.port} "),
            **extra,
        }
        connection = {
            "connection_id": name or self.name,
            "conn_type": "sftp_backend",
            "host": server.host,
            "port": link.port,
            "login": server.username,
            "extra": json.dumps(fields),
        }
        self.cluster.api.request("POST", "connections", json=connection)
        self._connections.add(name or self.name)

    def start(self, dag: str, **parameters: object) -> Run:
        """Start a run of a DAG over the connection of the scenario."""
        if self.name not in self._connections:
            self.connect()
        body = {"logical_date": None, "conf": {"conn_id": self.name, **parameters}}
        run = self.cluster.api.request("POST", f"dags/{dag}/dagRuns", json=body)
        self.log(f"started {dag}")
        return Run(self.cluster, dag, run["dag_run_id"])

    def start_many(self, sources: Sequence[Path], target: str = "in/", **parameters: object) -> Run:
        """Start a mapped upload of files, a task for each."""
        return self.start("upload_many", sources=[str(source) for source in sources], target=target, **parameters)

    def clear(self, run: Run) -> None:
        """Clear the tasks of a run, running ones too."""
        body = {"dry_run": False, "dag_run_id": run.run_id, "only_failed": False, "reset_dag_runs": True}
        self.cluster.api.request("POST", f"dags/{run.dag}/clearTaskInstances", json=body)
        self.log(f"cleared {run.run_id}")

    def put(self, files: Mapping[str, Path]) -> None:
        """Copy local files to the server, and rename each when complete."""
        for name, local in files.items():
            unfinished = self.remote / f".{local.name}.put"
            shutil.copyfile(local, unfinished)
            unfinished.rename(self.remote / name)
        self.log(f"put {len(files)} files onto the server")

    def upload(self, source: Path, dag: str = "upload") -> Run:
        """Start an upload to the name of the source."""
        return self.start(dag, source=str(source), target=source.name)

    def wait_for_bytes(self, count: int, *, received: bool = False) -> None:
        """Wait until so many bytes were sent, or received, in this scenario."""
        self.cluster.wait(lambda: (self.received if received else self.sent) >= count, f"{count} bytes", 300)
        self.log(f"{self.sent / MIB:.1f} MiB sent, {self.received / MIB:.1f} MiB received")

    def check_server(self, files: Mapping[str, Path]) -> None:
        """Assert that the server holds exactly these files with equal content."""
        names = {path.relative_to(self.remote).as_posix() for path in self.remote.rglob("*") if path.is_file()}
        assert names == set(files)
        different = [name for name, local in files.items() if not filecmp.cmp(local, self.remote / name, shallow=False)]
        assert different == []
        self.results.append("content equal, nothing left behind")

    def check_sent_again(self, size: int, bound: int, *, logins: int = 2) -> None:
        """Assert that at most ``bound`` of ``size`` bytes were sent twice."""
        self._check_again(self.sent, size, bound, logins)

    def check_received_again(self, size: int, bound: int) -> None:
        """Assert that at most ``bound`` of ``size`` bytes were received twice."""
        self._check_again(self.received, size, bound, 2)

    def _check_again(self, transferred: int, size: int, bound: int, logins: int) -> None:
        again = max(transferred - size, 0)
        self.sent_again = f"{again / MIB:.1f} MiB"
        self.log(f"transferred again: {self.sent_again}")
        assert again <= bound + (size + bound) // 100 + logins * BYTES_OF_LOGIN

    def reported(self) -> list[str]:
        """Return all paths returned by runs of the DAG `watch`."""
        path = "dags/watch/dagRuns/~/taskInstances/~/xcomEntries"
        entries = self.cluster.api.get(path, xcom_key="return_value", limit=100)["xcom_entries"]
        runs = [entry["run_id"] for entry in entries if entry["dag_id"] == "watch"]
        return [path for run in runs for path in self.cluster.api.result("watch", run, "arrived")]

    def remove_files(self) -> None:
        """Remove the scenario's files from the server and from the machines."""
        shutil.rmtree(self.remote)
        for path in self.cluster.files.glob(f"{self.name}-*"):
            path.unlink()

    def log(self, event: str) -> None:
        """Log an event with the time since the start of the scenario."""
        log.info("%6.1f s %s", time.monotonic() - self._started, event)
