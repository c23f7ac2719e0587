"""Provide the command ``airflow-sftp-backend``.

It checks servers and connections, lists and removes files, and prints host keys.

With a URL, the command needs no Airflow.
"""

from __future__ import annotations

import argparse
import getpass
import json
import logging
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from . import __version__
from .backend import BackendConfig, BackendUnavailable, FileInfo, FolderEntry, HostKeyPolicy, Secret, SFTPBackendError
from .backend._patterns import has_wildcard
from .backend.config import DEFAULT_PORT, base_path_of_url
from .backend.errors import escaped

if TYPE_CHECKING:
    from .backend import SFTPBackend
    from .backend._diagnostics.check import CheckResult, Diagnosis
    from .backend.models import PartialFile

_WIDTH: Final = 100
_INDENT: Final = 17
_KEY_BLOB_START: Final = "AAAA"
"""Start of every public key in base64: its first field is shorter than 256 bytes (RFC 4253 section 6.6)."""
_TARGET_HELP: Final = (
    "id of an Airflow connection, or sftp://user@host:port/base/path (/~/path: from the login directory)"
)
_UNITS: Final = {
    "m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1),
}  # fmt: skip


class UsageError(Exception):
    """Report wrong arguments of the command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: the command's arguments; by default, those of the process
    :returns: exit status: 0 for success, 1 for a failure of the server, 2 for wrong arguments or a wrong connection,
        3 if ``ls`` finds no file, 130 after an interrupt
    """
    args = _parser().parse_args(arguments)
    try:
        return {"check": _check, "clean": _clean, "ls": _list, "scan-host-keys": _scan}[args.command](args)
    except (UsageError, ValueError) as error:
        print(f"airflow-sftp-backend: {error}", file=sys.stderr)
        return 2
    except (SFTPBackendError, OSError) as error:  # OSError: an unreachable key vault, a local file
        print(f"airflow-sftp-backend: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("airflow-sftp-backend: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="airflow-sftp-backend", description="Check SFTP servers and connections.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        help="connect as a task would, and print the results and remedies",
        description="Connect as a task would, with one login, and print the result of each step, or the remedy.",
        epilog="Exit status: 0 success, 1 a step failed, 2 wrong arguments or a wrong connection.",
    )
    _add_check_arguments(check)
    clean = commands.add_parser(
        "clean",
        help="remove the partial files of interrupted transfers",
        description="Remove the partial files of interrupted transfers that no retry has resumed, below a directory of"
        " the server and, with --local, of this machine. Only files with names of this package are removed; symbolic"
        " links are not followed. A backup whose file is missing is renamed to that file.",
        epilog="Exit status: 0 success, 1 a file was not removed or the server failed, 2 wrong arguments or a wrong"
        " connection.",
    )
    _add_clean_arguments(clean)
    list_files = commands.add_parser(
        "ls",
        help="list a directory, or the files that match a pattern",
        description="List a directory, or the files that match a pattern, with size in bytes and time in UTC. The name"
        " of a directory ends with a slash.",
        epilog="Exit status: 0 success, 1 the path is missing or the server failed, 2 wrong arguments or a wrong"
        " connection, 3 nothing to list (no output).",
    )
    _add_list_arguments(list_files)
    scan = commands.add_parser(
        "scan-host-keys",
        help="print a server's host keys as known_hosts lines",
        description="Print a server's host keys, one of each type, as known_hosts lines, and their fingerprints on"
        " standard error. The keys are not verified: compare the fingerprints with those of the server's owner.",
    )
    _add_scan_arguments(scan)
    return parser


def _add_check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="CONNECTION", help=_TARGET_HELP)
    parser.add_argument("--write", action="store_true", help="also write a small file to the base path and remove it")
    parser.add_argument("--speed", action="store_true", help="also send and fetch up to 64 MiB, removed afterwards")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_url_options(parser)


def _add_scan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("host", metavar="HOST", help="name or address, also as HOST:PORT or [ADDRESS]:PORT")
    parser.add_argument("--port", type=int, help="default: 22")
    parser.add_argument("--timeout", type=float, default=10, metavar="SECONDS", help="for each step; default: 10")
    parser.add_argument("--json", action="store_true", help="print a JSON array")


def _add_url_options(parser: argparse.ArgumentParser) -> None:
    url = parser.add_argument_group("for a URL")
    url.add_argument("--ask-password", action="store_true", help="ask for the password, also used for the key file")
    url.add_argument("--key-file", metavar="FILE", help="private key; if encrypted, the password decrypts the key")
    url.add_argument("--known-hosts", metavar="FILE", help="known_hosts file (default: ~/.ssh/known_hosts)")
    policies = [policy.value for policy in HostKeyPolicy]
    url.add_argument("--host-key-policy", choices=policies, help="default: strict")


def _add_clean_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="CONNECTION", help=_TARGET_HELP)
    parser.add_argument("path", metavar="PATH", help="directory on the server, relative to the base path; / for all")
    parser.add_argument(
        "--older-than",
        type=_age,
        default=timedelta(days=1),
        metavar="AGE",
        help="minimum time since the last modification: 90m, 12h, 1d or 2w, at least 1h; default: 1d",
    )
    parser.add_argument("--local", metavar="DIR", help="also clean a local directory of downloads")
    parser.add_argument("--dry-run", action="store_true", help="only print the planned actions")
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    _add_url_options(parser)


def _add_list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="CONNECTION", help=_TARGET_HELP)
    parser.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        default="",
        help="a path or a quoted glob such as 'inbox/**/*.csv', relative to the base path; default: the base path",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    _add_url_options(parser)


def _age(text: str) -> timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age such as 90m, 12h, 1d or 2w")
    return int(match[1]) * _UNITS[match[2]]


def _config(args: argparse.Namespace) -> BackendConfig:
    """Return the configuration of a URL or of an Airflow connection."""
    is_url = "://" in args.target
    if not is_url and "@" in args.target:  # not a connection id; the error omits the text, which may hold a password
        raise UsageError("neither a connection id nor a URL; expected a URL such as sftp://user@host:22/directory")
    if not is_url and (args.ask_password or args.key_file or args.known_hosts or args.host_key_policy):
        raise UsageError(
            "--ask-password, --key-file, --known-hosts and --host-key-policy apply to a URL only; set them in the"
            " connection"
        )
    return _config_from_url(args) if is_url else _config_from_connection(args.target)


# -- clean ------------------------------------------------------------------------------------------------------------


def _clean(args: argparse.Namespace) -> int:
    with redirect_stdout(sys.stderr):  # Airflow logs to standard output, which is for the result
        config = _config(args)
        from .backend import SFTPBackend  # late import, because it loads paramiko
        from .backend._transfers.partial_files import check_age, clean_local

        check_age(args.older_than)
        with SFTPBackend.from_config(config) as backend:
            remote_partials = backend.clean_partials(args.path, args.older_than, dry_run=args.dry_run)
            partials = [(partial, backend.address) for partial in remote_partials]
        if args.local is not None:
            local_partials = clean_local(args.local, args.older_than, dry_run=args.dry_run)
            partials += [(partial, "here") for partial in local_partials]
    if args.json:
        rows = [asdict(partial) | {"where": location} for partial, location in partials]
        print(_escaped_json([row | {"modified_at": _format_time(row["modified_at"])} for row in rows]))
    else:
        for partial, location in partials:
            print(_format_partial(partial, location))
        print(f"{len(partials)} partial files found" if partials else "No partial files found.")
    return 1 if any(partial.action == "kept" for partial, _ in partials) else 0


def _format_partial(partial: PartialFile, location: str) -> str:
    reason = f": {partial.reason}" if partial.reason else ""
    modified = f"modified {_format_time(partial.modified_at)}"
    return escaped(f"{partial.action} {partial.path} ({partial.size} bytes, {modified}, {location}){reason}")


def _format_time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")


# -- ls ---------------------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    with redirect_stdout(sys.stderr):  # Airflow logs to standard output, which is for the result
        config = _config(args)
        from .backend import SFTPBackend  # late import, because it loads paramiko

        with SFTPBackend.from_config(config) as backend:
            entries = _find_entries(backend, args.pattern)
    rows = [
        {
            "path": f"{entry.path}/" if isinstance(entry, FolderEntry) else entry.path,
            "size": None if isinstance(entry, FolderEntry) else entry.size,
            "modified_at": None if isinstance(entry, FolderEntry) else _format_time(entry.modified_at),
        }
        for entry in sorted(entries, key=lambda entry: entry.path)
    ]
    if args.json:
        print(_escaped_json(rows))
    elif rows:
        print("\n".join(_format_columns(rows)))
    return 0 if rows else 3


def _find_entries(backend: SFTPBackend, pattern: str) -> list[FileInfo | FolderEntry]:
    """List a pattern, a directory or a file.

    :raises NotFound: if a path without wildcards does not exist
    """
    if has_wildcard(pattern):
        return [*backend.find(pattern)]
    if backend.is_folder(pattern):
        entries = [*backend.iter_children(pattern)]
        if not entries:
            backend.check_health()  # a missing base path is not an empty directory
        return entries
    return [backend.get_file_info(pattern)]


def _format_columns(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return a line with size, time and path for each row."""
    sizes = ["-" if row["size"] is None else str(row["size"]) for row in rows]
    times = ["-" if row["modified_at"] is None else str(row["modified_at"]) for row in rows]
    size_width, time_width = max(map(len, sizes)), max(map(len, times))
    return [
        f"{size:>{size_width}}  {time:<{time_width}}  {escaped(str(row['path']))}"
        for size, time, row in zip(sizes, times, rows, strict=True)
    ]


# -- check ------------------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    with redirect_stdout(sys.stderr):  # Airflow logs to standard output, which is for the result
        diagnosis = _diagnose(_config(args), args)
    print(_format_json(diagnosis) if args.json else "\n".join(_format_text(diagnosis)))
    return 0 if diagnosis.ok else 1


def _diagnose(config: BackendConfig, args: argparse.Namespace) -> Diagnosis:
    from .backend._diagnostics import probes  # late import, because it loads paramiko
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
    """Return the configuration of a URL.

    :raises UsageError: for an invalid URL; the text does not show the password
    """
    try:
        parts = urlsplit(args.target)
        host, port = parts.hostname, parts.port or 22
    except ValueError:  # its text may hold a part of the password
        raise UsageError(
            "invalid URL; expected a URL such as sftp://user@host:22/directory; in user and password, write / as %2F"
            " and @ as %40"
        ) from None
    if parts.scheme != "sftp" or not host or parts.query or parts.fragment:
        raise UsageError(
            "invalid URL; expected sftp://user@host:port/directory; in user and directory, write ? as %3F and # as %23"
        )
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
        base_path=base_path_of_url(path),
        host_keys_path=args.known_hosts,
        host_key_policy=HostKeyPolicy.parse(args.host_key_policy or HostKeyPolicy.STRICT),
    )


def _config_from_connection(conn_id: str) -> BackendConfig:
    """Return the configuration of an Airflow connection.

    Any secrets backend of Airflow may hold the connection.
    """
    from airflow.models.connection import Connection

    from ._connections.config_loader import load_config
    from .version_compat import AirflowNotFoundException

    try:
        return load_config(Connection.get_connection_from_secrets(conn_id), Connection.get_connection_from_secrets)
    except AirflowNotFoundException as error:
        raise UsageError(
            f"{error}. `airflow connections list` lists the connections; a URL works too: sftp://user@host/directory"
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
    """Return JSON with escapes for all characters that a terminal cannot show."""
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
    return [*lines, "", "All checks passed." if diagnosis.ok else f"Failed: {diagnosis.steps[-1].title}."]


def _format_step(step: CheckResult) -> list[str]:
    ok_mark, failed_mark = ("✓", "✗") if _can_print("✓✗") else ("ok", "!!")
    head = f"{ok_mark if step.ok else failed_mark} {step.title}".ljust(_INDENT)
    lines: list[str] = []
    for text in step.lines:
        for paragraph in text.split("\n"):
            lines += _wrap((" " * _INDENT if lines else head) + escaped(paragraph), " " * _INDENT)
    return lines


def _wrap(text: str, indent: str) -> list[str]:
    """Wrap a text at blanks."""
    # A line with a public key stays whole, so that it can be copied.
    if _KEY_BLOB_START in text:
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
        print(f"airflow-sftp-backend: {host} has no host key of a supported type", file=sys.stderr)
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
    """Split ``HOST``, ``HOST:PORT``, ``[ADDRESS]`` or ``[ADDRESS]:PORT``.

    An address without brackets has no port.

    :param port: the value of ``--port``, or None
    :raises UsageError: if the port is not a number, or differs from ``--port``
    """
    if "@" in text:  # the error omits the text, which may hold a password
        raise UsageError("HOST must be a name or address, without user and password; a scan does not log in")
    host, port_text = text, ""
    if text.startswith("[") and "]" in text:
        host, _, after_address = text[1:].partition("]")
        port_text = after_address.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    if not port_text:
        return host, port or DEFAULT_PORT
    if not (port_text.isascii() and port_text.isdigit()) or port not in (None, int(port_text)):
        raise UsageError(f"invalid port {port_text!r} in {text!r}; pass one port, as HOST:PORT or with --port")
    return host, int(port_text)


if __name__ == "__main__":
    sys.exit(main())
