"""A copy has all bytes of its source or is not committed."""

from __future__ import annotations

import pytest

from airflow_sftp_backend import NotFound, TransferCorrupted
from airflow_sftp_backend.backend._protocol.messages import CopyData, Write
from airflow_sftp_backend.backend._writes.copy import copy
from tests.support.atomic_writes import NEW, OLD, OPERATIONS, SOURCE, memory_server, temps, write_target
from tests.support.memory_server import MemoryServer, Renames


def test_a_server_with_copy_data_copies_itself(renames: Renames) -> None:
    server = memory_server(renames=renames, copies=True)
    server.run(copy(server, SOURCE, write_target(overwrite=True)))
    assert server.content()["/in/target"] == NEW
    assert CopyData in [type(request) for request in server.requests]


def test_a_copy_whose_source_grows_is_not_committed() -> None:
    for copies in (False, True):

        def grow(server: MemoryServer) -> None:
            if any(isinstance(request, Write | CopyData) for request in server.requests):
                source = server.files["/out/source"]
                assert source is not None
                source.content += b"."

        server = memory_server(copies=copies, after=grow)
        with pytest.raises(TransferCorrupted) as caught:
            server.run(copy(server, SOURCE, write_target(overwrite=True)))
        assert caught.value.path == SOURCE.key
        assert server.content()["/in/target"] == OLD
        assert not temps(server)


def test_a_missing_source_is_not_found_and_leaves_nothing() -> None:
    for name in ("move", "copy"):
        server = MemoryServer({"/in": None, "/in/target": OLD, "/out": None})
        with pytest.raises(NotFound) as caught:
            server.run(OPERATIONS[name](server, write_target(overwrite=True)))
        assert caught.value.path == SOURCE.key
        assert server.content() == {"/in/target": OLD}
