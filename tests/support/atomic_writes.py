"""Provide operations that commit files, and a server in memory."""

from __future__ import annotations

from collections.abc import Callable

from airflow_sftp_backend import SFTPBackendError
from airflow_sftp_backend.backend._files.pipelining import UploadSource
from airflow_sftp_backend.backend._paths import Jail, RemotePath, is_temp_name
from airflow_sftp_backend.backend._protocol.scheduler import Operation
from airflow_sftp_backend.backend._writes.atomic_write import write_atomic
from airflow_sftp_backend.backend._writes.copy import copy
from airflow_sftp_backend.backend._writes.move import move
from airflow_sftp_backend.backend._writes.write_target import WriteTarget
from airflow_sftp_backend.backend.models import Verify
from tests.support.memory_server import MemoryServer, Renames

OLD, NEW, THEIRS = b"the old content", b"the new content, longer", b"what another writer wrote"
AT = Jail("/").resolve
TARGET, SOURCE = AT("in/target"), AT("out/source")

RENAMES = {
    "posix-rename replaces": Renames("replaces", "refuses"),
    "posix-rename refuses": Renames("refuses", "refuses"),
    "no posix-rename, plain refuses": Renames("no", "refuses"),
    "no posix-rename, plain replaces": Renames("no", "replaces"),
    "no rename across, posix": Renames("replaces", "refuses", across=False),
    "no rename across, plain": Renames("no", "refuses", across=False),
}
Run = Callable[[MemoryServer, WriteTarget], Operation[object]]
OPERATIONS: dict[str, Run] = {
    "write_atomic": lambda server, write_target: write_atomic(
        server, write_target, UploadSource(NEW, with_digest=True)
    ),
    "move": lambda server, write_target: move(server, SOURCE, write_target),
    "copy": lambda server, write_target: copy(server, SOURCE, write_target),
}


def write_target(*, overwrite: bool, verify: Verify = "size", target: RemotePath = TARGET) -> WriteTarget:
    return WriteTarget(target, target.temp("0" * 12), target.unique_backup("f" * 12), overwrite, verify)


def memory_server(*, target: bytes | None = OLD, **options: object) -> MemoryServer:
    """A server with a source and, unless it is None, a target."""
    files: dict[str, bytes | None] = {"/in": None, "/out": None, "/out/source": NEW}
    if target is not None:
        files["/in/target"] = target
    return MemoryServer(files, **options)  # type: ignore[arg-type]  # passed through


def temps(server: MemoryServer) -> list[str]:
    return [path for path in server.files if is_temp_name(path.rpartition("/")[2])]


def outcome(server: MemoryServer, operation: Operation[object]) -> SFTPBackendError | None:
    """Return the error, or None."""
    try:
        server.run(operation)
    except SFTPBackendError as error:
        return error
    return None
