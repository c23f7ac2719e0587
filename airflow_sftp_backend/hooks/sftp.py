"""Build a backend from an Airflow connection.

The hook also decides which errors a retry cannot fix.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_sftp_backend._arguments import InvalidArgument, check_conn_id
from airflow_sftp_backend._cancellation import shield_from_kill
from airflow_sftp_backend._connections.fields import CONN_TYPE, FIELDS, HOOK_NAME, field_behaviour
from airflow_sftp_backend._connections.parser import ConnectionRecord, InvalidConnection
from airflow_sftp_backend._file_rows import FoundFile, found_file
from airflow_sftp_backend._metrics import ConnectionMetrics
from airflow_sftp_backend.backend import (
    AuthenticationFailed,
    BackendUnavailable,
    CapabilityNotSupported,
    HostKeyRejected,
    InvalidPath,
    PermissionDenied,
    SFTPBackendError,
)
from airflow_sftp_backend.version_compat import (
    FORM_COMES_FROM_HOOK,
    AirflowException,
    AirflowFailException,
    BaseHook,
    redact,
)

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
"""Errors that a retry cannot fix."""
_HOST_KEY_TEXTS: Final = {
    "unknown": "The host key {} is not known. If the server's owner confirms it",
    "changed": "The host key {} is not the known one. If the server's owner confirms the new one",
}


class FilesFailed(AirflowException):
    """Report that some files failed, and a retry may help.

    ``__cause__`` is the group of their errors.
    """


class SFTPBackendHook(BaseHook):
    """Build the backend of an Airflow connection.

    Usage: ``with SFTPBackendHook("partner").backend() as backend: ...``, or ``with SFTPBackendHook("partner") as
    hook: ...`` for `find`. The constructor reads nothing, and the backend connects at its first call.

    :param sftp_conn_id: the id of a connection of type ``sftp_backend``, ``sftp`` or ``ssh``
    :param logger_name: the name of the hook's logger, as for every Airflow hook
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
        self._metrics = ConnectionMetrics(sftp_conn_id)

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
        """Build a hook without an Airflow connection. Fetches nothing.

        :param vault_url: the URL or name of the Azure Key Vault
        :param host: the server, unless a secret holds it
        :param port: the port, 22 by default
        :param login: the user name, unless a secret holds it
        :param fields: other connection fields, such as ``private_key_secret``, the name of a secret in the vault, or
            ``connection_secret``, the name of a secret that holds the whole connection
        :returns: the hook
        :raises TypeError: if a connection has no field of that name
        """
        field_names = {name for field in FIELDS if not field.column for name in field.names}
        if unknown := sorted(fields.keys() - field_names):
            raise TypeError(f"unknown fields: {', '.join(unknown)}; there are {', '.join(sorted(field_names))}")
        hook = cls(vault_url)
        extra = json.dumps({"key_vault_url": vault_url, **fields})
        hook._record = ConnectionRecord(vault_url, host=host, port=port, login=login, extra=extra)
        return hook

    def config(self) -> BackendConfig:
        """Read the connection and fetch its secrets from Key Vault.

        Masks all secrets in the log.

        :returns: the configuration of the backend
        :raises InvalidArgument: if the connection id is a URL
        :raises InvalidConnection: if the connection is invalid; the text lists all problems of the first stage that
            fails: Azure identity, ``connection_secret``, jump host, fields, secrets
        :raises AirflowNotFoundException: if the connection does not exist
        :raises BackendUnavailable: if a vault does not answer now
        """
        # a DAG file imports the hook each time it is parsed, and needs neither Key Vault nor masks
        from airflow_sftp_backend._connections.config_loader import load_config

        def get_connection(conn_id: str) -> AirflowConnection:
            check_conn_id(conn_id)  # Airflow's error for an unknown id shows the text
            with shield_from_kill():
                return self.get_connection(conn_id)

        return load_config(self._record or get_connection(self.sftp_conn_id), get_connection)

    async def aconfig(self, executor: ThreadPoolExecutor | None = None) -> BackendConfig:
        """Read the connection as `config` does, without blocking the triggerer's event loop.

        :param executor: runs the blocking calls; the event loop's executor by default
        :returns: the configuration of the backend
        :raises InvalidConnection: if fields are invalid
        :raises BackendUnavailable: if Airflow, its secrets backend or a vault cannot be reached, or the connection does
            not exist, which Airflow reports in the same way
        """
        from asgiref.sync import sync_to_async

        try:
            return await sync_to_async(self.config, thread_sensitive=False, executor=executor)()
        except (AirflowException, AirflowRuntimeError, OSError) as error:
            message = f"connection {self.sftp_conn_id!r} cannot be read from Airflow: {error}"
            raise BackendUnavailable(message) from error

    def get_conn(self) -> SFTPBackend:
        """Return the backend, the same object until `close`.

        The caller must close the hook.

        :returns: the backend
        :raises InvalidConnection: and the other errors of `config`
        """
        if self._backend is None:
            config = self.config()
            from airflow_sftp_backend.backend import SFTPBackend  # a late import, because it loads paramiko

            self._backend = SFTPBackend.from_config(config)
            self._metrics = ConnectionMetrics(self.sftp_conn_id)
        return self._backend

    def __enter__(self) -> Self:
        """Return the hook, for a block that closes the hook like `backend`."""
        self._backend_block = self.backend()
        self._backend_block.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        """Close the backend.

        :param error: type, value and traceback of the error that ends the block, or None
        :raises AirflowFailException: for errors that a retry cannot fix (see `translate_errors`)
        """
        return self._backend_block.__exit__(*error)

    @contextmanager
    def backend(self) -> Iterator[SFTPBackend]:
        """Provide the backend in a ``with`` block and close it afterwards.

        :returns: the backend
        :raises AirflowFailException: for errors that a retry cannot fix (see `translate_errors`)
        """
        with translate_errors():
            try:
                yield self.get_conn()
            finally:
                self.close()

    def find(self, *patterns: str) -> list[FoundFile]:
        """Find files by patterns.

        Returns rows, which a task can return. The caller must close the hook.

        :param patterns: globs, relative to the connection's base path (see `SFTPBackend.find`)
        :returns: a row for each file, sorted by path, as from `SFTPFileSensor`. A file whose name is not UTF-8 is left
            out with a warning, because XCom cannot carry the name.
        :raises SFTPBackendError: as `SFTPBackend.find`
        """
        rows = []
        for info in self.get_conn().find(*patterns):
            try:
                info.path.encode()
            except UnicodeEncodeError:
                escaped_path = info.path.encode("utf-8", "surrogateescape")
                self.log.warning("left out, because its name is not UTF-8: %r", escaped_path)
            else:
                rows.append(found_file(info))
        return rows

    def close(self) -> None:
        """Close the backend, and send its counters to Airflow's metrics.

        The next call reads the connection again. Safe to call from `on_kill`.
        """
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()
            self._metrics.send(backend.statistics)

    def send_metrics(self) -> None:
        """Send the counters of the backend to Airflow's metrics.

        For long tasks: `close` sends the rest.
        """
        backend = self._backend
        if backend is not None:
            self._metrics.send(backend.statistics)

    def abort_within(self, seconds: float) -> None:
        """Abort the backend's connection after a grace period.

        Takes no lock, so `on_kill` can call it.

        :param seconds: time for the calls in progress to clean up
        """
        backend = self._backend
        if backend is not None:
            backend.abort_within(seconds)

    def test_connection(self) -> tuple[bool, str]:
        """Connect, log in and examine the base path, for Airflow's Test button.

        :returns: whether everything works, and the text to show
        """
        try:
            config = self.config()
            from airflow_sftp_backend.backend._diagnostics.check import diagnose  # a late import

            diagnosis = diagnose(config)
        except Exception as error:
            return False, str(error) or type(error).__name__
        return (
            (True, _success(config, diagnosis))
            if diagnosis.error is None
            else (False, _failure(diagnosis.error, diagnosis))
        )

    if FORM_COMES_FROM_HOOK:

        @classmethod
        def get_ui_field_behaviour(cls) -> dict[str, Any]:
            """Return labels, placeholders and hidden columns of the form."""
            return field_behaviour()

        @classmethod
        def get_connection_form_widgets(cls) -> dict[str, Any]:
            """Return the fields of the form that are kept in Extra."""
            from airflow_sftp_backend._connections.form_widgets import connection_form_widgets

            return connection_form_widgets()


@contextmanager
def translate_errors() -> Iterator[None]:
    """Translate errors that a retry cannot fix into AirflowFailException.

    AirflowFailException fails the task at once.

    A retry cannot fix a refused login, host key or operation, a path outside ``base_path`` or of the wrong type, a
    missing capability of the server, an invalid connection, or an invalid argument. Other single errors pass unchanged,
    so that Airflow retries the task: a lost connection, a missing file, an existing target, a full disk, programming
    errors. A group of errors becomes a single error with one masked text, because Airflow masks no secrets in the
    errors of a group.

    :raises AirflowFailException: for an error that a retry cannot fix, or a group of only such errors
    :raises FilesFailed: for any other group of errors
    """
    try:
        yield
    except NON_RETRYABLE_ERRORS as error:
        # The new error takes the traceback over: otherwise a task log would have two of them for one failure.
        raise AirflowFailException(str(error)).with_traceback(error.__traceback__) from error.with_traceback(None)
    except ExceptionGroup as group:
        _, retryable = group.split(NON_RETRYABLE_ERRORS)
        error_class = AirflowFailException if retryable is None else FilesFailed
        failures = [*_flatten(group)]
        text = redact("\n- ".join([f"{group.message}:", *map(str, failures)]))
        for failure in failures:
            _mask_texts(failure)
        raise error_class(text) from ExceptionGroup(redact(group.message), failures)


def _mask_texts(error: Exception) -> None:
    """Mask secrets in an error of a group, and in its causes."""
    current: BaseException | None = error
    while current is not None:
        current.args = tuple(redact(value) if isinstance(value, str) else value for value in current.args)
        if isinstance(current, SFTPBackendError):
            vars(current).update(
                {name: redact(value) for name, value in vars(current).items() if isinstance(value, str)}
            )
        current = current.__cause__


def _flatten(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _flatten(error)
        else:
            yield error


def _failure(error: SFTPBackendError, diagnosis: Diagnosis) -> str:
    """Return a short text for a failed test.

    Airflow's page hides it soon.
    """
    text = str(error)
    server = diagnosis.failed_connection
    if isinstance(error, HostKeyRejected) and server is not None and error.status in _HOST_KEY_TEXTS:
        sentence = _HOST_KEY_TEXTS[error.status].format(server.host_key_fingerprint)
        text = f"{sentence}, set Known host keys to:\n{server.host_key_line}"
    return f"{text}\nMore: airflow-sftp-backend check CONN_ID"


def _success(config: BackendConfig, diagnosis: Diagnosis) -> str:
    server = diagnosis.server.removeprefix("sftp://")
    connection = diagnosis.connection
    assert connection is not None
    return (
        f"Connected to {diagnosis.username}@{server}, base path {config.base_path}; host key"
        f" {connection.host_key_fingerprint}: {connection.trust_reason}"
    ) + "".join(f"\nNote: {note}" for note in config.notes)
