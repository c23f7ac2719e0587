"""Find files that a target would store under one name."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend.backend import BackendUnavailable, SFTPBackendError

from .ends import SyncEnds
from .spellings import ANY_RULES, NameRules, merged_paths

log = logging.getLogger(__name__)


def target_rules(ends: SyncEnds) -> NameRules:
    """Test the names of the target.

    If the target refuses the test, suppose that it ignores every difference.

    :param ends: the directories
    :returns: the rules of the target
    :raises BackendUnavailable: if the connection is lost
    """
    try:
        return ends.probe_target()
    except BackendUnavailable:
        raise
    except (SFTPBackendError, OSError) as error:
        log.warning(
            "names with different spellings count as one name, because the target refuses a test file: %s", error
        )
        return ANY_RULES


def check_distinct_targets(ends: SyncEnds, targets: Sequence[str]) -> None:
    """Check that a target distinguishes the names of files.

    The target is tested only if two names differ in their spelling alone, such as in case.

    :param ends: the directories; the names are tested in the target
    :param targets: the paths of the files to write
    :raises InvalidArgument: if the target takes two of them for one
    :raises BackendUnavailable: if the connection is lost
    """
    merged = merged_paths(targets, targets, ANY_RULES)
    if merged:
        merged = merged_paths(targets, targets, target_rules(ends))
    if merged:
        path, other = min(merged.items())
        raise InvalidArgument(
            f"the target takes {path!r} and {other!r} for one name ({len(merged)} files are affected); nothing was"
            " changed. Rename the files, or give them separate targets"
        )
