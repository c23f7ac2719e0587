"""Which file goes where: sources named by paths, folders, globs or lists, and the target each is to have.

Local sources and targets are paths of this machine or URLs of any `ObjectStoragePath`. Names that a server gave
become local names only after each of their segments has been judged alone.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, TypeAlias

from ._arguments import InvalidArgument
from .backend import InvalidPath
from .backend._paths import is_temp_name
from .ends import is_url, object_path
from .killed import undisturbed

if TYPE_CHECKING:
    from .backend import FileInfo, SFTPBackend

IfExists: TypeAlias = Literal["fail", "replace", "skip", "skip_same"]
MoveIfExists: TypeAlias = Literal["fail", "replace", "skip", "skip_same", "number"]
BLANK = re.compile(r"\{(\w*)\}")
"""A word in braces, which stands for something else."""
_WILDCARD = re.compile(r"[*?\[]")
_LIST_AS_TEXT = re.compile(r"\s*\[\s*(['\"]).*\1\s*,?\s*\]\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Step:
    """One file on its way: where from, where to, and its size in bytes where that is known."""

    source: str
    target: str
    size: int | None = None


def paths(
    value: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], what: str, *, none_ok: bool = False
) -> list[str]:
    """The paths an argument names. InvalidArgument for what is none, such as the row of a file.

    Also if one is empty or None, as a template that found nothing renders, or if there are none at all, unless
    that is ``none_ok``.
    """
    if isinstance(value, Mapping):
        raise InvalidArgument(f"{what} is a path or a list of paths, not a mapping; of a file's row take its 'path'")
    with undisturbed():  # of the output of a mapped task each item is asked of Airflow
        given = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]
    if None in given:
        raise InvalidArgument(f"{what} is None; if it is a template, that is what it rendered to")
    if any(isinstance(one, Mapping) for one in given):
        raise InvalidArgument(
            f"{what} is a path or a list of paths, not a list of mappings; of a file's row take its 'path'"
        )
    if other := [type(one).__name__ for one in given if not isinstance(one, str | os.PathLike)]:
        raise InvalidArgument(f"{what} is a path or a list of paths, not {other[0]}")
    found = [os.fspath(one).removeprefix("file://") for one in given]
    if any(_LIST_AS_TEXT.fullmatch(one) for one in found):
        raise InvalidArgument(
            f"{what} is a list that a template has made a text of: {found[0][:60]!r}; give the DAG"
            " render_template_as_native_obj=True"
        )
    if not (found or none_ok) or any(not one.strip() for one in found):
        raise InvalidArgument(f"{what} is empty; if it is a template, look at what it renders to")
    return found


def one_path(value: str | os.PathLike[str], what: str) -> str:
    """The one path an argument names. Raises as `paths` does, also for several."""
    found = paths(value, what)
    if len(found) != 1:
        raise InvalidArgument(f"{what} is one path, not {len(found)}")
    return found[0]


def is_glob(path: str) -> bool:
    """True if the path has a wildcard."""
    return _WILDCARD.search(path) is not None


def literally(path: str) -> str:
    """A pattern that fits that path alone."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def unspeakable(*names: str) -> InvalidPath | None:
    """Why Airflow cannot be told of a file with one of these names; None if it can: what tasks return is UTF-8."""
    for name in names:
        if not name.isascii() and re.search("[\udc80-\udcff]", name):
            shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            message = "the name is not UTF-8, and Airflow carries no other in XCom; rename the file, or use SFTPBackend"
            return InvalidPath(message, path=shown)
    return None


def checked(steps: list[Step]) -> list[Step]:
    """The steps, unless two of them have one target: InvalidArgument."""
    taken: dict[str, str] = {}
    for step in steps:
        if (other := taken.setdefault(step.target, step.source)) != step.source:
            raise InvalidArgument(f"{other!r} and {step.source!r} would both become {step.target!r}")
    return list(dict.fromkeys(steps))


# -- from here to the server ------------------------------------------------------------------------------------------


def uploads(sources: Sequence[str], target: str) -> list[Step]:
    """The steps of an upload: ``sources`` are local files, folders, globs or URLs of such.

    ``target`` is a folder if it ends with ``/`` or if anything else than one plain file is sent. What a folder holds
    keeps its names below that folder; what a glob finds keeps them below the glob's first segment with a wildcard.
    Of both, what landings have not finished is left out.
    Raises FileNotFoundError for what is not there, InvalidArgument if two files would have one target.
    """
    found = [one for source in sources for one in (_object_files if is_url(source) else _local_files)(source)]
    plain = len(sources) == 1 and len(found) == 1 and found[0][0] == sources[0] and not target.endswith("/")
    folder = target.rstrip("/")
    return checked([Step(name, target if plain else f"{folder}/{below}", size) for name, below, size in found])


def _local_files(source: str) -> Iterator[tuple[str, str, int | None]]:
    """Each file of a source: its path, its path below the source, its size in bytes."""
    if "\0" in source:
        raise InvalidArgument(f"source has a NUL character in it: {source!r}")
    if not is_glob(source) or os.path.lexists(source):
        if not os.path.isdir(source):
            yield source, os.path.basename(source), os.stat(source).st_size
            return
        top, files = source, sorted(_held_by(source))
    else:
        top, found = _literal_folder(source), glob.glob(source, recursive=True, include_hidden=True)
        files = [path for path in sorted(found) if os.path.isfile(path)]
    files = [path for path in files if not is_temp_name(os.path.basename(path))]
    if not files:
        raise FileNotFoundError(errno.ENOENT, "no local file fits", source)
    for path in files:
        yield path, Path(os.path.relpath(path, top or ".")).as_posix(), os.stat(path).st_size


def _held_by(folder: str) -> Iterator[str]:
    """Every file below a folder, through links too. Nothing is left out: OSError for what cannot be read,
    InvalidArgument for a link in a circle.
    """

    def fail(error: OSError) -> None:
        raise error

    above: dict[str, frozenset[str]] = {folder: frozenset()}
    for here, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real, seen = os.path.realpath(here), above.pop(here)
        if real in seen:
            raise InvalidArgument(f"the link {here!r} leads to a folder it lies in")
        above |= {os.path.join(here, name): seen | {real} for name in folders}
        yield from (os.path.join(here, name) for name in names)


def _object_files(source: str) -> Iterator[tuple[str, str, int | None]]:
    start = object_path(source)
    if start.is_file():
        yield source, start.name, start.stat().st_size
        return
    top = object_path(_literal_folder(source)) if is_glob(source) else start
    found = sorted(top.glob(source.removeprefix(str(top)).lstrip("/")) if is_glob(source) else top.rglob("*"), key=str)
    files = [path for path in found if path.is_file() and not is_temp_name(path.name)]
    if not files:
        raise FileNotFoundError(errno.ENOENT, "no file fits", source)
    for path in files:
        yield str(path), str(path).removeprefix(str(top)).lstrip("/"), path.stat().st_size


def _literal_folder(pattern: str) -> str:
    """What stands before the first segment with a wildcard."""
    segments = pattern.split("/")
    first = next(at for at, segment in enumerate(segments) if is_glob(segment))
    return "/".join(segments[:first])


# -- on the server, and from there to here ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """A file on the server, its path below the source that named it, and that source."""

    info: FileInfo
    below: str
    source: str = ""


def on_server(backend: SFTPBackend, sources: Sequence[str]) -> tuple[list[Found], list[str]]:
    """The files that ``sources`` name, and the sources that name none.

    A source is a path, a glob, or a folder ending with ``/``, which means all it holds.
    """
    for source in sources:
        if source.endswith("/") and is_glob(source):
            raise InvalidArgument(f"{source!r} is a pattern for folders; say {source + '**'!r} for the files in them")
    plain = [source for source in sources if not is_glob(source) and not source.endswith("/")]
    there = {info.path: info for info in backend.find(*plain)}
    found: dict[str, Found] = {}
    missing: list[str] = []
    for source in sources:
        if source in plain:
            key = backend.resolve(source).key
            here = [Found(there[key], there[key].name, source)] if key in there else []
        else:
            pattern = f"{literally(source)}**" if source.endswith("/") and not is_glob(source) else source
            top = backend.resolve(_literal_folder(pattern)).key
            here = [Found(info, info.path.removeprefix(top).lstrip("/"), source) for info in backend.find(pattern)]
        if not here:
            missing.append(source)
        found |= {one.info.path: one for one in here if one.info.path not in found}
    return list(found.values()), missing


def goes_into_folder(sources: Sequence[str], target: str) -> bool:
    """True if ``target`` is a folder to fill: it ends with ``/``, or there may be several sources."""
    return target.endswith("/") or len(sources) > 1 or is_glob(sources[0]) or sources[0].endswith("/")


def downloads(found: Sequence[Found], sources: Sequence[str], target: str) -> list[Step]:
    """The steps of a download to a local path or URL. InvalidArgument if two files would have one target, or for NUL in
    it."""
    if "\0" in target:
        raise InvalidArgument(f"target has a NUL character in it: {target!r}")
    into_folder = goes_into_folder(sources, target)
    return checked(
        [Step(one.info.path, _below(target, one.below) if into_folder else target, one.info.size) for one in found]
    )


def _below(folder: str, relative: str) -> str:
    """A path below a local folder or URL, each segment of it judged alone: InvalidArgument for one that would
    lead elsewhere.
    """
    segments = relative.split("/")
    for segment in segments:
        if (
            segment in ("", ".", "..")
            or os.sep in segment
            or (os.altsep or "\0") in segment
            or os.path.splitdrive(segment)[0]
        ):
            raise InvalidArgument(f"the server's name {relative!r} is no name for a local file")
    if is_url(folder):
        return "/".join([folder.rstrip("/"), *segments])
    return os.path.join(folder, *segments)


def moves(found: Sequence[Found], sources: Sequence[str], target: str, date: str) -> list[Step]:
    """The steps of a move on the server; two of them may have one target.

    ``target`` is a path or a folder, in which ``{name}``, ``{stem}``, ``{suffix}`` and ``{date}`` stand for what they
    say; with one of the first two it is the path of each file. InvalidArgument for another word in braces.
    """
    per_file = not {"name", "stem"}.isdisjoint(BLANK.findall(target))
    into_folder = target.endswith("/") or (not per_file and goes_into_folder(sources, target))
    steps = []
    for one in found:
        to = _filled_in(target, one.info.name, date)
        steps.append(Step(one.info.path, f"{to.rstrip('/')}/{one.below}" if into_folder else to, one.info.size))
    return steps


def _filled_in(pattern: str, name: str, date: str) -> str:
    parts = PurePosixPath(name)
    words = {"name": name, "stem": parts.stem, "suffix": parts.suffix, "date": date}

    def word(blank: re.Match[str]) -> str:
        if blank[1] not in words:
            known = ", ".join(f"{{{one}}}" for one in words)
            raise InvalidArgument(f"target has {blank[0]} in it, which stands for nothing; there are {known}")
        return words[blank[1]]

    return BLANK.sub(word, pattern)


def crowded_targets(steps: Iterable[Step], there: Container[str]) -> list[str]:
    """The targets that exist, or that several files would have."""
    sources: dict[str, set[str]] = {}
    for step in steps:
        sources.setdefault(step.target, set()).add(step.source)
    return [target for target, wanted_by in sources.items() if target in there or len(wanted_by) > 1]


def numbered_names(target: str) -> str:
    """A pattern that fits every numbered name of ``target``."""
    before, after = _around_number(target)
    return f"{literally(before)}-*{literally(after)}"


def numbered(steps: Iterable[Step], taken: Iterable[str]) -> list[Step]:
    """The steps, each with a target that is neither taken nor another's: where need be with the next free number."""
    gone = set(taken)
    apart = []
    for step in dict.fromkeys(steps):
        before, after = _around_number(step.target)
        names = chain([step.target], (f"{before}-{number}{after}" for number in count(1)))
        target = next(name for name in names if name not in gone or name == step.source)
        gone.add(target)
        apart.append(Step(step.source, target, step.size))
    return apart


def _around_number(target: str) -> tuple[str, str]:
    suffix = PurePosixPath(target).suffix
    return target.removesuffix(suffix), suffix
