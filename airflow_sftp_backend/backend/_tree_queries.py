"""Query trees and links for the operators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from airflow_sftp_backend.backend._files import file_info, glob, tree
from airflow_sftp_backend.backend._files.attributes import try_stat
from airflow_sftp_backend.backend._files.links import lstat_all, renames_links
from airflow_sftp_backend.backend._files.tree import SessionCall
from airflow_sftp_backend.backend._paths import RemotePath, is_backup_name, is_temp_name
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.scheduler import SFTPScheduler
from airflow_sftp_backend.backend._writes.backups import may_have_backups, with_backup_restored

from .errors import BackendUnavailable, InvalidPath, SFTPBackendError, result_or_raise
from .models import FileInfo

if TYPE_CHECKING:
    from .sync import SFTPBackend


@dataclass(frozen=True, slots=True)
class Tree:
    """Hold the entries below a directory.

    :ivar files: size in bytes and time in epoch seconds of each regular file, by its key
    :ivar folders: keys of directories
    :ivar others: keys of links, which are not followed, and of special files
    :ivar links_to_files: those of ``others`` that are links to files
    :ivar backups: keys of backups, which exist for a moment where two renames replace a file
    """

    files: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    links_to_files: list[str] = field(default_factory=list)
    backups: list[str] = field(default_factory=list)


def list_tree(backend: SFTPBackend, path: str) -> Tree:
    """List the files below a directory.

    One round trip for each level. ``path`` itself may be a link.

    :param backend: the server
    :param path: the key of the directory
    :returns: the entries, without temporary files of this package
    :raises NotFound: if the directory does not exist
    :raises InvalidPath: if the key is a file
    """
    listing = Tree()
    with backend._resolver.annotate_errors():
        remote = backend._resolver.resolve(path)
        for entry in tree.walk(backend._session.call, remote, must_exist=True, with_temps=True):
            key, attributes = entry.path.key, entry.attributes
            if attributes.is_folder:
                listing.folders.append(key)
            elif is_temp_name(name := entry.path.name):
                if is_backup_name(name):
                    listing.backups.append(key)
            elif attributes.is_file:
                listing.files[key] = attributes.size or 0, attributes.mtime or None
            else:
                listing.others.append(key)
                if entry.is_file:
                    listing.links_to_files.append(key)
    return listing


def find_with_backups(
    backend: SFTPBackend, groups: Sequence[Sequence[str | FileInfo]]
) -> list[list[FileInfo] | SFTPBackendError | OSError]:
    """Search for several groups of patterns together, and restore interrupted replacements.

    :param backend: the server
    :param groups: the patterns of each group
    :returns: for each group, the files or the error
    :raises BackendUnavailable: if the connection is lost
    """
    jail = backend._resolver.jail
    with backend._resolver.annotate_errors():
        outcomes = glob.find_each(
            backend._session.call, jail.root, groups, jail.name_encoding, find_replaced=_restore_files
        )
    return [backend._resolver.with_server(outcome) for outcome in outcomes]


def resolve_keys(backend: SFTPBackend, paths: Iterable[str]) -> list[str | InvalidPath]:
    """Resolve many paths. No I/O.

    :param backend: the server
    :param paths: relative to ``base_path``
    :returns: for each path, its key or the error
    """
    keys: list[str | InvalidPath] = []
    resolve = backend._resolver.resolve
    for path in paths:
        try:
            keys.append(resolve(path).key)
        except InvalidPath as error:
            keys.append(error)
    return keys


def restore_missing(backend: SFTPBackend, paths: Sequence[str]) -> dict[str, FileInfo]:
    """Restore missing files from the backups of interrupted replacements.

    No request on a server with posix-rename, which needs no backups.

    :param backend: the server
    :param paths: keys of missing files
    :returns: the files that exist now
    """
    remotes = _resolve_all(backend, paths)
    if not remotes or not backend._session.call(may_have_backups, idempotent=True):
        return {}
    outcomes = _restore_files(backend._session.call, [*remotes.values()])
    return {path: info for path, info in zip(remotes, outcomes, strict=True) if isinstance(info, FileInfo)}


def _restore_files(call: SessionCall, paths: Sequence[RemotePath]) -> list[FileInfo | SFTPBackendError | OSError]:
    """Return files or errors, after missing files are restored."""

    def query(scheduler: SFTPScheduler) -> list[FileInfo | SFTPBackendError | OSError]:
        outcomes = scheduler.run_many(
            with_backup_restored(scheduler, path, partial(file_info.get_file_info, path)) for path in paths
        )
        for outcome in outcomes:
            if isinstance(outcome, BackendUnavailable):  # lets the session repeat the call
                raise outcome
        return outcomes

    return call(query, idempotent=True)


def find_existing(backend: SFTPBackend, paths: Sequence[str]) -> set[str]:
    """Find the paths that exist.

    Links are not followed, so a dangling link exists. One round trip, more if a reply does not show whether the path
    exists.

    :param backend: the server
    :param paths: keys
    :returns: those of the paths that exist
    """
    remotes = _resolve_all(backend, paths)
    if not remotes:
        return set()
    answers = backend._session.call(
        lambda scheduler: scheduler.run_many(map(try_stat, remotes.values())), idempotent=True
    )
    return {
        path
        for path, answer in zip(remotes, map(result_or_raise, answers), strict=True)
        if isinstance(answer, Attributes)
    }


def find_links(backend: SFTPBackend, paths: Sequence[str]) -> set[str]:
    """Find the links among some paths, dangling links too.

    One round trip.

    :param backend: the server
    :param paths: relative to ``base_path``; a final ``/`` is ignored, so that it does not follow the link
    :returns: the paths that are links; without invalid paths
    """
    remotes = _resolve_all(backend, paths)
    if not remotes:
        return set()
    answers = backend._session.call(lambda scheduler: scheduler.run(lstat_all([*remotes.values()])), idempotent=True)
    return {
        path for path, answer in zip(remotes, answers, strict=True) if isinstance(answer, Attributes) and answer.is_link
    }


def replaces_links(backend: SFTPBackend, path: str) -> bool:
    """Tell whether a rename to the name of a link replaces it.

    One round trip.

    :param backend: the server
    :param path: the key of a link
    :returns: False if the server would replace the file that the link leads to
    """
    remote = backend._resolver.resolve(path)
    return backend._session.call(lambda scheduler: scheduler.run(renames_links(remote)), idempotent=True)


def _resolve_all(backend: SFTPBackend, paths: Sequence[str]) -> dict[str, RemotePath]:
    """Resolve the valid ones among some keys."""
    remotes = {}
    for path in paths:
        with suppress(InvalidPath):
            remotes[path] = backend._resolver.resolve(path)
    return remotes
