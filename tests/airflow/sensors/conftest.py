"""Fixtures for the tests of the sensor."""

from __future__ import annotations

from typing import cast

import pytest

from tests.support.airflow.sensors import MODES, Mode


@pytest.fixture(params=MODES, ids=lambda mode: mode.replace(" ", "_"))
def mode(request: pytest.FixtureRequest) -> Mode:
    """Each mode of waiting; Airflow before 3.3 keeps no state."""
    return cast("Mode", request.param)
