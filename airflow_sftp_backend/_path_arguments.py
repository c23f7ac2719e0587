"""Parse the arguments that select files: names, always literal, or patterns. Text in, values out, no I/O.

A name is a text, a `FileInfo`, a row of another task (a mapping with ``path``), a list of these, or a text that is a
JSON list of rows. The argument alone decides what is meant, never what exists at the other end.
"""

from __future__ import annotations

import ast
import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ._arguments import InvalidArgument
from ._cancellation import shield_from_kill
from .backend import FileInfo, InvalidPath
from .backend._patterns import has_wildcard, literal_name

if TYPE_CHECKING:
    from airflow.sdk import XComArg

NameArgument: TypeAlias = "str | os.PathLike[str] | FileInfo | Mapping[str, object]"
Names: TypeAlias = "NameArgument | Sequence[NameArgument] | XComArg"
Patterns: TypeAlias = "str | Sequence[str] | XComArg"
Globs: TypeAlias = "str | Sequence[str]"
Target: TypeAlias = "str | os.PathLike[str] | XComArg"
End: TypeAlias = Literal["server", "local"]

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_OBJECT_AS_TEXT = re.compile(r"<.* object .*at 0x[0-9a-f]+>|Lazy\w+\(.*\)", re.DOTALL)
PLACEHOLDER = re.compile(r"\{(\w*)\}")
"""A word in braces, which stands for something else."""
_EXPECTED = "a text, a row (a mapping with 'path'), or a list of these"
_REMEDY = (
    "Pass a task's output as it is, source=wait.output; in a template write {{ ... | tojson }}, or give the DAG"
    " render_template_as_native_obj=True. A file of such a name is passed as a row, {'path': ...}"
)
_NATIVE_REMEDY = (
    "Native rendering of templates makes numbers, lists and sets of texts. Pass a task's output as it is,"
    " source=wait.output, or a row, {'path': ...}"
)


@dataclass(frozen=True, slots=True)
class Name:
    """One path, literal. ``is_directory`` means what the directory holds: a text that ended with ``/``."""

    path: str
    is_directory: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """The files that a task is to work on: ``names``, or ``patterns``.

    ``is_single`` is True for one name that was not in a list and is no directory.
    """

    names: tuple[Name, ...] = ()
    patterns: tuple[str, ...] = ()
    is_single: bool = False

    def __iter__(self) -> Iterator[Name | str]:
        """Yield each name and each pattern."""
        yield from self.names
        yield from self.patterns

    @property
    def searches(self) -> bool:
        """Return True if a directory or a pattern is among them, so that filters have something to filter."""
        return bool(self.patterns) or any(name.is_directory for name in self.names)


def require_one(names: object, patterns: object, argument: str) -> None:
    """Check, where the DAG is written, that either names or patterns are specified.

    :param argument: what the names are called: ``source`` or ``path``.
    :raises InvalidArgument: if both are given, or neither. None counts as not given.
    """
    if (names is None) == (patterns is None):
        state = "neither was" if names is None else "both were"
        raise InvalidArgument(
            f"specify exactly one of {argument} and pattern: {state} given. {argument} takes names, always literally;"
            " pattern takes globs"
        )


def parse_names(value: object, argument: str, *, end: End = "server", none_ok: bool = False) -> Selection:
    """Parse names, once the templates are rendered.

    :param argument: what the names are called: ``source`` or ``path``.
    :param end: ``local`` if the names are of this machine or URLs: of a download's row its ``target`` is meant then.
    :param none_ok: an empty list is no error.
    :raises InvalidArgument: for what is empty or None, for a list that a template made a text of, and for what is
        neither text nor row nor list.
    """
    names = list(_iter_names(value, argument, end))
    if not names and not none_ok:
        raise InvalidArgument(f"{argument} is empty: a list without a name. {_empty_hint(argument)}")
    is_single = _is_single(value) and len(names) == 1 and not names[0].is_directory
    return Selection(names=tuple(dict.fromkeys(names)), is_single=is_single)


def parse_patterns(value: object, argument: str = "pattern") -> Selection:
    """Parse globs: a text, or a list of texts, once the templates are rendered.

    :raises InvalidArgument: for what is empty or no text, for NUL, and for a pattern that ends with ``/``.
    """
    with shield_from_kill():
        items = [value] if not _is_list(value) else list(_iterate(value))
    for item in items:
        if isinstance(item, str):
            _check_rendered(item, argument)
            _refuse_nul(item, argument)
            if item.endswith("/"):
                raise InvalidArgument(
                    f"{argument} {item!r} matches directories, not files; for the files in them write {item + '**'!r}"
                )
        else:
            raise _type_error(item, argument, "a text or a list of texts")
    if not items:
        raise InvalidArgument(f"{argument} is empty: a list without a pattern. {_empty_hint(argument)}")
    return Selection(patterns=tuple(dict.fromkeys(str(item) for item in items)))


def parse_target(value: object, argument: str = "target", *, end: End = "server") -> str:
    """Parse the one path that a task writes to, literally; a text that ends with ``/`` is a directory.

    :param end: ``local`` if the path is of this machine, which ``file://`` may begin, or a URL.
    :raises InvalidArgument: for what is empty or no text, and for NUL.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise _type_error(value, argument, "one path, a text")
    _check_rendered(text, argument)
    _refuse_nul(text, argument)
    text = _join_surrogates(text)
    return text.removeprefix("file://") if end == "local" else text


def check_relative(path: str, base_path: str, argument: str) -> None:
    """Refuse a path that begins with ``/`` and the base path: it may be meant below the base path or below the root.

    :param base_path: the connection's, as the server is sent it.
    :raises InvalidPath: names both readings.
    """
    base = base_path.strip("/")
    segments = [segment for segment in path.split("/") if segment not in ("", ".")]
    base_segments = base.split("/")
    if (
        not path.startswith("/")
        or not base_path.startswith("/")
        or not base
        or segments[: len(base_segments)] != base_segments
    ):
        return
    from_root, relative = "/".join(segments), "/".join(segments[len(base_segments) :])
    raise InvalidPath(
        f"{argument} begins with the base path of the connection, {base_path}, and is relative to it: write"
        f" {relative or '/'!r} for /{from_root}, or {from_root!r} for {base_path}/{from_root}",
        path=path,
    )


def literal_hint(path: str) -> str:
    """Return the hint for a name that does not exist: ``pattern=``, if its characters suggest a pattern."""
    return "; names are literal: a glob is passed as pattern=" if has_wildcard(path) else ""


def split_pattern(pattern: str) -> tuple[str, str]:
    """Split a pattern into the directory before its first wildcard, as a name, and the pattern below that directory.

    A segment that `glob.escape` wrote has no wildcard.
    """
    *directories, _ = segments = pattern.split("/")
    literal: list[str] = []
    for segment in directories:
        if (name := literal_name(segment)) is None:
            break
        literal.append(name)
    directory = "/".join(literal)
    return directory or "/" * len(literal), "/".join(segments[len(literal) :])


def everything_in(directory: str) -> str:
    """Return the pattern of all files below a directory, at any depth; ``""`` and ``/`` are the base path."""
    return f"{glob.escape(directory.rstrip('/'))}/**"


# -- names ------------------------------------------------------------------------------------------------------------


def _iter_names(value: object, argument: str, end: End) -> Iterator[Name]:
    if isinstance(value, str) and (rows := _rows_from_json(value, argument)) is not None:
        value = rows
    if not _is_list(value):
        yield _name(value, argument, end)
        return
    with shield_from_kill():  # each item of a mapped task's output is a request to Airflow
        items = list(_flattened(value))
    for item in items:
        yield _name(item, argument, end)


def _flattened(value: object) -> Iterator[object]:
    """Yield the items of nested lists: the output of a mapped task is a list of lists."""
    for item in _iterate(value):
        if _is_list(item):
            yield from _flattened(item)
        else:
            yield item


def _iterate(value: object) -> Iterator[object]:
    assert isinstance(value, Sequence | Iterator)
    return iter(value)


def _is_list(value: object) -> bool:
    # a set is no list: native Jinja makes one of a text in braces
    return isinstance(value, Sequence | Iterator) and not isinstance(value, str | bytes | bytearray | memoryview)


def _is_single(value: object) -> bool:
    return not _is_list(value) and not (isinstance(value, str) and _parse_json_rows(value) is not None)


def _name(value: object, argument: str, end: End) -> Name:
    if isinstance(value, FileInfo):
        return Name(value.path)
    if isinstance(value, Mapping):
        return Name(_path_of_row(value, argument, end))
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise _type_error(value, argument, _EXPECTED)
    _check_rendered(text, argument)
    text = _join_surrogates(text)
    if end == "local":
        text = text.removeprefix("file://")
    return Name(text, text.endswith("/"))


def _path_of_row(row: Mapping[object, object], argument: str, end: End) -> str:
    # the row of a download: what is local is its target
    path = row.get("path")
    if end == "local" and "action" in row and isinstance(row.get("target"), str):
        path = row["target"]
    if not isinstance(path, str) or not path:
        raise InvalidArgument(f"{argument} has a mapping without a text as 'path'. Expected {_EXPECTED}")
    return _join_surrogates(path)


def _check_rendered(text: str, argument: str) -> None:
    """Refuse what a template renders to that found nothing, or that was meant to be a list."""
    if not text.strip():
        raise InvalidArgument(f"{argument} is empty. {_empty_hint(argument)}")
    if text == "None":
        raise InvalidArgument(f"{argument} is the text 'None'. {_empty_hint(argument)}")
    if _OBJECT_AS_TEXT.fullmatch(text):
        raise InvalidArgument(f"{argument} is an object that a template made a text of: {_shorten(text)}. {_REMEDY}")


def _refuse_nul(text: str, argument: str) -> None:
    if "\0" in text:
        raise InvalidArgument(f"{argument} has a NUL character in it: {text!r}")


def _empty_hint(argument: str) -> str:
    return f"If {argument} is a template or a task's output, that is what it rendered to: check what the task returned"


def _type_error(value: object, argument: str, expected: str) -> InvalidArgument:
    if value is None:
        return InvalidArgument(f"{argument} is None. {_empty_hint(argument)}")
    number = f"{value!r}, " if isinstance(value, int | float) else ""  # anything else may hold a secret
    return InvalidArgument(
        f"{argument} is {number}of type {type(value).__name__}; expected {expected}. {_NATIVE_REMEDY}"
    )


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _join_surrogates(text: str) -> str:
    """Join the halves of a character: native Jinja reads the JSON escape of an emoji as two."""
    if text.isascii():
        return text
    return _SURROGATE_PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)


# -- lists as text ----------------------------------------------------------------------------------------------------


def _rows_from_json(text: str, argument: str) -> list[object] | None:
    """Return the rows of a text that is a JSON list of rows; None for a name.

    :raises InvalidArgument: for a list of anything else: taken for a name, it would name no file.
    """
    rows = _parse_json_rows(text)
    if rows is None and _is_python_list(text):
        raise InvalidArgument(f"{argument} is a list that a template made a text of: {_shorten(text)}. {_REMEDY}")
    return rows


def _parse_json_rows(text: str) -> list[object] | None:
    """Return the rows of a JSON list of rows, which may be empty."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and _is_rows(value) else None


def _is_rows(items: list[object]) -> bool:
    """Return True for a list of rows, or of such lists: the output of a mapped task."""
    return all(
        _is_rows(item) if isinstance(item, list) else isinstance(item, dict) and "path" in item for item in items
    )


def _is_python_list(text: str) -> bool:
    """Return True for a text that stands for a list of texts or mappings, or for one mapping."""
    if text.strip()[:1] not in ("[", "(", "{"):
        return False
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return False
    if isinstance(value, Mapping):
        return "path" in value
    return (
        isinstance(value, list | tuple)
        and value != ()
        and all(isinstance(item, str | Mapping | list) for item in value)
    )


def directory_error(path: str, cause: InvalidPath | None = None) -> InvalidPath:
    """Return the failure for a name that is a directory's; ``cause`` is what the server's look at it raised."""
    error = InvalidPath("it is a directory; end its name with '/' if what it holds is meant", path=path)
    if cause is not None:
        error.server, error.native_path = cause.server, cause.native_path
    return error
