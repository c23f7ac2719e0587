"""Encode and decode the parts of packets; refuse malformed ones."""

from __future__ import annotations

import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend.backend._protocol.codec import (
    Attributes,
    PacketReader,
    ProtocolError,
    encode_name,
    encode_string,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
OWNERS = st.none() | st.tuples(U32, U32)


def reader(data: bytes) -> PacketReader:
    return PacketReader(memoryview(data))


@st.composite
def attributes(draw: st.DrawFn) -> Attributes:
    """Any attributes of the protocol: owner and group, both times."""
    uid, gid = draw(OWNERS) or (None, None)
    atime, mtime = draw(OWNERS) or (None, None)
    return Attributes(draw(st.none() | U64), uid, gid, draw(st.none() | U32), atime, mtime)


@given(attributes())
def test_attributes_are_read_back_as_they_were_written(given_: Attributes) -> None:
    at = reader(given_.encode())
    assert at.attributes() == given_
    assert at.remaining == 0


def test_attributes_are_laid_out_as_the_draft_says() -> None:
    encoded = Attributes(size=5, uid=1, gid=2, mode=0o100600, atime=3, mtime=4).encode()
    assert encoded == struct.pack(">IQIIIII", 0xF, 5, 1, 2, 0o100600, 3, 4)


def test_half_a_pair_of_attributes_is_not_sent() -> None:
    assert Attributes(uid=1, mtime=4).encode() == bytes(4)


def test_extended_attributes_are_passed_over() -> None:
    extended = (
        struct.pack(">II", 2, 0)[:4]
        + encode_string(b"acl@x")
        + encode_string(b"\0\1")
        + encode_string(b"b")
        + encode_string(b"")
    )
    at = reader(struct.pack(">IQ", 0x80000001, 9) + extended + b"rest")
    assert at.attributes() == Attributes(size=9)
    assert at.remaining == 4


@pytest.mark.parametrize(
    ("mode", "is_file", "is_folder", "is_link"),
    [
        (stat.S_IFREG | 0o600, True, False, False),
        (stat.S_IFDIR | 0o755, False, True, False),
        (stat.S_IFLNK | 0o777, False, False, True),
        (stat.S_IFIFO | 0o600, False, False, False),
        (0o644, True, False, False),  # no type bits
        (None, True, False, False),
    ],
)
def test_the_mode_gives_the_file_type(mode: int | None, is_file: bool, is_folder: bool, is_link: bool) -> None:
    found = Attributes(mode=mode)
    assert (found.is_file, found.is_folder, found.is_link) == (is_file, is_folder, is_link)


@given(st.binary(max_size=300))
def test_a_name_of_any_bytes_comes_back_as_the_same_bytes(name: bytes) -> None:
    assert encode_name(reader(encode_string(name)).text()) == name


def test_a_name_is_sent_as_utf_8() -> None:
    assert encode_name("Rechnung-März-€.csv") == "Rechnung-März-€.csv".encode()


@given(U64, U32, st.binary(max_size=50))
def test_numbers_and_strings_are_read_front_to_back(large: int, small: int, data: bytes) -> None:
    at = reader(struct.pack(">QI", large, small) + encode_string(data))
    assert (at.uint64(), at.uint32(), bytes(at.view()), at.remaining) == (large, small, data, 0)


@given(st.binary(max_size=60), st.sampled_from(["uint32", "uint64", "view", "text", "attributes"]))
def test_any_bytes_are_read_or_refused(data: bytes, method: str) -> None:
    at = reader(data)
    try:
        getattr(at, method)()
    except ProtocolError:
        return
    assert 0 <= at.remaining <= len(data)


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\0\0\0\5abcd", b"\xff\xff\xff\xff"])
def test_a_string_that_ends_past_the_packet_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="is truncated"):
        reader(data).view()


@pytest.mark.parametrize(("count", "smallest"), [(2**32 - 1, 12), (2, 8), (1, 16)])
def test_an_item_count_larger_than_the_packet_is_refused_early(count: int, smallest: int) -> None:
    with pytest.raises(ProtocolError, match=f"announces {count} items"):
        reader(struct.pack(">I", count) + bytes(15)).count(smallest)
