"""Servers for the tests: OpenSSH's sshd, asyncssh in a thread, one subclass of it per lie, and listeners that are not
SSH servers at all. All on loopback, each a context manager that leaves nothing running and nothing on disk.

Paths: absolute ones are the machine's own, relative ones start at ``root``. No server confines its client, so that
a client that leaves its base_path is seen to do so.
"""

from __future__ import annotations

from ._asyncssh import AsyncsshServer, Files, Login, OneChannel, Packets, WithoutExtensions, WithoutPosixRename
from ._deviations import ListsLinksAsTargets, SwapsFolderForLink
from ._lies import (
    FAILURE,
    NO_SPACE_ON_FILESYSTEM,
    BareAttributes,
    CurtDropBox,
    DeniesEverything,
    DiskFull,
    DropBox,
    DropsAfter,
    FailsWrite,
    HostileNames,
    MovesAway,
    NoChannel,
    NoSubsystem,
    OutOfOrder,
    PosixRenameRefusesTaken,
    RefusesRename,
    RenameReplaces,
    SaysOtherSizes,
    ShortReads,
    SilentChannel,
    SilentLogin,
    SilentSFTP,
    SilentSubsystem,
    StallsAfter,
    StallsOnFurtherChannels,
    Status,
    WithoutSetstat,
)
from ._listeners import Listener, banner_listener, chatty_listener, closing_listener, mute_listener
from ._open_files import ForgetsTheTail, TruncatesAtOpen
from ._openssh import OpenSSHServer, sftp_server_path, sshd_path
from ._server import HOST, Folder, Server, free_port, small_disk, wait_until

__all__ = [
    "FAILURE",
    "HOST",
    "NO_SPACE_ON_FILESYSTEM",
    "AsyncsshServer",
    "BareAttributes",
    "CurtDropBox",
    "DeniesEverything",
    "DiskFull",
    "DropBox",
    "DropsAfter",
    "FailsWrite",
    "Files",
    "Folder",
    "ForgetsTheTail",
    "HostileNames",
    "Listener",
    "ListsLinksAsTargets",
    "Login",
    "MovesAway",
    "NoChannel",
    "NoSubsystem",
    "OneChannel",
    "OpenSSHServer",
    "OutOfOrder",
    "Packets",
    "PosixRenameRefusesTaken",
    "RefusesRename",
    "RenameReplaces",
    "SaysOtherSizes",
    "Server",
    "ShortReads",
    "SilentChannel",
    "SilentLogin",
    "SilentSFTP",
    "SilentSubsystem",
    "StallsAfter",
    "StallsOnFurtherChannels",
    "Status",
    "SwapsFolderForLink",
    "TruncatesAtOpen",
    "WithoutExtensions",
    "WithoutPosixRename",
    "WithoutSetstat",
    "banner_listener",
    "chatty_listener",
    "closing_listener",
    "free_port",
    "mute_listener",
    "sftp_server_path",
    "small_disk",
    "sshd_path",
    "wait_until",
]
