"""A late loss of the connection hides no file and no difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from airflow_sftp_backend import BackendUnavailable
from airflow_sftp_backend.hooks.sftp import FilesFailed
from tests.support.airflow.arguments import Glob
from tests.support.airflow.operators import move, run, upload
from tests.support.airflow.syncs import Serve, run_sync, sync
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer, DropsAfter
from tests.support.servers.asyncssh_server import Files, Packets


class _CuttingPackets(Packets):
    async def on_request(self, kind: str) -> bool:
        server = self.server
        assert isinstance(server, CutsWhen)
        server.is_cut = server.is_cut or server.decides(server, kind)
        if server.is_cut:
            self.hang_up()
        return not server.is_cut


class _OccupyingFiles(Files):
    def rename(self, oldpath: bytes, newpath: bytes) -> Any:
        if newpath.endswith(b"/taken.csv"):
            Path(self.map_path(newpath).decode()).write_bytes(b"another writer")
            raise asyncssh.SFTPFailure("the name is taken")
        return super().rename(oldpath, newpath)


class CutsWhen(AsyncsshServer):
    """Cut every connection from the first request for which ``decides`` returns True."""

    packets = _CuttingPackets
    files = _OccupyingFiles

    def __init__(self, decides: Callable[[AsyncsshServer, str], bool]) -> None:
        super().__init__()
        self.decides = decides
        self.is_cut = False


def test_an_upload_reports_finished_files_if_a_proof_is_lost(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = serve(CutsWhen(lambda server, kind: kind == "open" and server.requests["open"] > 3))
    write_files(remote, {"out/a": b"old", "out/b": b"old"})
    here = write_files(tmp_path / "in", {"a": b"1", "b": b"2", "c": b"3"})
    with pytest.raises(FilesFailed):
        run(upload(f"{here}/", "out"), try_number=2)  # without a state store the server's clock is read
    assert read_files(remote)["out/c"] == b"3"
    assert "uploaded out/c (1 B)" in capsys.readouterr().out


def test_a_move_reports_moved_files_if_numbers_cannot_be_looked_up(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = serve(CutsWhen(lambda server, kind: kind == "opendir" and server.requests["opendir"] > 1))
    write_files(remote, {"in/free.csv": b"1", "in/taken.csv": b"2"})
    with pytest.raises(FilesFailed):
        run(move(Glob("in/*"), "out/", if_exists="number"))
    assert read_files(remote)["out/free.csv"] == b"1"
    assert "moved out/free.csv (1 B)" in capsys.readouterr().out


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_a_lost_connection_is_no_difference_of_content(serve: Serve, tmp_path: Path, direction: str) -> None:
    remote = serve(DropsAfter(volume=6 << 20))  # after samples, which are read on a new connection if one is lost
    content = bytes(8 << 20)
    target = tmp_path / "local"
    write_files(target, {"a": content})
    write_files(remote, {"remote/a": content})
    ends: tuple[object, object] = (target, "remote") if direction == "upload" else ("remote", target)
    inodes = [path.stat().st_ino for path in (target / "a", remote / "remote/a")]
    with pytest.raises(BackendUnavailable):
        run_sync(sync(*ends, direction, compare="sha256"))
    assert inodes == [path.stat().st_ino for path in (target / "a", remote / "remote/a")]
