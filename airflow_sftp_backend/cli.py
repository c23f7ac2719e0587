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
    from .backend._diagnostics.check import CheckResult, Diagnosis

_WIDTH: Final = 100
_INDENT: Final = 17
_UNITS: Final = {
    "m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1),
}  # fmt: skip


class UsageError(Exception):
    """The arguments of the command cannot be used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. 0 if all is well, 1 if something is wrong with the server, 2 with the command or connection."""
    args = _parser().parse_args(arguments)
    try:
        return {"check": _check, "clean": _clean, "scan-host-keys": _scan}[args.command](args)
    except (UsageError, ValueError) as error:
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


def _config(args: argparse.Namespace) -> BackendConfig:
    """Return the configuration that the URL, or the Airflow connection, stands for."""
    is_url = "://" in args.target
    if not is_url and "@" in args.target:  # no connection id has one; the text may hold a password, so it is not shown
        raise UsageError("neither a connection id nor a URL: a URL begins with sftp://, as sftp://user@host:22/folder")
    if not is_url and (args.ask_password or args.key_file or args.known_hosts or args.host_key_policy):
        raise UsageError(
            "--ask-password, --key-file, --known-hosts and --host-key-policy apply to a URL only; set them in the"
            " connection"
        )
    return _config_from_url(args) if is_url else _config_from_connection(args.target)


# -- clean ------------------------------------------------------------------------------------------------------------


def _clean(args: argparse.Namespace) -> int:
    with redirect_stdout(sys.stderr):  # where Airflow is to log
        config = _config(args)
        from .backend import SFTPBackend  # here, because it loads paramiko
        from .backend._transfers.partial_files import check_age, clean_local

        check_age(args.older_than)
        with SFTPBackend.from_config(config) as backend:
            partials = backend.clean_partials(args.path, args.older_than, dry_run=args.dry_run)
            locations = [backend.address for _ in partials]
        if args.local is not None:
            partials += clean_local(args.local, args.older_than, dry_run=args.dry_run)
            locations += ["here"] * (len(partials) - len(locations))
    if args.json:
        rows = [asdict(partial) | {"where": location} for partial, location in zip(partials, locations, strict=True)]
        print(_escaped_json([row | {"modified_at": _format_time(row["modified_at"])} for row in rows]))
    else:
        for partial, location in zip(partials, locations, strict=True):
            reason = f": {partial.reason}" if partial.reason else ""
            written = f"last written {_format_time(partial.modified_at)}"
            text = f"{partial.action} {partial.path} ({partial.size} bytes, {written}, {location}){reason}"
            print(escaped(text))
        print(f"{len(partials)} partial files found" if partials else "No partial files found.")
    return 1 if any(partial.action == "left" for partial in partials) else 0


def _format_time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")


# -- check ------------------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    with redirect_stdout(sys.stderr):  # where Airflow is to log
        diagnosis = _diagnose(_config(args), args)
    print(_format_json(diagnosis) if args.json else "\n".join(_format_text(diagnosis)))
    return 0 if diagnosis.ok else 1


def _diagnose(config: BackendConfig, args: argparse.Namespace) -> Diagnosis:
    from .backend._diagnostics import probes  # here, because it loads paramiko
    from .backend._diagnostics.check import CheckTitle, diagnose

    selected_probes = {CheckTitle.WRITING: probes.writing} if args.write else {}
    selected_probes |= {CheckTitle.SPEED: probes.speed} if args.speed else {}
    log = logging.getLogger("airflow_sftp_backend")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        return diagnose(config, {**selected_probes, CheckTitle.ALL_HOST_KEYS: probes.host_keys})
    finally:
        log.setLevel(level)


def _config_from_url(args: argparse.Namespace) -> BackendConfig:
    """ValueError, which does not show the password, for a URL that is none."""
    try:
        parts = urlsplit(args.target)
        host, port = parts.hostname, parts.port or 22
    except ValueError:  # whose text may hold a part of the password
        raise UsageError(
            "not a URL such as sftp://user@host:22/folder; in user and password, write / as %2F and @ as %40"
        ) from None
    if parts.scheme != "sftp" or not host or parts.query or parts.fragment:
        raise UsageError("a URL is sftp://user@host:port/folder; in user and folder, write ? as %3F and # as %23")
    path = unquote(parts.path)
    password = unquote(parts.password) if parts.password else None
    if args.ask_password:
        password = getpass.getpass(f"Password of {unquote(parts.username or '')}@{host}: ")
    return BackendConfig(
        host=host,
        port=port,
        username=unquote(parts.username) if parts.username else None,
        password=None if password is None else Secret(password),
        passphrase=None if password is None or args.key_file is None else Secret(password),
        key_file=args.key_file,
        base_path=path[3:] or "." if path == "/~" or path.startswith("/~/") else path or ".",
        host_keys_path=args.known_hosts,
        host_key_policy=HostKeyPolicy.parse(args.host_key_policy or HostKeyPolicy.STRICT),
    )


def _config_from_connection(conn_id: str) -> BackendConfig:
    """What Airflow knows by that id, wherever it keeps connections."""
    from airflow.models.connection import Connection

    from ._connections.resolver import resolve
    from .version_compat import AirflowNotFoundException

    try:
        return resolve(Connection.get_connection_from_secrets(conn_id), Connection.get_connection_from_secrets)
    except AirflowNotFoundException as error:
        raise UsageError(
            f"{error}. `airflow connections list` shows those there are; a URL does without: sftp://user@host/folder"
        ) from None


def _format_json(diagnosis: Diagnosis) -> str:
    return _escaped_json(
        {
            "server": diagnosis.server,
            "username": diagnosis.username,
            "ok": diagnosis.ok,
            "steps": [
                {"title": step.title, "ok": step.ok, "text": list(step.lines), "data": dict(step.data)}
                for step in diagnosis.steps
            ],
            "error": None if diagnosis.error is None else str(diagnosis.error),
            "advice": list(diagnosis.advice),
        }
    )


def _escaped_json(value: object) -> str:
    """JSON in which only what a terminal can show stands unescaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _format_text(diagnosis: Diagnosis) -> list[str]:
    user = f" as {diagnosis.username}" if diagnosis.username else ""
    lines = [f"{diagnosis.server}{user}", ""]
    for step in diagnosis.steps:
        lines += _format_step(step)
    if diagnosis.advice:
        lines += ["", "What to do:"]
        lines += [line for advice in diagnosis.advice for line in _wrap(f"  {escaped(advice)}", "  ")]
    return [*lines, "", "All is well." if diagnosis.ok else f"Failed: {diagnosis.steps[-1].title}."]


def _format_step(step: CheckResult) -> list[str]:
    ok_mark, failed_mark = ("✓", "✗") if _can_print("✓✗") else ("ok", "!!")
    head = f"{ok_mark if step.ok else failed_mark} {step.title}".ljust(_INDENT)
    lines: list[str] = []
    for text in step.lines:
        for paragraph in text.split("\n"):
            lines += _wrap((" " * _INDENT if lines else head) + escaped(paragraph), " " * _INDENT)
    return lines


def _wrap(text: str, indent: str) -> list[str]:
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


def _scan(args: argparse.Namespace) -> int:
    from .backend import SFTPUtils

    host, port = _host_and_port(args.host, args.port)
    try:
        keys = SFTPUtils.scan_host_keys(host, port, args.timeout)
    except BackendUnavailable as error:
        print(f"airflow-sftp-backend: {error}", file=sys.stderr)
        return 1
    if not keys:
        print(f"airflow-sftp-backend: {host} has no host key of a type known here", file=sys.stderr)
        return 1
    if args.json:
        rows = [{"type": key.type, "fingerprint": key.fingerprint, "known_hosts": str(key)} for key in keys]
        print(json.dumps(rows, indent=2))
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
        raise UsageError("HOST is a name or address, without user and password; a scan logs in to nothing")
    host, port_text = text, ""
    if text.startswith("[") and "]" in text:
        host, _, after_address = text[1:].partition("]")
        port_text = after_address.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    if not port_text:
        return host, port or DEFAULT_PORT
    if not (port_text.isascii() and port_text.isdigit()) or port not in (None, int(port_text)):
        raise UsageError(f"{port_text!r} in {text!r} is not the port; pass one port, as HOST:PORT or with --port")
    return host, int(port_text)


if __name__ == "__main__":
    sys.exit(main())
