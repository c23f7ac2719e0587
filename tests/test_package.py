"""The wheel is complete, typed, and works with its requirements."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib.metadata import version
from pathlib import Path

import pytest

import airflow_sftp_backend
from tests.support.files import read_files, write_files
from tests.support.servers import OpenSSHServer

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text()
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
BIN = Path(sys.executable).parent
USERS_FILE = """\
from airflow_sftp_backend import FileInfo, SFTPBackend

with SFTPBackend("sftp.example.com", username="partner") as backend:
    files: list[FileInfo] = backend.find("inbox/*.csv")
    reveal_type(backend.read_bytes("a.csv"))
    backend.write(path=1, content=b"")
"""


def run(*command: object, **environment: str) -> str:
    """Run a command outside of the clone, and return its output."""
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    cwd = environment.get("AIRFLOW_HOME", "/")
    done = subprocess.run(
        [str(part) for part in command], env=given, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with the sdist, and the wheel built from it."""
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, TOP)
    return dist


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def test_wheel_and_sdist_pass_the_checks_of_an_index(built: Path, wheel: Path) -> None:
    assert run(BIN / "twine", "check", "--strict", *built.iterdir()).count("PASSED") == 2
    assert run(BIN / "check-wheel-contents", wheel).endswith(": OK\n")


def test_the_wheel_contains_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    here = TOP / "airflow_sftp_backend"
    files = [path for path in here.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert names == {path.relative_to(TOP).as_posix() for path in files}


def test_the_sdist_contains_what_its_tests_read(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {
        ".ci/run",
        "Makefile",
        "constraints.txt",
        "docs/tasks.md",
        "scripts/release.py",
        "tests/conftest.py",
    }


def test_the_readme_installs_the_name_of_the_wheel(metadata: Message) -> None:
    commands = [line for path in [TOP / "README.md", *TOP.glob("docs/*.md")] for line in path.read_text().splitlines()]
    named = re.findall(r"pip install [\"']?(airflow-sftp[\w-]*)", "\n".join(commands))
    assert set(named) == {metadata["Name"]}


def test_the_version_has_one_source(metadata: Message) -> None:
    assert metadata["Version"] == PROJECT["version"]
    # The environment of the tests has the version that the package had when it was installed.
    assert airflow_sftp_backend.__version__ == version("airflow-sftp-backend")
    number = re.compile(rf"(?<![\d.]){re.escape(PROJECT['version'])}(?![\d.])")
    sources = [*(TOP / "airflow_sftp_backend").rglob("*.py"), *(TOP / "scripts").glob("*.py"), TOP / "Makefile"]
    assert [path.name for path in sources if number.search(path.read_text())] == []


def test_the_addresses_of_the_project_are_in_the_metadata(metadata: Message) -> None:
    labels = [line.partition(",")[0] for line in metadata.get_all("Project-URL") or ()]
    assert labels == ["Documentation", "Source", "Changelog", "Issues"]


@pytest.mark.parametrize("typed", [True, False], ids=["as built", "without py.typed"])
def test_mypy_reads_the_types_of_the_installed_wheel(wheel: Path, tmp_path: Path, typed: bool) -> None:
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    (packages,) = environment.glob("lib/python*/site-packages")
    run(BIN / "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--target", packages, wheel)
    if not typed:
        (packages / "airflow_sftp_backend/py.typed").unlink()
    (tmp_path / "dag.py").write_text(USERS_FILE)
    mypy: list[str | Path] = [BIN / "mypy", "--strict", "--config-file=", "--cache-dir", tmp_path / "cache"]
    done = subprocess.run(
        [*mypy, "--python-executable", environment / "bin/python", "dag.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if typed:
        assert re.findall(r"^dag\.py:(\d+): \w+: (.*?)(?:  \[|$)", done.stdout, re.MULTILINE) == [
            ("5", 'Revealed type is "bytes"'),
            ("6", 'Argument "path" to "write" of "SFTPBackend" has incompatible type "int"; expected "str"'),
        ]
    else:
        assert "missing library stubs or py.typed marker" in done.stdout


@pytest.mark.system
@pytest.mark.timeout(600)
def test_the_dag_of_the_readme_runs_from_the_installed_wheel(
    wheel: Path, openssh: OpenSSHServer, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    install(wheel, environment)
    orders = write_files(tmp_path / "orders", {"a.csv": b"one", "b.csv": b"two"})
    folder = openssh.fresh()
    write_files(folder.path, {"inbox/answer.csv": b"three"})
    dag = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    for shown, used in (("/data/orders", str(orders)), ("stable_for=30", "stable_for=1, poke_interval=1")):
        assert shown in dag
        dag = dag.replace(shown, used)
    home = tmp_path / "airflow"
    write_files(home, {"dags/partner.py": dag.encode()})
    connection = {
        "conn_type": "sftp_backend", "host": openssh.host, "port": openssh.port, "login": openssh.username,
        "extra": {
            "private_key": openssh.client_key.read_text(), "known_host_keys": openssh.known_hosts,
            "base_path": folder.base_path,
        },
    }  # fmt: skip
    settings = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_SFTP_BACKEND_DEFAULT": json.dumps(connection),
        "PATH": f"{environment}/bin:{os.environ['PATH']}",
    }
    run("airflow", "db", "migrate", **settings)
    run("airflow", "dags", "test", "partner", **settings)
    sent = {"outbox/a.csv": b"one", "outbox/b.csv": b"two"}
    (archived,) = read_files(folder.path).keys() - sent
    assert re.fullmatch(r"archive/\d{4}-\d\d-\d\d/answer\.csv", archived)
    assert read_files(folder.path) == {**sent, archived: b"three"}
    assert run("airflow-sftp-backend", "--version", **settings) == f"airflow-sftp-backend {PROJECT['version']}\n"
    code = "from airflow.providers_manager import ProvidersManager as P; i = P().providers['airflow-sftp-backend']"
    shown = run("python", "-c", f"{code}; print(i.version, i.data['documentation-url'])", **settings)
    assert shown.split()[-2:] == [PROJECT["version"], PROJECT["urls"]["Documentation"]]


def install(wheel: Path, environment: Path) -> None:
    """Install the wheel at pinned versions, from a cache if possible."""
    uv = [BIN / "uv", "pip", "install", "--quiet", "--python", environment / "bin/python"]
    uv += ["--constraint", TOP / "constraints.txt"]
    # The tests have a home directory of their own.
    cache = os.environ.get("UV_CACHE_DIR") or f"{pwd.getpwuid(os.getuid()).pw_dir}/.cache/uv"
    run(BIN / "uv", "venv", "--quiet", "--python", sys.executable, environment)
    try:
        run(*uv, "--offline", wheel, UV_CACHE_DIR=cache)
    except AssertionError:
        run(*uv, wheel, UV_CACHE_DIR=cache)
