"""``make release`` stops at each problem, or builds a release."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.release import PAGES, RESERVED_ADDRESSES, TESTS, Project, problems
from tests.support.files import write_files

TOP = Path(__file__).parents[1]
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-01-02\n\n* A change.\n\n## [1.1.0] - 2025-01-02\n"
PROJECT = Project("parcel", "1.2.0", {"Source": "https://git.invalid/parcel"})
PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "parcel"
version = "1.2.0"
requires-python = ">=3.11"
description = "An example."
readme = "README.md"
urls = { Source = "https://git.invalid/parcel" }
[tool.hatch.build.targets.wheel]
packages = ["parcel"]
[tool.hatch.build.targets.sdist]
include = ["parcel"]
"""


def test_contributing_names_the_tests_of_a_release() -> None:
    section = (TOP / "CONTRIBUTING.md").read_text().partition("## How to release")[2]
    commands = re.findall(r"`(\.ci/run|make [\w-]+)`", section)
    by_hand = {"make release", "make matrix", "make soak"}  # hours, and other Pythons
    assert set(commands) - by_hand == set(TESTS)
    # The commands that write a page say so in `make help`.
    written = re.findall(r"^[\w-]+:.*## .*write (docs/\S+\.md)", (TOP / "Makefile").read_text(), re.MULTILINE)
    assert set(PAGES) <= set(written)


def test_a_dated_section_of_the_version_is_ready() -> None:
    assert problems(PROJECT, CHANGELOG, tagged=False) == []


@pytest.mark.parametrize(
    ("project", "changelog", "tagged", "problem"),
    [
        (PROJECT, CHANGELOG.replace(" - 2026-01-02", ""), False, r"Date the section of this version: ## \[1.2.0\] - "),
        (PROJECT, "# Changelog\n\n## [Unreleased]\n", False, "the newest section is 'no section'"),
        (replace(PROJECT, version="1.3.0"), CHANGELOG, False, r"the newest section is '\[1.2.0\] - 2026-01-02'"),
        (replace(PROJECT, version="1.1.0"), CHANGELOG, False, r"the newest section is '\[1.2.0\]"),
        (PROJECT, CHANGELOG.replace("]\n\n##", "]\n\n* More.\n\n##", 1), False, r"\[Unreleased\] is not empty"),
        (PROJECT, CHANGELOG, True, "v1.2.0 is the tag of another commit"),
    ],
    ids=["no date", "no section", "newer version", "older version", "unreleased", "tagged"],
)
def test_what_keeps_a_version_from_a_release(project: Project, changelog: str, tagged: bool, problem: str) -> None:
    (found,) = problems(project, changelog, tagged)
    assert re.search(problem, found)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Repository of a small package with tests that count runs."""
    makefile = "test-all servers reliability:\n\techo $@ >> ran\nservers: page\npage:\n\techo new > docs/servers.md\n"
    write_files(
        tmp_path,
        {
            "pyproject.toml": PYPROJECT.encode(),
            "CHANGELOG.md": CHANGELOG.encode(),
            "README.md": b"# Example\n",
            "Makefile": makefile.encode(),
            ".ci/run": b"#!/bin/sh\necho run >> ran\n",
            ".gitignore": b"/build\n/dist\n/ran\n",
            "docs/servers.md": b"old\n",
            "parcel/__init__.py": b'"""An example."""\n',
        },
    )
    (tmp_path / ".ci/run").chmod(0o755)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(clone: Path, *arguments: str) -> None:
    who = ("-c", "user.name=Tests", "-c", "user.email=tests@example.com")
    subprocess.run(["git", *who, *arguments], cwd=clone, check=True, capture_output=True)


def commit(clone: Path) -> None:
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "Change")


def release(clone: Path) -> tuple[int, str]:
    """Run the script of `make release`, and return its status and output."""
    script = TOP / "scripts/release.py"
    done = subprocess.run([sys.executable, script], cwd=clone, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_release_is_tested_built_and_checked(clone: Path) -> None:
    status, output = release(clone)
    assert (status, (clone / "ran").read_text().split()) == (1, ["run", "test-all", "servers", "reliability"])
    assert "the tests wrote these pages: commit them" in output
    assert "docs/servers.md" in output
    commit(clone)
    status, output = release(clone)
    assert status == 0, output
    assert len((clone / "ran").read_text().split()) == 4  # not again for a page
    assert {path.name for path in (clone / "dist").iterdir()} == {
        "parcel-1.2.0-py3-none-any.whl",
        "parcel-1.2.0.tar.gz",
    }
    last = output[output.index("parcel 1.2.0 is ready") :].splitlines()
    assert last[2].startswith("  git tag v1.2.0 ")
    assert last[3].endswith("twine upload dist/parcel-1.2.0-py3-none-any.whl dist/parcel-1.2.0.tar.gz")


def test_a_release_with_reserved_addresses_is_built_but_not_published(clone: Path) -> None:
    address = "https://git.example.com/parcel"
    table = f'[project.urls]\nSource = "{address}"\nIssues = "https://git.invalid/issues"\n'
    pages = (clone / "Makefile").read_text().replace("echo new", "echo old")
    pyproject = re.sub(r"urls = .*\n", table, PYPROJECT)
    write_files(clone, {"Makefile": pages.encode(), "pyproject.toml": pyproject.encode()})
    commit(clone)
    status, output = release(clone)
    assert status == RESERVED_ADDRESSES, output
    assert len(list((clone / "dist").iterdir())) == 2
    assert "twine upload" not in output
    assert "git tag" not in output
    number = pyproject[: pyproject.index("Source = ")].count("\n") + 1
    assert re.findall(r"  pyproject.toml:.*", output) == [f'  pyproject.toml:{number}: Source = "{address}"']


def test_a_changed_file_repeats_the_tests(clone: Path) -> None:
    release(clone)
    write_files(clone, {".ci/run": b"#!/bin/sh\necho again >> ran; exit 3\n"})
    commit(clone)
    assert "`.ci/run` failed: exit status 3" in release(clone)[1]
    assert (clone / "ran").read_text().split()[4:] == ["again"]


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("new", b"", "commit or remove these files:\n?? new"),
        ("CHANGELOG.md", b"# Changelog\n", "the newest section is 'no section'"),
        ("parcel/copy.py", b'"""An example."""\n', "W002: Wheel contains duplicate files"),
        ("README.md", b"", "twine check --strict dist/parcel-1.2.0-py3-none-any.whl dist/parcel-1.2.0.tar.gz` failed"),
    ],
)
def test_a_release_stops_at_a_problem(clone: Path, file: str, content: bytes, problem: str) -> None:
    pages = (clone / "Makefile").read_text().replace("echo new", "echo old")
    write_files(clone, {"Makefile": pages.encode()})
    commit(clone)
    write_files(clone, {file: content})
    if file != "new":
        commit(clone)
    status, output = release(clone)
    assert (status, "is ready" in output) == (1, False)
    assert problem in output
