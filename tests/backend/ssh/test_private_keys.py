"""Load private keys in every format; errors show no key."""

from __future__ import annotations

import base64
import copy
import json
import os
import re
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import asyncssh
import paramiko
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend.backend import AuthenticationFailed, BackendConfig, Secret
from airflow_sftp_backend.backend._pem import repair_pem
from airflow_sftp_backend.backend._ssh.private_keys import (
    config_key,
    export_private_key,
    load_pkey_argument,
    load_private_key,
    picklable_config,
)
from tests.support.servers import OpenSSHServer

TYPES = ("ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-ed25519")
PASSPHRASE = "correct häst"

BCRYPT = {"passphrase": PASSPHRASE, "ignore_few_rounds": True, "rounds": 2}
FORMATS: dict[str, dict[str, Any]] = {
    "openssh": {"format_name": "openssh"},
    "openssh, bcrypt": {"format_name": "openssh", **BCRYPT},
    "openssh, bcrypt, gcm": {
        "format_name": "openssh", **BCRYPT, "cipher_name": "aes256-gcm@openssh.com",
    },
    "pkcs1 or sec1": {"format_name": "pkcs1-pem"},
    "pkcs1 or sec1, aes": {"format_name": "pkcs1-pem", "passphrase": PASSPHRASE, "cipher_name": "aes256-cbc"},
    "pkcs1 or sec1, des3": {"format_name": "pkcs1-pem", "passphrase": PASSPHRASE, "cipher_name": "des3-cbc"},
    "pkcs8": {"format_name": "pkcs8-pem"},
    "pkcs8, pbes2": {"format_name": "pkcs8-pem", "passphrase": PASSPHRASE},
}  # fmt: skip
CASES = [(kind, name) for kind in TYPES for name in FORMATS if kind != "ssh-ed25519" or "pkcs1" not in name]


@cache
def new_key(kind: str) -> asyncssh.SSHKey:
    """The key of that type all tests share."""
    sizes = {"key_size": 2048} if kind == "ssh-rsa" else {}
    return asyncssh.generate_private_key(kind, None, **sizes)


@cache
def written(kind: str, form: str) -> str:
    """Its text in that form."""
    text: bytes = new_key(kind).export_private_key(**FORMATS[form])
    return text.decode()


def one_line(text: str, joint: str) -> str:
    """The text with its line ends replaced."""
    return text.replace("\n", joint)


DAMAGES: dict[str, Callable[[str], str]] = {
    "nothing": lambda text: text,
    "line ends are blanks": lambda text: one_line(text, " "),
    "line ends are gone": lambda text: one_line(text, ""),
    "line ends are literal": lambda text: one_line(text, "\\n"),
    "line ends are literal CRLF": lambda text: one_line(text, "\\r\\n"),
    "line ends are escaped twice": lambda text: one_line(text, "\\\\n"),
    "CRLF": lambda text: one_line(text, "\r\n"),
    "CR": lambda text: one_line(text, "\r"),
    "no final newline": lambda text: text.rstrip("\n"),
    "blank lines": lambda text: one_line(text, "\n\n"),
    "indented": lambda text: one_line(text, "\n    "),
    "quoted": lambda text: f'  "{text}" \n',
    "as JSON": json.dumps,
    "byte order mark": lambda text: f"\ufeff{text}",
    "base64 of the whole": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 of the whole in lines": lambda text: base64.encodebytes(text.encode()).decode(),
    "base64 of the whole for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "base64 of UTF-16": lambda text: base64.b64encode(text.encode("utf-16-le")).decode(),
}


def same_key(found: paramiko.PKey, wanted: asyncssh.SSHKey) -> bool:
    """True if ``found`` is ``wanted``, private part included."""
    data = b"what is signed"
    algorithm = "rsa-sha2-256" if wanted.get_algorithm() == "ssh-rsa" else None
    signature = found.sign_ssh_data(data, algorithm).asbytes()
    return found.asbytes() == wanted.public_data and wanted.convert_to_public().verify(data, signature)


# ---- what is taken


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_every_key_type_loads_in_every_format(kind: str, form: str) -> None:
    assert same_key(load_private_key(written(kind, form), passphrase=PASSPHRASE), new_key(kind))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("form", FORMATS)
def test_line_breaks_damaged_by_forms_and_vaults_are_repaired(form: str, damage: str) -> None:
    damaged = DAMAGES[damage](written("ecdsa-sha2-nistp256", form))
    assert same_key(load_private_key(damaged, passphrase=PASSPHRASE), new_key("ecdsa-sha2-nistp256"))


@given(
    case=st.sampled_from(CASES),
    damages=st.lists(st.sampled_from([name for name in DAMAGES if "base64" not in name]), max_size=3),
    wrapped=st.sampled_from([name for name in DAMAGES if "base64" in name or name == "nothing"]),
)
def test_several_kinds_of_damage_are_repaired_together(case: tuple[str, str], damages: list[str], wrapped: str) -> None:
    whole = text = written(*case)
    for damage in damages:
        text = DAMAGES[damage](text)
    text = DAMAGES[wrapped](text)
    assert repair_pem(text) == repair_pem(whole)


@given(st.text())
def test_repairing_never_fails_and_keeps_other_text(text: str) -> None:
    assert repair_pem(text) == text


@given(st.sampled_from(CASES), st.text(max_size=20), st.text(max_size=20))
def test_repairing_twice_changes_nothing_more(case: tuple[str, str], before: str, after: str) -> None:
    once = repair_pem(before + written(*case) + after)
    assert repair_pem(once) == once


@pytest.mark.parametrize("form", ["openssh", "pkcs1 or sec1", "pkcs8", "pkcs8, pbes2"])
@pytest.mark.parametrize("kind", ["ssh-rsa", "ecdsa-sha2-nistp521"])
def test_a_key_without_its_pem_header_is_loaded(kind: str, form: str) -> None:
    body = "".join(written(kind, form).splitlines()[1:-1])
    assert same_key(load_private_key(body, passphrase=PASSPHRASE), new_key(kind))
    assert same_key(load_private_key(base64.b64decode(body), passphrase=PASSPHRASE), new_key(kind))


def test_a_passphrase_for_a_key_that_needs_none_is_ignored() -> None:
    for form in ("openssh", "pkcs1 or sec1", "pkcs8"):
        assert same_key(load_private_key(written("ssh-rsa", form), passphrase="unneeded"), new_key("ssh-rsa"))


def test_text_bytes_and_secrets_are_taken() -> None:
    text = written("ssh-ed25519", "openssh, bcrypt")
    for source in (text, text.encode(), Secret(text), text.encode("utf-16")):
        assert same_key(load_private_key(source, passphrase=Secret(PASSPHRASE)), new_key("ssh-ed25519"))


def test_a_key_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(written("ssh-ed25519", "pkcs8"))
    for source in (str(path), os.fsencode(path), Secret(str(path)), path):
        assert same_key(load_private_key(source, from_file=True), new_key("ssh-ed25519"))
    assert same_key(load_private_key(path), new_key("ssh-ed25519"))


def test_a_key_file_below_the_home_directory_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "key").write_text(written("ssh-ed25519", "openssh"))
    assert same_key(load_private_key("~/key", from_file=True), new_key("ssh-ed25519"))


# ---- Key Vault


@cache
def x509_certificate(kind: str) -> x509.Certificate:
    """A self-signed X.509 certificate of the key."""
    key = serialization.load_pem_private_key(written(kind, "pkcs8").encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sftp")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1)
    builder = builder.not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
    return builder.not_valid_after(datetime(2027, 1, 1, tzinfo=UTC)).sign(key, hashes.SHA256())


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["ssh-rsa", "ecdsa-sha2-nistp384"])
def test_a_key_exported_with_its_certificate_as_pem_is_loaded(kind: str, damage: str) -> None:
    certificate = x509_certificate(kind).public_bytes(serialization.Encoding.PEM).decode()
    for text in (written(kind, "pkcs8") + certificate * 2, certificate + written(kind, "pkcs8")):
        assert same_key(load_private_key(DAMAGES[damage](text)), new_key(kind))


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_key_exported_with_its_certificate_as_pkcs12_is_loaded(passphrase: str | None) -> None:
    key = serialization.load_pem_private_key(written("ssh-rsa", "pkcs8").encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    packed = pkcs12.serialize_key_and_certificates(b"name", key, x509_certificate("ssh-rsa"), None, encryption)
    for source in (packed, base64.b64encode(packed).decode()):
        assert same_key(load_private_key(source, passphrase=passphrase), new_key("ssh-rsa"))
        if passphrase:
            assert "is encrypted; set the passphrase" in refusal(source)
            assert "wrong" in refusal(source, passphrase="nonsense")


def test_a_pkcs12_file_may_lack_the_key() -> None:
    certificate = x509_certificate("ssh-rsa")
    packed = pkcs12.serialize_key_and_certificates(b"name", None, certificate, None, serialization.NoEncryption())
    assert "without a private key" in refusal(packed)


def test_headers_of_other_programs_are_skipped() -> None:
    text = written("ssh-rsa", "pkcs1 or sec1").replace("KEY-----\n", "KEY-----\nComment: made by hand\n\n", 1)
    assert same_key(load_private_key(text), new_key("ssh-rsa"))


def test_curve_parameters_before_the_key_are_skipped() -> None:
    parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    text = parameters + written("ecdsa-sha2-nistp256", "pkcs1 or sec1")
    assert same_key(load_private_key(one_line(text, " ")), new_key("ecdsa-sha2-nistp256"))


# ---- OpenSSH certificates


@cache
def authority() -> asyncssh.SSHKey:
    """A key that signs certificates."""
    return asyncssh.generate_private_key("ssh-ed25519")


def certificate_line(kind: str, user: str = "somebody") -> str:
    """A certificate for ``user``, as ssh-keygen writes it."""
    line: bytes = authority().generate_user_certificate(new_key(kind), "id", principals=[user]).export_certificate()
    return line.decode()


def certificate_of(key: paramiko.PKey) -> str | None:
    """The type of certificate a key logs in with."""
    blob = getattr(key, "public_blob", None)
    return None if blob is None else blob.key_type


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_certificate_after_the_key_is_loaded(kind: str, damage: str) -> None:
    key = load_private_key(DAMAGES[damage](written(kind, "openssh") + certificate_line(kind)))
    assert certificate_of(key) == f"{kind}-cert-v01@openssh.com"


@pytest.mark.parametrize("kind", TYPES)
def test_a_certificate_in_a_file_beside_the_key_is_loaded(kind: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(written(kind, "pkcs8"))
    (tmp_path / "key-cert.pub").write_text(certificate_line(kind))
    assert certificate_of(load_private_key(tmp_path / "key")) == f"{kind}-cert-v01@openssh.com"


@pytest.mark.parametrize("content", [certificate_line("ssh-rsa"), "nonsense", "", certificate_line("ssh-ed25519")[:99]])
def test_a_certificate_file_of_another_key_is_ignored(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "key").write_text(written("ssh-ed25519", "openssh"))
    (tmp_path / "key-cert.pub").write_text(content)
    assert certificate_of(load_private_key(tmp_path / "key")) is None
    assert f"ignoring {tmp_path / 'key-cert.pub'}: " in caplog.text


def test_an_unreadable_certificate_file_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "key").write_text(written("ssh-ed25519", "openssh"))
    (tmp_path / "key-cert.pub").mkdir()
    assert certificate_of(load_private_key(tmp_path / "key")) is None
    assert f"{tmp_path / 'key-cert.pub'}: cannot be read" in caplog.text


def test_a_certificate_of_another_key_after_the_key_is_refused() -> None:
    assert "certificate of another key" in refusal(written("ssh-ed25519", "openssh") + certificate_line("ssh-rsa"))
    cut_off = certificate_line("ssh-ed25519")[:200]
    assert "certificate that is damaged" in refusal(written("ssh-ed25519", "openssh") + cut_off)


# ---- what is refused


def refusal(source: str | bytes | os.PathLike[str], **arguments: object) -> str:
    """Return the error of an unusable key, and check its text."""
    with pytest.raises(AuthenticationFailed) as caught:
        load_private_key(source, **arguments)  # type: ignore[arg-type] # the callers' arguments fit
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    shown = "".join(traceback.format_exception(caught.value))
    text = os.fspath(source) if isinstance(source, os.PathLike) else source
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    for piece in re.findall(r"[A-Za-z0-9+=]{12,}", text):
        assert piece not in shown
    assert PASSPHRASE not in shown
    return caught.value.message


@pytest.mark.parametrize(("kind", "form"), [case for case in CASES if "," in case[1]])
def test_a_wrong_or_missing_passphrase_is_refused(kind: str, form: str) -> None:
    text = written(kind, form)
    assert "the passphrase is wrong" in refusal(text, passphrase="wrong")
    assert "is encrypted; set the passphrase" in refusal(text)
    assert "is encrypted; set the passphrase" in refusal(text, passphrase="")


def dsa_pem() -> str:
    """A DSA key."""
    form = serialization.PrivateFormat.TraditionalOpenSSL
    key = dsa.generate_private_key(2048)
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def pkcs8(key: dsa.DSAPrivateKey | ed448.Ed448PrivateKey | ec.EllipticCurvePrivateKey) -> str:
    """A key in PKCS#8."""
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def openssh_of(kind: str) -> str:
    """Begin a key file of a type that tests cannot create."""

    def string(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    public = string(string(kind.encode()) + string(b"x" * 32))
    data = b"openssh-key-v1\0" + string(b"none") + string(b"none") + string(b"") + b"\0\0\0\1" + public + string(b"")
    return (
        "-----BEGIN OPENSSH PRIVATE KEY-----\n"
        f"{base64.encodebytes(data).decode()}-----END OPENSSH PRIVATE KEY-----\n"
    )  # fmt: skip


PUTTY = "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: me\nPublic-Lines: 2\nAAAAC3NzaC1lZDI1NTE5AAAA\n"
OTHERS: dict[str, tuple[Callable[[], str], str]] = {
    "empty": (lambda: " \n", "is empty"),
    "PuTTY": (lambda: PUTTY, "puttygen KEY.ppk -O private-openssh -o KEY"),
    "PuTTY in base64": (lambda: base64.b64encode(PUTTY.encode()).decode(), "PuTTY key"),
    "public": (lambda: new_key("ssh-rsa").export_public_key().decode(), "is a public key"),
    "public, PEM": (lambda: new_key("ssh-rsa").export_public_key("pkcs8-pem").decode(), "is a public key"),
    "public, RFC 4716": (lambda: new_key("ssh-rsa").export_public_key("rfc4716").decode(), "is a public key"),
    "public, base64 alone": (lambda: new_key("ssh-rsa").export_public_key().decode().split()[1], "is a public key"),
    "OpenSSH certificate": (lambda: certificate_line("ssh-ed25519"), "is a certificate only"),
    "X.509 certificate": (
        lambda: x509_certificate("ssh-rsa").public_bytes(serialization.Encoding.PEM).decode(), "is a certificate only",
    ),
    "DSA": (dsa_pem, "is a DSA key"),
    "DSA, PKCS#8": (lambda: pkcs8(dsa.generate_private_key(2048)), "is a DSA key"),
    "DSA, OpenSSH": (lambda: openssh_of("ssh-dss"), "is a DSA key"),
    "token": (lambda: openssh_of("sk-ssh-ed25519@openssh.com"), "hardware token"),
    "ssh.com": (
        lambda: "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nP2/56wAAAgIA\n---- END SSH2 ENCRYPTED PRIVATE KEY ----\n",
        "ssh-keygen -i",
    ),
    "unknown type": (lambda: pkcs8(ed448.Ed448PrivateKey.generate()), "encryption; supported are RSA, ECDSA"),
    "unknown type, OpenSSH": (lambda: openssh_of("ssh-xmss@openssh.com"), "encryption; supported are RSA, ECDSA"),
    "unknown curve": (lambda: pkcs8(ec.generate_private_key(ec.SECP256K1())), "elliptic curve secp256k1"),
    "cut off": (lambda: written("ssh-rsa", "openssh")[:400], "is cut off"),
    "its middle is missing": (
        lambda: written("ssh-rsa", "openssh")[:400] + written("ssh-rsa", "openssh")[800:], "is damaged",
    ),
    "its end is missing": (
        lambda: re.sub(r"(.{80})-----END", "-----END", written("ssh-rsa", "pkcs8"), flags=re.DOTALL), "is damaged",
    ),
    "a path": (lambda: "/home/somebody/.ssh/id_rsa", "use key_file"),
    "a password": (lambda: "hunter2hunter2hunter2", "is not a private key"),
    "nonsense": (lambda: "-----BEGIN nothing", "is cut off or mixed up"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_an_unusable_key_is_named_by_its_kind(case: str, tmp_path: Path) -> None:
    make, expected_text = OTHERS[case]
    text = make()
    assert expected_text in refusal(text)
    (tmp_path / "key").write_text(text)
    message = refusal(tmp_path / "key")
    assert expected_text in message
    assert str(tmp_path / "key") in message


def test_unknown_binary_data_is_refused() -> None:
    assert "neither text nor a known binary format" in refusal(b"\xff\x80\x81" * 40)
    assert "is empty" in refusal(b"")


def test_an_unreadable_key_file_is_refused(tmp_path: Path) -> None:
    assert f"{str(tmp_path / 'none')!r} does not exist on this machine" in refusal(tmp_path / "none")
    assert "is a directory" in refusal(tmp_path)
    assert "cannot be read: Not a directory" in refusal(Path("/dev/null/key"))
    assert "does not exist" in refusal("~nobody-by-this-name/key", from_file=True)
    assert "NUL character in its name" in refusal("a\0b", from_file=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_key_file_without_read_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(written("ssh-ed25519", "openssh"))
    (tmp_path / "key").chmod(0)
    assert "may not be read by user id" in refusal(tmp_path / "key")


def test_a_source_of_another_type_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="not int"):
        load_private_key(1)  # type: ignore[arg-type] # that is the point


# ---- the backend's settings


def test_the_configured_key_is_loaded(tmp_path: Path) -> None:
    text, path = written("ssh-ed25519", "openssh, bcrypt"), tmp_path / "key"
    path.write_text(text)
    pkey = load_private_key(text, passphrase=PASSPHRASE)
    secret = Secret(PASSPHRASE)
    assert config_key(BackendConfig(host="h")) is None
    assert config_key(BackendConfig(host="h", pkey=pkey)) is pkey
    assert config_key(BackendConfig(host="h", private_key=Secret(text), passphrase=secret)) == pkey
    assert config_key(BackendConfig(host="h", key_file=str(path), passphrase=secret)) == pkey


def test_a_key_that_cannot_be_used_names_the_server(tmp_path: Path) -> None:
    for config in (
        BackendConfig(host="h", private_key=Secret("nonsense")),
        BackendConfig(host="h", key_file=str(tmp_path / "none")),
    ):
        with pytest.raises(AuthenticationFailed) as caught:
            config_key(config)
        assert caught.value.server == "sftp://h:22"
        assert caught.value.__context__ is None


def test_pkey_may_be_a_key_or_its_text() -> None:
    text = written("ecdsa-sha2-nistp256", "pkcs8")
    pkey = load_private_key(text)
    assert load_pkey_argument(pkey) is pkey
    assert load_pkey_argument(text) == load_pkey_argument(Secret(text)) == pkey
    assert load_pkey_argument(written("ecdsa-sha2-nistp256", "openssh, bcrypt"), PASSPHRASE) == pkey


@pytest.mark.parametrize("value", ["", "nonsense", Secret("nonsense"), 1, object()])
def test_an_unreadable_pkey_is_a_value_error(value: object) -> None:
    with pytest.raises(ValueError, match="pkey") as caught:
        load_pkey_argument(value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("kind", TYPES)
def test_pkey_must_be_able_to_sign(kind: str) -> None:
    public = paramiko.PKey.from_type_string(kind, new_key(kind).public_data)
    with pytest.raises(ValueError, match="public key"):
        load_pkey_argument(public)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("certified", [False, True])
def test_an_exported_key_is_the_same_key(kind: str, certified: bool) -> None:
    pkey = load_private_key(written(kind, "pkcs8") + (certificate_line(kind) if certified else ""))
    again = load_private_key(export_private_key(pkey))
    assert again == pkey
    assert same_key(again, new_key(kind))
    assert certificate_of(again) == certificate_of(pkey)
    assert (certificate_of(again) is not None) == certified


def test_a_key_made_by_paramiko_is_exported_too() -> None:
    for pkey in (paramiko.RSAKey.generate(2048), paramiko.ECDSAKey.generate(bits=384)):
        assert load_private_key(export_private_key(pkey)) == pkey


def test_an_agent_key_is_not_exported() -> None:
    agent = paramiko.agent.Agent.__new__(paramiko.agent.Agent)  # connected to none
    agent_key = paramiko.AgentKey(agent, new_key("ssh-ed25519").public_data)
    with pytest.raises(TypeError, match="AgentKey cannot be copied"):
        export_private_key(agent_key)
    assert load_pkey_argument(agent_key) is agent_key


def test_picklable_settings_can_be_copied() -> None:
    pkey = load_private_key(written("ssh-ed25519", "openssh") + certificate_line("ssh-ed25519"))
    config = BackendConfig(host="h", pkey=pkey, passphrase=Secret("unneeded"))
    again = copy.deepcopy(picklable_config(config))
    found = config_key(again)
    assert found == pkey
    assert certificate_of(found) == certificate_of(pkey)
    plain = BackendConfig(host="h", key_file="~/key")
    assert picklable_config(plain) is plain


# ---- logging in


@pytest.fixture(scope="module")
def server(sshd: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSSHServer]:
    """sshd that accepts plain keys except Ed25519, and all certificates."""
    assert sshd
    folder = tmp_path_factory.mktemp("keys")
    plain = [new_key(kind).export_public_key() for kind in TYPES if kind != "ssh-ed25519"]
    (folder / "authorized").write_bytes(b"".join(plain))
    (folder / "ca.pub").write_bytes(authority().export_public_key())
    options = {"AuthorizedKeysFile": str(folder / "authorized"), "TrustedUserCAKeys": str(folder / "ca.pub")}
    with OpenSSHServer(options) as server:
        yield server


def log_in(server: OpenSSHServer, pkey: paramiko.PKey) -> bool:
    """True once logged in."""
    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.MissingHostKeyPolicy())
        client.connect(server.host, server.port, server.username, pkey=pkey, allow_agent=False, look_for_keys=False)
        transport = client.get_transport()
        return transport is not None and transport.is_authenticated()


@pytest.mark.parametrize(("kind", "form"), [case for case in CASES if case[0] != "ssh-ed25519" and "8" in case[1]])
def test_a_loaded_key_logs_in(server: OpenSSHServer, kind: str, form: str) -> None:
    assert log_in(server, load_private_key(written(kind, form), passphrase=PASSPHRASE))


@pytest.mark.parametrize("kind", TYPES)
def test_a_certificate_logs_in(server: OpenSSHServer, kind: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(written(kind, "openssh"))
    (tmp_path / "key-cert.pub").write_text(certificate_line(kind, server.username))
    assert log_in(server, load_private_key(tmp_path / "key"))
    assert log_in(server, load_private_key(export_private_key(load_private_key(tmp_path / "key"))))


def test_a_key_nobody_authorised_does_not_log_in(server: OpenSSHServer) -> None:
    with pytest.raises(paramiko.AuthenticationException):
        log_in(server, load_private_key(written("ssh-ed25519", "openssh")))


def test_an_ed25519_key_logs_in(openssh: OpenSSHServer) -> None:
    assert log_in(openssh, load_private_key(openssh.client_key))


def test_an_expired_certificate_does_not_log_in(server: OpenSSHServer) -> None:
    end = datetime.now(UTC) - timedelta(hours=1)
    line = authority().generate_user_certificate(
        new_key("ssh-ed25519"), "id", principals=[server.username], valid_before=end.timestamp()
    )
    with pytest.raises(paramiko.AuthenticationException):
        log_in(server, load_private_key(written("ssh-ed25519", "openssh") + line.export_certificate().decode()))
