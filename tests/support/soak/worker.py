"""Run mixed operations, and compare them with a model.

``python -m tests.support.soak.worker SETTINGS`` (JSON of `Settings`) writes a JSON report to standard output. An
operation that fails leaves its names undecided: each may hold the old or the new content. They are not used again, and
compared at the end like the others.
"""

from __future__ import annotations

import ctypes
import gc
import json
import random
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from airflow_sftp_backend import BackendUnavailable, RetryPolicy, SFTPBackend, SFTPUtils
from airflow_sftp_backend.backend.models import Verify

MiB: Final = 1 << 20
MAX_FILES: Final = 40
MAX_IN_MEMORY: Final = 4 * MiB
IO_TIMEOUT: Final = 8.0
SAMPLE_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Content:
    """Content of a file: a part of shared random bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class Settings:
    """Settings of a process.

    :ivar folder: directory on the server, as path of the server
    :ivar scratch: local directory of the process
    :ivar pool: file with random bytes
    """

    number: int
    seed: int
    seconds: float
    quota: int
    port: int
    username: str
    key: str
    known_hosts: str
    folder: str
    scratch: str
    pool: str


@dataclass
class Report:
    """Count the work of a process, and list what it found wrong."""

    operations: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    transferred: int = 0
    logins: int = 0
    resumed: int = 0
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)
    """Seconds, descriptors, threads and resident bytes."""
    files: dict[str, list[tuple[int, int] | None]] = field(default_factory=dict)
    """The contents that each name may have; None for no file."""
    moves: list[tuple[str, str, int, int]] = field(default_factory=list)
    """Source, target and content of undecided moves: one of the two names has the content."""


class Worker:
    """Run operations until the time is over.

    :param settings: the settings
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._random = random.Random(settings.seed)
        self._scratch = Path(settings.scratch)
        self._pool = Path(settings.pool).open("rb")  # noqa: SIM115 - open as long as the process
        self._pool_size = Path(settings.pool).stat().st_size
        self._files: dict[str, Content] = {}
        self._undecided: dict[str, set[Content | None]] = {}
        self._next_name = 0
        self.report = Report()
        self._backend = SFTPBackend(
            "127.0.0.1",
            port=settings.port,
            username=settings.username,
            pkey=SFTPUtils.load_private_key(settings.key, from_file=True),
            known_host_keys=settings.known_hosts,
            base_path=settings.folder,
            io_timeout=IO_TIMEOUT,
            retry=RetryPolicy(max_attempts=8, backoff_base=0.2, backoff_max=2.0, jitter=0.2),
            config={"keepalive_interval": 2.0},
        )

    def run(self) -> Report:
        """Run operations, no faster than the quota needs, and return the report."""
        kinds = [
            (self._upload, 6), (self._upload_many, 3), (self._download, 6), (self._download_many, 2),
            (self._write, 3), (self._stream, 2), (self._read, 3), (self._copy, 2), (self._move, 3), (self._delete, 2),
            (self._list, 2),
        ]  # fmt: skip
        operations, weights = [kind for kind, _ in kinds], [weight for _, weight in kinds]
        start = last_sample = time.monotonic()
        with self._backend:
            while (elapsed := time.monotonic() - start) < self._settings.seconds:
                if self.report.transferred / self._settings.quota > elapsed / self._settings.seconds:
                    time.sleep(0.1)
                else:
                    self._try(self._random.choices(operations, weights)[0])
                if time.monotonic() - last_sample >= SAMPLE_SECONDS:
                    last_sample = time.monotonic()
                    self._sample(last_sample - start)
            self.report.logins = self._backend.statistics.logins
            self.report.resumed = self._backend.statistics.resumed_transfers
        contents = {name: {content} for name, content in self._files.items()} | self._undecided
        self.report.files = {
            name: [None if one is None else (one.offset, one.size) for one in allowed]
            for name, allowed in contents.items()
        }
        return self.report

    def _try(self, operation: Callable[[], None]) -> None:
        kind = operation.__name__.strip("_")
        self.report.operations[kind] += 1
        try:
            operation()
        except BackendUnavailable as error:
            self.report.failures[type(error).__name__] += 1
        except ExceptionGroup as group:
            if group.split(BackendUnavailable)[1] is None:
                self.report.failures["BackendUnavailable"] += len(group.exceptions)
            else:
                self.report.problems.append(f"{kind}: {''.join(traceback.format_exception(group))}")
        except Exception as error:  # noqa: BLE001 - whatever it is, the report shows it
            self.report.problems.append(f"{kind}: {''.join(traceback.format_exception(error))}")

    def _sample(self, seconds: float) -> None:
        # Garbage, and what the allocator keeps for reuse, are no leaks.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        process = psutil.Process()
        row = (seconds, process.num_fds(), threading.active_count(), process.memory_info().rss)
        self.report.samples.append(row)

    # -- contents and names ---------------------------------------------------------------------------------------

    def _content(self, most: int) -> Content:
        """Choose a content; small ones are as likely as large ones."""
        size = int(2 ** self._random.uniform(0, most.bit_length() - 1))
        return Content(self._random.randrange(self._pool_size - size), size)

    def _blocks(self, content: Content) -> Iterator[bytes]:
        """Yield the content in blocks, to keep memory constant."""
        for start in range(0, content.size, MiB):
            yield self._bytes(Content(content.offset + start, min(MiB, content.size - start)))

    def _bytes(self, content: Content) -> bytes:
        self._pool.seek(content.offset)
        return self._pool.read(content.size)

    def _target(self) -> str:
        """Choose a new name, or one to replace."""
        if len(self._files) >= MAX_FILES or (self._files and self._random.random() < 0.3):
            return self._random.choice(list(self._files))
        self._next_name += 1
        return f"{self._random.choice(['a', 'b', 'deep/c'])}/{self._next_name}"

    def _any(self) -> str | None:
        return self._random.choice(list(self._files)) if self._files else None

    def _local(self, name: str, content: Content) -> Path:
        path = self._scratch / name.replace("/", "-")
        with path.open("wb") as file:
            file.writelines(self._blocks(content))
        return path

    def _attempt(self, changes: dict[str, Content | None], call: Callable[[], object]) -> None:
        """Call, with names undecided until the call has succeeded."""
        for name, content in changes.items():
            self._undecided[name] = {self._files.pop(name, None), content}
        call()
        for name, content in changes.items():
            del self._undecided[name]
            if content is not None:
                self._files[name] = content

    def _check(self, name: str, actual: bytes, content: Content) -> None:
        if actual != self._bytes(content):
            self.report.problems.append(f"{name} differs from what was written")
        self.report.transferred += content.size

    def _check_file(self, name: str, path: Path, content: Content) -> None:
        with path.open("rb") as file:
            is_equal = all(file.read(len(block)) == block for block in self._blocks(content)) and not file.read(1)
        if not is_equal:
            self.report.problems.append(f"{name} differs from what was written")
        self.report.transferred += content.size

    # -- operations -----------------------------------------------------------------------------------------------

    def _upload(self) -> None:
        name, content = self._target(), self._content(64 * MiB)
        local = self._local(name, content)
        verify: Verify = self._random.choice(("size", "size", "sha256"))
        try:
            self._attempt(
                {name: content},
                lambda: self._backend.upload(local, name, overwrite=True, verify=verify, resume_key="soak"),
            )
        finally:
            local.unlink()
        self.report.transferred += content.size * (2 if verify == "sha256" else 1)

    def _upload_many(self) -> None:
        names = list(dict.fromkeys(self._target() for _ in range(12)))
        contents: dict[str, Content | None] = {name: self._content(256 << 10) for name in names}
        pairs = [(self._local(name, content), name) for name, content in contents.items() if content is not None]
        try:
            self._attempt(contents, lambda: self._backend.upload_many(pairs, overwrite=True))
        finally:
            for local, _ in pairs:
                local.unlink()
        self.report.transferred += sum(content.size for content in contents.values() if content is not None)

    def _download(self) -> None:
        if (name := self._any()) is None:
            return
        local = self._scratch / "downloaded"
        try:
            self._backend.download(name, local, overwrite=True)
            self._check_file(name, local, self._files[name])
        finally:
            local.unlink(missing_ok=True)

    def _download_many(self) -> None:
        names = [name for name, content in self._files.items() if content.size < MiB]
        local = {name: self._scratch / f"many-{number}" for number, name in enumerate(names)}
        try:
            self._backend.download_many(list(local.items()), overwrite=True)
            for name, path in local.items():
                self._check_file(name, path, self._files[name])
        finally:
            for path in local.values():
                path.unlink(missing_ok=True)

    def _write(self) -> None:
        name, content = self._target(), self._content(MAX_IN_MEMORY)
        self._attempt({name: content}, lambda: self._backend.write_atomic(name, self._bytes(content), overwrite=True))
        self.report.transferred += content.size

    def _stream(self) -> None:
        name, content = self._target(), self._content(MAX_IN_MEMORY)

        def write() -> None:
            data = self._bytes(content)
            with self._backend.open_atomic(name, overwrite=True) as file:
                for start in range(0, len(data), 100_000):
                    file.write(data[start : start + 100_000])

        self._attempt({name: content}, write)
        self.report.transferred += content.size

    def _read(self) -> None:
        if (name := self._any()) is None:
            return
        content = self._files[name]
        start = self._random.randrange(content.size)
        part = Content(content.offset + start, min(content.size - start, MAX_IN_MEMORY))
        with self._backend.read(name) as file:
            file.seek(start)
            self._check(name, file.read(part.size), part)

    def _copy(self) -> None:
        if (source := self._any()) is None:
            return
        target, content = self._target(), self._files[source]
        if target != source:
            self._attempt({target: content}, lambda: self._backend.copy(source, target, overwrite=True))

    def _move(self) -> None:
        if (source := self._any()) is None:
            return
        target, content = self._target(), self._files[source]
        if target != source:
            self.report.moves.append((source, target, content.offset, content.size))
            self._attempt({target: content, source: None}, lambda: self._backend.move(source, target, overwrite=True))
            self.report.moves.pop()

    def _delete(self) -> None:
        if (name := self._any()) is not None:
            self._attempt({name: None}, lambda: self._backend.delete(name))

    def _list(self) -> None:
        expected = {name: content.size for name, content in self._files.items()}
        listed = {info.path: info.size for info in self._backend.list_files("", recursive=True)}
        wrong = {name: size for name, size in expected.items() if listed.get(name) != size}
        unknown = listed.keys() - expected.keys() - self._undecided.keys()
        if wrong or unknown:
            self.report.problems.append(f"the listing has {sorted(unknown)} and not {wrong}")


def main() -> None:
    """Run the process that the argument describes."""
    report = Worker(Settings(**json.loads(sys.argv[1]))).run()
    json.dump(vars(report), sys.stdout)  # asdict breaks counters in Python 3.11


if __name__ == "__main__":
    main()
