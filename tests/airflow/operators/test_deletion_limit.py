"""The argument ``max_delete`` of a sync limits its deletions."""

from __future__ import annotations

import pytest

from airflow_sftp_backend.operators._sync.deletion_limit import check_max_delete, exceeds_max_delete


@pytest.mark.parametrize(
    ("limit", "extra", "target", "exceeds"),
    [
        (None, 9, 9, False),
        (0, 0, 9, False),
        (0, 1, 9, True),
        (3, 3, 9, False),
        (3, 4, 9, True),
        ("50%", 5, 10, False),
        ("50%", 6, 10, True),
        ("12.5 %", 1, 8, False),
        ("0%", 0, 0, False),
        ("100%", 9, 9, False),
    ],
)
def test_a_limit_is_a_number_or_a_share_of_the_target(
    limit: int | str | None, extra: int, target: int, exceeds: bool
) -> None:
    check_max_delete(limit, deletes=True)
    assert exceeds_max_delete(limit, [""] * extra, [""] * target) == exceeds


@pytest.mark.parametrize("limit", [-1, True, 1.5, "5", "101%", "%", "five%", [1]])
def test_other_limits_are_refused(limit: object) -> None:
    with pytest.raises(ValueError, match=r"max_delete is .*; expected a number of files, or a percentage"):
        check_max_delete(limit, deletes=True)


def test_a_limit_without_deletions_is_refused() -> None:
    with pytest.raises(ValueError, match="set delete=True"):
        check_max_delete(3, deletes=False)
