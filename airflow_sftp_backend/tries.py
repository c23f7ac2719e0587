"""What the tries of one task instance know of each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import UTC
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from ._state_store import load, save
from .backend import BackendUnavailable, SFTPBackendError
from .ends import Stamp, digest_of, is_url, opened_for_reading
from .plans import Found, Step, literally

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from .backend import FileInfo, SFTPBackend

Row = dict[str, Any]  # plain JSON: path, size in bytes, action, and the other end


class Try:
    """A try of the task: whether it is the first (``again``), what all tries have in common (``resume_key``), and what
    an earlier one has set out to move or delete, or has sent before it failed over something else.

    That is kept where Airflow can keep it from one try to the next: in its task state store, from 3.3; what was done
    elsewhere, before the connection was corrected, does not count. Without the store the
    next try of a move cannot tell, and fails for what is gone; that of a delete takes what is gone for deleted; that of
    an upload sends again what the partner has taken away.
    """

    _MOVES = "moves"
    _SENT = "sent"
    _MOST = 500  # files; the store is for small values

    def __init__(self, context: Context, backend: SFTPBackend) -> None:
        instance = context["ti"]
        self.again = (instance.try_number or 1) > 1
        self.resume_key = f"{instance.dag_id}/{instance.task_id}/{instance.run_id}/{instance.map_index}"
        self._context = context
        self._store = context.get("task_state_store")
        folder = backend.resolve("")
        self._replaced: dict[tuple[str, str], tuple[str, int | None, str | None]] = {}
        self._place = f"{backend.config.username}@{backend.address}{folder.native_path}"

    @cached_property
    def _noted(self) -> dict[tuple[str, str], tuple[str, int | None, str | None]]:
        """Source and target of moves -> the argument that named it, its size and time."""
        rows = self._kept(self._MOVES, self._place)
        return {(source, target): (name, size, modified) for source, target, name, size, modified in rows}

    @cached_property
    def _sent(self) -> dict[tuple[str, str], list[Any]]:
        """Source and target of uploads -> its size, stamp and SHA-256."""
        rows = self._kept(self._SENT, self._sending)
        return {(source, target): what for source, target, *what in rows}

    @property
    def _sending(self) -> str:
        """What uploads go to, until the task is cleared: whoever clears it wants all of it sent. Airflow gives a task
        that is cleared as many tries more as it has retries."""
        instance = self._context["ti"]
        return f"{instance.max_tries - (instance.task.retries or 0)} {self._place}"

    @property
    def date(self) -> str:
        """The date of the run in UTC, the same in every try: its logical date or, without one, when it was to run."""
        time = self._context.get("logical_date") or self._context["dag_run"].run_after
        return time.astimezone(UTC).date().isoformat()

    @property
    def remembers(self) -> bool:
        """True if it can know what an earlier try did."""
        return self._store is not None

    def _kept(self, key: str, about: str) -> list[list[Any]]:
        """The rows of the store under that key, if they are about that."""
        kept = load(self._store, key) if self._store is not None and self.again else {}
        return cast("list[list[Any]]", kept["rows"]) if kept.get("about") == about else []

    def _keep(self, key: str, about: str, rows: Sequence[Sequence[object]]) -> None:
        if self._store is not None and len(rows) <= self._MOST:
            value = {"about": about, "rows": [list(row) for row in rows]}
            save(self._store, key, cast("JsonValue", value), "recognise what this one has done")

    # -- moves and deletions ------------------------------------------------------------------------------------------

    def note(self, steps: Mapping[Step, Found]) -> None:
        """Keeps what is about to be moved: source, target, the argument that named it, and what tells the file from
        another that is delivered under its name."""
        noted = {
            (step.source, step.target): (one.source, step.size, _modified(one.info)) for step, one in steps.items()
        }
        if noted:
            self._replaced = {ends: self._noted[ends] for ends in noted if ends in self._noted}
            self._noted |= noted
            self._keep_noted()

    def note_names(self, names: Iterable[str]) -> None:
        """Keeps the arguments that named what is about to be deleted."""
        noted = {(name, ""): (name, None, None) for name in names}
        if noted:
            self._noted |= noted
            self._keep_noted()

    def forget(self, steps: Iterable[Step]) -> None:
        """Those that were refused after all; what an earlier try had moved from there to there stays noted."""
        for step in steps:
            ends = step.source, step.target
            if ends in self._replaced:
                self._noted[ends] = self._replaced[ends]
            else:
                self._noted.pop(ends, None)
        self._keep_noted()

    def _keep_noted(self) -> None:
        self._keep(self._MOVES, self._place, [(*ends, *what) for ends, what in self._noted.items()])

    def names_of(self, sources: Set[str] | None) -> set[str]:
        """The arguments that named these files in the earlier try, or any (None)."""
        return {name for (source, _), (name, *_) in self._noted.items() if sources is None or source in sources}

    def finished(self, backend: SFTPBackend, pending: Iterable[Step]) -> list[Row]:
        """A row for each file that an earlier try has moved: its target is what it moved, its source is gone or is
        another file by now, and it is not ``pending``."""
        if not self._noted:
            return []
        names = {name for ends in self._noted for name in ends}
        there = {info.path: info for info in backend.find(*map(literally, names))}
        left = {(step.source, step.target) for step in pending}

        def is_moved(source: str, target: str, size: int | None, modified: str | None) -> bool:
            before, after = there.get(source), there.get(target)
            unmoved = before is not None and (before.size, _modified(before)) == (size, modified)
            return (source, target) not in left and not unmoved and after is not None and after.size == size

        return [
            {"path": target, "size": size, "action": "moved by an earlier try", "source": source}
            for (source, target), (_, size, modified) in self._noted.items()
            if is_moved(source, target, size, modified)
        ]

    # -- uploads ------------------------------------------------------------------------------------------------------

    def note_sent(self, rows: Iterable[tuple[Row, Stamp | None]]) -> None:
        """Keeps what was sent, each with the stamp its source had, for the try after this one, which has failed."""
        for row, stamp in rows:
            self._sent[row["source"], row["path"]] = [row["size"], stamp and [*stamp], row.get("sha256")]
        self._keep(self._SENT, self._sending, [(*ends, *what) for ends, what in self._sent.items()])

    def forget_sent(self) -> None:
        """Whoever runs the task again, now that all is sent, wants all of it sent again."""
        if self._sent:
            self._keep(self._SENT, self._sending, [])

    def taken(self, backend: SFTPBackend, stamps: Mapping[Step, Stamp | None]) -> dict[Step, Row]:
        """A row for each of the steps that an earlier try has sent and that is gone from the server since, unless its
        source is another by now; ``stamps`` are those of the sources."""
        noted = {step: what for step in stamps if (what := self._sent.get((step.source, step.target))) is not None}
        if not noted:
            return {}
        try:
            there = {info.path for info in backend.find(*(literally(step.target) for step in noted))}
        except BackendUnavailable:
            raise
        except SFTPBackendError:  # a server where nobody may look, whatever it calls that
            there = set()
        rows: dict[Step, Row] = {}
        for step, (size, stamp, sha256) in noted.items():
            if step.target not in there and _is_still(step, stamps[step], stamp, sha256):
                row = {"path": step.target, "size": size, "action": "uploaded by an earlier try", "source": step.source}
                rows[step] = row | ({} if sha256 is None else {"sha256": sha256})
        return rows


def _modified(info: FileInfo) -> str | None:
    return None if info.modified_at is None else info.modified_at.isoformat()


def _is_still(step: Step, now: Stamp | None, then: Sequence[int] | None, sha256: str | None) -> bool:
    """True if the source is what it was: a local file by its stamp, an object by its bytes."""
    if not is_url(step.source):
        return now is not None and then is not None and [*now] == [*then]
    try:
        with opened_for_reading(step.source) as stream:
            return digest_of(stream) == f"sha256:{sha256}"
    except OSError:
        return False
