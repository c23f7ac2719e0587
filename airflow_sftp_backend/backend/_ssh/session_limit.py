"""Limit the sessions that this process has open to one account.

The limit is the setting ``max_sessions``.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import Protocol, TypeAlias

from airflow_sftp_backend.backend._forks import ForkAware
from airflow_sftp_backend.backend.config import BackendConfig

Account: TypeAlias = tuple[str, int, str | None]


class _Connection(Protocol):
    @property
    def alive(self) -> bool: ...


class SessionSlot:
    """Slot for one session, in use until `release` or garbage collection."""

    __slots__ = ("__weakref__", "connection", "released")

    def __init__(self) -> None:
        self.released = False
        self.connection: weakref.ref[_Connection] | None = None
        """Connection of the session; None before it is open. Weak, because the connection references the slot."""

    @property
    def is_released(self) -> bool:
        """True if the slot was given back or its connection is lost."""
        connection = None if self.connection is None else self.connection()
        return self.released or (connection is not None and not connection.alive)

    def release(self) -> None:
        """Give the slot back.

        Takes no lock: the garbage collector may call this.
        """
        self.released = True


class SessionSlots(ForkAware):
    """Count the slots of this process.

    A forked child starts with none in use.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: dict[Account, list[weakref.ref[SessionSlot]]] = {}
        super().__init__()

    def acquire(self, config: BackendConfig) -> SessionSlot | BackendConfig:
        """Return a slot for a session and its jump hosts.

        :param config: the configuration of the session
        :returns: the slot; if the server or a jump host has as many sessions as its limit allows, the configuration of
            that server or jump host instead
        """
        limited = [hop for hop in _hops(config) if hop.max_sessions is not None]
        slot = SessionSlot()
        with self._lock:
            for hop in limited:
                assert hop.max_sessions is not None
                if len(self._open(_account(hop))) >= hop.max_sessions:
                    return hop
            for hop in limited:
                self._taken[_account(hop)].append(weakref.ref(slot))
        return slot

    def _open(self, account: Account) -> list[weakref.ref[SessionSlot]]:
        """Return the slots in use, and forget the others."""
        in_use = [
            reference
            for reference in self._taken.get(account, ())
            if (slot := reference()) is not None and not slot.is_released
        ]
        self._taken[account] = in_use
        return in_use

    def abandon_after_fork(self) -> None:
        """Forget the sessions of the parent process."""
        self._lock = threading.Lock()
        self._taken = {}


def _hops(config: BackendConfig) -> Iterator[BackendConfig]:
    hop: BackendConfig | None = config
    while hop is not None:
        yield hop
        hop = hop.jump


def _account(config: BackendConfig) -> Account:
    return config.host, config.port, config.username


slots = SessionSlots()
"""The slots of this process."""
