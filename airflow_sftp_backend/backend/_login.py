"""Logging in: showing a server what there is, each thing at most once, until it is satisfied."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import paramiko
from paramiko.auth_handler import AuthOnlyHandler
from paramiko.auth_strategy import AuthStrategy
from paramiko.common import MSG_USERAUTH_REQUEST

from ._config import BackendConfig
from ._errors import AuthenticationFailed
from ._keys import config_key, load_private_key

if TYPE_CHECKING:
    from paramiko.auth_strategy import AuthSource, SourceResult

log = logging.getLogger(__name__)

_INTERACTIVE = "keyboard-interactive"


@dataclass(frozen=True)
class Places:
    """Where to find keys beside those of the configuration."""

    files: tuple[str, ...]
    agent: bool
    home: bool
    """``~/.ssh``, under the names ssh-keygen gives."""


@dataclass
class LoginRecord:
    """How a login went, as it goes on: what the server said it takes, what it refused, and what it took."""

    offered: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Credential:
    """``present`` shows it to a server that wants the methods given next (None: not known yet) and returns the methods
    wanted beside it, none once the user is in. It raises AuthenticationException where the server refuses it.
    """

    name: str
    methods: frozenset[str]
    present: Callable[[paramiko.Transport, list[str] | None], list[str]]


class _Asking(AuthOnlyHandler):
    """One more question of a login. paramiko's other ways ask for the login service again each time, upon which some
    servers hang up, or miss an answer that is quick.
    """

    def send_auth_request(
        self, username: str, method: str, finish_message: Callable[[paramiko.Message], None] | None = None
    ) -> list[str]:
        """Sends the request and waits for the answer: the methods wanted next, none once the user is in."""
        self.auth_method = method
        self.username = username
        self.auth_event = threading.Event()
        request = paramiko.Message()
        request.add_byte(bytes([MSG_USERAUTH_REQUEST]))
        for text in (username, "ssh-connection", method):
            request.add_string(text)
        if finish_message is not None:
            finish_message(request)
        self.transport.packetizer.send_message(request)
        return self.wait_for_response(self.auth_event)


class Login(AuthStrategy):
    """Logs in with keys first, then the password, and goes on where the server wants several things (RFC 4252 section
    5.1). ``password`` is also the answer to the first question of keyboard-interactive (RFC 4256).

    ``on_question`` is called before each question to the server; with ``curious`` the first of them is which methods
    it takes, as ssh(1) has it. AuthenticationFailed for a key of the configuration that cannot be used; keys found
    elsewhere are then left out.
    """

    def __init__(
        self,
        config: BackendConfig,
        places: Places,
        username: str,
        password: str | None,
        on_question: Callable[[], None],
        *,
        record: LoginRecord,
        curious: bool = False,
    ) -> None:
        super().__init__(paramiko.SSHConfig())
        self._config = config
        self._places = places
        self._username = username
        self._on_question = on_question
        self._asked = False
        self._skipped: list[str] = []
        self._record = record
        self._curious = curious
        self._given = [*self._configured_keys()]
        self._passwords = [] if password is None else [self._by_password(password)]

    def get_sources(self) -> Iterator[AuthSource]:
        """None of paramiko's: `authenticate` does without."""
        return iter(())

    def authenticate(self, transport: paramiko.Transport) -> list[SourceResult]:
        """Logs in. Raises AuthenticationFailed, or what paramiko raises if the connection is lost meanwhile."""
        if self._curious:
            self._record.offered = self._ask(transport)
            if transport.is_authenticated():
                self._record.taken.append("nothing: the server asks for no proof")
                return []
        agent = self._agent()
        try:
            left = [*self._given, *self._agent_keys(agent), *self._home_keys(), *self._passwords]
            left = left or [self._with_nothing()]
            wanted: list[str] | None = None
            while step := self._step(transport, left, wanted):
                taken, wanted = step
                if not wanted:
                    return []
                left.remove(taken)
        finally:
            if agent is not None:
                agent.close()
        if wanted:
            raise self.failed(f"the server wants {' and '.join(wanted)} as well, and nothing is left to show")
        offered = self._record.offered = self._record.offered or self._ask(transport)
        takes = f"the server takes {', '.join(offered)}" if offered else "the server does not say what it takes"
        raise self.failed(f"{takes}; {self._hint(offered)}")

    def failed(self, why: str) -> AuthenticationFailed:
        """The error for a login that came to nothing; it lists what was tried."""
        refused = self._record.refused
        tried = f"it refuses {', '.join(refused)}; " if refused else ""
        skipped = f" (not tried: {'; '.join(self._skipped)})" if self._skipped else ""
        return AuthenticationFailed(f"the server does not let {self._username!r} in: {tried}{why}{skipped}")

    def _step(
        self, transport: paramiko.Transport, credentials: list[_Credential], wanted: list[str] | None
    ) -> tuple[_Credential, list[str]] | None:
        """The first credential the server takes, and what it wants beside it."""
        for credential in credentials:
            if wanted is not None and not credential.methods & set(wanted):
                continue
            try:
                still_wanted = credential.present(transport, wanted)
            except paramiko.AuthenticationException as error:
                if not transport.is_active():
                    raise
                if isinstance(error, paramiko.BadAuthenticationType):
                    self._record.offered = error.allowed_types
                self._record.refused.append(credential.name)
            else:
                self._record.taken.append(credential.name)
                return credential, still_wanted
        return None

    # -- what there is

    def _configured_keys(self) -> Iterator[_Credential]:
        configured = config_key(self._config)
        if configured is not None:
            yield self._by_key(configured, "")
        for file in self._places.files:
            yield self._by_key(load_private_key(file, from_file=True, passphrase=self._config.passphrase), "")

    def _agent(self) -> paramiko.Agent | None:
        if not self._places.agent:
            return None
        try:
            return paramiko.Agent()
        except (paramiko.SSHException, OSError) as error:
            self._skipped.append(f"the SSH agent: {error}")
            return None

    def _agent_keys(self, agent: paramiko.Agent | None) -> Iterator[_Credential]:
        for key in agent.get_keys() if agent is not None else ():
            yield self._by_key(key, " of the SSH agent")

    def _home_keys(self) -> Iterator[_Credential]:
        for name in ("ed25519", "ecdsa", "rsa") if self._places.home else ():
            path = os.path.expanduser(f"~/.ssh/id_{name}")
            if os.path.exists(path):
                try:
                    key = load_private_key(path, from_file=True, passphrase=self._config.passphrase)
                except AuthenticationFailed as error:
                    self._skipped.append(error.message)
                else:
                    yield self._by_key(key, f" of {path}")

    def _by_key(self, key: paramiko.PKey, origin: str) -> _Credential:
        name = f"the {key.get_name()} key {key.fingerprint}{origin}"

        def present(transport: paramiko.Transport, _wanted: list[str] | None) -> list[str]:
            return self._asking(transport).auth_publickey(self._username, key)

        return _Credential(name, frozenset({"publickey"}), present)

    def _by_password(self, password: str) -> _Credential:
        answers = [password]  # given once: a second question is for something else, or means that it was wrong

        def answer(_title: str, _instructions: str, prompts: list[tuple[str, bool]]) -> list[str]:
            return [answers.pop() if answers and (len(prompts) == 1 or not echo) else "" for _, echo in prompts]

        def present(transport: paramiko.Transport, wanted: list[str] | None) -> list[str]:
            if wanted is None or "password" in wanted:
                try:
                    asking = self._asking(transport)
                    if isinstance(asking, paramiko.Transport):
                        return asking.auth_password(self._username, password, fallback=False)
                    return asking.auth_password(self._username, password)
                except paramiko.BadAuthenticationType as error:
                    if _INTERACTIVE not in error.allowed_types:
                        raise
            return self._asking(transport).auth_interactive(self._username, answer)

        return _Credential("the password", frozenset({"password", _INTERACTIVE}), present)

    def _with_nothing(self) -> _Credential:
        def present(transport: paramiko.Transport, _wanted: list[str] | None) -> list[str]:
            return self._asking(transport).auth_none(self._username)

        return _Credential("a login without password and key", frozenset({"none"}), present)

    def _asking(self, transport: paramiko.Transport) -> paramiko.Transport | _Asking:
        """What puts the next question to the server."""
        self._on_question()
        if not self._asked or self._config.allow_ssh_rsa_sha1:  # its transport has a way of its own with keys
            self._asked = True
            return transport
        transport.auth_handler = asking = _Asking(transport)
        return asking

    # -- why it failed

    def _ask(self, transport: paramiko.Transport) -> list[str]:
        """What the server takes: it says so when asked for a login with nothing (RFC 4252 section 5.2)."""
        try:
            self._asking(transport).auth_none(self._username)
        except paramiko.BadAuthenticationType as error:
            return error.allowed_types
        except (paramiko.SSHException, EOFError, OSError) as error:
            log.debug("the server does not list its login methods: %s", error)
        return []

    def _hint(self, offered: list[str]) -> str:
        by_password = "the password" in self._record.refused
        by_key = any(" key " in name for name in self._record.refused)
        if not by_password and not by_key:
            return "set a password or a private key"
        if offered and not by_key and not {"password", _INTERACTIVE} & set(offered):
            return "set a private key, it takes no password"
        if offered and not by_password and "publickey" not in offered:
            return "set a password, it takes no keys"
        checks = ["check the user name"]
        checks += ["the password"] if by_password else []
        checks += ["that the key is among the user's authorized keys on the server"] if by_key else []
        return " and ".join(checks)
