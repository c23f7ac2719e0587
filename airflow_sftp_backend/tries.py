"""What the tries of one task instance know of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from datetime import UTC
from typing import TYPE_CHECKING, Any, cast

from .plans import Step, literally

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from .backend import SFTPBackend

Row = dict[str, Any]  # plain JSON: path, size in bytes, action, and the other end


class Try:
    """A try of the task: whether it is the first (``again``), what all tries have in common (``resume_key``), and what
    an earlier one has set out to move or delete.

    That is kept where Airflow can keep it from one try to the next: in its task state store, from 3.3. Without it the
    next try of a move cannot tell, and fails for what is gone; that of a delete takes what is gone for deleted.
    """

    _KEY = "moves"
    _MOST = 500  # files; the store is for small values

    def __init__(self, context: Context) -> None:
        instance = context["ti"]
        self.again = (instance.try_number or 1) > 1
        self.resume_key = f"{instance.dag_id}/{instance.task_id}/{instance.run_id}/{instance.map_index}"
        self._context = context
        self._store = context.get("task_state_store")
        self._noted: dict[str, Any] = {}
        if self._store is not None:
            self._noted |= cast("dict[str, Any]", self._store.get(self._KEY) or {})

    @property
    def date(self) -> str:
        """The date of the run in UTC, the same in every try: its logical date or, without one, when it was to run."""
        time = self._context.get("logical_date") or self._context["dag_run"].run_after
        return time.astimezone(UTC).date().isoformat()

    @property
    def remembers(self) -> bool:
        """True if it can know what an earlier try did."""
        return self._store is not None

    def note(self, steps: Mapping[Step, str]) -> None:
        """Keeps source, target and size of each file about to be moved, and the argument that named it; of deletions
        the argument alone."""
        self._noted |= {step.source: [step.target, step.size, name] for step, name in steps.items()}
        if steps:
            self._keep()

    def forget(self, steps: Sequence[Step]) -> None:
        """Those that were refused after all."""
        for step in steps:
            self._noted.pop(step.source, None)
        self._keep()

    def _keep(self) -> None:
        if self._store is not None and len(self._noted) <= self._MOST:
            self._store.set(self._KEY, cast("JsonValue", self._noted))

    def names_of(self, sources: Set[str] | None) -> set[str]:
        """The arguments that named these files in the earlier try, or any (None)."""
        return {name for source, (_, _, name) in self._noted.items() if sources is None or source in sources}

    def finished(self, backend: SFTPBackend) -> list[Row]:
        """A row for each file that an earlier try has moved: gone from its source, and its target is what it moved."""
        if not self._noted:
            return []
        sources = {info.path for info in backend.find(*map(literally, self._noted))}
        targets = {info.path: info.size for info in backend.find(*(literally(t) for t, *_ in self._noted.values()))}
        return [
            {"path": target, "size": size, "action": "moved by an earlier try", "source": source}
            for source, (target, size, _) in self._noted.items()
            if source not in sources and targets.get(target) == size
        ]
