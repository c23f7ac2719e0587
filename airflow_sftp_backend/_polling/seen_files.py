"""What a watch has seen: which files are new is decided from it.

It outlives the triggerer as plain JSON in the asset's state store. A report that may not have reached Airflow is kept
there too and made again under its name, so that whoever takes it (`assets.new_files`) can tell.
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

_MOST: Final = 500
"""Files in one report: Airflow keeps an event with all it carries, and shows it to every task of its run."""
_REMEMBERS: Final = 24 * 3600.0
"""Seconds for which the files of a folder without any are known: a folder that was away for a while is not new."""
_TAKES_OVER: Final = 30.0
"""Seconds in which Airflow has surely written an event down."""
_NAME, _CONTENT = 8, 4
"""Bytes that stand for the name of a file, and for its size and time."""

_Contents = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Report:
    """Files that are new, under a name no other report has."""

    files: list[FoundFile]
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:16])


@dataclass(frozen=True, slots=True)
class _Folder:
    """The files of a folder that were reported, by name, each name and content a hash.

    ``here`` were there at the last look; ``gone`` were not at one, and have not been ready since. ``empty`` is since
    when (epoch seconds) there is none of any name.
    """

    here: _Contents = field(default_factory=dict)
    gone: _Contents = field(default_factory=dict)
    empty: float | None = None

    def seen(self, names: Collection[bytes], now: float) -> _Folder | None:
        """What is known of it once these names are there; None: nothing any more. Of a folder that has files, those it
        has no more are forgotten; of one that has none, for a day not one."""
        if names:
            return _Folder(
                {name: content for name, content in self.here.items() if name in names},
                {name: content for name, content in self.gone.items() if name in names},
            )
        since = now if self.empty is None else self.empty
        return _Folder({}, self.gone | self.here, since) if now - since < _REMEMBERS else None

    def is_new(self, name: bytes, content: bytes, *, changed: bool) -> bool:
        """True for a name that is not known, or that is back with another content, or with ``changed`` has another."""
        before = self.gone.get(name)
        if before is not None:
            return before != content
        before = self.here.get(name)
        return before is None or (changed and before != content)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What a watch has seen, by folder. ``unsettled`` are the reports of which it is not known whether they have
    reached Airflow, the oldest first."""

    known: Mapping[str, _Folder] = field(default_factory=dict)
    unsettled: tuple[Report, ...] = ()

    def look(self, ready: Iterable[FoundFile], present: Iterable[str], now: float, *, changed: bool) -> Arrivals:
        """What is known after a look: of the new files the first 500 are another report.

        ``ready`` are the files that may be reported, ``present`` the paths of all that are there, ``now`` in epoch
        seconds. A file is new if its path is not known; if it was gone and has come back with another size or time;
        and with ``changed``, if its size or time is another.
        """
        names: dict[str, set[bytes]] = {}
        for path in present:
            folder, _, text = path.rpartition("/")
            names.setdefault(folder, set()).add(_hash(text, _NAME))
        known: dict[str, _Folder] = {}
        for folder, one in self.known.items():
            if (still := one.seen(names.get(folder, ()), now)) is not None:
                known[folder] = still
        new: list[FoundFile] = []
        for row in ready:
            folder, _, text = row["path"].rpartition("/")
            name, content = _hash(text, _NAME), _hash(f"{row['size']} {row['modified_at']}", _CONTENT)
            one = known.setdefault(folder, _Folder())
            if one.is_new(name, content, changed=changed):
                if len(new) == _MOST:
                    continue
                new.append(row)
            one.gone.pop(name, None)
            one.here[name] = content
        unsettled = (*self.unsettled, Report(new)) if new else self.unsettled
        return Arrivals({folder: one for folder, one in known.items() if one != _Folder()}, unsettled)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, for `from_json`: 16 characters a file, and the unsettled reports."""
        return {
            "known": {folder: [_packed(one.here), _packed(one.gone), one.empty] for folder, one in self.known.items()},
            "unsettled": [[report.files, report.name] for report in self.unsettled],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Arrivals:
        """What `as_json` gave."""
        known = {
            folder: _Folder(_unpacked(here), _unpacked(gone), empty)
            for folder, (here, gone, empty) in values["known"].items()
        }
        return cls(known, tuple(Report(*report) for report in values["unsettled"]))


def _hash(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=size).digest()


def _packed(contents: _Contents) -> str:
    return b64encode(b"".join(name + content for name, content in contents.items())).decode()


def _unpacked(text: str) -> _Contents:
    data, each = b64decode(text), _NAME + _CONTENT
    return {data[at : at + _NAME]: data[at + _NAME : at + each] for at in range(0, len(data), each)}


class Memory:
    """What one watch has seen: in the asset's state store where there is one, and as long as the watch runs.

    ``watch`` says what is watched, since an asset may have several watches; ``clock`` in seconds.
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
        self._now: Arrivals | None = None
        self._stored = Arrivals()
        self._sent: dict[str, float] = {}

    async def recall(self) -> Arrivals:
        """What is known, without the reports that must have reached Airflow by now.

        Raises AirflowRuntimeError if Airflow cannot say.
        """
        if self._now is None:
            self._now = self._stored = await self._fetch()
        now = self._clock()
        unsettled = (one for one in self._now.unsettled if now - self._sent.get(one.name, now) < _TAKES_OVER)
        return replace(self._now, unsettled=tuple(unsettled))

    async def _fetch(self) -> Arrivals:
        if self._store is not None:
            try:
                found = await self._store.aget(self._key)
            except ValidationError:  # of an answer; a ValueError as well
                raise
            except ValueError:  # of which asset?
                self._warn(
                    "several assets have this watch, so that Airflow keeps nothing for it: when the triggerer"
                    " starts again, all files that are there are reported again; give each asset its own watch"
                )
                self._store = None
            else:
                return Arrivals() if found is None else self._read(cast("dict[str, Any]", found))
        return Arrivals()

    def _read(self, found: Mapping[str, Any]) -> Arrivals:
        try:
            return Arrivals.from_json(found)
        except (LookupError, TypeError, ValueError, AttributeError):
            self._warn("what Airflow keeps for this watch is not what it wrote: all files that are there are reported")
            return Arrivals()

    async def keep(self, arrivals: Arrivals) -> None:
        """Keeps it; where another triggerer has kept something else in the meantime, that is what is known instead.

        Raises AirflowRuntimeError if Airflow cannot; then nothing has changed.
        """
        if self._store is not None and arrivals != self._stored:
            found = await self._fetch()
            if found != self._stored:
                self._now = self._stored = found
                return
            await self._store.aset(self._key, cast("JsonValue", arrivals.as_json()))
            self._stored = arrivals
        self._now = arrivals
        self._sent = {one.name: self._sent[one.name] for one in arrivals.unsettled if one.name in self._sent}

    def unsent(self) -> Report | None:
        """The oldest report that is kept and that this watch has not sent."""
        reports = () if self._now is None else self._now.unsettled
        return next((report for report in reports if report.name not in self._sent), None)

    def sent(self, report: Report) -> None:
        """It is on its way to Airflow."""
        self._sent[report.name] = self._clock()
