"""Serves SFTP with paramiko until killed: ``python paramiko_program.py PORT ROOT HOST_KEY AUTHORIZED_KEYS``."""

from __future__ import annotations

import base64
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED
from paramiko.sftp import SFTP_FAILURE, SFTP_OK

if TYPE_CHECKING:
    from typing_extensions import Buffer

P = ParamSpec("P")
R = TypeVar("R")


def _status_of_errors(call: Callable[P, R]) -> Callable[P, R | int]:
    """Makes ``call`` return the SFTP status of the OSError it raises."""

    def answer(*args: P.args, **kwargs: P.kwargs) -> R | int:
        try:
            return call(*args, **kwargs)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    return answer


class OpenFile(paramiko.SFTPHandle):
    """An open file, read and written at offsets by its descriptor."""

    def __init__(self, descriptor: int, flags: int) -> None:
        super().__init__(flags)
        self._descriptor = descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    @_status_of_errors
    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    @_status_of_errors
    def write(self, offset: int, data: Buffer) -> int:
        remaining = memoryview(data)
        while remaining:  # pwrite may write less than it was given
            written = os.pwrite(self._descriptor, remaining, offset)
            remaining = remaining[written:]
            offset += written
        return SFTP_OK

    @_status_of_errors
    def stat(self) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self._descriptor))

    @_status_of_errors
    def chattr(self, attr: paramiko.SFTPAttributes) -> int:
        _set_attributes(self._descriptor, attr)
        return SFTP_OK


def _set_attributes(target: int | str, attr: paramiko.SFTPAttributes) -> None:
    """Set the attributes of ``attr`` on a path or open file."""
    if attr.st_size is not None:
        os.truncate(target, attr.st_size)
    if attr.st_uid is not None and attr.st_gid is not None:
        os.chown(target, attr.st_uid, attr.st_gid)
    if attr.st_mode is not None:
        os.chmod(target, attr.st_mode & 0o7777)
    if attr.st_atime is not None and attr.st_mtime is not None:
        os.utime(target, (attr.st_atime, attr.st_mtime))


class Files(paramiko.SFTPServerInterface):
    """This machine's files; relative paths start at ``root``."""

    def __init__(self, server: paramiko.ServerInterface, root: str) -> None:
        super().__init__(server)
        self._root = root

    def _path(self, path: str) -> str:
        return os.path.join(self._root, path)

    @_status_of_errors
    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> OpenFile:
        mode = 0o666 if attr.st_mode is None else attr.st_mode & 0o7777
        return OpenFile(os.open(self._path(path), flags, mode), flags)

    @_status_of_errors
    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes]:
        with os.scandir(self._path(path)) as entries:
            return [
                paramiko.SFTPAttributes.from_stat(entry.stat(follow_symlinks=False), entry.name) for entry in entries
            ]

    @_status_of_errors
    def stat(self, path: str) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(os.stat(self._path(path)))

    @_status_of_errors
    def lstat(self, path: str) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(os.lstat(self._path(path)))

    @_status_of_errors
    def remove(self, path: str) -> int:
        os.remove(self._path(path))
        return SFTP_OK

    @_status_of_errors
    def rename(self, oldpath: str, newpath: str) -> int:
        """Renames; a taken name is refused, as SFTP version 3 has it."""
        if os.path.lexists(self._path(newpath)):
            return SFTP_FAILURE
        os.rename(self._path(oldpath), self._path(newpath))
        return SFTP_OK

    @_status_of_errors
    def posix_rename(self, oldpath: str, newpath: str) -> int:
        os.replace(self._path(oldpath), self._path(newpath))
        return SFTP_OK

    @_status_of_errors
    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        os.mkdir(self._path(path), 0o777 if attr.st_mode is None else attr.st_mode & 0o7777)
        return SFTP_OK

    @_status_of_errors
    def rmdir(self, path: str) -> int:
        os.rmdir(self._path(path))
        return SFTP_OK

    @_status_of_errors
    def chattr(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        _set_attributes(self._path(path), attr)
        return SFTP_OK

    def canonicalize(self, path: str) -> str:
        return os.path.normpath(self._path(path))

    @_status_of_errors
    def readlink(self, path: str) -> str:
        return os.readlink(self._path(path))

    @_status_of_errors
    def symlink(self, target_path: str, path: str) -> int:
        os.symlink(target_path, self._path(path))
        return SFTP_OK


class Login(paramiko.ServerInterface):
    """Lets ``tester`` in with the one key, and says so."""

    def __init__(self, allowed: bytes) -> None:
        self._allowed = allowed

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return AUTH_SUCCESSFUL if (username, key.asbytes()) == ("tester", self._allowed) else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        if not self._said:
            self._said = True
            sys.stdout.write("accepted a login\n")
            sys.stdout.flush()
        return super().check_channel_subsystem_request(channel, name)

    _said = False


def _serve(client: socket.socket, root: str, host_key: paramiko.PKey, allowed: bytes) -> None:
    """Serves one connection in paramiko's own threads."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = paramiko.Transport(client)
    transport.add_server_key(host_key)
    transport.set_subsystem_handler("sftp", paramiko.SFTPServer, Files, root)
    transport.start_server(event=threading.Event(), server=Login(allowed))


def main(port: str, root: str, host_key: str, authorized_keys: str) -> None:
    """Serves until the process is killed."""
    key = paramiko.Ed25519Key.from_private_key_file(host_key)
    allowed = base64.b64decode(Path(authorized_keys).read_text().split()[1])
    with socket.create_server(("127.0.0.1", int(port))) as listening:
        while True:
            client, _ = listening.accept()
            _serve(client, root, key, allowed)


if __name__ == "__main__":
    main(*sys.argv[1:])
