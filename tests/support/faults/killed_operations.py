"""The operations during which a real process is killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from airflow_sftp_backend import SFTPBackend

OLD: Final = b"the old content"
NEW: Final = bytes(range(251)) * 20_000
"""Five megabytes: some twenty blocks of OpenSSH's."""


@dataclass(frozen=True)
class Operation:
    """Operation with files before and after, and its minimum of sends."""

    act: Callable[[SFTPBackend, str], object]
    before: Mapping[str, bytes | None]
    after: Mapping[str, bytes | None]
    sends: int


_SOURCE: Final = {"in/target": OLD, "out/source": NEW}
OPERATIONS: Final = {
    "upload": Operation(
        lambda backend, local: backend.upload(os.path.join(local, "source"), "in/target", overwrite=True),
        {"in/target": OLD}, {"in/target": NEW}, 20,
    ),
    "upload over 3 channels": Operation(
        lambda backend, local: backend.upload(os.path.join(local, "source"), "in/target", overwrite=True, channels=3),
        {"in/target": OLD}, {"in/target": NEW}, 20,
    ),
    "write_atomic": Operation(
        lambda backend, local: backend.write_atomic("in/target", NEW, overwrite=True),
        {"in/target": OLD}, {"in/target": NEW}, 20,
    ),
    "move": Operation(
        lambda backend, local: backend.move("out/source", "in/target", overwrite=True),
        _SOURCE, {"in/target": NEW, "out/source": None}, 2,
    ),
    "copy": Operation(
        lambda backend, local: backend.copy("out/source", "in/target", overwrite=True),
        _SOURCE, {"in/target": NEW, "out/source": NEW}, 6,
    ),
    "delete_many": Operation(
        lambda backend, local: backend.delete_many([f"in/{number}" for number in range(2_000)], missing_ok=True),
        {f"in/{number}": NEW[:1] for number in range(2_000)}, {f"in/{number}": None for number in range(2_000)}, 2,
    ),
    "download": Operation(
        lambda backend, local: backend.download("out/source", os.path.join(local, "target"), overwrite=True),
        _SOURCE, _SOURCE, 6,
    ),
}  # fmt: skip
