"""The hook: an Airflow connection -> a backend, and the backend's errors -> tasks that fail or are tried again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._cancellation import shield_from_kill
from airflow_sftp_backend._connections.fields import CONN_TYPE, FIELDS, HOOK_NAME, field_behaviour
from airflow_sftp_backend._connections.parser import ConnectionRecord, InvalidConnection
from airflow_sftp_backend._connections.resolver import resolve
from airflow_sftp_backend._file_rows import FoundFile, found_file
from airflow_sftp_backend.backend import (
    AuthenticationFailed,
    BackendUnavailable,
    CapabilityNotSupported,
    HostKeyRejected,
    InvalidPath,
    PermissionDenied,
    SFTPBackendError,
)
from airflow_sftp_backend.version_compat import AirflowException, AirflowFailException, BaseHook, redact

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from airflow_sftp_backend._connections.parser import AirflowConnection
    from airflow_sftp_backend.backend import BackendConfig, SFTPBackend
    from airflow_sftp_backend.backend._diagnostics.check import Diagnosis

__all__ = ["NON_RETRYABLE_ERRORS", "FilesFailed", "FoundFile", "SFTPBackendHook", "translate_errors"]

NON_RETRYABLE_ERRORS: Final = (
    AuthenticationFailed,
    HostKeyRejected,
    PermissionDenied,
    InvalidPath,
    CapabilityNotSupported,
    InvalidConnection,
    InvalidArgument,
)
"""What retrying cannot mend."""
_HOST_KEY_TEXTS: Final = {
    "unknown": "The host key {} is not known. If the server's owner confirms it",
    "changed": "The host key {} is not the known one. If the server's owner confirms the new one",
}


class FilesFailed(AirflowException):
    """Some of several files failed, and a retry may help. ``__cause__`` is the group of their errors."""


class SFTPBackendHook(BaseHook):
    """Gives out the backend of an Airflow connection: of type ``sftp_backend``, or an ``sftp`` or ``ssh`` one as it is.

    A task instance has a backend of its own: ``with SFTPBackendHook("partner").backend() as backend: ...``.
    Nothing is read before the first call, and nothing connects before the backend's first call.
    """

    conn_name_attr = "sftp_conn_id"
    default_conn_name = "sftp_backend_default"
    conn_type = CONN_TYPE
    hook_name = HOOK_NAME

    def __init__(self, sftp_conn_id: str = default_conn_name, *, logger_name: str | None = None) -> None:
        super().__init__(logger_name=logger_name)
        self.sftp_conn_id = sftp_conn_id
        self._record: ConnectionRecord | None = None
        self._backend: SFTPBackend | None = None

    @classmethod
    def from_key_vault(
        cls,
        vault_url: str,
        *,
        host: str | None = None,
        port: int | None = None,
        login: str | None = None,
        **fields: object,
    ) -> SFTPBackendHook:
        """A hook without any Airflow connection. ``fields`` are those of a connection's Extra: ``password_secret``,
        ``private_key_secret`` and the like name secrets of the vault, ``connection_secret`` one that holds all of it.

        Raises TypeError for a name that is none of a field. Nothing is fetched yet.
        """
        known = {name for field in FIELDS if not field.column for name in field.names}
        if unknown := sorted(fields.keys() - known):
            raise TypeError(f"unknown fields: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        hook = cls(vault_url)
        extra = json.dumps({"key_vault_url": vault_url, **fields})
        hook._record = ConnectionRecord(vault_url, host=host, port=port, login=login, extra=extra)
        return hook

    def config(self) -> BackendConfig:
        """What the connection says and what it has in Key Vault, all secrets masked in the log in every form they can
        take there.

        Raises InvalidConnection with all its faults, AirflowNotFoundException where there is no such connection,
        BackendUnavailable where a vault may answer later.
        """

        def get_connection(conn_id: str) -> AirflowConnection:
            with shield_from_kill():
                return self.get_connection(conn_id)

        return resolve(self._record or get_connection(self.sftp_conn_id), get_connection)

    async def aconfig(self, executor: ThreadPoolExecutor | None = None) -> BackendConfig:
        """`config` for the triggerer's event loop: Airflow is asked in a thread of ``executor``, or of the loop's.

        Raises InvalidConnection; BackendUnavailable where Airflow, its secrets backend or a vault is not to be had, and
        where there is no such connection, of which Airflow says the same.
        """
        from asgiref.sync import sync_to_async

        try:
            return await sync_to_async(self.config, thread_sensitive=False, executor=executor)()
        except (AirflowException, AirflowRuntimeError, OSError) as error:
            message = f"connection {self.sftp_conn_id!r} is not to be had from Airflow: {error}"
            raise BackendUnavailable(message) from error

    def get_conn(self) -> SFTPBackend:
        """The backend, the same one until `close`. The caller closes the hook, or uses `backend` in its place.

        Raises as `config` does.
        """
        if self._backend is None:
            config = self.config()
            from airflow_sftp_backend.backend import SFTPBackend  # here, because it loads paramiko

            self._backend = SFTPBackend.from_config(config)
        return self._backend

    @contextmanager
    def backend(self) -> Iterator[SFTPBackend]:
        """The backend for as long as the ``with`` block lasts, closed after it however it ends.

        What retrying cannot mend leaves the block as AirflowFailException, as in `translate_errors`.
        """
        with translate_errors():
            try:
                yield self.get_conn()
            finally:
                self.close()

    def find(self, *patterns: str) -> list[FoundFile]:
        """Find files by patterns, as rows that a task can return. The caller closes the hook.

        :param patterns: globs, relative to the connection's base path (`SFTPBackend.find`).
        :returns: a row for each file, sorted by path, as `SFTPFileSensor` returns them. A file whose name is not UTF-8
            is left out with a warning, because Airflow cannot carry its name.
        :raises SFTPBackendError: as `SFTPBackend.find`.
        """
        rows = []
        for info in self.get_conn().find(*patterns):
            try:
                info.path.encode()
            except UnicodeEncodeError:
                shown = info.path.encode("utf-8", "surrogateescape")
                self.log.warning("left out, because its name is not UTF-8: %r", shown)
            else:
                rows.append(found_file(info))
        return rows

    def close(self) -> None:
        """Closes the backend, if there is one. The next use reads the connection anew. May be called from `on_kill`."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def abort_within(self, seconds: float) -> None:
        """Gives the backend, if there is one, that many seconds to end its conversation. Takes no lock: fit for
        `on_kill`."""
        backend = self._backend
        if backend is not None:
            backend.abort_within(seconds)

    def test_connection(self) -> tuple[bool, str]:
        """Connects, logs in and looks at the base path: success, and what to tell the person who asked."""
        try:
            config = self.config()
            from airflow_sftp_backend.backend._diagnostics.check import diagnose  # here, because it loads paramiko

            diagnosis = diagnose(config)
        except Exception as error:
            return False, str(error) or type(error).__name__
        return (
            (True, _success(config, diagnosis))
            if diagnosis.error is None
            else (False, _failure(diagnosis.error, diagnosis))
        )

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """The form's columns for Airflow 3.0 and 3.1; later ones read the provider's info."""
        return field_behaviour()


@contextmanager
def translate_errors() -> Iterator[None]:
    """Lets what retrying cannot mend leave the block as AirflowFailException, which fails a task at once.

    That is a refused login, host key or operation, a path outside base_path or of the wrong kind, what the server
    cannot do, a wrong connection, a wrong argument (InvalidArgument). All else passes unchanged, so that Airflow tries
    the task again: any other ValueError or TypeError, which is a programming error; a connection that was not to be
    had; and what others may mend in the meantime, on the server or here (a file that is missing or in the way, a folder
    that is not empty, a full disk). A group of errors fails the task if each of them does, and is FilesFailed
    otherwise: one text with all of them, since Airflow masks no secret in the errors of a group.
    """
    try:
        yield
    except NON_RETRYABLE_ERRORS as error:
        raise AirflowFailException(str(error)) from error
    except ExceptionGroup as group:
        failed = FilesFailed if group.split(NON_RETRYABLE_ERRORS)[1] is not None else AirflowFailException
        failures = [*_flatten(group)]
        text = redact("\n- ".join([f"{group.message}:", *map(str, failures)]))
        for failure in failures:
            _mask_texts(failure)
        raise failed(text) from ExceptionGroup(redact(group.message), failures)


def _mask_texts(error: Exception) -> None:
    """Masks secrets in an error and in those behind it, as Airflow does with errors that are in no group."""
    current: BaseException | None = error
    while current is not None:
        current.args = tuple(redact(value) if isinstance(value, str) else value for value in current.args)
        if isinstance(current, SFTPBackendError):
            current.message = redact(current.message)
        current = current.__cause__


def _flatten(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _flatten(error)
        else:
            yield error


def _failure(error: SFTPBackendError, diagnosis: Diagnosis) -> str:
    """Tell the reason in what a page shows for a few seconds, and where to read the rest."""
    text = str(error)
    server = diagnosis.failed_at
    if isinstance(error, HostKeyRejected) and server is not None and error.verdict in _HOST_KEY_TEXTS:
        sentence = _HOST_KEY_TEXTS[error.verdict].format(server.host_key_fingerprint)
        text = f"{sentence}, set Known host keys to:\n{server.host_key_line}"
    return f"{text}\nMore: airflow-sftp-backend check CONN_ID"


def _success(config: BackendConfig, diagnosis: Diagnosis) -> str:
    server = diagnosis.server.removeprefix("sftp://")
    key = next(step.data for step in diagnosis.steps if step.title == "Host key")
    return (
        f"Connected to {diagnosis.username}@{server}, base path {config.base_path}; host key {key['fingerprint']}:"
        f" {key['trust']}"
    ) + "".join(f"\nNote: {note}" for note in config.notes)
