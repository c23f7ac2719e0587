"""Set up a partner's server and Airflow, and run DAGs.

Run with ``make demo``. The example DAGs are unmodified, and the output shows the events.

Nothing is left behind: everything lives in one temporary folder. Exit status 0 if every step succeeded and the bytes
are right.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from airflow_sftp_backend import SFTPBackend, SFTPBackendError
from airflow_sftp_backend.progress import ProgressBar, format_size, pluralize_files

from .server import HOST, USER, Partner, answer, partner, sha256

EXAMPLES = Path(__file__).resolve().parents[1] / "example_dags"
ORDERS = {"order-0001.csv": 2_000, "order-0002.csv": 350_000, "catalogue.bin": 32 << 20, "Größe und Preis.txt": 0}
_BIG = 64 << 20  # bytes
_PATIENCE = 120.0  # seconds until Airflow is given up
DAGS = ("partner_exchange", "mapped_download", "deferred_wait")
_OFFLINE = {"count"}  # tasks that have nothing to do with the server

console = Console(highlight=False, soft_wrap=True)


class DemoFailed(Exception):
    """Report a step with an unexpected result.

    ``log`` is Airflow's log of the step.
    """

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True)
class Place:
    """The demo's folder and what is in it."""

    top: Path

    @property
    def orders(self) -> Path:
        """Return the directory of the files to upload."""
        return self.top / "orders"

    @property
    def fetched(self) -> Path:
        """Return the directory of the downloaded files."""
        return self.top / "fetched"

    @property
    def log(self) -> Path:
        """Everything Airflow says."""
        return self.top / "airflow.log"


def main() -> int:
    """The demo; its exit status."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sftp-demo-") as folder:
        place = Place(Path(folder))
        for path in (place.orders, place.fetched, place.top / "server", place.top / "airflow"):
            path.mkdir()
        try:
            with partner(place.top / "server") as there:
                tasks = _play(place, there)
                _show_tree(there)
                _check(place, there, tasks)
                _transfer(place, there)
        except (DemoFailed, SFTPBackendError) as failure:
            console.print(f"\n[red]Failed:[/] {failure}")
            if isinstance(failure, DemoFailed) and failure.log is not None:
                _show_log(failure.log)
            return 1
        except KeyboardInterrupt:
            console.print("\nInterrupted; everything is removed.")
            return 130
    console.print(f"\n[green]Every step succeeded[/] in {time.monotonic() - started:.0f} s. Nothing was left behind.")
    return 0


def _play(place: Place, there: Partner) -> list[str]:
    environment = _environment(place, there)
    console.print("[bold]airflow-sftp-backend demo[/]: a partner's SFTP server, Airflow, and three example DAGs\n")
    console.print(f"  server   sftp://{HOST}:{there.port}, host key {there.fingerprint} pinned, policy strict")
    console.print(f"  login    user {USER!r} with a private key made for this run")
    began = time.monotonic()
    _run([sys.executable, "-m", "airflow", "db", "migrate"], place, environment, "set up Airflow's database")
    console.print(f"  Airflow  SQLite in a temporary folder, ready in {time.monotonic() - began:.1f} s")
    for name, size in ORDERS.items():
        (place.orders / name).write_bytes(os.urandom(size))
    receipt = f"orders,{len(ORDERS)}\ntime,{time.time():.0f}\n".encode()
    stop = threading.Event()
    answering = threading.Thread(target=answer, args=(there, set(ORDERS), receipt, stop), daemon=True)
    answering.start()
    try:
        return _run_dags({"orders": str(place.orders), "into": str(place.fetched)}, place, environment)
    finally:
        stop.set()
        answering.join()


def _environment(place: Place, there: Partner) -> dict[str, str]:
    connection = {
        "conn_type": "sftp_backend",
        "host": HOST,
        "port": there.port,
        "login": USER,
        "extra": {
            "base_path": "/",
            "private_key": there.client_key,
            "host_key_policy": "strict",
            "known_host_keys": f"[{HOST}]:{there.port} {there.host_key}",
        },
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return kept | {
        "AIRFLOW_HOME": str(place.top / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        "AIRFLOW_CONN_SFTP_BACKEND_DEFAULT": json.dumps(connection),
        "PYTHONUNBUFFERED": "1",
    }


def _run_dags(params: Mapping[str, str], place: Place, environment: Mapping[str, str]) -> list[str]:
    """Run all DAGs in one Airflow process.

    Each DAG is shown when it ends. Returns the names of the tasks.
    """
    ran: list[str] = []
    files = [str(EXAMPLES / f"{name}.py") for name in DAGS]
    with _started(
        [sys.executable, "-m", "demo.run", json.dumps(params), str(place.top), *files], place, environment
    ) as run:
        for name in DAGS:
            said = place.log.stat().st_size
            console.print(f"\n[bold]DAG {name}[/] (example_dags/{name}.py)")
            result = place.top / f"{name}.json"
            with _telling_what_it_does(place.log):
                while not result.exists() and run.poll() is None:
                    time.sleep(0.05)
            tasks = json.loads(result.read_text()) if result.exists() else []
            speeds = iter(_SUMMARY.findall(place.log.read_bytes()[said:].decode(errors="replace")))
            for task in tasks:
                _show_task(task, speeds)
            bad = [task["task"] for task in tasks if task["state"] != "success"]
            if bad or not tasks:
                raise DemoFailed(f"DAG {name}: {', '.join(bad) or 'it did not run'}", place.log)
            ran += [task["task"] for task in tasks]
    return ran


_SUMMARY = re.compile(r"\] (\d+ files?, \S+ \S+ in .+?)\s+\[airflow\.task")
"""The summary of a transfer in the log. The time of the task includes Airflow's start-up."""


def _show_task(task: dict[str, Any], speeds: Iterator[str]) -> None:
    index = f"[{task['map_index']}]" if task["map_index"] >= 0 else ""
    colour = "green" if task["state"] == "success" else "red"
    console.print(
        f"  [{colour}]{task['state']:8}[/] {escape(task['task'] + index):20} {task['seconds']:6.1f} s  ", end=""
    )
    returned = task["returned"]
    rows = returned if isinstance(returned, list) and all(isinstance(row, dict) for row in returned) else None
    if not rows:
        console.print("" if returned is None else f"returned {returned}", markup=False)
        return
    size = sum(row["size"] or 0 for row in rows)
    moved_bytes = any(str(row.get("action", "")).endswith("loaded") for row in rows)
    amount = f"{pluralize_files(len(rows))}, {format_size(size)}"
    console.print(next(speeds, amount) if moved_bytes else amount)
    for row in rows:
        ends = f"  <- {row['source']}" if "source" in row else f"  -> {row['target']}" if "target" in row else ""
        what = f"{row.get('action', 'found')} {row['path']} ({format_size(row['size'] or 0)}){ends}"
        console.print(f"           {what}", markup=False)


@contextmanager
def _telling_what_it_does(log: Path) -> Iterator[None]:
    """Show the running task in a terminal."""
    if not console.is_terminal:
        yield
        return
    stop = threading.Event()
    with console.status("  starting") as status:

        def follow() -> None:
            at = log.stat().st_size
            while not stop.wait(0.1):
                with log.open(errors="replace") as file:
                    file.seek(at)
                    for line in file:
                        if "starting task_id=" in line:
                            status.update("  " + line.partition("starting task_id=")[2].split()[0])
                    at = file.tell()

        following = threading.Thread(target=follow, daemon=True)
        following.start()
        try:
            yield
        finally:
            stop.set()
            following.join()


@contextmanager
def _started(command: list[str], place: Place, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with place.log.open("ab") as log:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=EXAMPLES.parent, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            yield process
            process.wait(_PATIENCE)
        finally:
            process.kill()
            process.wait()


def _run(command: list[str], place: Place, environment: Mapping[str, str], what: str) -> None:
    with _started(command, place, environment) as process:
        process.wait(_PATIENCE)
    if process.returncode:
        raise DemoFailed(f"could not {what}", place.log)


def _show_tree(there: Partner) -> None:
    tree = Tree("[bold]On the server now[/]")
    branches = {there.root: tree}
    for path in sorted(there.root.rglob("*")):
        label = f"{path.name}/" if path.is_dir() else f"{path.name}  ({format_size(path.stat().st_size)})"
        branches[path] = branches[path.parent].add(label)
    console.print()
    console.print(tree)


def _check(place: Place, there: Partner, tasks: list[str]) -> None:
    """Compare all files of both sides byte by byte."""
    if there.received != {name: sha256(place.orders / name) for name in ORDERS}:
        raise DemoFailed("what the partner found in the outbox is not what was sent", place.log)
    left = [path for path in there.root.rglob("*") if path.is_file()]
    if [path.name for path in left] != ["receipt-0001.csv"] or left[0].parts[-3] != "archive":
        raise DemoFailed(f"the server holds {[str(path.relative_to(there.root)) for path in left]}", place.log)
    fetched = list(place.fetched.iterdir())
    if [path.name for path in fetched] != ["receipt-0001.csv"] or sha256(fetched[0]) != sha256(left[0]):
        raise DemoFailed("what was fetched is not what the partner wrote", place.log)
    talking = [task for task in tasks if task not in _OFFLINE]
    if there.logins != len(talking):
        raise DemoFailed(f"{there.logins} logins for the {len(talking)} tasks {', '.join(talking)}", place.log)
    console.print(f"\nChecked: {len(ORDERS)} orders arrived byte for byte, the receipt came back byte for byte,")
    console.print(f"one login per task that talked to the server ({there.logins} in all).")


def _transfer(place: Place, there: Partner) -> None:
    """Upload and download one large file through `SFTPBackend`.

    A terminal shows a progress bar.
    """
    console.print("\n[bold]The same from Python[/]: SFTPBackend.upload and .download")
    big, back = place.top / "big.bin", place.top / "back.bin"
    big.write_bytes(os.urandom(_BIG))
    known = f"[{HOST}]:{there.port} {there.host_key}"
    with SFTPBackend(HOST, port=there.port, username=USER, pkey=there.client_key, known_host_keys=known) as backend:
        with ProgressBar("  upload  ", _BIG, sys.stdout) as bar:
            backend.upload(big, "big.bin", verify="sha256", progress=bar)
        with ProgressBar("  download", _BIG, sys.stdout) as bar:
            backend.download("big.bin", back, progress=bar)
        backend.delete("big.bin")
    if sha256(back) != sha256(big):
        raise DemoFailed("the large file did not come back as it was sent")


def _show_log(log: Path) -> None:
    kept = Path(tempfile.mkstemp(prefix="sftp-demo-", suffix=".log")[1])
    shutil.copyfile(log, kept)
    console.print(f"The end of Airflow's log (all of it: {kept}):\n")
    for line in log.read_text(errors="replace").splitlines()[-40:]:
        console.print(f"  {line}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
