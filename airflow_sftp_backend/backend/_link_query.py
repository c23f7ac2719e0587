"""Find links, for callers that must not delete their targets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from airflow_sftp_backend.backend._files.links import lstat_all
from airflow_sftp_backend.backend._protocol.codec import Attributes

from .errors import InvalidPath

if TYPE_CHECKING:
    from .sync import SFTPBackend


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
