"""Define the operations under fault, with files before and after."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from airflow_sftp_backend import SFTPBackend, SFTPBackendError
from tests.support.faults.network import Clock, Fault, Killed, Network
from tests.support.faults.server_model import ModelServer, Traits

OLD, OTHER = b"the old content", b"what must never change"
NEW: Final = bytes(number % 251 for number in range(9_000))
"""Three blocks, of which no two are alike."""
LARGE: Final = bytes(range(251)) * 7_000
"""Content that is worth several channels."""

OPENSSH: Final = Traits(banner="SSH-2.0-OpenSSH_9.2p1", further_extensions=("fstatvfs@openssh.com",))
SERVERS: Final = {
    "OpenSSH": OPENSSH,
    "unknown, posix-rename": Traits(copy_data=False),
    "unknown, plain rename": Traits(posix_rename="absent", copy_data=False),
    "unknown, posix-rename refuses a taken name": Traits(posix_rename="refuses", copy_data=False),
}


@dataclass(frozen=True)
class Case:
    """One operation on one server.

    ``before`` and ``after`` are the files on the server that the operation is about, by path; None: there is none.
    ``local_before`` and ``local_after`` are those on this machine.
    """

    name: str
    act: Callable[[SFTPBackend, Path], object]
    before: Mapping[str, bytes | None]
    after: Mapping[str, bytes | None]
    local_before: Mapping[str, bytes | None] = field(default_factory=dict)
    local_after: Mapping[str, bytes | None] = field(default_factory=dict)
    several: bool = False
    """Each file is changed by itself: some may be old and others new."""
    paths: tuple[str, ...] = ("in/target",)
    """Paths that an error may name."""
    traits: Traits = OPENSSH

    def on(self, traits: Traits) -> Case:
        """The same on another kind of server."""
        if self.traits.limit != OPENSSH.limit:
            traits = replace(traits, limit=self.traits.limit)
        return replace(self, traits=replace(traits, renames_across=self.traits.renames_across))

    @property
    def has_two_step_replacement(self) -> bool:
        """Return whether a file is replaced by two plain renames."""
        replaces = any(old is not None and self.after[path] not in (None, old) for path, old in self.before.items())
        traits = self.traits
        if not replaces or traits.plain_rename == "replaces" or "OpenSSH" in traits.banner:
            return False
        return traits.posix_rename != "replaces" or not traits.renames_across


def files(**named: bytes | None) -> dict[str, bytes | None]:
    """Files on the server by their names: ``in_target`` is ``/data/in/target``."""
    return {f"/data/{name.replace('_', '/')}": content for name, content in named.items()}


def _delete_folder(backend: SFTPBackend, local: Path) -> None:
    backend.delete_folder("tree", recursive=True, missing_ok=True)


def _open_atomic(backend: SFTPBackend, local: Path) -> None:
    with backend.open_atomic("in/target", overwrite=True) as file:
        file.write(NEW)


_TREE: Final = files(tree_a=NEW, tree_b=NEW, tree_c_a=NEW, tree_c_d_a=NEW)

UPLOAD: Final = Case(
    "upload, replacing",
    lambda backend, local: backend.upload(local / "source", "in/target", overwrite=True),
    before=files(in_target=OLD),
    after=files(in_target=NEW),
    local_before={"source": NEW},
    local_after={"source": NEW},
)
MOVE: Final = Case(
    "move, replacing",
    lambda backend, local: backend.move("out/source", "in/target", overwrite=True),
    before=files(out_source=NEW, in_target=OLD),
    after=files(out_source=None, in_target=NEW),
    paths=("in/target", "out/source"),
)
COPY: Final = Case(
    "copy, replacing",
    lambda backend, local: backend.copy("out/source", "in/target", overwrite=True),
    before=files(out_source=NEW, in_target=OLD),
    after=files(out_source=NEW, in_target=NEW),
    paths=("in/target", "out/source"),
)
DOWNLOAD: Final = Case(
    "download, replacing",
    lambda backend, local: backend.download("in/source", local / "target", overwrite=True),
    before=files(in_source=NEW),
    after=files(in_source=NEW),
    local_before={"target": OLD},
    local_after={"target": NEW},
    paths=("in/source",),
)
NOTHING: Final = files(in_target=None)

CASES: Final = (
    UPLOAD,
    replace(
        UPLOAD,
        name="upload, new name",
        act=lambda backend, local: backend.upload(local / "source", "in/target"),
        before=NOTHING,
    ),
    replace(
        UPLOAD,
        name="upload with resume_key",
        act=lambda backend, local: backend.upload(local / "source", "in/target", overwrite=True, resume_key="the task"),
    ),
    replace(
        UPLOAD,
        name="upload over 3 channels",
        act=lambda backend, local: backend.upload(local / "source", "in/target", overwrite=True, channels=3),
        after=files(in_target=LARGE),
        local_before={"source": LARGE},
        local_after={"source": LARGE},
        traits=replace(OPENSSH, limit=1 << 18),
    ),
    Case(
        "upload_many, replacing",
        lambda backend, local: backend.upload_many([(local / name, f"in/{name}") for name in "abc"], overwrite=True),
        before=files(in_a=OLD, in_b=OLD, in_c=OLD),
        after=files(in_a=NEW, in_b=NEW, in_c=NEW),
        local_before=dict.fromkeys("abc", NEW),
        local_after=dict.fromkeys("abc", NEW),
        several=True,
        paths=("in/a", "in/b", "in/c"),
    ),
    replace(
        UPLOAD,
        name="write_atomic, replacing",
        act=lambda backend, local: backend.write_atomic("in/target", NEW, overwrite=True),
        local_before={},
        local_after={},
    ),
    replace(
        UPLOAD,
        name="write_atomic, new name",
        act=lambda backend, local: backend.write_atomic("in/target", NEW),
        before=NOTHING,
        local_before={},
        local_after={},
    ),
    replace(UPLOAD, name="open_atomic, replacing", act=_open_atomic, local_before={}, local_after={}),
    MOVE,
    replace(
        MOVE,
        name="move, new name",
        act=lambda backend, local: backend.move("out/source", "in/target"),
        before=files(out_source=NEW) | NOTHING,
    ),
    replace(MOVE, name="move between file systems", traits=replace(OPENSSH, renames_across=False)),
    Case(
        "move_many, replacing",
        lambda backend, local: backend.move_many([("out/a", "in/a"), ("out/b", "in/b")], overwrite=True),
        before=files(out_a=NEW, out_b=NEW, in_a=OLD, in_b=OLD),
        after=files(out_a=None, out_b=None, in_a=NEW, in_b=NEW),
        several=True,
        paths=("in/a", "in/b", "out/a", "out/b"),
    ),
    COPY,
    replace(
        COPY,
        name="copy, new name",
        act=lambda backend, local: backend.copy("out/source", "in/target"),
        before=files(out_source=NEW) | NOTHING,
    ),
    Case(
        "delete_many",
        lambda backend, local: backend.delete_many(["in/a", "in/b", "in/c"], missing_ok=True),
        before=files(in_a=NEW, in_b=NEW, in_c=NEW),
        after=files(in_a=None, in_b=None, in_c=None),
        several=True,
        paths=("in/a", "in/b", "in/c"),
    ),
    Case(
        "delete_folder, recursive",
        _delete_folder,
        before=_TREE,
        after=dict.fromkeys(_TREE),
        several=True,
        paths=("tree", "tree/a", "tree/b", "tree/c", "tree/c/a", "tree/c/d", "tree/c/d/a"),
    ),
    DOWNLOAD,
    replace(
        DOWNLOAD,
        name="download, new name",
        act=lambda backend, local: backend.download("in/source", local / "target"),
        local_before={"target": None},
    ),
    replace(
        DOWNLOAD,
        name="download with resume_key",
        act=lambda backend, local: backend.download("in/source", local / "target", overwrite=True, resume_key="task"),
    ),
)  # fmt: skip


@dataclass
class World:
    """A server and a directory on this machine."""

    server: ModelServer
    clock: Clock
    local: Path

    @classmethod
    def of(cls, case: Case, local: Path) -> World:
        """The world before the operation; ``local`` is emptied."""
        clock = Clock()
        server = ModelServer(case.traits, clock)
        for folder in ("/data/in", "/data/out"):
            server.add(folder)
        server.add("/data/in/other", OTHER, age=86_400)
        server.add("/outside/other", OTHER, age=86_400)
        for path, content in case.before.items():
            if content is not None:
                server.add(path, content, age=86_400)
        set_local(local, {name: content for name, content in case.local_before.items() if content is not None})
        return cls(server, clock, local)

    def copied(self) -> World:
        """The same server once more, over the same local directory."""
        clock = Clock(self.clock.now)
        nodes = copy.deepcopy(self.server.nodes)
        return World(ModelServer(self.server.traits, clock, nodes), clock, self.local)


def local_files(folder: Path) -> dict[str, bytes]:
    """The content of the files in a local directory."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def set_local(folder: Path, held: Mapping[str, bytes]) -> None:
    """Make a local directory contain exactly these files."""
    folder.mkdir(exist_ok=True)
    there = local_files(folder)
    for name in there.keys() - held.keys():
        (folder / name).unlink()
    for name, content in held.items():
        if there.get(name) != content:
            (folder / name).write_bytes(content)
            os.utime(folder / name, (1_600_000_000, 1_600_000_000))


@dataclass
class Run:
    """A call and what became of it."""

    case: Case
    world: World
    network: Network
    error: BaseException | None = None
    seconds: float = 0.0
    """Return the duration of the call by the injected clock."""
    before_next: World | None = None
    """The world before the next call, if there was one."""
    handles: int = 0
    """Handles that were left open on the server, on a connection that still stood."""

    @property
    def world_after(self) -> World:
        """The world after the call, before the next."""
        return self.before_next or self.world

    @property
    def killed(self) -> bool:
        """True if the process ended."""
        return isinstance(self.error, Killed)


def run(
    case: Case,
    world: World,
    faults: Sequence[Fault] = (),
    *,
    then: Callable[[SFTPBackend, Path], object] | None = None,
    before: Callable[[int], object] = lambda number: None,
) -> Run:
    """Make the call with a new backend, as in another process.

    ``then`` is the next call with the same backend; it must succeed. ``before`` is called with the number of each
    message before the server carries it out.
    """
    network = Network(world.server, world.clock, faults)
    result = Run(case, world, network)
    held: dict[str, bytes] = {}
    network.before = before
    network.at_kill = lambda: held.update(local_files(world.local))
    started = world.clock.now
    with network.backend() as backend:
        try:
            case.act(backend, world.local)
        except (SFTPBackendError, ExceptionGroup, OSError, Killed) as error:
            result.error = error
        result.seconds = world.clock.now - started
        if then is not None:
            network.open_handles()  # time passes, and the server carries out what it was sent
            result.before_next = world.copied()
            network.end_faults()
            then(backend, world.local)
        try:
            if not result.killed:
                result.handles = network.open_handles()
        except Killed as error:
            result.error = error
    if network.killed:
        result.error = result.error if result.killed else Killed()
        set_local(world.local, held)  # what clean-up did to it
    return result


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fails if the block leaves a thread or a descriptor."""
    threads, descriptors = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
    yield
    assert set(threading.enumerate()) <= threads
    assert set(os.listdir("/proc/self/fd")) <= descriptors


def errors_in(error: BaseException | None) -> list[BaseException]:
    """The error, or those of a group."""
    if isinstance(error, BaseExceptionGroup):
        return [one for inner in error.exceptions for one in errors_in(inner)]
    return [] if error is None else [error]
