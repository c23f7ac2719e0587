"""Do everything for a release but the upload: ``make release``.

Check the tree, the version and the changelog, run the tests, build wheel and sdist, and check both. The last lines are
the commands that publish the release, or the addresses in pyproject.toml to change before.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

TESTS: Final = (".ci/run", "make test-all", "make servers", "make reliability")
"""The commands that CONTRIBUTING.md names for a release."""
PAGES: Final = ("docs/servers.md", "docs/reliability.md")
"""The pages that these commands write."""
TESTED: Final = "build/tested-commit"
RESERVED_HOSTS: Final = re.compile(r"(.*\.)?example(\.com|\.net|\.org)?")
"""Hosts that RFC 2606 reserves for documentation."""
RESERVED_ADDRESSES: Final = 3
"""Exit status: the release is built and checked, but addresses of the project have reserved hosts."""


class NotReady(Exception):
    """Report why this commit cannot be released."""


@dataclass(frozen=True)
class Project:
    """Parts of pyproject.toml that concern a release.

    :ivar name: name of the distribution
    :ivar version: the version; no other file has it
    :ivar urls: label -> address
    """

    name: str
    version: str
    urls: dict[str, str]

    @classmethod
    def read(cls, text: str) -> Project:
        """Read pyproject.toml."""
        project: dict[str, Any] = tomllib.loads(text)["project"]
        return cls(project["name"], project["version"], project.get("urls", {}))


def problems(project: Project, changelog: str, tagged: bool) -> list[str]:
    """List what is wrong with the files of a release.

    :param project: name, version and addresses
    :param changelog: text of CHANGELOG.md
    :param tagged: whether another commit has the version's tag
    :returns: one sentence for each problem
    """
    found = []
    unreleased, *sections = re.split(r"^## (?!\[Unreleased\])", changelog, flags=re.MULTILINE)
    newest = sections[0].splitlines()[0] if sections else "no section"
    if not re.fullmatch(rf"\[{re.escape(project.version)}\] - \d{{4}}-\d\d-\d\d", newest):
        wanted = f"## [{project.version}] - YYYY-MM-DD"
        found.append(f"CHANGELOG.md: the newest section is {newest!r}. Date the section of this version: {wanted}")
    if "## [Unreleased]" in unreleased and unreleased.split("## [Unreleased]")[1].strip():
        found.append(f"CHANGELOG.md: [Unreleased] is not empty. Move its lines to the section of {project.version}")
    if tagged:
        found.append(f"v{project.version} is the tag of another commit. Set the next version in pyproject.toml")
    return found


def reserved_addresses(pyproject: str) -> list[str]:
    """List the lines with addresses of the project on reserved hosts.

    :param pyproject: text of pyproject.toml
    :returns: the lines, each after the file's name and its number
    """
    urls = Project.read(pyproject).urls.values()
    reserved = [url for url in urls if RESERVED_HOSTS.fullmatch(urlsplit(url).hostname or "")]
    lines = enumerate(pyproject.splitlines(), 1)
    return [f"pyproject.toml:{number}: {line}" for number, line in lines if any(url in line for url in reserved)]


def main() -> int:
    """Check, test and build the commit in the current directory.

    :returns: exit status: 0 if the release can be uploaded
    """
    try:
        pyproject = Path("pyproject.toml").read_text()
        project = Project.read(pyproject)
        _check_tree("commit or remove these files")
        found = problems(project, Path("CHANGELOG.md").read_text(), _is_tagged_elsewhere(f"v{project.version}"))
        if found:
            raise NotReady("\n".join(found))
        _test()
        files = _build()
    except NotReady as error:
        print(f"make release: {error}", file=sys.stderr)
        return 1
    if lines := reserved_addresses(pyproject):
        print(f"\n{project.name} {project.version} is built and checked, but its addresses have reserved hosts.")
        print("Set the public addresses in these lines, commit, and run `make release` again:\n")
        print(*(f"  {line}" for line in lines), sep="\n")
        return RESERVED_ADDRESSES
    tag = f"v{project.version}"
    print(f"\n{project.name} {project.version} is ready. Publish it with\n")
    print(f"  git tag {tag} {_git('rev-parse', 'HEAD')} && git push origin {tag}")
    print(f"  {_tool('twine')} upload {' '.join(files)}")
    return 0


def _test() -> None:
    """Run the tests, unless they passed on an equal commit.

    The pages that the tests write may differ.
    """
    tested = Path(TESTED)
    if tested.exists() and not _git("diff", tested.read_text(), "HEAD", "--", ".", *(f":!{page}" for page in PAGES)):
        print(f"the tests passed on {tested.read_text()}")
        return
    for command in TESTS:
        _run(*command.split())
    tested.parent.mkdir(exist_ok=True)
    tested.write_text(_git("rev-parse", "HEAD"))
    _check_tree(
        "the tests wrote these pages: commit them and run `make release` again, which does not repeat the tests"
    )


def _build() -> list[str]:
    """Build and check wheel and sdist, and return their paths."""
    for old in Path("dist").glob("*"):
        old.unlink()
    # The environment has the build backend at a pinned version. The wheel is built from the sdist.
    _run(sys.executable, "-m", "build", "--no-isolation")
    files = sorted(map(str, Path("dist").glob("*")))
    _run(_tool("twine"), "check", "--strict", *files)
    _run(_tool("check-wheel-contents"), *(file for file in files if file.endswith(".whl")))
    return files


def _check_tree(remedy: str) -> None:
    if changed := _git("status", "--porcelain"):
        raise NotReady(f"{remedy}:\n{changed}")


def _is_tagged_elsewhere(tag: str) -> bool:
    commit = _git("rev-list", "-n", "1", tag) if _git("tag", "--list", tag) else ""
    return commit not in ("", _git("rev-parse", "HEAD"))


def _tool(name: str) -> str:
    """Return the path of a command of this environment."""
    return os.path.relpath(Path(sys.executable).parent / name)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()  # noqa: S607


def _run(*command: str) -> None:
    print("$", *command, flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise NotReady(f"`{' '.join(command)}` failed: exit status {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
