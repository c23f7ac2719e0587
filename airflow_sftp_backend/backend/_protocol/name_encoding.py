"""Encode the names of a server that does not use UTF-8.

SFTP 3 leaves the encoding of names to the server (filexfer-02 section 3), and most servers use UTF-8. The codec of this
package encodes names in UTF-8 and keeps other bytes as surrogates. So a name in another encoding is exchanged for the
text whose UTF-8 form has the bytes of the name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, TypeVar, cast

from .codec import encode_name
from .directory_reply import DirectoryReply
from .messages import Request

R = TypeVar("R")

_PATH_FIELDS: Final = ("path", "source", "target")


class NameEncoding:
    """Convert the names in requests and replies.

    :param encoding: name of a single-byte encoding, as checked by `config.check_name_encoding`
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding

    def encode_request(self, request: Request[R]) -> Request[R]:
        """Return the request to send.

        :param request: the request, with names as callers see them
        :returns: the request, with names for the codec; the same request without names
        """
        names = {
            name: self._encode_name(value)
            for name in _PATH_FIELDS
            if isinstance(value := getattr(request, name, None), str)
        }
        return cast("Request[R]", replace(cast("Any", request), **names)) if names else request

    def decode_reply(self, reply: object) -> object:
        """Return a reply with names as callers see them.

        :param reply: the decoded reply
        :returns: the reply; the same one without names
        """
        if isinstance(reply, str):
            return self._decode_name(reply)
        if isinstance(reply, DirectoryReply):
            reply.encoding = self._encoding
        return reply

    def _encode_name(self, name: str) -> str:
        return name.encode(self._encoding, "surrogateescape").decode("utf-8", "surrogateescape")

    def _decode_name(self, name: str) -> str:
        return name if name.isascii() else encode_name(name).decode(self._encoding, "surrogateescape")


def create_name_encoding(encoding: str) -> NameEncoding | None:
    """Return the conversion of names.

    :param encoding: normalized name of the encoding
    :returns: the conversion; None for UTF-8
    """
    return None if encoding == "utf-8" else NameEncoding(encoding)
