"""A task that is told to end does so at once, leaves nothing half, and what its next try can go on with."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from airflow.sdk import BaseOperator

from airflow_sftp_backend.backend._paths import is_temp_name
from airflow_sftp_backend.hooks import TaskKilled
from tests.airflow.conftest import Connect, grow, held
from tests.backend.sessions import assert_nothing_left
from tests.servers import StallsAfter, wait_until

from .test_operators import delete, download, run, upload


@pytest.mark.parametrize("what", ["upload", "download"])
def test_a_killed_task_ends_at_once_and_leaves_nothing_half(connect: Connect, tmp_path: Path, what: str) -> None:
    big = bytes(8 << 20)
    with StallsAfter(requests=12) as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path)
        if what == "download":
            grow(folder.path, {"big": big})
            operator: BaseOperator = download("big", tmp_path / "down" / "big")
        else:
            operator = upload(grow(tmp_path, {"big": big}) / "big", "big")
        before = signal.signal(signal.SIGALRM, lambda *_: operator.on_kill())
        signal.setitimer(signal.ITIMER_REAL, 1)
        try:
            with pytest.raises(TaskKilled, match="was killed"):
                run(operator)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert_nothing_left(stalling.port)
        if what == "download":
            assert not (tmp_path / "down" / "big").exists()
        else:
            assert "big" not in held(folder.path)


def test_killing_a_task_that_does_nothing_is_harmless() -> None:
    delete("a").on_kill()


@pytest.mark.parametrize("what", ["upload", "download"])
def test_a_killed_task_ends_within_two_seconds_of_a_silent_server_and_the_next_try_goes_on(
    connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level("INFO")
    big = random.Random(1).randbytes(160 << 20)
    killed: list[float] = []
    with StallsAfter(requests=10**9) as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path)
        here, there = (tmp_path, folder.path) if what == "upload" else (folder.path, tmp_path / "down")
        grow(here, {"big": big})
        there.mkdir(exist_ok=True)

        def operator() -> BaseOperator:
            return upload(here / "big", "big") if what == "upload" else download("big", there / "big")

        def kill() -> None:
            wait_until(lambda: sum(path.stat().st_size for path in there.iterdir()) > 64 << 20, "it to be under way")
            stalling.limit = 0
            time.sleep(0.3)
            killed.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGUSR2)

        first = operator()
        before = signal.signal(signal.SIGUSR2, lambda *_: first.on_kill())
        killing = threading.Thread(target=kill)
        killing.start()
        try:
            with pytest.raises(TaskKilled):
                run(first)
            assert time.monotonic() - killed[0] < 2
        finally:
            killing.join()
            signal.signal(signal.SIGUSR2, before)
        assert_nothing_left(stalling.port)
        (left,) = held(there)
        assert is_temp_name(left)
        stalling.limit = 10**9
        run(operator(), try_number=2)
        assert held(there) == {"big": big}
    assert "going on after" in caplog.text


def test_a_killed_task_does_not_wait_to_tidy_up_on_a_server_that_is_silent(connect: Connect, tmp_path: Path) -> None:
    with StallsAfter(requests=10) as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path)
        operator = upload(grow(tmp_path, {"big": bytes(8 << 20)}) / "big", "big")
        before = signal.signal(signal.SIGALRM, lambda *_: operator.on_kill())
        signal.setitimer(signal.ITIMER_REAL, 1)
        start = time.monotonic()
        try:
            with pytest.raises(TaskKilled):
                run(operator)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert time.monotonic() - start < 3
        assert_nothing_left(stalling.port)
        assert "big" not in held(folder.path)
