"""Provide real, differing and faulty servers for the tests.

Servers for the tests: OpenSSH's sshd, asyncssh in a thread, one subclass of it per lie, and listeners that are not
SSH servers at all. All on loopback, each a context manager that leaves nothing running and nothing on disk.

Paths: absolute ones are the machine's own, relative ones start at ``root``. No server confines its client, so that
a client that leaves its base_path is seen to do so.
"""

from __future__ import annotations

from tests.support.listeners import Listener, banner_listener, chatty_listener, closing_listener, mute_listener

from .asyncssh_server import AsyncsshServer, Files, Login, OneChannel, Packets, WithoutExtensions, WithoutPosixRename
from .conch_server import ConchServer
from .differing_servers import (
    BuffersPackets,
    DiffersInAll,
    EndsAtForeignNames,
    FailsForMissing,
    FollowsLinks,
    ForbidsLStat,
    HidesFoldersWithDanglingLinks,
    IgnoresExclusive,
    ListsLinksAsTargets,
    NeedsTruncate,
    RefusesFSetStat,
    RemovesAnything,
    RemovesBehindLinks,
    RemovesFullFolders,
    ShowsFilesBelowFiles,
    SwapsFolderForLink,
)
from .dropbear_server import DropbearServer
from .faulty_servers import (
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
from .open_file_faults import DropsAtRename, ForgetsTheTail, LimitsOpenFiles, SharesHandles, TruncatesAtOpen
from .openssh_server import OpenSSHServer, sftp_server_path, sshd_path
from .paramiko_server import ParamikoServer
from .proftpd_server import ProFTPDServer
from .program_server import ProgramServer
from .rclone_server import RcloneServer
from .server import HOST, Folder, Server, free_port, small_disk, wait_until
from .service_stand_ins import AWSTransferLike, AzureBlobLike, SterlingLike
from .times_and_names import IgnoresCase, KeepsSpellings, LikeWindows, OtherClock, ReplacesDuringListing, SeparatesUsers

REAL_SERVERS: dict[str, type[ProgramServer]] = {
    server.kind: server for server in (ProFTPDServer, DropbearServer, RcloneServer, ConchServer, ParamikoServer)
}
"""Servers of other makers, by name. Each is a program of its own, and may not be installed."""

SIMULATED_SERVERS: dict[str, type[AsyncsshServer]] = {
    server.kind: server
    for server in (WithoutPosixRename, WithoutExtensions, OneChannel, AzureBlobLike, AWSTransferLike)
}
"""Stand-ins for servers that cannot run here, by name. The whole contract suite runs on them."""

__all__ = [
    "FAILURE",
    "HOST",
    "NO_SPACE_ON_FILESYSTEM",
    "REAL_SERVERS",
    "SIMULATED_SERVERS",
    "AWSTransferLike",
    "AsyncsshServer",
    "AzureBlobLike",
    "BareAttributes",
    "BuffersPackets",
    "ConchServer",
    "CurtDropBox",
    "DeniesEverything",
    "DiffersInAll",
    "DiskFull",
    "DropBox",
    "DropbearServer",
    "DropsAfter",
    "DropsAtRename",
    "EndsAtForeignNames",
    "FailsForMissing",
    "FailsWrite",
    "Files",
    "Folder",
    "FollowsLinks",
    "ForbidsLStat",
    "ForgetsTheTail",
    "HidesFoldersWithDanglingLinks",
    "HostileNames",
    "IgnoresCase",
    "IgnoresExclusive",
    "KeepsSpellings",
    "LikeWindows",
    "LimitsOpenFiles",
    "Listener",
    "ListsLinksAsTargets",
    "Login",
    "MovesAway",
    "NeedsTruncate",
    "NoChannel",
    "NoSubsystem",
    "OneChannel",
    "OpenSSHServer",
    "OtherClock",
    "OutOfOrder",
    "Packets",
    "ParamikoServer",
    "PosixRenameRefusesTaken",
    "ProFTPDServer",
    "ProgramServer",
    "RcloneServer",
    "RefusesFSetStat",
    "RefusesRename",
    "RemovesAnything",
    "RemovesBehindLinks",
    "RemovesFullFolders",
    "RenameReplaces",
    "ReplacesDuringListing",
    "SaysOtherSizes",
    "SeparatesUsers",
    "Server",
    "SharesHandles",
    "ShortReads",
    "ShowsFilesBelowFiles",
    "SilentChannel",
    "SilentLogin",
    "SilentSFTP",
    "SilentSubsystem",
    "StallsAfter",
    "StallsOnFurtherChannels",
    "Status",
    "SterlingLike",
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
