"""A killed download leaves the old or the new file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest

from airflow_sftp_backend.backend._transfers import atomic_local_file
from airflow_sftp_backend.backend._transfers import local_files as local_file_rules
from tests.support.faults.cases import CASES, Case, World, local_files, run, set_local
from tests.support.faults.network import Killed
from tests.support.faults.outcomes import leftovers, state_of

STEPS: Final = frozenset({"open", "write", "fchmod", "link", "unlink", "replace", "ftruncate"})
DOWNLOADS: Final = [case for case in CASES if case.name.startswith("download")]


class KilledAt:
    """Replace the module ``os``: end the process at a numbered change."""

    def __init__(self, number: float, *, after: bool, local: Path) -> None:
        self.steps = 0
        self.held: dict[str, bytes] | None = None
        self._number = number
        self._after = after
        self._local = local

    def __getattr__(self, name: str) -> Any:
        return self._counted(getattr(os, name)) if name in STEPS else getattr(os, name)

    def _counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.held is not None:
                return step(*arguments, **options)  # the clean-up of a process that is gone: undone afterwards
            self.steps += 1
            if self.steps == self._number and not self._after:
                self._kill()
            try:
                result = step(*arguments, **options)
            except OSError:
                if self.steps == self._number:
                    self._kill()
                raise
            if self.steps == self._number:
                if step is os.open:
                    os.close(result)
                self._kill()
            return result

        return call

    def _kill(self) -> None:
        self.held = local_files(self._local)
        raise Killed


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Disable the log, which is useless for so many runs."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("case", DOWNLOADS, ids=lambda case: case.name.replace(", ", "-").replace(" ", "_"))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_download_killed_at_a_local_step_leaves_old_or_new_content(case: Case, after: bool, tmp_path: Path) -> None:
    local, number, over = tmp_path / "local", 0, False
    while not over:
        number += 1
        world = World.of(case, local)
        steps = KilledAt(number, after=after, local=local)
        with mock.patch.object(atomic_local_file, "os", steps), mock.patch.object(local_file_rules, "os", steps):
            result = run(case, world)
        over = steps.held is None
        if steps.held is not None:
            assert isinstance(result.error, Killed)
            set_local(local, steps.held)
        assert state_of(result) in ("old", "new"), number
        for path in local.iterdir():
            os.utime(path, (1_600_000_000, 1_600_000_000))  # more than an hour later
        again = run(case, world.copied())
        assert state_of(again) == "new"
        assert not leftovers(again.world, case) or again.error is not None
    assert number > 5
