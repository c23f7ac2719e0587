"""Run the example DAGs in Airflow, with one login per task."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from airflow_sftp_backend.backend._paths import is_temp_name
from tests.support.airflow.connections import Connect
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer, OpenSSHServer, StallsAfter, wait_until

TOP = Path(__file__).parents[2]
EVERYDAY = sorted((TOP / "example_dags/everyday").glob("*.py"))
EXAMPLES = [*sorted((TOP / "example_dags").glob("*.py")), *EVERYDAY]
Task = dict[str, Any]

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AIRFLOW_HOME with a database."""
    home = tmp_path_factory.mktemp("airflow")
    environment = os.environ | {"AIRFLOW_HOME": str(home)}
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=environment, check=True, capture_output=True)
    return home


class Start(Protocol):
    """Type of the fixture `start`."""

    def __call__(self, *dags: Path, **params: object) -> subprocess.Popen[str]: ...


@pytest.fixture
def start(airflow_home: Path, tmp_path: Path) -> Iterator[Start]:
    """Run DAG files in a process, with results in ``tmp_path/results``."""
    (tmp_path / "results").mkdir()
    started: list[subprocess.Popen[str]] = []

    def start(*dags: Path, **params: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "demo.run", json.dumps(params), str(tmp_path / "results"), *map(str, dags)]
        environment = os.environ | {
            "AIRFLOW_HOME": str(airflow_home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags[0].parent),
            "PYTHONPATH": str(TOP),
        }
        process = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], tmp_path: Path, seconds: float = 150) -> tuple[dict[str, list[Task]], str]:
    """Return the states of the tasks of each DAG, and the log."""
    log, _ = process.communicate(timeout=seconds)
    return {file.stem: json.loads(file.read_text()) for file in (tmp_path / "results").glob("*.json")}, log


def example(name: str) -> Path:
    return TOP / "example_dags" / f"{name}.py"


def dag(tmp_path: Path, body: str) -> Path:
    """A DAG file with these tasks."""
    imports = (
        "from airflow.sdk import DAG, task\n"
        "from airflow_sftp_backend.operators import *\n"
        "from airflow_sftp_backend.sensors.sftp import SFTPFileSensor\n"
    )
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    path = tmp_path / "dags" / "given.py"
    path.parent.mkdir()
    path.write_text(f"{imports}with DAG(dag_id='given_{time.monotonic_ns()}', schedule=None) as dag:\n{lines}\n")
    return path


# -- the examples -----------------------------------------------------------------------------------------------------


def test_parsing_the_examples_connects_nowhere_and_loads_no_client(
    server: AsyncsshServer, connect: Connect, airflow_home: Path
) -> None:
    connect(server)
    before = server.connections()
    code = (
        "import runpy, sys\n"
        f"for file in {[str(path) for path in EXAMPLES]!r}:\n"
        "    assert runpy.run_path(file)['dag'].tasks\n"
        "own = {'airflow_sftp_backend._masking', 'airflow_sftp_backend._key_vault.client'}\n"
        "loaded = [name for name in sys.modules if name.split('.')[0] in ('paramiko', 'azure') or name in own]\n"
        "assert not loaded, loaded\n"
    )
    environment = os.environ | {"AIRFLOW_HOME": str(airflow_home)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.connections() == before


def test_the_examples_run_one_after_another_with_one_login_a_task(
    remote: Path, server: AsyncsshServer, tmp_path: Path, start: Start
) -> None:
    orders = write_files(tmp_path / "orders", {"a.csv": b"one", "deep/b.csv": b"two"})
    before = server.logins()
    process = start(
        example("partner_exchange"), example("mapped_download"), orders=str(orders), into=str(tmp_path / "fetched")
    )
    wait_until(lambda: (remote / "outbox/a.csv").exists(), "the orders to arrive", timeout=60)
    write_files(remote, {"inbox/receipt-1.csv": b"received", "inbox/receipt-2.csv": b"too"})
    tasks, log = ended(process, tmp_path)
    assert process.returncode == 0, log
    assert {task["state"] for tasks in tasks.values() for task in tasks} == {"success"}
    returned = {task["task"]: task["returned"] for task in tasks["partner_exchange"]}
    assert sorted(row["path"] for row in returned["send_orders"]) == ["outbox/a.csv", "outbox/deep/b.csv"]
    archived = sorted(row["path"] for row in returned["archive_receipt"])
    assert [path.rpartition("/")[2] for path in archived] == ["receipt-1.csv", "receipt-2.csv"]
    assert sorted(read_files(remote)) == archived
    assert read_files(tmp_path / "fetched") == {"receipt-1.csv": b"received", "receipt-2.csv": b"too"}
    fetches = [task for task in tasks["mapped_download"] if task["task"] == "fetch"]
    assert sorted(task["map_index"] for task in fetches) == [0, 1]
    assert server.logins() - before == sum(map(len, tasks.values())) == 4 + 3


def test_the_mirror_example_carries_changes_both_ways_with_one_login_each(
    remote: Path, server: AsyncsshServer, tmp_path: Path, start: Start
) -> None:
    reports = write_files(tmp_path / "reports", {"a.csv": b"one", "2026/b.csv": b"two"})
    write_files(remote, {"reports/old.csv": b"", "reports/c.csv": b"", "published/x": b"x", "published/y.tmp": b""})
    write_files(reports, {"c.csv": b"three"})
    before = server.logins()
    tasks, log = ended(start(example("mirror"), reports=str(reports), into=str(tmp_path / "into")), tmp_path)
    returned = {task["task"]: task["returned"] for task in tasks["mirror"]}
    assert {task["state"] for task in tasks["mirror"]} == {"success"}, log
    assert {name: returned["publish"][name] for name in ("new", "changed", "deleted")} == {
        "new": 2, "changed": 1, "deleted": 1,
    }  # fmt: skip
    assert read_files(remote / "reports") == read_files(reports)
    assert read_files(tmp_path / "into") == {"x": b"x"}
    assert server.logins() - before == 2


def test_the_deferred_example_waits_in_the_triggerer(
    remote: Path, server: AsyncsshServer, tmp_path: Path, start: Start
) -> None:
    before = server.logins()
    process = start(example("deferred_wait"))
    wait_until(lambda: server.logins() == before + 2, "the trigger to look", timeout=60)
    write_files(remote, {"archive/2026/a.csv": b"abc", "archive/b.csv": b"de"})
    tasks, log = ended(process, tmp_path)
    assert process.returncode == 0, log
    returned = {task["task"]: task["returned"] for task in tasks["deferred_wait"]}
    assert returned["count"] == sum(row["size"] for row in returned["wait_for_archive"])
    assert server.logins() == before + 2  # the first look, and the trigger


@pytest.mark.parametrize("good", [True, False])
def test_a_delivery_is_archived_when_processed_else_quarantined(
    remote: Path, tmp_path: Path, start: Start, good: bool
) -> None:
    delivery = {"a.csv": b"id,name\n1,x\n2,y\n", "b.csv": b"id,name\n3,z\n" if good else b""}
    write_files(remote / "inbox", delivery)
    process = start(example("partner_delivery"), into=str(tmp_path / "into"))
    tasks, log = ended(process, tmp_path)
    assert process.returncode == (0 if good else 1), log
    states = {task["task"]: task["state"] for task in tasks["partner_delivery"]}
    returned = {task["task"]: task["returned"] for task in tasks["partner_delivery"]}
    assert (states["claim"], states["quarantine"]) == ("success", "success")
    assert (states["process"], states["archive"]) == (("success",) * 2 if good else ("failed", "upstream_failed"))
    (date,) = {path.split("/")[1] for path in read_files(remote)}
    place = "archive" if good else "quarantine"
    assert read_files(remote) == {f"{place}/{date}/{name}": content for name, content in delivery.items()}
    assert [row["action"] for row in returned["archive" if good else "quarantine"]] == ["moved", "moved"]
    if good:
        assert returned["process"] == 3
        assert returned["quarantine"] == []


def delivery_with(tmp_path: Path, old: str, new: str) -> Path:
    """The example of a delivery with one thing changed."""
    text = example("partner_delivery").read_text()
    assert text.count(old) == 1
    return (
        write_files(tmp_path, {"dags/partner_delivery.py": text.replace(old, new).encode()})
        / "dags/partner_delivery.py"
    )


def test_a_file_delivered_again_is_left_to_the_next_run(remote: Path, tmp_path: Path, start: Start) -> None:
    write_files(remote, {"inbox/a.csv": b"id,name\n1,x\n"})
    again = f"count = 0\n        Path({str(remote)!r}, 'inbox/a.csv').write_text('id,name\\n2,new\\n')\n"
    process = start(delivery_with(tmp_path, "count = 0\n", again), into=str(tmp_path / "into"))
    tasks, log = ended(process, tmp_path)
    assert process.returncode == 0, log
    returned = {task["task"]: task["returned"] for task in tasks["partner_delivery"]}
    (archived,) = returned["archive"]
    assert read_files(remote) == {archived["path"]: b"id,name\n1,x\n", "inbox/a.csv": b"id,name\n2,new\n"}
    assert archived["path"].startswith("archive/")


def test_a_failed_wait_moves_nothing(remote: Path, tmp_path: Path, start: Start) -> None:
    write_files(remote, {"inbox/a.csv": b"id,name\n1,x\n"})
    wait = "timeout=300, deferrable=True"
    process = start(
        delivery_with(tmp_path, wait, "min_files=2, timeout=2, deferrable=False"), into=str(tmp_path / "into")
    )
    tasks, log = ended(process, tmp_path)
    assert process.returncode == 1, log
    states = {task["task"]: task["state"] for task in tasks["partner_delivery"]}
    assert (states["wait"], states["claim"]) == ("failed", "upstream_failed")
    assert read_files(remote) == {"inbox/a.csv": b"id,name\n1,x\n"}


# -- the everyday jobs ------------------------------------------------------------------------------------------------


def test_an_everyday_job_has_at_most_ten_lines_and_a_link() -> None:
    guide = (TOP / "docs/tasks.md").read_text()
    for path in EVERYDAY:
        (block,) = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.With)]
        first, last = block.body[0], block.body[-1]
        lines = path.read_text().splitlines()[first.lineno - 1 : last.end_lineno]
        assert len([line for line in lines if line.strip()]) <= 10, path
        assert f"(../example_dags/everyday/{path.name})" in guide
    assert len(EVERYDAY) == 14


@pytest.mark.timeout(1300)
def test_each_everyday_job_does_its_work(
    openssh: OpenSSHServer, server: AsyncsshServer, connect: Connect, tmp_path: Path, start: Start
) -> None:
    pytest.importorskip("pandas")
    folder = openssh.fresh()
    connect(openssh, base_path=folder.base_path)
    remote, local, lake = folder.path, tmp_path / "data", server.fresh()
    connect(server, "lake", base_path=lake.base_path)  # takes the place of an object store
    write_files(
        remote,
        {
            "deliveries/whole.csv": b"1\n2\n", "deliveries/whole.csv.done": b"", "deliveries/half.csv": b"1\n",
            "history/2024/old.csv": b"", "history/new.csv": b"", "inbox/orders.csv": b"order,amount\n1,10\n2,5\n",
            "processed/p.csv": b"", "projects/2024/z": b"", "projects/2025/z": b"",
            "published/a.csv": b"a", "published/deep/b.csv": b"b",
        },
    )  # fmt: skip
    os.utime(remote / "history/2024/old.csv", (1_700_000_000, 1_700_000_000))
    report = write_files(local, {"reports/r.csv": b"report"}) / "reports/r.csv"
    os.utime(report, (1_700_000_000, 1_700_000_000))
    process = start(*EVERYDAY, data=str(local), store="sftpbackend://lake@/store")
    results, log = ended(process, tmp_path, seconds=1200)
    assert process.returncode == 0, log
    returned = {name: [task["returned"] for task in tasks] for name, tasks in results.items()}
    assert {name: len(rows) for name, rows in returned.items() if len(rows) > 1} == {
        "directories": 2, "listing_as_rows": 3, "process_each_delivery": 2,
    }  # fmt: skip

    assert (
        read_files(local / "published")
        == read_files(lake.path / "store/published")
        == {"a.csv": b"a", "deep/b.csv": b"b"}
    )
    assert read_files(local / "each") == {"a.csv": b"a", "b.csv": b"b"}
    assert returned["csv_by_url"] == [15.0]
    assert returned["sensor_as_decorator"] == [len(b"order,amount\n1,10\n2,5\n")]
    assert [row["path"] for row in returned["process_each_delivery"][0]] == ["deliveries/whole.csv"]
    assert returned["process_each_delivery"][1] == 2
    assert sorted(returned["directories"][0]) == ["2024", "2025", "2026"]
    assert sorted(path.name for path in (remote / "projects").iterdir()) == ["2025", "2026"]
    assert sorted(path.name for path in (remote / "history").iterdir()) == ["new.csv"]
    (archived,) = read_files(remote / "archive")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/p\.csv", archived)
    assert read_files(remote / "outbox") == {
        "INDEX": b"a.csv\nb.csv", "orders.csv": b"order,amount\n1,10.0\n2,12.5\n",
    }  # fmt: skip
    (stamped,) = read_files(remote / "reports")
    assert re.fullmatch(r"r-\d{8}T\d{6}\.csv", stamped)
    private, shared = (remote / "private/r.csv").stat(), (remote / "shared/r.csv").stat()
    assert (stat.S_IMODE(private.st_mode), private.st_mtime) == (0o640, 1_700_000_000)
    assert stat.S_IMODE(shared.st_mode) == 0o664


# -- tasks that do not succeed ----------------------------------------------------------------------------------------


def test_a_failed_task_had_one_login_and_left_no_connection(
    remote: Path, server: AsyncsshServer, tmp_path: Path, start: Start
) -> None:
    before = server.logins()
    process = start(dag(tmp_path, "SFTPDeleteOperator(task_id='gone', path='missing.csv')"))
    tasks, log = ended(process, tmp_path)
    assert process.returncode == 1
    assert [task["state"] for task in tasks.get("given", [])] == ["failed"], log
    assert "no such file ('missing.csv' on sftp://127.0.0.1" in log
    assert server.logins() == before + 1


def test_a_refused_login_is_not_retried(server: AsyncsshServer, connect: Connect, tmp_path: Path, start: Start) -> None:
    connect(server, columns={"password": "hunter2-secret"}, private_key=None)
    before = server.connections()
    process = start(dag(tmp_path, "SFTPDeleteOperator(task_id='gone', path='a', retries=3)"))
    tasks, log = ended(process, tmp_path)
    assert process.returncode == 1
    assert [task["state"] for task in tasks.get("given", [])] == ["failed"], log
    assert "refused: the password" in log
    assert "hunter2-secret" not in log
    assert server.connections() == before + 1


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_killed_task_leaves_no_connection_and_no_partial_file(
    connect: Connect, tmp_path: Path, start: Start, direction: str
) -> None:
    with StallsAfter(requests=20) as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path)
        write_files(folder.path if direction == "down" else tmp_path, {"big": bytes(16 << 20)})
        kind = "SFTPUploadOperator" if direction == "up" else "SFTPDownloadOperator"
        ends = (str(tmp_path / "big"), "big") if direction == "up" else ("big", str(tmp_path / "down" / "big"))
        process = start(dag(tmp_path, f"{kind}(task_id='move', source={ends[0]!r}, target={ends[1]!r})"))
        wait_until(lambda: stalling.requests.total() > 20, "the transfer to stall", timeout=60)
        time.sleep(0.3)
        stalling.limit = 10**9  # it would go on now
        process.send_signal(signal.SIGTERM)
        tasks, log = ended(process, tmp_path)
        assert [task["state"] for task in tasks.get("given", [])] == ["failed"], log
        assert "TaskKilled" in log
        if direction == "up":
            assert read_files(folder.path) == {}
        else:
            assert all(is_temp_name(name) for name in read_files(tmp_path / "down"))  # for the next try


def test_mapped_instances_log_in_separately_and_fail_separately(
    remote: Path, server: AsyncsshServer, tmp_path: Path, start: Start
) -> None:
    write_files(remote, {"a": b"1", "b": b"22"})
    before = server.logins()
    into = str(tmp_path / "into") + "/"
    body = f"SFTPDownloadOperator.partial(task_id='fetch', target={into!r}).expand(source=['a', 'missing', 'b'])"
    tasks, log = ended(start(dag(tmp_path, body)), tmp_path)
    assert Counter(task["state"] for task in tasks.get("given", [])) == {"success": 2, "failed": 1}, log
    assert read_files(tmp_path / "into") == {"a": b"1", "b": b"22"}
    assert server.logins() == before + 3


def test_sensor_output_can_be_mapped_or_passed_as_a_whole(remote: Path, tmp_path: Path, start: Start) -> None:
    names = ["report[1].csv", "*", "None", "1_000", "['a']", "é"]
    others = dict.fromkeys(("report1.csv", "x", "a", "1000"), b"other")
    write_files(remote / "in", {**others, **dict.fromkeys(names, b"meant")})
    write_files(remote / "out", others)
    body = f"""
rows = {[{"path": f"in/{name}"} for name in names]!r}
wait = SFTPFileSensor(task_id="wait", path=rows, min_files={len(names)})
moved = SFTPMoveOperator.partial(task_id="mv", target="out/").expand(source=wait.output)
both = SFTPFileSensor.partial(task_id="both").expand(path=moved.output)
SFTPDeleteOperator(task_id="rm", path=both.output)
"""
    tasks, log = ended(start(dag(tmp_path, body)), tmp_path)
    states = Counter((task["task"], task["state"]) for task in tasks.get("given", []))
    assert states == {("wait", "success"): 1, ("mv", "success"): 6, ("both", "success"): 6, ("rm", "success"): 1}, log
    assert read_files(remote / "in") == read_files(remote / "out") == others
