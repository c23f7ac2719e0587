"""Failed attempts are counted, and pauses between attempts follow the policy."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import RetryPolicy
from airflow_sftp_backend.backend._backoff import Backoff

policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 12),
    backoff_base=st.floats(0, 10),
    backoff_max=st.floats(0, 100),
    jitter=st.floats(0, 5),
)


@given(policies, st.floats(0, 1, exclude_max=True))
def test_a_policy_allows_as_many_attempts_as_it_names(policy: RetryPolicy, chance: float) -> None:
    backoff, pauses = Backoff(policy, lambda: chance), []
    while True:
        pause = backoff.fail()
        if backoff.exhausted:
            break
        pauses.append(pause)
    assert backoff.failures == policy.max_attempts
    assert pauses == [policy.pause(attempt, chance) for attempt in range(1, policy.max_attempts)]


@given(policies)
def test_pauses_beyond_the_policy_are_as_long_as_its_last(policy: RetryPolicy) -> None:
    backoff = Backoff(policy, lambda: 0.0)
    pauses = [backoff.fail() for _ in range(20)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == policy.pause(max(1, policy.max_attempts - 1), 0.0)


def test_progress_starts_the_pauses_again() -> None:
    backoff = Backoff(RetryPolicy(max_attempts=sys.maxsize, jitter=0))
    assert [backoff.fail() for _ in range(4)] == [1, 2, 4, 8]
    backoff.reset()
    assert (backoff.failures, backoff.fail()) == (0, 1)


def test_random_time_is_added_anew_to_each_pause() -> None:
    chances = iter([0.0, 0.5, 0.25])
    backoff = Backoff(RetryPolicy(max_attempts=9, backoff_base=1, backoff_max=1, jitter=4), lambda: next(chances))
    assert [backoff.fail() for _ in range(3)] == [1, 3, 2]
