"""The benchmarks measure what they claim, and report missed targets."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as bench
from benchmarks import directories, large_files, many_files, syncing, targets, waiting, watching, workloads
from benchmarks.delay import delayed
from benchmarks.rivals import HOOK, LFTP, OURS, RCLONE, SFTP, rivals
from benchmarks.workloads import WORKLOADS, Result, Workload, WrongBytes
from tests.support.airflow.versions import needs_state_stores

CONTENT = random.Random(1).randbytes(3 << 20)


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


@pytest.mark.timeout(180)
def test_every_piece_of_work_is_measured_near_and_far(
    sshd: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sshd
    monkeypatch.setattr(workloads, "FILES", 3)
    monkeypatch.setattr(workloads, "NAMES", 20)
    monkeypatch.setattr(bench, "LINKS", {"loopback": 0.0, "far": 0.01})
    work = [argument for workload in WORKLOADS for argument in ("--work", workload.name)]
    clients = ["--client", OURS.name, "--client", SFTP.name, "--client", "paramiko", "--client", "asyncssh"]
    status = bench.main(["--size", "1", "--rounds", "1", "--memory", "2", *work, *clients])
    output = capsys.readouterr().out
    assert status in (0, 1)
    assert ("missed" in output) == (status == 1)
    assert output.count("connect") >= 2
    assert "far: speed as a multiple" in output
    assert output.count("seconds of the processor per GiB") == 2
    assert output.count("no more than paramiko") == 2
    assert output.count("memory added by a transfer of 2 MiB") == 2


@pytest.mark.system
@pytest.mark.timeout(300)
def test_large_files_are_measured_in_all_conditions(sshd: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sshd
    status = large_files.main(["--size", "2", "--rounds", "1"])
    output = capsys.readouterr().out
    assert ("missed" in output) == (status == 1)
    assert [output.count(row) for row in ("idle", "busy", "50 ms", "CPU per GiB")] == [2, 2, 2, 2]
    assert output.count(" up to ") == sum(server.missing() is None for server in large_files.OTHER_SERVERS)


@pytest.mark.parametrize(
    ("result", "at_least", "met"), [(1.1, True, True), (0.9, True, False), (0.9, False, True), (1.1, False, False)]
)
def test_a_row_is_met_or_missed(result: float, at_least: bool, met: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert targets.show([targets.Row("work", "s", result, 1.0, at_least)]) == met
    assert ("missed" in capsys.readouterr().out) != met


@pytest.mark.timeout(180)
def test_syncs_are_measured_in_both_directions_beside_installed_clients(
    sshd: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sshd
    status = syncing.main(["--files", "5", "--size", "10", "--rounds", "1", "--link", "loopback"])
    output, errors = capfd.readouterr()
    assert output.count("rerun without changes, CPU") == 2
    missing = [client.name for client in (LFTP, RCLONE) if not shutil.which(client.name)]
    assert status == (2 if missing else 0)
    assert errors.count("NOT MEASURED") == len(missing)


def test_a_sync_client_that_is_not_installed_is_reported(
    sshd: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sshd
    monkeypatch.setattr(syncing, "which", lambda _: None)
    assert syncing.main(["--files", "1", "--rounds", "1", "--link", "loopback"]) == 2
    assert "NOT MEASURED: rclone is not installed" in capfd.readouterr().err


def test_a_client_that_moves_wrong_bytes_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(b"a")
    (tmp_path / "arrived").write_bytes(b"b")
    with pytest.raises(WrongBytes, match="somebody"):
        workloads._compare("somebody", tmp_path / "sent", tmp_path / "arrived")


@pytest.mark.parametrize(("ours", "met"), [(1.0, True), (2.0, False)])
def test_a_target_is_met_or_missed(ours: float, met: bool) -> None:
    result = Result(Workload("up", "up", (1.3, 5)), 1.3, {OURS.name: [ours], SFTP.name: [2.0]})
    assert result.met == met


def test_processor_time_includes_the_programs_the_client_runs(tmp_path: Path) -> None:
    def burn(*_: object) -> None:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)

    before = workloads.processor()
    burn()
    assert workloads.processor() - before >= 0.45


@pytest.mark.parametrize(("theirs", "met"), [(3.1, True), (2.9, False)])
def test_other_rivals_have_targets_of_their_own(theirs: float, met: bool, capsys: pytest.CaptureFixture[str]) -> None:
    result = Result(WORKLOADS[0], 1.3, {OURS.name: [2.0], HOOK.name: [theirs], SFTP.name: [1.0]})
    assert bench._show_rivals([result]) == [met]
    assert ("met" in capsys.readouterr().out) == met


def test_we_come_first_and_the_sftp_command_second() -> None:
    assert [rival.name for rival in rivals()[:2]] == [OURS.name, SFTP.name]


def test_a_thousand_triggers_wait_on_one_login(sshd: str) -> None:
    assert sshd
    cost = waiting.measure("ours", 1000, 3 * waiting.INTERVAL + 1)
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
    ("count", "ours", "theirs", "met"),
    [
        (waiting.AT, {}, {"processor": 20}, True),
        (waiting.AT, {}, {"processor": 19}, False),
        (waiting.AT, {"gave_up": 1}, {"processor": 20}, False),
        (waiting.AT, {"logins": 2}, {"processor": 20}, False),
        (waiting.AT, {"polls": 0}, {"processor": 20}, False),
        (1000, {}, {"processor": 1, "gave_up": 900}, True),
        (1000, {"gave_up": 1}, {}, False),
    ],
)
def test_waiting_meets_its_targets_or_misses_them(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    count: int,
    ours: dict[str, float],
    theirs: dict[str, float],
    met: bool,
) -> None:
    costs = {"ours": cost(**ours), "sftp provider": cost(**theirs)}
    monkeypatch.setattr(waiting, "measure", lambda whose, *_: costs[whose])
    assert waiting.main(["--triggers", str(count), "--seconds", "1"]) == (0 if met else 1)
    assert "logins a minute" in capsys.readouterr().out


@needs_state_stores
def test_a_watch_is_measured_until_all_files_are_reported(sshd: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sshd
    assert watching.main(["--files", "1100", "--arrivals", "1", "--interval", "0.2"]) == 0
    lines = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in capsys.readouterr().out.splitlines()
             if line.startswith("│")}  # fmt: skip
    assert lines["events"] == "3"
    assert 0 < int(lines["bytes of state in all"].replace(",", "")) < 110_000


@pytest.mark.parametrize(
    ("cost", "met"), [((59, 1, 1, 2000, 1.0), True), ((61, 1, 1, 2000, 1.0), False), ((1, 1, 1, 2001, 1.0), False),
                      ((1, 1, 1, 2000, 65_537.0), False)]
)  # fmt: skip
def test_a_watch_meets_its_targets_or_misses_them(cost: tuple[float, int, int, int, float], met: bool) -> None:
    assert watching.is_met(watching.Cost(*cost), 10) is met


@pytest.mark.system  # starts whole Airflows
@pytest.mark.timeout(300)
def test_many_files_are_measured_and_rows_have_targets(capfd: pytest.CaptureFixture[str]) -> None:
    if shutil.which("rclone") is None:
        pytest.skip("rclone is not installed")
    assert many_files.main(["--files", "3"]) in (0, 1)
    table = capfd.readouterr().out
    assert [row.title for row in many_files.ROWS if row.title not in table] == []


def test_a_large_directory_is_listed_searched_and_waited_on(sshd: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sshd
    status = directories.main(["--files", "300", "--many", "400", "--rounds", "1"])
    output = capsys.readouterr().out
    assert all(target.title in output for target in directories.TARGETS.values())
    assert ("missed" in output) == (status == 1)


@pytest.mark.parametrize(("ours", "met"), [(0.5, True), (0.6, False)])
def test_a_listing_meets_its_target_or_misses_it(ours: float, met: bool, capsys: pytest.CaptureFixture[str]) -> None:
    measured = directories.Measured({"paramiko": [2.0, 1.0, 1.0], "find": [9.0, ours, ours]})
    assert directories.show({"find": measured.ratio("find")}, {"find": "1"}) is met
    assert ("met" in capsys.readouterr().out) is met
