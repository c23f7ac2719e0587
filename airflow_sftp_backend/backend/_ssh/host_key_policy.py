"""Check host keys, and apply the policy for unknown keys.

The only I/O is that of the known_hosts file.
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
    """Checks the host key of one server.

    Known keys are those of ``config.known_host_keys``, else of the environment variable, else of the known_hosts file.
    With a policy other than STRICT, the file is also read if the first two have no line for the host.

    :param config: configuration of the server
    :param environ: environment variables
    :param now: returns seconds since 1970
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
        """Return the algorithms of the known keys, to propose first.

        The key type ``ssh-rsa`` becomes the algorithms ``rsa-sha2-512``, ``rsa-sha2-256`` and, if allowed, ``ssh-rsa``
        (RFC 8332 section 3).

        :returns: algorithms, best first; empty if no key is known
        :raises HostKeyRejected: if the known_hosts file cannot be read
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
        """Check a host key.

        With the policy TRUST_ON_FIRST_USE, an unknown key is stored in the file.

        :param blob: the server's key or certificate
        :returns: the reason why the key is trusted
        :raises HostKeyRejected: with the key, the known keys, their source and the remedy
        """
        try:
            plain_key(blob)
        except ValueError as error:
            raise self._cannot_check(f"the server sent {error}") from None
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
            "accepting the host key of %s unchecked (host_key_policy 'auto'): %s %s. To pin the key, set"
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
            log.warning("ignoring a line: %s", problem)
        self._warned.update(known_hosts.problems)
        return known_hosts

    def _decide(self, known_hosts: KnownHosts, blob: bytes) -> HostKeyDecision:
        return known_hosts.decide(self._config.host, self._config.port, blob, self._now())

    def _known_hosts_line(self, blob: bytes) -> str:
        return known_hosts_line(self._config.host, self._config.port, blob)

    def _cannot_check(self, reason: str) -> HostKeyRejected:
        return HostKeyRejected(f"the host key cannot be checked: {reason}", server=self._config.address)

    def _rejection(self, blob: bytes, decision: HostKeyDecision, searched: list[KnownHosts]) -> HostKeyRejected:
        offered = f"the server's key is {key_type(blob)} {fingerprint(blob)}"
        problems = [problem for known_hosts in searched for problem in known_hosts.problems]
        ignored = f". Ignored lines: {'; '.join(problems[:MAX_LISTED])}" if problems else ""
        if decision.status is HostKeyStatus.REVOKED:
            text = f"revoked host key: {offered}, and {decision.reason}. Do not connect until the server has a new key"
            return HostKeyRejected(text + ignored, server=self._config.address, status=decision.status.value)
        add = f"add this line to {searched[0].source}:\n{self._known_hosts_line(blob)}\n"
        if decision.status is HostKeyStatus.CHANGED:
            text = (
                f"wrong host key: {offered}, but {decision.reason}{ignored}. Either the server has a new key, or an"
                f" attacker poses as the server. If the server's owner confirms the new fingerprint, {add}"
                "and remove the lines of replaced keys"
            )
        else:
            name = host_pattern(self._config.host, self._config.port)
            nothing_known = "".join(f"{known_hosts.no_entry_text(name)}; " for known_hosts in searched[:-1])
            text = (
                f"unknown host key: {offered}, and {nothing_known}{decision.reason}{ignored}. Compare the"
                f" fingerprint with that of the server's owner; if they are equal, {add}"
            )
        return HostKeyRejected(text, server=self._config.address, status=decision.status.value)

    def _remember(self, blob: bytes, searched: list[KnownHosts]) -> str:
        """Append the key to the file.

        If another process has added a key of the host meanwhile, that key decides.
        """
        try:
            os.makedirs(os.path.dirname(self._path) or ".", mode=0o700, exist_ok=True)
            with _open_locked(self._path, self._config.timeout) as descriptor:
                with open(descriptor, "rb", closefd=False) as file:
                    content = file.read()
                # Read again under the lock: a parallel task may have added a key since the first search.
                known_hosts = self._parse_file(content)
                decision = self._decide(known_hosts, blob)
                if decision.status is HostKeyStatus.UNKNOWN:
                    _append(descriptor, content, f"{self._known_hosts_line(blob)}\n".encode())
        except OSError as error:
            raise self._cannot_check(
                f"no key of the server is known, and its key {key_type(blob)} {fingerprint(blob)} cannot be stored in"
                f" {self._path}: {error.strerror or error}. Set host_keys_path to a writable file, or known_host_keys"
                f" to this line:\n{self._known_hosts_line(blob)}\n"
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
    """Restore line ends replaced by a literal ``\\n`` or by blanks."""
    # Forms and environment variables turn line ends into blanks or into a literal backslash and n.
    return _JOINED_ENTRIES.sub(r"\1\2\n", re.sub(r"\\+r\\+n|\\+[rn]", "\n", text))


@contextmanager
def _open_locked(path: str, timeout: float) -> Iterator[int]:
    """Open a file with an exclusive lock.

    A missing file is created with mode 0600.

    :param timeout: longest time in seconds to wait for the lock
    :raises TimeoutError: if another process holds the lock for longer
    :raises OSError: if the file cannot be opened
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
                    raise TimeoutError("another process holds the lock")
                time.sleep(0.01)
            # `ssh-keygen -R` replaces the file: if the locked file is not the current one any more, open it again.
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _append(descriptor: int, content: bytes, line: bytes) -> None:
    """Append a line to a file with the given content.

    If the disk is full, leave the file unchanged.
    """
    # The last line of a file edited by hand may lack its newline.
    remaining = line if not content or content.endswith(b"\n") else b"\n" + line
    try:
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
    except OSError:
        os.ftruncate(descriptor, len(content))
        raise
