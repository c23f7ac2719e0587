"""Resolve keys to native paths inside ``base_path``. Pure text without I/O.

The check is lexical. A link below ``base_path`` is followed if a caller names it, as the administrator of the server
has set it up. Recursive operations never follow links (see `_files`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from .errors import InvalidPath, SFTPBackendError

_TEMP_PATTERN = re.compile(
    r"\.(?P<stem>.*)\.(?P<digest>[0-9a-f]{8})-(?P<token>[0-9a-f]{12})\.part(\.[A-Za-z0-9_.-]{1,31})?", re.DOTALL
)
_BACKUP_PATTERN = re.compile(r"\.(?P<stem>.*)\.(?P<digest>[0-9a-f]{8})-(?P<token>[0-9a-f]{12})\.backup", re.DOTALL)
BACKUP_END: Final = b".backup"
"""End of the name of each backup, in all encodings of names."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNUSUAL = re.compile(r"[\x00-\x1f\x7f/\\]")
_UNUSUAL_BYTES = bytes(byte for byte in range(128) if _UNUSUAL.match(chr(byte)))
_SHARED_BACKUP_TOKEN = "0" * 12
_TOKEN_HALF = 6  # hex digits of the writer's half of a token
_NAME_MAX = 255  # bytes: NAME_MAX of every common file system


STALE_SECONDS: Final = 3600
"""Seconds without a change after which a temporary file is abandoned: a live writer writes more often."""


class RemotePath(NamedTuple):
    """Path inside the jail.

    ``key`` is relative to ``base_path`` ("" is the root). ``native`` is sent to the server.
    """

    key: str
    native: str

    @property
    def is_root(self) -> bool:
        """True for ``base_path`` itself."""
        return not self.key

    @property
    def name(self) -> str:
        """Last segment of the key; "" for the root."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """Parent directory. The root is its own parent."""
        if not self.key:
            return self
        folder, _, name = self.key.rpartition("/")
        native = self.native[: len(self.native) - len(name)]
        if not native:  # a top-level name under a relative base_path
            return RemotePath(folder, ".")
        return RemotePath(folder, native if native == "/" else native[:-1])

    def child(self, name: str) -> RemotePath:
        """Return the path of an entry. Raises InvalidPath for an unsafe name."""
        check_server_name(name, self.key)
        return self.entry(name)

    def temp(self, token: str) -> RemotePath:
        """Return the path of a temporary file beside the target.

        ``token`` identifies the writer (12 hex digits).
        """
        return self.parent.entry(temp_name(self.name, token))

    @property
    def backup(self) -> RemotePath:
        """Path of the old content while two renames replace the target.

        All writers use the same path.
        """
        return self.unique_backup(_SHARED_BACKUP_TOKEN)

    def unique_backup(self, token: str) -> RemotePath:
        """Return the path of a backup to remove.

        Only the writer ``token`` (12 hex digits) uses it.
        """
        return self.parent.entry(temp_name(self.name, token, "backup"))

    def entry(self, name: str) -> RemotePath:
        """Return the path of an entry whose name is safe."""
        key = f"{self.key}/{name}" if self.key else name
        if self.native == ".":
            return RemotePath(key, name)
        return RemotePath(key, f"{self.native}{'' if self.native.endswith('/') else '/'}{name}")


class Jail:
    """Convert between keys and native paths under a base path.

    :param base_path: absolute (``/data/in``), or relative to the login directory (``in``, ``.``)
    :param name_encoding: encoding of the server's names, which keys must fit
    :raises ValueError: if ``base_path`` contains ``..``
    """

    def __init__(self, base_path: str, name_encoding: str = "utf-8") -> None:
        self.name_encoding = name_encoding
        segments = [s for s in base_path.split("/") if s not in ("", ".")]
        if ".." in segments:
            raise ValueError(f"base_path must not contain '..': {base_path!r}")
        joined = "/".join(segments)
        self.base_path = f"/{joined}" if base_path.startswith("/") else joined or "."
        self.root = RemotePath("", self.base_path)
        self._prefix = {".": "", "/": "/"}.get(self.base_path, f"{self.base_path}/")

    def resolve(self, path: str) -> RemotePath:
        """Resolve a key. Ignores leading and repeated slashes and ``.`` segments.

        :param path: the key
        :returns: the path inside the jail
        :raises InvalidPath: for ``..``, NUL, invalid Unicode, or a character that the encoding of names lacks
        :raises TypeError: if ``path`` is not a str
        """
        if not isinstance(path, str):
            raise TypeError(f"a path must be a str, not {type(path).__name__}")
        if _is_plain(path):
            key = path.removeprefix("/")
            return RemotePath(key, self._prefix + key)
        check_text(path, "a path", self.name_encoding)
        segments = [s for s in path.split("/") if s not in ("", ".")]
        if ".." in segments:
            raise InvalidPath("a path must not contain '..': paths stay below base_path", path=path)
        if not segments:
            return self.root
        key = "/".join(segments)
        return RemotePath(key, self._prefix + key)

    def to_key(self, native_path: str) -> str:
        """Return the key of a native path: the inverse of ``resolve(key).native``.

        A relative path is already a key, unless ``base_path`` is relative too.

        :param native_path: path on the server
        :returns: the key
        :raises InvalidPath: outside ``base_path``
        """
        absolute = native_path.startswith("/")
        if self.base_path.startswith("/") and not absolute:
            return self.resolve(native_path).key
        segments = [s for s in native_path.split("/") if s not in ("", ".")]
        base = [s for s in self.base_path.split("/") if s not in ("", ".")]
        outside = absolute != self.base_path.startswith("/") or segments[: len(base)] != base
        if outside or ".." in segments or "\0" in native_path:
            raise InvalidPath(f"the path lies outside base_path {self.base_path!r}", path=native_path)
        return "/".join(segments[len(base) :])


@dataclass(frozen=True, slots=True)
class TempNaming:
    """Name the temporary files of uploads.

    :ivar suffix: text after ``.part``, as checked by `check_temp_suffix`
    :ivar folder: directory of the files; None for the directory of each target
    """

    suffix: str = ""
    folder: RemotePath | None = None

    def temp(self, target: RemotePath, token: str) -> RemotePath:
        """Return the path of a target's temporary file for the writer ``token``."""
        name = temp_name(target.name, token, f"part{self.suffix}", digest=self.digest(target))
        return self.directory(target).entry(name)

    def directory(self, target: RemotePath) -> RemotePath:
        """Return the directory of a target's temporary files."""
        return target.parent if self.folder is None else self.folder

    def digest(self, target: RemotePath) -> str:
        """Return the digest in the names of a target's temporary files."""
        # targets in several directories may share a name and the directory of the temporary files
        return name_digest(target.name if self.folder is None else target.key)


BESIDE_TARGET: Final = TempNaming()
"""Names for temporary files beside their targets, without a suffix."""


def check_temp_suffix(suffix: object) -> None:
    """Check a suffix of temporary names.

    :param suffix: the value
    :raises ValueError: unless the value is a short suffix such as ``.tmp``
    """
    if not isinstance(suffix, str) or re.fullmatch(r"\.[A-Za-z0-9_.-]{0,30}[A-Za-z0-9]", suffix) is None:
        raise ValueError(f"temp_suffix must be a suffix such as '.tmp', of at most 32 characters, not {suffix!r}")


def _is_plain(path: str) -> bool:
    """Return whether a path is a key, perhaps after one slash.

    False for some keys too: those with characters beyond ASCII, and with segments that begin with a dot.
    """
    # Many paths are resolved: these searches take a fifth of the time of splitting and encoding.
    return (
        path.isascii()
        and path != ""
        and path[0] != "."
        and path[-1] != "/"
        and "//" not in path
        and "/." not in path
        and "\0" not in path
    )


def add_location(error: SFTPBackendError, address: str, jail: Jail) -> None:
    """Add server and native path to an error.

    The native path is added only if the base path is not the root.
    """
    error.server = error.server or address
    if error.path is not None and error.native_path is None and jail.base_path != "/":
        with suppress(InvalidPath):  # the error may be about an invalid path
            error.native_path = jail.resolve(error.path).native


def check_text(text: str, noun: str, name_encoding: str = "utf-8") -> None:
    """Check that a text can be sent to a server.

    Raises InvalidPath for NUL, for surrogates without a byte value, and for characters that ``name_encoding`` lacks.
    """
    if "\0" in text:
        raise InvalidPath(f"{noun} must not contain NUL", path=text)
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidPath(f"{noun} must not contain half of a character ({error.reason})", path=text) from None
    try:
        text.encode(name_encoding, "surrogateescape")
    except UnicodeEncodeError as error:
        message = f"{noun} must not contain {text[error.start]!r}, which {name_encoding}, the encoding of names, lacks"
        raise InvalidPath(message, path=text) from None


def temp_name(name: str, token: str, suffix: str = "part", *, digest: str | None = None) -> str:
    """Return the name of a temporary file or backup of ``name``.

    It has at most 255 bytes; ``token`` is 12 hex digits.
    """
    affix = f".{digest or name_digest(name)}-{token}.{suffix}"
    stem = name.encode("utf-8", "surrogateescape")[: _NAME_MAX - 1 - len(affix)]
    # the cut may have split the last character
    return f".{stem.decode('utf-8', 'ignore')}{affix}"


def resume_token(key: str, size: int, mtime: int) -> str:
    """Return the token of a resumable writer.

    One half identifies the writer, the other its source.

    :param key: the key of the writer
    :param size: size of the source in bytes
    :param mtime: modification time of the source, by any clock
    :returns: 12 hex digits
    """
    return _token_half(key) + _token_half(f"{size} {mtime}")


def same_writer(token: str, other: str) -> bool:
    """Return whether two tokens belong to the same writer."""
    return token[:_TOKEN_HALF] == other[:_TOKEN_HALF]


def fresh_token(token: str, random: str) -> str:
    """Return a token of the same writer without a source.

    ``random`` is 12 hex digits.
    """
    return token[:_TOKEN_HALF] + random[_TOKEN_HALF:]


def temp_name_digest(temp: str) -> str:
    """Return the `name_digest` in a temporary name; "" for any other name."""
    match = _TEMP_PATTERN.fullmatch(temp)
    return "" if match is None else match["digest"]


def temp_name_token(name: str) -> str:
    """Return the token in a temporary name; "" for any other name."""
    match = _TEMP_PATTERN.fullmatch(name)
    return "" if match is None else match["token"]


def original_stem(name: str) -> str:
    """Return the start of a temporary file's original name.

    Backups have it too. It is empty for any other name.

    Only a name that was too long is cut.
    """
    match = _TEMP_PATTERN.fullmatch(name) or _BACKUP_PATTERN.fullmatch(name)
    return "" if match is None else match["stem"]


def temp_or_backup_digest(name: str) -> str:
    """Return the `name_digest` in a temporary name or backup name.

    It is empty for any other name.
    """
    match = _TEMP_PATTERN.fullmatch(name) or _BACKUP_PATTERN.fullmatch(name)
    return "" if match is None else match["digest"]


def is_temp_name(name: str) -> bool:
    """Return whether a name was created by `temp_name`. Listings omit such names."""
    return (".part" in name and _TEMP_PATTERN.fullmatch(name) is not None) or is_backup_name(name)


def is_backup_name(name: str) -> bool:
    """Return whether a name is that of a backup."""
    # A backup must not be removed while its file is missing
    return name.endswith(".backup") and _BACKUP_PATTERN.fullmatch(name) is not None


def check_server_name(name: str, folder: str) -> None:
    """Check that a listed name is an entry of ``folder``.

    ``folder`` is a key. Raises InvalidPath.

    A backslash is an ordinary character on a POSIX server. A Windows server treats it as a slash, so ``..`` between
    backslashes could leave the directory.
    """
    # the usual case, with a single search
    if _UNUSUAL.search(name) is None and name not in ("", ".", ".."):
        return
    if name in ("", ".") or "/" in name or ".." in name.split("\\") or has_control_character(name):
        raise InvalidPath(f"the server lists an entry with the unsafe name {name!r}, which is omitted", path=folder)


def are_usual_names(names: Sequence[bytes]) -> bool:
    """Return whether names are safe, also without `check_server_name`.

    :param names: names of entries in an encoding with the characters of ASCII, each longer than ``..``
    :returns: False if a name has a character that may make it unsafe
    """
    joined = b"".join(names)
    return len(joined.translate(None, _UNUSUAL_BYTES)) == len(joined)


def has_control_character(text: str) -> bool:
    """Return whether a text contains a C0 control character or DEL."""
    return _CONTROL.search(text) is not None


def _token_half(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_TOKEN_HALF]


@lru_cache(maxsize=64)  # one write needs it several times
def name_digest(name: str) -> str:
    """Return a short digest of a name, to recognise its temporary files."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
