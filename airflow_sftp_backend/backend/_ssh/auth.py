"""Log in with keys and passwords, each at most once."""

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
"""Most prompts to record: a server may send prompts without end."""


@dataclass(frozen=True)
class KeySources:
    """Sources of private keys besides the fields of the configuration.

    :ivar files: paths of key files
    :ivar use_agent: use the keys of the SSH agent
    :ivar use_home_directory: use the keys in ``~/.ssh`` with the default names of ssh-keygen
    """

    files: tuple[str, ...]
    use_agent: bool
    use_home_directory: bool


@dataclass
class AuthRecord:
    """Progress of a login.

    :ivar offered: authentication methods of the server
    :ivar refused: names of the refused credentials
    :ivar accepted: names of the accepted credentials
    :ivar prompts: texts and prompts of keyboard-interactive (RFC 4256)
    """

    offered: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    password_refused: bool = False
    keys_refused: int = 0


@dataclass(frozen=True)
class _Credential:
    """Key or password for the login.

    :ivar name: name in messages
    :ivar methods: authentication methods for this credential
    :ivar attempt: sends the credential. The arguments are the transport and the methods that the server wants next,
        None if unknown. The result is the methods that the server wants besides, empty once the user is logged in.
        Raises AuthenticationException if the server refuses, _SigningFailed if the credential cannot be used.
    """

    name: str
    methods: frozenset[str]
    attempt: Callable[[paramiko.Transport, list[str] | None], list[str]]


class _SigningFailed(Exception):
    """Report a private key that cannot sign.

    An example is an agent's key without its confirmation.
    """


class Authenticator(AuthStrategy):
    """Logs in with configured keys, the password, then other keys.

    A server may require several methods (RFC 4252 section 5.1). The password is also the answer to the first prompt of
    keyboard-interactive (RFC 4256).

    :param config: the configuration
    :param key_sources: other sources of keys; unusable keys from the agent and the home directory are skipped
    :param username: name to log in with
    :param password: the password; None if there is none
    :param before_request: called before each request to the server
    :param record: receives the progress of the login
    :param query_auth_methods: first ask the server for its methods, as ssh(1) does
    :raises AuthenticationFailed: if a key of the configuration cannot be used
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
        """Return no sources: `authenticate` is overridden and does not use them."""
        return iter(())

    def authenticate(self, transport: paramiko.Transport) -> list[SourceResult]:
        """Log in.

        :param transport: the connection
        :raises AuthenticationFailed: if the server refuses the login
        :raises paramiko.SSHException: or another exception of paramiko, if the connection is lost
        """
        if self._asks_methods_first:
            self._record.offered = self._query_methods(transport)
            if transport.is_authenticated():
                self._record.accepted.append("no credential, as the server requires none")
                return []
        agent = self._agent()
        try:
            # Configured credentials first: a server limits the attempts (OpenSSH: MaxAuthTries).
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
            raise self.failure(f"the server also requires {' and '.join(wanted)}, and no other credential is set")
        offered = self._record.offered = self._record.offered or self._query_methods(transport)
        methods = f"accepted methods: {', '.join(offered)}" if offered else "the server does not list its methods"
        raise self.failure(f"{methods}; {self._hint(offered)}")

    def failure(self, reason: str) -> AuthenticationFailed:
        """Return the error for a refused login, with all attempts."""
        record = self._record
        tried = f"refused: {', '.join(record.refused)}; " if record.refused else ""
        prompts = f"prompts: {', '.join(map(repr, record.prompts))}; " if record.prompts else ""
        skipped = f" (not tried: {'; '.join(self._skipped)})" if self._skipped else ""
        return AuthenticationFailed(
            f"the server refuses the login of {self._username!r}: {tried}{prompts}{reason}{skipped}"
        )

    def _try_credentials(
        self, transport: paramiko.Transport, credentials: list[_Credential], wanted: list[str] | None
    ) -> tuple[_Credential, list[str]] | None:
        """Return the first accepted credential and the methods still wanted.

        None without an accepted credential.
        """
        for credential in credentials:
            if wanted is not None and not credential.methods & set(wanted):
                continue
            try:
                still_wanted = credential.attempt(transport, wanted)
            except _SigningFailed as error:
                self._skipped.append(f"{credential.name}: {error}")
            except PasswordExpired as error:
                raise self.failure(
                    f"{credential.name} has expired ({printable(error.prompt)!r}); change the password on the server,"
                    " for example with sftp or ssh, then set the new password in the connection"
                ) from None
            except paramiko.AuthenticationException as error:
                if not transport.is_active():  # the connection has ended, so the credential is not known to be refused
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

    # -- credentials

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
        passwords = [password]  # sent once: a second prompt is for something else, or the password was wrong

        def answer_prompts(title: str, instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
            texts = [printable(text) for text in (title, instructions, *(prompt for prompt, _ in prompts))]
            self._record.prompts += [text for text in texts if text]
            del self._record.prompts[_MAX_PROMPTS:]  # a server may prompt without end
            answers: list[str] = []
            for _, echo in prompts:
                # Passwords are prompted for without echo. A single prompt is taken for the password in any case.
                is_password = len(prompts) == 1 or not echo
                answers.append(passwords.pop().reveal() if is_password and passwords else "")
            return answers

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
        """Return a handler for the next request.

        Request the service before the first one.
        """
        self._before_request()
        handler = AuthRequestHandler.attach(transport)
        if not self._service_requested:
            self._service_requested = True
            handler.request_service()
        return handler

    # -- hints

    def _query_methods(self, transport: paramiko.Transport) -> list[str]:
        """Request the methods with ``none`` (RFC 4252 section 5.2)."""
        try:
            self._new_request(transport).auth_none(self._username)
        except paramiko.BadAuthenticationType as error:
            return error.allowed_types
        except (paramiko.SSHException, EOFError, OSError) as error:
            log.debug("server does not list its authentication methods: %s", error)
        return []

    def _hint(self, offered: list[str]) -> str:
        by_password, by_key = self._record.password_refused, self._record.keys_refused > 0
        if not by_password and not by_key:
            return "set a password or a private key"
        if offered and not by_key and not {"password", _INTERACTIVE} & set(offered):
            return "set a private key, as passwords are not accepted"
        if offered and not by_password and "publickey" not in offered:
            return "set a password, as keys are not accepted"
        checks = ["check the user name"]
        checks += ["the password"] if by_password else []
        checks += ["that the key is among the user's authorized keys on the server"] if by_key else []
        hint = " and ".join(checks)
        if self._record.prompts:
            hint += (
                "; prompts are answered with the password only: if the server prompts for a one-time code or a new"
                " password, use a key"
            )
        return hint
