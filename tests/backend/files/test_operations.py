"""A refused request raises an error with the caller's path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_sftp_backend import BackendUnavailable, DirectoryNotEmpty, InvalidPath, NotFound, SFTPBackendError
from airflow_sftp_backend.backend._files import deletion as deletion
from airflow_sftp_backend.backend._files import file_info, listing, reading, writing
from airflow_sftp_backend.backend._files.pipelining import UploadSource
from airflow_sftp_backend.backend._paths import Jail
from airflow_sftp_backend.backend._protocol.codec import Attributes, DirEntry, OpenFlag
from airflow_sftp_backend.backend._protocol.directory_reply import DirectoryReply
from airflow_sftp_backend.backend._protocol.messages import (
    LStat,
    MakeDir,
    Open,
    OpenDir,
    ReadDir,
    Remove,
    RemoveDir,
    Request,
    Stat,
)
from airflow_sftp_backend.backend._protocol.scheduler import Operation
from airflow_sftp_backend.backend._protocol.server_traits import OPENSSH, UNKNOWN, ServerTraits
from airflow_sftp_backend.backend._receive_limits import ListingTally
from airflow_sftp_backend.backend.errors import StatusCode, StatusError
from tests.support.memory_server import FAILURES, Failure, File, MemoryServer, directory_reply

AT = Jail("/data").resolve
OLD, NEW = b"what stood there", b"what is written, which is longer"
FILES: dict[str, bytes | None] = {
    "/data": None,
    "/data/in": None,
    "/data/in/a": OLD,
    "/data/in/b": b"",
    "/data/empty": None,
}

Make = Callable[[MemoryServer], Operation[Any]]


def read_whole(server: MemoryServer) -> Operation[bytes]:
    content = bytearray()
    yield from reading.read_into(server, AT("in/a"), content.extend)
    return bytes(content)


def list_entries(key: str) -> Operation[listing.Listing]:
    return listing.list_folder(AT(key), ListingTally(key))


OPERATIONS: dict[str, tuple[str, Make]] = {
    "look": ("in/a", lambda server: file_info.stat_or_none(AT("in/a"))),
    "info": ("in/a", lambda server: file_info.get_file_info(AT("in/a"))),
    "check_folder": ("in", lambda server: file_info.check_folder(AT("in"))),
    "list_folder": ("in", lambda server: list_entries("in")),
    "read_into": ("in/a", read_whole),
    "make_folders": ("new/er", lambda server: writing.make_folders(AT("new/er"))),
    "write": ("in/n", lambda server: writing.write(server, AT("in/n"), UploadSource(NEW), overwrite=False)),
    "write over": ("in/a", lambda server: writing.write(server, AT("in/a"), UploadSource(NEW), overwrite=True)),
    "write deep": ("x/y/n", lambda server: writing.write(server, AT("x/y/n"), UploadSource(NEW), overwrite=False)),
    "delete": ("in/a", lambda server: deletion.delete(AT("in/a"), missing_ok=False)),
    "delete_folder": ("empty", lambda server: deletion.delete_folder(AT("empty"), missing_ok=False)),
}


TRAITS = pytest.mark.parametrize("traits", [OPENSSH, UNKNOWN], ids=["known", "unknown"])


@TRAITS
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_any_refusal_becomes_a_public_error_and_leaves_nothing_open(
    name: str, failure: Failure, traits: ServerTraits
) -> None:
    key, make = OPERATIONS[name]
    whole = MemoryServer(dict(FILES), traits=traits)
    whole.run(make(whole))
    for number in range(1, len(whole.requests) + 1):
        server = MemoryServer(dict(FILES), fail_at={number}, failure=failure, traits=traits)
        try:
            server.run(make(server))
        except SFTPBackendError as error:  # and nothing else
            if failure.startswith("lost"):
                assert isinstance(error, BackendUnavailable)
            else:
                assert error.path is not None, number
                assert key.startswith(error.path), number
        if server.failure is None:
            assert not server.open, number
            assert all(held in (OLD, b"", NEW) for held in server.content().values()), number


def test_a_handle_is_closed_when_the_caller_abandons_the_operation() -> None:
    server = MemoryServer(dict(FILES))

    def sink(data: memoryview) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.run(reading.read_into(server, AT("in/a"), sink))
    assert not server.open


# -- servers that say less --------------------------------------------------------------------------------------------


class Untyped(MemoryServer):
    """Report no file types, and refuse only to read listings."""

    def carry_out(self, request: Request[Any]) -> object:
        """The answer without mode."""
        if isinstance(request, OpenDir) and self.files.get(request.path) is not None:
            return self._handle([])
        if isinstance(request, ReadDir) and not self.open[request.handle] and self.requests[-2].__class__ is OpenDir:
            opened = self.requests[-2]
            assert isinstance(opened, OpenDir)
            if self.files.get(opened.path) is not None:
                raise StatusError(StatusCode.FAILURE)
        answer = super().carry_out(request)
        if isinstance(request, Stat | LStat):
            assert isinstance(answer, Attributes)
            return Attributes(answer.size)
        if isinstance(request, ReadDir):
            assert isinstance(answer, DirectoryReply)
            return directory_reply(DirEntry(entry.name, Attributes(entry.attributes.size)) for entry in answer)
        return answer


def test_an_entry_without_type_is_a_directory_if_it_can_be_listed() -> None:
    server = Untyped(dict(FILES))
    folder, file = server.run(file_info.stat_or_none(AT("in"))), server.run(file_info.stat_or_none(AT("in/a")))
    assert folder is not None
    assert file is not None
    assert (folder.is_folder, file.is_folder) == (True, False)
    assert not server.open
    with pytest.raises(InvalidPath, match="a directory, not a file"):
        server.run(file_info.get_file_info(AT("in")))
    assert server.run(file_info.get_file_info(AT("in/a"))).size == len(OLD)


class Strict(MemoryServer):
    """Says FAILURE to everything it refuses, as many servers do."""

    def carry_out(self, request: Request[Any]) -> object:
        """No reason given but for a look."""
        try:
            return super().carry_out(request)
        except StatusError:
            if isinstance(request, Stat | LStat):
                raise
            raise StatusError(StatusCode.FAILURE, "Failure") from None


class Curt(MemoryServer):
    """Says FAILURE to everything it refuses, to a look too."""

    def carry_out(self, request: Request[Any]) -> object:
        """No reason given."""
        try:
            return super().carry_out(request)
        except StatusError:
            raise StatusError(StatusCode.FAILURE, "Failure") from None


CAUSES: dict[str, tuple[Make, type[SFTPBackendError], str, str]] = {
    "list a file": (
        lambda server: list_entries("in/a"),
        InvalidPath,
        "in/a",
        "cannot list: the path is a file",
    ),
    "list nothing": (
        lambda server: list_entries("no"),
        NotFound,
        "no",
        "no such directory",
    ),
    "list below a file": (
        lambda server: list_entries("in/a/x"),
        NotFound,
        "in/a/x",
        "no such directory",
    ),
    "read a folder": (
        lambda server: reading.open_for_reading(AT("in")),
        InvalidPath,
        "in",
        "cannot read: the path is a directory",
    ),
    "read below a file": (
        lambda server: reading.open_for_reading(AT("in/a/x")),
        NotFound,
        "in/a/x",
        "cannot read: ",
    ),
    "write on a folder": (
        lambda server: writing.write(server, AT("in"), UploadSource(b""), overwrite=True),
        InvalidPath,
        "in",
        "cannot write: the path is a directory",
    ),
    "write below a file": (
        lambda server: writing.write(server, AT("in/a/x"), UploadSource(b""), overwrite=True),
        InvalidPath,
        "in/a",
        " is a file",
    ),
    "make a folder of a file's name": (
        lambda server: writing.make_folders(AT("in/a")),
        InvalidPath,
        "in/a",
        "cannot create the directory: the path is a file",
    ),
    "delete a folder": (
        lambda server: deletion.delete(AT("in"), missing_ok=True),
        InvalidPath,
        "in",
        "Use delete_folder",
    ),
    "delete nothing": (lambda server: deletion.delete(AT("no"), missing_ok=False), NotFound, "no", "no such file"),
    "delete a file as a folder": (
        lambda server: deletion.delete_folder(AT("in/a"), missing_ok=True),
        InvalidPath,
        "in/a",
        "the path is a file. Use delete",
    ),
    "delete a full folder": (
        lambda server: deletion.delete_folder(AT("in"), missing_ok=False),
        DirectoryNotEmpty,
        "in",
        "recursive=True",
    ),
    "a folder's info": (lambda server: file_info.get_file_info(AT("in")), InvalidPath, "in", "a directory, not a file"),
    "a file as the root": (
        lambda server: file_info.check_folder(AT("in/a")),
        InvalidPath,
        "in/a",
        "the path is a file",
    ),
}


KINDS = pytest.mark.parametrize(
    ("kind_of_server", "traits"),
    [(MemoryServer, OPENSSH), (MemoryServer, UNKNOWN), (Strict, OPENSSH), (Strict, UNKNOWN), (Curt, UNKNOWN)],
    ids=["known", "unknown", "strict and known", "strict and unknown", "curt and unknown"],
)


@pytest.mark.parametrize("name", CAUSES)
@KINDS
def test_the_cause_is_found_where_the_server_gives_none(
    name: str, kind_of_server: type[MemoryServer], traits: ServerTraits
) -> None:
    make, kind, key, text = CAUSES[name]
    server = kind_of_server(dict(FILES), traits=traits)
    before = server.content()
    with pytest.raises(kind) as caught:
        server.run(make(server))
    assert type(caught.value) is kind
    assert caught.value.path == key
    assert text in caught.value.message
    assert server.content() == before
    assert not server.open


@pytest.mark.parametrize("name", ["delete nothing", "delete_folder nothing", "delete below a file"])
@KINDS
def test_a_missing_path_is_allowed_with_missing_ok(
    name: str, kind_of_server: type[MemoryServer], traits: ServerTraits
) -> None:
    server = kind_of_server(dict(FILES), traits=traits)
    if name == "delete_folder nothing":
        server.run(deletion.delete_folder(AT("no"), missing_ok=True))
    else:
        server.run(deletion.delete(AT("no" if name == "delete nothing" else "in/a/x"), missing_ok=True))


# -- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["/data", "/data/x", "/data/x/y"])
@pytest.mark.parametrize(
    ("kind_of_server", "traits"),
    [(MemoryServer, OPENSSH), (MemoryServer, UNKNOWN), (Strict, UNKNOWN), (Curt, UNKNOWN)],
    ids=["known", "unknown", "strict", "curt"],
)
def test_missing_parents_are_created_from_the_first_missing_level(
    missing: str, kind_of_server: type[MemoryServer], traits: ServerTraits
) -> None:
    files: dict[str, bytes | None] = {}
    for folder in ("/data", "/data/x", "/data/x/y"):
        if folder == missing:
            break
        files[folder] = None
    server = kind_of_server(files, traits=traits)
    server.run(writing.make_folders(AT("x/y")))
    assert sorted(server.files) == ["/", "/data", "/data/x", "/data/x/y"]


def test_two_concurrent_makers_of_a_directory_both_succeed() -> None:
    server = MemoryServer({"/data": None})

    def after(server: MemoryServer) -> None:
        if isinstance(server.requests[-1], Open):
            server.files["/data/x"] = None  # made by another writer, between the attempt and ours

    racing = MemoryServer({"/data": None}, after=after)
    for world in (server, racing):
        world.run(writing.write(world, AT("x/a"), UploadSource(NEW), overwrite=False))
        assert world.content() == {"/data/x/a": NEW}


def test_no_parents_are_created_without_create_parents() -> None:
    server = MemoryServer(dict(FILES))
    with pytest.raises(NotFound):
        server.run(writing.open_new(AT("x/a"), AT("x/a"), OpenFlag.CREATE, create_parents=False))
    assert not any(isinstance(request, MakeDir) for request in server.requests)


def test_no_query_is_sent_that_the_attempt_itself_answers() -> None:
    server = MemoryServer(dict(FILES))
    server.run(deletion.delete(AT("in/a"), missing_ok=False))
    server.run(deletion.delete_folder(AT("empty"), missing_ok=False))
    assert [type(request) for request in server.requests] == [Remove, RemoveDir]


@pytest.mark.parametrize("traits", [OPENSSH, UNKNOWN], ids=["known", "unknown"])
def test_a_directory_created_while_it_is_listed_is_listed(traits: ServerTraits) -> None:
    def after(server: MemoryServer) -> None:
        if isinstance(server.requests[-1], OpenDir) and "/data/new" not in server.files:
            server.files["/data/new"] = None
            server.files["/data/new/a"] = File(bytearray(NEW))

    server = MemoryServer(dict(FILES), after=after, traits=traits)
    assert [path.key for path, _ in server.run(list_entries("new"))] == ["new/a"]
    assert not server.open
