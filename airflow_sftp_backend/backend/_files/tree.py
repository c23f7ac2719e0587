"""What lies below a folder: walking it level by level, sums, patterns, and deletion from the bottom up.

All folders of one level are listed side by side, so that a walk is as many round trips deep as the tree has levels.
Links found on the way are never entered.
"""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol, TypeVar

from airflow_sftp_backend.backend._limits import BoundExceeded, ListingTally, SharedTally
from airflow_sftp_backend.backend._paths import RemotePath, check_text, is_temp_name
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import RemoveDir, Stat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, request_all, server_traits
from airflow_sftp_backend.backend.errors import BackendUnavailable, InvalidPath, NotFound, SFTPBackendError, StatusError
from airflow_sftp_backend.backend.models import FileInfo, FolderInfo

from .deletion import delete, delete_folder
from .links import own_attributes, unknown_link, with_links_told
from .operations import Listing, as_file, file_info, follow_links, is_file_above, list_and_look_again, list_folder, look

T = TypeVar("T")


class Call(Protocol):
    """How a walk reaches the server: ``Session.call``, one call a level, so that other threads get their turn."""

    def __call__(self, use: Callable[[SFTPScheduler], T], *, idempotent: bool = False) -> T:
        """Runs ``use`` on the wire."""


@dataclass(slots=True)
class Found:
    """An entry met on a walk: its own attributes and, for a link, those of what it leads to (None: nothing)."""

    place: RemotePath
    own: Attributes
    leads_to: Attributes | None

    @property
    def is_file(self) -> bool:
        """A file, or a link to one."""
        return self.leads_to is not None and self.leads_to.is_file

    @property
    def is_folder(self) -> bool:
        """A folder, or a link to one."""
        return self.leads_to is not None and self.leads_to.is_folder

    def info(self) -> FileInfo:
        """The entry as a file."""
        return file_info(self.place, self.leads_to or self.own)


def _list(place: RemotePath, tally: ListingTally, depth: int, *, enters: bool) -> Operation[list[Found]]:
    entries = yield from list_folder(place, tally, depth)
    if enters:
        entries = yield from with_links_told(entries)
    targets = yield from follow_links(entries)
    if not targets:
        return [Found(place, own, own) for place, own in entries]
    return [Found(place, own, targets.get(place, own)) for place, own in entries]


def _list_all(
    call: Call, tally: ListingTally, folders: Sequence[RemotePath], go_on_in: Collection[RemotePath]
) -> list[list[Found] | SFTPBackendError | OSError]:
    """List folders side by side; in those of ``go_on_in``, whose subfolders are to be entered, links are told.

    Raises BoundExceeded.
    """
    return _within_bounds(
        _listed_by(call, [tally], folders, lambda folder, depth: _list(folder, tally, depth, enters=folder in go_on_in))
    )


def _listed_by(
    call: Call,
    tallies: Sequence[ListingTally],
    folders: Sequence[RemotePath],
    operation: Callable[[RemotePath, int], Operation[T]],
) -> list[T | SFTPBackendError | OSError]:
    """Run an operation that lists for each folder, side by side; ``tallies`` count for them."""
    marks = [tally.mark() for tally in tallies]

    def use(scheduler: SFTPScheduler) -> list[T | SFTPBackendError | OSError]:
        for tally, mark in zip(tallies, marks, strict=True):
            tally.rewind(mark)  # what an earlier connection sent is sent again
            tally.bounds = scheduler.bounds
        depth = _ahead(scheduler, folders)
        return _unless_lost(scheduler.run_many(operation(folder, depth) for folder in folders))

    return call(use, idempotent=True)


def _ahead(scheduler: SFTPScheduler, folders: Sequence[RemotePath]) -> int:
    """How many requests for entries go out at first: three for each millisecond of the round trip, so that a large
    folder far away takes few round trips."""
    return int(max(2, min(128, scheduler.round_trip * 3000 / max(1, len(folders)))))


def _unless_lost(outcomes: list[T | SFTPBackendError | OSError]) -> list[T | SFTPBackendError | OSError]:
    """The outcomes, unless the connection was lost: that is raised, for the whole call to be made again."""
    for outcome in outcomes:
        if isinstance(outcome, BackendUnavailable):
            raise outcome
    return outcomes


def _within_bounds(outcomes: list[T | SFTPBackendError | OSError]) -> list[T | SFTPBackendError | OSError]:
    """Return the outcomes. Raises BoundExceeded if one is that: the bounds are those of a call as a whole."""
    for outcome in outcomes:
        if isinstance(outcome, BoundExceeded):
            raise outcome
    return outcomes


def children(call: Call, folder: RemotePath) -> Iterator[Found]:
    """What a folder holds, temporary names left out; nothing where there is no such folder."""
    tally = ListingTally(folder.key)
    (outcome,) = _list_all(call, tally, [folder], go_on_in=())
    tally.finish()
    if not isinstance(outcome, NotFound | InvalidPath):
        yield from (found for found in _or_raise(outcome) if not is_temp_name(found.place.name))


def _or_raise(outcome: T | SFTPBackendError | OSError) -> T:
    if isinstance(outcome, SFTPBackendError | OSError):
        raise outcome
    return outcome


def walk(
    call: Call,
    root: RemotePath,
    max_depth: int | None = None,
    *,
    must_exist: bool = False,
    with_temps: bool = False,
) -> Iterator[Found]:
    """Every entry below ``root``, one level after the other; ``max_depth`` 0 is the root's own entries. Temporary files
    only ``with_temps``.

    Nothing where there is no such folder, unless it ``must_exist``: NotFound, InvalidPath for a file. A folder below
    that is gone by the time it is listed is passed over. Raises BoundExceeded.
    """
    tally = ListingTally(root.key)
    level = [root]
    depth = 0
    try:
        while level and (max_depth is None or depth <= max_depth):
            tally.check_depth(depth)
            go_on_in = set(level) if max_depth is None or depth < max_depth else ()
            outcomes = _list_all(call, tally, level, go_on_in)
            level = []
            for outcome in outcomes:
                if isinstance(outcome, NotFound | InvalidPath) and not (must_exist and depth == 0):
                    continue
                for found in _or_raise(outcome):
                    if found.own.is_folder:
                        level.append(found.place)
                    if with_temps or not is_temp_name(found.place.name) or found.own.is_folder:
                        yield found
            depth += 1
    finally:
        tally.finish()


def file_infos(call: Call, places: Sequence[RemotePath]) -> list[FileInfo | SFTPBackendError | OSError]:
    """The files of many paths in one round trip: NotFound, InvalidPath for a folder, or why it is not shown."""
    return [
        looked if isinstance(looked, SFTPBackendError | OSError) else as_file(place, looked)
        for place, looked in zip(places, _look_at_all(call, places), strict=True)
    ]


def _look_at_all(call: Call, places: Sequence[RemotePath]) -> list[Attributes | SFTPBackendError | OSError | None]:
    """What `look` finds for each, or raises. One round trip where the answers leave nothing open."""

    def use(scheduler: SFTPScheduler) -> list[Attributes | SFTPBackendError | OSError | None]:
        parents = () if scheduler.traits.finds_nothing_below_files else {place.parent: None for place in places}
        asked = (*places, *(parent for parent in parents if not parent.is_root))
        shown = dict(zip(asked, scheduler.run(request_all([Stat(place.native) for place in asked])), strict=True))
        looked: dict[RemotePath, Attributes | SFTPBackendError | OSError | None] = {}
        unclear: list[RemotePath] = []
        for place in places:
            answer = shown[place]
            if parents and is_file_above(shown.get(place.parent)):
                looked[place] = None
            elif isinstance(answer, Attributes) and answer.mode is not None:
                looked[place] = answer
            elif isinstance(answer, StatusError) and answer.missing:
                looked[place] = None
            else:
                unclear.append(place)
        looked.update(zip(unclear, _unless_lost(scheduler.run_many(map(look, unclear))), strict=True))
        return [looked[place] for place in places]

    return call(use, idempotent=True)


def folder_info(call: Call, folder: RemotePath) -> FolderInfo:
    """Sums over all files below. Raises NotFound, InvalidPath for a file."""
    count = size = 0
    latest = None
    for found in walk(call, folder, must_exist=True):
        if found.is_file:
            info = found.info()
            count, size = count + 1, size + info.size
            if info.modified_at is not None and (latest is None or info.modified_at > latest):
                latest = info.modified_at
    return FolderInfo(folder.key, count, size, latest)


# -- deletion ---------------------------------------------------------------------------------------------------------


def delete_tree(call: Call, root: RemotePath, *, missing_ok: bool) -> None:
    """Deletes a folder with all it holds, temporary names too; links are removed, never entered.

    Each folder is looked at before it is listed, by its parent's listing or by LSTAT, and once more, along with the end
    of its listing, before anything in it is removed. One race remains, as SFTP 3 cannot delete by a handle:
    if somebody replaces a folder by a link between that second look and the removals, files behind the link are removed
    that have the names of files in the folder.

    Raises NotFound, InvalidPath for a file; else the first refusal, after everything that can be deleted is.
    """
    own, is_certain = call(lambda scheduler: scheduler.run(own_attributes(root)), idempotent=True)
    if isinstance(own, Attributes) and own.is_folder and not is_certain:
        raise unknown_link(root)
    if isinstance(own, StatusError) or not own.is_folder:
        # a link, a file, nothing: says so
        call(lambda scheduler: scheduler.run(delete_folder(root, missing_ok=missing_ok)))
        return
    tally = ListingTally(root.key)
    try:
        failures = _delete_level_by_level(call, root, tally)
    finally:
        tally.finish()
    if failures:
        raise failures[0]


def _delete_level_by_level(call: Call, root: RemotePath, tally: ListingTally) -> list[SFTPBackendError]:
    """Delete what the levels hold, from the top, then the folders: the failures. Raises BoundExceeded."""
    folders: list[RemotePath] = []
    failures: list[SFTPBackendError] = []
    level = [root]
    depth = 0
    while level:
        tally.check_depth(depth)
        outcomes = _list_for_removal(call, tally, level)
        listed, level = level, []
        others: list[tuple[RemotePath, bool]] = []  # with whether a listing has told the type
        for folder, outcome in zip(listed, outcomes, strict=True):
            if isinstance(outcome, NotFound):
                continue
            if isinstance(outcome, _BecameLink):
                others.append((folder, True))
                continue
            folders.append(folder)
            if isinstance(outcome, SFTPBackendError):
                failures.append(outcome)
                continue
            for place, attributes in _or_raise(outcome):
                if attributes.is_folder:
                    level.append(place)
                else:
                    others.append((place, attributes.mode is not None))
        failures += _removed(call, others)
        depth += 1
    return failures + _folders_removed(call, folders)


class _BecameLink(SFTPBackendError):
    """There is a link now where a folder was when it was looked at."""


def _list_for_removal(
    call: Call, tally: ListingTally, folders: Sequence[RemotePath]
) -> list[Listing | SFTPBackendError | OSError]:
    return _within_bounds(
        _listed_by(call, [tally], folders, lambda folder, depth: _listed_for_removal(folder, tally, depth))
    )


def _listed_for_removal(place: RemotePath, tally: ListingTally, depth: int) -> Operation[Listing]:
    """The entries of a folder that is still one, links as links. Raises _BecameLink, InvalidPath."""
    entries, now = yield from list_and_look_again(place, tally, depth)
    if isinstance(now, Attributes) and not now.is_folder:
        kind = _BecameLink if now.is_link else InvalidPath
        raise kind("cannot delete the folder: something else has its name by now", path=place.key)
    if isinstance(now, StatusError) and not (yield from server_traits()).lists_links_as_links:
        raise unknown_link(place)
    return (yield from with_links_told(entries))


def _removed(call: Call, places: Sequence[tuple[RemotePath, bool]]) -> list[SFTPBackendError]:
    deletions = (delete(place, missing_ok=True, is_listed=is_listed) for place, is_listed in places)
    outcomes = call(lambda scheduler: _unless_lost(scheduler.run_many(deletions, limit=256)))
    return [outcome for outcome in outcomes if isinstance(outcome, SFTPBackendError)]


def _folders_removed(call: Call, folders: Sequence[RemotePath]) -> list[SFTPBackendError]:
    """All at once, the deepest first; once more level by level where a server did not keep to that order."""
    deepest_first = sorted(folders, key=lambda folder: folder.key.count("/"), reverse=True)
    answers = call(lambda scheduler: scheduler.run(request_all([RemoveDir(folder.native) for folder in deepest_first])))
    failures: list[SFTPBackendError] = []
    for folder, answer in zip(deepest_first, answers, strict=True):
        if isinstance(answer, StatusError) and not answer.missing:
            failures += _folder_removed(call, folder)
    return failures


def _folder_removed(call: Call, folder: RemotePath) -> list[SFTPBackendError]:
    try:
        call(lambda scheduler: scheduler.run(delete_folder(folder, missing_ok=True)))
    except BackendUnavailable:
        raise
    except SFTPBackendError as error:
        return [error]
    return []


# -- patterns ---------------------------------------------------------------------------------------------------------

_WILDCARD: Final = re.compile(r"[*?[]")
_ESCAPED: Final = re.compile(r"\[([*?[])\]")
"""A wildcard made literal, as `glob.escape` writes it."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A glob over keys: ``*``, ``?`` and ``[...]`` within a segment, ``**`` as a segment for any number of folders.

    ``[*]``, ``[?]`` and ``[[]``, as `glob.escape` writes them, are those characters.
    Raises InvalidPath for ``..``, NUL and what is no Unicode text.
    """

    segments: tuple[str, ...]

    @classmethod
    def of(cls, wanted: str | FileInfo) -> Pattern:
        """Return the pattern of a text, or the one that matches the path of a file and nothing else."""
        return cls.parse(glob.escape(wanted.path) if isinstance(wanted, FileInfo) else wanted)

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern of a text; leading and doubled slashes and ``.`` segments fall away."""
        check_text(text, "a pattern")
        segments = [segment for segment in text.split("/") if segment not in ("", ".")]
        if ".." in segments:
            raise InvalidPath(
                "a pattern must not contain '..': it is relative to base_path and stays below it", path=text
            )
        return cls(tuple(segments))

    @property
    def is_literal(self) -> bool:
        """True without wildcards."""
        return all(_plain_name(segment) is not None for segment in self.segments)

    def matches(self, key: str) -> bool:
        """True if the whole key fits."""
        rests = {self.segments}
        *folders, name = key.split("/")
        for folder in folders:
            rests = {after for rest in rests for after in _into(rest, folder)}
        return any(_ends_with(rest, name) for rest in rests)


Rest = tuple[str, ...]
"""What of a pattern is still to be matched below a folder."""


def _into(rest: Rest, folder: str) -> Iterator[Rest]:
    """What is left of it in that subfolder; several ways, or none."""
    if len(rest) > 1 and rest[0] == "**":
        yield rest
        yield from _into(rest[1:], folder)
    elif rest == ("**",):
        yield rest
    elif len(rest) > 1 and _fits(rest[0], folder):
        yield rest[1:]


def _ends_with(rest: Rest, name: str) -> bool:
    """True if a file of that name in this folder completes it."""
    while len(rest) > 1 and rest[0] == "**":
        rest = rest[1:]
    return len(rest) == 1 and (rest[0] == "**" or _fits(rest[0], name))


def _fits(segment: str, name: str) -> bool:
    plain = _plain_name(segment)
    return plain == name if plain is not None else _matcher(segment)(name) is not None


@lru_cache(maxsize=1 << 14)
def _matcher(segment: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(fnmatch.translate(segment)).match


@lru_cache(maxsize=1 << 14)
def _plain_name(segment: str) -> str | None:
    """Return the one name that a segment matches; None if its wildcards may match several."""
    if _WILDCARD.search(_ESCAPED.sub("", segment)) is not None:
        return None
    return _ESCAPED.sub(r"\1", segment)


class _Group:
    """What one asks of a search that is made for several: the files found for it, or why it failed."""

    __slots__ = ("error", "matches", "tally")

    def __init__(self, root: RemotePath) -> None:
        self.matches: dict[str, FileInfo] = {}
        self.error: SFTPBackendError | OSError | None = None
        self.tally = ListingTally(root.key)
        """What is listed for it, whoever else wants it."""

    @property
    def outcome(self) -> list[FileInfo] | SFTPBackendError | OSError:
        """Its files, sorted by key, or its failure."""
        return self.error or [self.matches[key] for key in sorted(self.matches)]


_Wanted = dict[Rest, set[_Group]]
"""What is still to be matched below a folder, and for whom."""


def find(call: Call, root: RemotePath, patterns: Iterable[Pattern]) -> list[FileInfo]:
    """The files that fit any of the patterns, sorted by key.

    Lists each folder once, and only those that can hold a match; a name without wildcards is asked for without a
    listing.
    """
    group = _Group(root)
    _search(call, root, [(group, patterns)])
    return _or_raise(group.outcome)


def find_each(
    call: Call, root: RemotePath, groups: Sequence[Sequence[str | FileInfo]]
) -> list[list[FileInfo] | SFTPBackendError | OSError]:
    """What `find` gives or raises for each group of patterns, with one search for all of them.

    Raises BackendUnavailable.
    """
    asked: list[tuple[_Group, list[Pattern]]] = []
    for texts in groups:
        group, parsed = _Group(root), list[Pattern]()
        try:
            parsed += map(Pattern.of, texts)
        except InvalidPath as error:
            group.error = error
        asked.append((group, parsed))
    _search(call, root, asked)
    return [group.outcome for group, _ in asked]


def _search(call: Call, root: RemotePath, asked: Iterable[tuple[_Group, Iterable[Pattern]]]) -> None:
    level: dict[RemotePath, _Wanted] = {root: {}}
    for group, patterns in asked:
        for pattern in patterns:
            if pattern.segments:
                level[root].setdefault(pattern.segments, set()).add(group)
    log = ListingTally(root.key)
    depth = 0
    while level := _still_wanted(level):
        try:
            log.check_depth(depth)
            level = _search_level(call, log, level)
        except BackendUnavailable:
            raise
        except SFTPBackendError as error:  # too deep, for all who search on
            _fail({group for wanted in level.values() for groups in wanted.values() for group in groups}, error)
        depth += 1
    log.finish()


def _still_wanted(level: dict[RemotePath, _Wanted]) -> dict[RemotePath, _Wanted]:
    """Without what only those want whose search has failed."""
    found: dict[RemotePath, _Wanted] = {}
    for folder, wanted in level.items():
        for rest, groups in wanted.items():
            if alive := {group for group in groups if group.error is None}:
                found.setdefault(folder, {})[rest] = alive
    return found


def _fail(groups: Iterable[_Group], error: SFTPBackendError | OSError) -> None:
    for group in groups:
        group.error = group.error or error


def _search_level(call: Call, log: ListingTally, level: dict[RemotePath, _Wanted]) -> dict[RemotePath, _Wanted]:
    """Looks into all folders of a level: what is to be looked into next."""
    below: dict[RemotePath, _Wanted] = {}
    plain: dict[RemotePath, set[_Group]] = {}
    listed: dict[RemotePath, _Wanted] = {}
    for folder, wanted in level.items():
        names = {rest: name for rest in wanted if (name := _plain_name(rest[0])) is not None}
        if len(names) < len(wanted):
            listed[folder] = wanted
            continue
        for rest, groups in wanted.items():
            place = folder.child(names[rest])
            if len(rest) == 1:
                plain[place] = groups
            else:
                below.setdefault(place, {})[rest[1:]] = groups
    for (place, groups), looked in zip(plain.items(), _look_at_all(call, list(plain)) if plain else [], strict=True):
        if isinstance(looked, SFTPBackendError | OSError):
            _fail(groups, looked)
        elif looked is not None and looked.is_file:
            for group in groups:
                group.matches[place.key] = file_info(place, looked)
    outcomes = _list_for_groups(call, log, listed) if listed else []
    for (folder, wanted), outcome in zip(listed.items(), outcomes, strict=True):
        if isinstance(outcome, NotFound | InvalidPath):
            continue
        if isinstance(outcome, SFTPBackendError | OSError):
            for rest, groups in wanted.items():
                if _plain_name(rest[0]) is not None:  # can be asked for without a listing
                    below.setdefault(folder, {})[rest] = groups
                else:
                    _fail(groups, outcome)
            continue
        for found in outcome:
            _match(found, wanted, below)
    return below


def _list_for_groups(
    call: Call, log: ListingTally, listed: dict[RemotePath, _Wanted]
) -> list[list[Found] | SFTPBackendError | OSError]:
    """List folders side by side. Each group has bounds of its own, and fails alone where it exceeds one."""
    groups = {folder: list({group for some in wanted.values() for group in some}) for folder, wanted in listed.items()}
    everyone = {group for some in groups.values() for group in some}

    def operation(folder: RemotePath, depth: int) -> Operation[list[Found]]:
        tally = SharedTally(folder.key, [group.tally for group in groups[folder]], log)
        return _list(folder, tally, depth, enters=_goes_on(listed[folder]))

    outcomes = _listed_by(call, [log, *(group.tally for group in everyone)], list(listed), operation)
    for group in everyone:
        if group.tally.exceeded is not None:
            _fail([group], BoundExceeded(group.tally.exceeded, path=log.path))
    return outcomes


def _goes_on(wanted: _Wanted) -> bool:
    """True if a pattern leads on into folders that it does not name."""
    return any(rest[0] == "**" or (len(rest) > 1 and _plain_name(rest[0]) is None) for rest in wanted)


def _match(found: Found, wanted: _Wanted, below: dict[RemotePath, _Wanted]) -> None:
    """Sorts one entry of a folder, below which that is wanted, into results and folders to enter."""
    name = found.place.name
    if found.is_file and not is_temp_name(name):
        info = None
        for rest, groups in wanted.items():
            if _ends_with(rest, name):
                info = info or found.info()
                for group in groups:
                    group.matches[info.path] = info
    if not found.is_folder:
        return
    for rest, groups in wanted.items():
        if found.own.is_folder or _plain_name(rest[0]) is not None:
            for after in _into(rest, name):
                below.setdefault(found.place, {}).setdefault(after, set()).update(groups)
