"""Run the tests with each supported Airflow and Python, and record the results in docs/versions.md: ``make matrix``.

``nox --list`` shows the rows, and ``nox -s "airflow(3.0.6-py3.12-lowest)"`` runs one of them. A Python that is not on
this machine is skipped: its rows keep their last result.
"""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["airflow", "backend"]

FLOOR: Final = "3.0.6"
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
ROWS: Final = (
    (FLOOR, "3.11", "newest"),
    (FLOOR, "3.12", "newest"),
    (FLOOR, "3.12", "lowest"),
    ("3.1.8", "3.12", "newest"),
    ("3.1.8", "3.13", "newest"),
    ("3.2.2", "3.11", "newest"),
    ("3.2.2", "3.13", "newest"),
    ("3.3.2", "3.11", "newest"),
    ("3.3.2", "3.12", "newest"),
    ("3.3.2", "3.13", "newest"),
    ("3.3.2", "3.13", "lowest"),
    ("3.3.2", "3.14", "newest"),
)
"""Airflow, Python and dependency set of each row: the floor and the last patch of each minor version."""
BACKEND_ROWS: Final = (*((python, "newest") for python in PYTHONS), ("3.11", "lowest"))

WORKERS: Final = os.environ.get("WORKERS", "2")
# With dependencies other than those of constraints.txt, other projects warn of what they deprecate: a warning fails a
# test only if this package raises it or leaks something.
WARNINGS: Final = """filterwarnings=default
error:::airflow_sftp_backend
error::pytest.PytestUnraisableExceptionWarning
error::pytest.PytestUnhandledThreadExceptionWarning"""


def _works(python: str) -> bool:
    """Return whether an interpreter runs: a version manager's shim exists for versions that are not active."""
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _find_pythons() -> None:
    """Put interpreters of pyenv on PATH, if no interpreter of that version is there."""
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    for version in PYTHONS:
        if not _works(f"python{version}"):
            found = [path for path in sorted(glob.glob(f"{root}/versions/{version}.*/bin")) if _works(f"{path}/python")]
            os.environ["PATH"] = os.pathsep.join([*found[-1:], os.environ["PATH"]])


_find_pythons()


@nox.session
@nox.parametrize(
    "python,airflow,dependencies",
    [nox.param(python, airflow, deps, id=f"{airflow}-py{python}-{deps}") for airflow, python, deps in ROWS],
)
def airflow(session: nox.Session, airflow: str, dependencies: str) -> None:
    """Run the tests of the Airflow layer and the demo with an Airflow, a Python and a dependency set."""
    _install(session, airflow, dependencies)
    results = _test_twice(session, "tests/airflow")
    demo = _demo(session)
    _record(session, "airflow", results, "--airflow", airflow, "--dependencies", dependencies, "--demo", demo)


@nox.session
@nox.parametrize(
    "python,dependencies", [nox.param(python, deps, id=f"py{python}-{deps}") for python, deps in BACKEND_ROWS]
)
def backend(session: nox.Session, dependencies: str) -> None:
    """Run the tests of the backend with a Python and a dependency set."""
    _install(session, ROWS[-1][0], dependencies)
    _record(session, "backend", _test_twice(session, "tests/backend"), "--dependencies", dependencies)


@nox.session(python=next((version for version in ("3.12", "3.11") if _works(f"python{version}")), "3.12"))
def floor(session: nox.Session) -> None:
    """Run the Airflow layer and the demo on the oldest supported Airflow, with the pinned versions: a part of CI."""
    session.install(
        "-c", f"constraints/airflow-{FLOOR}.txt", f"apache-airflow=={FLOOR}", "-e", ".[test,demo]", silent=True
    )
    _install_sftp_provider(session)
    results = _test(session, "tests/airflow")
    demo = _demo(session)
    _record(session, "check", [results], "--demo", demo)


def _install(session: nox.Session, airflow: str, dependencies: str) -> None:
    bounds = Path(f"constraints/airflow-{airflow}.in")
    wanted = [*(["-c", str(bounds)] if bounds.exists() else []), f"apache-airflow=={airflow}"]
    if dependencies == "lowest":
        session.install("--resolution", "lowest-direct", *wanted, "-e", ".[demo]")
        wanted += ["-c", str(_freeze(session))]  # the tools of the tests must not raise them
    session.install(*wanted, "-e", ".[test,demo]")
    _install_sftp_provider(session)


def _freeze(session: nox.Session) -> Path:
    """Write the installed versions to a file of constraints, and return its path."""
    program = "from importlib.metadata import distributions as d; [print(f'{x.name}=={x.version}') for x in d()]"
    frozen = Path(session.virtualenv.location) / "lowest.txt"
    installed = str(session.run("python", "-c", program, silent=True)).splitlines()
    frozen.write_text("\n".join(line for line in installed if not line.startswith("airflow-sftp-backend")))
    return frozen


def _install_sftp_provider(session: nox.Session) -> None:
    """Install the official provider beside the environment, for the tests that compare with it."""
    target = Path(session.virtualenv.location) / "sftp-provider"
    session.install("-c", "constraints.txt", "--no-deps", "--target", str(target), "apache-airflow-providers-sftp")


def _test(session: nox.Session, *arguments: str, workers: str = WORKERS, name: str = "results.xml") -> Path:
    """Run tests, and return the file with their results."""
    folder = Path(session.virtualenv.location)
    results = folder / name
    # The machine may be busy with another session: a test has three times its usual patience.
    options = ("-q", "-n", workers, "--dist=worksteal", "--timeout=180", "-o", f"cache_dir={folder}/pytest-cache")
    command = ("python", "-m", "pytest", *options)
    given = ("-m", "not system", *arguments, *session.posargs)
    session.run(*command, "-o", WARNINGS, f"--junitxml={results}", *given, success_codes=[0, 1])
    return results


def _test_twice(session: nox.Session, *arguments: str) -> list[Path]:
    """Run tests, and those that fail once more and alone, because some fail only on a busy machine.

    :returns: the files with the results: of all tests, and of the repeated ones
    """
    results = _test(session, *arguments)
    if not _failed(results):
        return [results]
    return [results, _test(session, *arguments, "--last-failed", workers="0", name="repeated.xml")]


def _failed(results: Path) -> bool:
    return any(tag in results.read_text() for tag in ("<failure", "<error"))


def _demo(session: nox.Session) -> str:
    """Run the demo, and return its outcome."""
    done = session.run("python", "-m", "demo", success_codes=[0, 1], silent=True)
    session.log(str(done))
    return "passed" if "Every step succeeded" in str(done) else "failed"


def _record(session: nox.Session, table: str, results: list[Path], *arguments: str) -> None:
    """Write the row of the page; end the session as failed unless all tests and the demo passed."""
    python = session.run("python", "-c", "import platform; print(platform.python_version())", silent=True)
    command = [sys.executable, "scripts/versions_page.py", table, "--python", str(python).strip()]
    session.run(*command, "--results", *map(str, results), *arguments, external=True)
