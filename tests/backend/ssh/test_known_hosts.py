"""Trust a host key only for a specific known_hosts line."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    SSHCertificateBuilder,
    SSHCertificateType,
    load_ssh_private_key,
    load_ssh_public_key,
)
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_sftp_backend.backend._ssh.host_certificates import fingerprint, key_type, plain_key
from airflow_sftp_backend.backend._ssh.host_key_verification import HostKeyStatus, decide
from airflow_sftp_backend.backend._ssh.known_hosts import KnownHosts, host_pattern, known_hosts_line
from tests.support.host_keys import AUTHORITY, HOST, NAME, NOW, PORT, blob, certificate, new_key, text

TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")


def verdict_of(
    lines: str, key: bytes, host: str = HOST, port: int = PORT, **arguments: Any
) -> tuple[HostKeyStatus, str]:
    """Return the decision that known_hosts ``lines`` give for ``key``."""
    found = decide(KnownHosts.parse(lines, **arguments), host, port, key, NOW)
    return found.status, found.reason


def trust(lines: str, key: bytes, host: str = HOST, port: int = PORT, **arguments: Any) -> HostKeyStatus:
    """Whether ``lines`` vouch for ``key``."""
    return verdict_of(lines, key, host, port, **arguments)[0]


# ---- keys


@pytest.mark.parametrize("kind", TYPES)
def test_fingerprints_and_types_agree_with_asyncssh(kind: str) -> None:
    assert fingerprint(blob(kind)) == new_key(kind).get_fingerprint()
    assert key_type(blob(kind)) == kind
    assert plain_key(blob(kind)) == blob(kind)


@pytest.mark.parametrize("kind", TYPES)
def test_a_certificate_has_the_fingerprint_of_its_key(kind: str) -> None:
    assert fingerprint(certificate(kind=kind)) == fingerprint(blob(kind))
    assert plain_key(certificate(kind=kind)) == blob(kind)
    assert known_hosts_line(HOST, PORT, certificate(kind=kind)) == f"{NAME} {text(kind)}"


@given(
    st.binary(max_size=80).filter(lambda data: data[4:5] not in b"es")  # the type of a key that is not known here
    | st.builds(lambda size, tail: blob()[:size] + tail, st.integers(0, 50), st.binary(max_size=9)).filter(
        lambda data: len(data) != len(blob())  # any 32 bytes are a key
    )
)
@example(blob()[:15])
@example(blob() + bytes(4))
def test_a_malformed_key_is_a_value_error(data: bytes) -> None:
    for ask in (key_type, fingerprint, plain_key):
        with pytest.raises(ValueError, match="not a"):
            ask(data)


@pytest.mark.parametrize(
    ("host", "port", "pattern"),
    [("Example.com", 22, "example.com"), ("example.com", 2222, "[example.com]:2222"), ("::1", 22, "::1"),
     ("::1", 23, "[::1]:23")],
)  # fmt: skip
def test_host_patterns_include_a_port_other_than_22(host: str, port: int, pattern: str) -> None:
    assert host_pattern(host, port) == pattern
    line = known_hosts_line(host, port, blob())
    assert line == f"{pattern} {text()}"
    assert trust(line, blob(), host, port) is HostKeyStatus.TRUSTED


# ---- which lines count for a host


@pytest.mark.parametrize(
    ("names", "host", "port", "counts"),
    [
        ("host", "host", 22, True),
        ("HOST", "host", 22, True),
        ("host", "HOST", 22, True),
        ("other,host", "host", 22, True),
        ("host", "hosts", 22, False),
        ("host", "shost", 22, False),
        ("[host]:22", "host", 22, False),
        ("[host]:2222", "host", 2222, True),
        ("[host]:2222", "host", 2223, False),
        ("[host]:2222", "host", 22, False),
        ("host", "host", 2222, True),
        ("*", "host", 22, True),
        ("*", "host", 2222, True),
        ("*.example.com", "a.example.com", 22, True),
        ("*.example.com", "a.b.example.com", 22, True),
        ("*.example.com", "example.com", 22, False),
        ("*.example.com", "a.example.com", 2222, True),
        ("[*.example.com]:*", "a.example.com", 2222, True),
        ("h?st", "host", 22, True),
        ("h?st", "hst", 22, False),
        ("h[o]st", "host", 22, False),
        ("h.st", "host", 22, False),
        ("*,!host", "host", 22, False),
        ("!host,*", "host", 22, False),
        ("!h*,host", "host", 22, False),
        ("!other,host", "host", 22, True),
        ("!other", "host", 22, False),
        ("*.10.in-addr", "10.0.0.1", 22, False),
        ("10.0.*", "10.0.0.1", 22, True),
        ("2001:db8::1", "2001:DB8::1", 22, True),
    ],
)
def test_host_names_and_patterns_are_matched(names: str, host: str, port: int, counts: bool) -> None:
    line = f"{names} {text()}"
    assert trust(line, blob(), host, port) is (HostKeyStatus.TRUSTED if counts else HostKeyStatus.UNKNOWN)


def hashed(name: str) -> str:
    """The name as `ssh-keygen -H` writes it."""
    salt = bytes(range(20))
    digest = hmac.digest(salt, name.encode(), "sha1")
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def test_hashed_host_names_are_matched() -> None:
    line = f"{hashed(NAME)} {text()} comment"
    assert trust(line, blob()) is HostKeyStatus.TRUSTED
    assert trust(line, blob(), HOST, 22) is HostKeyStatus.UNKNOWN
    assert trust(f"{hashed('host')} {text()}", blob(), "HOST", 22) is HostKeyStatus.TRUSTED
    assert "a hashed name" in verdict_of(line, blob(), "other")[1]


def test_every_listed_key_of_a_type_is_trusted() -> None:
    lines = f"{NAME} {text()}\n{NAME} {text(number=1)}\n"
    assert verdict_of(lines, blob()) == (HostKeyStatus.TRUSTED, "known_host_keys line 1")
    assert verdict_of(lines, blob(number=1)) == (HostKeyStatus.TRUSTED, "known_host_keys line 2")


@pytest.mark.parametrize("other", [("ssh-ed25519", 1), ("ssh-rsa", 0)])
def test_an_unlisted_key_of_a_known_host_is_a_changed_key(other: tuple[str, int]) -> None:
    found, reason = verdict_of(f"# comment\n\n{NAME} {text()}", blob(*other))
    assert found is HostKeyStatus.CHANGED
    assert f"ssh-ed25519 {fingerprint(blob())} (known_host_keys line 3)" in reason


def test_a_line_without_port_applies_if_no_line_has_the_port() -> None:
    portless = f"{HOST} {text()}"
    assert trust(portless, blob()) is HostKeyStatus.TRUSTED
    assert trust(portless, blob(number=1)) is HostKeyStatus.UNKNOWN
    assert trust(f"{portless}\n{NAME} {text(number=1)}", blob()) is HostKeyStatus.CHANGED


def test_a_configured_line_without_port_applies_to_all_ports() -> None:
    assert trust(f"{HOST} {text()}", blob(number=1), pinned=True) is HostKeyStatus.CHANGED
    assert trust(f"other {text()}", blob(number=1), pinned=True) is HostKeyStatus.UNKNOWN


def test_a_key_known_under_another_name_is_named() -> None:
    found, reason = verdict_of(f"10.0.0.1 {text()}", blob())
    assert found is HostKeyStatus.UNKNOWN
    assert "known for '10.0.0.1' (known_host_keys line 1)" in reason


@pytest.mark.parametrize("pinned", [False, True])
def test_an_unlisted_host_is_unknown(pinned: bool) -> None:
    for lines in ("", "# comment", f"other {text(number=1)}"):
        assert trust(lines, blob(), pinned=pinned) is HostKeyStatus.UNKNOWN


def test_known_types_come_in_the_order_of_the_lines() -> None:
    lines = "\n".join(f"{NAME} {text(kind)}" for kind in ("ssh-rsa", "ssh-ed25519", "ssh-rsa"))
    known = KnownHosts.parse(f"{lines}\nother {text('ecdsa-sha2-nistp256')}\n@revoked * {text('ecdsa-sha2-nistp521')}")
    assert known.known_types(HOST, PORT) == ("ssh-rsa", "ssh-ed25519")
    assert known.known_types("elsewhere", 22) == ()


# ---- pinned keys and fingerprints


@pytest.mark.parametrize(
    "line",
    [
        text(),
        f"{text()} comment of words",
        fingerprint(blob()),
        f"{fingerprint(blob())}=",
        f"{NAME} {fingerprint(blob())}",
        f"*.example.com {fingerprint(blob())} (ED25519)",
        f"256 {fingerprint(blob())} root@host (ED25519)",
    ],
)
def test_a_configured_key_or_fingerprint_needs_no_host(line: str) -> None:
    known = KnownHosts.parse(line, pinned=True)
    assert known.problems == ()
    assert decide(known, HOST, PORT, blob(), NOW).status is HostKeyStatus.TRUSTED
    assert decide(known, HOST, PORT, blob(number=1), NOW).status is HostKeyStatus.CHANGED


@pytest.mark.parametrize("line", [text(), fingerprint(blob()), f"256 {fingerprint(blob())} root@host (ED25519)"])
def test_in_a_file_a_key_or_fingerprint_needs_a_host(line: str) -> None:
    known = KnownHosts.parse(line, source="/file")
    assert known.problems == ("/file line 1: a key or fingerprint without a host name before it",)
    assert decide(known, HOST, PORT, blob(), NOW).status is HostKeyStatus.UNKNOWN
    assert trust(f"{NAME} {fingerprint(blob())}", blob()) is HostKeyStatus.TRUSTED


def test_a_fingerprint_may_name_its_key_type() -> None:
    known = KnownHosts.parse(f"{NAME} {fingerprint(blob('ssh-rsa'))} (RSA)")
    assert known.known_types(HOST, PORT) == ("ssh-rsa",)
    found, reason = verdict_of(f"{NAME} {fingerprint(blob('ssh-rsa'))}", blob())
    assert found is HostKeyStatus.CHANGED
    assert "end its line with the type" in reason


# ---- lines that cannot be read


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (NAME, "no key"),
        ("@revoked", "no key"),
        (f"@trusted {NAME} {text()}", "unknown marker '@trusted'"),
        (f"@cert-authority @revoked {NAME} {text()}", "unknown key type"),
        (f"{NAME} ssh-ed25519", "no key after the type"),
        (f"{NAME} {text()[:-9]}", "damaged or cut off"),
        (f"{NAME} {text()}AAAA", "damaged or cut off"),
        (f"{NAME} ssh-ed25519 !!!!", "damaged or cut off"),
        (
            f"{NAME} {text().replace('ssh-ed25519', 'ssh-rsa')}",
            "the type is ssh-rsa, but the key is of type ssh-ed25519",
        ),
        (f"{NAME} {text().split()[1]}", "unknown key type"),
        (f"{NAME} 1024 35 1234567890", "SSH version 1"),
        (f"{NAME} MD5:{':'.join(['ab'] * 16)}", "MD5"),
        (f"{NAME} SHA256:abc", "43 characters"),
        (f"|1|AAAA|BBBB {text()}", "hashed host name"),
        (f"|2|{hashed('x')[3:]} {text()}", "hashed host name"),
        (f"| {text()}", "hashed host name"),
    ],
)
def test_an_unreadable_line_is_reported_and_trusts_nothing(line: str, why: str) -> None:
    known = KnownHosts.parse(f"# comment\r\n{line}\r\n{NAME} {text(number=1)}\r\n", source="/etc/known_hosts")
    (problem,) = known.problems
    assert problem.startswith("/etc/known_hosts line 2: ")
    assert why in problem
    assert decide(known, HOST, PORT, blob(number=1), NOW).status is HostKeyStatus.TRUSTED
    assert decide(known, HOST, PORT, blob(), NOW).status is not HostKeyStatus.TRUSTED


@given(st.text(), st.booleans())
@example("\f", False)
def test_any_text_can_be_parsed_and_trusts_nothing_by_chance(lines: str, pinned: bool) -> None:
    known = KnownHosts.parse(lines, pinned=pinned)
    assert decide(known, HOST, PORT, blob(), NOW).status is not HostKeyStatus.TRUSTED
    assert all(problem.startswith("known_host_keys line ") for problem in known.problems)


@given(st.data())
def test_a_key_with_one_changed_character_is_not_trusted(data: st.DataObject) -> None:
    line = f"{NAME} {text()}"
    at = data.draw(st.integers(line.index("AAAA"), len(line) - 1))
    new = data.draw(st.characters(codec="ascii").filter(lambda c: c != line[at]))
    assert trust(line[:at] + new + line[at + 1 :], blob()) is not HostKeyStatus.TRUSTED


# ---- revoked keys and certificates


@pytest.mark.parametrize("signer", TYPES)
@pytest.mark.parametrize("kind", TYPES)
def test_a_certificate_by_a_listed_authority_is_trusted(kind: str, signer: str) -> None:
    lines = f"@cert-authority *.example.com {text(signer, 9)}"
    key = certificate(HOST, "other", kind=kind, signer=signer, valid_after=int(NOW), valid_before=int(NOW) + 1)
    assert verdict_of(lines, key) == (HostKeyStatus.TRUSTED, "certified by the authority of known_host_keys line 1")


def test_an_authority_may_be_pinned_by_its_fingerprint() -> None:
    assert trust(f"@cert-authority * {fingerprint(blob(number=9))}", certificate(HOST)) is HostKeyStatus.TRUSTED
    assert (
        trust(f"@cert-authority {fingerprint(blob(number=9))}", certificate(HOST), pinned=True) is HostKeyStatus.TRUSTED
    )


def with_critical_option() -> bytes:
    """A certificate with an option no host certificate may have."""
    key = load_ssh_public_key(text().encode())
    assert isinstance(key, Ed25519PublicKey)
    builder = SSHCertificateBuilder().public_key(key).valid_principals([HOST.encode()])
    builder = builder.type(SSHCertificateType.HOST).key_id(b"id").valid_after(0).valid_before(1 << 40)
    builder = builder.add_critical_option(b"force-command", b"")
    signer = load_ssh_private_key(new_key(number=9).export_private_key(), None)
    assert isinstance(signer, Ed25519PrivateKey)
    line = builder.sign(signer).public_bytes()
    return base64.b64decode(line.split()[1])


def with_wrong_signature() -> bytes:
    good = certificate(HOST)
    return good[:-1] + bytes([good[-1] ^ 1])


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "expired": (lambda: certificate(HOST, valid_before=int(NOW)), "it has expired"),
    "not valid yet": (lambda: certificate(HOST, valid_after=int(NOW) + 1), "it is not valid yet"),
    "another host": (lambda: certificate("sftp.example.org"), "it is valid for 'sftp.example.org' only"),
    "no principals": (lambda: certificate(), "it is valid for no host"),
    "a user's": (
        lambda: new_key(number=9).generate_user_certificate(new_key(), "id", principals=[HOST]).public_data,
        "it is not a host certificate",
    ),
    "critical options": (with_critical_option, "it has critical options"),
    "wrong signature": (with_wrong_signature, "its signature is wrong"),
    "another key inside": (
        lambda: certificate(HOST).replace(blob()[-32:], blob(number=1)[-32:]), "its signature is wrong",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_certificate_proves_nothing(case: str) -> None:
    make, why = BAD[case]
    found, reason = verdict_of(AUTHORITY, make())
    assert found is HostKeyStatus.CHANGED
    assert f"the certificate by the authority of known_host_keys line 1 is not valid: {why}" in reason


@pytest.mark.parametrize("case", [case for case in BAD if case != "another key inside"])
def test_the_plain_key_of_a_bad_certificate_can_still_be_trusted(case: str) -> None:
    assert trust(f"{AUTHORITY}\n{NAME} {text()}", BAD[case][0]()) is HostKeyStatus.TRUSTED
    assert trust(f"{NAME} {text()}", BAD[case][0]()) is HostKeyStatus.TRUSTED
    assert trust(f"{NAME} {text(number=1)}", BAD[case][0]()) is HostKeyStatus.CHANGED


def test_a_certificate_signed_with_sha1_proves_nothing() -> None:
    lines = f"@cert-authority * {text('ssh-rsa', 9)}"
    found, reason = verdict_of(lines, certificate(HOST, signer="ssh-rsa", sig_alg="ssh-rsa"))
    assert found is HostKeyStatus.CHANGED
    assert "signed with SHA-1" in reason


def test_principals_may_be_patterns() -> None:
    assert trust(AUTHORITY, certificate("*.example.com")) is HostKeyStatus.TRUSTED
    assert trust(AUTHORITY, certificate("*.example.org")) is HostKeyStatus.CHANGED


def test_an_authority_certifies_only_its_own_hosts() -> None:
    assert trust(AUTHORITY, certificate("sftp.example.org"), "sftp.example.org", 22) is HostKeyStatus.UNKNOWN
    assert trust(f"@cert-authority *.example.com {text(number=8)}", certificate(HOST)) is HostKeyStatus.CHANGED
    assert trust(AUTHORITY, blob(number=9)) is HostKeyStatus.CHANGED, "an authority's key is no host's key"
    assert trust(f"{NAME} {text(number=9)}", certificate(HOST)) is HostKeyStatus.CHANGED, "a host's key is no authority"


def test_a_plain_key_in_place_of_a_certificate_is_a_changed_key() -> None:
    assert trust(AUTHORITY, blob()) is HostKeyStatus.CHANGED
    assert trust(f"{AUTHORITY}\n{NAME} {text()}", blob()) is HostKeyStatus.TRUSTED


def test_a_certificate_signed_with_a_certificate_is_refused() -> None:
    inner = certificate(HOST)
    size = len(blob(number=9)).to_bytes(4, "big")
    nested = certificate(HOST).replace(size + blob(number=9), len(inner).to_bytes(4, "big") + inner)
    with pytest.raises(ValueError, match="signed with another certificate"):
        plain_key(nested)


def test_a_certificate_of_an_unknown_type_is_refused() -> None:
    made = certificate(HOST).replace(b"\0\0\0\x20ssh-ed25519-cert", b"\0\0\0\x20ssh-ed25520-cert")
    with pytest.raises(ValueError, match="unknown type"):
        decide(KnownHosts.parse(""), HOST, PORT, made, NOW)


def test_types_of_certificates_come_first_where_an_authority_is_known() -> None:
    types = KnownHosts.parse(f"{NAME} {text()}\n{AUTHORITY}").known_types(HOST, PORT)
    assert "ssh-ed25519-cert-v01@openssh.com" in types
    assert types[-1] == "ssh-ed25519"


def test_a_certificate_in_place_of_a_host_key_is_a_problem() -> None:
    line = f"{NAME} ssh-ed25519-cert-v01@openssh.com {base64.b64encode(certificate(HOST)).decode()}"
    known = KnownHosts.parse(line)
    assert "list its authority" in known.problems[0]
    assert decide(known, HOST, PORT, certificate(HOST), NOW).status is HostKeyStatus.UNKNOWN


@pytest.mark.parametrize("revoked", [text(), fingerprint(blob())])
@pytest.mark.parametrize("names", ["*", NAME, HOST, hashed(NAME)])
def test_a_revoked_key_is_refused_even_if_listed(names: str, revoked: str) -> None:
    lines = f"{NAME} {text()}\n{AUTHORITY}\n@revoked {names} {revoked}"
    for key in (blob(), certificate(HOST)):
        found, reason = verdict_of(lines, key)
        assert found is HostKeyStatus.REVOKED
        assert "the key is revoked by known_host_keys line 3" in reason


def test_a_certificate_of_a_revoked_authority_is_refused() -> None:
    lines = f"{NAME} {text()}\n@revoked * {text(number=9)}\n{AUTHORITY}"
    found, reason = verdict_of(lines, certificate(HOST))
    assert found is HostKeyStatus.REVOKED
    assert "the authority of the certificate is revoked by known_host_keys line 2" in reason
    assert trust(lines, blob()) is HostKeyStatus.TRUSTED


def test_a_key_revoked_elsewhere_is_not_revoked_here() -> None:
    assert trust(f"{NAME} {text()}\n@revoked other {text()}", blob()) is HostKeyStatus.TRUSTED


def test_a_key_may_be_revoked_by_its_certificate() -> None:
    line = f"@revoked * ssh-ed25519-cert-v01@openssh.com {base64.b64encode(certificate(HOST)).decode()}"
    assert trust(f"{line}\n{NAME} {text()}", blob()) is HostKeyStatus.REVOKED


# ---- separators


@pytest.mark.parametrize("other", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u2028", "\u3000"], ids=ascii)
def test_blank_and_tab_alone_separate_the_fields_of_a_line(other: str) -> None:
    kind, key = text().split()
    for line in (f"{NAME}{other}{kind} {key}", f"{NAME} {kind}{other}{key}", f"# comment{other}{NAME} {kind} {key}"):
        known = KnownHosts.parse(line)
        assert decide(known, HOST, PORT, blob(), NOW).status is HostKeyStatus.UNKNOWN
    for separator in (" ", "\t", " \t "):
        assert trust(f"{NAME}{separator}{kind}{separator}{key}\r\n", blob()) is HostKeyStatus.TRUSTED


def test_a_lone_carriage_return_does_not_end_a_line() -> None:
    hidden = f"{NAME} {text(number=1)}\r{NAME} {text()}"
    known = KnownHosts.parse(hidden)
    assert decide(known, HOST, PORT, blob(), NOW).status is not HostKeyStatus.TRUSTED
