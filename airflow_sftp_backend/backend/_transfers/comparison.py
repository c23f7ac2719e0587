"""Compare remote with local files."""

from __future__ import annotations

import os

from airflow_sftp_backend.backend._files.attributes import close_quietly
from airflow_sftp_backend.backend._files.reading import open_for_reading
from airflow_sftp_backend.backend._files.samples import samples_match
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import FStat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, request_all

from .local_files import open_regular


def same_samples(path: RemotePath, local: str | os.PathLike[str]) -> Operation[bool]:
    """Compare a file on the server with a local file.

    Size and up to 64 samples are compared.

    :param path: the file on the server
    :param local: the local file
    :returns: True without a difference; a file of up to 2 MiB is compared as a whole
    :raises SFTPBackendError: if the server refuses to read the file
    :raises OSError: if the local file cannot be read
    """
    descriptor = open_regular(local)
    try:
        size = os.fstat(descriptor).st_size
        handle = yield from open_for_reading(path)
        try:
            (answer,) = yield from request_all([FStat(handle)])
            stated_size = answer.size if isinstance(answer, Attributes) else None
            if stated_size is not None and stated_size != size:
                return False
            return size == 0 or (
                yield from samples_match(handle, size, lambda start, count: os.pread(descriptor, count, start))
            )
        finally:
            yield from close_quietly(handle)
    finally:
        os.close(descriptor)
