"""Logging in: showing a server what there is, each thing at most once, until it is satisfied."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import paramiko
from paramiko.auth_strategy import AuthStrategy

from airflow_sftp_backend.backend.config import BackendConfig, Secret
from airflow_sftp_backend.backend.errors import AuthenticationFailed, printable

from ._paramiko_compat import AuthRequestHandler, PasswordExpired
from .private_keys import config_key, load_private_key

if TYPE_CHECKING:
    from paramiko.auth_strategy import AuthSource, SourceResult

log = logging.getLogger(__name__)

_INTERACTIVE = "keyboard-interactive"
_MAX_PROMPTS = 8
"""Prompts that are kept: a server may ask without end."""


@dataclass(frozen=True)
class KeySources:
    """Where to find keys beside those of the configuration."""

    files: tuple[str, ...]
    use_agent: bool
    use_home_directory: bool
    """``~/.ssh``, under the names ssh-keygen gives."""


@dataclass
class AuthRecord:
    """How a login went, as it goes on: what the server said it takes, what it refused, and what it took."""

    offered: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    """Texts and prompts of keyboard-interactive, in the server's words."""
    password_refused: bool = False
    keys_refused: int = 0


@dataclass(frozen=True)
class _Credential:
    """One thing to log in with.

    ``attempt`` sends it to a server that wants one of the given methods next (None: not known yet). It returns the
    methods wanted besides, none once the user is logged in. It raises AuthenticationException if the server refuses it,
    _UnusableKey if it cannot be sent.
    """

    name: str
    methods: frozenset[str]
    attempt: Callable[[paramiko.Transport, list[str] | None], list[str]]


class _SigningFailed(Exception):
    """The holder of a private key does not sign with it."""


class Authenticator(AuthStrategy):
    """Logs in with what is configured, keys first, then with the keys that are found in other places, and goes on where
    the server wants several things (RFC 4252 section 5.1). ``password`` is also the answer to the first prompt of
    keyboard-interactive (RFC 4256).

    ``before_request`` is called before each question to the server; with ``query_auth_methods`` the first of them is
    which methods it takes, as ssh(1) has it. AuthenticationFailed for a key of the configuration that cannot be used;
    keys found elsewhere are then left out.
    """

    def __init__(
        self,
        config: BackendConfig,
        key_sources: KeySources,
        username: str,
        password: Secret | None,
        before_request: Callable[[], None],
        *,
        record: AuthRecord,
        query_auth_methods: bool = False,
    ) -> None:
        super().__init__(paramiko.SSHConfig())
        self._config = config
        self._key_sources = key_sources
        self._username = username
        self._before_request = before_request
        self._service_requested = False
        self._skipped: list[str] = []
        self._record = record
        self._asks_methods_first = query_auth_methods
        self._configured_keys_tried = [*self._configured_keys()]
        self._passwords = [] if password is None else [self._password_credential(password)]

    def get_sources(self) -> Iterator[AuthSource]:
        """None of paramiko's: `authenticate` does without."""
        return iter(())

    def authenticate(self, transport: paramiko.Transport) -> list[SourceResult]:
        """Logs in. Raises AuthenticationFailed, or what paramiko raises if the connection is lost meanwhile."""
        if self._asks_methods_first:
            self._record.offered = self._query_methods(transport)
            if transport.is_authenticated():
                self._record.accepted.append("nothing: the server asks for no proof")
                return []
        agent = self._agent()
        try:
            # A server counts attempts: keys that happen to be found must not use up those of what is configured.
            remaining = [*self._configured_keys_tried, *self._passwords, *self._agent_keys(agent), *self._home_keys()]
            remaining = remaining or [self._none_credential()]
            wanted: list[str] | None = None
            while result := self._try_credentials(transport, remaining, wanted):
                accepted, wanted = result
                if not wanted:
                    return []
                remaining.remove(accepted)
        finally:
            if agent is not None:
                agent.close()
        if wanted:
            raise self.failure(f"the server wants {' and '.join(wanted)} as well, and nothing is left to show")
        offered = self._record.offered = self._record.offered or self._query_methods(transport)
        takes = f"the server takes {', '.join(offered)}" if offered else "the server does not say what it takes"
        raise self.failure(f"{takes}; {self._hint(offered)}")

    def failure(self, reason: str) -> AuthenticationFailed:
        """The error for a login that came to nothing; it lists what was tried."""
        record = self._record
        tried = f"it refuses {', '.join(record.refused)}; " if record.refused else ""
        prompts = f"it asks {', '.join(map(repr, record.prompts))}; " if record.prompts else ""
        skipped = f" (not tried: {'; '.join(self._skipped)})" if self._skipped else ""
        return AuthenticationFailed(f"the server does not let {self._username!r} in: {tried}{prompts}{reason}{skipped}")

    def _try_credentials(
        self, transport: paramiko.Transport, credentials: list[_Credential], wanted: list[str] | None
    ) -> tuple[_Credential, list[str]] | None:
        """The first credential the server takes, and what it wants beside it."""
        for credential in credentials:
            if wanted is not None and not credential.methods & set(wanted):
                continue
            try:
                still_wanted = credential.attempt(transport, wanted)
            except _SigningFailed as error:
                self._skipped.append(f"{credential.name}: {error}")
            except PasswordExpired as error:
                raise self.failure(
                    f"it takes {credential.name} only together with a new one ({printable(error.prompt)!r}); change the"
                    " password there, for example with sftp or ssh, then set the new one here"
                ) from None
            except paramiko.AuthenticationException as error:
                if not transport.is_active():
                    raise
                if isinstance(error, paramiko.BadAuthenticationType):
                    self._record.offered = error.allowed_types
                self._record.refused.append(credential.name)
                self._record.keys_refused += "publickey" in credential.methods
                self._record.password_refused |= "password" in credential.methods
            else:
                self._record.accepted.append(credential.name)
                return credential, still_wanted
        return None

    # -- what there is

    def _configured_keys(self) -> Iterator[_Credential]:
        configured = config_key(self._config)
        if configured is not None:
            yield self._key_credential(configured, "")
        for file in self._key_sources.files:
            yield self._key_credential(load_private_key(file, from_file=True, passphrase=self._config.passphrase), "")

    def _agent(self) -> paramiko.Agent | None:
        if not self._key_sources.use_agent:
            return None
        try:
            return paramiko.Agent()
        except (paramiko.SSHException, OSError) as error:
            self._skipped.append(f"the SSH agent: {error}")
            return None

    def _agent_keys(self, agent: paramiko.Agent | None) -> Iterator[_Credential]:
        for key in agent.get_keys() if agent is not None else ():
            yield self._key_credential(key, " of the SSH agent")

    def _home_keys(self) -> Iterator[_Credential]:
        for name in ("ed25519", "ecdsa", "rsa") if self._key_sources.use_home_directory else ():
            path = os.path.expanduser(f"~/.ssh/id_{name}")
            if os.path.exists(path):
                try:
                    key = load_private_key(path, from_file=True, passphrase=self._config.passphrase)
                except AuthenticationFailed as error:
                    self._skipped.append(error.message)
                else:
                    yield self._key_credential(key, f" of {path}")

    def _key_credential(self, key: paramiko.PKey, origin: str) -> _Credential:
        name = f"the {key.get_name()} key {key.fingerprint}{origin}"

        def attempt(transport: paramiko.Transport, _wanted: list[str] | None) -> list[str]:
            try:
                if self._config.allow_ssh_rsa_sha1 and isinstance(key, paramiko.RSAKey):
                    self._service_requested = True
                    self._before_request()
                    return transport.auth_publickey(self._username, key)  # a legacy transport may sign with SHA-1
                return self._new_request(transport).auth_publickey(self._username, key)
            except (paramiko.AuthenticationException, EOFError):
                raise
            except (paramiko.SSHException, OSError, ValueError) as error:
                if not transport.is_active():
                    raise
                raise _SigningFailed(printable(str(error)) or type(error).__name__) from error

        return _Credential(name, frozenset({"publickey"}), attempt)

    def _password_credential(self, password: Secret) -> _Credential:
        passwords = [password]  # given once: a second question is for something else, or means that it was wrong

        def answer_prompts(title: str, instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
            texts = (title, instructions, *(prompt for prompt, _ in prompts))
            self._record.prompts += [shown for text in texts if (shown := printable(text))][
                : _MAX_PROMPTS - len(self._record.prompts)
            ]
            return [
                passwords.pop().reveal() if passwords and (len(prompts) == 1 or not echo) else "" for _, echo in prompts
            ]

        def attempt(transport: paramiko.Transport, wanted: list[str] | None) -> list[str]:
            if wanted is None or "password" in wanted:
                try:
                    return self._new_request(transport).auth_password(self._username, password.reveal())
                except paramiko.BadAuthenticationType as error:
                    if _INTERACTIVE not in error.allowed_types:
                        raise error.with_traceback(None) from None  # paramiko's frames hold the password
                except (paramiko.SSHException, EOFError, OSError) as error:
                    raise error.with_traceback(None) from None
            return self._new_request(transport).auth_interactive(self._username, answer_prompts)

        return _Credential("the password", frozenset({"password", _INTERACTIVE}), attempt)

    def _none_credential(self) -> _Credential:
        def attempt(transport: paramiko.Transport, _wanted: list[str] | None) -> list[str]:
            return self._new_request(transport).auth_none(self._username)

        return _Credential("a login without password and key", frozenset({"none"}), attempt)

    def _new_request(self, transport: paramiko.Transport) -> AuthRequestHandler:
        """A handler for the next request to the server; the first one requests the service."""
        self._before_request()
        handler = AuthRequestHandler.attach(transport)
        if not self._service_requested:
            self._service_requested = True
            handler.request_service()
        return handler

    # -- why it failed

    def _query_methods(self, transport: paramiko.Transport) -> list[str]:
        """What the server takes: it says so when asked for a login with nothing (RFC 4252 section 5.2)."""
        try:
            self._new_request(transport).auth_none(self._username)
        except paramiko.BadAuthenticationType as error:
            return error.allowed_types
        except (paramiko.SSHException, EOFError, OSError) as error:
            log.debug("the server does not list its login methods: %s", error)
        return []

    def _hint(self, offered: list[str]) -> str:
        by_password, by_key = self._record.password_refused, self._record.keys_refused > 0
        if not by_password and not by_key:
            return "set a password or a private key"
        if offered and not by_key and not {"password", _INTERACTIVE} & set(offered):
            return "set a private key, it takes no password"
        if offered and not by_password and "publickey" not in offered:
            return "set a password, it takes no keys"
        checks = ["check the user name"]
        checks += ["the password"] if by_password else []
        checks += ["that the key is among the user's authorized keys on the server"] if by_key else []
        hint = " and ".join(checks)
        if self._record.prompts:
            hint += (
                "; only the password is given in answer to a prompt: if the server asks for a one-time code or a new"
                " password, have it take a key of this user instead"
            )
        return hint
