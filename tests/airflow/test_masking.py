"""Compute the visible parts of a secret in a masked log.

`longest_run` follows every choice that a pattern of alternatives could make at any place of a text. It knows of nothing
but the masks, so that no result here depends on the hash seed of a process.
"""

from __future__ import annotations

import base64
import json
import random
import re
import struct
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final
from urllib.parse import quote, quote_plus

import pytest
from airflow.sdk import Connection
from airflow.utils import cli
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from packaging.version import Version

from airflow_sftp_backend import _masking, version_compat
from airflow_sftp_backend._cancellation import CancellableTask, TaskKilled
from airflow_sftp_backend._connections.fields import FIELDS
from airflow_sftp_backend._masking import mask_secrets
from airflow_sftp_backend.hooks import SFTPBackendHook
from tests.support.airflow.versions import (
    AIRFLOW_VERSION,
    _secrets_masker,
    connection_as_json,
    mask_secret,
    redact,
    reset_secrets_masker,
    should_hide_value_for_key,
)
from tests.support.airflow.visible_runs import Masks, Shown, longest_run, longest_run_of_a_cut

MOST_OF_A_KEY: Final = 7
"""Characters of a key's base64 in a row that a log may show at most."""
MOST_OF_A_PASSWORD: Final = 4
"""Airflow takes no mask shorter than 5."""


# ---- the longest run of any order ----------------------------------------------------------------------------------


def test_the_reference_masker_takes_the_worst_order() -> None:
    shown = Shown.of(("abcdefghijklmnop", True))
    assert longest_run(Masks([]), shown) == 16
    assert longest_run(Masks(["abcdefgh"]), shown) == 8
    assert longest_run(Masks(["abcdefgh", "abcdefghijklmnop"]), shown) == 8
    assert longest_run(Masks(["abcdefgh", "abcdefghijklmnop", "ijklmnop"]), shown) == 0
    assert longest_run(Masks(["abcdefgh", "efghijkl", "mnopq"]), shown) == 8
    assert longest_run(Masks(["ghijklmno"]), Shown.of(("abc", True), ("\n", False), ("defghijklmnop", True))) == 6


def test_the_longest_run_of_a_cut_is_that_of_every_text_cut_off() -> None:
    shown = Shown.of(("abcdefgh", True), ("\n", False), ("ijklmnopabcdefghijkl", True))
    for some in (["abcdefgh", "ijklmnop"], ["cdefg", "ghijk", "mnopa"], ["ijklm", "ijklmnop"], ["fghijklm"], ["nopab"]):
        masks = Masks(some)
        cuts = range(len(shown.text) + 1)
        every = [longest_run(masks, part) for cut in cuts for part in (shown[:cut], shown[cut:])]
        assert longest_run_of_a_cut(masks, shown) == max(every), some


# ---- private keys --------------------------------------------------------------------------------------------------

FORMATS: Final = {
    "PKCS#1": serialization.PrivateFormat.TraditionalOpenSSL,
    "SEC1": serialization.PrivateFormat.TraditionalOpenSSL,
    "PKCS#8": serialization.PrivateFormat.PKCS8,
    "OpenSSH": serialization.PrivateFormat.OpenSSH,
}
KEYS: Final = [
    *(("RSA 2048", form) for form in ("PKCS#1", "PKCS#8", "OpenSSH")),
    *(("RSA 4096", form) for form in ("PKCS#1", "PKCS#8", "OpenSSH")),
    *(("ECDSA", form) for form in ("SEC1", "PKCS#8", "OpenSSH")),
    *(("Ed25519", form) for form in ("PKCS#8", "OpenSSH")),
]
COLUMNS: Final = (64, 70, 76)

keys = pytest.mark.parametrize(("kind", "form"), KEYS)
encrypted = pytest.mark.parametrize("locked", [False, True], ids=["plain", "encrypted"])


@cache
def private_key(kind: str) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
    """One key of a kind."""
    if kind == "ECDSA":
        return ec.generate_private_key(ec.SECP384R1())
    return (
        ed25519.Ed25519PrivateKey.generate() if kind == "Ed25519" else rsa.generate_private_key(65537, int(kind[-4:]))
    )


@dataclass(frozen=True)
class Pem:
    """Key text: lines before the base64, the base64, the last line."""

    head: str
    body: str
    foot: str

    @classmethod
    @cache
    def made(cls, kind: str, form: str, *, locked: bool) -> Pem:
        """A key in one of the formats."""
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if locked and form == "OpenSSH":
            encryption = FORMATS[form].encryption_builder().kdf_rounds(1).build(b"open sesame")
        elif locked:
            encryption = serialization.BestAvailableEncryption(b"open sesame")
        text = private_key(kind).private_bytes(serialization.Encoding.PEM, FORMATS[form], encryption).decode()
        found = re.fullmatch(r"(-----BEGIN .*?-----\n(?:Proc.*\nDEK.*\n\n)?)(.*)(-----END .*-----\n)", text, re.DOTALL)
        assert found
        return cls(found[1], found[2].replace("\n", ""), found[3])

    def lines(self, columns: int) -> list[str]:
        """The base64 in lines."""
        return [self.body[at : at + columns] for at in range(0, len(self.body), columns)]

    def text(self, columns: int) -> str:
        """The key as a file holds it."""
        return self.head + "".join(f"{line}\n" for line in self.lines(columns)) + self.foot

    def shown(self, columns: int, line_end: str = "\n") -> Shown:
        """The key as a log shows it."""
        lines = [piece for line in self.lines(columns) for piece in ((line, True), (line_end, False))]
        return Shown.of((self.head.replace("\n", line_end), False), *lines, (self.foot.replace("\n", line_end), False))


LINE_ENDS: Final = {
    "whole": "\n", "CRLF": "\r\n", "blanks": " ", "squashed": "", "JSON": "\\n", "JSON in JSON": "\\\\n",
    "three deep": "\\\\\\\\n", "a tag": "\n[2026-11-26, 08:00:00 UTC] {logging_mixin.py:190} INFO - ",
}  # fmt: skip


def in_url(shown: Shown) -> Shown:
    """The text as `urllib.parse.urlencode` spells it."""
    return shown.spelled(quote_plus)


@encrypted
@keys
@pytest.mark.parametrize("given", COLUMNS)
def test_no_mask_order_shows_eight_characters_of_a_key(kind: str, form: str, locked: bool, given: int) -> None:
    pem = Pem.made(kind, form, locked=locked)
    text = pem.text(given)
    mask_secrets([text])
    masks = Masks.of_airflow(text, json.dumps({"private_key": text}))  # as Airflow itself does with a connection's
    for columns in COLUMNS:
        for name, line_end in LINE_ENDS.items() if columns == given else [("whole", "\n"), ("JSON", "\\n")]:
            assert longest_run(masks, pem.shown(columns, line_end)) <= MOST_OF_A_KEY, (name, columns)
        assert longest_run(masks, in_url(pem.shown(columns))) <= MOST_OF_A_KEY, columns
        for line in pem.lines(columns):
            assert longest_run(masks, Shown.of((line, True))) <= MOST_OF_A_KEY


@encrypted
@keys
@pytest.mark.parametrize("given", COLUMNS)
def test_no_order_of_masks_shows_eight_characters_beside_a_cut(kind: str, form: str, locked: bool, given: int) -> None:
    pem = Pem.made(kind, form, locked=locked)
    mask_secrets([pem.text(given)])
    masks = Masks.of_airflow()
    for columns in {given, 64}:  # `repair_pem` gives every key lines of 64
        for name, line_end in LINE_ENDS.items():
            shown = pem.shown(columns, line_end)
            assert longest_run_of_a_cut(masks, shown) <= MOST_OF_A_KEY, (name, columns)
        for line in pem.lines(columns):
            assert longest_run_of_a_cut(masks, Shown.of((line, True))) <= MOST_OF_A_KEY, columns


def openssh_pem(seed: int) -> Pem:
    """An RSA-4096 key in OpenSSH's format, made of pseudorandom numbers."""
    choice = random.Random(seed)

    def field(content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + content

    def number(size: int) -> bytes:
        return field(bytes([0, choice.randrange(128, 256)]) + choice.randbytes(size - 1))

    modulus, exponent, check = number(512), field(b"\1\0\1"), choice.randbytes(4)
    numbers = number(512) + number(256) + number(256) + number(256)
    private = check * 2 + field(b"ssh-rsa") + modulus + exponent + numbers + field(b"")
    private += bytes(range(1, -len(private) % 8 + 1))
    head = b"openssh-key-v1\0" + field(b"none") * 2 + field(b"") + struct.pack(">I", 1)
    body = head + field(field(b"ssh-rsa") + exponent + modulus) + field(private)
    return Pem(
        "-----BEGIN OPENSSH PRIVATE KEY-----\n",
        base64.b64encode(body).decode(),
        "-----END OPENSSH PRIVATE KEY-----\n",
    )


@pytest.mark.parametrize("seed", [45, 46])
def test_line_ends_of_several_widths_close_together_show_seven_at_most(seed: int) -> None:
    pem = openssh_pem(seed)
    mask_secrets([pem.text(70)])
    masks = Masks.of_airflow()
    for columns in (64, 70):
        assert longest_run_of_a_cut(masks, pem.shown(columns)) <= MOST_OF_A_KEY, columns
    for columns in COLUMNS:
        assert longest_run(masks, pem.shown(columns)) <= MOST_OF_A_KEY, columns


@encrypted
@keys
@pytest.mark.parametrize("length", [40, 80])
def test_no_order_of_masks_shows_eight_characters_of_a_piece(kind: str, form: str, locked: bool, length: int) -> None:
    pem = Pem.made(kind, form, locked=locked)
    mask_secrets([pem.text(70)])
    masks = Masks.of_airflow()
    for columns, line_end in ((64, "\n"), (64, ""), (70, "\\n")):
        shown = pem.shown(columns, line_end)
        for cut in range(0, len(shown.text), 3):
            assert longest_run(masks, shown[cut : cut + length]) <= MOST_OF_A_KEY, (columns, cut)


PASTED: Final[dict[str, Callable[[str], str]]] = {
    "blanks": lambda text: text.replace("\n", " "),
    "written line ends": lambda text: text.replace("\n", "\\n"),
    "written twice": lambda text: text.replace("\n", "\\\\n"),
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "no line ends": lambda text: text.replace("\n", ""),
    "quoted": lambda text: f' "{text}" ',
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 in lines": lambda text: base64.encodebytes(text.encode()).decode(),
    "base64 of UTF-16": lambda text: base64.b64encode(text.encode("utf-16")).decode(),
    "in a connection's JSON": lambda text: json.dumps({"conn_type": "sftp", "extra": {"private_key": text}}),
}


@pytest.mark.parametrize("kind", ["RSA 2048", "ECDSA", "Ed25519"])
@pytest.mark.parametrize("pasted", PASTED)
def test_a_key_is_masked_as_pasted_and_as_normalised(kind: str, pasted: str) -> None:
    pem = Pem.made(kind, "PKCS#1" if kind.startswith("RSA") else "OpenSSH", locked=kind == "RSA 2048")
    given = PASTED[pasted](pem.text(70))
    mask_secrets([given])
    masks = Masks.of_airflow(given, json.dumps({"private_key": given}))
    for columns in COLUMNS:
        for line_end in LINE_ENDS.values():
            assert longest_run(masks, pem.shown(columns, line_end)) <= MOST_OF_A_KEY
    masks = Masks.of_airflow()
    given_in = len(pem.body) if pasted == "no line ends" else 70
    for columns, line_end in ((64, "\n"), (64, "\\n"), (64, ""), (given_in, "\n"), (given_in, "\\n"), (given_in, " ")):
        assert longest_run_of_a_cut(masks, pem.shown(columns, line_end)) <= MOST_OF_A_KEY, (columns, line_end)
    if pasted.startswith("base64"):
        words = given.split()
        outside = Shown.of(*((piece, piece != "\n") for word in words for piece in (word, "\n")))
        most = 20 if "UTF-16" in pasted else MOST_OF_A_KEY  # 21 characters hold 8 of the key
        for shown in (outside, outside.spelled(lambda char: json.dumps(char)[1:-1]), in_url(outside)):
            assert longest_run(masks, shown) <= most
            for cut in range(0, len(shown.text), 13):
                assert longest_run(masks, shown[cut : cut + 80]) <= most


@pytest.mark.parametrize("damage", ["cut off", "without its last line", "another frame", "bare", "PuTTY"])
def test_an_unreadable_key_is_masked_too(damage: str) -> None:
    pem = Pem.made("RSA 2048", "PKCS#8", locked=False)
    body = "".join(f"{line}\n" for line in pem.lines(64))
    given = {
        "cut off": pem.head + body[:900],
        "without its last line": pem.head + body,
        "another frame": pem.head + body + "-----END SOMETHING ELSE-----\n",
        "bare": body,
        "PuTTY": f"PuTTY-User-Key-File-3: ssh-rsa\nEncryption: none\nComment: a\nPublic-Lines: 1\nAAAA\n"
        f"Private-Lines: 25\n{body}Private-MAC: 00\n",
    }[damage]
    mask_secrets([given])
    cut = body[:900] if damage == "cut off" else body
    shown = Shown.of(*((piece, piece != "\n") for line in cut.split() for piece in (line, "\n")))
    assert longest_run(Masks.of_airflow(), shown) <= MOST_OF_A_KEY


def test_the_public_part_of_a_key_stays_visible() -> None:
    pem, public = Pem.made("ECDSA", "PKCS#8", locked=False), Pem.made("RSA 2048", "PKCS#8", locked=False).body
    certificate = f"-----BEGIN CERTIFICATE-----\n{public}\n-----END CERTIFICATE-----\n"
    mask_secrets([certificate + pem.text(64)])
    assert redact(certificate) == certificate


@pytest.mark.skipif(Version("3.1") > AIRFLOW_VERSION, reason="Airflow 3.0 caches the length")
def test_a_key_is_masked_with_a_larger_minimum_mask_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__LOGGING__MIN_LENGTH_MASKED_SECRET", "12")
    monkeypatch.setattr(_secrets_masker(), "min_length_to_mask", 12)
    pem = Pem.made("RSA 2048", "OpenSSH", locked=False)
    mask_secrets([pem.text(70)])
    assert longest_run(Masks.of_airflow(), pem.shown(70)) < 24
    assert all(len(pattern) >= 12 for pattern in _secrets_masker().patterns)


# ---- passwords -----------------------------------------------------------------------------------------------------

PASSWORDS: Final = [
    "marmalade", "marma-lade 5%", 'marma"lade\\ märmelade', "open sesame's \"door\"", 'Zx9!q"u\\w@e/r#t%y vault-door',
    " padded ", "tail of \\", "tab\tand\x07bell", "\N{SNOWMAN}\N{GRINNING FACE}\N{SNOWMAN}xyz",
    "a+b/c=d&e?f:g@hij", "first line\nsecond line",
    "8Q~" + "abcDEF123-_." * 3, "x" * 20, "token." * 16,
]  # fmt: skip


def spellings(secret: str) -> Iterator[str]:
    """A secret as Airflow and Python show it."""
    extra = json.dumps({"private_key_passphrase": secret})
    for connection in (
        Connection(conn_id="c", conn_type="sftp_backend", host="h", password=secret),
        Connection(conn_id="c", conn_type="sftp_backend", host="h", extra=extra),
        Connection(conn_id="c", conn_type="sftp_backend", host="h", extra=json.dumps({"a": 1, "passphrase": secret})),
    ):
        yield from (str(connection), repr([connection]), connection.get_uri(), connection_as_json(connection))
        yield from (
            json.dumps(connection_as_json(connection)),
            repr(connection_as_json(connection)),
            repr({"uri": connection.get_uri()}),
        )
        yield json.dumps({"connection": json.dumps({"extra": connection.extra, "password": connection.password})})
    yield from (secret, f"<{secret}>", *secret.splitlines(), repr(secret), ascii(secret), repr(secret.encode()))
    yield from (json.dumps(secret), json.dumps(secret, ensure_ascii=False), json.dumps([json.dumps(secret)]))
    yield from (json.dumps(json.dumps(secret, ensure_ascii=False), ensure_ascii=False), repr(json.dumps(secret)))
    yield from (quote(secret), quote(secret, safe=""), quote_plus(secret), f"sftp://a:{quote(secret, safe='')}@h/x")


def worst_texts(masks: Masks, text: str) -> Iterator[str]:
    """Return a text as each order of masks leaves it."""
    done: set[int] = set()
    ways = [(0, "")]
    while ways:
        place, before = ways.pop()
        if place in done:
            continue
        done.add(place)
        if place >= len(text):
            yield before
        elif ends := masks.ends(text, place):
            ways += [(end, before + "***") for end in ends]
        else:
            ways.append((place + 1, before + text[place]))


@pytest.mark.parametrize("secret", PASSWORDS)
def test_no_mask_order_shows_either_end_of_a_password(secret: str) -> None:
    mask_secrets([secret])
    masks = Masks.of_airflow(secret)  # as Airflow itself does
    words = [word for word in re.split(r"[^\w~.-]+|\\.", secret.strip()) if len(word) > 2]
    assert words
    for text in spellings(secret):
        for shown in worst_texts(masks, text):
            for word in words:
                assert word[:3] not in shown
                assert word[-3:] not in shown


@pytest.mark.parametrize(
    "secrets",
    [
        ("marmalade", "marmalade-and-chips"), ("marmalade-and-chips", "marmalade"), ('a"b"c', 'a"b"c"d"e"f"g"'),
        ("marmalade", "marmalade marmalade marmalade"), ("12345", "1234567890", "12345678901234567890"),
        ("tail of \\", "ends in \\\\n and goes on"), ("aaaaa", "aaaaaaaaaaaaa"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("together", [True, False])
def test_a_secret_that_is_a_prefix_of_another_hides_both(secrets: tuple[str, ...], together: bool) -> None:
    for some in [secrets] if together else [[secret] for secret in secrets]:
        mask_secrets(some)
    masks = Masks.of_airflow(*secrets)
    for secret in secrets:
        for shown in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe=""), quote_plus(secret)):
            assert longest_run(masks, Shown.of((shown, True))) <= MOST_OF_A_PASSWORD


def test_a_password_that_is_cut_by_a_traceback_with_locals_is_hidden() -> None:
    token = "".join(f"{number:03}-" for number in range(50))
    mask_secrets([token])
    masks = Masks.of_airflow(token)
    assert longest_run(masks, Shown.of((token[:80], True))) == 0  # as rich and structlog cut a text
    assert longest_run(masks, Shown.of((token, True))) == 0


def test_words_of_a_password_are_no_masks_of_their_own() -> None:
    mask_secrets(["correct horse battery staple"])
    assert redact("the battery is correct") == "the battery is correct"


# ---- all of a connection -------------------------------------------------------------------------------------------


def test_every_secret_of_a_connection_is_hidden_before_anything_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    pem = Pem.made("RSA 2048", "OpenSSH", locked=True)
    certificate = Pem.made("RSA 2048", "PKCS#8", locked=False)
    azure = {"client_secret": "the client's secret", "certificate_password": "of the certificate"}
    extra = {"private_key": pem.text(70), "private_key_passphrase": "marmalade-and-chips", "jump_conn_id": "jump"}
    columns = {"conn_type": "sftp_backend", "host": "h", "password": "marmalade"}
    jump = {
        "conn_type": "ssh",
        "host": "j",
        "password": "bastion's own",
        "extra": {"private_key": certificate.text(64)},
    }
    monkeypatch.setenv(
        "AIRFLOW_CONN_PARTNER", json.dumps(columns | {"extra": extra | azure | {"tenantId": "t", "client_id": "c"}})
    )
    monkeypatch.setenv("AIRFLOW_CONN_JUMP", json.dumps(jump))
    hook = SFTPBackendHook("partner")
    hook.config()
    masks = Masks.of_airflow()
    for key, columns_of in ((pem, 70), (certificate, 64)):
        assert longest_run(masks, key.shown(columns_of)) <= MOST_OF_A_KEY
    for secret in ("marmalade", "marmalade-and-chips", "bastion's own", *azure.values()):
        assert longest_run(masks, Shown.of((secret, True))) == 0, secret
    shown = str(redact("\n".join(str(one) for name in ("partner", "jump") for one in spelled_out(name))))
    for key in (pem, certificate):
        assert not [piece for piece in pieces(key.body) if piece in shown.replace("\\n", "").replace("\n", "")]
    assert not re.search(r"marma|chips|bastion.s|client's|of the cert", shown)


def spelled_out(conn_id: str) -> list[object]:
    """An Airflow connection in every way it can be printed."""
    connection = SFTPBackendHook.get_connection(conn_id)
    return [
        connection,
        repr([connection]),
        connection.get_uri(),
        connection_as_json(connection),
        json.dumps(connection_as_json(connection)),
    ]


def pieces(body: str) -> set[str]:
    """Every 8 characters in a row."""
    return {body[at : at + 8] for at in range(len(body) - 7)}


# ---- what it costs -------------------------------------------------------------------------------------------------


def test_a_key_is_added_to_the_mask_pattern_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    compile_pattern = re.compile

    def counting(pattern: str, flags: int = 0) -> re.Pattern[str]:
        compiled.append(pattern)
        return compile_pattern(pattern, flags)

    text = Pem.made("RSA 2048", "PKCS#8", locked=False).text(64)
    monkeypatch.setattr(re, "compile", counting)
    mask_secrets([text])
    assert [len(pattern) > 1000 for pattern in compiled].count(True) == 1


def test_a_kill_waits_for_at_most_a_few_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Task(CancellableTask):
        """A task that Airflow can kill."""

    class Hook:
        """A hook that the killed task aborts."""

        def abort_within(self, seconds: float) -> None:
            """Has nothing open."""

    task, batches = Task(), []

    def masking_while_killed(masks: list[str]) -> None:
        batches.append(masks)
        task.on_kill()
        mask_secret([*masks])

    monkeypatch.setattr(_masking, "mask_secret", masking_while_killed)
    with pytest.raises(TaskKilled), task.cancellable(Hook()):
        mask_secrets([Pem.made("RSA 2048", "PKCS#8", locked=False).text(64)])
    assert [len(batch) <= 32 for batch in batches] == [True]


def test_an_unknown_masker_gets_each_mask_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    class Masker:
        """One that keeps its masks elsewhere."""

    monkeypatch.setattr(version_compat, "_secrets_masker", Masker)
    pem = Pem.made("Ed25519", "OpenSSH", locked=False)
    mask_secrets([pem.text(70)])
    assert longest_run(Masks.of_airflow(), pem.shown(70)) <= MOST_OF_A_KEY


def test_threads_that_mask_concurrently_lose_no_mask() -> None:
    pems = [Pem.made(kind, "PKCS#8", locked=locked) for kind in ("RSA 2048", "ECDSA") for locked in (False, True)]
    threads = [threading.Thread(target=mask_secrets, args=([pem.text(64)],)) for pem in pems]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pem in pems:
        assert not [piece for piece in pieces(pem.body) if piece in str(redact(pem.text(64)))]
    reset_secrets_masker()


# ---- what Airflow itself writes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--conn-json", "--conn-extra"])
def test_airflow_logs_the_key_of_a_connection_that_a_command_adds(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    """docs/connections.md warns of it: when this fails, the warning can go."""
    given = {"password": "marmalade", "extra": {"private_key": "MIIEvQ"}}
    value = json.dumps(given if option == "--conn-json" else given["extra"])
    command = ["airflow", "connections", "add", "partner", "--conn-type", "sftp_backend", option, value]
    monkeypatch.setattr(sys, "argv", command)
    metrics = cli._build_metrics("connections_add", Namespace())  # type: ignore[no-untyped-call]  # has no annotations
    assert "MIIEvQ" in str(metrics)
    assert "marmalade" not in str(metrics)


def test_airflow_logs_the_name_alone_of_a_file_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["airflow", "connections", "import", "connections.json"])
    metrics = cli._build_metrics("connections_import", Namespace())  # type: ignore[no-untyped-call]  # has none either
    assert "connections.json" in str(metrics)


def test_only_certificate_data_is_not_masked_by_its_name() -> None:
    """docs/connections.md names it."""
    hides: Callable[[str], bool] = should_hide_value_for_key
    named = {field.name for field in FIELDS if field.secret and not hides(field.name)}
    assert named == {"certificate_data"}
