"""Query trees and links for the operators."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_sftp_backend.backend._files import tree
from airflow_sftp_backend.backend._files.links import lstat_all
from airflow_sftp_backend.backend._protocol.codec import Attributes

from .errors import InvalidPath
from .models import FileInfo

if TYPE_CHECKING:
    from .sync import SFTPBackend


@dataclass(frozen=True, slots=True)
class Tree:
    """Hold the entries below a directory.

    :ivar files: regular files
    :ivar others: keys of links, which are not followed, and of special files
    """

    files: list[FileInfo]
    others: list[str]


def list_tree(backend: SFTPBackend, path: str) -> Tree:
    """List the files below a directory.

    One round trip for each level. ``path`` itself may be a link.

    :param backend: the server
    :param path: the key of the directory
    :returns: the entries, without temporary files of this package
    :raises NotFound: if the directory does not exist
    :raises InvalidPath: if the key is a file
    """
    listing = Tree([], [])
    with backend._resolver.annotate_errors():
        for entry in tree.walk(backend._session.call, backend._resolver.resolve(path), must_exist=True):
            if entry.attributes.is_folder:
                continue
            if entry.attributes.is_file:
                listing.files.append(entry.to_file_info())
            else:
                listing.others.append(entry.path.key)
    return listing


def find_links(backend: SFTPBackend, paths: Sequence[str]) -> set[str]:
    """Find the links among some paths, those that lead nowhere too.

    One round trip.

    :param backend: the server
    :param paths: relative to ``base_path``; a final ``/`` does not count, so that the link itself is meant
    :returns: those of the paths that are links; a path that is refused is not
    """
    remotes = {}
    for path in paths:
        with suppress(InvalidPath):
            remotes[path] = backend._resolver.resolve(path)
    if not remotes:
        return set()
    answers = backend._session.call(lambda scheduler: scheduler.run(lstat_all([*remotes.values()])), idempotent=True)
    return {
        path for path, answer in zip(remotes, answers, strict=True) if isinstance(answer, Attributes) and answer.is_link
    }
