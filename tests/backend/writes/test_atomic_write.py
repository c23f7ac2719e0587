"""Files are committed complete or not at all, on every server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_sftp_backend import AlreadyExists, BackendUnavailable, InvalidPath, TransferCorrupted
from airflow_sftp_backend.backend._files.pipelining import UploadSource
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import FStat, Remove, Request, Write
from airflow_sftp_backend.backend._writes.atomic_write import write_atomic
from airflow_sftp_backend.backend._writes.cleanup import roll_back
from airflow_sftp_backend.backend.models import Verify
from tests.support.atomic_writes import (
    AT,
    NEW,
    OLD,
    OPERATIONS,
    SOURCE,
    TARGET,
    memory_server,
    outcome,
    temps,
    write_target,
)
from tests.support.memory_server import FAILURES, Failure, MemoryServer, Renames

# -- each kind of rename ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, OLD])
def test_new_content_is_committed_with_every_kind_of_rename(name: str, renames: Renames, target: bytes | None) -> None:
    server = memory_server(target=target, renames=renames)
    server.run(OPERATIONS[name](server, write_target(overwrite=True)))
    expected = {"/in/target": NEW} if name == "move" else {"/in/target": NEW, "/out/source": NEW}
    assert server.content() == expected
    assert not server.open


def test_an_existing_file_is_never_overwritten_without_overwrite(name: str, renames: Renames) -> None:
    server = memory_server(renames=renames)
    before = server.content()
    with pytest.raises(AlreadyExists):
        server.run(OPERATIONS[name](server, write_target(overwrite=False)))
    assert server.content() == before
    assert not server.open


def test_a_folder_is_never_replaced(name: str, renames: Renames) -> None:
    for overwrite in (False, True):
        server = MemoryServer({"/in": None, "/in/target": None, "/out": None, "/out/source": NEW}, renames=renames)
        with pytest.raises(InvalidPath):
            server.run(OPERATIONS[name](server, write_target(overwrite=overwrite)))
        assert server.content() == {"/out/source": NEW}
        assert not temps(server)


def test_the_mode_of_a_replaced_file_is_kept(renames: Renames) -> None:
    for name in ("write_atomic", "copy"):
        server = memory_server(renames=renames)
        replaced = server.files["/in/target"]
        assert replaced is not None
        replaced.mode = 0o600
        server.run(OPERATIONS[name](server, write_target(overwrite=True)))
        landed = server.files["/in/target"]
        assert landed is not None
        assert landed.mode == 0o600


def test_missing_parents_of_a_target_are_created(name: str) -> None:
    server = MemoryServer({"/out": None, "/out/source": NEW})
    target = AT("a/b/c/target")
    server.run(OPERATIONS[name](server, write_target(overwrite=False, target=target)))
    assert server.content()["/a/b/c/target"] == NEW
    assert not temps(server)


# -- every request fails once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("copies", [False, True])
def test_whichever_request_fails_the_target_is_complete(
    name: str, renames: Renames, failure: Failure, copies: bool
) -> None:
    at, over = 0, False
    while not over:
        at += 1
        seen_new = False

        def keep(server: MemoryServer) -> None:
            nonlocal seen_new
            held = server.content()
            seen_new = seen_new or held.get("/in/target") == NEW
            assert OLD in held.values() or held.get("/in/target") == NEW, server.requests[-1]
            assert NEW in held.values(), server.requests[-1]

        server = memory_server(renames=renames, copies=copies, fail_at=(at,), failure=failure, after=keep)
        remote = write_target(overwrite=True)
        failed = outcome(server, OPERATIONS[name](server, remote))
        raised = failed is not None
        if failed is None:
            assert server.content()["/in/target"] == NEW
        else:
            assert isinstance(failed, BackendUnavailable) == failure.startswith("lost")
            assert failed.path in (TARGET.key, TARGET.parent.key, SOURCE.key) or failure.startswith("lost")
        over = len(server.requests) < at
        if server.failure is not None:
            server.reconnect()
            server.run(roll_back(server, remote))
        held = server.content()
        if "/in/target" not in held:  # the put-back itself was refused: the error says where the old content is
            assert TARGET.backup.native in str(failed)
            assert held[TARGET.backup.native] == OLD
            continue
        assert held["/in/target"] in (OLD, NEW)
        if raised and not seen_new:
            assert held["/in/target"] == OLD
        if name != "move":
            assert held["/out/source"] == NEW
        elif not raised:
            assert "/out/source" not in held
        refused_removal = len(server.requests) >= at and isinstance(server.requests[at - 1], Remove)
        if not (refused_removal and not failure.startswith("lost")):
            # a backup stays where the server refuses what its removal takes
            left = [path for path in temps(server) if not (seen_new and path.endswith(".backup"))]
            assert not left, f"after a failure at {server.requests[at - 1] if not over else None}"
        assert not server.open


@pytest.mark.parametrize("failure", FAILURES)
def test_whichever_request_fails_no_partial_file_is_committed(name: str, renames: Renames, failure: Failure) -> None:
    at, over = 0, False
    while not over:
        at += 1

        def whole(server: MemoryServer) -> None:
            assert server.content().get("/in/target") in (None, NEW), server.requests[-1]
            assert NEW in server.content().values()

        server = memory_server(target=None, renames=renames, fail_at=(at,), failure=failure, after=whole)
        path = write_target(overwrite=False)
        failed = outcome(server, OPERATIONS[name](server, path))
        assert not isinstance(failed, AlreadyExists)
        if failed is None:
            assert server.content()["/in/target"] == NEW
        over = len(server.requests) < at
        if server.failure is not None:
            server.reconnect()
            server.run(roll_back(server, path))
        refused_removal = len(server.requests) >= at and isinstance(server.requests[at - 1], Remove)
        if not (refused_removal and not failure.startswith("lost")):
            assert not temps(server)
        assert not server.open


# -- verification -----------------------------------------------------------------------------------------------------


class _SwallowsABlock(MemoryServer):
    """Acknowledges every write and forgets the second."""

    def carry_out(self, request: Request[object]) -> object:
        if isinstance(request, Write) and request.offset == 4:
            return None
        return super().carry_out(request)


class _ChangesABlock(MemoryServer):
    """Stores other bytes than it was sent, as many."""

    def carry_out(self, request: Request[object]) -> object:
        if isinstance(request, Write) and request.offset == 4:
            request = Write(request.handle, request.offset, bytes(len(request.data)))
        return super().carry_out(request)


class _LiesAboutOpenFiles(MemoryServer):
    """Says of every open file that it is empty."""

    def carry_out(self, request: Request[object]) -> object:
        return Attributes(size=0) if isinstance(request, FStat) else super().carry_out(request)


class _TellsNoSize(MemoryServer):
    """Leaves the size out everywhere."""

    def carry_out(self, request: Request[object]) -> object:
        answer = super().carry_out(request)
        return replace(answer, size=None) if isinstance(answer, Attributes) else answer


def _written(kind: type[MemoryServer], verify: Verify) -> MemoryServer:
    server = kind({"/in": None, "/in/target": OLD})
    content = UploadSource(b"0123456789abc", with_digest=verify == "sha256")
    server.run(write_atomic(server, write_target(overwrite=True, verify=verify), content))
    return server


def test_a_file_of_unexpected_size_is_not_committed() -> None:
    server = _SwallowsABlock({"/in": None, "/in/target": OLD})
    with pytest.raises(TransferCorrupted, match="13 bytes were sent, but the server stored 9") as caught:
        server.run(write_atomic(server, write_target(overwrite=True), UploadSource(b"0123456789abc")))
    assert caught.value.path == TARGET.key
    assert server.content() == {"/in/target": OLD}


def test_a_file_with_wrong_bytes_is_not_committed_when_verified() -> None:
    server = _ChangesABlock({"/in": None, "/in/target": OLD})
    with pytest.raises(TransferCorrupted, match="sha256:") as caught:
        server.run(
            write_atomic(
                server, write_target(overwrite=True, verify="sha256"), UploadSource(b"0123456789abc", with_digest=True)
            )
        )
    assert caught.value.path == TARGET.key
    assert server.content() == {"/in/target": OLD}
    assert _written(_ChangesABlock, "size").content() != {"/in/target": OLD}  # what a size cannot tell


@pytest.mark.parametrize("verify", ["size", "sha256", "none"])
def test_a_missing_size_is_no_verification_failure(verify: Verify) -> None:
    for kind in (_LiesAboutOpenFiles, _TellsNoSize):
        assert _written(kind, verify).content() == {"/in/target": b"0123456789abc"}


def test_without_verification_no_query_is_sent() -> None:
    server = _written(MemoryServer, "none")
    kinds = {type(request) for request in server.requests}
    assert FStat not in kinds
    assert server.content() == {"/in/target": b"0123456789abc"}
