"""A move removes only what it copied."""

from __future__ import annotations

import pytest

from airflow_sftp_backend import TransferCorrupted
from airflow_sftp_backend.backend._protocol.messages import Write
from airflow_sftp_backend.backend._writes.move import move
from tests.support.atomic_writes import NEW, OLD, SOURCE, memory_server, write_target
from tests.support.memory_server import MemoryServer, Renames


def test_a_move_by_copy_never_removes_more_than_it_copied() -> None:
    def grow(server: MemoryServer) -> None:
        source = server.files["/out/source"]
        if source is not None and Write in map(type, server.requests) and len(source.content) < 99:
            source.content += b"."

    server = memory_server(renames=Renames("replaces", "refuses", across=False), after=grow)
    with pytest.raises(TransferCorrupted):
        server.run(move(server, SOURCE, write_target(overwrite=True)))
    assert server.content()["/out/source"].startswith(NEW + b".")
    assert server.content()["/in/target"] == OLD
