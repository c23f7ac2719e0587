"""``airflow-sftp-backend``: checks servers and connections, removes partial files. Without Airflow, given a URL."""

from __future__ import annotations

import argparse
import getpass
import json
import logging
import re
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from .backend import BackendConfig, BackendUnavailable, HostKeyPolicy, Secret, SFTPBackendError
from .backend.config import DEFAULT_PORT
from .backend.errors import escaped

if TYPE_CHECKING:
    from .backend._diagnostics.check import Diagnosis, Step

_WIDTH: Final = 100
_INDENT: Final = 17
_UNITS: Final = {
    "m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1),
}  # fmt: skip


class _Wrong(Exception):
    """The command cannot be run as it was given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. 0 if all is well, 1 if something is wrong with the server, 2 with the command or connection."""
    given = _parser().parse_args(arguments)
    try:
        return {"check": _check, "clean": _clean, "scan-host-keys": _scan}[given.command](given)
    except (_Wrong, ValueError) as error:
        print(f"airflow-sftp-backend: {error}", file=sys.stderr)
        return 2
    except (SFTPBackendError, OSError) as error:  # a key vault that does not answer, this machine's disk
        print(f"airflow-sftp-backend: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("airflow-sftp-backend: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="airflow-sftp-backend", description="Looks at SFTP servers and connections.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        help="connect as a task would, and tell what was found or what to do",
        description="Connects as a task would, with one login, and tells what was found or what to do.",
        epilog="Exit status: 0 all is well, 1 something failed, 2 the command or the connection is wrong.",
    )
    check.add_argument(
        "target",
        metavar="CONNECTION",
        help="id of an Airflow connection, or sftp://user@host:port/base/path (/~/path: from the login folder)",
    )
    check.add_argument("--write", action="store_true", help="also write a small file to the base path and remove it")
    check.add_argument("--speed", action="store_true", help="also send and fetch up to 64 MiB, removed afterwards")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    _add_url_options(check)
    clean = commands.add_parser(
        "clean",
        help="remove partial files that interrupted transfers left",
        description="Removes partial files that interrupted transfers left and nobody came back for, below a directory"
        " of the server and, with --local, of this machine. Only files that this package made, by their names; no link"
        " is followed. A backup whose file is missing gets the file's name back.",
        epilog="Exit status: 0 all is clean, 1 something failed or was left, 2 the command or the connection is wrong.",
    )
    _add_clean(clean)
    scan = commands.add_parser(
        "scan-host-keys",
        help="print a server's host keys as known_hosts lines",
        description="Prints a server's host keys, one of each type, as known_hosts lines; their fingerprints go to"
        " standard error. They are what answers at that address now: compare them with what its owner says.",
    )
    scan.add_argument("host", metavar="HOST", help="name or address; HOST:PORT and [ADDRESS]:PORT too")
    scan.add_argument("--port", type=int, help="default: 22")
    scan.add_argument("--timeout", type=float, default=10, metavar="SECONDS", help="for each step; default: 10")
    scan.add_argument("--json", action="store_true", help="print a JSON array")
    return parser


def _add_url_options(parser: argparse.ArgumentParser) -> None:
    url = parser.add_argument_group("for a URL")
    url.add_argument("--ask-password", action="store_true", help="ask for the password, which also opens the key file")
    url.add_argument("--key-file", metavar="FILE", help="private key, which the password opens if it is encrypted")
    url.add_argument("--known-hosts", metavar="FILE", help="known_hosts file (default: ~/.ssh/known_hosts)")
    policies = [policy.value for policy in HostKeyPolicy]
    url.add_argument("--host-key-policy", choices=policies, help="default: strict")


def _add_clean(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="CONNECTION",
        help="id of an Airflow connection, or sftp://user@host:port/base/path (/~/path: from the login folder)",
    )
    parser.add_argument("path", metavar="PATH", help="directory on the server, relative to the base path; / is that")
    parser.add_argument(
        "--older-than",
        type=_age,
        default=timedelta(days=1),
        metavar="AGE",
        help="files that nobody has written to for so long: 90m, 12h, 1d or 2w, from 1h on; default: 1d",
    )
    parser.add_argument("--local", metavar="DIR", help="also a directory of this machine, where downloads go")
    parser.add_argument("--dry-run", action="store_true", help="remove and restore nothing, print what would be done")
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    _add_url_options(parser)


def _age(text: str) -> timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age such as 90m, 12h, 1d or 2w")
    return int(match[1]) * _UNITS[match[2]]


def _config(given: argparse.Namespace) -> BackendConfig:
    """Return the configuration that the URL, or the Airflow connection, stands for."""
    is_url = "://" in given.target
    if not is_url and "@" in given.target:  # no connection id has one; the text may hold a password, so it is not shown
        raise _Wrong("neither a connection id nor a URL: a URL begins with sftp://, as sftp://user@host:22/folder")
    if not is_url and (given.ask_password or given.key_file or given.known_hosts or given.host_key_policy):
        raise _Wrong("what is said for a URL does not go with a connection, which says it itself")
    return _of_url(given) if is_url else _of_connection(given.target)


# -- clean ------------------------------------------------------------------------------------------------------------


def _clean(given: argparse.Namespace) -> int:
    with redirect_stdout(sys.stderr):  # where Airflow is to log
        config = _config(given)
        from .backend import SFTPBackend  # here, because it loads paramiko
        from .backend._transfers.partial_files import check_age, clean_local

        check_age(given.older_than)
        with SFTPBackend.from_config(config) as backend:
            found = backend.clean_partials(given.path, given.older_than, dry_run=given.dry_run)
            places = [backend.address for _ in found]
        if given.local is not None:
            found += clean_local(given.local, given.older_than, dry_run=given.dry_run)
            places += ["here"] * (len(found) - len(places))
    if given.json:
        rows = [asdict(one) | {"where": place} for one, place in zip(found, places, strict=True)]
        print(_escaped_json([row | {"modified_at": _time(row["modified_at"])} for row in rows]))
    else:
        for one, place in zip(found, places, strict=True):
            reason = f": {one.reason}" if one.reason else ""
            text = f"{one.action} {one.path} ({one.size} bytes, last written {_time(one.modified_at)}, {place}){reason}"
            print(escaped(text))
        print(f"{len(found)} partial files found" if found else "No partial files found.")
    return 1 if any(one.action == "left" for one in found) else 0


def _time(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="seconds")


# -- check ------------------------------------------------------------------------------------------------------------


def _check(given: argparse.Namespace) -> int:
    with redirect_stdout(sys.stderr):  # where Airflow is to log
        found = _diagnosis(_config(given), given)
    print(_as_json(found) if given.json else "\n".join(_as_text(found)))
    return 0 if found.ok else 1


def _diagnosis(config: BackendConfig, given: argparse.Namespace) -> Diagnosis:
    from .backend._diagnostics import probes  # here, because it loads paramiko
    from .backend._diagnostics.check import diagnose

    chosen = {"Writing": probes.writing} if given.write else {}
    chosen |= {"Speed": probes.speed} if given.speed else {}
    log = logging.getLogger("airflow_sftp_backend")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        return diagnose(config, {**chosen, "All host keys": probes.host_keys})
    finally:
        log.setLevel(level)


def _of_url(given: argparse.Namespace) -> BackendConfig:
    """ValueError, which does not show the password, for a URL that is none."""
    try:
        parts = urlsplit(given.target)
        host, port = parts.hostname, parts.port or 22
    except ValueError:  # whose text may hold a part of the password
        raise _Wrong(
            "no URL such as sftp://user@host:22/folder; in user and password, write / as %2F and @ as %40"
        ) from None
    if parts.scheme != "sftp" or not host or parts.query or parts.fragment:
        raise _Wrong("a URL is sftp://user@host:port/folder; in user and folder, write ? as %3F and # as %23")
    path = unquote(parts.path)
    password = unquote(parts.password) if parts.password else None
    if given.ask_password:
        password = getpass.getpass(f"Password of {unquote(parts.username or '')}@{host}: ")
    return BackendConfig(
        host=host,
        port=port,
        username=unquote(parts.username) if parts.username else None,
        password=None if password is None else Secret(password),
        passphrase=None if password is None or given.key_file is None else Secret(password),
        key_file=given.key_file,
        base_path=path[3:] or "." if path == "/~" or path.startswith("/~/") else path or ".",
        host_keys_path=given.known_hosts,
        host_key_policy=HostKeyPolicy.parse(given.host_key_policy or HostKeyPolicy.STRICT),
    )


def _of_connection(conn_id: str) -> BackendConfig:
    """What Airflow knows by that id, wherever it keeps connections."""
    from airflow.models.connection import Connection

    from ._connections.resolver import resolve
    from .version_compat import AirflowNotFoundException

    try:
        return resolve(Connection.get_connection_from_secrets(conn_id), Connection.get_connection_from_secrets)
    except AirflowNotFoundException as error:
        raise _Wrong(
            f"{error}. `airflow connections list` shows those there are; a URL does without: sftp://user@host/folder"
        ) from None


def _as_json(found: Diagnosis) -> str:
    return _escaped_json(
        {
            "server": found.server,
            "username": found.username,
            "ok": found.ok,
            "steps": [
                {"title": step.title, "ok": step.ok, "text": list(step.lines), "data": dict(step.data)}
                for step in found.steps
            ],
            "error": None if found.error is None else str(found.error),
            "advice": list(found.advice),
        }
    )


def _escaped_json(value: object) -> str:
    """JSON in which only what a terminal can show stands unescaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _as_text(found: Diagnosis) -> list[str]:
    user = f" as {found.username}" if found.username else ""
    lines = [f"{found.server}{user}", ""]
    for step in found.steps:
        lines += _step(step)
    if found.advice:
        lines += ["", "What to do:"]
        lines += [line for advice in found.advice for line in _wrapped(f"  {escaped(advice)}", "  ")]
    return [*lines, "", "All is well." if found.ok else f"Failed: {found.steps[-1].title}."]


def _step(step: Step) -> list[str]:
    good, bad = ("✓", "✗") if _can_print("✓✗") else ("ok", "!!")
    head = f"{good if step.ok else bad} {step.title}".ljust(_INDENT)
    lines: list[str] = []
    for text in step.lines:
        for paragraph in text.split("\n"):
            lines += _wrapped((" " * _INDENT if lines else head) + escaped(paragraph), " " * _INDENT)
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    """Broken at blanks; what is to be copied, a key, stays on one line."""
    if "AAAA" in text:
        return [text]
    return textwrap.wrap(
        text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    ) or [""]


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


# -- scan-host-keys ---------------------------------------------------------------------------------------------------


def _scan(given: argparse.Namespace) -> int:
    from .backend import SFTPUtils

    host, port = _host_and_port(given.host, given.port)
    try:
        keys = SFTPUtils.scan_host_keys(host, port, given.timeout)
    except BackendUnavailable as error:
        print(f"airflow-sftp-backend: {error}", file=sys.stderr)
        return 1
    if not keys:
        print(f"airflow-sftp-backend: {host} has no host key of a type known here", file=sys.stderr)
        return 1
    if given.json:
        shown = [{"type": key.type, "fingerprint": key.fingerprint, "known_hosts": str(key)} for key in keys]
        print(json.dumps(shown, indent=2))
        return 0
    for key in keys:
        print(f"# {key.type} {key.fingerprint}", file=sys.stderr)
        print(key)
    return 0


def _host_and_port(text: str, port: int | None) -> tuple[str, int]:
    """Split ``HOST``, ``HOST:PORT``, ``[ADDRESS]`` or ``[ADDRESS]:PORT``; an address without brackets has no port.

    :param port: what ``--port`` says, or None.
    :raises _Wrong: if the port is not a number, or is not that of ``--port``.
    """
    if "@" in text:  # not shown: a password may stand before it
        raise _Wrong("HOST is a name or address, without user and password; a scan logs in to nothing")
    host, named = text, ""
    if text.startswith("[") and "]" in text:
        host, _, rest = text[1:].partition("]")
        named = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, named = text.partition(":")
    if not named:
        return host, port or DEFAULT_PORT
    if not (named.isascii() and named.isdigit()) or port not in (None, int(named)):
        raise _Wrong(f"{named!r} in {text!r} is not the port; pass one port, as HOST:PORT or with --port")
    return host, int(named)


if __name__ == "__main__":
    sys.exit(main())
