"""Decide which files are new to a watch.

The asset's state store keeps the seen files as plain JSON, also after the triggerer stops. The store also keeps each
batch that may not have reached Airflow. The batch is sent again under its id, and `assets.new_files` recognises the id.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import ValidationError

from airflow_sftp_backend._file_rows import FoundFile

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors
    from pydantic import JsonValue

MAX_BATCH_FILES: Final = 500
"""Files in one batch: Airflow keeps an event with all its files, and passes the event to every task of its run."""
_EMPTY_DIRECTORY_SECONDS: Final = 24 * 3600.0
"""Seconds for which the files of an empty directory stay known: a mount may be offline for a while."""
_ACKNOWLEDGE_SECONDS: Final = 30.0
"""Seconds after which Airflow is assumed to have stored an event."""
_NAME_BYTES, _CONTENT_BYTES = 8, 4
"""Bytes of the hash of a file's name, and of the hash of its size and time."""

_Hashes = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class NewFilesBatch:
    """Hold new files under a unique id."""

    files: list[FoundFile]
    batch_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])


@dataclass(frozen=True, slots=True)
class _SeenDirectory:
    """Hold the sent files of a directory as hashes.

    A hash is that of name, size and time.

    :ivar present: files that existed at the last poll, content hash by name hash
    :ivar missing: files that were missing at some poll, and have not been ready since
    :ivar empty_since: epoch seconds of the first poll that found the directory empty; None if not empty
    """

    present: _Hashes = field(default_factory=dict)
    missing: _Hashes = field(default_factory=dict)
    empty_since: float | None = None

    def after_poll(self, names: Collection[bytes], now: float) -> _SeenDirectory | None:
        """Return the directory with the records of the polled files only.

        The result is None without records.

        Records of deleted files are dropped. An empty directory keeps all records for a day, because a mount may be
        offline.
        """
        if names:
            return _SeenDirectory(
                {name: content for name, content in self.present.items() if name in names},
                {name: content for name, content in self.missing.items() if name in names},
            )
        since = now if self.empty_since is None else self.empty_since
        return (
            _SeenDirectory({}, self.missing | self.present, since) if now - since < _EMPTY_DIRECTORY_SECONDS else None
        )

    def is_new(self, name: bytes, content: bytes, *, changed: bool) -> bool:
        """Tell whether a file is new.

        A file is new if its name is unknown, if it is back with other content, or, with ``changed``, if it has other
        content.
        """
        missing_content = self.missing.get(name)
        if missing_content is not None:
            return missing_content != content
        present_content = self.present.get(name)
        return present_content is None or (changed and present_content != content)


@dataclass(frozen=True, slots=True)
class SeenFiles:
    """Hold the files that a watch has seen.

    :ivar directories: the seen files by directory
    :ivar unacknowledged: batches that may not have reached Airflow, oldest first
    """

    directories: Mapping[str, _SeenDirectory] = field(default_factory=dict)
    unacknowledged: tuple[NewFilesBatch, ...] = ()

    def has(self, file: FoundFile) -> bool:
        """Tell whether a file was seen with the same size and time.

        :param file: the file
        :returns: True for a known file
        """
        directory, name, content = _hashes_of(file)
        seen_directory = self.directories.get(directory)
        return seen_directory is not None and not seen_directory.is_new(name, content, changed=True)

    def with_files(self, files: Iterable[FoundFile], present: Iterable[str], now: float) -> SeenFiles:
        """Add files, and drop the records of deleted files.

        :param files: the files to add
        :param present: paths of all files on the server
        :param now: the present time in epoch seconds
        :returns: the updated files
        """
        directories = self._after_poll(present, now)
        for file in files:
            directory, name, content = _hashes_of(file)
            seen_directory = directories.setdefault(directory, _SeenDirectory())
            seen_directory.missing.pop(name, None)
            seen_directory.present[name] = content
        return SeenFiles(directories, self.unacknowledged)

    def _after_poll(self, present: Iterable[str], now: float) -> dict[str, _SeenDirectory]:
        names: dict[str, set[bytes]] = {}
        for path in present:
            directory, _, name_text = path.rpartition("/")
            names.setdefault(directory, set()).add(_hash(name_text, _NAME_BYTES))
        directories: dict[str, _SeenDirectory] = {}
        for directory, seen_directory in self.directories.items():
            if (remaining := seen_directory.after_poll(names.get(directory, ()), now)) is not None:
                directories[directory] = remaining
        return directories

    def updated_with(
        self,
        ready: Iterable[FoundFile],
        present: Iterable[str],
        now: float,
        *,
        changed: bool,
        max_files: int | None = None,
    ) -> SeenFiles:
        """Update the seen files after a poll.

        The new files become a batch.

        A file is new if its path is unknown, or if it was missing and is back with another size or time.

        :param ready: files that may be sent
        :param present: paths of all files on the server
        :param now: time of the poll in epoch seconds
        :param changed: treat a known file with another size or time as new
        :param max_files: number of files in the batch, the oldest first; None for 500 files in their order
        :returns: the updated files
        """
        directories = self._after_poll(present, now)
        new: list[FoundFile] = []
        for file in ready if max_files is None else sorted(ready, key=_age):
            directory, name, content = _hashes_of(file)
            seen_directory = directories.setdefault(directory, _SeenDirectory())
            if seen_directory.is_new(name, content, changed=changed):
                if len(new) == (MAX_BATCH_FILES if max_files is None else max_files):
                    continue
                new.append(file)
            seen_directory.missing.pop(name, None)
            seen_directory.present[name] = content
        unacknowledged = (*self.unacknowledged, NewFilesBatch(new)) if new else self.unacknowledged
        return SeenFiles(
            {
                directory: seen_directory
                for directory, seen_directory in directories.items()
                if seen_directory != _SeenDirectory()
            },
            unacknowledged,
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON for `from_json`.

        It has 16 characters for each file, and the unacknowledged batches.
        """
        return {
            "directories": {
                directory: [_pack(seen_directory.present), _pack(seen_directory.missing), seen_directory.empty_since]
                for directory, seen_directory in self.directories.items()
            },
            "unacknowledged": [[batch.files, batch.batch_id] for batch in self.unacknowledged],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SeenFiles:
        """Restore the seen files from the JSON of `as_json`.

        :param values: the JSON object
        :returns: the seen files
        """
        directories = {
            directory: _SeenDirectory(_unpack(present), _unpack(missing), empty_since)
            for directory, (present, missing, empty_since) in values["directories"].items()
        }
        return cls(directories, tuple(NewFilesBatch(*batch) for batch in values["unacknowledged"]))


def _age(file: FoundFile) -> tuple[bool, str, str]:
    """Return the sort key of a file.

    The oldest file comes first, a file without a time last. All times are UTC in whole seconds.
    """
    return file["modified_at"] is None, file["modified_at"] or "", file["path"]


def _hashes_of(file: FoundFile) -> tuple[str, bytes, bytes]:
    """Return the directory and the hashes of a file.

    One hash is that of the name, the other that of size and time.
    """
    directory, _, name = file["path"].rpartition("/")
    return directory, _hash(name, _NAME_BYTES), _hash(f"{file['size']} {file['modified_at']}", _CONTENT_BYTES)


def _hash(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=size).digest()


def _pack(contents: _Hashes) -> str:
    return b64encode(b"".join(name + content for name, content in contents.items())).decode()


def _unpack(text: str) -> _Hashes:
    data, record_size = b64decode(text), _NAME_BYTES + _CONTENT_BYTES
    return {
        data[start : start + _NAME_BYTES]: data[start + _NAME_BYTES : start + record_size]
        for start in range(0, len(data), record_size)
    }


class SeenFilesStore:
    """Keep the seen files of one watch.

    They are kept in memory, and in the asset's state store if available.

    :param watch: description of the watch; an asset may have several watches
    :param store: the asset's state store; None before Airflow 3.3
    :param warn: logs a warning
    :param clock: returns seconds
    """

    def __init__(
        self,
        watch: str,
        store: AssetStateStoreAccessors | None,
        warn: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = f"sftp new files seen {hashlib.sha256(watch.encode()).hexdigest()[:16]}"
        self._store = store
        self._warn = warn
        self._clock = clock
        self._current: SeenFiles | None = None
        self._stored = SeenFiles()
        self._sent_at: dict[str, float] = {}

    async def load(self) -> SeenFiles:
        """Return the seen files without the acknowledged batches.

        A batch that was sent at least 30 s ago is assumed to be stored by Airflow.

        :returns: the seen files
        :raises AirflowRuntimeError: if Airflow cannot return the stored files
        """
        if self._current is None:
            self._current = self._stored = await self._read_store()
        now = self._clock()
        unacknowledged = (
            batch
            for batch in self._current.unacknowledged
            if now - self._sent_at.get(batch.batch_id, now) < _ACKNOWLEDGE_SECONDS
        )
        return replace(self._current, unacknowledged=tuple(unacknowledged))

    async def _read_store(self) -> SeenFiles:
        if self._store is not None:
            try:
                stored = await self._store.aget(self._key)
            except ValidationError:  # a malformed response; this is a ValueError too
                raise
            except ValueError:  # the store cannot choose among several assets
                self._warn(
                    "several assets share this watch, so Airflow cannot store its files: each start of the triggerer"
                    " reports all existing files again; give each asset its own watch"
                )
                self._store = None
            else:
                return SeenFiles() if stored is None else self._parse(cast("dict[str, Any]", stored))
        return SeenFiles()

    def _parse(self, stored: Mapping[str, Any]) -> SeenFiles:
        try:
            return SeenFiles.from_json(stored)
        except (LookupError, TypeError, ValueError, AttributeError):
            self._warn("the stored files of this watch are not valid: all existing files are reported again")
            return SeenFiles()

    async def save(self, seen_files: SeenFiles) -> None:
        """Save the seen files.

        If another triggerer saved other files meanwhile, load those instead.

        :param seen_files: the seen files
        :raises AirflowRuntimeError: if Airflow cannot store the files; then nothing has changed
        """
        if self._store is not None and seen_files != self._stored:
            stored = await self._read_store()
            if stored != self._stored:
                self._current = self._stored = stored
                return
            await self._store.aset(self._key, cast("JsonValue", seen_files.as_json()))
            self._stored = seen_files
        self._current = seen_files
        self._sent_at = {
            batch.batch_id: self._sent_at[batch.batch_id]
            for batch in seen_files.unacknowledged
            if batch.batch_id in self._sent_at
        }

    def next_unsent(self) -> NewFilesBatch | None:
        """Return the oldest unsent batch that is saved.

        The result is None without such a batch.
        """
        batches = () if self._current is None else self._current.unacknowledged
        return next((batch for batch in batches if batch.batch_id not in self._sent_at), None)

    def mark_sent(self, batch: NewFilesBatch) -> None:
        """Note the time at which a batch was sent to Airflow.

        :param batch: the batch
        """
        self._sent_at[batch.batch_id] = self._clock()
