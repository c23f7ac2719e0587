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
from airflow_sftp_backend._file_rows import Action, FileResult
from airflow_sftp_backend._path_arguments import (
    PLACEHOLDER,
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
LocalEnd: TypeAlias = Literal["source", "target"]
"""Which end of a transfer is not the server."""


@dataclass(frozen=True, slots=True)
class TransferItem:
    """One file on its way: where from, where to, and its size in bytes where that is known."""

    source: str
    target: str
    size: int | None = None


def make_result(item: TransferItem, local_end: LocalEnd, size: int | None, action: Action) -> FileResult:
    """Return the result of a transfer.

    :param local_end: the end of the transfer that is not the server.
    :param size: bytes, None if unknown.
    """
    if local_end == "source":
        return {"path": item.target, "size": size, "action": action, "source": item.source}
    return {"path": item.source, "size": size, "action": action, "target": item.target}


def utf8_error(*names: str) -> InvalidPath | None:
    """Why Airflow cannot be told of a file with one of these names; None if it can: what tasks return is UTF-8."""
    for name in names:
        if not name.isascii() and re.search("[\udc80-\udcff]", name):
            escaped_name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            message = "the name is not UTF-8, and Airflow carries no other in XCom; rename the file, or use SFTPBackend"
            return InvalidPath(message, path=escaped_name)
    return None


def require_unique_targets(items: list[TransferItem]) -> list[TransferItem]:
    """The steps, unless two of them have one target: InvalidArgument."""
    sources: dict[str, str] = {}
    for item in items:
        if (first := sources.setdefault(item.target, item.source)) != item.source:
            raise InvalidArgument(f"{first!r} and {item.source!r} would both become {item.target!r}")
    return list(dict.fromkeys(items))


# -- from here to the server ------------------------------------------------------------------------------------------

_LocalFile: TypeAlias = tuple[str, str, int | None]
"""A file of this machine or of a store: its path or URL, its path below what selected it, its size in bytes."""


def plan_uploads(selection: Selection, target: str, filters: FileFilters) -> tuple[list[TransferItem], list[Failure]]:
    """Plan an upload.

    What a directory holds keeps its names below that directory; what a pattern finds keeps them below the directory
    before the pattern's first wildcard. Temporary files of unfinished downloads are left out of both.

    :param target: a directory if it ends with ``/`` or if anything but one name is selected.
    :returns: the steps, and a failure for each name or pattern without a file.
    :raises InvalidArgument: if two files would have one target.
    """
    files: list[_LocalFile] = []
    failures: list[Failure] = []
    for selector in selection:
        find_files = _find_objects if is_url(selector.path if isinstance(selector, Name) else selector) else _find_local
        try:
            files += find_files(selector, filters)
        except (OSError, InvalidPath) as error:
            failures.append(error)
    into_directory = target_is_directory(selection, target)
    directory = target.rstrip("/")
    items = [
        TransferItem(path, f"{directory}/{relative}" if into_directory else target, size)
        for path, relative, size in files
    ]
    return require_unique_targets(items), failures


def _find_local(selector: Name | str, filters: FileFilters) -> Iterator[_LocalFile]:
    if isinstance(selector, Name) and not os.path.lexists(selector.path):
        kind = "directory" if selector.is_directory else "file"
        raise FileNotFoundError(errno.ENOENT, f"no such {kind}{literal_hint(selector.path)}", selector.path)
    if isinstance(selector, Name) and not selector.is_directory:
        path = selector.path
        if os.path.isdir(path):
            raise directory_error(path)
        yield path, os.path.basename(path), os.stat(path).st_size
        return
    if isinstance(selector, Name):
        top, pattern = selector.path, "**"
        paths = sorted(_walk_local(top))
    else:
        top, pattern = split_pattern(selector)
        paths = [
            path for path in sorted(glob.glob(selector, recursive=True, include_hidden=True)) if os.path.isfile(path)
        ]
    accepts = filters.accepting([pattern])
    files = [(path, Path(os.path.relpath(path, top or ".")).as_posix()) for path in paths]
    yield from _require_files(
        selector,
        [
            (path, relative, os.stat(path).st_size)
            for path, relative in files
            if _is_complete_file(relative) and accepts(relative)
        ],
    )


def _require_files(selector: Name | str, files: list[_LocalFile]) -> list[_LocalFile]:
    if files:
        return files
    if isinstance(selector, Name):
        raise FileNotFoundError(errno.ENOENT, "the directory holds no file that counts", selector.path)
    raise FileNotFoundError(errno.ENOENT, "no file matches the pattern", selector)


def _is_complete_file(relative: str) -> bool:
    return not is_temp_name(relative.rpartition("/")[2])


def _walk_local(top: str) -> Iterator[str]:
    """Every file below a folder, through links too. Nothing is left out: OSError for what cannot be read,
    InvalidArgument for a link in a circle.
    """

    def fail(error: OSError) -> None:
        raise error

    ancestors: dict[str, frozenset[str]] = {top: frozenset()}
    for directory, directories, names in os.walk(top, onerror=fail, followlinks=True):
        real, parents = os.path.realpath(directory), ancestors.pop(directory)
        if real in parents:
            raise InvalidArgument(f"the link {directory!r} leads to a folder it lies in")
        ancestors |= {os.path.join(directory, name): parents | {real} for name in directories}
        yield from (os.path.join(directory, name) for name in names)


def _find_objects(selector: Name | str, filters: FileFilters) -> Iterator[_LocalFile]:
    if isinstance(selector, Name) and not selector.is_directory:
        obj = object_path(selector.path)
        if obj.is_file():
            yield selector.path, obj.name, obj.stat().st_size
        elif obj.exists():
            raise directory_error(selector.path)
        else:
            raise FileNotFoundError(errno.ENOENT, f"no such object{literal_hint(selector.path)}", selector.path)
        return
    top, pattern = (selector.path.rstrip("/"), "**") if isinstance(selector, Name) else split_pattern(selector)
    start = object_path(top)
    root = start.path.rstrip("/")
    # not by ObjectStoragePath.glob and rglob: wildcards in the name of the directory would match others
    if isinstance(selector, Name):
        details = cast("dict[str, dict[str, Any]]", start.fs.find(root, detail=True))
    else:
        details = cast("dict[str, dict[str, Any]]", start.fs.glob(f"{glob.escape(root)}/{pattern}", detail=True))
    accepts = filters.accepting([pattern])
    files: list[_LocalFile] = []
    for path, info in sorted(details.items()):
        relative = path.removeprefix(root).lstrip("/")
        if info["type"] == "file" and relative and _is_complete_file(relative) and accepts(relative):
            files.append((f"{top}/{relative}", relative, info.get("size")))
    yield from _require_files(selector, files)


# -- on the server, and from there to here ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RemoteMatch:
    """A file on the server, its path below the name or pattern that selected it, and that name or pattern."""

    info: FileInfo
    relative_path: str
    source: str = ""


@dataclass(slots=True)
class Matches:
    """What a selection means on the server: files, the names and patterns without a file, and other failures."""

    files: list[RemoteMatch] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def match_remote(backend: SFTPBackend, selection: Selection, filters: FileFilters) -> Matches:
    """Look up the files of a selection: all names in one round trip, all directories and patterns in one search.

    :raises BackendUnavailable: if the connection is lost.
    """
    files: dict[str, RemoteMatch] = {}
    matches = Matches()
    selectors = _split_resolvable(backend, selection, matches)
    names = [name for name in selectors if isinstance(name, Name) and not name.is_directory]
    infos = backend.get_file_info_many([name.path for name in names], return_exceptions=True) if names else []
    outcome_of: dict[Name | str, FileInfo | list[FileInfo] | Failure] = dict(zip(names, infos, strict=True))
    patterns = {selector: _pattern_of(selector) for selector in selectors if selector not in outcome_of}
    if patterns:
        groups = [[pattern] for pattern in patterns.values()]
        outcome_of |= zip(patterns, backend.find_each(groups, return_exceptions=True), strict=True)
    for selector in selectors:
        outcome = outcome_of[selector]
        if isinstance(outcome, InvalidPath) and selector not in patterns:
            matches.failures.append(directory_error(_text_of(selector), outcome))
        elif isinstance(outcome, NotFound):
            matches.missing.append(_text_of(selector))
        elif isinstance(outcome, SFTPBackendError | OSError):
            matches.failures.append(outcome)
        elif isinstance(outcome, FileInfo):
            files.setdefault(outcome.path, RemoteMatch(outcome, outcome.name, _text_of(selector)))
        else:
            matched = _matches_below(backend, selector, patterns[selector], outcome, filters)
            for file in matched:
                files.setdefault(file.info.path, file)
            if not matched:
                matches.missing.append(_text_of(selector))
    matches.files = list(files.values())
    return matches


def _text_of(selector: Name | str) -> str:
    return selector.path if isinstance(selector, Name) else selector


def _pattern_of(selector: Name | str) -> str:
    return everything_in(selector.path) if isinstance(selector, Name) else selector


def _split_resolvable(backend: SFTPBackend, selection: Selection, matches: Matches) -> list[Name | str]:
    """Return the names and patterns that are paths; each of the others is a failure of its own."""
    resolvable: list[Name | str] = []
    for selector in selection:
        try:
            backend.resolve(_text_of(selector))
        except InvalidPath as error:
            matches.failures.append(error)
        else:
            resolvable.append(selector)
    return resolvable


def _matches_below(
    backend: SFTPBackend, selector: Name | str, pattern: str, infos: Iterable[FileInfo], filters: FileFilters
) -> list[RemoteMatch]:
    directory, pattern_below = split_pattern(pattern)
    top = backend.resolve(directory).key
    accepts = filters.accepting([pattern_below])
    candidates = (RemoteMatch(info, info.path.removeprefix(top).lstrip("/"), _text_of(selector)) for info in infos)
    return [file for file in candidates if accepts(file.relative_path)]


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


def missing_error(backend: SFTPBackend, selection: Selection, selector: str) -> NotFound:
    """Return the failure for a name or pattern of a selection that means no file on the server."""
    if selection.patterns:
        message = "no file matches the pattern"
    elif selector.endswith("/"):
        message = f"no such directory, or none of its files counts{literal_hint(selector)}"
    else:
        message = f"no such file{literal_hint(selector)}"
    error = NotFound(message, path=selector, server=backend.address)
    if backend.resolve("").native_path != "/":
        error.native_path = backend.resolve(selector).native_path
    return error


def target_is_directory(selection: Selection, target: str) -> bool:
    """Return True if ``target`` is a directory to fill: it ends with ``/``, or anything but one name is selected.

    The arguments decide, not how many files there are: else one file more would change what the target means.
    """
    return target.endswith("/") or not selection.is_single


def plan_downloads(files: Sequence[RemoteMatch], selection: Selection, target: str) -> list[TransferItem]:
    """Plan a download to a local path or URL.

    :raises InvalidArgument: if two files would have one target.
    """
    into_directory = target_is_directory(selection, target)
    return require_unique_targets(
        [
            TransferItem(
                file.info.path,
                _local_path_below(target, file.relative_path) if into_directory else target,
                file.info.size,
            )
            for file in files
        ]
    )


def _local_path_below(top: str, relative: str) -> str:
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
    if is_url(top):
        return "/".join([top.rstrip("/"), *segments])
    return os.path.join(top, *segments)


def plan_moves(
    files: Sequence[RemoteMatch], selection: Selection, target: str, rename: str | None, date: str
) -> list[TransferItem]:
    """Plan a move on the server; two of the steps may have one target.

    :param target: literal: a path, or a directory as in `target_is_directory` or if there is a ``rename``.
    :param rename: template of what each file is called below the target.
    :param date: what ``{date}`` stands for.
    """
    directory = target.rstrip("/")
    if rename is not None:
        return [
            TransferItem(
                file.info.path, f"{directory}/{fill_rename_template(rename, file.info.name, date)}", file.info.size
            )
            for file in files
        ]
    into_directory = target_is_directory(selection, target)
    return [
        TransferItem(file.info.path, f"{directory}/{file.relative_path}" if into_directory else target, file.info.size)
        for file in files
    ]


_RENAME_WORDS = ("name", "stem", "suffix", "date")


def check_rename(rename: object) -> None:
    """Check a template for file names.

    :raises InvalidArgument: for anything but text, for a word in braces that stands for nothing, and for no name.
    """
    if not isinstance(rename, str):
        raise InvalidArgument(f"rename is {rename!r}; expected a template such as {{date}}/{{stem}}-old{{suffix}}")
    words = PLACEHOLDER.findall(rename)
    for word in words:
        if word not in _RENAME_WORDS:
            expected = ", ".join(f"{{{known_word}}}" for known_word in _RENAME_WORDS)
            raise InvalidArgument(f"rename has {{{word}}} in it, which stands for nothing; expected {expected}")
    if not rename.strip("/") or rename.endswith("/"):
        raise InvalidArgument(f"rename is {rename!r}; expected what a file is called, such as {{date}}/{{name}}")


def fill_rename_template(rename: str, name: str, date: str) -> str:
    """Return what a file is called: the template with its words filled in."""
    parts = PurePosixPath(name)
    words = {"name": name, "stem": parts.stem, "suffix": parts.suffix, "date": date}
    return PLACEHOLDER.sub(lambda placeholder: words[placeholder[1]], rename)


def conflicting_targets(items: Iterable[TransferItem], existing: Container[str]) -> list[str]:
    """The targets that exist, or that several files would have."""
    sources: dict[str, set[str]] = {}
    for item in items:
        sources.setdefault(item.target, set()).add(item.source)
    return [target for target, sources_of_target in sources.items() if target in existing or len(sources_of_target) > 1]


def numbered_pattern(target: str) -> str:
    """A pattern that fits every numbered name of ``target``."""
    stem, suffix = _split_for_number(target)
    return f"{glob.escape(stem)}-*{glob.escape(suffix)}"


def assign_numbers(items: Iterable[TransferItem], occupied: Iterable[str]) -> list[TransferItem]:
    """The steps, each with a target that is neither taken nor another's: where need be with the next free number."""
    used = set(occupied)
    numbered = []
    for item in dict.fromkeys(items):
        stem, suffix = _split_for_number(item.target)
        names = chain([item.target], (f"{stem}-{number}{suffix}" for number in count(1)))
        target = next(name for name in names if name not in used or name == item.source)
        used.add(target)
        numbered.append(TransferItem(item.source, target, item.size))
    return numbered


def _split_for_number(target: str) -> tuple[str, str]:
    suffix = PurePosixPath(target).suffix
    return target.removesuffix(suffix), suffix
