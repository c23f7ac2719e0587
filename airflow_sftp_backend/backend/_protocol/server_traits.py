"""Detect the known traits of a server.

Little is assumed of an unknown server.

SFTP 3 leaves much to the server, and servers deviate from the rest. The defaults of `ServerTraits` assume nothing: the
client queries first or checks afterwards. A trait is set only if the server's source code shows the behaviour and a
test runs against the server, and only with evidence for the program behind the requests:

* The SSH banner names the SSH server. The SFTP subsystem may be another program.
* An extension proves support for a single request, not the behaviour of the others. asyncssh, Go's pkg/sftp and
  ProFTPD offer OpenSSH's extensions too, but list, rename or delete differently.

So OpenSSH's sftp-server is recognised by two properties together: the banner of an SSH server on Unix, and a set of
extensions. The set includes extensions of no other known server, and excludes extensions foreign to OpenSSH.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTraits:
    """Known behaviour of a server. The defaults apply to an unknown server."""

    honours_exclusive: bool = False
    """OPEN with CREATE and EXCLUSIVE fails if the name exists (filexfer-02 section 6.3)."""
    lists_links_as_links: bool = False
    """READDIR returns a link's own attributes, not those of its target."""
    lstat_shows_links: bool = False
    """LSTAT returns a link's own attributes, not those of its target (filexfer-02 section 6.8)."""
    keeps_content_at_open: bool = False
    """OPEN for writing without TRUNCATE keeps the content of the file."""
    rename_refuses_existing: bool = False
    """RENAME fails if the new name exists (filexfer-02 section 6.5)."""
    posix_rename_replaces: bool = False
    """``posix-rename@openssh.com`` replaces a file in one step (OpenSSH PROTOCOL section 4.3)."""
    checks_type_at_removal: bool = False
    """REMOVE refuses directories; RMDIR refuses files, links and directories with entries.

    Sources: filexfer-02 sections 6.5 and 6.6.
    """
    finds_nothing_below_files: bool = False
    """STAT of ``file/x`` is refused if ``file`` is a file."""
    allows_parallel_writers: bool = False
    """Several channels can write different parts of a file at the same time."""
    opens_many_files: bool = False
    """A refused OPEN or OPENDIR is never caused by the number of open files."""
    reports_no_such_file: bool = False
    """A request for a missing file is refused with NO_SUCH_FILE, not with a bare FAILURE."""
    handles_requests_in_order: bool = False
    """Requests of one channel take effect in the order in which they were sent."""
    reads_whole_blocks: bool = False
    """READ returns fewer bytes than requested at the end of the file only (filexfer-02 section 6.4)."""


UNKNOWN: Final = ServerTraits()

OPENSSH: Final = ServerTraits(
    honours_exclusive=True,  # sftp-server.c, flags_from_portable: O_EXCL
    lists_links_as_links=True,  # process_readdir: lstat
    lstat_shows_links=True,  # process_lstat: lstat
    keeps_content_at_open=True,  # flags_from_portable: O_TRUNC only with TRUNCATE
    rename_refuses_existing=True,  # process_rename: link and unlink; stat and rename without hard links
    posix_rename_replaces=True,  # process_extended_posix_rename: rename
    checks_type_at_removal=True,  # process_remove: unlink; process_rmdir: rmdir
    finds_nothing_below_files=True,  # process_stat: stat, which returns ENOTDIR
    opens_many_files=True,  # handle_new: limited only by the process's file descriptors
    allows_parallel_writers=True,  # an sftp-server process for each channel, with pwrite
    reports_no_such_file=True,  # errno_to_portable: ENOENT, ENOTDIR, ELOOP
    handles_requests_in_order=True,  # process: a single loop, a request at a time
    reads_whole_blocks=True,  # process_read: pread into a buffer of the requested length
)
"""OpenSSH's sftp-server on Unix, as of version 5.1."""

_DROPBEAR: Final = replace(OPENSSH, allows_parallel_writers=False)
"""dropbear on Unix, with OpenSSH's sftp-server for lack of its own. Several channels were not measured."""


@dataclass(frozen=True, slots=True)
class _KnownServer:
    """Criteria to recognise a server: its banner and its extensions.

    The server offers all ``required_extensions``, and none unknown to OpenSSH's sftp-server.
    """

    banner: re.Pattern[str]
    required_extensions: frozenset[str]
    traits: ServerTraits


# "OpenSSH_for_Windows_9.5" does not match: the same program on another file system, which was not tested.
_OPENSSH_BANNER: Final = re.compile(r"SSH-2\.0-OpenSSH_\d+\.\d")

_KNOWN_SERVERS: Final = (
    # Go's pkg/sftp offers statvfs without fstatvfs. ProFTPD offers both, but also vendor-id, unknown to OpenSSH.
    _KnownServer(_OPENSSH_BANNER, frozenset({"fstatvfs@openssh.com"}), OPENSSH),
    # The banner does not identify the SFTP server; no other known server offers expand-path (OpenSSH 8.7).
    _KnownServer(
        re.compile(r"SSH-2\.0-dropbear"), frozenset({"fstatvfs@openssh.com", "expand-path@openssh.com"}), _DROPBEAR
    ),
)

_UNSUFFIXED: Final = frozenset({"copy-data", "home-directory"})
"""Extensions of OpenSSH's sftp-server without ``@openssh.com``."""


def detect_traits(banner: str, extensions: Mapping[str, str]) -> ServerTraits:
    """Look up the known traits of a server.

    :param banner: the server's identification (RFC 4253 section 4.2), such as ``SSH-2.0-OpenSSH_9.2p1 Debian-2``
    :param extensions: names and data of the extensions in its VERSION packet (filexfer-02 section 4)
    :returns: the traits of the recognised server; `UNKNOWN` if banner and extensions prove no known server
    """
    if not all(name.endswith("@openssh.com") or name in _UNSUFFIXED for name in extensions):
        return UNKNOWN
    for known in _KNOWN_SERVERS:
        if known.banner.match(banner) and known.required_extensions <= extensions.keys():
            return known.traits
    return UNKNOWN


def is_openssh_banner(banner: str) -> bool:
    """Return whether a banner is that of OpenSSH on Unix.

    :param banner: the server's identification, such as ``SSH-2.0-OpenSSH_9.2p1``
    :returns: True if the SFTP server is probably OpenSSH's; only its VERSION packet proves it
    """
    return _OPENSSH_BANNER.match(banner) is not None
