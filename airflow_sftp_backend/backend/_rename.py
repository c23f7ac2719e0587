"""Renames: replace a target in one step where the server can, else by way of a backup name.

``posix-rename@openssh.com`` replaces in one step. Plain rename needs the old target set aside first, and the old target
is put back if the exchange fails. At no moment is the old content without a name.

``overwrite=False`` uses plain rename, which refuses an occupied name on OpenSSH and most servers (filexfer-02 section
6.5), after a look sent along with an earlier request. On a server whose plain rename replaces, two writers can race
between look and rename.
"""

from __future__ import annotations

from ._errors import Refused, SFTPBackendError, from_refusal
from ._messages import PosixRename, Rename
from ._operations import discard, is_a_folder, see, taken
from ._paths import JailedPath
from ._wire import Operation, Wire, ask, ask_all


def rename(
    wire: Wire, source: JailedPath, target: JailedPath, aside: JailedPath, *, overwrite: bool
) -> Operation[None]:
    """The best rename the server has: one round trip where it has ``posix-rename`` or the target is free.

    Raises AlreadyExists, InvalidPath for a folder under ``target``, Refused if there is no way.
    """
    if overwrite and wire.supports(PosixRename):
        try:
            yield from ask(PosixRename(source.native, target.native))
            return
        except Refused as refused:
            if refused.missing:
                raise
    try:
        yield from ask(Rename(source.native, target.native))
    except Refused as refused:
        found = yield from see(target)
        if isinstance(found, Refused):
            raise refused from None
        if found.is_folder:
            raise is_a_folder(target) from None
        if not overwrite:
            raise taken(target) from None
        yield from _exchange(source, target, aside)


def _exchange(source: JailedPath, target: JailedPath, aside: JailedPath) -> Operation[None]:
    """Replaces ``target`` on a server whose renames never replace: the old file steps aside, and back on failure."""
    yield from ask(Rename(target.native, aside.native))
    moved = False
    try:
        yield from ask(Rename(source.native, target.native))
        moved = True
    finally:
        if not moved:
            yield from _put_back(aside, target)
    yield from discard(aside)


def _put_back(aside: JailedPath, target: JailedPath) -> Operation[None]:
    where = f"its old content is kept as {aside.native!r}"
    try:
        (answer,) = yield from ask_all([Rename(aside.native, target.native)])
    except SFTPBackendError as lost:
        raise type(lost)(f"{lost.message}; {where}", path=target.key) from None
    if isinstance(answer, Refused):
        raise from_refusal(answer, f"cannot put the replaced file back, {where}", target.key)
