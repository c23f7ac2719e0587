"""Write and read manifests, the files with the rows of tasks.

A manifest is a local file or an object with one JSON object a line. The file appears under its name only when it is
complete.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, Final, TypeAlias

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._cancellation import shield_from_kill
from airflow_sftp_backend._file_rows import FileResult, ManifestResult
from airflow_sftp_backend._path_arguments import parse_target
from airflow_sftp_backend.backend._paths import temp_name
from airflow_sftp_backend.operators._object_storage import (
    is_url,
    object_path,
    open_object,
    open_source,
    remove_object,
    rename_object,
)

Row: TypeAlias = Mapping[str, object]

_BLOCK_SIZE: Final = 1 << 18
_MAX_NAME_BYTES: Final = 255
"""Longest name of a file on the usual file systems."""
_MAX_LINE: Final = 1 << 20
"""Bytes of a line. Any longer line belongs to a file of another kind, which must not fill the memory."""
_EXPECTED: Final = (
    "a path or URL, the result of a task with manifest= (a mapping with 'manifest'), or a list of these; pass rows of"
    " files as names"
)


# -- writing ----------------------------------------------------------------------------------------------------------


def parse_manifest(value: object) -> str:
    """Parse the argument ``manifest`` after the templates are rendered.

    :param value: the value of the argument
    :returns: the absolute local path, or the URL
    :raises InvalidArgument: if the value is not the path of a file, or if the file cannot be written
    """
    path = parse_target(value, "manifest", end="local")
    if path.endswith("/"):
        raise InvalidArgument(f"manifest is the path of a file, but {path!r} ends with '/'; add the name of a file")
    if is_url(path):
        target = object_path(path)
        is_directory = target.fs.isdir(target.path)
    else:
        path = os.path.abspath(path)
        is_directory = os.path.isdir(path)
        if os.path.exists(path) and not is_directory and not os.path.isfile(path):
            message = f"manifest is the path of a file, but {path!r} is not a regular file; choose another path"
            raise InvalidArgument(message)
        if len(os.fsencode(os.path.basename(path))) > _MAX_NAME_BYTES:
            message = f"the name of the manifest {path!r} is longer than {_MAX_NAME_BYTES} bytes; shorten it"
            raise InvalidArgument(message)
        # A task that moves files first and fails then would lose its result.
        _check_directory(path)
    if is_directory:
        message = f"manifest is the path of a file, but {path!r} is a directory; add the name of a file"
        raise InvalidArgument(message)
    return path


def _check_directory(path: str) -> None:
    """Check that a file can be created in the nearest existing directory."""
    nearest = os.path.dirname(path)
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        message = f"cannot write the manifest {path!r}: {nearest!r} is not a directory; choose another path"
        raise InvalidArgument(message)
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise InvalidArgument(
            f"cannot write the manifest {path!r}: no file can be created in {nearest!r}: {error.strerror}; choose"
            " another directory, or let the worker's user write there"
        ) from None


def write_manifest(path: str, rows: Sequence[FileResult]) -> ManifestResult:
    """Write rows to a manifest, in place of an existing one.

    :param path: the path of `parse_manifest`
    :param rows: the rows
    :returns: the result of the task
    :raises OSError: if the file cannot be written; an existing manifest stays
    """
    try:
        if is_url(path):
            _write_object(path, rows)
        else:
            _write_local(path, rows)
    except Exception as error:  # a store's library has errors of its own
        cause = getattr(error, "strerror", None) or error
        message = (
            f"cannot write the manifest {path!r}: {cause}; the {len(rows)} files of its rows were already processed"
        )
        raise OSError(getattr(error, "errno", None), message) from error
    return ManifestResult(manifest=path, count=len(rows), size=sum(row["size"] or 0 for row in rows))


def _write_local(path: str, rows: Iterable[FileResult]) -> None:
    directory, name = os.path.split(path)
    os.makedirs(directory, exist_ok=True)
    temp = os.path.join(directory, temp_name(name, secrets.token_hex(6)))
    try:
        with open(temp, "xb") as stream:
            _write_rows(stream, rows)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temp, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temp)
        raise


def _write_object(url: str, rows: Iterable[FileResult]) -> None:
    target = object_path(url)
    # Some stores show an object while it is written.
    temp = target.parent / temp_name(target.name, secrets.token_hex(6))
    try:
        with open_object(temp, "wb") as stream:
            _write_rows(stream, rows)
        rename_object(temp, target)
    finally:
        remove_object(temp)


def _write_rows(stream: BinaryIO, rows: Iterable[FileResult]) -> None:
    lines: list[str] = []
    size = 0
    for row in rows:
        lines.append(json.dumps(row) + "\n")
        size += len(lines[-1])
        if size >= _BLOCK_SIZE:
            stream.write("".join(lines).encode())
            lines, size = [], 0
    stream.write("".join(lines).encode())


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Manifest:
    """Locate a manifest.

    :ivar path: local path or URL
    :ivar count: expected number of rows; None if unknown
    """

    path: str
    count: int | None = None


def read_manifests(value: object) -> Iterator[Row]:
    """Yield the rows of manifests, without holding them in memory.

    :param value: the value of ``from_manifest``: a path, the result of a task with ``manifest``, or a list of these
    :returns: the rows; each has a text ``path``
    :raises InvalidArgument: for a wrong value, for a missing manifest, and for the first damaged line
    :raises OSError: if the file cannot be read
    """
    for manifest in [*_manifests(value)]:
        yield from _read(manifest)


def _manifests(value: object) -> Iterator[_Manifest]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = _mapping_of_text(value)
    if isinstance(value, Mapping):
        path, count = value.get("manifest"), value.get("count")
        if not isinstance(path, str):
            raise InvalidArgument(f"from_manifest contains a mapping without a text 'manifest'; expected {_EXPECTED}")
        yield _Manifest(parse_target(path, "from_manifest", end="local"), count if isinstance(count, int) else None)
    elif isinstance(value, Sequence | Iterator) and not isinstance(value, str | bytes | bytearray | memoryview):
        with shield_from_kill():  # iterating over a mapped task's output sends requests to Airflow
            items = list(value)
        for item in items:
            yield from _manifests(item)
    else:
        yield _Manifest(parse_target(value, "from_manifest", end="local"))


def _mapping_of_text(text: str) -> object:
    """Return the result of a task that a template rendered."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArgument(
            "from_manifest is a mapping that a template converted to text. Pass a task's output unchanged, as"
            " from_manifest=up.output; in a template write {{ ti.xcom_pull('up')['manifest'] }}"
        ) from None


def _read(manifest: _Manifest) -> Iterator[Row]:
    count = 0
    try:
        with open_source(manifest.path) as stream:
            for number, line in enumerate(_lines(stream), 1):
                if line.strip():
                    count += 1
                    yield _parse_row(manifest.path, number, line)
    except FileNotFoundError:
        hint = "" if is_url(manifest.path) else "; a local path is that of one worker: with several, pass a URL"
        raise InvalidArgument(f"the manifest {manifest.path!r} does not exist{hint}") from None
    if manifest.count is not None and count != manifest.count:
        message = f"the manifest {manifest.path!r} has {count} rows, expected {manifest.count}"
        raise InvalidArgument(f"{message}: the file is incomplete, or another task has replaced it")


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a stream until a line is too long."""
    rest = b""
    while len(rest) <= _MAX_LINE and (block := stream.read(_BLOCK_SIZE)):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _parse_row(path: str, number: int, line: bytes) -> Row:
    cause = "not a JSON object with a text 'path'"
    if len(line) <= _MAX_LINE:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            cause = f"not JSON ({error})"
        else:
            if isinstance(row, dict) and isinstance(row.get("path"), str) and row["path"]:
                return row
    raise InvalidArgument(f"the manifest {path!r} is damaged, or the file is not a manifest: line {number} is {cause}")
