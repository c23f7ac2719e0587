"""Provide one cluster for all tests, and a scenario for each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster.cluster import Cluster, missing
from tests.support.cluster.page import Page, installed_versions
from tests.support.cluster.scenario import Scenario

NO_CLUSTER = "NOT TESTED ON A CLUSTER: it needs "


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the page that is written from a run."""
    parser.addoption(
        "--cluster-page", metavar="FILE", type=Path, help="write the results of the scenarios to this file"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collects results if the page is requested."""
    page: Path | None = config.getoption("--cluster-page", default=None)
    if page is not None:
        config.pluginmanager.register(Page(page, installed_versions()))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster; skips the test where it cannot be started."""
    if (lack := missing()) is not None:
        pytest.skip(f"{NO_CLUSTER}{lack}")
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def scenario(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Scenario]:
    """Provide a scenario with its own directory and connection."""
    cluster.restore()
    assert cluster.link is not None
    name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))[-80:].strip("-")
    scenario = Scenario(name, cluster, cluster.link, cluster.server.fresh().path)
    yield scenario
    scenario.log(f"result: {'; '.join(scenario.results)}")
    cells = (scenario.title, scenario.results, scenario.sent_again)
    request.node.user_properties += [("scenario", cells), ("start", f"{cluster.seconds_to_start:.0f}")]
    request.node.user_properties.append(("pss", f"{cluster.memory() / (1 << 30):.1f}"))
    scenario.remove_files()
    cluster.link.forget_lost()
    cluster.link.hold_replies_when(None)
    cluster.start_missing()
