"""Test which spellings of a name a target does not distinguish."""

from __future__ import annotations

import os
import secrets
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from airflow_sftp_backend.backend import InvalidPath
from airflow_sftp_backend.backend._paths import temp_name
from airflow_sftp_backend.operators._object_storage import object_path, open_object, remove_object

from .spellings import NameRules

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend


class TargetNames(Protocol):
    """Look up, create and remove names of a target."""

    def existing(self, paths: Sequence[str]) -> set[str]:
        """Return the paths that exist, dangling links too."""

    def create(self, path: str) -> None:
        """Create an empty file."""

    def remove(self, path: str) -> None:
        """Remove a file."""

    def nearest_directory(self, path: str) -> str:
        """Return the directory, or its nearest existing parent."""

    def replaces_link(self, path: str) -> bool:
        """Return whether a rename to the name of a link replaces it."""


class ServerNames:
    """Names on a server. A path is a key.

    :param backend: the server
    """

    def __init__(self, backend: SFTPBackend) -> None:
        self._backend = backend

    def existing(self, paths: Sequence[str]) -> set[str]:
        """Return the paths that exist. One round trip."""
        from airflow_sftp_backend.backend._tree_queries import find_existing  # not needed to parse DAGs

        return find_existing(self._backend, paths)

    def create(self, path: str) -> None:
        """Create an empty file."""
        self._backend.write(path, b"")

    def remove(self, path: str) -> None:
        """Remove a file."""
        self._backend.delete(path, missing_ok=True)

    def nearest_directory(self, path: str) -> str:
        """Return the directory, or its nearest existing parent."""
        path = path.strip("/")
        while path and not self._backend.is_folder(path):
            path = path.rpartition("/")[0]
        return path

    def replaces_link(self, path: str) -> bool:
        """Return whether a rename replaces the link. One round trip."""
        from airflow_sftp_backend.backend._tree_queries import (
            replaces_links,
        )  # not needed to parse DAGs

        return replaces_links(self._backend, path)


class LocalNames:
    """Names on this machine."""

    def existing(self, paths: Sequence[str]) -> set[str]:
        """Return the paths that exist."""
        return {path for path in paths if os.path.lexists(path)}

    def create(self, path: str) -> None:
        """Create an empty file."""
        with open(path, "xb"):
            pass

    def remove(self, path: str) -> None:
        """Remove a file."""
        os.unlink(path)

    def nearest_directory(self, path: str) -> str:
        """Return the directory, or its nearest existing parent."""
        while path and not os.path.isdir(path):
            path = os.path.dirname(path)
        return path

    def replaces_link(self, path: str) -> bool:  # noqa: ARG002 - of the protocol
        """Return True: `os.replace` does."""
        return True


class ObjectNames:
    """Names in an object store. A path is a URL."""

    def existing(self, paths: Sequence[str]) -> set[str]:
        """Return the paths that exist."""
        return {path for path in paths if object_path(path).exists()}

    def create(self, path: str) -> None:
        """Create an empty object."""
        with open_object(object_path(path), "wb"):
            pass

    def remove(self, path: str) -> None:
        """Remove an object."""
        remove_object(object_path(path))

    def nearest_directory(self, path: str) -> str:
        """Return the path: a store needs no directories."""
        return path

    def replaces_link(self, path: str) -> bool:  # noqa: ARG002 - of the protocol
        """Return True: a store has no links."""
        return True


def probe_name_rules(names: TargetNames, directory: str) -> NameRules:
    """Look a temporary file up under other spellings.

    :param names: the names of the target
    :param directory: the target, which may be missing
    :returns: the spellings that the target does not distinguish
    """
    directory = names.nearest_directory(directory)
    token = secrets.token_hex(6)
    # The name is that of a temporary file, which listings omit. é has two Unicode forms.
    name = temp_name("Name-é", token)
    try:
        return _probe(names, directory, name)
    except InvalidPath:  # the encoding of the server's names has no é
        return _probe(names, directory, temp_name("Name", token))


def _probe(names: TargetNames, directory: str, name: str) -> NameRules:
    case = _join(directory, name.replace("Name", "nAME"))
    form = _join(directory, unicodedata.normalize("NFD", name))
    dot, blank = _join(directory, f"{name}."), _join(directory, f"{name} ")
    backslash = f"{directory or '.'}\\{name}"
    path = _join(directory, name)
    names.create(path)
    try:
        existing = names.existing([case, form, dot, blank, backslash])
    finally:
        names.remove(path)
    return NameRules(
        ignores_case=case in existing,
        ignores_form=form in existing and form != path,
        drops_ends=dot in existing or blank in existing,
        splits_at_backslash=backslash in existing,
    )


def _join(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}" if directory else name
