"""The jail: keys in, native paths out, and never one outside base_path. Pure text; no I/O.

The jail is lexical. A link that stands under base_path is followed when a caller names it (it is the server
administrator's layout); recursive operations never follow one (see `_files`).
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from .errors import InvalidPath, SFTPBackendError

_TEMP_PATTERN = re.compile(r"\.(?P<stem>.*)\.(?P<digest>[0-9a-f]{8})-(?P<token>[0-9a-f]{12})\.part", re.DOTALL)
_BACKUP_PATTERN = re.compile(r"\.(?P<stem>.*)\.(?P<digest>[0-9a-f]{8})-(?P<token>[0-9a-f]{12})\.backup", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNUSUAL = re.compile(r"[\x00-\x1f\x7f/\\]")
_SHARED_BACKUP_TOKEN = "0" * 12
_TOKEN_HALF = 6  # hex digits of a token
_NAME_MAX = 255  # bytes: NAME_MAX of every common file system


STALE_SECONDS: Final = 3600
"""Seconds without a change after which a temporary file is taken for left behind: a living writer writes more often."""


@dataclass(frozen=True, slots=True, order=True)
class RemotePath:
    """A path inside the jail: ``key`` relative to base_path ("" is the root), ``native`` as the server is sent it."""

    key: str
    native: str

    @property
    def is_root(self) -> bool:
        """True for base_path itself."""
        return not self.key

    @property
    def name(self) -> str:
        """The last segment; "" for the root."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The folder that holds it. The root is its own parent."""
        if not self.key:
            return self
        folder, _, name = self.key.rpartition("/")
        native = self.native[: len(self.native) - len(name)]
        if not native:  # a top name under a relative base_path
            return RemotePath(folder, ".")
        return RemotePath(folder, native if native == "/" else native[:-1])

    def child(self, name: str) -> RemotePath:
        """The entry of that name in this folder. InvalidPath if a name (a server's) is no plain name."""
        check_server_name(name, self.key)
        return self._entry(name)

    def temp(self, token: str) -> RemotePath:
        """The temporary name beside this one for the writer ``token`` (12 hex digits)."""
        return self.parent._entry(temp_name(self.name, token))

    def owns_temp(self, name: str) -> bool:
        """True if ``name`` is a temporary name of this target."""
        return temp_name_digest(name) == name_digest(self.name)

    @property
    def backup(self) -> RemotePath:
        """The name beside this one for the old content, while two renames replace it; the same for all writers."""
        return self.unique_backup(_SHARED_BACKUP_TOKEN)

    def unique_backup(self, token: str) -> RemotePath:
        """A backup name that the writer ``token`` (12 hex digits) alone uses, for a backup that is to be removed."""
        return self.parent._entry(temp_name(self.name, token, "backup"))

    def owns_backup(self, name: str) -> bool:
        """True if ``name`` is a backup name of this target."""
        match = _BACKUP_PATTERN.fullmatch(name)
        return match is not None and match["digest"] == name_digest(self.name)

    def _entry(self, name: str) -> RemotePath:
        key = f"{self.key}/{name}" if self.key else name
        if self.native == ".":
            return RemotePath(key, name)
        return RemotePath(key, f"{self.native}{'' if self.native.endswith('/') else '/'}{name}")


class Jail:
    """Maps between keys and native paths under one ``base_path``.

    ``base_path`` is absolute (``/data/in``) or relative to the login folder (``in``, ``.``). ValueError if it has a
    ``..`` segment.
    """

    def __init__(self, base_path: str) -> None:
        segments = [s for s in base_path.split("/") if s not in ("", ".")]
        if ".." in segments:
            raise ValueError(f"base_path must not contain '..': {base_path!r}")
        joined = "/".join(segments)
        self.base_path = f"/{joined}" if base_path.startswith("/") else joined or "."
        self.root = RemotePath("", self.base_path)

    def resolve(self, path: str) -> RemotePath:
        """The place a key names. Leading and doubled slashes and ``.`` segments fall away.

        Raises InvalidPath for ``..``, NUL and what is no Unicode text, TypeError for another type than str.
        """
        if not isinstance(path, str):
            raise TypeError(f"a path is a str, not {type(path).__name__}")
        check_text(path, "a path")
        segments = [s for s in path.split("/") if s not in ("", ".")]
        if ".." in segments:
            raise InvalidPath("a path must not contain '..': it is relative to base_path and stays below it", path=path)
        if not segments:
            return self.root
        key = "/".join(segments)
        prefix = "" if self.base_path == "." else self.base_path if self.base_path == "/" else f"{self.base_path}/"
        return RemotePath(key, prefix + key)

    def to_key(self, native_path: str) -> str:
        """The key of a native path; the inverse of ``resolve(key).native``. InvalidPath outside base_path.

        A relative path is a key already, unless base_path is relative too.
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


def add_location(error: SFTPBackendError, address: str, jail: Jail) -> None:
    """Add to an error the server and, where the base path is not the root, the path as the server is sent it."""
    error.server = error.server or address
    if error.path is not None and error.native_path is None and jail.base_path != "/":
        with suppress(InvalidPath):  # of a path that leads nowhere
            error.native_path = jail.resolve(error.path).native


def check_text(text: str, what: str) -> None:
    """InvalidPath if no server can be sent ``text``: it holds NUL, or a surrogate that stands for no byte."""
    if "\0" in text:
        raise InvalidPath(f"{what} must not contain NUL", path=text)
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidPath(f"{what} must not contain half of a character ({error.reason})", path=text) from None


def temp_name(name: str, token: str, kind: Literal["part", "backup"] = "part") -> str:
    """A temporary name for a file called ``name``, of at most 255 bytes; ``token`` is 12 hex digits."""
    affix = f".{name_digest(name)}-{token}.{kind}"
    stem = name.encode("utf-8", "surrogateescape")[: _NAME_MAX - 1 - len(affix)]
    return f".{stem.decode('utf-8', 'ignore')}{affix}"


def resume_token(key: str, size: int, mtime: int) -> str:
    """The token of the writer ``key`` for a source of ``size`` bytes, last changed at ``mtime`` (any clock): the
    first half of its digits is the writer's, the other the source's.
    """
    return _token_half(key) + _token_half(f"{size} {mtime}")


def same_writer(token: str, other: str) -> bool:
    """True for tokens of one writer."""
    return token[:_TOKEN_HALF] == other[:_TOKEN_HALF]


def fresh_token(token: str, random: str) -> str:
    """A token of the same writer for no source in particular; ``random`` is 12 hex digits."""
    return token[:_TOKEN_HALF] + random[_TOKEN_HALF:]


def temp_name_digest(temp: str) -> str:
    """The `name_digest` in a temporary name; "" in any other."""
    match = _TEMP_PATTERN.fullmatch(temp)
    return "" if match is None else match["digest"]


def temp_name_token(name: str) -> str:
    """The token in a temporary name; "" in any other."""
    match = _TEMP_PATTERN.fullmatch(name)
    return "" if match is None else match["token"]


def original_stem(name: str) -> str:
    """The start of the file's own name in a temporary name or backup name, all of it unless it was too long; "" in any
    other."""
    match = _TEMP_PATTERN.fullmatch(name) or _BACKUP_PATTERN.fullmatch(name)
    return "" if match is None else match["stem"]


def temp_or_backup_digest(name: str) -> str:
    """The `name_digest` in a temporary name or backup name; "" in any other."""
    match = _TEMP_PATTERN.fullmatch(name) or _BACKUP_PATTERN.fullmatch(name)
    return "" if match is None else match["digest"]


def is_temp_name(name: str) -> bool:
    """True for a name that `temp_name` makes, of a temporary file or of a backup: no listing shows either."""
    return (name.endswith(".part") and _TEMP_PATTERN.fullmatch(name) is not None) or is_backup_name(name)


def is_backup_name(name: str) -> bool:
    """True for the name of a backup, which must not be removed while the file it belongs to is missing."""
    return name.endswith(".backup") and _BACKUP_PATTERN.fullmatch(name) is not None


def check_server_name(name: str, folder: str) -> None:
    """InvalidPath unless ``name``, as a server sent it in a listing of the key ``folder``, names one entry of it.

    A backslash is an ordinary character on a POSIX server; a Windows server takes it for a slash, so that a name with a
    ``..`` between backslashes could climb.
    """
    if _UNUSUAL.search(name) is None and name not in ("", ".", ".."):
        return
    if name in ("", ".") or "/" in name or ".." in name.split("\\") or has_control_character(name):
        raise InvalidPath(f"the server lists an entry with the unsafe name {name!r}; it is left out", path=folder)


def has_control_character(text: str) -> bool:
    """True if a C0 control character or DEL is in ``text``."""
    return _CONTROL.search(text) is not None


def _token_half(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_TOKEN_HALF]


def name_digest(name: str) -> str:
    """What tells the temporary names of ``name`` from those of others."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
