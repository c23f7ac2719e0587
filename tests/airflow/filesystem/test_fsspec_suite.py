"""Run fsspec's own test suite for implementations."""

from __future__ import annotations

import pytest
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

from airflow_sftp_backend.filesystem import SFTPBackendFileSystem


class Fixtures(AbstractFixtures):
    """Run the suite in a directory that is not the root."""

    @pytest.fixture
    def fs(self, fs: SFTPBackendFileSystem) -> SFTPBackendFileSystem:
        return fs

    @pytest.fixture
    def fs_path(self) -> str:
        return "/suite"


class TestCopy(AbstractCopyTests, Fixtures):
    pass


class TestGet(AbstractGetTests, Fixtures):
    pass


class TestPut(AbstractPutTests, Fixtures):
    pass


class TestOpen(AbstractOpenTests, Fixtures):
    pass


class TestPipe(AbstractPipeTests, Fixtures):
    pass
