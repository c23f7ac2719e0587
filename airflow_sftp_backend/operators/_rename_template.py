"""Fill in the templates of ``rename``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Final, TypeVar

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._path_arguments import PLACEHOLDER
from airflow_sftp_backend.backend import InvalidPath

T = TypeVar("T")

_WORDS: Final = ("name", "stem", "suffix", "date", "time", "timestamp")


def check_rename(rename: object) -> None:
    """Check a template for file names.

    :param rename: the template
    :raises InvalidArgument: for a value other than text, an unknown placeholder, or a template without a file name
    """
    if not isinstance(rename, str):
        raise InvalidArgument(f"rename is {rename!r}; expected a template such as {{date}}/{{stem}}-old{{suffix}}")
    for word in PLACEHOLDER.findall(rename):
        if word not in _WORDS:
            expected = ", ".join(f"{{{known_word}}}" for known_word in _WORDS)
            raise InvalidArgument(f"rename has {{{word}}} in it, an unknown placeholder; expected {expected}")
    segments = rename.split("/")
    if not rename.strip("/") or segments[-1] in ("", ".") or ".." in segments:
        raise InvalidArgument(f"rename is {rename!r}; expected a template of a file name, such as {{date}}/{{name}}")


def check_rename_early(rename: object) -> None:
    """Check a template when the DAG is parsed.

    A Jinja template is not checked, because it has to be rendered first.

    :param rename: the template; None keeps the names
    :raises InvalidArgument: as `check_rename`
    """
    if isinstance(rename, str) and "{{" not in rename and "{%" not in rename:
        check_rename(rename)


@dataclass(frozen=True, slots=True)
class RenameTemplate:
    """Give each file a path below its target.

    :ivar template: the template
    :ivar run_time: the run's time, equal in all attempts
    """

    template: str
    run_time: datetime

    @classmethod
    def parse(cls, rename: str | None, run_time: datetime) -> RenameTemplate | None:
        """Check a rendered template.

        :param rename: the template; None keeps the names
        :param run_time: the run's time
        :returns: the template; None without one
        :raises InvalidArgument: as `check_rename`
        """
        if rename is None:
            return None
        check_rename(rename)
        return cls(rename, run_time)

    def fill(self, name: str) -> str:
        """Fill in the placeholders.

        :param name: the file's name
        :returns: the file's new path
        :raises InvalidPath: if the new path has no file name, such as ``{suffix}`` for a file without a suffix
        """
        parts, time = PurePosixPath(name), self.run_time.astimezone(UTC)
        # ``..a`` has the stem ``.``, which names a directory
        has_stem = parts.stem not in (".", "..")
        words = {
            "name": name,
            "stem": parts.stem if has_stem else name,
            "suffix": parts.suffix if has_stem else "",
            "date": time.date().isoformat(),
            "time": time.strftime("%H%M%S"),
            "timestamp": time.strftime("%Y%m%dT%H%M%S"),
        }
        path = PLACEHOLDER.sub(lambda placeholder: words[placeholder[1]], self.template)
        if path.rpartition("/")[2] in ("", ".", ".."):
            raise InvalidPath(
                f"rename={self.template!r} makes {path!r} of the name {name!r}, which is not a file name; the file was"
                " left unchanged. Add a placeholder such as {stem}, or exclude the file",
                path=name,
            )
        return path


def split_nameless(
    files: Iterable[T], rename: RenameTemplate | None, name_and_path: Callable[[T], tuple[str, str]]
) -> tuple[list[T], list[InvalidPath]]:
    """Separate the files for which a template gives an empty name.

    :param files: the files
    :param rename: the template; None keeps the names
    :param name_and_path: returns the name and the path of a file
    :returns: the files with a new name, and a failure for each file without one
    """
    if rename is None:
        return list(files), []
    named: list[T] = []
    failures: list[InvalidPath] = []
    for file in files:
        name, path = name_and_path(file)
        try:
            rename.fill(name)
        except InvalidPath as error:
            error.path = path
            failures.append(error)
        else:
            named.append(file)
    return named, failures
