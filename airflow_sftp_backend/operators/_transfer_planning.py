"""Plan the target of each file that a selection matches.

Local sources and targets are paths of this machine or URLs of any `ObjectStoragePath`. A name from the server becomes a
local name only after a check of each path segment.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._file_filters import FileFilters
from airflow_sftp_backend._file_rows import Action, FileResult
from airflow_sftp_backend._path_arguments import (
    NamedPath,
    Selection,
    directory_error,
    everything_in,
    literal_hint,
    split_pattern,
)
from airflow_sftp_backend.backend import FileInfo, InvalidPath, NotFound, SFTPBackendError
from airflow_sftp_backend.backend._paths import is_temp_name
from airflow_sftp_backend.backend._receive_limits import MAX_DEPTH

from ._named_files import file_infos
from ._object_storage import FileState, is_url, key_below, object_path, time_of_object, without_trailing_slash
from ._rename_template import RenameTemplate

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

IfExists: TypeAlias = Literal["fail", "replace", "skip", "skip_same"]
MoveIfExists: TypeAlias = Literal["fail", "replace", "skip", "skip_same", "number"]
Failure: TypeAlias = SFTPBackendError | OSError
LocalEnd: TypeAlias = Literal["source", "target"]
"""The end of a transfer that is not on the server."""


@dataclass(frozen=True, slots=True)
class TransferItem:
    """Describe the transfer of one file.

    The size is in bytes, if known, and the time is that of the source of an upload.
    """

    source: str
    target: str
    size: int | None = None
    modified_at: datetime | None = field(default=None, compare=False)


def make_result(item: TransferItem, local_end: LocalEnd, size: int | None, action: Action) -> FileResult:
    """Return the result of a transfer.

    :param item: the file
    :param local_end: the end of the transfer that is not on the server
    :param size: size in bytes, None if unknown
    :param action: the completed or planned action
    :returns: the result
    """
    if local_end == "source":
        return {"path": item.target, "size": size, "action": action, "source": item.source}
    return {"path": item.source, "size": size, "action": action, "target": item.target}


def utf8_error(*names: str) -> InvalidPath | None:
    """Return the error for names that are not UTF-8.

    :param names: the names of a file, with surrogates for bytes that are not UTF-8
    :returns: the error; None if all names are UTF-8
    """
    # XCom cannot carry such names.
    for name in names:
        if not name.isascii() and re.search("[\udc80-\udcff]", name):
            escaped_name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            message = (
                "the name is not UTF-8, and XCom carries only UTF-8; set the connection's name_encoding, rename the"
                " file, or use SFTPBackend"
            )
            return InvalidPath(message, path=escaped_name)
    return None


def check_unique_targets(items: list[TransferItem]) -> list[TransferItem]:
    """Check that no two files have the same target.

    :param items: the files
    :returns: the files without duplicates
    :raises InvalidArgument: if two sources have the same target
    """
    sources: dict[str, str] = {}
    for item in items:
        if (first := sources.setdefault(item.target, item.source)) != item.source:
            raise InvalidArgument(f"{first!r} and {item.source!r} have the same target, {item.target!r}")
    return list(dict.fromkeys(items))


# -- uploads ----------------------------------------------------------------------------------------------------------


class LocalFile(NamedTuple):
    """Describe a local file or object to upload.

    :ivar path: local path or URL
    :ivar relative_path: path below the directory of the name or pattern
    :ivar size: size in bytes; None if unknown
    :ivar modified_at: time of the last change; None if unknown
    :ivar state: size and time of a local file; None for an object, and for a path that is not a regular file
    """

    path: str
    relative_path: str
    size: int | None
    modified_at: datetime | None = None
    state: FileState | None = None

    @property
    def name(self) -> str:
        """Last segment of the path."""
        return self.relative_path.rpartition("/")[2]


def find_local_files(
    selection: Selection, filters: FileFilters, *, none_ok: bool = False
) -> tuple[list[LocalFile], list[Failure]]:
    """Find the local files and objects of a selection.

    Files of a directory keep their path below the directory. Files of a pattern keep their path below the directory
    before the first wildcard. Temporary files of unfinished downloads do not count in either.

    :param selection: the selected local paths or URLs
    :param filters: the filters for files of directories and patterns
    :param none_ok: accept an existing directory without files
    :returns: the files, and a failure for each name or pattern without a file
    """
    files: list[LocalFile] = []
    failures: list[Failure] = []
    for selector in selection:
        path_or_glob = selector.path if isinstance(selector, NamedPath) else selector
        find_files = _find_objects if is_url(path_or_glob) else _find_local
        try:
            for file in find_files(selector, filters, none_ok):
                if not isinstance(file, LocalFile):
                    failures.append(file)
                elif file.relative_path.count("/") > MAX_DEPTH:
                    message = f"the path has more than {MAX_DEPTH} directories, the limit of listings; move the file"
                    failures.append(InvalidPath(message, path=file.path))
                else:
                    files.append(file)
        except (OSError, InvalidPath) as error:
            failures.append(error)
    return files, failures


def plan_uploads(
    files: Sequence[LocalFile], selection: Selection, target: str, rename: RenameTemplate | None = None
) -> list[TransferItem]:
    """Plan an upload.

    :param files: the local files
    :param selection: the selection of the files
    :param target: path on the server; a directory as in `target_is_directory`, and with ``rename``
    :param rename: template for the path of each file below the target; None keeps the path
    :returns: the files with their targets
    :raises InvalidArgument: if two files have the same target
    """
    return check_unique_targets(
        [
            TransferItem(
                file.path,
                _path_on_server(file.name, file.relative_path, selection, target, rename),
                file.size,
            )
            for file in files
        ]
    )


def _find_local(selector: NamedPath | str, filters: FileFilters, none_ok: bool) -> Iterator[LocalFile | Failure]:
    if isinstance(selector, NamedPath) and not os.path.lexists(selector.path):
        kind = "directory" if selector.is_directory else "file"
        raise FileNotFoundError(errno.ENOENT, f"no such {kind}{literal_hint(selector.path)}", selector.path)
    if isinstance(selector, NamedPath) and not selector.is_directory:
        path = selector.path
        if os.path.isdir(path):
            raise directory_error(path)
        yield _local_file(path, os.path.basename(path))
        return
    if isinstance(selector, NamedPath):
        top, pattern = selector.path, "**"
        paths = sorted(_walk_local(top))
    else:
        top, pattern = split_pattern(selector)
        paths = [
            path for path in sorted(glob.glob(selector, recursive=True, include_hidden=True)) if os.path.isfile(path)
        ]
    accepts = filters.accepting([pattern])
    files = [(path, _relative_path(path, top)) for path in paths]
    matched = [
        _local_file(path, relative) for path, relative in files if _is_complete_file(relative) and accepts(relative)
    ]
    if not (none_ok and os.path.isdir(top or ".")):
        _check_any(selector, matched)
    yield from matched


def _relative_path(path: str, top: str) -> str:
    """Return the path of a file below a directory, with ``/``."""
    prefix = top if top.endswith(os.sep) else f"{top}{os.sep}"
    relative = path.removeprefix(prefix)
    # Many files: relpath takes two thirds of the time of finding them.
    if os.sep == "/" and top and relative != path and "//" not in path and "/." not in f"/{relative}":
        return relative
    return Path(os.path.relpath(path, top or ".")).as_posix()


def _local_file(path: str, relative_path: str) -> LocalFile:
    status = os.stat(path)
    modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
    return LocalFile(path, relative_path, status.st_size, modified_at, FileState.of_local(status))


def _check_any(selector: NamedPath | str, files: Sequence[object]) -> None:
    if files:
        return
    if isinstance(selector, NamedPath):
        raise FileNotFoundError(errno.ENOENT, "no file of the directory matches the filters", selector.path)
    raise FileNotFoundError(errno.ENOENT, "no file matches the pattern", selector)


def _is_complete_file(relative: str) -> bool:
    return not is_temp_name(relative.rpartition("/")[2])


def _walk_local(top: str) -> Iterator[str]:
    """Yield every file below a directory, also through symbolic links.

    :raises OSError: if a directory cannot be read
    :raises InvalidArgument: if a link leads to a parent directory
    """

    def fail(error: OSError) -> None:
        raise error

    # os.walk follows a link to a parent directory without end, so each directory is compared with its ancestors.
    ancestors: dict[str, frozenset[str]] = {top: frozenset()}
    for directory, directories, names in os.walk(top, onerror=fail, followlinks=True):
        real, parents = os.path.realpath(directory), ancestors.pop(directory)
        if real in parents:
            raise InvalidArgument(f"the symbolic link {directory!r} leads to one of its parent directories")
        ancestors |= {os.path.join(directory, name): parents | {real} for name in directories}
        yield from (os.path.join(directory, name) for name in names)


def _find_objects(selector: NamedPath | str, filters: FileFilters, none_ok: bool) -> Iterator[LocalFile | Failure]:
    if isinstance(selector, NamedPath) and not selector.is_directory:
        obj = object_path(selector.path)
        if obj.is_file():
            state = obj.stat()
            yield LocalFile(selector.path, obj.name, state.st_size, time_of_object(state))
        elif obj.exists():
            raise directory_error(selector.path)
        else:
            raise FileNotFoundError(errno.ENOENT, f"no such object{literal_hint(selector.path)}", selector.path)
        return
    if isinstance(selector, NamedPath):
        top, pattern = without_trailing_slash(selector.path), "**"
    else:
        top, pattern = split_pattern(selector)
    start = object_path(top)
    root = start.path.rstrip("/")
    # ObjectStoragePath.glob and rglob would treat wildcards in the directory's own name as wildcards.
    if isinstance(selector, NamedPath):
        details = cast("dict[str, dict[str, Any]]", start.fs.find(root, detail=True))
    else:
        details = cast("dict[str, dict[str, Any]]", start.fs.glob(f"{glob.escape(root)}/{pattern}", detail=True))
    accepts = filters.accepting([pattern])
    objects: list[LocalFile | Failure] = []
    # Stores list in different orders; a plan must be the same in every attempt.
    for path, info in sorted(details.items()):
        relative = key_below(path, root)
        if info["type"] == "file" and relative and _is_complete_file(relative) and accepts(relative):
            url = f"{top}/{relative}"
            error = key_error(relative, url)
            objects.append(error or LocalFile(url, relative, info.get("size"), time_of_object(info)))
    if not (none_ok and start.exists()):
        _check_any(selector, objects)
    yield from objects


def key_error(relative: str, url: str) -> InvalidPath | None:
    """Return the error for an object whose key is not a path.

    :param relative: the key below the directory that is transferred
    :param url: URL of the object
    :returns: the error; None for a path
    """
    if not {"", ".", ".."} & {*relative.split("/")}:
        return None
    message = (
        "the object's key has an empty segment (//), a segment . or .., which no path of a file has; rename the object,"
        " or transfer it alone, with the name of a file as target"
    )
    return InvalidPath(message, path=url)


# -- files on the server, and downloads -------------------------------------------------------------------------------


class RemoteMatch(NamedTuple):
    """Describe a matched file on the server.

    :ivar info: the file
    :ivar relative_path: path below the directory of the name or pattern
    :ivar source: the name or pattern that matched
    """

    info: FileInfo
    relative_path: str
    source: str = ""


@dataclass(slots=True)
class Matches:
    """Collect the files of a selection and its failures.

    The failures are names and patterns without a file, and errors.
    """

    files: list[RemoteMatch] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def match_remote(
    backend: SFTPBackend, selection: Selection, filters: FileFilters, *, restores: bool = False
) -> Matches:
    """Find the files of a selection.

    Names take one round trip or listing, directories and patterns one search.

    :param backend: the backend of the task
    :param selection: the names or patterns
    :param filters: the filters for files of directories and patterns
    :param restores: restore the files of interrupted replacements
    :returns: the files, and the names and patterns without a file
    :raises BackendUnavailable: if the connection is lost
    """
    from airflow_sftp_backend.backend import _tree_queries  # not needed to parse DAGs

    files: dict[str, RemoteMatch] = {}
    matches = Matches()
    key_of = _resolve_all(backend, selection, matches)
    names = [name for name in key_of if isinstance(name, NamedPath) and not name.is_directory]
    infos = file_infos(backend, [key_of[name] for name in names])
    outcome_of: dict[NamedPath | str, FileInfo | list[FileInfo] | Failure] = dict(zip(names, infos, strict=True))
    if restores and (missing := [name for name in names if isinstance(outcome_of[name], NotFound)]):
        restored = _tree_queries.restore_missing(backend, [name.path for name in missing])
        outcome_of |= {name: restored[name.path] for name in missing if name.path in restored}
    patterns = {
        selector: everything_in(selector.path) if isinstance(selector, NamedPath) else selector
        for selector in key_of
        if selector not in outcome_of
    }
    if patterns:
        outcome_of |= zip(patterns, _find_each(backend, patterns.values(), restores=restores), strict=True)
    for selector in key_of:
        outcome = outcome_of[selector]
        if isinstance(outcome, FileInfo):
            # The first selector wins, so a file that several selectors match has one target.
            files.setdefault(outcome.path, RemoteMatch(outcome, outcome.name, _text_of(selector)))
        elif isinstance(outcome, InvalidPath) and selector not in patterns:
            matches.failures.append(directory_error(_text_of(selector), outcome))
        elif isinstance(outcome, NotFound):
            matches.missing.append(_text_of(selector))
        elif isinstance(outcome, SFTPBackendError | OSError):
            matches.failures.append(outcome)
        else:
            matched = _matches_below(backend, selector, patterns[selector], outcome, filters)
            for file in matched:
                files.setdefault(file.info.path, file)
            if not matched:
                matches.missing.append(_text_of(selector))
    matches.files = list(files.values())
    return matches


def _text_of(selector: NamedPath | str) -> str:
    return selector.path if isinstance(selector, NamedPath) else selector


def _find_each(
    backend: SFTPBackend, patterns: Iterable[str], *, restores: bool
) -> list[list[FileInfo] | SFTPBackendError | OSError]:
    """Find the files of each pattern; restore interrupted replacements if requested."""
    from airflow_sftp_backend.backend import _tree_queries  # not needed to parse DAGs

    groups = [[pattern] for pattern in patterns]
    if restores:
        return _tree_queries.find_with_backups(backend, groups)
    return backend.find_each(groups, return_exceptions=True)


def _resolve_all(backend: SFTPBackend, selection: Selection, matches: Matches) -> dict[NamedPath | str, str]:
    """Return the valid names and patterns with their keys.

    A failure is added to ``matches`` for each other.
    """
    from airflow_sftp_backend.backend._tree_queries import resolve_keys  # not needed to parse DAGs

    selectors = [*selection]
    keys: dict[NamedPath | str, str] = {}
    for selector, key in zip(selectors, resolve_keys(backend, map(_text_of, selectors)), strict=True):
        if isinstance(key, str):
            keys[selector] = key
        else:
            matches.failures.append(key)
    return keys


def _matches_below(
    backend: SFTPBackend, selector: NamedPath | str, pattern: str, infos: Iterable[FileInfo], filters: FileFilters
) -> list[RemoteMatch]:
    directory, pattern_below = split_pattern(pattern)
    top = backend.resolve(directory).key
    accepts = filters.accepting([pattern_below])
    candidates = (RemoteMatch(info, info.path.removeprefix(top).lstrip("/"), _text_of(selector)) for info in infos)
    return [file for file in candidates if accepts(file.relative_path)] if filters else [*candidates]


def missing_error(backend: SFTPBackend, selection: Selection, selector: str) -> NotFound:
    """Return the error for a name or pattern without a file.

    :param backend: the backend of the task
    :param selection: the selection of the name or pattern
    :param selector: the name or pattern
    :returns: the error
    """
    if selection.patterns:
        message = "no file matches the pattern"
    elif selector.endswith("/"):
        message = f"no such directory, or no file of the directory matches the filters{literal_hint(selector)}"
    else:
        message = f"no such file{literal_hint(selector)}"
    error = NotFound(message, path=selector, server=backend.address)
    if backend.resolve("").native_path != "/":
        error.native_path = backend.resolve(selector).native_path
    return error


def target_is_directory(selection: Selection, target: str) -> bool:
    """Tell whether the target is a directory.

    A target that ends with ``/`` is a directory, and any target unless the selection is one file name. The arguments
    decide, not the number of matched files: otherwise one more file would change the meaning of the target.

    :param selection: the selected files
    :param target: the target
    :returns: True for a directory
    """
    return target.endswith("/") or not selection.is_single


def plan_downloads(
    files: Sequence[RemoteMatch], selection: Selection, target: str, rename: RenameTemplate | None = None
) -> list[TransferItem]:
    """Plan a download.

    :param files: the matched files on the server
    :param selection: the selection of the files
    :param target: local path or URL; a directory as in `target_is_directory`, and with ``rename``
    :param rename: template for the path of each file below the target; None keeps the path
    :returns: the files with their targets
    :raises InvalidArgument: if two files have the same target, or if a name is not valid for a local file
    """
    into_directory = rename is not None or target_is_directory(selection, target)

    def target_of(file: RemoteMatch) -> str:
        if not into_directory:
            return target
        if rename is None:
            return local_path_below(target, file.relative_path)
        segments = rename.fill(file.info.name).split("/")
        return local_path_below(target, "/".join(segment for segment in segments if segment not in ("", ".")))

    return check_unique_targets([TransferItem(file.info.path, target_of(file), file.info.size) for file in files])


def local_path_below(top: str, relative: str) -> str:
    """Join a local directory or URL and a path from the server.

    :raises InvalidArgument: if a segment would lead out of the directory
    """
    segments = relative.split("/")
    for segment in segments:
        if (
            segment in ("", ".", "..")
            or os.sep in segment
            or (os.altsep or "\0") in segment
            or os.path.splitdrive(segment)[0]
        ):
            raise InvalidArgument(f"the server's name {relative!r} is not valid for a local file")
    if is_url(top):
        return "/".join([without_trailing_slash(top), *segments])
    return os.path.join(top, *segments)


def plan_moves(
    files: Sequence[RemoteMatch], selection: Selection, target: str, rename: RenameTemplate | None = None
) -> list[TransferItem]:
    """Plan a move on the server.

    Two files may have the same target.

    :param files: the matched files
    :param selection: the selection of the files
    :param target: literal path on the server; a directory as in `target_is_directory`, and with ``rename``
    :param rename: template for the path of each file below the target; None keeps the path
    :returns: the files with their targets
    """
    return [
        TransferItem(
            file.info.path,
            _path_on_server(file.info.name, file.relative_path, selection, target, rename),
            file.info.size,
        )
        for file in files
    ]


def _path_on_server(
    name: str, relative_path: str, selection: Selection, target: str, rename: RenameTemplate | None
) -> str:
    directory = target.rstrip("/")
    if rename is not None:
        return f"{directory}/{rename.fill(name)}"
    return f"{directory}/{relative_path}" if target_is_directory(selection, target) else target


def conflicting_targets(items: Iterable[TransferItem], existing: Container[str]) -> list[str]:
    """Return targets that exist or that several files have.

    :param items: the files
    :param existing: the existing targets
    :returns: the conflicting targets
    """
    sources: dict[str, set[str]] = {}
    for item in items:
        sources.setdefault(item.target, set()).add(item.source)
    return [target for target, sources_of_target in sources.items() if target in existing or len(sources_of_target) > 1]


def numbered_pattern(target: str) -> str:
    """Return a pattern that matches every numbered name of a target.

    :param target: path on the server
    :returns: the pattern
    """
    stem, suffix = _split_for_number(target)
    return f"{glob.escape(stem)}-*{glob.escape(suffix)}"


def assign_numbers(items: Iterable[TransferItem], occupied: Iterable[str]) -> list[TransferItem]:
    """Give each file a free target, numbered if necessary.

    :param items: the files
    :param occupied: paths that are not free
    :returns: the files with unique targets
    """
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
