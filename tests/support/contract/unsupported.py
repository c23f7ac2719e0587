"""Declare the promises that a server makes impossible.

A declared test is run all the same. It must fail, and in the way that is declared: where it passes, or fails in another
way, the run fails. So no entry outlives the server's or the package's improvement.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Unsupported:
    """Contract tests that one server cannot pass, and why.

    :param reason: for docs/servers.md: what the server does instead
    :param refusal: regular expression that is found in the failure, ``type: message``
    :param tests: names of tests without ``test_``
    """

    reason: str
    refusal: str
    tests: tuple[str, ...]


_RCLONE_LINKS = (
    "rclone does not show symbolic links unless it is started with `--links` or `--copy-links`: reading, moving and"
    " deleting a link is NotFound, a directory with a link cannot be deleted, and writing to its name replaces the"
    " link or its target"
)
_RCLONE_PIPES = (
    "rclone shows files and directories only: a pipe or a device is invisible, and a directory with one cannot be"
    " deleted"
)
_RCLONE = (
    Unsupported(
        _RCLONE_LINKS,
        r"NotFound: .*no such",
        (
            "copy_follows_a_link",
            "delete_removes_a_link_and_not_its_target",
            "get_file_info_follows_a_link",
            "move_of_a_link_moves_the_link",
            "read_follows_a_link",
        ),
    ),
    Unsupported(
        _RCLONE_LINKS,
        r"DID NOT RAISE|is a directory|sizes differ",
        (
            "a_dangling_link_as_target_is_already_exists",
            "a_dangling_link_is_an_occupied_name",
            "writing_onto_a_link_to_a_folder_is_invalid_path",
        ),
    ),
    Unsupported(
        _RCLONE_LINKS,
        r"\[False, False, False\] == \[True|\[\] == \['link/file'\]|'to_file': 5",
        (
            "a_link_that_the_caller_names_is_followed",
            "exists_is_file_is_folder_follow_links",
            "links_to_files_are_listed_and_links_to_directories_not_entered",
        ),
    ),
    Unsupported(_RCLONE_LINKS, r"directory not empty", ("delete_folder_removes_links_and_never_enters_them",)),
    Unsupported(_RCLONE_PIPES, r"directory not empty", ("delete_folder_deletes_special_files",)),
    Unsupported(_RCLONE_PIPES, r"exists\('pipe'\)", ("special_files_are_not_listed",)),
    Unsupported(
        "rclone stores no modes: every file has the same mode, and a change of mode is accepted without effect",
        r"assert 420 == (384|416)",
        (
            "copy_keeps_the_mode_of_what_it_replaces",
            "get_file_info_gives_the_mode",
            "mode_bits_of_a_replaced_file_are_kept",
        ),
    ),
    Unsupported(
        "rclone stores no modes: every file has the same mode, and a change of mode is accepted without effect",
        r"CapabilityNotSupported: the server accepted the change without effect: the mode is 644, not 640",
        ("set_mode_sets_the_mode_of_a_file_and_of_a_directory",),
    ),
    Unsupported(
        "rclone accepts times of directories and of the last read, and does not store them",
        r"assert .*1583020798\.0",
        (
            "set_times_sets_the_times_of_a_file_and_of_a_directory",
            "set_times_takes_a_time_of_the_last_read",
        ),
    ),
)

UNSUPPORTED: Mapping[str, tuple[Unsupported, ...]] = {
    "proftpd": (
        Unsupported(
            "ProFTPD renames the target of a link. Moving a link is therefore refused with this reason",
            r"InvalidPath: cannot move: the path is a link, and the server would move its target",
            ("move_of_a_link_moves_the_link",),
        ),
        Unsupported(
            "ProFTPD replaces the target of a link, not the link, when another file is renamed to the link's name",
            r"precious",
            ("a_replaced_link_is_replaced_itself",),
        ),
    ),
    "rclone": _RCLONE,
    "conch": (
        Unsupported(
            "Twisted Conch decodes names as ASCII: it lists other names, and refuses every request for them",
            r"SFTPBackendError: cannot write: .*open failed",
            ("names_beyond_ascii_are_stored_listed_and_deleted",),
        ),
    ),
    "aws-like": (
        Unsupported(
            "it refuses modes (SETSTAT and FSETSTAT): a replaced file gets the server's default mode",
            r"assert \d+ == \d+",
            ("copy_keeps_the_mode_of_what_it_replaces", "mode_bits_of_a_replaced_file_are_kept"),
        ),
        Unsupported(
            "it refuses modes and times (SETSTAT and FSETSTAT)",
            r"CapabilityNotSupported: cannot set (mode 640|the time 2020-02-29T23:59:58\+00:00): .* not support",
            (
                "set_mode_sets_the_mode_of_a_file_and_of_a_directory",
                "set_times_sets_the_times_of_a_file_and_of_a_directory",
                "set_times_takes_a_time_of_the_last_read",
            ),
        ),
    ),
}


def unsupported(server: str, test: str) -> Unsupported | None:
    """Looks up whether a test is declared to fail on a server.

    :param server: a name of the ``server`` fixture
    :param test: name of a test function
    :returns: the declaration, None where there is none
    """
    name = test.removeprefix("test_")
    return next((entry for entry in UNSUPPORTED.get(server, ()) if name in entry.tests), None)


def check_failure(entry: Unsupported, failure: BaseException | None) -> str | None:
    """Compares what a declared test did with its declaration.

    :param failure: what the test raised, None where it passed
    :returns: what is wrong with the declaration; None where the test failed as declared
    """
    if failure is None:
        return f"declared as unsupported in tests/support/contract/unsupported.py, but it passes: {entry.reason}"
    text = f"{type(failure).__name__}: {failure}"
    if not re.search(entry.refusal, text, re.DOTALL):
        return f"declared as unsupported, but it fails in another way than {entry.refusal!r}: {text}"
    return None
