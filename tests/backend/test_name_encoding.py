"""Names in an encoding other than UTF-8 work in all calls."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import AlreadyExists, InvalidPath, NotFound, SFTPBackend
from airflow_sftp_backend.backend._protocol.codec import Attributes, DirEntry
from airflow_sftp_backend.backend._protocol.directory_reply import DirectoryReply
from airflow_sftp_backend.backend._protocol.messages import Close, PosixRename, Stat, Write
from airflow_sftp_backend.backend._protocol.name_encoding import NameEncoding, create_name_encoding
from airflow_sftp_backend.backend.config import check_name_encoding
from tests.support.assertions import refused
from tests.support.memory_server import directory_reply
from tests.support.servers import Folder, Server, free_port

MakeBackend = Callable[..., SFTPBackend]
NAME = "Übergröße.csv"


@pytest.fixture
def latin1(server: Server, folder: Folder, make_backend: MakeBackend) -> SFTPBackend:
    """A backend for a server whose names are Latin-1."""
    return make_backend(server, base_path=folder.base_path, config={"name_encoding": "latin-1"})


def names_on_disk(folder: Folder, below: bytes = b"") -> list[bytes]:
    """Return the bytes of all names in a directory of the server."""
    return sorted(os.listdir(os.path.join(os.fsencode(folder.path), below)))


def test_names_of_the_server_are_listed_found_and_read(latin1: SFTPBackend, folder: Folder) -> None:
    directory = os.path.join(os.fsencode(folder.path), "Müll".encode("latin-1"))
    os.mkdir(directory)
    Path(os.fsdecode(os.path.join(directory, NAME.encode("latin-1")))).write_bytes(b"content")
    path = f"Müll/{NAME}"
    assert [info.path for info in latin1.list_files("", recursive=True)] == [path]
    assert [info.path for info in latin1.find("M?ll/*größe*")] == [path]
    assert [entry.name for entry in latin1.list_folders("")] == ["Müll"]
    assert latin1.read_bytes(path) == b"content"
    assert latin1.get_file_info(path).name == NAME
    with refused(NotFound, latin1, f"Müll/x{NAME}"):
        latin1.read_bytes(f"Müll/x{NAME}")


def test_names_are_written_moved_copied_and_deleted(latin1: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"content")
    latin1.upload(tmp_path / "local", f"ä/{NAME}")
    latin1.write("ä/écrit", b"1")
    latin1.copy("ä/écrit", "ä/copié")
    latin1.move("ä/écrit", "ä/déplacé")
    latin1.set_mode("ä/déplacé", 0o640)
    with refused(AlreadyExists, latin1, "ä/copié"):
        latin1.write_atomic("ä/copié", b"2")
    expected = sorted(name.encode("latin-1") for name in (NAME, "copié", "déplacé"))
    assert (names_on_disk(folder), names_on_disk(folder, b"\xe4")) == ([b"\xe4"], expected)
    latin1.download(f"ä/{NAME}", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"content"
    latin1.delete("ä/copié")
    latin1.delete_folder("ä", recursive=True)
    assert names_on_disk(folder) == []


def test_the_base_path_is_in_the_encoding_too(server: Server, folder: Folder, make_backend: MakeBackend) -> None:
    os.mkdir(os.path.join(os.fsencode(folder.path), b"caf\xe9"))
    backend = make_backend(server, base_path=f"{folder.base_path}/café", config={"name_encoding": "ISO-8859-1"})
    backend.write("à", b"")
    assert names_on_disk(folder, b"caf\xe9") == [b"\xe0"]
    assert backend.config.name_encoding == "iso8859-1"
    assert backend.native_path("à") == f"{folder.base_path}/café/à"


def test_cp1252_has_characters_that_latin1_lacks(server: Server, folder: Folder, make_backend: MakeBackend) -> None:
    backend = make_backend(server, base_path=folder.base_path, config={"name_encoding": "cp1252"})
    backend.write("100 €", b"")
    backend.write("\udc81", b"")  # a byte without a character
    assert names_on_disk(folder) == [b"100 \x80", b"\x81"]
    assert {info.name for info in backend.list_files("")} == {"100 €", "\udc81"}


def test_stale_files_of_other_writers_are_recognised(latin1: SFTPBackend, folder: Folder) -> None:
    with pytest.raises(KeyboardInterrupt), latin1.open_atomic(NAME) as file:
        file.write(b"partial")
        assert len(names_on_disk(folder)) == 1
        assert list(latin1.list_files("")) == []
        raise KeyboardInterrupt
    assert names_on_disk(folder) == []


def test_a_character_that_the_encoding_lacks_is_refused_before_any_io() -> None:
    config = {"name_encoding": "latin-1"}
    backend = SFTPBackend("127.0.0.1", port=free_port(), config=config)
    for call in (backend.exists, backend.delete, backend.find):
        with pytest.raises(InvalidPath, match="'€', which iso8859-1, the encoding of names, lacks"):
            call("100 €")
    with pytest.raises(ValueError, match="base_path has a character that iso8859-1 lacks: '€'"):
        SFTPBackend("127.0.0.1", base_path="/€", config=config)


@pytest.mark.parametrize(
    "encoding",
    [
        "utf-16", "gbk", "cp037", "iso2022_jp", "utf-7", "ascii", "base64", "latin-9000", "", "a\0b", 7, None,
        "mac_arabic", "mac_farsi", "cp1006",
    ],
)  # fmt: skip
def test_an_encoding_that_may_not_return_every_name_is_refused(encoding: object) -> None:
    with pytest.raises(ValueError, match="expected utf-8, or a single-byte encoding such as latin-1 or cp1252"):
        check_name_encoding(encoding)


@pytest.mark.parametrize("encoding", ["utf8", "latin-1", "cp1252", "iso-8859-15", "cp437", "koi8-r"])
@given(st.binary(min_size=1, max_size=12).filter(lambda name: b"/" not in name))
def test_every_name_of_a_server_is_sent_back_unchanged(encoding: str, raw: bytes) -> None:
    conversion = create_name_encoding(check_name_encoding(encoding)) or NameEncoding("utf-8")
    decoded = raw.decode("utf-8", "surrogateescape")
    entries = conversion.decode_reply(directory_reply([DirEntry(decoded, Attributes())]))
    assert isinstance(entries, DirectoryReply)
    (entry,) = entries
    assert conversion.encode_request(Stat(entry.name)).body() == Stat(decoded).body()


def test_only_names_are_converted() -> None:
    conversion = NameEncoding("latin-1")
    handle, data = b"\xe9", b"\xe9"
    for request in (Close(handle), Write(handle, 0, data)):
        assert conversion.encode_request(request) is request
    renamed = conversion.encode_request(PosixRename("é", "è"))
    assert b"\x00\x00\x00\x01\xe9" in renamed.body()
    assert conversion.decode_reply(b"\xe9") == b"\xe9"
    assert conversion.decode_reply("\udce9") == "é"
    assert create_name_encoding("utf-8") is None
