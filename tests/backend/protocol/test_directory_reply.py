"""Replies to READDIR are read as the specification describes them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_sftp_backend.backend._protocol.codec import Attributes, DirEntry, PacketReader, ProtocolError
from airflow_sftp_backend.backend._protocol.directory_reply import FILE_ATTRIBUTES, read_entries
from airflow_sftp_backend.backend._receive_limits import LimitExceeded
from tests.support.scripted_channel import encode_string

NUMBER = st.integers(0, (1 << 32) - 1)
MODE = st.sampled_from([0o100644, 0o040755, 0o120777, 0o020600, 0o644]) | NUMBER
USUAL = st.builds(Attributes, st.integers(0, (1 << 64) - 1), NUMBER, NUMBER, MODE, NUMBER, NUMBER)
UNUSUAL = st.builds(
    Attributes,
    st.none() | st.integers(0, 9),
    *[st.none()] * 2,
    st.none() | MODE,
    st.just(1),
    st.none() | NUMBER,
)
NAME = st.binary(max_size=6) | st.sampled_from([b".", b"..", b"a.csv", b"\xc3\xa9t\xc3\xa9", b"x" * 4096])
ENTRY = st.tuples(NAME, st.sampled_from([b"", b"-rw-r--r-- 1 a b", b"drwx", b"lrwx"]), USUAL | UNUSUAL)
Entries = list[tuple[bytes, bytes, Attributes]]
FILE = (b"a.csv", b"-rw-", Attributes(7, 1, 2, 0o100644, 3, 4))


def packet(entries: Entries) -> bytes:
    """Encode entries without their number."""
    return b"".join(
        encode_string(name) + encode_string(line) + attributes.encode() for name, line, attributes in entries
    )


def read_one_by_one(data: bytes, count: int) -> list[DirEntry]:
    """Read entries field by field, as the specification describes them."""
    reader, entries = PacketReader(memoryview(data)), []
    letters = {b"d": 0o040000, b"l": 0o120000, b"-": 0o100000}
    for _ in range(count):
        name, line, attributes = reader.text(), bytes(reader.view()), reader.attributes()
        if attributes.mode is None:
            attributes.mode = letters.get(line[:1])
        entries.append(DirEntry(name, attributes))
    return entries


@given(st.lists(ENTRY, max_size=8))
@example([FILE])
@example([FILE, (b"dir", b"drwx", Attributes(mode=0o040755)), FILE])
@example([(b"a.csv", b"-rw-", Attributes())])
def test_entries_are_those_of_the_packet_in_its_order(entries: Entries) -> None:
    data = packet(entries)
    reply = read_entries(memoryview(data), len(entries))
    assert list(reply) == read_one_by_one(data, len(entries))
    assert sorted(reply.all_names) == sorted(name for name, _, _ in entries)
    assert len(reply) == len(entries)


@given(st.lists(ENTRY, min_size=1, max_size=4), st.data())
def test_a_packet_that_is_cut_anywhere_is_refused(entries: Entries, data: st.DataObject) -> None:
    whole = packet(entries)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(ProtocolError, match="truncated"):
        read_entries(memoryview(cut), len(entries))


@given(st.lists(ENTRY, max_size=3), st.integers(1, 1 << 20))
def test_more_entries_than_the_packet_has_are_refused(entries: Entries, more: int) -> None:
    with pytest.raises(ProtocolError, match="truncated"):
        read_entries(memoryview(packet(entries)), len(entries) + more)


@given(st.lists(ENTRY, min_size=1, max_size=3), st.data())
def test_any_packet_is_read_as_field_by_field_or_refused(entries: Entries, data: st.DataObject) -> None:
    mutated = bytearray(packet(entries))
    at = data.draw(st.integers(0, len(mutated) - 4))
    mutated[at : at + 4] = struct.pack(">I", data.draw(NUMBER | st.integers(0, 200)))
    try:
        expected = read_one_by_one(bytes(mutated), len(entries))
    except ProtocolError:
        expected = None
    try:
        actual = list(read_entries(memoryview(bytes(mutated)), len(entries)))
    except LimitExceeded:  # a name of more than 4 KiB
        return
    except ProtocolError:
        actual = None
    assert actual == expected


def test_a_name_of_more_than_4_kib_is_refused() -> None:
    attributes = Attributes(7, 1, 2, 0o100644, 3, 4)
    assert len(read_entries(memoryview(packet([(b"x" * 4096, b"", attributes)])), 1)) == 1
    with pytest.raises(LimitExceeded, match="a name of 4097 bytes"):
        read_entries(memoryview(packet([(b"x" * 4097, b"", attributes)])), 1)


@given(st.lists(ENTRY, max_size=8), st.sets(st.integers(0, 7)))
def test_removed_files_leave_the_order_of_the_others(entries: Entries, chosen: set[int]) -> None:
    reply = read_entries(memoryview(packet(entries)), len(entries))
    indexes = sorted(index for index in chosen if index < len(reply.names))
    regular = [number for number, entry in enumerate(reply) if _is_kept_as_bytes(entry)]
    removed = {regular[index] for index in indexes}
    expected = [entry for number, entry in enumerate(reply) if number not in removed]
    reply.remove(indexes)
    assert list(reply) == expected
    assert len(reply.packed_attributes()) == FILE_ATTRIBUTES.size * len(reply.names)


def _is_kept_as_bytes(entry: DirEntry) -> bool:
    attributes = entry.attributes
    usual = None not in (attributes.size, attributes.uid, attributes.mode, attributes.mtime)
    is_regular = usual and (attributes.mode or 0) >> 12 == 0o10
    return is_regular and len(entry.name.encode("utf-8", "surrogateescape")) > 2
