"""Keep a forked child away from its parent's connections and locks."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from typing import Final


class ForkAware(ABC):
    """Base class of objects that belong to one process.

    Their connections and locks must not be used in a forked child.
    """

    def __init__(self) -> None:
        """Register the object for `abandon_after_fork`, for which it must be complete."""
        self._process_id = os.getpid()
        _OBJECTS.add(self)

    @property
    def is_inherited(self) -> bool:
        """Tell whether a parent process created this object."""
        return os.getpid() != self._process_id

    @abstractmethod
    def abandon_after_fork(self) -> None:
        """Give up or replace what belongs to the parent process.

        Called in each forked child before it runs on, while it has one thread. The objects are called in no
        particular order. Another thread of the parent may have held any lock: take none.
        """


_OBJECTS: Final[weakref.WeakSet[ForkAware]] = weakref.WeakSet()


def _after_fork() -> None:
    for created in list(_OBJECTS):
        created.abandon_after_fork()


os.register_at_fork(after_in_child=_after_fork)
