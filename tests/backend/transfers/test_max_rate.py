"""max_rate: content arrives no faster than the option allows, on real servers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_sftp_backend import BackendUnavailable, SFTPBackend
from airflow_sftp_backend.backend._protocol.traffic import BURST_SECONDS
from tests.support.servers import Folder, OpenSSHServer, Server, wait_until
from tests.support.servers.relay import Relay, Sender

RATE = 200_000
SIZE = 400_000
PACKETS = 1.2
"""Bytes on the network for each byte of content, at most: blocks of 20,000 bytes, SSH and SFTP."""
LOGIN = 40_000
"""Bytes on the network for key exchange, login and the requests without content, at most."""
Sides = tuple[Sender, ...]


class MeasuringRelay(Relay):
    """Note when how many bytes have passed."""

    def __init__(self, target_port: int) -> None:
        self.passed: list[tuple[float, int, Sender]] = []
        super().__init__(target_port)

    def passed_on(self, piece: bytes, sender: Sender) -> tuple[bytes, bool]:
        """Note the bytes, and pass them on."""
        self.passed.append((time.monotonic(), len(piece), sender))
        return super().passed_on(piece, sender)

    def most_in(self, seconds: float, sides: Sides) -> int:
        """Return the most bytes in any interval of this length."""
        events = [(moment, size) for moment, size, sender in self.passed if sender in sides]
        return max(sum(size for moment, size in events if start <= moment <= start + seconds) for start, _ in events)


@pytest.fixture(params=["openssh", "asyncssh_plain"])
def server(request: pytest.FixtureRequest) -> Server:
    """OpenSSH's and asyncssh's server."""
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def relay(server: Server) -> Iterator[MeasuringRelay]:
    """The way to ``server`` for the backend of a test."""
    made = MeasuringRelay(server.port)
    yield made
    made.close()


@pytest.fixture
def slow(
    make_backend: Callable[..., SFTPBackend], server: Server, folder: Folder, relay: MeasuringRelay
) -> Callable[..., SFTPBackend]:
    """Build a backend with a limit, through the relay."""

    def make(rate: int = RATE, **arguments: Any) -> SFTPBackend:
        config = {"max_rate": rate} | arguments.pop("config", {})
        known = f"[127.0.0.1]:{relay.port} " + server.known_hosts.split(" ", 1)[1]
        return make_backend(
            server, base_path=folder.base_path, port=relay.port, known_host_keys=known, config=config, **arguments
        )

    return make


def files(directory: Path, count: int) -> list[Path]:
    """Files with SIZE bytes in all."""
    directory.mkdir()
    paths = [directory / f"{number}.bin" for number in range(count)]
    for path in paths:
        path.write_bytes(random.Random(path.name).randbytes(SIZE // count))
    return paths


def assert_limited(relay: MeasuringRelay, seconds: float, sides: Sides) -> None:
    """Compare the time with its minimum, and seconds with the rate."""
    assert seconds >= (SIZE / RATE - BURST_SECONDS) * 0.8
    assert relay.most_in(1.0, sides) <= RATE * (1 + BURST_SECONDS) * PACKETS + LOGIN


@pytest.mark.parametrize("count", [1, 20])
def test_uploads_and_downloads_share_the_rate(
    slow: Callable[..., SFTPBackend], relay: MeasuringRelay, folder: Folder, tmp_path: Path, count: int
) -> None:
    backend, paths = slow(), files(tmp_path / "up", count)
    backend.check_health()
    start = time.monotonic()
    backend.upload_many([(path, path.name) for path in paths])
    assert_limited(relay, time.monotonic() - start, ("client",))
    relay.passed.clear()
    start = time.monotonic()
    backend.download_many([(path.name, tmp_path / path.name) for path in paths])
    assert_limited(relay, time.monotonic() - start, ("server",))
    for path in paths:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes() == (folder.path / path.name).read_bytes()
    assert (backend.statistics.bytes_sent, backend.statistics.bytes_received) == (SIZE, SIZE)


def test_small_files_are_charged_with_their_own_size(
    slow: Callable[..., SFTPBackend], folder: Folder, tmp_path: Path
) -> None:
    for number in range(60):
        (folder.path / str(number)).write_bytes(b"small")
    backend = slow(RATE)
    start = time.monotonic()
    backend.download_many([(str(number), tmp_path / str(number)) for number in range(60)])
    # if each file cost two whole blocks, the time would be 12 s
    assert time.monotonic() - start < 8
    assert backend.statistics.bytes_received == 60 * len(b"small")


def test_a_pause_longer_than_io_timeout_is_no_stall(slow: Callable[..., SFTPBackend], folder: Folder) -> None:
    backend = slow(4096, io_timeout=0.7, config={"keepalive_interval": 0.2})
    content = random.Random(1).randbytes(4 * 4096)
    backend.write_atomic("a.bin", content)
    assert (folder.path / "a.bin").read_bytes() == content
    assert backend.connections == 1


def test_an_open_file_is_read_and_written_at_the_rate(slow: Callable[..., SFTPBackend], folder: Folder) -> None:
    backend, content = slow(), random.Random(2).randbytes(SIZE // 2)
    start = time.monotonic()
    with backend.open_atomic("a.bin") as file:
        file.write(content)
    with backend.read("a.bin") as reader:
        assert reader.read() == content
    assert time.monotonic() - start >= (SIZE / RATE - BURST_SECONDS) * 0.8


def test_the_rate_holds_over_a_lost_connection(
    slow: Callable[..., SFTPBackend], relay: MeasuringRelay, folder: Folder, tmp_path: Path
) -> None:
    (path,) = files(tmp_path / "up", 1)
    backend = slow(config={"reconnect_timeout": 30})
    backend.check_health()
    relay.cut_after(SIZE // 2)
    start = time.monotonic()
    backend.upload(path, path.name)
    assert_limited(relay, time.monotonic() - start, ("client",))
    assert (folder.path / path.name).read_bytes() == path.read_bytes()
    assert backend.statistics.resumed_transfers == 1
    assert backend.statistics.logins == 2
    assert backend.statistics.bytes_sent >= SIZE


def test_an_abort_ends_a_transfer_that_waits_for_the_rate(
    openssh: OpenSSHServer, make_backend: Callable[..., SFTPBackend]
) -> None:
    folder = openssh.fresh()
    backend = make_backend(openssh, base_path=folder.base_path, config={"max_rate": 1000})
    failure: list[BackendUnavailable] = []

    def upload() -> None:
        try:
            backend.write_atomic("a.bin", bytes(1_000_000))
        except BackendUnavailable as error:
            failure.append(error)

    thread = threading.Thread(target=upload, daemon=True)
    thread.start()
    wait_until(lambda: backend.statistics.bytes_sent > 0, "the first block")
    backend.abort_within(0.1)
    thread.join(20)
    assert not thread.is_alive()
    assert len(failure) == 1
    assert not (folder.path / "a.bin").exists()
