"""Limit the deletions of a sync by ``max_delete``."""

from __future__ import annotations

import re
from collections.abc import Collection

from airflow_sftp_backend._arguments import InvalidArgument


def check_max_delete(value: object, *, deletes: bool) -> None:
    """Check the value of ``max_delete`` when the DAG is parsed.

    :param value: a number of files, a percentage such as ``"10%"``, or None
    :param deletes: the value of ``delete``
    :raises InvalidArgument: for other values, and for a limit without ``delete``
    """
    if value is None:
        return
    if not deletes:
        raise InvalidArgument("max_delete limits the deletions of delete=True; set delete=True, or omit max_delete")
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not is_number and _percentage(value) is None:
        raise InvalidArgument(f"max_delete is {value!r}; expected a number of files, or a percentage such as '10%'")


def _percentage(value: object) -> float | None:
    """Return the number of a percentage; None for other values."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value) if isinstance(value, str) else None
    return float(match[1]) if match is not None and float(match[1]) <= 100 else None


def exceeds_max_delete(value: int | str | None, extra: Collection[str], target: Collection[str]) -> bool:
    """Tell whether the deletions of a sync exceed their limit.

    :param value: a number of files, a percentage of the files of the target, or None
    :param extra: the files to delete
    :param target: the files of the target
    :returns: True if the limit is exceeded
    """
    if value is None:
        return False
    if isinstance(value, int):
        return len(extra) > value
    return len(extra) * 100 > (_percentage(value) or 0.0) * len(target)
