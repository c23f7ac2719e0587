"""Provide optional steps of a diagnosis: all host keys, writing, and speed."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from airflow_sftp_backend.backend._ssh.host_key_verification import HostKeyVerifier
from airflow_sftp_backend.backend._ssh.scan import HostKey, scan_host_keys
from airflow_sftp_backend.backend.config import HostKeyPolicy
from airflow_sftp_backend.backend.errors import BackendUnavailable, HostKeyRejected, SFTPBackendError, TransferCorrupted
from airflow_sftp_backend.backend.sync import SFTPBackend

from .check import CheckResult, CheckTitle

_SIZES: Final = (1 << 20, 8 << 20, 64 << 20)
"""File sizes in bytes, measured in order until one takes longer than `_MAX_STEP_SECONDS`."""
_MAX_STEP_SECONDS: Final = 1.0
_BLOCK: Final = 1 << 20


def host_keys(backend: SFTPBackend) -> CheckResult:
    """List the server's host keys of all types, and their trust.

    Stores no key.
    """
    config = backend.config
    if config.jump is not None or config.proxy_command is not None:
        return CheckResult(
            CheckTitle.ALL_HOST_KEYS, True, ("can be read only without a jump host and a proxy command",)
        )
    # A check must not store a key, as the other policies would.
    verifier = HostKeyVerifier(replace(config, host_key_policy=HostKeyPolicy.STRICT), os.environ)
    try:
        keys = scan_host_keys(config.host, config.port, config.timeout)
    except BackendUnavailable as error:
        return CheckResult(CheckTitle.ALL_HOST_KEYS, True, (f"could not be read: {error}",))
    keys_with_trust = [(key, _trust_reason(verifier, key)) for key in keys]
    return CheckResult(
        CheckTitle.ALL_HOST_KEYS,
        True,
        tuple(
            f"{key.type} {key.fingerprint} {f'({trust})' if trust else '(not among the known keys)'}"
            for key, trust in keys_with_trust
        ),
        {
            "keys": [
                {"type": key.type, "fingerprint": key.fingerprint, "known_hosts": str(key), "trust": trust}
                for key, trust in keys_with_trust
            ]
        },
    )


def _trust_reason(verifier: HostKeyVerifier, key: HostKey) -> str | None:
    try:
        return verifier.check(key.blob)
    except HostKeyRejected:
        return None


def writing(backend: SFTPBackend) -> CheckResult:
    """Write, rename, read and remove a file in the base path."""
    content = secrets.token_bytes(1000)
    with _probe_file(backend) as name:
        backend.write_atomic(name, content)
        if backend.read_bytes(name) != content:
            raise TransferCorrupted("the content read differs from the content written", path=name)
    return CheckResult(CheckTitle.WRITING, True, ("a file was written, renamed, read and removed",), {"name": name})


def speed(backend: SFTPBackend) -> CheckResult:
    """Measure upload and download of a file of random bytes."""
    size = 0
    upload_seconds = download_seconds = 0.0
    with tempfile.TemporaryDirectory(prefix="airflow-sftp-backend-") as folder, _probe_file(backend) as name:
        source, copy = Path(folder) / "up", Path(folder) / "down"
        # A small file takes as long as its round trips, so the size grows until a transfer takes long enough.
        for size in _SIZES:
            _fill(source, size)
            upload_seconds = _measure_seconds(lambda: backend.upload(source, name, overwrite=True))
            download_seconds = _measure_seconds(lambda: backend.download(name, copy, overwrite=True))
            if max(upload_seconds, download_seconds) > _MAX_STEP_SECONDS:
                break
    upload_rate, download_rate = size / upload_seconds / 1e6, size / download_seconds / 1e6
    return CheckResult(
        CheckTitle.SPEED,
        True,
        (f"up {upload_rate:.1f} MB/s, down {download_rate:.1f} MB/s (a file of {size >> 20} MiB)",),
        {"bytes": size, "up_seconds": upload_seconds, "down_seconds": download_seconds},
    )


def _measure_seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _fill(file: Path, size: int) -> None:
    with file.open("wb") as out:
        for _ in range(size // _BLOCK):
            out.write(os.urandom(_BLOCK))


@contextmanager
def _probe_file(backend: SFTPBackend) -> Iterator[str]:
    """Provide the name of a temporary file, and delete the file afterwards."""
    # Sensors and partners ignore hidden names and names that end in .part.
    name = f".airflow-sftp-backend-check-{secrets.token_hex(6)}.part"
    try:
        yield name
    except BaseException as error:
        try:
            backend.delete(name, missing_ok=True)
        except SFTPBackendError as cleanup_error:
            error.add_note(f"{backend.native_path(name)} may be left on the server: {cleanup_error}")
        raise
    try:
        backend.delete(name)
    except SFTPBackendError as error:
        error.add_note(f"{backend.native_path(name)} is left on the server")
        raise
