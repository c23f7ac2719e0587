"""Read host keys and algorithms of a server without a login."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import BackendUnavailable, HostKeyPolicy, SFTPUtils
from airflow_sftp_backend.backend._ssh.private_keys import load_private_key
from airflow_sftp_backend.backend._ssh.scan import HostAlgorithms, parse_kexinit, scan_host_algorithms, scan_host_keys
from tests.support.servers import (
    AsyncsshServer,
    Listener,
    OpenSSHServer,
    banner_listener,
    chatty_listener,
    closing_listener,
    free_port,
    mute_listener,
)
from tests.support.servers.server import ALL_HOST_KEYS
from tests.support.sessions import assert_nothing_left, round_trip, session_to

BANNER = b"SSH-2.0-Scripted\r\n"


def names(*lists: str) -> bytes:
    """Name-lists as they stand in a message."""
    return b"".join(len(one).to_bytes(4, "big") + one.encode() for one in lists)


def kexinit(*lists: str) -> bytes:
    """An SSH_MSG_KEXINIT payload."""
    return bytes([20]) + bytes(range(16)) + names(*lists) + bytes(5)


def packet(payload: bytes, padding: int = 6) -> bytes:
    """A packet that is not encrypted."""
    return (len(payload) + padding + 1).to_bytes(4, "big") + bytes([padding]) + payload + bytes(padding)


LISTS = ("kex-a,kex-b", "ssh-ed25519", "c1,c2,c3", "c3,c1", "m1", "m1,m2", "none", "none,zlib", "", "en")
MEANING = HostAlgorithms(
    key_exchange=("kex-a", "kex-b"),
    host_keys=("ssh-ed25519",),
    ciphers=("c1", "c3"),
    macs=("m1",),
    compression=("none",),
)


def test_an_announcement_is_read() -> None:
    assert parse_kexinit(kexinit(*LISTS)) == MEANING


@pytest.mark.parametrize(
    "payload",
    [b"", bytes([21]) + kexinit(*LISTS)[1:], kexinit(*LISTS)[:16], kexinit(*LISTS[:9])[:-5], kexinit("é", *LISTS[1:])],
)
def test_a_malformed_key_exchange_message_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="KEXINIT"):
        parse_kexinit(payload)


@given(st.binary(max_size=200))
def test_any_announcement_is_read_or_refused(rest: bytes) -> None:
    try:
        found = parse_kexinit(kexinit()[:17] + rest)
    except ValueError:
        return
    assert all("," not in name and name for name in found.key_exchange)


ALGORITHM = st.from_regex(r"[a-z0-9@.-]{1,20}", fullmatch=True)


@given(st.lists(st.lists(ALGORITHM, max_size=5, unique=True), min_size=10, max_size=10))
def test_announcements_of_any_content_are_read(lists: list[list[str]]) -> None:
    found = parse_kexinit(kexinit(*(",".join(one) for one in lists)))
    assert (found.key_exchange, found.host_keys) == (tuple(lists[0]), tuple(lists[1]))
    assert set(found.ciphers) == set(lists[2]) & set(lists[3])


@pytest.mark.parametrize(
    "before",
    [b"", b"Welcome\r\nto this server\r\n", packet(b"\2\0\0\0\0"), packet(b"\4\1\0\0\0\0\0\0\0\0") * 3],
    ids=["nothing", "lines", "ignore", "debug"],
)
def test_lines_and_ignored_packets_before_kexinit_are_skipped(before: bytes) -> None:
    first, then = (before, b"") if before[:1] == b"W" else (b"", before)
    with Listener(first + BANNER + then + packet(kexinit(*LISTS))) as listener:
        assert scan_host_algorithms(listener.host, listener.port, timeout=20) == MEANING
        assert_nothing_left(listener.port)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (packet(b"\1\0\0\0\2" + names("Too many of you", "en")), "the server disconnected: 'Too many of you"),
        (packet(b"\5abc"), "not a KEXINIT message"),
        (b"\xff\xff\xff\xff\4", "invalid packet length"),
        (b"\0\0\0\1\0", "invalid packet length"),
        (b"\0\0\0\6\4", "the server closed the connection"),
        (packet(kexinit(*LISTS))[:100], "the server closed the connection"),
    ],
)
def test_a_malformed_kexinit_is_refused(answer: bytes, why: str) -> None:
    with Listener(BANNER + answer, hangs_up="closed" in why) as listener:
        with pytest.raises(BackendUnavailable, match=why) as caught:
            scan_host_algorithms(listener.host, listener.port, timeout=20)
        assert caught.value.server == f"sftp://127.0.0.1:{listener.port}"
        assert_nothing_left(listener.port)


@pytest.mark.parametrize("scan", [scan_host_keys, scan_host_algorithms])
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (mute_listener, "no answer in time"),
        (banner_listener, "no answer in time"),
        (closing_listener, "the server closed the connection"),
        (chatty_listener, "the server does not speak SSH"),
        (lambda: Listener(b"x" * 100_000), "the server does not speak SSH"),
    ],
)
def test_who_is_no_ssh_server(scan: Callable[..., Any], make: Callable[[], Any], why: str) -> None:
    with make() as listener:
        with pytest.raises(BackendUnavailable, match=why):
            scan(listener.host, listener.port, timeout=0.5)
        assert_nothing_left(listener.port)


@pytest.mark.parametrize("scan", [scan_host_keys, scan_host_algorithms])
def test_a_scan_of_an_unreachable_host_is_unavailable(scan: Callable[..., Any]) -> None:
    with pytest.raises(BackendUnavailable, match="the server refuses connections"):
        scan("127.0.0.1", free_port())
    with pytest.raises(BackendUnavailable, match="cannot be resolved"):
        scan("no-such-host.invalid")
    for wrong in [("", 22), ("host", 0), ("host", 22, 0)]:
        with pytest.raises(ValueError, match="must"):
            scan(*wrong)


@pytest.fixture(params=["openssh", "asyncssh_plain"])
def server(request: pytest.FixtureRequest) -> OpenSSHServer | AsyncsshServer:
    """A server with a key of each type."""
    found: OpenSSHServer | AsyncsshServer = request.getfixturevalue(request.param)
    return found


def test_every_key_of_a_server_is_found(
    server: OpenSSHServer | AsyncsshServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="paramiko"):
        keys = scan_host_keys(server.host, server.port)
    assert {key.blob for key in keys} == {key.public_data for key in server.host_keys}
    assert {key.type for key in keys} == set(ALL_HOST_KEYS)
    assert {key.fingerprint for key in keys} == {key.get_fingerprint() for key in server.host_keys}
    assert {str(key) for key in keys} == set(server.known_hosts.splitlines())
    assert_nothing_left(server.port)
    assert [record for record in caplog.records if record.name.startswith("paramiko")] == []


def test_scanned_keys_can_be_trusted_afterwards(server: OpenSSHServer | AsyncsshServer) -> None:
    for key in scan_host_keys(server.host, server.port):
        with session_to(server, known_host_keys=str(key)) as session:
            assert session.call(round_trip)


def test_an_ssh_rsa_key_is_found_on_a_server_that_signs_with_sha1_only() -> None:
    with AsyncsshServer(host_keys=("ssh-rsa",), signature_algs=["ssh-rsa"]) as server:
        assert scan_host_algorithms(server.host, server.port).host_keys[-1] == "ssh-rsa"
        assert [key.blob for key in scan_host_keys(server.host, server.port)] == [server.host_key_blob]


def test_the_algorithms_of_a_server_are_listed() -> None:
    chosen = {
        "kex_algs": ["ecdh-sha2-nistp256", "curve25519-sha256"],
        "encryption_algs": ["aes256-ctr", "chacha20-poly1305@openssh.com"],
        "mac_algs": ["hmac-sha2-256", "hmac-sha1"],
        "compression_algs": ["zlib@openssh.com", "none"],
    }
    with AsyncsshServer(**chosen) as server:
        found = scan_host_algorithms(server.host, server.port)
    assert [name for name in found.key_exchange if "strict" not in name and "ext-info" not in name] == chosen[
        "kex_algs"
    ]
    assert list(found.ciphers) == chosen["encryption_algs"]
    assert list(found.macs) == chosen["mac_algs"]
    assert list(found.compression) == chosen["compression_algs"]
    assert found.host_keys == ("ssh-ed25519",)


def test_the_utilities_have_their_names() -> None:
    assert SFTPUtils.HostKeyPolicy is HostKeyPolicy
    assert SFTPUtils.load_private_key is load_private_key
    assert SFTPUtils.scan_host_keys is scan_host_keys
    assert SFTPUtils.scan_host_algorithms is scan_host_algorithms
