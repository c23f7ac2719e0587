"""A sync refuses overlapping ends, under whatever names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.airflow.connections import Connect
from tests.support.airflow.syncs import Serve, counts, run_sync, sync
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, tree, write_files
from tests.support.servers import AsyncsshServer, IgnoresCase, KeepsSpellings, OpenSSHServer, SeparatesUsers, Server

OTHER = "sftpbackend://other@"


def check_refused(remote: Path, source: object, target: object, direction: str = "download") -> None:
    """Run a sync that fails and changes nothing."""
    before = tree(remote)
    with pytest.raises(AirflowFailException, match="source and target overlap"):
        run_sync(sync(source, target, direction, delete=True))
    assert tree(remote) == before


@pytest.mark.parametrize("direction", ["upload", "download"])
@pytest.mark.parametrize(("inner", "outer"), [("data/sub", "data"), ("data", "data/sub"), ("data", "data")])
def test_a_directory_is_not_synced_with_itself(remote: Path, inner: str, outer: str, direction: str) -> None:
    write_files(remote, {"data/a": b"one", "data/sub/b": b"two"})
    before = tree(remote)
    ends: tuple[object, object] = (remote / inner, outer) if direction == "upload" else (inner, remote / outer)
    with pytest.raises(AirflowFailException, match="source and target overlap"):
        run_sync(sync(*ends, direction, delete=True))
    assert tree(remote) == before


def test_a_new_directory_inside_the_source_is_refused(remote: Path) -> None:
    write_files(remote, {"data/a": b"one"})
    with pytest.raises(AirflowFailException, match="source and target overlap"):
        run_sync(sync(remote / "data", "data/backup/daily"))


def test_directories_with_similar_names_are_separate(remote: Path) -> None:
    write_files(remote, {"data/a": b"one"})
    assert counts(run_sync(sync(remote / "data", "data-copy"))) == (1, 0, 0, 0)


def test_a_url_of_the_same_server_overlaps(remote: Path, server: AsyncsshServer) -> None:
    url = f"sftp://{server.host}:{server.port}{remote}/data/sub"
    with pytest.raises(AirflowFailException, match="source and target overlap"):
        run_sync(sync("data", url, "download"))


@pytest.mark.parametrize(("source", "target"), [("data", "data/sub"), ("data/sub", "data"), ("data", "data")])
def test_a_url_of_the_same_connection_overlaps(remote: Path, source: str, target: str) -> None:
    write_files(remote, {"data/a": b"one", "data/sub/b": b"two"})
    with pytest.raises(AirflowFailException, match="source and target overlap"):
        run_sync(sync(source, f"sftpbackend://sftp_backend_default@/{target}", "download"))


@pytest.mark.parametrize("kind", ["asyncssh_plain", "openssh"])
@pytest.mark.parametrize(("inner", "outer"), [("data/sub", "data"), ("data", "data/new"), ("data", "data")])
def test_a_relative_base_path_hides_no_local_overlap(
    request: pytest.FixtureRequest, connect: Connect, kind: str, inner: str, outer: str
) -> None:
    server: Server = request.getfixturevalue(kind)
    folder = server.fresh().path
    connect(server, base_path=folder.name)  # relative to the login directory
    write_files(folder, {"data/a": b"one", "data/sub/b": b"two"})
    check_refused(folder, folder / inner, outer, "upload")


def test_the_login_directory_as_base_path_hides_no_local_overlap(openssh: OpenSSHServer, connect: Connect) -> None:
    connect(openssh, base_path=".")
    folder = openssh.fresh().path
    write_files(folder, {"a": b"one"})
    check_refused(folder, folder, f"{folder.name}/new", "upload")


def test_any_address_of_this_machine_is_noticed(openssh: OpenSSHServer, connect: Connect) -> None:
    folder = openssh.fresh()
    key = openssh.known_hosts.partition(" ")[2]
    connect(
        openssh, base_path=folder.base_path, columns={"host": "127.1"}, known_host_keys=f"[127.1]:{openssh.port} {key}"
    )
    write_files(folder.path, {"a": b"one"})
    check_refused(folder.path, folder.path, "new", "upload")


@pytest.mark.parametrize("base_path", ["", "data", "link"])
def test_another_connection_to_the_same_server_is_noticed(
    openssh: OpenSSHServer, connect: Connect, base_path: str
) -> None:
    folder = openssh.fresh()
    write_files(folder.path, {"data/a": b"one", "data/sub/b": b"two"})
    (folder.path / "link").symlink_to("data")
    connect(openssh, base_path=folder.base_path)
    key = openssh.known_hosts.partition(" ")[2]
    connect(
        openssh, "other", base_path=f"{folder.base_path}/{base_path}", columns={"host": "localhost"},
        known_host_keys=f"[localhost]:{openssh.port} {key}",
    )  # fmt: skip
    inner = "data/sub" if base_path == "" else "sub"
    check_refused(folder.path, "data", f"{OTHER}/{inner}")
    check_refused(folder.path, "link/sub", f"{OTHER}/{inner}")
    check_refused(folder.path, f"{OTHER}/{inner}", "data/sub", "upload")


def test_a_relative_and_an_absolute_base_path_are_compared(openssh: OpenSSHServer, connect: Connect) -> None:
    folder = openssh.fresh()
    write_files(folder.path, {"data/a": b"one"})
    connect(openssh, base_path=folder.base_path)
    connect(openssh, "other", base_path=folder.path.name)
    check_refused(folder.path, "data", f"{OTHER}/data/new/deep")


@pytest.mark.parametrize("server", [IgnoresCase(), KeepsSpellings()], ids=["canonical", "as spelled"])
def test_other_spellings_on_a_caseless_server_are_noticed(serve: Serve, server: AsyncsshServer) -> None:
    remote = serve(server)
    write_files(remote, {"Data/Sub/a": b"one", "dat": b""})
    url = "sftpbackend://sftp_backend_default@"
    check_refused(remote, "data", f"{url}/DATA/sub")
    check_refused(remote, "Data", f"{url}/data/new")


def test_a_link_that_realpath_leaves_is_followed(serve: Serve) -> None:
    remote = serve(KeepsSpellings())
    write_files(remote, {"data/sub/a": b"one"})
    (remote / "link").symlink_to("data/sub")
    check_refused(remote, "link", "sftpbackend://sftp_backend_default@/data")


def test_spellings_that_a_server_distinguishes_are_separate(remote: Path) -> None:
    write_files(remote, {"data/a": b"one", "Data/b": b"two"})
    assert counts(run_sync(sync("data", "sftpbackend://sftp_backend_default@/Data", "download"))) == (1, 0, 0, 1)
    assert counts(run_sync(sync("data", "sftpbackend://sftp_backend_default@/DATA", "download"))) == (1, 0, 0, 0)


def test_equal_paths_of_separate_users_are_separate(connect: Connect, tmp_path: Path) -> None:
    with SeparatesUsers() as server:
        connect(server, base_path="/", columns={"login": "one"})
        connect(server, "other", base_path="/", columns={"login": "two"})
        write_files(server.root, {"one/data/a": b"1", "two/keep": b""})
        assert counts(run_sync(sync("data", f"{OTHER}/data", "download"))) == (1, 0, 0, 0)
        assert read_files(server.root / "two") == {"data/a": b"1", "keep": b""}


def test_equal_paths_of_different_servers_are_separate(serve: Serve, connect: Connect, remote: Path) -> None:
    write_files(remote, {"data/a": b"1"})
    with AsyncsshServer() as server:
        connect(server, "other", base_path=server.fresh().base_path)
        assert counts(run_sync(sync("data", f"{OTHER}/data", "download"))) == (1, 0, 0, 0)
