"""Write files directly under their final names.

For servers that forbid renames. Readers can see partial content. Once the file is open, a failure loses the old
content; the incomplete file is removed if the server can be reached.
"""

from __future__ import annotations

from dataclasses import replace

from airflow_sftp_backend.backend._files.links import lstat_all
from airflow_sftp_backend.backend._files.pipelining import PipelinedWriter, UploadSource, write_source
from airflow_sftp_backend.backend._files.writing import open_new, remove_quietly
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes, OpenFlag
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, server_traits
from airflow_sftp_backend.backend._protocol.striping import StripedFile
from airflow_sftp_backend.backend.errors import InvalidPath, StatusError, from_status
from airflow_sftp_backend.backend.models import PreparedFile, Progress

from .atomic_write import finish_content
from .write_state import ResumeState, WriteState
from .write_target import WriteTarget


def write_directly(
    scheduler: SFTPScheduler,
    write_target: WriteTarget,
    source: UploadSource,
    resume_state: ResumeState,
    progress: Progress | None = None,
) -> Operation[PreparedFile]:
    """Write ``source`` under the final name of its target.

    :param scheduler: the connection
    :param write_target: the target; its temporary file is not used
    :param source: the content
    :param resume_state: a new state; tells afterwards whether the file was opened
    :param progress: called with acknowledged bytes
    :returns: the complete and verified file
    :raises SFTPBackendError: AlreadyExists, InvalidPath, TransferCorrupted and others
    """
    path = write_target.path
    write_target = replace(write_target, temp=path)
    flags = OpenFlag.WRITE | OpenFlag.CREATE | (OpenFlag.TRUNCATE if write_target.overwrite else OpenFlag.EXCLUSIVE)
    yield from _refuse_link(path, exclusive=not write_target.overwrite)
    resume_state.advance(WriteState.STARTED)
    handle, _ = yield from open_new(path, path, flags, write_target.create_parents)
    resume_state.opened(handle, None, resumed=False)
    is_complete = False
    try:
        striped_file = StripedFile(scheduler, path, handle, size=None, channels=1)
        writer = PipelinedWriter(striped_file, (yield from scheduler.server_limits()).write, progress=progress)
        yield from write_source(source, writer)
        written, _ = yield from finish_content(
            scheduler, write_target, resume_state, writer, source, progress, is_direct=True
        )
        is_complete = True
    except StatusError as refused:
        raise from_status(refused, "cannot write", path.key) from None
    finally:
        if not is_complete:
            yield from remove_quietly(path, resume_state.open_handle)
    mtime = written.mtime if resume_state.kept_mtime is None else resume_state.kept_mtime
    return PreparedFile(path.key, path.name, writer.offset, mtime, source.digest)


def _refuse_link(path: RemotePath, *, exclusive: bool) -> Operation[None]:
    """Raise InvalidPath if the target is a link. One round trip.

    SFTP 3 has no flag for OPEN that refuses links, so another client can still create one after the check.
    """
    if exclusive and (yield from server_traits()).honours_exclusive:
        return  # OPEN refuses links too
    (answer,) = yield from lstat_all([path])
    if isinstance(answer, Attributes) and answer.is_link:
        raise InvalidPath(
            "the target is a link, and a direct upload would write to the file that the link leads to, wherever it is;"
            " remove the link, or upload without direct=True",
            path=path.key,
        )
