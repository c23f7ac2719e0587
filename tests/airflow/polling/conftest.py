"""Check that no wait leaves a connection or a thread behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_sftp_backend._polling.shared_connection import SharedConnection
from tests.support.airflow.triggers import waiting_threads
from tests.support.servers import wait_until


@pytest.fixture(autouse=True)
def nobody_waits_at_the_end() -> Iterator[None]:
    """Check that no wait leaves a connection or a thread."""
    yield
    assert SharedConnection._instances == {}
    # A listing of a large directory, which nobody waits for any more, takes half a minute on a busy machine.
    wait_until(lambda: not waiting_threads(), "threads to end", timeout=60)
