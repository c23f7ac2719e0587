"""Define the states of a file that is being written.

The state outlives a lost connection: it tells the next attempt, over a new connection, how to continue the write. After
the last attempt, it tells whether the temporary file must be removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from airflow_sftp_backend.backend._files.pipelining import MAX_UNACKED_BYTES
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend.errors import BackendUnavailable


class WriteState(Enum):
    """State of a file that is being written."""

    # The members are unique, and Enum's own hash is Python code: each file looks states up ten times.
    __hash__ = object.__hash__

    NEW = auto()
    """No temporary file of this name was requested."""
    STARTED = auto()
    """The server may have created the temporary file."""
    COMPARING = auto()
    """The temporary file of an earlier attempt exists, and is compared with the source."""
    OPEN = auto()
    """The temporary file is open, and content is sent."""
    SENT = auto()
    """All content and CLOSE are sent; the temporary file is verified and recorded."""
    RENAMING = auto()
    """The rename is sent: the file may have its final name already."""
    DONE = auto()
    """The file has its final name."""
    KEPT = auto()
    """The temporary file remains on the server for a later call of the same writer."""
    ABANDONED = auto()
    """The temporary file is not used any more, and is removed if it exists."""


_S = WriteState
TRANSITIONS: Final[Mapping[WriteState, frozenset[WriteState]]] = {
    _S.NEW: frozenset({_S.STARTED}),
    # back to NEW: by another name, after the connection was lost
    _S.STARTED: frozenset({_S.NEW, _S.STARTED, _S.COMPARING, _S.OPEN, _S.ABANDONED}),
    # back to STARTED: the content differs from the source, or the connection was lost
    _S.COMPARING: frozenset({_S.NEW, _S.STARTED, _S.OPEN, _S.KEPT, _S.ABANDONED}),
    # OPEN again: over a new connection
    _S.OPEN: frozenset({_S.NEW, _S.OPEN, _S.SENT, _S.KEPT, _S.ABANDONED}),
    _S.SENT: frozenset({_S.NEW, _S.OPEN, _S.RENAMING, _S.KEPT, _S.ABANDONED}),
    # back to SENT: the connection was lost, and the file does not have its final name
    _S.RENAMING: frozenset({_S.SENT, _S.DONE, _S.ABANDONED}),
    _S.DONE: frozenset(),
    _S.KEPT: frozenset(),
    # a write is repeated if the server did not keep the content, or after the source of a copy was restored
    _S.ABANDONED: frozenset({_S.NEW, _S.STARTED}),
}
"""The states that may follow each state."""

_RESUMABLE: Final = frozenset({_S.STARTED, _S.COMPARING, _S.OPEN, _S.SENT, _S.RENAMING})


@dataclass(slots=True)
class ResumeState:
    """State of a write over all of its connections.

    Another connection needs it to resume the write.
    """

    state: WriteState = WriteState.NEW
    temp: RemotePath | None = None
    """Current temporary file; None for that of the target."""
    fresh_temp: RemotePath | None = None
    """Temporary file to use if ``temp`` cannot be resumed.

    Set only if ``temp`` is found by later calls of the same writer for the same source.
    """
    handle: bytes = b""
    """The handle of the temporary file, valid if `open_handle` is."""
    existing: Attributes | None = None
    """Attributes of the existing target; None if there is none."""
    resumed: bool = False
    """Whether the temporary file existed before it was opened."""
    was_striped: bool = False
    """Whether the temporary file was opened on several channels."""
    kept_mtime: int | None = None
    """Time of the source in seconds since 1970, after the server has set it."""
    transferred_bytes: int = 0
    """Bytes from the start that the server has acknowledged."""
    must_open_once: bool = False
    """Whether the file must be opened only once: the server emptied it, or returned its handle for another file."""
    abandoned_temps: list[RemotePath] = field(default_factory=list)
    """Replaced temporary files. Their removal may have been lost with a connection."""

    def advance(self, state: WriteState) -> None:
        """Change the state. Raises RuntimeError if `TRANSITIONS` does not allow the change."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"illegal transition of a written file from {self.state.name} to {state.name}")
        self.state = state

    def opened(self, handle: bytes, existing: Attributes | None, *, resumed: bool) -> None:
        """Record that the temporary file is open.

        :param handle: its handle
        :param existing: attributes of the existing target
        :param resumed: whether the file existed before
        """
        self.advance(WriteState.OPEN)
        self.handle, self.existing, self.resumed, self.kept_mtime = handle, existing, resumed, None

    @property
    def open_handle(self) -> bytes | None:
        """The handle until CLOSE is sent, then None."""
        # A second CLOSE could close the file of another operation, because servers reuse closed handles.
        return self.handle if self.state is WriteState.OPEN else None

    @property
    def resumable(self) -> bool:
        """True if another connection can continue the write."""
        return self.state in _RESUMABLE

    @property
    def keeps_temp(self) -> bool:
        """True if a later call can use the temporary file.

        Read once no attempt follows.
        """
        if self.state in {WriteState.OPEN, WriteState.SENT}:
            return self.fresh_temp is not None and self.transferred_bytes > MAX_UNACKED_BYTES
        return self.state in {WriteState.COMPARING, WriteState.KEPT}

    def end_attempt(self, error: BaseException, *, resumable: bool) -> None:
        """Record that an attempt has failed.

        :param error: the reason; after an interruption, the temporary file may be kept
        :param resumable: whether the write may continue over another connection
        """
        if not resumable and self.resumable:
            # otherwise the cause is the file
            interrupted = isinstance(error, BackendUnavailable) or not isinstance(error, Exception)
            self.advance(WriteState.KEPT if interrupted and self.keeps_temp else WriteState.ABANDONED)

    def mark_unresumable(self) -> None:
        """Record that no new connection is available."""
        self.advance(WriteState.KEPT if self.keeps_temp else WriteState.ABANDONED)
