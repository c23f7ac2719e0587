"""Clean-up removes abandoned files, and no file in use."""

from __future__ import annotations

import pytest

from airflow_sftp_backend import BackendUnavailable
from airflow_sftp_backend.backend._paths import STALE_SECONDS, RemotePath, temp_or_backup_digest
from airflow_sftp_backend.backend._writes.cleanup import TempsByDigest, remove_stale_temps, roll_back, temps_of
from airflow_sftp_backend.backend._writes.rename import rename
from tests.support.atomic_writes import AT, NEW, OLD, SOURCE, TARGET, THEIRS, memory_server, write_target
from tests.support.memory_server import FAILURES, MemoryServer, Renames


def by_digest(*temps: tuple[RemotePath, int]) -> TempsByDigest:
    grouped: TempsByDigest = {}
    for path, mtime in temps:
        grouped.setdefault(temp_or_backup_digest(path.name), []).append((path, mtime))
    return grouped


def test_a_backup_of_a_lost_connection_is_restored_on_the_next_one() -> None:
    server = memory_server(renames=Renames("no", "refuses"), fail_at=(4,), failure="lost before")
    with pytest.raises(BackendUnavailable) as caught:
        server.run(rename(server, SOURCE, write_target(overwrite=True)))
    assert TARGET.backup.native in caught.value.message
    assert "/in/target" not in server.files
    server.reconnect()
    server.run(roll_back(server, write_target(overwrite=True)))
    assert server.content() == {"/in/target": OLD, "/out/source": NEW}


@pytest.mark.parametrize("parked", [False, True])
def test_recovery_never_touches_a_newer_file_of_the_name(parked: bool) -> None:
    path = write_target(overwrite=True)
    backup = path.unique_backup.native if parked else TARGET.backup.native
    files = {"/in": None, "/in/target": THEIRS, backup: OLD, path.temp.native: b"half"}
    server = MemoryServer(files, renames=Renames("no", "refuses"))
    server.run(roll_back(server, path))
    assert server.content() == {"/in/target": THEIRS}
    for failure in FAILURES:
        for at in range(1, 8):
            renames = Renames("no", "refuses")
            server = MemoryServer({"/in": None, backup: OLD}, renames=renames, fail_at=(at,), failure=failure)
            try:
                server.run(roll_back(server, path))
            except BackendUnavailable:
                assert failure.startswith("lost")
            assert OLD in server.content().values()


def test_only_stale_temporary_files_of_the_same_target_are_removed() -> None:
    now = 2_000_000
    stale, young, other = TARGET.temp("1" * 12), TARGET.temp("2" * 12), AT("in/other").temp("3" * 12)
    server = MemoryServer({"/in": None, stale.native: b"", young.native: b"", other.native: b""})
    listed = by_digest((stale, now - STALE_SECONDS - 1), (young, now - STALE_SECONDS), (other, 1))
    temps = temps_of(write_target(overwrite=True), {TARGET.parent: listed})
    server.run(remove_stale_temps(TARGET, temps, now))
    assert sorted(server.content()) == sorted([young.native, other.native])


def test_a_temporary_file_written_since_the_listing_is_not_removed() -> None:
    listed, now = 1_000_000 - 2 * STALE_SECONDS, 1_000_000 + 60  # the server says 1,000,000 of every file
    living = TARGET.temp("1" * 12)
    server = MemoryServer({"/in": None, living.native: b"half"})
    server.run(remove_stale_temps(TARGET, [(living, listed)], now))
    assert server.content() == {living.native: b"half"}
