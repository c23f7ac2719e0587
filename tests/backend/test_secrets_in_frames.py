"""No frame of a failed login, and no exception, shows a secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_sftp_backend import SFTPBackend, SFTPBackendError
from airflow_sftp_backend.backend import BackendConfig, Secret
from tests.support.servers import AsyncsshServer, OpenSSHServer
from tests.support.sessions import config_of
from tests.support.tracebacks import shown_by

PASSWORD = "a wrong marmalade"
PASSPHRASE = "a wrong chutney"
DAMAGED = "-----BEGIN OPENSSH PRIVATE KEY-----\nbWFybWFsYWRlIGFuZCBjaHV0bmV5\n-----END OPENSSH PRIVATE KEY-----\n"


def assert_silent(error: BaseException) -> None:
    """Nothing of a secret is in it."""
    shown = list(shown_by(error))
    assert len(shown) > 5
    assert [text for text in shown if any(word in text for word in ("marmalade", "chutney", "bWFybWFs"))] == []


FAILING: dict[str, Callable[[Any], dict[str, Any]]] = {
    "a password": lambda _: {"password": Secret(PASSWORD), "key_file": None},
    "a password in connect_kwargs": lambda _: {
        "connect_kwargs": {"password": PASSWORD, "passphrase": PASSPHRASE}, "private_key": None, "key_file": None,
    },
    "a passphrase": lambda server: {
        "key_file": str(server.client_key), "password": Secret(PASSWORD), "passphrase": Secret(PASSPHRASE),
        "username": "nobody-here",
    },
    "a damaged key": lambda _: {"key_file": None, "private_key": Secret(DAMAGED), "passphrase": Secret(PASSPHRASE)},
    "an argument of connect_kwargs": lambda _: {"connect_kwargs": {"password": PASSWORD, "hostname": "h"}},
}  # fmt: skip


@pytest.mark.parametrize("failing", FAILING)
@pytest.mark.parametrize("behind", [False, True], ids=["direct", "at the jump host"])
def test_a_failed_login_shows_no_secret_in_any_frame(
    openssh: OpenSSHServer, asyncssh_plain: AsyncsshServer, failing: str, behind: bool
) -> None:
    changes = FAILING[failing](asyncssh_plain)
    with pytest.raises((SFTPBackendError, ValueError)) as caught:
        config = config_of(asyncssh_plain, **changes)
        if behind:
            config = config_of(openssh, jump=config)
        with SFTPBackend.from_config(config) as backend:
            backend.check_health()
    assert_silent(caught.value)


@pytest.mark.parametrize("source", [DAMAGED, Secret(DAMAGED)], ids=["str", "Secret"])
def test_an_unusable_key_is_in_no_frame(source: str | Secret) -> None:
    for argument in ({"pkey": source}, {"connect_kwargs": {"pkey": source, "passphrase": PASSPHRASE}}):
        with pytest.raises((SFTPBackendError, ValueError)) as caught, SFTPBackend("h", **argument) as backend:
            backend.check_health()
        assert_silent(caught.value)


def test_no_setting_shows_a_secret_in_its_repr() -> None:
    config = BackendConfig(
        host="h", password=Secret(PASSWORD), private_key=Secret(DAMAGED), passphrase=Secret(PASSPHRASE),
        connect_kwargs={"password": PASSWORD, "passphrase": PASSPHRASE}, proxy_command=f"connect --password {PASSWORD}",
    )  # fmt: skip
    shown = f"{config!r} {BackendConfig(host='h', pkey=DAMAGED)!r} {SFTPBackend.from_config(config)!r}"
    assert not [word for word in ("marmalade", "chutney", "bWFybWFs") if word in shown]
