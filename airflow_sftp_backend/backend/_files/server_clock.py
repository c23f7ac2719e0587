"""Read the server's clock."""

from __future__ import annotations

import secrets
from typing import Final

from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes, OpenFlag
from airflow_sftp_backend.backend._protocol.messages import Close, FStat, Open, Remove, Stat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, request, request_all
from airflow_sftp_backend.backend.errors import StatusError, from_status

_NEW: Final = OpenFlag.WRITE | OpenFlag.CREATE | OpenFlag.EXCLUSIVE


def read_server_clock(folder: RemotePath) -> Operation[int | None]:
    """Read the server's clock. Creates and removes an empty temporary file.

    :param folder: an existing directory for the temporary file
    :returns: seconds since 1970, rounded down; None if the server does not report the times of files
    :raises SFTPBackendError: if the file cannot be created
    """
    probe = folder.child("clock").temp(secrets.token_hex(6))
    try:
        handle = yield from request(Open(probe.native, _NEW, Attributes()))
    except StatusError as refused:
        raise from_status(refused, "cannot create a file to read the server's clock", folder.key) from None
    opened, _, named, _ = yield from request_all(
        [FStat(handle), Close(handle), Stat(probe.native), Remove(probe.native)]
    )
    for answer in (named, opened):
        if isinstance(answer, Attributes) and answer.mtime is not None:
            return answer.mtime
    return None
