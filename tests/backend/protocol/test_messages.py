"""Encode requests as specified, and accept only their own replies."""

from __future__ import annotations

import stat
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend.backend._protocol.codec import (
    Attributes,
    DirEntry,
    OpenFlag,
    PacketReader,
    PacketType,
    ProtocolError,
    ServerLimits,
)
from airflow_sftp_backend.backend._protocol.messages import (
    Close,
    CopyData,
    FSetStat,
    FStat,
    LimitsRequest,
    LStat,
    MakeDir,
    Open,
    OpenDir,
    PosixRename,
    Read,
    ReadDir,
    RealPath,
    Remove,
    RemoveDir,
    Rename,
    Request,
    SetStat,
    Stat,
    Write,
    decode_version,
    encode_init,
)
from airflow_sftp_backend.backend.errors import StatusCode, StatusError
from tests.support.scripted_channel import encode_string, version

P, H = b"\0\0\0\2/a", b"\0\0\0\1h"
LAYOUTS: list[tuple[Request[Any], int, bytes]] = [
    (Stat("/a"), 17, P),
    (LStat("/a"), 7, P),
    (FStat(b"h"), 8, H),
    (OpenDir("/a"), 11, P),
    (Remove("/a"), 13, P),
    (RemoveDir("/a"), 15, P),
    (MakeDir("/a"), 14, P + bytes(4)),
    (Close(b"h"), 4, H),
    (Open("/a", OpenFlag.READ), 3, P + b"\0\0\0\1" + bytes(4)),
    (
        Open("/a", OpenFlag.WRITE | OpenFlag.CREATE | OpenFlag.EXCLUSIVE, Attributes(mode=0o600)),
        3,
        P + b"\0\0\0\x2a" + b"\0\0\0\4" + b"\0\0\1\x80",
    ),
    (Read(b"h", 1 << 33, 9), 5, H + b"\0\0\0\2\0\0\0\0" + b"\0\0\0\x09"),
    (Write(b"h", 1 << 33, b"xyz"), 6, H + b"\0\0\0\2\0\0\0\0" + b"\0\0\0\3xyz"),
    (Write(b"h", 0, memoryview(b"xyz")), 6, H + bytes(8) + b"\0\0\0\3xyz"),
    (ReadDir(b"h"), 12, H),
    (Rename("/a", "ü"), 18, P + b"\0\0\0\2\xc3\xbc"),
    (SetStat("/a", Attributes(size=1)), 9, P + b"\0\0\0\1" + b"\0\0\0\0\0\0\0\1"),
    (FSetStat(b"h", Attributes(mode=0)), 10, H + b"\0\0\0\4" + bytes(4)),
    (RealPath("/a"), 16, P),
    (PosixRename("/a", "/a"), 200, encode_string(b"posix-rename@openssh.com") + P + P),
    (
        CopyData(b"h", 1, 2, b"h", 3),
        200,
        encode_string(b"copy-data") + H + struct.pack(">QQ", 1, 2) + H + bytes(7) + b"\3",
    ),
    (LimitsRequest(), 200, encode_string(b"limits@openssh.com")),
]
REQUESTS = [request for request, _, _ in LAYOUTS]


def answered(request: Request[Any], kind: int, body: bytes) -> Any:
    return request.decode_reply(kind, PacketReader(memoryview(body)))


def refusal(code: int, text: bytes = b"why") -> bytes:
    return struct.pack(">I", code) + encode_string(text) + encode_string(b"en")


def by_name(value: object) -> str:
    return type(value).__name__ if isinstance(value, Request) else ""


@pytest.mark.parametrize(("request_", "kind", "body"), LAYOUTS, ids=by_name)
def test_a_request_is_encoded_as_its_specification_says(request_: Request[Any], kind: int, body: bytes) -> None:
    assert request_.packet(0x01020304) == struct.pack(">IBI", len(body) + 5, kind, 0x01020304) + body


@pytest.mark.parametrize("request_", REQUESTS, ids=by_name)
def test_a_refusal_says_code_and_text(request_: Request[Any]) -> None:
    with pytest.raises(StatusError) as caught:
        answered(request_, PacketType.STATUS, refusal(StatusCode.PERMISSION_DENIED))
    assert (caught.value.code, caught.value.text) == (StatusCode.PERMISSION_DENIED, "why")


@pytest.mark.parametrize("request_", REQUESTS, ids=by_name)
def test_a_refusal_without_text_is_a_refusal(request_: Request[Any]) -> None:
    with pytest.raises(StatusError) as caught:
        answered(request_, PacketType.STATUS, struct.pack(">I", StatusCode.NO_SUCH_FILE))
    assert (caught.value.missing, caught.value.text) == (True, "")


@pytest.mark.parametrize("request_", REQUESTS, ids=by_name)
@pytest.mark.parametrize(
    "kind",
    [
        PacketType.HANDLE,
        PacketType.DATA,
        PacketType.NAME,
        PacketType.ATTRS,
        PacketType.EXTENDED_REPLY,
        PacketType.OPEN,
        0,
    ],
)
def test_a_reply_of_an_unexpected_type_is_refused(request_: Request[Any], kind: int) -> None:
    if kind == request_.reply_type:
        return
    with pytest.raises(ProtocolError, match=f"answered by a packet of type {int(kind)}"):
        answered(request_, kind, bytes(64))


@pytest.mark.parametrize("request_", REQUESTS, ids=by_name)
def test_ok_is_a_valid_reply_only_to_requests_without_data(request_: Request[Any]) -> None:
    if request_.reply_type == PacketType.STATUS:
        assert answered(request_, PacketType.STATUS, refusal(StatusCode.OK, b"")) is None
    else:
        with pytest.raises(ProtocolError, match="bare OK"):
            answered(request_, PacketType.STATUS, refusal(StatusCode.OK, b""))


@given(st.sampled_from(REQUESTS), st.sampled_from([101, 102, 103, 104, 105, 201]), st.binary(max_size=80))
def test_any_reply_is_understood_or_refused(request_: Request[Any], kind: int, body: bytes) -> None:
    try:
        answered(request_, kind, body)
    except (ProtocolError, StatusError):
        return


def test_a_handle_is_opaque() -> None:
    assert answered(Open("/a", OpenFlag.READ), PacketType.HANDLE, encode_string(b"\0\xff" * 128)) == b"\0\xff" * 128
    with pytest.raises(ProtocolError, match="257 bytes"):
        answered(OpenDir("/a"), PacketType.HANDLE, encode_string(bytes(257)))


def test_a_read_gives_the_data_or_end_of_file() -> None:
    assert bytes(answered(Read(b"h", 0, 5), PacketType.DATA, encode_string(b"abc"))) == b"abc"
    assert bytes(answered(Read(b"h", 0, 5), PacketType.STATUS, refusal(StatusCode.EOF))) == b""


@pytest.mark.parametrize("data", [b"", b"abcdef"])
def test_an_empty_or_too_long_reply_to_a_read_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="a read of 5 bytes was answered with"):
        answered(Read(b"h", 0, 5), PacketType.DATA, encode_string(data))


def names(*entries: tuple[bytes, bytes, Attributes]) -> bytes:
    body = b"".join(
        encode_string(name) + encode_string(line) + attributes.encode() for name, line, attributes in entries
    )
    return struct.pack(">I", len(entries)) + body


def test_a_listing_gives_names_with_their_attributes() -> None:
    body = names((b"a b", b"-rw", Attributes(3, mode=0o100600)), (b"\xff", b"", Attributes(mode=0o120777)))
    assert list(answered(ReadDir(b"h"), PacketType.NAME, body)) == [
        DirEntry("a b", Attributes(3, mode=0o100600)),
        DirEntry("\udcff", Attributes(mode=0o120777)),
    ]
    assert len(answered(ReadDir(b"h"), PacketType.STATUS, refusal(StatusCode.EOF))) == 0


@pytest.mark.parametrize(
    ("line", "mode"),
    [(b"drwxr-xr-x", stat.S_IFDIR), (b"lrwx", stat.S_IFLNK), (b"-rw-", stat.S_IFREG), (b"", None), (b"name", None)],
)
def test_a_missing_file_type_is_taken_from_the_longname(line: bytes, mode: int | None) -> None:
    (entry,) = answered(ReadDir(b"h"), PacketType.NAME, names((b"n", line, Attributes(size=7, atime=1, mtime=2))))
    assert entry.attributes == Attributes(size=7, mode=mode, atime=1, mtime=2)


def test_a_real_path_is_one_name() -> None:
    assert answered(RealPath("."), PacketType.NAME, names((b"/home/u", b"", Attributes()))) == "/home/u"
    with pytest.raises(ProtocolError, match="one name"):
        answered(RealPath("."), PacketType.NAME, names())


@pytest.mark.parametrize(
    ("packet", "read", "write", "expected"),
    [
        (262144, 261120, 261120, ServerLimits(261120, 261120)),
        (0, 0, 0, ServerLimits(32768, 32768)),  # nothing stated
        (34000, 100000, 0, ServerLimits(32976, 32768)),  # no more than fits a packet
        (1 << 40, 1 << 40, 1 << 40, ServerLimits(1 << 20, 1 << 20)),  # no more than we accept
    ],
)
def test_the_servers_limits_are_clamped_to_ours(packet: int, read: int, write: int, expected: ServerLimits) -> None:
    body = struct.pack(">QQQQ", packet, read, write, 0)
    assert answered(LimitsRequest(), PacketType.EXTENDED_REPLY, body) == expected


@pytest.mark.parametrize(("request_", "cost"), [(Read(b"h", 0, 9), 9), (Write(b"h", 0, b"ab"), 2), (Stat("/a"), 0)])
def test_the_payload_size_is_the_bytes_in_flight(request_: Request[Any], cost: int) -> None:
    assert request_.payload_size == cost


def test_no_repr_shows_written_data() -> None:
    assert "secret" not in repr(Write(b"h", 0, b"secret"))


def test_the_first_packet_announces_version_3() -> None:
    assert encode_init() == bytes.fromhex("000000050100000003")


def test_the_servers_extensions_are_known_by_name() -> None:
    frame = memoryview(version({"posix-rename@openssh.com": "1", "limits@openssh.com": "1"}))[4:]
    assert decode_version(frame) == {"posix-rename@openssh.com": "1", "limits@openssh.com": "1"}


@pytest.mark.parametrize("number", [0, 2, 4, 6])
def test_another_protocol_version_is_refused(number: int) -> None:
    with pytest.raises(ProtocolError, match=f"version {number}, not 3"):
        decode_version(memoryview(version(number=number))[4:])


@given(st.binary(min_size=1, max_size=60))
def test_any_first_packet_is_understood_or_refused(frame: bytes) -> None:
    try:
        decode_version(memoryview(frame))
    except ProtocolError:
        return
    assert frame[:5] == b"\2\0\0\0\3"
