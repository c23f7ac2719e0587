"""The benchmarks measure what they claim, and report missed targets."""

from __future__ import annotations

import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks import __main__ as bench
from benchmarks import (
    clients,
    directories,
    distant_clients,
    large_files,
    many_files,
    page,
    plot,
    syncing,
    waiting,
    watching,
    workloads,
)
from benchmarks.delay import delayed
from benchmarks.parts import PARTS
from benchmarks.rivals import HOOK, LFTP, OURS, PARAMIKO, RCLONE, SFTP, rivals
from benchmarks.targets import MET, MISSED, NOT_MEASURED, ClientTable, Options, Row, number, show
from benchmarks.workloads import WORKLOADS, Result, WrongBytes
from tests.support.airflow.versions import needs_state_stores

TOP: Final = Path(__file__).parents[1]
CONTENT = random.Random(1).randbytes(3 << 20)
SMALL: Final = Options(scale=0.003, rounds=1)
MEASURED: Final = {MET, MISSED}


def test_a_delayed_port_gives_every_byte_late_both_ways() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def echo() -> None:
            near, _ = listening.accept()
            with near:
                while data := near.recv(1 << 16):
                    near.sendall(data)

        thread = threading.Thread(target=echo)
        thread.start()
        with (
            delayed(listening.getsockname()[1], 0.2) as port,
            socket.create_connection(("127.0.0.1", port)) as connection,
        ):
            began = time.monotonic()
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            assert time.monotonic() - began >= 0.2
            threading.Thread(target=connection.sendall, args=(CONTENT,)).start()
            came = b""
            while len(came) < len(CONTENT):
                came += connection.recv(1 << 16)
            assert came == CONTENT
            connection.shutdown(socket.SHUT_WR)
            thread.join(20)
        assert not thread.is_alive()


def rows_of(results: Iterable[Row | ClientTable]) -> dict[str, Row]:
    """Return the rows of a part by work and unit."""
    return {f"{row.work}, {row.unit}": row for row in results if isinstance(row, Row)}


@pytest.mark.timeout(180)
def test_every_piece_of_work_is_measured_near_and_far(sshd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sshd
    monkeypatch.setattr(clients, "LINKS", {"loopback": (0.0, 512), "50 ms": (0.01, 256)})
    options = replace(SMALL, clients=["paramiko", "asyncssh"])
    found = [*clients.measure(options), *distant_clients.measure(options)]
    tables = {table.name: table for table in found if isinstance(table, ClientTable)}
    assert tables["clients 50 ms"].columns == ["ours", "sftp", "asyncssh", "paramiko", "sftp, seconds"]
    assert [len(tables[name].rows) for name in ("clients loopback", "clients 50 ms", "cpu")] == [7, 7, 2]
    rows = rows_of(found)
    assert {"2 MiB up, loopback, speed / sftp", "1 MiB down, 50 ms, speed / sftp"} < rows.keys()
    assert {"2 MiB up, loopback: CPU, x paramiko", "2 MiB down, loopback: CPU, x sftp"} < rows.keys()
    assert {row.verdict for row in rows.values()} <= MEASURED


def test_only_wanted_work_is_measured(sshd: str) -> None:
    assert sshd
    found = clients.measure(replace(SMALL, work=["connect, loopback"], clients=["sftp"]))
    tables = {table.name: list(table.rows) for table in found if isinstance(table, ClientTable)}
    assert tables == {"clients loopback": ["connect"]}


@pytest.mark.system
@pytest.mark.timeout(300)
def test_large_files_are_measured_in_all_conditions(sshd: str) -> None:
    assert sshd
    rows = list(large_files.measure(SMALL))
    conditions = [row.work.partition("MiB ")[2] for row in rows]
    servers = [f"up to {server.title}" for server in large_files.OTHER_SERVERS]
    assert conditions[:4] == ["up, busy processors", "down, busy processors", *servers]
    assert [row.work for row in rows[4:]] == [f"transfer of 12 MiB: memory added {way}" for way in ("up", "down")]
    missing = [server.missing() is not None for server in large_files.OTHER_SERVERS]
    assert [row.result is None for row in rows[2:4]] == missing


@pytest.mark.parametrize(
    ("result", "at_least", "verdict"),
    [
        (1.1, True, MET),
        (0.9, True, MISSED),
        (0.9, False, MET),
        (1.1, False, MISSED),
        (None, True, NOT_MEASURED),
    ],
)
def test_a_row_is_met_or_missed(
    result: float | None, at_least: bool, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row("work", "s", result, 1.0, at_least)
    assert row.verdict == verdict
    show([row])
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0.4512, "0.451"), (9.93, "9.93"), (111.3, "111"), (12_345.6, "12,346")]
)
def test_a_number_has_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.timeout(180)
def test_syncs_are_measured_in_both_directions_beside_installed_clients(sshd: str) -> None:
    assert sshd
    found = list(syncing.measure(replace(SMALL, scale=0.0003)))
    (table,) = [each for each in found if isinstance(each, ClientTable)]
    assert table.columns == ["ours", *(client.name for client in (RCLONE, LFTP) if shutil.which(client.name))]
    syncs = [f"{sync} {direction}" for direction in ("up", "down") for sync in ("initial sync", "rerun")]
    assert list(table.rows) == [f"{sync}{unit}" for sync in syncs for unit in ("", ", CPU")]
    assert [row.result is None for row in rows_of(found).values()] == 4 * [shutil.which("rclone") is None]


def test_a_sync_client_that_is_not_installed_is_reported(sshd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sshd
    monkeypatch.setattr(syncing, "which", lambda _: None)
    rows = rows_of(syncing.measure(replace(SMALL, scale=0.0001)))
    assert [row.verdict for row in rows.values()] == 4 * [NOT_MEASURED]


def test_a_client_that_moves_wrong_bytes_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(b"a")
    (tmp_path / "arrived").write_bytes(b"b")
    with pytest.raises(WrongBytes, match="somebody"):
        workloads._compare("somebody", tmp_path / "sent", tmp_path / "arrived")


@pytest.mark.parametrize(("ours", "verdict"), [(1.0, MET), (2.0, MISSED)])
def test_a_target_is_met_or_missed(ours: float, verdict: str) -> None:
    (row,) = clients.rows("up", Result({OURS.name: [ours], SFTP.name: [2.0]}), 1.3, {})
    assert (row.verdict, row.result) == (verdict, 2 / ours)


def test_processor_time_includes_the_programs_the_client_runs(tmp_path: Path) -> None:
    def burn(*_: object) -> None:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)

    before = workloads.processor()
    burn()
    assert workloads.processor() - before >= 0.45


@pytest.mark.parametrize(("theirs", "verdict"), [(3.1, MET), (2.9, MISSED)])
def test_other_rivals_have_targets_of_their_own(theirs: float, verdict: str) -> None:
    result = Result({OURS.name: [2.0], HOOK.name: [theirs], SFTP.name: [1.0]})
    (row,) = clients.rows("up", result, None, WORKLOADS[0].rivals)
    assert (row.unit, row.verdict) == ("speed / SFTPHook", verdict)


@pytest.mark.parametrize(("theirs", "verdict"), [(2.0, MET), (1.9, MISSED)])
def test_the_cpu_of_a_large_file_has_targets(theirs: float, verdict: str) -> None:
    result = Result(processor={OURS.name: [2.0], PARAMIKO.name: [theirs]})
    (row,) = clients.cpu_rows("up", result)
    assert (row.unit, row.verdict) == ("x paramiko", verdict)


def test_we_come_first_and_the_sftp_command_second() -> None:
    assert [rival.name for rival in rivals()[:2]] == [OURS.name, SFTP.name]


def test_a_thousand_triggers_wait_on_one_login(sshd: str) -> None:
    assert sshd
    cost = waiting.measure_waits("ours", 1000, 3 * waiting.INTERVAL + 1)
    assert (cost.logins, cost.gave_up) == (1, 0)
    assert cost.punctual >= 990
    assert cost.requests < 1.2 * cost.polls


def cost(**changes: float) -> waiting.Cost:
    """Build a measurement of waiting without failures."""
    good: dict[str, Any] = {
        "logins": 1, "logins_a_minute": 1, "polls": 2400, "punctual": 200, "requests": 2400, "processor": 1,
        "memory": 1 << 20, "gave_up": 0,
    }  # fmt: skip
    return waiting.Cost(**(good | changes))


@pytest.mark.parametrize(
    ("has_cpu_target", "ours", "theirs", "missed"),
    [
        (True, {}, {"processor": 20}, []),
        (True, {}, {"processor": 19}, ["CPU of a poll"]),
        (True, {"gave_up": 1}, {"processor": 20}, ["that gave up"]),
        (True, {"logins": 2}, {"processor": 20}, ["logins"]),
        (True, {"polls": 0}, {"processor": 20}, ["CPU of a poll"]),
        (False, {}, {"processor": 1, "gave_up": 900}, []),
        (False, {"gave_up": 1}, {}, ["that gave up"]),
    ],
)
def test_waiting_meets_its_targets_or_misses_them(
    has_cpu_target: bool, ours: dict[str, float], theirs: dict[str, float], missed: list[str]
) -> None:
    rows = waiting.rows(200, {"ours": cost(**ours), "sftp provider": cost(**theirs)}, has_cpu_target=has_cpu_target)
    assert [row.work.split(": ")[1] for row in rows if row.verdict == MISSED] == missed


@needs_state_stores
def test_a_watch_is_measured_until_all_files_are_reported(sshd: str) -> None:
    assert sshd
    table, *rows = watching.measure(Options(scale=0.022))
    assert isinstance(table, ClientTable)
    assert table.rows["events"] == [3]
    assert [row.verdict for row in rows if isinstance(row, Row)] == 3 * [MET]
    written = rows_of(rows)["watch of 1,100 files that arrive at once: state written, MB"].result
    assert written is not None
    assert 0 < written < 0.11


@pytest.mark.parametrize(
    ("cost", "missed"),
    [
        ((59, 1, 1, 30_000, 1.0), []),
        ((61, 1, 1, 30_000, 1.0), [0]),
        ((1, 1, 1, 30_001, 1.0), [1]),
        ((1, 1, 1, 30_000, 65_537.0), [2]),
    ],
)
def test_a_watch_meets_its_targets_or_misses_them(cost: tuple[float, int, int, int, float], missed: list[int]) -> None:
    rows = list(watching.rows(watching.Cost(*cost), 150))
    assert [at for at, row in enumerate(rows) if row.verdict == MISSED] == missed


@pytest.mark.system  # starts whole Airflows
@pytest.mark.timeout(300)
def test_many_files_are_measured_and_rows_have_targets(sshd: str) -> None:
    assert sshd
    rows = list(many_files.measure(replace(SMALL, scale=0.00015)))
    # The work without changes has a row for the CPU and one for the time.
    assert len(rows) == len(many_files.COMPARISONS) + 1
    assert [row.result is None for row in rows[-2:]] == 2 * [shutil.which("rclone") is None]


def test_a_large_directory_is_listed_searched_and_waited_on(sshd: str) -> None:
    assert sshd
    rows = list(directories.measure(SMALL))
    assert [row.unit for row in rows] == [*3 * ["x listdir_iter"], "s", "MiB", "MiB"]
    assert [f"{files} names" in row.work for row, files in zip(rows, [*5 * ["300"], "3,000"], strict=True)] == 6 * [
        True
    ]
    assert {row.verdict for row in rows} <= MEASURED


def test_a_listing_is_compared_round_by_round() -> None:
    measured = directories.Measured({"paramiko": [2.0, 1.0, 1.0], "find": [9.0, 0.5, 0.5]})
    assert measured.ratio("find") == 0.5


# -- one table --------------------------------------------------------------------------------------------------------

PAGE: Final = "# Speed\n\n<!-- targets -->\n<!-- /targets -->\n\n<!-- syncs -->\nold\n<!-- /syncs -->\n"


@pytest.mark.system
@pytest.mark.timeout(300)
def test_a_run_prints_one_table_and_writes_the_page(sshd: str, tmp_path: Path) -> None:
    assert sshd
    speed_page, picture = tmp_path / "speed.md", tmp_path / "speed.png"
    speed_page.write_text(PAGE)
    command = [sys.executable, "-m", "benchmarks", "--part", "imports", "--rounds", "1", "--page", str(speed_page)]
    done = subprocess.run([*command, "--plot", str(picture)], cwd=TOP, capture_output=True, text=True, check=False)
    table = done.stdout[done.stdout.index("targets and results") :]
    assert table.count("import of the operators") == 1
    assert "load average" in table
    if shutil.which("rclone") and shutil.which("lftp"):
        assert done.returncode == ("missed" in table), done.stderr
    assert speed_page.read_text().count("| import of the operators |") == 1
    assert not picture.exists()  # there is nothing to draw


@pytest.mark.parametrize(
    ("verdicts", "missing", "status"),
    [([MET], "", 0), ([MET, MISSED], "", 1), ([MISSED, NOT_MEASURED], "", 2), ([MET], "lftp", 2)],
)
def test_the_status_tells_missed_from_not_measured(
    verdicts: list[str], missing: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {MET: 1.0, MISSED: 2.0, NOT_MEASURED: None}
    rows = [Row(verdict, "s", results[verdict], 1.0) for verdict in verdicts]
    monkeypatch.setattr(bench, "sshd_path", lambda: Path("sshd"))
    monkeypatch.setattr(bench, "which", lambda name: None if name == missing else name)
    monkeypatch.setattr(bench, "measure_parts", lambda *_: (rows, []))
    assert bench.main(["--part", "imports"]) == status
    assert (f"NOT MEASURED: {missing}" in capsys.readouterr().err) == bool(missing)


def test_a_row_of_the_page_keeps_its_run_until_it_is_measured_again() -> None:
    a, b = Row("a", "s", 1.0, 2.0), Row("b", "s", 3.0, 2.0)
    text = page.with_targets(PAGE, [a, b], "first", "quiet", keep=False)
    text = page.with_targets(text, [replace(b, result=1.5)], "second", "busy: 3", keep=True)
    assert "| a | s | ≤ 2 | 1 | met | first |\n| b | s | ≤ 2 | 1.5 | met | second |\n\n" in text
    assert "* first: quiet\n* second: busy: 3\n<!-- /targets -->" in text
    text = page.with_targets(text, [a, b], "third", "idle", keep=True)
    assert "first" not in text
    assert "| b | s | ≤ 2 | 3 | missed | third |\n\n* third: idle\n<!-- /targets -->" in text
    assert "| a |" not in page.with_targets(text, [b], "fourth", "idle", keep=False)


def test_a_table_of_clients_takes_its_place_on_the_page() -> None:
    table = ClientTable("syncs", "seconds", ["ours", "lftp"], {"up": [1.234, None]})
    lines = ["seconds (today):", "", "|  | ours | lftp |", "| --- | --- | --- |", "| up | 1.23 |  |"]
    text = "\n".join(["<!-- syncs -->", *lines, "<!-- /syncs -->"])
    assert text in page.with_clients(PAGE, table, "today")
    assert page.with_clients(PAGE, replace(table, name="other"), "today") == PAGE


def test_a_part_of_the_work_is_not_published(sshd: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--page", "--scale", "0.1"])
    assert "--page publishes whole parts" in capsys.readouterr().err


def test_the_pages_have_each_table_and_make_has_each_part() -> None:
    text = (TOP / "docs/speed.md").read_text()
    names = ["targets", *(f"clients {link}" for link in clients.LINKS), "cpu", "syncs"]
    assert [name for name in names if f"<!-- {name} -->" not in text or f"<!-- /{name} -->" not in text] == []
    readme = (TOP / "README.md").read_text()
    assert [name for name in ("clients loopback", "cpu") if f"<!-- /{name} -->" not in readme] == []
    parts = re.findall(r"^PARTS := (.*)", (TOP / "Makefile").read_text(), re.MULTILINE)
    assert parts == [" ".join(PARTS)]


def test_the_ratios_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = ClientTable(
        "clients loopback", "loopback: speed", ["ours", "sftp", "lftp", clients.SECONDS], {"up": [2, 1, None, 3]}
    )
    plot.draw([table], tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
