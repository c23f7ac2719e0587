"""Read connections of each type, and report all their problems at once."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import os
import pickle
from dataclasses import dataclass
from typing import Any

import asyncssh
import pytest
from airflow.sdk import Connection
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import HostKeyPolicy, Secret
from airflow_sftp_backend._connections.fields import FIELDS, Field, conn_fields, field_behaviour
from airflow_sftp_backend._connections.parser import ConnectionValues, InvalidConnection, parse
from airflow_sftp_backend.backend import BackendConfig, RetryPolicy
from tests.support.airflow.versions import connection_from_uri

PEM = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----\n"


def public(kind: str) -> tuple[str, str]:
    """A public key of that type: its type and its base64."""
    key = asyncssh.generate_private_key(kind)
    return key.get_algorithm(), base64.b64encode(key.public_data).decode()


def make(extra: object = None, conn_type: str | None = "sftp_backend", **columns: Any) -> Connection:
    """A connection to sftp.example.com; ``extra`` is JSON text or what becomes it."""
    text = extra if extra is None or isinstance(extra, str) else json.dumps(extra)
    return Connection(conn_id="partner", conn_type=conn_type, extra=text, **{"host": "sftp.example.com", **columns})


def faults(connection: Connection) -> tuple[str, ...]:
    """Return the problems of a connection."""
    with pytest.raises(InvalidConnection) as caught:
        parse(connection)
    assert all(fault in str(caught.value) for fault in caught.value.problems)
    assert "'partner'" in str(caught.value)
    return caught.value.problems


# ---- the fields of a connection are the settings of the backend


def test_a_host_alone_is_a_valid_connection() -> None:
    config = parse(make())
    assert (config.host, config.port, config.base_path) == ("sftp.example.com", 22, "/")
    assert config.host_key_policy is HostKeyPolicy.STRICT
    assert (config.timeout, config.io_timeout) == (10, 120)
    assert config.known_host_keys is None
    assert config.host_keys_path is None


def test_host_login_and_port_are_read_from_the_connection() -> None:
    config = parse(make(port=2222, login="partner-a", password="swordfish"))
    assert (config.port, config.username, config.password) == (2222, "partner-a", Secret("swordfish"))


VALID_VALUES: list[tuple[str, object, str, object]] = [
    ("base_path", "/outbox", "base_path", "/outbox"),
    ("private_key", PEM, "private_key", Secret(PEM)),
    ("key_file", "~/.ssh/id", "key_file", "~/.ssh/id"),
    ("host_key_policy", "TOFU", "host_key_policy", HostKeyPolicy.TRUST_ON_FIRST_USE),
    ("known_host_keys", "SHA256:abc", "known_host_keys", "SHA256:abc"),
    ("host_keys_path", "/etc/ssh/known", "host_keys_path", "/etc/ssh/known"),
    ("known_hosts", "/etc/ssh/known", "host_keys_path", "/etc/ssh/known"),
    ("conn_timeout", "2.5", "timeout", 2.5),
    ("timeout", 7, "timeout", 7),
    ("io_timeout", 0, "io_timeout", None),
    ("io_timeout", 33, "io_timeout", 33),
    ("banner_timeout", 4, "banner_timeout", 4),
    ("auth_timeout", "5", "auth_timeout", 5),
    ("reconnect_timeout", 0, "reconnect_timeout", 0),
    ("reconnect_timeout", "90", "reconnect_timeout", 90),
    ("keepalive_interval", 0, "keepalive_interval", 0),
    ("compress", "True", "compress", True),
    ("compress", False, "compress", False),
    ("look_for_keys", "false", "look_for_keys", False),
    ("ciphers", ["aes256-ctr", "aes128-ctr"], "ciphers", ("aes256-ctr", "aes128-ctr")),
    ("ciphers", "aes256-ctr, aes128-ctr", "ciphers", ("aes256-ctr", "aes128-ctr")),
    ("disabled_algorithms", {"kex": ["a", "b"]}, "disabled_algorithms", {"kex": ("a", "b")}),
    ("disabled_algorithms", '{"pubkeys": ["c"]}', "disabled_algorithms", {"pubkeys": ("c",)}),
    ("allow_ssh_rsa_sha1", True, "allow_ssh_rsa_sha1", True),
    ("host_proxy_cmd", "ssh -W %h:%p bastion", "proxy_command", "ssh -W %h:%p bastion"),
    ("name_encoding", "latin-1", "name_encoding", "iso8859-1"),
    ("private_key_passphrase", "open sesame", "passphrase", Secret("open sesame")),
    ("max_channels", "4", "max_channels", 4),
    ("max_entries", 1000, "max_entries", 1000),
    ("max_listing_bytes", "5000", "max_listing_bytes", 5000),
    ("max_file_bytes", 6000, "max_file_bytes", 6000),
    ("max_rate", "7000", "max_rate", 7000),
    ("max_sessions", 8, "max_sessions", 8),
    ("conn_retry_attempts", 7, "retry", RetryPolicy(max_attempts=7)),
    ("host_key", "SHA256:abc", "known_host_keys", "SHA256:abc"),
    ("no_host_key_check", "true", "host_key_policy", HostKeyPolicy.AUTO_ADD),
    ("allow_host_key_change", True, "host_keys_path", os.devnull),
]
LOADED = {"key_vault_url", "connection_secret", "azure_conn_id", "jump_conn_id"}
"""Fields that the loader uses, besides the names of secrets and the Azure identity. See test_config_loader.py."""


@pytest.mark.parametrize(("name", "value", "argument", "expected"), VALID_VALUES)
def test_every_extra_field_reaches_the_backend(name: str, value: object, argument: str, expected: object) -> None:
    assert getattr(parse(make({name: value})), argument) == expected


def test_every_field_has_a_valid_value_in_the_table() -> None:
    secret_names = {f"{field.name}_secret" for field in FIELDS if field.accepts_secret_reference}
    used_elsewhere = LOADED | secret_names | {field.name for field in FIELDS if field.column or field.is_identity}
    assert {name for name, *_ in VALID_VALUES} >= {field.name for field in FIELDS} - used_elsewhere


@pytest.mark.parametrize("name", ["private_key_passphrase", "passphrase", "private_key_pass"])
def test_the_passphrase_has_three_accepted_names(name: str) -> None:
    config = parse(make({"private_key": PEM, name: "open sesame"}, password="swordfish"))
    assert (config.passphrase, config.password) == (Secret("open sesame"), Secret("swordfish"))


def test_the_password_decrypts_a_key_without_a_passphrase_field() -> None:
    assert parse(make({"key_file": "/key"}, password="swordfish")).passphrase == Secret("swordfish")
    assert parse(make(password="swordfish")).passphrase is None


def test_the_number_of_connection_attempts_becomes_the_retry_policy() -> None:
    assert parse(make({"conn_retry_attempts": "7"})).retry.max_attempts == 7
    assert parse(make()).retry.max_attempts == 3


def test_every_argument_of_the_backend_has_a_field_or_a_reason() -> None:
    made_of_fields = {field.argument for field in FIELDS} | {
        "host_key_policy",
        "known_host_keys",
        "host_keys_path",
        "retry",
    }
    made_by_code_only = {"pkey", "connect_kwargs", "jump", "notes", "refresh"}
    assert (
        made_of_fields - {None} == {argument.name for argument in dataclasses.fields(BackendConfig)} - made_by_code_only
    )


# ---- what the form saves, what an environment variable holds


@pytest.mark.parametrize("blank", [None, "", "  "])
def test_an_empty_field_counts_as_missing(blank: str | None) -> None:
    unset = {field.name: blank for field in FIELDS if not field.column}
    assert parse(make(unset, login=blank, password=blank)) == parse(make())


def test_the_first_name_with_a_value_takes_precedence() -> None:
    assert parse(make({"timeout": 3, "conn_timeout": 4})).timeout == 4
    assert parse(make({"timeout": 3, "conn_timeout": None})).timeout == 3


def test_all_values_may_be_text() -> None:
    uri = "sftp-backend://me@sftp.example.com:2222/?compress=true&conn_timeout=3&conn_retry_attempts=2&ciphers=a,b"
    config = parse(connection_from_uri(uri, "partner"))
    assert (config.port, config.compress, config.timeout, config.retry.max_attempts) == (2222, True, 3, 2)
    assert config.ciphers == ("a", "b")


def test_unknown_fields_are_one_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "airflow_sftp_backend"):
        assert parse(make({"zeta": "hidden", "alpha": 1})) == parse(make())
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("DEBUG", "connection 'partner': ignoring unknown names in Extra: alpha, zeta")
    ]


@pytest.mark.parametrize(
    ("host", "expected"), [(" sftp.example.com\n", "sftp.example.com"), ("[::1]", "::1"), ("::1", "::1")]
)
def test_blanks_and_brackets_around_a_host_are_removed(host: str, expected: str) -> None:
    assert parse(make(host=host)).host == expected


# ---- connections made for the sftp and ssh hooks

ADOPTED = pytest.mark.parametrize("conn_type", ["sftp", "ssh"])


@ADOPTED
@pytest.mark.parametrize("extra", [{"no_host_key_check": False}, {"host_key_policy": "strict"}], ids=json.dumps)
def test_a_foreign_connection_checks_keys_against_known_hosts(conn_type: str, extra: dict[str, object]) -> None:
    config = parse(make({"key_file": "/key", **extra}, conn_type, login="me"))
    assert config.host_key_policy is HostKeyPolicy.STRICT
    assert (config.known_host_keys, config.host_keys_path) == (None, None)
    assert (config.username, config.key_file) == ("me", "/key")
    assert (config.banner_timeout, config.keepalive_interval) == (30, 30)


@ADOPTED
def test_a_foreign_connection_without_host_key_fields_checks_as_its_hook(
    conn_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    for extra in (None, {}, {"conn_timeout": 3}):
        assert parse(make(extra, conn_type)).host_key_policy is HostKeyPolicy.STRICT
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@ADOPTED
def test_the_password_of_a_foreign_connection_is_stripped_as_by_its_hook(conn_type: str) -> None:
    assert parse(make(None, conn_type, password="swordfish\n")).password == Secret("swordfish")
    assert parse(make(None, password="swordfish\n")).password == Secret("swordfish\n")


@ADOPTED
def test_a_foreign_connection_tries_the_users_keys_as_its_own_hook_does(conn_type: str) -> None:
    assert parse(make(None, conn_type, password="swordfish")).look_for_keys is True
    assert parse(make({"look_for_keys": "false"}, conn_type)).look_for_keys is False
    assert parse(make(password="swordfish")).look_for_keys is None


@ADOPTED
@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
def test_a_host_key_is_pinned(conn_type: str, kind: str) -> None:
    host_key_fields, body = public(kind)
    for form in (f"{host_key_fields} {body}", f" {host_key_fields} {body} somebody@host\n", body):
        config = parse(make({"host_key": form}, conn_type))
        assert (config.known_host_keys, config.host_key_policy) == (f"{host_key_fields} {body}", HostKeyPolicy.STRICT)


def test_a_host_key_may_be_named_after_its_family() -> None:
    host_key_fields, body = public("ecdsa-sha2-nistp384")
    assert parse(make({"host_key": f"ssh-ecdsa {body}"})).known_host_keys == f"{host_key_fields} {body}"


def test_a_fingerprint_may_stand_for_the_host_key() -> None:
    config = parse(make({"host_key": "SHA256:xyz", "known_host_keys": "a ssh-rsa AAAA"}))
    assert config.known_host_keys == "a ssh-rsa AAAA\nSHA256:xyz"


def test_a_host_key_with_the_wrong_type_is_an_error() -> None:
    _, body = public("ssh-ed25519")
    for wrong in (f"ssh-rsa {body}", f"ssh-dss {body}", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-ed25519 nonsense!"):
        (fault,) = faults(make({"host_key": wrong}))
        assert fault.startswith('Host key (Extra "host_key"): ')


UNCHECKED: list[dict[str, object]] = [
    {"no_host_key_check": True},
    {"no_host_key_check": "true"},
    {"ignore_hostkey_verification": "True"},
    {"allow_host_key_change": "true"},
    {"known_hosts": "none"},
    {"known_hosts": "None", "key_file": "/key"},
]


@pytest.mark.parametrize("extra", UNCHECKED, ids=json.dumps)
def test_disabled_host_key_checking_is_logged_with_its_field(
    extra: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="airflow_sftp_backend"):
        config = parse(make(extra, "sftp", port=2222))
    assert config.host_key_policy is HostKeyPolicy.AUTO_ADD
    (record,) = caplog.records  # the one warning, with the line that pins the key, comes with the connection
    field = next(iter(extra)).replace("ignore_hostkey_verification", "no_host_key_check")
    assert record.getMessage() == f"connection 'partner': host keys are not checked ({field})"


def test_a_changed_key_is_accepted_only_where_the_other_hook_accepts_it() -> None:
    assert parse(make({"no_host_key_check": True}, "ssh")).host_keys_path is None
    assert parse(make({"no_host_key_check": True, "allow_host_key_change": True}, "ssh")).host_keys_path == os.devnull
    assert parse(make({"allow_host_key_change": True, "host_keys_path": "/k"}, "ssh")).host_keys_path == os.devnull
    assert parse(make({"known_hosts": "none"}, "sftp")).host_keys_path == os.devnull


CHECKED: list[dict[str, object]] = [
    {"no_host_key_check": False},
    {"no_host_key_check": "false", "ignore_hostkey_verification": "true"},
    {"allow_host_key_change": "False", "host_key_policy": "strict"},
    {"host_key_policy": "strict", "no_host_key_check": "true"},
    {"known_hosts": "none", "host_key": "SHA256:abc"},
]


@pytest.mark.parametrize("extra", CHECKED, ids=json.dumps)
def test_host_keys_are_checked_unless_explicitly_disabled(
    extra: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    assert parse(make(extra, "sftp")).host_key_policy is HostKeyPolicy.STRICT
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_a_configured_key_stays_pinned_if_changes_are_allowed() -> None:
    host_key_fields, body = public("ssh-ed25519")
    config = parse(make({"host_key": body, "allow_host_key_change": True}, "ssh"))
    assert config.known_host_keys == f"{host_key_fields} {body}"


# ---- faults


INVALID_VALUES: list[tuple[str, object]] = [
    ("base_path", ["/"]), ("base_path", "/a/../b"), ("base_path", 5), ("base_path", "a\0b"),
    ("private_key", {"pem": PEM}), ("private_key_passphrase", 12345),
    ("key_file", True), ("host_key_policy", "maybe"), ("host_key_policy", False), ("known_host_keys", ["a"]),
    ("host_keys_path", 1), ("conn_timeout", "soon"), ("conn_timeout", 0), ("conn_timeout", -1), ("conn_timeout", True),
    ("conn_timeout", "nan"), ("conn_timeout", 10**400), ("io_timeout", -1), ("io_timeout", []), ("banner_timeout", 0),
    ("auth_timeout", {}), ("conn_retry_attempts", 0), ("conn_retry_attempts", 2.5), ("keepalive_interval", -1),
    ("compress", "yes"), ("compress", 1), ("look_for_keys", []), ("ciphers", {"a": 1}), ("ciphers", [1]),
    ("disabled_algorithms", ["a"]), ("disabled_algorithms", {"kex": 1}), ("disabled_algorithms", "{"),
    ("allow_ssh_rsa_sha1", "1"), ("host_proxy_cmd", []), ("host_key", 1), ("no_host_key_check", "yes"),
    ("allow_host_key_change", 0), ("reconnect_timeout", -1), ("name_encoding", "utf-16"), ("max_channels", 11),
    ("max_entries", 0), ("max_listing_bytes", 0.5), ("max_file_bytes", "all"), ("max_rate", 0), ("max_sessions", -1),
    *((field.name, ["a"]) for field in FIELDS if field.name.endswith("_secret") or field.is_identity),
    ("key_vault_url", 1), ("azure_conn_id", 1), ("jump_conn_id", 1),
]  # fmt: skip


def test_every_extra_field_has_an_invalid_value_in_the_table() -> None:
    assert {name for name, _ in INVALID_VALUES} == {field.name for field in FIELDS if not field.column}


@pytest.mark.parametrize(("name", "value"), INVALID_VALUES, ids=lambda value: repr(value)[:30])
def test_an_invalid_value_is_reported_with_its_form_label(name: str, value: object) -> None:
    field = next(field for field in FIELDS if field.name == name)
    (fault,) = faults(make({name: value}))
    assert fault.startswith(f'{field.label} (Extra "{name}"): ')
    assert fault.endswith(f"expected {field.type.expected}")


def test_an_invalid_value_is_shown_unless_secret_or_long() -> None:
    assert '"soon" given' in faults(make({"conn_timeout": "soon"}))[0]
    assert "12345" not in faults(make({"private_key_pass": 12345}))[0]
    assert "a number given" in faults(make({"private_key_pass": 12345}))[0]
    assert "text given" in faults(make({"host_key": "x" * 200}))[0]


def test_an_error_uses_the_field_name_of_the_connection() -> None:
    assert faults(make({"timeout": -2})) == (
        'Connection timeout (Extra "timeout"): -2 given; expected a number of seconds above 0',
    )


@pytest.mark.parametrize("host", [None, "", "  "])
def test_a_blank_host_is_an_error(host: str | None) -> None:
    assert faults(make(host=host))[0].startswith("Host: nothing given; expected")


@pytest.mark.parametrize("host", ["sftp://sftp.example.com", "a b", "sftp.example.com/in", "a\0b", 5])
def test_a_host_that_is_not_a_plain_name_is_an_error(host: object) -> None:
    assert faults(make(host=host))[0].endswith("expected the bare name or address of the server")


@pytest.mark.parametrize("port", [0, -1, 65536, "ssh", 22.5, True])
def test_a_port_out_of_range_is_an_error(port: object) -> None:
    assert faults(make(port=port))[0].endswith("given; expected a whole number from 1 to 65535")


@pytest.mark.parametrize("extra", ["{", "base_path=/in", '{"a": 1,}', "'", "1" * 5000])
def test_an_extra_that_is_not_json_is_an_error(extra: str) -> None:
    (fault,) = faults(make(extra))
    assert fault.startswith("Extra: invalid JSON given")
    assert fault.endswith('expected a JSON object such as {"base_path": "/outbox"}')


@pytest.mark.parametrize(("extra", "given"), [("[1]", "a list"), ("5", "a number"), ('"x"', "text"), ("null", "null")])
def test_an_extra_that_is_not_an_object_is_an_error(extra: str, given: str) -> None:
    assert faults(make(extra)) == (f'Extra: {given} given; expected a JSON object such as {{"base_path": "/outbox"}}',)


def test_a_connection_of_another_type_is_an_error() -> None:
    assert faults(make(conn_type="http")) == ('Connection Type: "http" given; expected sftp_backend, sftp or ssh',)
    assert parse(make(conn_type=None)) == parse(make())


def test_two_private_keys_are_an_error() -> None:
    assert "both given" in faults(make({"private_key": PEM, "key_file": "/key"}))[0]


def test_a_base_path_that_the_name_encoding_lacks_is_an_error() -> None:
    assert faults(make({"base_path": "/€", "name_encoding": "latin-1"})) == (
        "Base path and Name encoding: the encoding lacks a character of the path; expected another encoding",
    )
    assert parse(make({"base_path": "/€", "name_encoding": "cp1252"})).base_path == "/€"


def test_a_host_key_with_checking_disabled_is_an_error() -> None:
    _, body = public("ssh-ed25519")
    assert "contradictory" in faults(make({"host_key": body, "no_host_key_check": "true"}, "ssh"))[0]


def test_all_problems_are_reported_at_once() -> None:
    found = faults(make(dict(INVALID_VALUES), host=" ", port=70000, login=5))
    wrong = {name for name, _ in INVALID_VALUES} | {"host", "port", "login"}
    labels = {field.label for field in FIELDS if field.name in wrong}
    assert {fault.split(":")[0].split(" (Extra")[0] for fault in found} >= labels
    with pytest.raises(InvalidConnection) as caught:
        parse(make(host=" ", port=70000))
    assert str(caught.value).splitlines() == [
        "connection 'partner' needs correcting in 2 places:",
        "- Host: nothing given; expected the bare name or address of the server, such as sftp.example.com",
        "- Port: 70000 given; expected a whole number from 1 to 65535",
    ]


def test_the_error_survives_a_process_boundary() -> None:
    error = InvalidConnection("partner", ["Host: nothing given", "Port: 0 given"])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.problems, copy.conn_id) == (str(error), error.problems, "partner")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = sorted({name for field in FIELDS if not field.column for name in field.names} | {"other"})


@given(extra=st.dictionaries(st.sampled_from(NAMES), JSON), port=JSON, host=JSON, login=JSON, password=JSON)
def test_any_connection_is_accepted_or_refused_with_reasons(extra: dict[str, Any], **columns: Any) -> None:
    outcome: BackendConfig | InvalidConnection
    try:
        outcome = parse(make(extra, **columns))
    except InvalidConnection as error:
        outcome = error
    assert outcome.host if isinstance(outcome, BackendConfig) else outcome.problems


# ---- secrets


@dataclass(frozen=True)
class Said:
    """A connection that has a secret under one name."""

    connection: Connection
    secret: str


def with_secret(field: Field, name: str) -> Said:
    """A connection that has a value for that field under that name."""
    secret = f"the value of {name}"
    return Said(make(None, password=secret) if field.column else make({name: secret}), secret)


SECRETS = [with_secret(field, name) for field in FIELDS if field.secret for name in field.names]


@pytest.mark.parametrize("case", SECRETS, ids=lambda case: case.secret)
def test_a_secret_is_recognised_under_each_of_its_names(case: Said) -> None:
    assert ConnectionValues.of(case.connection).secrets == (case.secret,)
    assert case.secret not in repr(parse(case.connection))


def test_secrets_are_found_in_an_invalid_connection() -> None:
    connection = make({"passphrase": "open sesame", "private_key": 5}, host=None)
    assert ConnectionValues.of(connection).secrets == ("open sesame",)
    assert ConnectionValues.of(make("{", password="swordfish")).secrets == ("swordfish",)


# ---- the table


def test_each_field_name_is_unique() -> None:
    names = [name for field in FIELDS for name in field.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_has_a_description(field: Field) -> None:
    assert field.label[0].isupper()
    assert field.description.endswith(".")
    assert field.default is None or field.type.parse(field.default) is not None


def test_the_form_shows_the_common_fields_and_masks_every_secret() -> None:
    form = conn_fields()
    assert set(form) == {field.name for field in FIELDS if field.group}
    shown: dict[str, Any] = {name: entry["schema"] for name, entry in form.items()}
    assert shown["private_key_passphrase"]["format"] == "password"
    assert shown["private_key"]["format"] == shown["known_host_keys"]["format"] == "multiline"
    assert shown["host_key_policy"]["enum"] == ["strict", "tofu", "auto"]
    assert shown["host_key_policy"]["default"] == "strict"
    assert shown["base_path"]["examples"] == ["/outbox"]  # an empty field with a placeholder
    assert "default" not in shown["base_path"]


def test_the_untouched_form_equals_an_empty_connection() -> None:
    shown: dict[str, Any] = {name: entry["schema"] for name, entry in conn_fields().items()}
    assert parse(make({name: schema.get("default") for name, schema in shown.items()})) == parse(make())


def test_the_forms_columns_are_named() -> None:
    behaviour = field_behaviour()
    assert behaviour["hidden_fields"] == ["schema"]
    assert behaviour["relabeling"] == {"login": "Username"}
    assert behaviour["placeholders"]["host"] == "sftp.example.com"
