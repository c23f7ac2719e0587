"""Decides whether a server's host key is trusted: where known keys come from, and the policy for unknown keys.

The only input and output is the known_hosts file.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from airflow_sftp_backend.backend.config import DEFAULT_HOST_KEYS_PATH, BackendConfig, HostKeyPolicy
from airflow_sftp_backend.backend.errors import HostKeyRejected

from .host_certificates import fingerprint, key_type, plain_key
from .known_hosts import MAX_LISTED, HostKeyDecision, HostKeyStatus, KnownHosts, host_pattern, known_hosts_line

log = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE: Final = "SFTP_KNOWN_HOST_KEYS"


class HostKeyChecker:
    """Decides whether a server's key is to be trusted, as its configuration says.

    Keys come from ``config.known_host_keys``, else from the environment, else from the known_hosts file. The policies
    other than STRICT look into the file too where the first two know nothing of the host.
    """

    def __init__(self, config: BackendConfig, environ: Mapping[str, str], now: Callable[[], float] = time.time) -> None:
        self._config = config
        self._now = now
        self._path = os.path.expanduser(config.host_keys_path or DEFAULT_HOST_KEYS_PATH)
        self._warned: set[str] = set()
        self._inline: KnownHosts | None = None
        if inline := (config.known_host_keys or "").strip():
            self._inline = KnownHosts.parse(_restore_line_ends(inline), pinned=True)
        elif inline := environ.get(ENVIRONMENT_VARIABLE, "").strip():
            self._inline = KnownHosts.parse(_restore_line_ends(inline), source=ENVIRONMENT_VARIABLE)

    def preferred_types(self) -> tuple[str, ...]:
        """Host key algorithms that lead to a key somebody vouches for, to be negotiated first; empty if none is known.

        They are algorithms, not key types: an RSA key stands for ``rsa-sha2-512``, ``rsa-sha2-256`` and, where the
        configuration allows it, ``ssh-rsa``, a certificate likewise. HostKeyRejected if the file cannot be read.
        """
        for known_hosts in self._sources():
            if types := known_hosts.known_types(self._config.host, self._config.port):
                return tuple(name for kind in types for name in self._algorithms(kind))
        return ()

    def _algorithms(self, kind: str) -> list[str]:
        if not kind.startswith("ssh-rsa"):
            return [kind]
        suffix = kind.removeprefix("ssh-rsa")
        return [f"rsa-sha2-512{suffix}", f"rsa-sha2-256{suffix}", *([kind] if self._config.allow_ssh_rsa_sha1 else [])]

    def check(self, blob: bytes) -> str:
        """Why the key is trusted. ``blob`` is what the server sent: its key, or its certificate.

        Raises HostKeyRejected, whose text shows the key, what is known, where it was looked for and what to do.
        """
        try:
            plain_key(blob)
        except ValueError as error:
            raise self._cannot_check(f"what the server sent as its key is {error}") from None
        searched: list[KnownHosts] = []
        decision = HostKeyDecision(HostKeyStatus.UNKNOWN, "")
        for known_hosts in self._sources():
            searched.append(known_hosts)
            decision = self._decide(known_hosts, blob)
            if decision.status is not HostKeyStatus.UNKNOWN:
                break
        policy = self._config.host_key_policy
        if decision.status is HostKeyStatus.TRUSTED:
            return decision.reason
        if decision.status is not HostKeyStatus.UNKNOWN or policy is HostKeyPolicy.STRICT:
            raise self._rejection(blob, decision, searched)
        if policy is HostKeyPolicy.TRUST_ON_FIRST_USE:
            return self._remember(blob, searched)
        log.warning(
            "the host key of %s is accepted unchecked, as host_key_policy 'auto' says: %s %s. To pin it, set"
            " known_host_keys to this line: %s",
            self._config.address, key_type(blob), fingerprint(blob), self._known_hosts_line(blob),
        )  # fmt: skip
        return "accepted unchecked: host_key_policy is 'auto'"

    def _sources(self) -> Iterator[KnownHosts]:
        if self._inline is not None:
            yield self._warn_of_problems(self._inline)
        if self._inline is None or self._config.host_key_policy is not HostKeyPolicy.STRICT:
            try:
                known_hosts = self._parse_file(Path(self._path).read_bytes())
            except FileNotFoundError:
                known_hosts = KnownHosts(self._path, missing=True)
            except OSError as error:
                raise self._cannot_check(f"{self._path} cannot be read: {error.strerror}") from None
            yield self._warn_of_problems(known_hosts)

    def _parse_file(self, content: bytes) -> KnownHosts:
        return KnownHosts.parse(content.decode("utf-8", "replace"), source=self._path)

    def _warn_of_problems(self, known_hosts: KnownHosts) -> KnownHosts:
        for problem in (p for p in known_hosts.problems if p not in self._warned):
            log.warning("%s; the line does not count", problem)
        self._warned.update(known_hosts.problems)
        return known_hosts

    def _decide(self, known_hosts: KnownHosts, blob: bytes) -> HostKeyDecision:
        return known_hosts.decide(self._config.host, self._config.port, blob, self._now())

    def _known_hosts_line(self, blob: bytes) -> str:
        return known_hosts_line(self._config.host, self._config.port, blob)

    def _cannot_check(self, reason: str) -> HostKeyRejected:
        return HostKeyRejected(f"the host key cannot be checked: {reason}", server=self._config.address)

    def _rejection(self, blob: bytes, decision: HostKeyDecision, searched: list[KnownHosts]) -> HostKeyRejected:
        offered = f"the server shows {key_type(blob)} {fingerprint(blob)}"
        problems = [problem for known_hosts in searched for problem in known_hosts.problems]
        unread = f". Lines that do not count: {'; '.join(problems[:MAX_LISTED])}" if problems else ""
        if decision.status is HostKeyStatus.REVOKED:
            text = f"revoked host key: {offered}, and {decision.reason}. Do not connect before its owner has a new key"
            return HostKeyRejected(text + unread, server=self._config.address, status="revoked")
        add = f"add this line to {searched[0].source}:\n{self._known_hosts_line(blob)}\n"
        if decision.status is HostKeyStatus.CHANGED:
            text = (
                f"wrong host key: {offered}, but {decision.reason}{unread}. Either the server has another key now, or"
                f" somebody in between poses as it. If its owner confirms the new fingerprint, {add}"
                "and remove the lines of keys that are gone"
            )
        else:
            name = host_pattern(self._config.host, self._config.port)
            nothing_known = "".join(f"{known_hosts.no_entry_text(name)}; " for known_hosts in searched[:-1])
            text = (
                f"unknown host key: {offered}, and {nothing_known}{decision.reason}{unread}. Ask the server's owner"
                f" whether the fingerprint is right; if it is, {add}"
            )
        return HostKeyRejected(text, server=self._config.address, status=decision.status.value)

    def _remember(self, blob: bytes, searched: list[KnownHosts]) -> str:
        """Appends the key to the file unless it, or another key of the host, has come to stand there meanwhile."""
        try:
            os.makedirs(os.path.dirname(self._path) or ".", mode=0o700, exist_ok=True)
            with _open_locked(self._path, self._config.timeout) as descriptor:
                with open(descriptor, "rb", closefd=False) as file:
                    content = file.read()
                known_hosts = self._parse_file(content)
                decision = self._decide(known_hosts, blob)
                if decision.status is HostKeyStatus.UNKNOWN:
                    _append(descriptor, content, f"{self._known_hosts_line(blob)}\n".encode())
        except OSError as error:
            raise self._cannot_check(
                f"nothing is known of the server yet, and its key {key_type(blob)} {fingerprint(blob)} cannot be"
                f" remembered in {self._path}: {error.strerror or error}. Name a file that can be written in"
                f" host_keys_path, or set known_host_keys to this line:\n{self._known_hosts_line(blob)}\n"
            ) from None
        if decision.status is HostKeyStatus.TRUSTED:
            return decision.reason
        if decision.status is not HostKeyStatus.UNKNOWN:
            raise self._rejection(blob, decision, [*searched[:-1], known_hosts])
        log.info("%s: first use, host key %s added to %s", self._config.address, fingerprint(blob), self._path)
        return f"first use; added to {self._path}"


_ENTRY_START: Final = r"(?=(?:@[a-z-]+[ \t]+)?(?:[^\s(]\S*[ \t]+)?(?:(?:ssh|ecdsa|sk)-\S+[ \t]+AAAA|SHA256:))"
_JOINED_ENTRIES: Final = re.compile(rf"((?:AAAA|SHA256:)\S+)([^\n]*?)[ \t]+{_ENTRY_START}")


def _restore_line_ends(text: str) -> str:
    """The line ends that a form or a variable has turned to a literal ``\\n`` or to blanks, put back."""
    return _JOINED_ENTRIES.sub(r"\1\2\n", re.sub(r"\\+r\\+n|\\+[rn]", "\n", text))


@contextmanager
def _open_locked(path: str, timeout: float) -> Iterator[int]:
    """A descriptor of the file, made (mode 0600) where it is missing, that this process alone holds locked.

    OSError if it cannot be opened, TimeoutError if others hold the lock for longer than ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError("another process holds its lock")
                time.sleep(0.01)
            # `ssh-keygen -R` replaces the file.
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _append(descriptor: int, content: bytes, line: bytes) -> None:
    """Adds the line after ``content``, which is what the file holds; leaves that as it was if the disk is full."""
    remaining = line if not content or content.endswith(b"\n") else b"\n" + line
    try:
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
    except OSError:
        os.ftruncate(descriptor, len(content))
        raise
