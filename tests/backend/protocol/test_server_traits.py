"""Recognise servers by evidence, and assume nothing of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

import pytest

from airflow_sftp_backend import SFTPBackend
from airflow_sftp_backend.backend._protocol.server_traits import OPENSSH, UNKNOWN, ServerTraits, detect_traits
from tests.support.servers import AsyncsshServer, OpenSSHServer

BANNER = "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u7"
OFFERED = dict.fromkeys(
    (
        "posix-rename@openssh.com", "statvfs@openssh.com", "fstatvfs@openssh.com", "hardlink@openssh.com",
        "fsync@openssh.com", "lsetstat@openssh.com", "limits@openssh.com", "expand-path@openssh.com", "copy-data",
        "home-directory", "users-groups-by-id@openssh.com",
    ),
    "1",
)  # fmt: skip
OLD = dict.fromkeys(("posix-rename@openssh.com", "statvfs@openssh.com", "fstatvfs@openssh.com"), "2")  # OpenSSH 5.1
GO = dict.fromkeys(("hardlink@openssh.com", "posix-rename@openssh.com", "statvfs@openssh.com"), "1")


def test_nothing_is_assumed_of_an_unknown_server() -> None:
    assert not any(astuple(UNKNOWN))


@pytest.mark.parametrize("banner", ["SSH-2.0-OpenSSH_5.1", "SSH-2.0-OpenSSH_10.0p2", BANNER])
@pytest.mark.parametrize("extensions", [OFFERED, OLD], ids=["9.2", "5.1"])
def test_openssh_is_known_by_banner_and_extensions(banner: str, extensions: dict[str, str]) -> None:
    assert detect_traits(banner, extensions) == OPENSSH


def test_openssh_whose_administrator_hides_some_requests_is_known() -> None:
    assert detect_traits(BANNER, {"fstatvfs@openssh.com": "2"}) == OPENSSH


def test_a_later_extension_of_openssh_does_not_hide_it() -> None:
    assert detect_traits(BANNER, OFFERED | {"later@openssh.com": "1"}) == OPENSSH


@pytest.mark.parametrize(
    ("banner", "extensions"),
    [
        ("SSH-2.0-OpenSSH_for_Windows_9.5", OFFERED),
        ("SSH-2.0-AsyncSSH_2.24.1", OFFERED),
        ("SSH-2.0-Go", OFFERED),
        ("SSH-2.0-mod_sftp", OFFERED),
        ("SSH-2.0-AWS_SFTP_1.1", OFFERED),
        ("SSH-2.0-my OpenSSH_9.2", OFFERED),
        ("", OFFERED),
        (BANNER, {}),
        (BANNER, GO),
        (BANNER, OFFERED | {"vendor-id": "another program"}),
        (BANNER, OFFERED | {"versions": "3,4,5,6"}),
        ("SSH-2.0-dropbear_2022.83", {}),
        ("SSH-2.0-dropbear_2022.83", OLD),
        ("SSH-2.0-dropbear_2022.83", GO),
    ],
)
def test_a_banner_or_an_extension_alone_proves_nothing(banner: str, extensions: dict[str, str]) -> None:
    assert detect_traits(banner, extensions) == UNKNOWN


def test_dropbear_with_openssh_sftp_server_is_known_and_gets_one_channel() -> None:
    traits = detect_traits("SSH-2.0-dropbear_2022.83", OFFERED)
    assert traits.lists_links_as_links
    assert not traits.allows_parallel_writers


def traits_seen(backend: SFTPBackend) -> ServerTraits:
    """Return the traits of the connected server."""
    return backend._session.call(lambda scheduler: scheduler.traits)


def test_a_real_openssh_is_known(openssh: OpenSSHServer, make_backend: Callable[..., SFTPBackend]) -> None:
    assert traits_seen(make_backend(openssh)) == OPENSSH


def test_a_real_asyncssh_is_unknown(asyncssh_plain: AsyncsshServer, make_backend: Callable[..., SFTPBackend]) -> None:
    assert traits_seen(make_backend(asyncssh_plain)) == UNKNOWN
