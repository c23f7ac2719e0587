"""Decide which files are new to a watch.

The new files of a poll become batches. `SeenFiles` also holds each batch that may not have reached Airflow. The batch
is sent again under its id, and `assets.new_files` recognises the id.
"""

from __future__ import annotations

import hashlib
import json
import uuid
import zlib
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias, TypeVar

from airflow_sftp_backend._file_rows import FoundFile

MAX_BATCH_FILES: Final = 500
"""Files in one batch: Airflow keeps an event with all its files, and passes the event to every task of its run."""
MAX_UNACKNOWLEDGED: Final = 100
"""Batches that may be unacknowledged at a time: a triggerer that stops sends them all again."""
_EMPTY_DIRECTORY_SECONDS: Final = 24 * 3600.0
"""Seconds for which the files of an empty directory stay known: a mount may be offline for a while."""
_NAME_BYTES, _STATE_BYTES = 8, 4
"""Bytes of the hash of a file's name, and of the hash of its state: size and time."""

_RECORDS_PER_CHANGE: Final = 2000
"""Files in one change of a directory, which has about 32 KB then."""

_Hashes = dict[bytes, bytes]
"""Hash of the state of each file, by the hash of its name."""
_Record = TypeVar("_Record")
Change: TypeAlias = list[Any]
"""One step from earlier seen files to later ones, as plain JSON: its kind, then its values.

* ``batch``: id and packed files of a batch that was added;
* ``acknowledged``: a list of ids of batches that were removed;
* ``directory``: name, the packed records of present and of missing files that were added or replaced, the packed names
  that were removed, and ``empty_since``.
"""


@dataclass(frozen=True, slots=True)
class NewFilesBatch:
    """Hold new files under a unique id."""

    files: list[FoundFile]
    batch_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])

    def pack(self) -> str:
        """Return the files as text for `unpack`.

        The text is compressed JSON without the keys of the rows.
        """
        rows = [[file["path"], file["size"], file["modified_at"]] for file in self.files]
        return b64encode(zlib.compress(json.dumps(rows, separators=(",", ":")).encode())).decode()

    @classmethod
    def unpack(cls, batch_id: str, text: str) -> NewFilesBatch:
        """Restore a batch.

        :param batch_id: id of the batch
        :param text: the result of `pack`
        :returns: the batch
        """
        rows = json.loads(zlib.decompress(b64decode(text)))
        return cls([FoundFile(path=path, size=size, modified_at=time_) for path, size, time_ in rows], batch_id)


@dataclass(frozen=True, slots=True)
class _SeenDirectory:
    """Hold the reported files of a directory as hashes.

    :ivar present: files that existed at the last poll
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
                {name: state for name, state in self.present.items() if name in names},
                {name: state for name, state in self.missing.items() if name in names},
            )
        since = now if self.empty_since is None else self.empty_since
        return (
            _SeenDirectory({}, self.missing | self.present, since) if now - since < _EMPTY_DIRECTORY_SECONDS else None
        )

    def is_new(self, name: bytes, state: bytes, *, changed: bool) -> bool:
        """Tell whether a file is new.

        A file is new if its name is unknown, if it is back with another state, or, with ``changed``, if it has another
        state.
        """
        missing_state = self.missing.get(name)
        if missing_state is not None:
            return missing_state != state
        present_state = self.present.get(name)
        return present_state is None or (changed and present_state != state)

    def add(self, name: bytes, state: bytes) -> None:
        """Add the record of a present file."""
        self.missing.pop(name, None)
        self.present[name] = state

    def with_present(self, records: _Hashes) -> _SeenDirectory:
        """Return a copy with more records of present files."""
        if not records:
            return self
        missing = {name: state for name, state in self.missing.items() if name not in records}
        return _SeenDirectory(self.present | records, missing, self.empty_since)

    def changes_since(self, earlier: _SeenDirectory) -> Iterator[list[Any]]:
        """Yield arguments for `apply`.

        These calls lead from the earlier directory to this one.
        """
        if self == earlier:
            return
        present = dict(self.present.items() - earlier.present.items())
        missing = dict(self.missing.items() - earlier.missing.items())
        removed = (earlier.present.keys() | earlier.missing.keys()) - self.present.keys() - self.missing.keys()
        parts = [
            *((_pack(part), "", "") for part in _chunks(present.items())),
            *(("", _pack(part), "") for part in _chunks(missing.items())),
            *(("", "", _encode(b"".join(part))) for part in _chunks(removed)),
        ]
        for part in parts or [("", "", "")]:
            yield [*part, self.empty_since]

    def apply(self, present: str, missing: str, removed: str, empty_since: float | None) -> _SeenDirectory:
        """Change the records of this directory.

        :returns: the directory with the same records, and with ``empty_since``
        """
        for name in _unpack_names(removed):
            self.present.pop(name, None)
            self.missing.pop(name, None)
        for name, state in _unpack(present).items():
            self.add(name, state)
        for name, state in _unpack(missing).items():
            self.present.pop(name, None)
            self.missing[name] = state
        return _SeenDirectory(self.present, self.missing, empty_since)


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
        directory, name, state = _hashes_of(file)
        seen_directory = self.directories.get(directory)
        return seen_directory is not None and not seen_directory.is_new(name, state, changed=True)

    def with_files(self, files: Iterable[FoundFile], present: Iterable[str], now: float) -> SeenFiles:
        """Add files, and drop the records of deleted files.

        :param files: the files to add
        :param present: paths of all files on the server
        :param now: the present time in epoch seconds
        :returns: the updated files
        """
        directories = self._after_poll(present, now)
        for file in files:
            directory, name, state = _hashes_of(file)
            directories.setdefault(directory, _SeenDirectory()).add(name, state)
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

        The new files become batches.

        A file is new if its path is unknown, or if it was missing and is back with another size or time. Files beyond
        the last possible batch stay unknown.

        :param ready: files that may be sent
        :param present: paths of all files on the server
        :param now: time of the poll in epoch seconds
        :param changed: treat a known file with another size or time as new
        :param max_files: number of files in the one batch, the oldest first; None for batches of 500 files in their
            order, at most `MAX_UNACKNOWLEDGED` batches with those before
        :returns: the updated files
        """
        directories = self._after_poll(present, now)
        new: list[FoundFile] = []
        free_batches = max(MAX_UNACKNOWLEDGED - len(self.unacknowledged), 0)
        max_new = free_batches * MAX_BATCH_FILES
        if max_files is not None:  # one batch
            ready = sorted(ready, key=_age_key)
            max_new = max_files if free_batches else 0
        for file in ready:
            directory, name, state = _hashes_of(file)
            seen_directory = directories.setdefault(directory, _SeenDirectory())
            if seen_directory.is_new(name, state, changed=changed):
                if len(new) == max_new:
                    continue
                new.append(file)
            seen_directory.add(name, state)
        batches = (NewFilesBatch(new[start : start + MAX_BATCH_FILES]) for start in range(0, len(new), MAX_BATCH_FILES))
        return SeenFiles(_without_empty(directories), (*self.unacknowledged, *batches))

    def changes_since(self, earlier: SeenFiles) -> list[Change]:
        """Return the changes that lead from earlier seen files to these.

        :param earlier: the earlier seen files; with ``SeenFiles()``, the changes contain everything
        :returns: changes for `apply`
        """
        known = {batch.batch_id for batch in earlier.unacknowledged}
        remaining = {batch.batch_id for batch in self.unacknowledged}
        batches = [batch for batch in self.unacknowledged if batch.batch_id not in known]
        changes: list[Change] = [["batch", batch.batch_id, batch.pack()] for batch in batches]
        if acknowledged := [batch.batch_id for batch in earlier.unacknowledged if batch.batch_id not in remaining]:
            changes.append(["acknowledged", acknowledged])
        sent_with_batches = _hashes_by_directory(batches)  # `apply` adds the files of a batch itself
        for directory in dict.fromkeys([*sent_with_batches, *earlier.directories, *self.directories]):
            before = earlier.directories.get(directory, _SeenDirectory())
            before = before.with_present(sent_with_batches.get(directory, {}))
            after = self.directories.get(directory, _SeenDirectory())
            changes += [["directory", directory, *change] for change in after.changes_since(before)]
        return changes

    def apply(self, changes: Iterable[Change]) -> SeenFiles:
        """Return the seen files after changes.

        :param changes: the changes, as `changes_since` returns them
        :returns: the later seen files
        """
        directories = {
            directory: replace(seen_directory, present={**seen_directory.present}, missing={**seen_directory.missing})
            for directory, seen_directory in self.directories.items()
        }
        unacknowledged = {batch.batch_id: batch for batch in self.unacknowledged}
        for kind, *values in changes:
            if kind == "batch":
                batch = NewFilesBatch.unpack(*values)
                unacknowledged[batch.batch_id] = batch
                for file in batch.files:
                    directory, name, state = _hashes_of(file)
                    directories.setdefault(directory, _SeenDirectory()).add(name, state)
            elif kind == "acknowledged":
                for batch_id in values[0]:
                    unacknowledged.pop(batch_id, None)
            elif kind == "directory":
                directory, *change = values
                directories[directory] = directories.get(directory, _SeenDirectory()).apply(*change)
            else:
                raise ValueError(f"unknown change {kind!r}")
        return SeenFiles(_without_empty(directories), tuple(unacknowledged.values()))

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON for `from_json`.

        It has 16 characters for each file, and the unacknowledged batches.
        """
        return {
            "directories": {
                directory: [
                    _pack(seen_directory.present.items()),
                    _pack(seen_directory.missing.items()),
                    seen_directory.empty_since,
                ]
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


def _age_key(file: FoundFile) -> tuple[bool, str, str]:
    """Return the key that sorts files by age, the oldest first."""
    # A file without a time comes last. All times are texts of one format, in UTC.
    return file["modified_at"] is None, file["modified_at"] or "", file["path"]


def _hashes_of(file: FoundFile) -> tuple[str, bytes, bytes]:
    """Return a file's directory, and the hashes of its name and state."""
    directory, _, name = file["path"].rpartition("/")
    return directory, _hash(name, _NAME_BYTES), _hash(f"{file['size']} {file['modified_at']}", _STATE_BYTES)


def _hashes_by_directory(batches: Iterable[NewFilesBatch]) -> dict[str, _Hashes]:
    """Return the hashes of the files by directory."""
    hashes: dict[str, _Hashes] = {}
    for batch in batches:
        for file in batch.files:
            directory, name, state = _hashes_of(file)
            hashes.setdefault(directory, {})[name] = state
    return hashes


def _hash(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=size).digest()


def _without_empty(directories: Mapping[str, _SeenDirectory]) -> dict[str, _SeenDirectory]:
    empty = _SeenDirectory()
    return {name: seen_directory for name, seen_directory in directories.items() if seen_directory != empty}


def _chunks(records: Iterable[_Record]) -> Iterator[list[_Record]]:
    all_records = list(records)
    for start in range(0, len(all_records), _RECORDS_PER_CHANGE):
        yield all_records[start : start + _RECORDS_PER_CHANGE]


def _pack(hashes: Iterable[tuple[bytes, bytes]]) -> str:
    return _encode(b"".join(name + state for name, state in hashes))


def _encode(data: bytes) -> str:
    return b64encode(data).decode()


def _unpack_names(text: str) -> list[bytes]:
    data = b64decode(text)
    return [data[start : start + _NAME_BYTES] for start in range(0, len(data), _NAME_BYTES)]


def _unpack(text: str) -> _Hashes:
    data, record_size = b64decode(text), _NAME_BYTES + _STATE_BYTES
    return {
        data[start : start + _NAME_BYTES]: data[start + _NAME_BYTES : start + record_size]
        for start in range(0, len(data), record_size)
    }
