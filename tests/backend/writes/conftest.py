"""Kinds of servers, and operations that commit a file."""

from __future__ import annotations

import pytest

from tests.support.atomic_writes import OPERATIONS, RENAMES
from tests.support.memory_server import Renames


@pytest.fixture(params=RENAMES, ids=lambda name: name.replace(" ", "_"))
def renames(request: pytest.FixtureRequest) -> Renames:
    """Each kind of server."""
    return RENAMES[request.param]


@pytest.fixture(params=OPERATIONS)
def name(request: pytest.FixtureRequest) -> str:
    """Each operation that commits a file."""
    found: str = request.param
    return found
