"""The command's output, exit status and requirements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from airflow_sftp_backend.backend._paths import temp_name
from airflow_sftp_backend.cli import main
from tests.support.airflow import prepared_process
from tests.support.airflow.home import airflow_home
from tests.support.files import write_files
from tests.support.servers import AsyncsshServer, OpenSSHServer, free_port

TOP = Path(__file__).parents[1]


@pytest.fixture
def known_hosts(openssh: OpenSSHServer, asyncssh_plain: AsyncsshServer, tmp_path: Path) -> Path:
    """A known_hosts file with both servers."""
    file = tmp_path / "known_hosts"
    file.write_text(f"{openssh.known_hosts}\n{asyncssh_plain.known_hosts}\n")
    return file


def with_key(server: OpenSSHServer, known_hosts: Path, path: str = "/~") -> list[str]:
    """The arguments of a check that logs in."""
    url = f"sftp://{server.username}@{server.host}:{server.port}{path}"
    return ["check", url, "--key-file", str(server.client_key), "--known-hosts", str(known_hosts)]


def run_with_airflow(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process that has imported what Airflow needs."""
    command = ["-m", "airflow_sftp_backend.cli", *arguments]
    return prepared_process.run(command, environment=os.environ | environment, modules=prepared_process.LIBRARIES)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "airflow_sftp_backend.cli", *arguments],
        capture_output=True, text=True, check=False, cwd=TOP, env=os.environ | environment,
    )  # fmt: skip


def test_a_check_reads_from_top_to_bottom(
    openssh: OpenSSHServer, known_hosts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = openssh.fresh()
    assert main([*with_key(openssh, known_hosts, folder.base_path), "--write", "--speed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"sftp://127.0.0.1:{openssh.port} as {openssh.username}"
    titles = [line[2:17].rstrip() for line in lines if line.startswith("✓")]
    assert titles == [
        "Name", "Server", "Encryption", "Host key", "Login", "SFTP", "Base path", "Round trip", "Writing", "Speed",
        "All host keys",
    ]  # fmt: skip
    assert lines[-1] == "All checks passed."
    long_words = (str(folder.path), str(known_hosts))  # paths are not broken
    assert all(len(line) <= 100 for line in lines if not any(word in line for word in long_words))
    assert os.listdir(folder.path) == []


def test_a_failed_check_ends_with_a_hint(
    openssh: OpenSSHServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(with_key(openssh, tmp_path / "none")) == 1
    out = capsys.readouterr().out
    assert out.count("✗") == 1
    assert "✗ Host key       unknown host key" in out
    advice = out.partition("What to do:")[2]
    line = openssh.known_hosts.splitlines()[0]
    assert json.dumps({"known_host_keys": line}) in advice.splitlines()[-3]
    assert advice.splitlines()[-1] == "Failed: Host key."


def test_json_output_is_one_object_with_every_result(
    openssh: OpenSSHServer, known_hosts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*with_key(openssh, known_hosts), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["server"], found["username"]) == (f"sftp://127.0.0.1:{openssh.port}", openssh.username)
    assert (found["ok"], found["error"], found["advice"]) == (True, None, [])
    data = {step["title"]: step["data"] for step in found["steps"]}
    assert data["Base path"]["real_path"] == str(openssh.root)
    assert data["Encryption"]["cipher"] == "aes128-gcm@openssh.com"
    assert main([*with_key(openssh, known_hosts, "/no/such"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["steps"][-1]["ok"]) == (False, False)
    assert found["error"].startswith("no such directory")


@pytest.mark.parametrize("as_json", [True, False])
def test_no_output_contains_cursor_control_characters(
    openssh: OpenSSHServer, known_hosts: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    folder = openssh.fresh().path / "a\x9bb\u2028c\u202ed"
    folder.mkdir()
    target = with_key(openssh, known_hosts, quote(str(folder)))
    assert main([*target, *(["--json"] if as_json else [])]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.split("\n") if not line.isprintable()] == []
    if as_json:
        data = {step["title"]: step["data"] for step in json.loads(out)["steps"]}
        assert data["Base path"]["real_path"] == str(folder)
    else:
        assert r"a\x9bb\u2028c\u202ed" in out


def test_checking_a_url_neither_needs_nor_creates_an_airflow_home(
    openssh: OpenSSHServer, known_hosts: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path / "airflow")}
    code = "import sys; from airflow_sftp_backend.cli import main; main(sys.argv[1:]); print('airflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *with_key(openssh, known_hosts)],
        capture_output=True, text=True, check=False, cwd=TOP, env=environment,
    )  # fmt: skip
    assert done.stdout.splitlines()[-2:] == ["All checks passed.", "False"], done.stderr
    assert not (tmp_path / "airflow").exists()


@pytest.mark.parametrize(("password", "status"), [("correct horse battery staple", 0), ("Tr0ub4dor", 1)])
def test_a_password_is_taken_and_never_shown(
    asyncssh_plain: AsyncsshServer,
    known_hosts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    password: str,
    status: int,
) -> None:
    server = asyncssh_plain
    options = ["--known-hosts", str(known_hosts)]
    quoted = password.replace(" ", "%20")
    url = f"sftp://{server.username}:{quoted}@{server.host}:{server.port}/"
    assert main(["check", url, *options]) == status
    prompts: list[str] = []

    def getpass(prompt: str) -> str:
        prompts.append(prompt)
        return password

    monkeypatch.setattr("getpass.getpass", getpass)
    assert main(["check", url.replace(f":{quoted}", ""), "--ask-password", *options]) == status
    assert prompts == [f"Password of {server.username}@{server.host}: "]
    shown = capfd.readouterr()
    for text in (shown.out, shown.err):
        assert password not in text
        assert quoted not in text


@pytest.mark.parametrize(
    ("target", "expected_text"),
    [
        ("http://host/", "expected sftp://user@host:port/directory"),
        ("sftp://user:S3cret@:22/", "expected sftp://user@host:port/directory"),
        ("sftp://user:S3cret@host:notaport/", "expected a URL such as sftp://user@host:22/directory"),
        ("sftp://user:S3cret/more@host/", "in user and password, write / as %2F and @ as %40"),
        ("sftp://user:S3cret@host/a#b", "in user and directory, write ? as %3F and # as %23"),
        ("sftp://host/../x", "base_path must not contain '..'"),
        ("user:S3cret@host", "expected a URL such as sftp://"),
        ("sftp:user:S3cret@host/x", "expected a URL such as sftp://"),
    ],
)
def test_an_invalid_url_is_a_usage_error(target: str, expected_text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", target]) == 2
    error = capsys.readouterr().err
    assert error.startswith("airflow-sftp-backend: ")
    assert expected_text in error
    assert "S3cret" not in error


def test_an_airflow_connection_is_checked(asyncssh_plain: AsyncsshServer, tmp_path: Path) -> None:
    server = asyncssh_plain
    conn = {
        "conn_type": "sftp_backend", "host": server.host, "port": server.port, "login": server.username,
        "password": server.password, "extra": {"known_host_keys": server.known_hosts},
    }  # fmt: skip
    done = run_with_airflow("check", "partner", "--json", AIRFLOW_CONN_PARTNER=json.dumps(conn))
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True), done.stderr
    done = run_with_airflow("check", "partner", AIRFLOW_CONN_PARTNER=json.dumps(conn | {"port": 99999}))
    assert (done.returncode, done.stdout) == (2, "")
    assert "connection 'partner' needs correcting: Port: 99999 given" in done.stderr


def test_a_missing_connection_is_reported(tmp_path: Path) -> None:
    done = run_with_airflow("check", "nowhere", **airflow_home(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere" in done.stderr
    assert "`airflow connections list` lists the connections" in done.stderr


def test_url_options_are_refused_with_a_connection(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "partner", "--ask-password"]) == 2
    assert "apply to a URL only" in capsys.readouterr().err


def test_a_terminal_without_check_marks_gets_words(openssh: OpenSSHServer, known_hosts: Path) -> None:
    done = run(*with_key(openssh, known_hosts), PYTHONIOENCODING="ascii")
    assert "ok Name          127.0.0.1 is an address" in done.stdout


def test_scanned_keys_are_known_hosts_lines(openssh: OpenSSHServer, capsys: pytest.CaptureFixture[str]) -> None:
    where = [openssh.host, "--port", str(openssh.port)]
    assert main(["scan-host-keys", *where]) == 0
    shown = capsys.readouterr()
    assert set(shown.out.splitlines()) == set(openssh.known_hosts.splitlines())
    for key in openssh.host_keys:
        assert f"# {key.get_algorithm()} {key.get_fingerprint()}" in shown.err
    assert main(["scan-host-keys", *where, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["known_hosts"] for one in found] == shown.out.splitlines()


def test_a_scan_of_an_unreachable_host_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan-host-keys", "127.0.0.1", "--port", str(free_port())]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "the server refuses connections" in shown.err


@pytest.mark.parametrize("spelled", ["{0}:{1}", "[{0}]:{1}"])
def test_a_scan_takes_the_port_with_the_host(
    openssh: OpenSSHServer, capsys: pytest.CaptureFixture[str], spelled: str
) -> None:
    assert main(["scan-host-keys", spelled.format(openssh.host, openssh.port)]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(openssh.known_hosts.splitlines())


def test_a_scan_of_an_address_in_brackets_names_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan-host-keys", "[::1]", "--port", str(free_port())]) == 1
    assert "resolved" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["host:ssh"], ["host:22", "--port", "23"], ["[::1]x"]])
def test_a_scan_with_an_invalid_port_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan-host-keys", *arguments]) == 2
    assert "pass one port, as HOST:PORT or with --port" in capsys.readouterr().err


def test_a_scan_hides_a_password_given_with_the_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan-host-keys", "partner:swordfish@sftp.example.com"]) == 2
    captured = capsys.readouterr()
    assert "without user and password" in captured.err
    assert "swordfish" not in captured.err + captured.out


def test_a_scan_of_an_http_port_names_what_answered(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            began = time.monotonic()
            assert main(["scan-host-keys", f"127.0.0.1:{server.server_port}", "--timeout", "30"]) == 1
            assert time.monotonic() - began < 25, "it waited for the timeout"
        finally:
            server.shutdown()
            thread.join()
    assert "the server does not speak SSH but says '<!DOCTYPE HTML" in capsys.readouterr().err


@pytest.mark.parametrize("asks_password", [False, True])
def test_a_password_of_the_url_or_asked_for_opens_the_key_file(
    openssh: OpenSSHServer, known_hosts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks_password: bool
) -> None:
    openssh.login_key.write_private_key(
        str(tmp_path / "encrypted"), passphrase="opens the key", rounds=1, ignore_few_rounds=True
    )
    (tmp_path / "encrypted").chmod(0o600)
    monkeypatch.setattr("getpass.getpass", lambda prompt: "opens the key")
    login = openssh.username if asks_password else f"{openssh.username}:opens%20the%20key"
    options = ["--ask-password"] if asks_password else []
    url = f"sftp://{login}@{openssh.host}:{openssh.port}/~"
    files = ["--known-hosts", str(known_hosts), "--key-file", str(tmp_path / "encrypted")]
    assert main(["check", url, *files, *options]) == 0


def test_without_a_command_the_usage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "check" in capsys.readouterr().err


# -- clean ------------------------------------------------------------------------------------------------------------


def abandoned(folder: Path, name: str = "a.csv") -> Path:
    """A partial file that nobody has written to for two days."""
    path = folder / temp_name(name, "0123456789ab")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"part")
    os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    return path


def test_clean_removes_partial_files_on_both_ends_and_prints_each(
    openssh: OpenSSHServer, known_hosts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = openssh.fresh()
    remote, local = abandoned(folder.path / "in"), abandoned(tmp_path / "back")
    _, url, *login = with_key(openssh, known_hosts, folder.base_path)
    clean = ["clean", url, "in", *login, "--local", str(tmp_path / "back")]
    assert main([*clean, "--older-than", "3d"]) == 0
    assert capsys.readouterr().out == "No partial files found.\n"
    assert main([*clean, "--older-than", "1d", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines[:2]] == [f"would remove in/{remote.name}", f"would remove {local}"]
    assert lines[2] == "2 partial files found"
    assert remote.exists()
    assert local.exists()
    assert main([*clean, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["path"], row["size"], row["action"], row["where"]) for row in rows] == [
        (f"in/{remote.name}", 4, "removed", f"sftp://127.0.0.1:{openssh.port}"),
        (str(local), 4, "removed", "here"),
    ]
    assert not remote.exists()
    assert not local.exists()


def test_clean_accepts_an_airflow_connection(asyncssh_plain: AsyncsshServer, tmp_path: Path) -> None:
    folder = asyncssh_plain.fresh()
    remote = abandoned(folder.path)
    connection = {
        "conn_type": "sftp_backend", "host": asyncssh_plain.host, "port": asyncssh_plain.port,
        "login": asyncssh_plain.username,
        "extra": {
            "private_key": asyncssh_plain.client_key.read_text(), "known_host_keys": asyncssh_plain.known_hosts,
            "base_path": folder.base_path,
        },
    }  # fmt: skip
    done = run_with_airflow(
        "clean", "partner", "/", AIRFLOW_CONN_PARTNER=json.dumps(connection), AIRFLOW_HOME=str(tmp_path / "airflow")
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 partial files found"
    assert not remote.exists()


@pytest.mark.parametrize("age", ["1", "0d", "d", "-1d", "1.5d", "1y", "", "59m"])
def test_clean_refuses_an_age_below_an_hour(
    openssh: OpenSSHServer, known_hosts: Path, age: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = openssh.fresh()
    remote = abandoned(folder.path)
    _, url, *login = with_key(openssh, known_hosts, folder.base_path)
    try:
        status: object = main(["clean", url, "/", *login, f"--older-than={age}"])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert "such as 90m, 12h, 1d" in (error := capsys.readouterr().err) or "at least one hour" in error
    assert remote.exists()


def test_clean_of_a_missing_directory_fails(
    openssh: OpenSSHServer, known_hosts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url, *login = with_key(openssh, known_hosts, openssh.fresh().base_path)
    assert main(["clean", url, "missing", *login]) == 1
    assert "missing" in capsys.readouterr().err


# -- ls ---------------------------------------------------------------------------------------------------------------


def list_command(server: OpenSSHServer, known_hosts: Path, path: str, *arguments: str) -> list[str]:
    """The arguments of a listing that logs in."""
    _, url, *login = with_key(server, known_hosts, path)
    return ["ls", url, *arguments, *login]


def test_ls_shows_sizes_times_and_names_in_columns(
    openssh: OpenSSHServer, known_hosts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = openssh.fresh()
    write_files(folder.path, {"b.csv": bytes(1234), "in/a\u202e.csv": b"1", "in/deep/c.csv": b"22", "in/x.txt": b""})
    for file in folder.path.rglob("*.csv"):
        os.utime(file, (1_700_000_000, 1_700_000_000))
    time = "2023-11-14T22:13:20+00:00"
    expected = {
        (): [f"1234  {time}  b.csv", f"   -  {'-':25}  in/"],
        ("**/*.csv",): [f"1234  {time}  b.csv", f"   1  {time}  in/a\\u202e.csv", f"   2  {time}  in/deep/c.csv"],
        ("in/deep",): [f"2  {time}  in/deep/c.csv"],
        ("b.csv",): [f"1234  {time}  b.csv"],
    }
    for arguments, lines in expected.items():
        assert main(list_command(openssh, known_hosts, folder.base_path, *arguments)) == 0
        assert capsys.readouterr().out.splitlines() == lines
    assert main(list_command(openssh, known_hosts, folder.base_path, "in/deep/*", "--json")) == 0
    assert json.loads(capsys.readouterr().out) == [{"path": "in/deep/c.csv", "size": 2, "modified_at": time}]


def test_ls_is_silent_with_status_3_if_there_is_nothing_to_list(
    openssh: OpenSSHServer, known_hosts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = openssh.fresh()
    (folder.path / "empty").mkdir()
    for pattern in ("*.csv", "missing/*", "empty"):
        assert main(list_command(openssh, known_hosts, folder.base_path, pattern)) == 3
        assert capsys.readouterr().out == ""
    assert main(list_command(openssh, known_hosts, folder.base_path, "*.csv", "--json")) == 3
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("path", "arguments", "status", "text"),
    [
        ("", ["missing.csv"], 1, "no such file ('missing.csv' on sftp://127.0.0.1"),
        ("/missing", [], 1, "no such"),
        ("", ["../x"], 1, "'..'"),
    ],
)
def test_ls_reports_errors_on_one_line(
    openssh: OpenSSHServer, known_hosts: Path, capsys: pytest.CaptureFixture[str], path: str, arguments: list[str],
    status: int, text: str,
) -> None:  # fmt: skip
    base_path = openssh.fresh().base_path + path
    assert main(list_command(openssh, known_hosts, base_path, *arguments)) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert text in shown.err
    assert shown.err.splitlines()[-1].startswith("airflow-sftp-backend: ")


def test_ls_takes_an_airflow_connection(asyncssh_plain: AsyncsshServer, tmp_path: Path) -> None:
    folder = asyncssh_plain.fresh()
    write_files(folder.path, {"in/a.csv": b"1"})
    extra = {
        "base_path": folder.base_path,
        "private_key": asyncssh_plain.client_key.read_text(),
        "known_host_keys": asyncssh_plain.known_hosts,
    }
    connection = {
        "conn_type": "sftp_backend", "host": asyncssh_plain.host, "port": asyncssh_plain.port,
        "login": asyncssh_plain.username, "extra": extra,
    }  # fmt: skip
    home = str(tmp_path / "airflow")
    done = run_with_airflow("ls", "partner", "in/*", AIRFLOW_CONN_PARTNER=json.dumps(connection), AIRFLOW_HOME=home)
    assert (done.returncode, done.stdout.split()[::2]) == (0, ["1", "in/a.csv"]), done.stderr
