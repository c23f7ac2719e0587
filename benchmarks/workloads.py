"""Run every client on each workload, in several rounds.

The results are compared byte by byte.
"""

from __future__ import annotations

import filecmp
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .rivals import CAT, HOOK, SFTP, Rival, Work
from .site import Site
from .targets import Options

FILES: Final = 500
SIZE: Final = 10 << 10
NAMES: Final = 10_000


class WrongBytes(Exception):
    """A client did not do what it was asked to."""


@dataclass(frozen=True)
class Workload:
    """Describe a transfer, and the least speed that we accept.

    :ivar targets: speed as a multiple of the sftp command's: on loopback, and over a long round trip
    :ivar rivals: speed as a multiple of each rival's, on loopback
    """

    name: str
    title: str
    targets: tuple[float | None, float | None]
    rivals: Mapping[str, float] = field(default_factory=lambda: {HOOK.name: 1.5})


WORKLOADS: Final = (
    Workload("up", "{size} MiB up", (1.7, 6), {CAT.name: 1.0, HOOK.name: 1.5}),
    Workload("down", "{size} MiB down", (1.8, 8), {CAT.name: 0.8, HOOK.name: 1.5}),
    Workload("many_up", "{files} x 10 KiB up", (1.0, 30)),
    Workload("many_down", "{files} x 10 KiB down", (1.0, 30)),
    Workload("names", "list {names:,} names", (1.5, 10)),
    Workload("delete", "delete {files} files", (1.0, 30)),
    Workload("connect", "connect", (None, None)),
)


@dataclass(frozen=True)
class Spent:
    """Seconds by the clock, and of the processor."""

    seconds: float
    processor: float


def spent_by(work: Callable[[], object]) -> Spent:
    """Return the time that some work takes."""
    began, used = time.perf_counter(), processor()
    work()
    return Spent(time.perf_counter() - began, processor() - used)


@dataclass
class Result:
    """Hold the seconds of each round by client.

    These are wall clock time and CPU time of the client's processes.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    processor: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str) -> float:
        """A client's speed as a multiple of the sftp command's."""
        return self.median(SFTP.name) / self.median(name)

    def cpu(self, name: str) -> float:
        """Seconds of CPU."""
        return statistics.median(self.processor[name])


class Bench:
    """Files to transfer, and their places at a site."""

    def __init__(self, site: Site, size: int, options: Options) -> None:
        """Create the files.

        :param site: the server
        :param size: MiB of the large file
        :param options: the scale of the numbers of files
        """
        self.site = site
        self._counts = {"size": size, "files": options.count(FILES), "names": options.count(NAMES)}
        self._large = site.here / "large"
        self._small = site.here / "small"
        with self._large.open("wb") as file:
            for _ in range(size):
                file.write(os.urandom(1 << 20))
        self._small.mkdir()
        for number in range(self._counts["files"]):
            (self._small / f"file-{number:04}").write_bytes(os.urandom(SIZE))
        self._listed = site.there / "names"
        self._listed.mkdir()
        for number in range(self._counts["names"]):
            (self._listed / f"name-{number:05}").touch()
        (site.there / "large").hardlink_to(self._large)

    def title(self, workload: Workload) -> str:
        """Return the title of a workload with sizes and numbers."""
        return workload.title.format(**self._counts)

    def measure(self, workload: Workload, clients: Sequence[Rival], rounds: int) -> Result:
        """``rounds`` times by each client, who take turns. Raises WrongBytes."""
        result = Result()
        able = [(client, work) for client in clients if (work := client.work(workload.name)) is not None]
        for client, _ in able:  # loads its modules, as a task has done already
            if client.connect is not None:
                client.connect(self.site, self.site.here, self.site.remote(self.site.there))
        for number in range(rounds):
            for at in range(len(able)):
                client, work = able[(at + number) % len(able)]  # nobody always comes first
                spent = getattr(self, f"_{workload.name}")(client.name, work)
                result.seconds.setdefault(client.name, []).append(spent.seconds)
                result.processor.setdefault(client.name, []).append(spent.processor)
        return result

    def _timed(self, work: Work, local: Path, remote: Path) -> Spent:
        return spent_by(lambda: work(self.site, local, self.site.remote(remote)))

    def _up(self, name: str, work: Work) -> Spent:
        target = self.site.there / "up"
        spent = self._timed(work, self._large, target)
        _compare(name, self._large, target)
        target.unlink()
        return spent

    def _down(self, name: str, work: Work) -> Spent:
        target = self.site.here / "down"
        spent = self._timed(work, target, self.site.there / "large")
        _compare(name, self._large, target)
        target.unlink()
        return spent

    def _many_up(self, name: str, work: Work) -> Spent:
        with _folder(self.site.there / "many") as target:
            spent = self._timed(work, self._small, target)
            _compare_folders(name, self._small, target)
        return spent

    def _many_down(self, name: str, work: Work) -> Spent:
        with _folder(self.site.there / "many") as source, _folder(self.site.here / "back") as target:
            shutil.copytree(self._small, source, dirs_exist_ok=True)
            spent = self._timed(work, target, source)
            _compare_folders(name, self._small, target)
        return spent

    def _names(self, _: str, work: Work) -> Spent:
        return self._timed(work, self.site.here, self._listed)

    def _connect(self, _: str, work: Work) -> Spent:
        return self._timed(work, self.site.here, self.site.there)

    def _delete(self, name: str, work: Work) -> Spent:
        with _folder(self.site.there / "doomed") as target:
            shutil.copytree(self._small, target, dirs_exist_ok=True)
            spent = self._timed(work, self.site.here, target)
            if target.exists():
                raise WrongBytes(f"{name}: {target} is still there")
        return spent


def processor() -> float:
    """Return the CPU seconds of this process and its ended children.

    The times of ``getrusage`` are exact, those of ``os.times`` are multiples of 10 ms.
    """
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """An empty folder, for as long as the block."""
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _compare(name: str, sent: Path, arrived: Path) -> None:
    if not filecmp.cmp(sent, arrived, shallow=False):
        raise WrongBytes(f"{name}: {arrived} is not {sent}")


def _compare_folders(name: str, sent: Path, arrived: Path) -> None:
    names = sorted(path.name for path in sent.iterdir())
    if sorted(path.name for path in arrived.iterdir()) != names:
        raise WrongBytes(f"{name}: {arrived} holds other files than {sent}")
    _, different, unread = filecmp.cmpfiles(sent, arrived, names, shallow=False)
    if different or unread:
        raise WrongBytes(f"{name}: {[*different, *unread]} in {arrived} differ")
