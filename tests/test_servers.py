"""Each server of `tests.support.servers` behaves as described, seen by independent clients."""

from __future__ import annotations

import asyncio
import errno
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncssh
import pytest

from tests.support.servers import (
    FAILURE,
    HOST,
    NO_SPACE_ON_FILESYSTEM,
    AsyncsshServer,
    BareAttributes,
    DeniesEverything,
    DiskFull,
    DropBox,
    DropsAfter,
    FailsWrite,
    HostileNames,
    Listener,
    MovesAway,
    NoChannel,
    NoSubsystem,
    OneChannel,
    OpenSSHServer,
    OutOfOrder,
    PosixRenameRefusesTaken,
    RefusesRename,
    RenameReplaces,
    Server,
    ShortReads,
    SilentChannel,
    SilentLogin,
    SilentSFTP,
    SilentSubsystem,
    StallsAfter,
    WithoutExtensions,
    WithoutPosixRename,
    WithoutSetstat,
    banner_listener,
    chatty_listener,
    closing_listener,
    free_port,
    mute_listener,
    small_disk,
    wait_until,
)
from tests.support.ssh_client import connect, get, put, rename_both_ways, talk

SILENCE = 0.3
"""Seconds after which a server that should stay silent is believed."""


# ---- well-behaved servers


def test_a_file_written_through_a_server_is_in_the_fresh_folder_on_disk(server: Server) -> None:
    folder = server.fresh()

    async def conversation(sftp: asyncssh.SFTPClient) -> bytes:
        await put(sftp, f"{folder.base_path}/file", b"content")
        return await get(sftp, f"{folder.base_path}/file")

    assert talk(server, conversation) == b"content"
    assert (folder.path / "file").read_bytes() == b"content"


def test_a_fresh_folder_is_empty_and_differs_from_the_one_before(server: Server) -> None:
    first, second = server.fresh(), server.fresh()
    assert first.path != second.path
    assert list(first.path.iterdir()) == []


def test_relative_paths_start_at_the_root(server: Server) -> None:
    name = server.fresh().path.name
    assert talk(server, lambda sftp: sftp.realpath(".")) == str(server.root.resolve())
    assert talk(server, lambda sftp: sftp.isdir(name))


def test_logins_and_connections_are_counted(server: Server) -> None:
    logins, connections = server.logins(), server.connections()
    for _ in range(3):
        talk(server, lambda sftp: sftp.stat("."))
    assert server.logins() == logins + 3
    assert server.connections() == connections + 3


def test_a_connection_without_a_login_is_not_counted_as_one(server: Server) -> None:
    logins, connections = server.logins(), server.connections()
    with socket.create_connection((server.host, server.port)) as raw:
        assert raw.recv(4) == b"SSH-"
    assert (server.logins(), server.connections()) == (logins, connections + 1)


def test_an_unauthorised_key_cannot_log_in(server: Server) -> None:
    async def run() -> None:
        async with connect(server, client_keys=[asyncssh.generate_private_key("ssh-ed25519")]):
            raise AssertionError("let in")

    with pytest.raises(asyncssh.PermissionDenied):
        asyncio.run(run())


def test_the_server_presents_its_declared_host_key(server: Server) -> None:
    kind = server.host_keys[0].get_algorithm()
    seen = asyncio.run(asyncssh.get_server_host_key(server.host, server.port, server_host_key_algs=[kind], config=None))
    assert seen is not None
    assert seen.public_data == server.host_key_blob
    assert server.known_hosts.startswith(f"[{server.host}]:{server.port} {kind} ")


def test_killed_sessions_are_over_and_new_ones_are_accepted(server: Server) -> None:
    async def conversation(sftp: asyncssh.SFTPClient) -> None:
        await sftp.stat(".")
        await asyncio.to_thread(server.kill_sessions)
        with pytest.raises((OSError, asyncssh.Error)):
            await sftp.stat(".")

    talk(server, conversation)
    talk(server, lambda sftp: sftp.stat("."))


def test_plain_rename_refuses_a_taken_name(server: Server) -> None:
    folder = server.fresh()
    for name in "ab":
        (folder.path / name).write_text(name)
    with pytest.raises(asyncssh.SFTPFailure):
        talk(server, lambda sftp: sftp.rename(f"{folder.base_path}/a", f"{folder.base_path}/b", flags=0))
    assert (folder.path / "b").read_text() == "b"


@pytest.mark.parametrize("name", ["asyncssh_plain", "without_posix_rename", "without_extensions", "one_channel"])
def test_a_password_logs_in_to_asyncssh_and_a_wrong_one_does_not(name: str, request: pytest.FixtureRequest) -> None:
    server: AsyncsshServer = request.getfixturevalue(name)

    async def run(password: str) -> None:
        async with connect(server, client_keys=None, password=password):
            pass

    asyncio.run(run(server.password or ""))
    with pytest.raises(asyncssh.PermissionDenied):
        asyncio.run(run("wrong"))


# ---- OpenSSH


def test_sshd_gives_every_kind_of_host_key(openssh: OpenSSHServer) -> None:
    scan = ["ssh-keyscan", "-p", str(openssh.port), openssh.host]
    seen = subprocess.run(scan, capture_output=True, text=True, check=True).stdout.splitlines()
    assert sorted(line for line in seen if not line.startswith("#")) == sorted(openssh.known_hosts.splitlines())


def test_the_sftp_command_logs_in_to_sshd(openssh: OpenSSHServer, tmp_path: Path) -> None:
    folder = openssh.fresh()
    (tmp_path / "known_hosts").write_text(openssh.known_hosts + "\n")
    (tmp_path / "local").write_bytes(b"content")
    options = ["StrictHostKeyChecking=yes", "BatchMode=yes", f"UserKnownHostsFile={tmp_path}/known_hosts"]
    command = ["sftp", "-q", "-F", "none", "-b", "-", "-i", str(openssh.client_key), "-P", str(openssh.port)]
    for option in options:
        command += ["-o", option]
    batch = f"put {tmp_path}/local {folder.base_path}/remote\n".encode()
    subprocess.run([*command, f"{openssh.username}@{openssh.host}"], input=batch, capture_output=True, check=True)
    assert (folder.path / "remote").read_bytes() == b"content"


@pytest.mark.usefixtures("sshd")
def test_options_of_sshd_win_over_the_defaults() -> None:
    async def run(server: Server) -> None:
        async with connect(server) as connection, connection.start_sftp_client() as first:
            await first.stat(".")
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.start_sftp_client()

    with OpenSSHServer({"MaxSessions": "1"}) as server:
        asyncio.run(run(server))


@pytest.mark.usefixtures("sshd")
def test_sshd_serves_through_the_external_program_too() -> None:
    if pwd.getpwuid(os.geteuid()).pw_shell.endswith(("/nologin", "/false")):
        pytest.skip("sshd starts the external program through the user's shell, and this user has none")
    with OpenSSHServer(external=True) as server:
        folder = server.fresh()
        talk(server, lambda sftp: put(sftp, f"{folder.base_path}/file", b"content"))
        assert (folder.path / "file").read_bytes() == b"content"


@pytest.mark.usefixtures("sshd")
def test_an_invalid_sshd_option_is_reported() -> None:
    with pytest.raises(RuntimeError, match="Bad configuration option"), OpenSSHServer({"NoSuchThing": "1"}):
        pass


@pytest.mark.usefixtures("sshd")
@pytest.mark.parametrize("make", [OpenSSHServer, AsyncsshServer])
def test_a_stopped_server_leaves_no_file_and_no_open_port(make: Callable[[], Server]) -> None:
    with make() as server:
        talk(server, lambda sftp: sftp.stat("."))
        home, port = server.root.parent, server.port
        held = socket.create_connection((HOST, port))
    held.close()
    assert not home.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port))


# ---- honest servers with less to offer


def test_without_posix_rename_has_the_other_extensions(without_posix_rename: WithoutPosixRename) -> None:
    folder = without_posix_rename.fresh()
    (folder.path / "a").write_bytes(b"")

    async def conversation(sftp: asyncssh.SFTPClient) -> bool:
        with pytest.raises(asyncssh.SFTPOpUnsupported):
            await sftp.posix_rename(f"{folder.base_path}/a", f"{folder.base_path}/b")
        async with sftp.open(f"{folder.base_path}/a", "ab") as file:
            await file.fsync()
        return sftp.supports_remote_copy

    assert talk(without_posix_rename, conversation)
    assert (folder.path / "a").exists()


def test_without_extensions_has_none(without_extensions: WithoutExtensions) -> None:
    folder = without_extensions.fresh()

    async def conversation(sftp: asyncssh.SFTPClient) -> bool:
        with pytest.raises(asyncssh.SFTPOpUnsupported):
            await sftp.posix_rename(f"{folder.base_path}/a", f"{folder.base_path}/b")
        async with sftp.open(f"{folder.base_path}/a", "wb") as file:
            with pytest.raises(asyncssh.SFTPOpUnsupported):
                await file.fsync()
        return sftp.supports_remote_copy

    request_count = without_extensions.requests["limits@openssh.com"]
    assert not talk(without_extensions, conversation)
    assert without_extensions.requests["limits@openssh.com"] == request_count


def test_one_channel_refuses_the_second_until_the_first_is_closed(one_channel: OneChannel) -> None:
    async def run() -> None:
        async with connect(one_channel) as connection:
            async with connection.start_sftp_client() as first:
                await first.stat(".")
                with pytest.raises(asyncssh.ChannelOpenError):
                    await connection.start_sftp_client()
                await first.stat(".")
                first.exit()
                await first.wait_closed()
            await asyncio.to_thread(wait_until, lambda: not one_channel.open_channels.total(), "the channel to close")
            async with connection.start_sftp_client() as second:
                await second.stat(".")

    asyncio.run(run())


def test_without_setstat_refuses_modes_and_times() -> None:
    with WithoutSetstat() as server:
        folder = server.fresh()

        async def conversation(sftp: asyncssh.SFTPClient) -> None:
            await put(sftp, f"{folder.base_path}/file", b"x")
            with pytest.raises(asyncssh.SFTPOpUnsupported):
                await sftp.chmod(f"{folder.base_path}/file", 0o600)
            with pytest.raises(asyncssh.SFTPOpUnsupported):
                await sftp.utime(f"{folder.base_path}/file", (1, 1))

        talk(server, conversation)


@pytest.mark.parametrize(
    ("make", "replaces"),
    [
        (AsyncsshServer, [False, True]),
        (PosixRenameRefusesTaken, [False, False]),
        (RenameReplaces, [True, True]),
        (RefusesRename, [False, False]),
    ],
)
def test_a_taken_name_is_replaced_or_not(make: Callable[[], AsyncsshServer], replaces: list[bool]) -> None:
    with make() as server:
        base_path = server.fresh().base_path
        assert talk(server, lambda sftp: rename_both_ways(sftp, base_path)) == replaces


def test_renaming_to_a_free_name_is_refused_where_all_renaming_is() -> None:
    with RefusesRename() as server:
        folder = server.fresh()
        (folder.path / "a").write_bytes(b"")
        with pytest.raises(asyncssh.SFTPFailure):
            talk(server, lambda sftp: sftp.posix_rename(f"{folder.base_path}/a", f"{folder.base_path}/b"))


def test_a_drop_box_takes_a_file_and_shows_nothing() -> None:
    with DropBox() as server:
        folder = server.fresh()

        async def conversation(sftp: asyncssh.SFTPClient) -> None:
            path = f"{folder.base_path}/file"
            await put(sftp, path, b"x")
            for refused in (sftp.stat(path), sftp.lstat(path), sftp.listdir(folder.base_path), get(sftp, path)):
                with pytest.raises(asyncssh.SFTPPermissionDenied):
                    await refused
            await sftp.rename(path, f"{folder.base_path}/final")

        talk(server, conversation)
        assert (folder.path / "final").read_bytes() == b"x"


def test_a_written_file_is_moved_away_when_it_is_closed() -> None:
    with MovesAway() as server:
        folder = server.fresh()
        talk(server, lambda sftp: put(sftp, f"{folder.base_path}/file", b"x"))
        assert list(folder.path.iterdir()) == []
        assert (server.taken / "file").read_bytes() == b"x"


# ---- lies


@pytest.mark.parametrize("code", [FAILURE, NO_SPACE_ON_FILESYSTEM])
def test_a_full_disk_takes_what_fits_and_refuses_the_rest(code: int) -> None:
    with DiskFull(capacity=2500, code=code) as server:
        folder = server.fresh()
        with pytest.raises(asyncssh.SFTPError) as caught:
            talk(server, lambda sftp: put(sftp, f"{folder.base_path}/file", b"x" * 5000))
        assert caught.value.code == code
        assert (folder.path / "file").stat().st_size == 2000


def test_one_write_fails_and_the_next_does_not() -> None:
    with FailsWrite(nth=3) as server:
        folder = server.fresh()
        with pytest.raises(asyncssh.SFTPFailure):
            talk(server, lambda sftp: put(sftp, f"{folder.base_path}/file", b"x" * 5000))
        assert (folder.path / "file").stat().st_size == 2000
        talk(server, lambda sftp: put(sftp, f"{folder.base_path}/file", b"y" * 5000))
        assert (folder.path / "file").read_bytes() == b"y" * 5000


def test_a_read_reply_is_shorter_than_requested() -> None:
    with ShortReads(at_most=10) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(b"0123456789abcdef")
        assert talk(server, lambda sftp: get(sftp, f"{folder.base_path}/file", 16)) == b"0123456789"
        assert server.requests["read"] == 1


def test_replies_come_out_of_order_and_are_right() -> None:
    with OutOfOrder() as server:
        folder = server.fresh()
        sizes = list(range(20))
        for size in sizes:
            (folder.path / str(size)).write_bytes(b"x" * size)
        order: list[int] = []

        async def conversation(sftp: asyncssh.SFTPClient) -> list[int]:
            async def size(number: int) -> int:
                found = await sftp.getsize(f"{folder.base_path}/{number}")
                order.append(number)
                return found or 0

            return await asyncio.gather(*map(size, sizes))

        assert talk(server, conversation) == sizes
        assert order != sizes
        assert server.reordered


def test_hostile_names_are_listed_as_they_are() -> None:
    with HostileNames() as server:
        folder = server.fresh()
        (folder.path / "real").write_bytes(b"x")

        async def conversation(sftp: asyncssh.SFTPClient) -> list[bytes]:
            return list(await sftp.listdir(folder.base_path.encode()))

        listed = talk(server, conversation)
        assert listed == [b".", b"..", b"real", *HostileNames.NAMES]


@pytest.mark.parametrize("with_size", [True, False])
def test_bare_attributes_have_no_mode(with_size: bool) -> None:
    with BareAttributes(with_size=with_size) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(b"12345")

        async def conversation(sftp: asyncssh.SFTPClient) -> list[asyncssh.SFTPAttrs]:
            path = f"{folder.base_path}/file"
            listed = [n.attrs for n in await sftp.readdir(folder.base_path) if n.filename == "file"]
            async with sftp.open(path, "rb") as file:
                return [*listed, await sftp.stat(path), await sftp.lstat(path), await file.stat()]

        for attrs in talk(server, conversation):
            assert attrs.size == (5 if with_size else None)
            assert (attrs.permissions, attrs.mtime, attrs.uid) == (None, None, None)


def test_a_stalling_server_answers_n_requests_then_keeps_silent() -> None:
    with StallsAfter(requests=3) as server:

        async def conversation(sftp: asyncssh.SFTPClient) -> None:
            assert server.requests.total() == 1  # the client's own question for the limits
            await sftp.stat(".")
            await sftp.stat(".")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sftp.stat("."), SILENCE)
            assert server.open_channels.total() == 1

        talk(server, conversation)


def test_a_dropping_server_cuts_once_after_so_many_requests() -> None:
    with DropsAfter(requests=2) as server:

        async def conversation(sftp: asyncssh.SFTPClient) -> None:
            await sftp.stat(".")
            with pytest.raises((OSError, asyncssh.Error)):
                await sftp.stat(".")

        talk(server, conversation)
        talk(server, lambda sftp: sftp.stat("."))
        assert server.connections() == 2


def test_a_dropping_server_cuts_once_after_so_many_bytes() -> None:
    with DropsAfter(volume=2500) as server:
        path = f"{server.fresh().base_path}/file"
        with pytest.raises((OSError, asyncssh.Error)):
            talk(server, lambda sftp: put(sftp, path, b"x" * 10_000))
        assert Path(path).stat().st_size == 3000
        talk(server, lambda sftp: put(sftp, path, b"x" * 10_000))
        assert Path(path).stat().st_size == 10_000


def test_every_request_is_denied() -> None:
    with DeniesEverything() as server:

        async def conversation(sftp: asyncssh.SFTPClient) -> None:
            for refused in (sftp.stat("."), sftp.listdir("."), sftp.mkdir("x"), put(sftp, "f", b""), sftp.remove("f")):
                with pytest.raises(asyncssh.SFTPPermissionDenied):
                    await refused

        talk(server, conversation)


# ---- logins that come to nothing


@pytest.mark.parametrize("make", [NoSubsystem, NoChannel])
def test_sftp_is_refused_after_the_login(make: Callable[[], AsyncsshServer]) -> None:
    with make() as server:
        with pytest.raises(asyncssh.ChannelOpenError):
            talk(server, lambda sftp: sftp.stat("."))
        assert server.logins() == 1


@pytest.mark.parametrize(
    ("make", "logins"), [(SilentLogin, 0), (SilentChannel, 1), (SilentSubsystem, 1), (SilentSFTP, 1)]
)
def test_a_silent_server_says_nothing_after_its_last_step(make: Callable[[], AsyncsshServer], logins: int) -> None:
    with make() as server:

        async def login() -> None:
            async with connect(server) as connection, connection.start_sftp_client():
                raise AssertionError("answered")

        async def run() -> None:
            trying = asyncio.create_task(login())
            await asyncio.to_thread(
                wait_until, lambda: (server.connections(), server.logins()) == (1, logins), "the login"
            )
            await asyncio.wait_for(trying, SILENCE)

        with pytest.raises(TimeoutError):
            asyncio.run(run())
        assert (server.connections(), server.logins()) == (1, logins)


# ---- no SSH at all


@pytest.mark.parametrize(
    ("make", "expected_bytes"),
    [(mute_listener, None), (closing_listener, b""), (chatty_listener, b"220 "), (banner_listener, b"SSH-")],
)
def test_each_listener_sends_its_own_text(make: Callable[[], Listener], expected_bytes: bytes | None) -> None:
    with make() as listener, socket.create_connection((listener.host, listener.port)) as client:
        if expected_bytes is None:
            client.settimeout(SILENCE)
            with pytest.raises(TimeoutError):
                client.recv(1)
        else:
            assert client.recv(4) == expected_bytes
        wait_until(lambda: listener.connections == 1, "the connection to be counted")


def test_nobody_listens_on_a_free_port() -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, free_port()))


# ---- small things


def test_a_small_disk_is_full_soon() -> None:
    with small_disk(1 << 20) as folder:
        if folder is None:
            pytest.skip("this user may not mount a tmpfs")
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (folder / "file").write_bytes(bytes(2 << 20))
    assert not folder.exists()


def test_waiting_ends_when_the_condition_never_comes_true() -> None:
    with pytest.raises(TimeoutError, match="for the end of time"):
        wait_until(lambda: False, "the end of time", timeout=0.01)


def test_without_sshd_its_tests_are_skipped_with_one_loud_line() -> None:
    names = ["options_of_sshd_win_over_the_defaults", "sshd_serves_through_the_external_program_too"]
    chosen = [
        f"{__file__}::test_{name}" for name in [*names, "a_fresh_folder_is_empty_and_differs_from_the_one_before"]
    ]
    start = "import sys, pytest, tests.support.servers as s; s.sshd_path = lambda: None; pytest.main(sys.argv[1:])"
    command = [sys.executable, "-c", start, "-p", "no:cacheprovider", "-q", *chosen]
    output = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1]).stdout
    loud = [line for line in output.splitlines() if "NOT TESTED AGAINST OPENSSH" in line]
    assert len(loud) == 1, output
    assert loud[0].startswith("SKIPPED [3]")
    assert "4 passed, 3 skipped" in output
