"""What is assumed of an unknown SFTP server, and what is known of which server.

SFTP 3 leaves much to the server, and servers deviate from the rest. The defaults of `ServerTraits` assume nothing: with
them the engine asks first or looks again. A trait is set for a server only where its source code shows the behaviour
and a test runs against it, and only on evidence for the program that answers the requests:

* The SSH banner names the SSH server. The SFTP subsystem behind it may be another program.
* An extension proves that this request is served, not how the others are: asyncssh, Go's pkg/sftp and ProFTPD offer
  OpenSSH's extensions too, and each lists, renames or deletes in its own way.

So OpenSSH's sftp-server is recognised by the two together: a banner of an SSH server on Unix, and extensions of which
some are offered by no other known server and none is foreign to OpenSSH.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTraits:
    """What a server is known to do. The defaults are what is assumed of an unknown server."""

    honours_exclusive: bool = False
    """OPEN with CREATE and EXCLUSIVE fails where the name is taken (filexfer-02 section 6.3)."""
    lists_links_as_links: bool = False
    """READDIR describes a link as a link, not as what it leads to."""
    lstat_shows_links: bool = False
    """LSTAT describes a link, not what it leads to (filexfer-02 section 6.8)."""
    keeps_content_at_open: bool = False
    """OPEN for writing without TRUNCATE keeps the content of the file."""
    rename_refuses_existing: bool = False
    """RENAME fails where the new name is taken (filexfer-02 section 6.5)."""
    posix_rename_replaces: bool = False
    """``posix-rename@openssh.com`` replaces a file in one step (OpenSSH PROTOCOL section 4.3)."""
    checks_type_at_removal: bool = False
    """REMOVE refuses folders; RMDIR refuses files, links, and folders that hold something (filexfer-02 sections 6.5
    and 6.6)."""
    finds_nothing_below_files: bool = False
    """STAT of ``file/x`` is refused where ``file`` is a file."""
    allows_parallel_writers: bool = False
    """Several channels may write different parts of one file at a time."""
    opens_many_files: bool = False
    """A refused OPEN or OPENDIR has a reason of its own, never the number of files that are open."""
    reports_no_such_file: bool = False
    """What is missing is refused with NO_SUCH_FILE, not with a bare FAILURE."""
    reads_whole_blocks: bool = False
    """READ returns fewer bytes than requested at the end of the file only (filexfer-02 section 6.4)."""


UNKNOWN: Final = ServerTraits()

OPENSSH: Final = ServerTraits(
    honours_exclusive=True,  # sftp-server.c, flags_from_portable: O_EXCL
    lists_links_as_links=True,  # process_readdir: lstat
    lstat_shows_links=True,  # process_lstat: lstat
    keeps_content_at_open=True,  # flags_from_portable: O_TRUNC only where TRUNCATE is asked for
    rename_refuses_existing=True,  # process_rename: link and unlink; stat and rename where there are no hard links
    posix_rename_replaces=True,  # process_extended_posix_rename: rename
    checks_type_at_removal=True,  # process_remove: unlink; process_rmdir: rmdir
    finds_nothing_below_files=True,  # process_stat: stat, which says ENOTDIR
    opens_many_files=True,  # handle_new: as many as the process may have descriptors
    allows_parallel_writers=True,  # one sftp-server process a channel, each writing with pwrite
    reports_no_such_file=True,  # errno_to_portable: ENOENT, ENOTDIR, ELOOP
    reads_whole_blocks=True,  # process_read: pread into a buffer of the requested length
)
"""OpenSSH's sftp-server on Unix, as of version 5.1."""

_DROPBEAR: Final = replace(OPENSSH, allows_parallel_writers=False)
"""dropbear on Unix, which has no SFTP of its own, with OpenSSH's sftp-server. Several channels were not measured."""


@dataclass(frozen=True, slots=True)
class _KnownServer:
    """A server that is recognised: by its banner, and by extensions of which all in ``required_extensions`` are
    offered, and none that OpenSSH's sftp-server does not have."""

    banner: re.Pattern[str]
    required_extensions: frozenset[str]
    traits: ServerTraits


# "OpenSSH_for_Windows_9.5" is left out: the same program over another file system, which has not been tried.
_OPENSSH_BANNER: Final = re.compile(r"SSH-2\.0-OpenSSH_\d+\.\d")

_KNOWN_SERVERS: Final = (
    # Go's pkg/sftp offers statvfs and no fstatvfs. ProFTPD offers both, and vendor-id, which OpenSSH does not have.
    _KnownServer(_OPENSSH_BANNER, frozenset({"fstatvfs@openssh.com"}), OPENSSH),
    # The banner says nothing of the SFTP server here; expand-path (OpenSSH 8.7) is offered by no other known one.
    _KnownServer(
        re.compile(r"SSH-2\.0-dropbear"), frozenset({"fstatvfs@openssh.com", "expand-path@openssh.com"}), _DROPBEAR
    ),
)

_UNSUFFIXED: Final = frozenset({"copy-data", "home-directory"})
"""Extensions of OpenSSH's sftp-server without ``@openssh.com``."""


def detect_traits(banner: str, extensions: Mapping[str, str]) -> ServerTraits:
    """Look up what is known of a server.

    :param banner: the server's identification (RFC 4253 section 4.2), as ``SSH-2.0-OpenSSH_9.2p1 Debian-2``
    :param extensions: name and data of the extensions in its VERSION packet (filexfer-02 section 4)
    :returns: the traits of the server that both prove it to be, `UNKNOWN` where they prove none
    """
    if not all(name.endswith("@openssh.com") or name in _UNSUFFIXED for name in extensions):
        return UNKNOWN
    for known in _KNOWN_SERVERS:
        if known.banner.match(banner) and known.required_extensions <= extensions.keys():
            return known.traits
    return UNKNOWN


def is_openssh_banner(banner: str) -> bool:
    """Tell whether a banner is that of OpenSSH on Unix.

    :param banner: the server's identification, as ``SSH-2.0-OpenSSH_9.2p1``
    :returns: True if OpenSSH's sftp-server is likely behind it; its VERSION packet is the proof
    """
    return _OPENSSH_BANNER.match(banner) is not None
