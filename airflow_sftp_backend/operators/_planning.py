"""Plan which file goes where: the files that a selection means, and the target each is to have.

Local sources and targets are paths of this machine or URLs of any `ObjectStoragePath`. Names that a server gave
become local names only after each of their segments has been judged alone.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._file_filters import FileFilters
from airflow_sftp_backend._path_arguments import (
    BLANK,
    Name,
    Selection,
    directory_error,
    everything_in,
    literal_hint,
    split_pattern,
)
from airflow_sftp_backend.backend import FileInfo, InvalidPath, NotFound, SFTPBackendError
from airflow_sftp_backend.backend._paths import is_temp_name

from ._object_storage import is_url, object_path

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

IfExists: TypeAlias = Literal["fail", "replace", "skip", "skip_same"]
MoveIfExists: TypeAlias = Literal["fail", "replace", "skip", "skip_same", "number"]
Failure: TypeAlias = SFTPBackendError | OSError


@dataclass(frozen=True, slots=True)
class Step:
    """One file on its way: where from, where to, and its size in bytes where that is known."""

    source: str
    target: str
    size: int | None = None


def literally(path: str) -> str:
    """Return the pattern that matches that path alone."""
    return glob.escape(path)


def unspeakable(*names: str) -> InvalidPath | None:
    """Why Airflow cannot be told of a file with one of these names; None if it can: what tasks return is UTF-8."""
    for name in names:
        if not name.isascii() and re.search("[\udc80-\udcff]", name):
            shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            message = "the name is not UTF-8, and Airflow carries no other in XCom; rename the file, or use SFTPBackend"
            return InvalidPath(message, path=shown)
    return None


def checked(steps: list[Step]) -> list[Step]:
    """The steps, unless two of them have one target: InvalidArgument."""
    taken: dict[str, str] = {}
    for step in steps:
        if (other := taken.setdefault(step.target, step.source)) != step.source:
            raise InvalidArgument(f"{other!r} and {step.source!r} would both become {step.target!r}")
    return list(dict.fromkeys(steps))


# -- from here to the server ------------------------------------------------------------------------------------------

_LocalFile: TypeAlias = tuple[str, str, int | None]
"""A file of this machine or of a store: its path or URL, its path below what selected it, its size in bytes."""


def uploads(selection: Selection, target: str, filters: FileFilters) -> tuple[list[Step], list[Failure]]:
    """Plan an upload.

    What a directory holds keeps its names below that directory; what a pattern finds keeps them below the directory
    before the pattern's first wildcard. Temporary files of unfinished downloads are left out of both.

    :param target: a directory if it ends with ``/`` or if anything but one name is selected.
    :returns: the steps, and a failure for each name or pattern without a file.
    :raises InvalidArgument: if two files would have one target.
    """
    files: list[_LocalFile] = []
    failures: list[Failure] = []
    for wanted in selection:
        find = _find_objects if is_url(wanted.path if isinstance(wanted, Name) else wanted) else _find_local
        try:
            files += find(wanted, filters)
        except (OSError, InvalidPath) as error:
            failures.append(error)
    into_directory = goes_into_directory(selection, target)
    directory = target.rstrip("/")
    steps = [Step(path, f"{directory}/{below}" if into_directory else target, size) for path, below, size in files]
    return checked(steps), failures


def _find_local(wanted: Name | str, filters: FileFilters) -> Iterator[_LocalFile]:
    if isinstance(wanted, Name) and not os.path.lexists(wanted.path):
        kind = "directory" if wanted.is_directory else "file"
        raise FileNotFoundError(errno.ENOENT, f"no such {kind}{literal_hint(wanted.path)}", wanted.path)
    if isinstance(wanted, Name) and not wanted.is_directory:
        path = wanted.path
        if os.path.isdir(path):
            raise directory_error(path)
        yield path, os.path.basename(path), os.stat(path).st_size
        return
    if isinstance(wanted, Name):
        top, rest = wanted.path, "**"
        paths = sorted(_held_by(top))
    else:
        top, rest = split_pattern(wanted)
        paths = [
            path for path in sorted(glob.glob(wanted, recursive=True, include_hidden=True)) if os.path.isfile(path)
        ]
    accepts = filters.accepting([rest])
    files = [(path, Path(os.path.relpath(path, top or ".")).as_posix()) for path in paths]
    yield from _counted(
        wanted, [(path, below, os.stat(path).st_size) for path, below in files if _counts(below) and accepts(below)]
    )


def _counted(wanted: Name | str, files: list[_LocalFile]) -> list[_LocalFile]:
    if files:
        return files
    if isinstance(wanted, Name):
        raise FileNotFoundError(errno.ENOENT, "the directory holds no file that counts", wanted.path)
    raise FileNotFoundError(errno.ENOENT, "no file matches the pattern", wanted)


def _counts(below: str) -> bool:
    return not is_temp_name(below.rpartition("/")[2])


def _held_by(folder: str) -> Iterator[str]:
    """Every file below a folder, through links too. Nothing is left out: OSError for what cannot be read,
    InvalidArgument for a link in a circle.
    """

    def fail(error: OSError) -> None:
        raise error

    above: dict[str, frozenset[str]] = {folder: frozenset()}
    for here, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real, seen = os.path.realpath(here), above.pop(here)
        if real in seen:
            raise InvalidArgument(f"the link {here!r} leads to a folder it lies in")
        above |= {os.path.join(here, name): seen | {real} for name in folders}
        yield from (os.path.join(here, name) for name in names)


def _find_objects(wanted: Name | str, filters: FileFilters) -> Iterator[_LocalFile]:
    if isinstance(wanted, Name) and not wanted.is_directory:
        one = object_path(wanted.path)
        if one.is_file():
            yield wanted.path, one.name, one.stat().st_size
        elif one.exists():
            raise directory_error(wanted.path)
        else:
            raise FileNotFoundError(errno.ENOENT, f"no such object{literal_hint(wanted.path)}", wanted.path)
        return
    top, rest = (wanted.path.rstrip("/"), "**") if isinstance(wanted, Name) else split_pattern(wanted)
    start = object_path(top)
    root = start.path.rstrip("/")
    # not by ObjectStoragePath.glob and rglob: wildcards in the name of the directory would match others
    if isinstance(wanted, Name):
        details = cast("dict[str, dict[str, Any]]", start.fs.find(root, detail=True))
    else:
        details = cast("dict[str, dict[str, Any]]", start.fs.glob(f"{glob.escape(root)}/{rest}", detail=True))
    accepts = filters.accepting([rest])
    files: list[_LocalFile] = []
    for path, info in sorted(details.items()):
        below = path.removeprefix(root).lstrip("/")
        if info["type"] == "file" and below and _counts(below) and accepts(below):
            files.append((f"{top}/{below}", below, info.get("size")))
    yield from _counted(wanted, files)


# -- on the server, and from there to here ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """A file on the server, its path below the name or pattern that selected it, and that name or pattern."""

    info: FileInfo
    below: str
    source: str = ""


@dataclass(slots=True)
class Matches:
    """What a selection means on the server: files, the names and patterns without a file, and other failures."""

    files: list[Found] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def on_server(backend: SFTPBackend, selection: Selection, filters: FileFilters) -> Matches:
    """Look up the files of a selection: all names in one round trip, all directories and patterns in one search.

    :raises BackendUnavailable: if the connection is lost.
    """
    files: dict[str, Found] = {}
    matches = Matches()
    wanted = _resolvable(backend, selection, matches)
    plain = [name for name in wanted if isinstance(name, Name) and not name.is_directory]
    infos = backend.get_file_info_many([name.path for name in plain], return_exceptions=True) if plain else []
    outcome_of: dict[Name | str, FileInfo | list[FileInfo] | Failure] = dict(zip(plain, infos, strict=True))
    patterns = {one: _pattern(one) for one in wanted if one not in outcome_of}
    if patterns:
        groups = [[pattern] for pattern in patterns.values()]
        outcome_of |= zip(patterns, backend.find_each(groups, return_exceptions=True), strict=True)
    for one in wanted:
        outcome = outcome_of[one]
        if isinstance(outcome, InvalidPath) and one not in patterns:
            matches.failures.append(directory_error(_text(one), outcome))
        elif isinstance(outcome, NotFound):
            matches.missing.append(_text(one))
        elif isinstance(outcome, SFTPBackendError | OSError):
            matches.failures.append(outcome)
        elif isinstance(outcome, FileInfo):
            files.setdefault(outcome.path, Found(outcome, outcome.name, _text(one)))
        else:
            below = _below_search(backend, one, patterns[one], outcome, filters)
            for file in below:
                files.setdefault(file.info.path, file)
            if not below:
                matches.missing.append(_text(one))
    matches.files = list(files.values())
    return matches


def _text(wanted: Name | str) -> str:
    return wanted.path if isinstance(wanted, Name) else wanted


def _pattern(wanted: Name | str) -> str:
    return everything_in(wanted.path) if isinstance(wanted, Name) else wanted


def _resolvable(backend: SFTPBackend, selection: Selection, matches: Matches) -> list[Name | str]:
    """Return the names and patterns that are paths; each of the others is a failure of its own."""
    good: list[Name | str] = []
    for wanted in selection:
        try:
            backend.resolve(_text(wanted))
        except InvalidPath as error:
            matches.failures.append(error)
        else:
            good.append(wanted)
    return good


def _below_search(
    backend: SFTPBackend, wanted: Name | str, pattern: str, infos: Iterable[FileInfo], filters: FileFilters
) -> list[Found]:
    directory, rest = split_pattern(pattern)
    top = backend.resolve(directory).key
    accepts = filters.accepting([rest])
    found = (Found(info, info.path.removeprefix(top).lstrip("/"), _text(wanted)) for info in infos)
    return [one for one in found if accepts(one.below)]


def existing_files(backend: SFTPBackend, paths: Sequence[str]) -> dict[str, FileInfo]:
    """Look up which of some paths are files. One round trip.

    :raises SFTPBackendError: if a path cannot be looked at, other than that nothing or no file is there.
    """
    outcomes = backend.get_file_info_many(paths, return_exceptions=True) if paths else []
    files: dict[str, FileInfo] = {}
    for outcome in outcomes:
        if isinstance(outcome, FileInfo):
            files[outcome.path] = outcome
        elif not isinstance(outcome, NotFound | InvalidPath):
            raise outcome
    return files


def missing_error(backend: SFTPBackend, selection: Selection, wanted: str) -> NotFound:
    """Return the failure for a name or pattern of a selection that means no file on the server."""
    if selection.patterns:
        message = "no file matches the pattern"
    elif wanted.endswith("/"):
        message = f"no such directory, or none of its files counts{literal_hint(wanted)}"
    else:
        message = f"no such file{literal_hint(wanted)}"
    error = NotFound(message, path=wanted, server=backend.address)
    if backend.resolve("").native_path != "/":
        error.native_path = backend.resolve(wanted).native_path
    return error


def goes_into_directory(selection: Selection, target: str) -> bool:
    """Return True if ``target`` is a directory to fill: it ends with ``/``, or anything but one name is selected.

    The arguments decide, not how many files there are: else one file more would change what the target means.
    """
    return target.endswith("/") or not selection.is_single


def downloads(files: Sequence[Found], selection: Selection, target: str) -> list[Step]:
    """Plan a download to a local path or URL.

    :raises InvalidArgument: if two files would have one target.
    """
    into_directory = goes_into_directory(selection, target)
    return checked(
        [Step(one.info.path, _below(target, one.below) if into_directory else target, one.info.size) for one in files]
    )


def _below(folder: str, relative: str) -> str:
    """A path below a local folder or URL, each segment of it judged alone: InvalidArgument for one that would
    lead elsewhere.
    """
    segments = relative.split("/")
    for segment in segments:
        if (
            segment in ("", ".", "..")
            or os.sep in segment
            or (os.altsep or "\0") in segment
            or os.path.splitdrive(segment)[0]
        ):
            raise InvalidArgument(f"the server's name {relative!r} is no name for a local file")
    if is_url(folder):
        return "/".join([folder.rstrip("/"), *segments])
    return os.path.join(folder, *segments)


def moves(files: Sequence[Found], selection: Selection, target: str, rename: str | None, date: str) -> list[Step]:
    """Plan a move on the server; two of the steps may have one target.

    :param target: literal: a path, or a directory as in `goes_into_directory` or if there is a ``rename``.
    :param rename: template of what each file is called below the target.
    :param date: what ``{date}`` stands for.
    """
    directory = target.rstrip("/")
    if rename is not None:
        return [
            Step(one.info.path, f"{directory}/{renamed(rename, one.info.name, date)}", one.info.size) for one in files
        ]
    into_directory = goes_into_directory(selection, target)
    return [
        Step(one.info.path, f"{directory}/{one.below}" if into_directory else target, one.info.size) for one in files
    ]


_RENAME_WORDS = ("name", "stem", "suffix", "date")


def check_rename(rename: object) -> None:
    """Check a template for file names.

    :raises InvalidArgument: for anything but text, for a word in braces that stands for nothing, and for no name.
    """
    if not isinstance(rename, str):
        raise InvalidArgument(f"rename is {rename!r}; expected a template such as {{date}}/{{stem}}-old{{suffix}}")
    words = BLANK.findall(rename)
    for word in words:
        if word not in _RENAME_WORDS:
            known = ", ".join(f"{{{one}}}" for one in _RENAME_WORDS)
            raise InvalidArgument(f"rename has {{{word}}} in it, which stands for nothing; expected {known}")
    if not rename.strip("/") or rename.endswith("/"):
        raise InvalidArgument(f"rename is {rename!r}; expected what a file is called, such as {{date}}/{{name}}")


def renamed(rename: str, name: str, date: str) -> str:
    """Return what a file is called: the template with its words filled in."""
    parts = PurePosixPath(name)
    words = {"name": name, "stem": parts.stem, "suffix": parts.suffix, "date": date}
    return BLANK.sub(lambda blank: words[blank[1]], rename)


def crowded_targets(steps: Iterable[Step], there: Container[str]) -> list[str]:
    """The targets that exist, or that several files would have."""
    sources: dict[str, set[str]] = {}
    for step in steps:
        sources.setdefault(step.target, set()).add(step.source)
    return [target for target, wanted_by in sources.items() if target in there or len(wanted_by) > 1]


def numbered_names(target: str) -> str:
    """A pattern that fits every numbered name of ``target``."""
    before, after = _around_number(target)
    return f"{literally(before)}-*{literally(after)}"


def numbered(steps: Iterable[Step], taken: Iterable[str]) -> list[Step]:
    """The steps, each with a target that is neither taken nor another's: where need be with the next free number."""
    gone = set(taken)
    apart = []
    for step in dict.fromkeys(steps):
        before, after = _around_number(step.target)
        names = chain([step.target], (f"{before}-{number}{after}" for number in count(1)))
        target = next(name for name in names if name not in gone or name == step.source)
        gone.add(target)
        apart.append(Step(step.source, target, step.size))
    return apart


def _around_number(target: str) -> tuple[str, str]:
    suffix = PurePosixPath(target).suffix
    return target.removesuffix(suffix), suffix
