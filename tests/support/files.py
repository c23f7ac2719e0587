"""Write files for a test, and read back everything below a directory."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.servers import Folder


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Writes files into a folder, by path below it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden and temporary ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tree(folder: Path) -> dict[str, bytes | None]:
    """Read everything below ``folder``: file contents, None, and links."""
    held: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            held[name] = os.fsencode(f"-> {path.readlink()}")
        else:
            held[name] = None if path.is_dir() else path.read_bytes()
    return held


def write_one_byte_files(folder: Folder, *names: str) -> None:
    """Files of one byte, with their folders."""
    for name in names:
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_bytes(b"x")
