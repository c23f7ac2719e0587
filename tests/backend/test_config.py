"""Check the settings when they are passed, and hide secrets."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import HostKeyPolicy, RetryPolicy, Secret
from airflow_sftp_backend.backend import BackendConfig


@pytest.mark.parametrize("policy", HostKeyPolicy)
def test_a_policy_is_parsed_from_its_value_and_its_name_in_any_case(policy: HostKeyPolicy) -> None:
    for text in (policy.value, policy.name, policy.name.lower(), f" {policy.value.upper()} "):
        assert HostKeyPolicy.parse(text) is policy
    assert HostKeyPolicy.parse(policy) is policy


def test_an_unknown_policy_is_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'never'; choose one of 'strict', 'tofu', 'auto'"):
        HostKeyPolicy.parse("never")
    with pytest.raises(TypeError, match="not int"):
        HostKeyPolicy.parse(1)  # type: ignore[arg-type]  # what is tested


@given(st.text(min_size=1))
def test_a_secret_is_hidden_and_can_be_revealed(value: str) -> None:
    secret = Secret(value)
    assert (repr(secret), str(secret), f"{secret}") == ("Secret('***')", "***", "***")
    assert secret.reveal() == value
    assert pickle.loads(pickle.dumps(secret)) == copy.deepcopy(secret) == secret
    assert hash(secret) == hash(Secret(value))


def test_secrets_are_equal_by_value_and_never_equal_to_text() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("ä")
    assert Secret("a") != "a"
    assert Secret.of("a") == Secret.of(Secret("a"))


@pytest.mark.parametrize("value", [None, b"a", 1, ["a"]])
def test_a_secret_is_text(value: Any) -> None:
    with pytest.raises(TypeError, match="holds a str"):
        Secret(value)


def test_a_secret_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="cannot be changed"):
        Secret("a")._value = "b"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"max_attempts": True}, "max_attempts"),
        ({"backoff_base": -1}, "backoff_base"),
        ({"backoff_max": float("nan")}, "backoff_max"),
        ({"jitter": -0.1}, "jitter"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
    ],
)
def test_a_retry_policy_names_what_is_wrong(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RetryPolicy(**arguments)


@given(st.integers(1, 10_000), st.floats(0, 0.999))
def test_pauses_grow_up_to_their_bound(attempt: int, random: float) -> None:
    policy = RetryPolicy(backoff_base=1, backoff_max=60, jitter=2)
    assert 0 <= policy.pause(attempt, random) <= 62
    assert policy.pause(attempt, 0) <= policy.pause(attempt + 1, 0)
    assert [policy.pause(count, 0) for count in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_disabled_retry_is_one_attempt() -> None:
    assert RetryPolicy.disabled().max_attempts == 1
    assert RetryPolicy().max_attempts == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"host": ""}, "host"),
        ({"host": " "}, "host"),
        ({"host": "a b"}, "host"),
        ({"host": "sftp://h"}, "host"),
        ({"host": "h\n"}, "host"),
        ({"host": 5}, "host"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"port": "22"}, "port"),
        ({"port": True}, "port"),
        ({"base_path": "a\0"}, "base_path"),
        ({"base_path": "/€", "name_encoding": "latin-1"}, "base_path"),
        ({"name_encoding": "utf-16"}, "name_encoding"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": None}, "timeout"),
        ({"banner_timeout": -1}, "banner_timeout"),
        ({"auth_timeout": "5"}, "auth_timeout"),
        ({"io_timeout": float("nan")}, "io_timeout"),
        ({"keepalive_interval": -1}, "keepalive_interval"),
        ({"reconnect_timeout": -1}, "reconnect_timeout"),
        ({"max_channels": 11}, "max_channels"),
        ({"max_entries": 0}, "max_entries"),
        ({"max_rate": 0}, "max_rate"),
        ({"max_sessions": 0.5}, "max_sessions"),
        ({"key_file": "a", "private_key": Secret("b")}, "private_key and key_file"),
    ],
)
def test_a_config_names_the_argument_that_is_wrong(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BackendConfig(**{"host": "h"} | arguments)


def test_io_timeout_and_keepalives_may_be_disabled() -> None:
    config = BackendConfig(host="h", io_timeout=None, keepalive_interval=0)
    assert (config.io_timeout, config.keepalive_interval) == (None, 0)


@pytest.mark.parametrize(
    ("host", "address"), [("h", "sftp://h:2222"), ("::1", "sftp://[::1]:2222"), ("10.0.0.1", "sftp://10.0.0.1:2222")]
)
def test_the_address_is_a_url(host: str, address: str) -> None:
    assert BackendConfig(host=host, port=2222).address == address


def test_a_config_shows_no_secret() -> None:
    config = BackendConfig(host="h", password=Secret("hunter2"), private_key=Secret("PEM"), passphrase=Secret("x1"))
    assert not any(secret in repr(config) for secret in ("hunter2", "PEM", "x1"))
