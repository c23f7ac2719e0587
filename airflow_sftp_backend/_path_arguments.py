"""Parse the arguments that select files: literal names, or patterns. No I/O.

A name is a text, a `FileInfo`, a row of another task (a mapping with ``path``), a list of these, or a text with a JSON
list of rows. The argument alone decides its meaning, never the existing files.
"""

from __future__ import annotations

import ast
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, cast

from ._arguments import InvalidArgument, check_no_password
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
ManifestArgument: TypeAlias = "str | os.PathLike[str] | Mapping[str, object]"
Manifests: TypeAlias = "ManifestArgument | Sequence[ManifestArgument] | XComArg"
End: TypeAlias = Literal["server", "local"]

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_OBJECT_AS_TEXT = re.compile(r"<.* object .*at 0x[0-9a-f]+>|Lazy\w+\(.*\)", re.DOTALL)
PLACEHOLDER = re.compile(r"\{(\w*)\}")
"""A word in braces, to be replaced."""
_EXPECTED = "a text, a row (a mapping with 'path'), or a list of these"
_REMEDY = (
    "Pass a task's output unchanged, as source=wait.output; in a template write {{ ... | tojson }}, or set"
    " render_template_as_native_obj=True for the DAG. Pass a file with such a name as a row, {'path': ...}"
)
_NATIVE_REMEDY = (
    "Native rendering of templates converts texts to numbers, lists and sets. Pass a task's output unchanged, as"
    " source=wait.output, or a row, {'path': ...}"
)
URL_SCHEME: Final = "sftpbackend"
"""Scheme of the URLs of this package's file system."""


class NamedPath(NamedTuple):
    """Hold one literal path.

    :ivar path: the path
    :ivar is_directory: True for a text that ended with ``/``, which selects the files below the directory
    """

    path: str
    is_directory: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """Hold the names or patterns that select a task's files.

    :ivar names: literal names
    :ivar patterns: globs
    :ivar is_single: True for one file name outside a list
    """

    names: tuple[NamedPath, ...] = ()
    patterns: tuple[str, ...] = ()
    is_single: bool = False

    def __iter__(self) -> Iterator[NamedPath | str]:
        """Yield each name and each pattern."""
        yield from self.names
        yield from self.patterns

    @property
    def searches(self) -> bool:
        """True if filters apply: to a directory or a pattern."""
        return bool(self.patterns) or any(name.is_directory for name in self.names)


def check_names_or_patterns(names: object, patterns: object, argument: str) -> None:
    """Check that either names or patterns are set.

    Called when the DAG is parsed.

    :param names: the value of the argument for names; None means not specified
    :param patterns: the value of ``pattern``; None means not specified
    :param argument: name of the argument for names, ``source`` or ``path``
    :raises InvalidArgument: if both or neither are specified
    """
    if (names is None) == (patterns is None):
        state = "neither" if names is None else "both"
        raise InvalidArgument(
            f"specify exactly one of {argument} and pattern, not {state}: {argument} takes literal names, pattern takes"
            " globs"
        )


def check_selectors(names: object, patterns: object, manifest: object, argument: str) -> None:
    """Check that names, patterns or a manifest are set.

    Called when the DAG is parsed.

    :param names: the value of the argument for names; None means not specified
    :param patterns: the value of ``pattern``; None means not specified
    :param manifest: the value of ``from_manifest``; None means not specified
    :param argument: name of the argument for names, ``source`` or ``path``
    :raises InvalidArgument: unless exactly one of them is specified
    """
    values = {argument: names, "pattern": patterns, "from_manifest": manifest}
    specified = [name for name, value in values.items() if value is not None]
    if len(specified) != 1:
        raise InvalidArgument(
            f"specify exactly one of {argument}, pattern and from_manifest, not {' and '.join(specified) or 'none'}:"
            f" {argument} takes literal names, pattern takes globs, from_manifest takes a file of another task"
        )


def parse_names(value: object, argument: str, *, end: End = "server", none_ok: bool = False) -> Selection:
    """Parse names after the templates are rendered.

    :param value: the value of the argument
    :param argument: name of the argument, ``source`` or ``path``
    :param end: ``local`` for local paths and URLs; the row of a download then stands for its ``target``
    :param none_ok: accept an empty list
    :returns: the names
    :raises InvalidArgument: for an empty value or None, for a list that a template converted to text, and for other
        types
    """
    names = list(_iter_names(value, argument, end))
    if not names and not none_ok:
        raise InvalidArgument(f"{argument} is empty: expected at least one name. {_empty_hint(argument)}")
    is_single = _is_single(value) and len(names) == 1 and not names[0].is_directory
    return Selection(names=tuple(dict.fromkeys(names)), is_single=is_single)


def parse_rows(
    rows: Iterable[Mapping[str, object]], argument: str, *, end: End = "server", none_ok: bool = False
) -> Selection:
    """Parse the rows of other tasks as names.

    :param rows: the rows, each with a text ``path``
    :param argument: name of the argument
    :param end: ``local`` for local paths and URLs; the row of a download then stands for its ``target``
    :param none_ok: accept an empty list
    :returns: the names
    :raises InvalidArgument: for no rows, and for URLs with a password
    """
    names = dict.fromkeys(NamedPath(_path_of_row(row, argument, end)) for row in rows)
    if not names and not none_ok:
        raise InvalidArgument(f"{argument} has no rows: expected at least one name. {_empty_hint(argument)}")
    return Selection(names=tuple(names))


def parse_patterns(value: object, argument: str = "pattern") -> Selection:
    """Parse globs after the templates are rendered.

    :param value: a text, or a list of texts
    :param argument: name of the argument
    :returns: the patterns
    :raises InvalidArgument: for an empty value, a value other than text, NUL, and a pattern that ends with ``/``
    """
    with shield_from_kill():
        items = [value] if not _is_list(value) else list(_iterate(value))
    for item in items:
        if isinstance(item, str):
            _check_rendered(item, argument)
            _check_no_nul(item, argument)
            if item.endswith("/"):
                raise InvalidArgument(
                    f"{argument} {item!r} matches directories, not files; to match their files, write {item + '**'!r}"
                )
        else:
            raise _type_error(item, argument, "a text or a list of texts")
    if not items:
        raise InvalidArgument(f"{argument} is empty: expected at least one pattern. {_empty_hint(argument)}")
    return Selection(patterns=tuple(dict.fromkeys(str(item) for item in items)))


def parse_target(value: object, argument: str = "target", *, end: End = "server") -> str:
    """Parse the literal path of a target.

    A text that ends with ``/`` is a directory.

    :param value: the value of the argument
    :param argument: name of the argument
    :param end: ``local`` for a local path, with or without ``file://``, or a URL
    :returns: the path
    :raises InvalidArgument: for an empty value, a value other than text, and NUL
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise _type_error(value, argument, "one path, a text")
    _check_rendered(text, argument)
    _check_no_nul(text, argument)
    text = _join_surrogates(text)
    return text.removeprefix("file://") if end == "local" else text


def check_relative(path: str, base_path: str, argument: str) -> None:
    """Refuse a path that repeats the base path after ``/``.

    :param path: the path
    :param base_path: the connection's base path, as sent to the server
    :param argument: name of the argument
    :raises InvalidPath: for an ambiguous path; the text names both spellings
    """
    # Such a path is ambiguous: it may be meant below the base path or below the root.
    base = base_path.strip("/")
    if not base or not path.startswith("/") or not base_path.startswith("/"):
        return
    segments = [segment for segment in path.split("/") if segment not in ("", ".")]
    base_segments = base.split("/")
    if segments[: len(base_segments)] != base_segments:
        return
    from_root, relative = "/".join(segments), "/".join(segments[len(base_segments) :])
    raise InvalidPath(
        f"{argument} begins with the base path of the connection, {base_path}, but paths are relative to the base path:"
        f" write {relative or '/'!r} for /{from_root}, or {from_root!r} for {base_path}/{from_root}",
        path=path,
    )


def literal_hint(path: str) -> str:
    """Return a hint at ``pattern=`` for a missing name with wildcards.

    The hint is empty for other names.

    :param path: the missing name
    :returns: the hint
    """
    return "; names are literal, pass globs as pattern=" if has_wildcard(path) else ""


def split_pattern(pattern: str) -> tuple[str, str]:
    """Split a pattern into its literal directory and the rest.

    The literal directory ends before the first segment with a wildcard. A segment written by `glob.escape` has no
    wildcard.

    :param pattern: the pattern
    :returns: the directory as a name, and the remaining pattern
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
    """Return the pattern of all files below a directory, at any depth.

    :param directory: the directory; ``""`` and ``/`` are the base path
    :returns: the pattern
    """
    return f"{glob.escape(directory.rstrip('/'))}/**"


# -- names ------------------------------------------------------------------------------------------------------------


def _iter_names(value: object, argument: str, end: End) -> Iterator[NamedPath]:
    if isinstance(value, str) and (rows := _rows_from_json(value, argument)) is not None:
        value = rows
    if not _is_list(value):
        yield _name(value, argument, end)
        return
    with shield_from_kill():  # iterating over a mapped task's output sends requests to Airflow
        items = list(_flattened(value))
    for item in items:
        yield _name(item, argument, end)


def _flattened(value: object) -> Iterator[object]:
    """Yield the items of nested lists."""
    # The output of a mapped task is a list of lists
    for item in _iterate(value):
        if _is_list(item):
            yield from _flattened(item)
        else:
            yield item


def _iterate(value: object) -> Iterator[object]:
    assert isinstance(value, Sequence | Iterator)
    return iter(value)


def _is_list(value: object) -> bool:
    # A set does not count as a list: native Jinja converts a text in braces to a set.
    return isinstance(value, Sequence | Iterator) and not isinstance(value, str | bytes | bytearray | memoryview)


def _is_single(value: object) -> bool:
    return not _is_list(value) and not (isinstance(value, str) and _parse_json_rows(value) is not None)


def _name(value: object, argument: str, end: End) -> NamedPath:
    if isinstance(value, FileInfo):
        return NamedPath(value.path)
    if isinstance(value, Mapping):
        return NamedPath(_path_of_row(value, argument, end))
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise _type_error(value, argument, _EXPECTED)
    _check_rendered(text, argument)
    text = _join_surrogates(text)
    if end == "local":
        text = text.removeprefix("file://")
    return NamedPath(text, text.endswith("/"))


def _path_of_row(row: Mapping[str, object], argument: str, end: End) -> str:
    # In the row of a download, "path" is on the server, and "target" is the local file.
    path = row.get("path")
    if end == "local" and "action" in row and isinstance(row.get("target"), str):
        path = row["target"]
    if not isinstance(path, str) or not path:
        raise InvalidArgument(f"{argument} contains a mapping without a text 'path'; expected {_EXPECTED}")
    check_no_password(path, argument)
    return _join_surrogates(path)


def _check_rendered(text: str, argument: str) -> None:
    """Refuse texts of missing values and objects, and URLs with passwords."""
    # Templates render a list without ``tojson`` as such a text
    check_no_password(text, argument)
    if not text.strip():
        raise InvalidArgument(f"{argument} is empty. {_empty_hint(argument)}")
    if text == "None":
        raise InvalidArgument(f"{argument} is the text 'None'. {_empty_hint(argument)}")
    if _OBJECT_AS_TEXT.fullmatch(text):
        raise InvalidArgument(f"{argument} is an object that a template converted to text: {_shorten(text)}. {_REMEDY}")


def _check_no_nul(text: str, argument: str) -> None:
    if "\0" in text:
        raise InvalidArgument(f"{argument} contains a NUL character: {text!r}")


def _empty_hint(argument: str) -> str:
    return f"If {argument} is a template or a task's output, check the task's result"


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
    """Join surrogate pairs."""
    # Native Jinja reads the JSON escape of an emoji as two characters
    if text.isascii():
        return text
    return _SURROGATE_PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)


# -- lists as text ----------------------------------------------------------------------------------------------------


def _rows_from_json(text: str, argument: str) -> list[object] | None:
    """Return the rows of a JSON list of rows.

    The result is None for a name.

    :raises InvalidArgument: for any other list, because no file has such a name
    """
    rows = _parse_json_rows(text)
    if rows is None and _is_list_or_row(text):
        raise InvalidArgument(f"{argument} is a list that a template converted to text: {_shorten(text)}. {_REMEDY}")
    return rows


def _parse_json_rows(text: str) -> list[object] | None:
    """Return the rows of a JSON list, which may be empty.

    The result is None for other texts.
    """
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and _is_rows(value) else None


def _is_rows(items: list[object]) -> bool:
    """Tell whether all items are rows or lists of rows."""
    # A mapped task returns lists of rows
    return all(
        _is_rows(item) if isinstance(item, list) else isinstance(item, dict) and "path" in item for item in items
    )


def _is_list_or_row(text: str) -> bool:
    """Tell whether a text is a Python or JSON list or row."""
    value = _parse_container(text.strip())
    if isinstance(value, Mapping):
        return "path" in value
    return (
        isinstance(value, list | tuple)
        and value != ()
        and all(isinstance(item, str | Mapping | list) for item in value)
    )


def _parse_container(text: str) -> object:
    """Parse a Python or JSON list or dictionary, else return None."""
    if not text.startswith(("[", "(", "{")):
        return None
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        return cast("object", ast.literal_eval(text))
    with suppress(ValueError, RecursionError):
        return cast("object", json.loads(text))
    return None


def directory_error(path: str, cause: InvalidPath | None = None) -> InvalidPath:
    """Return the error for a file name that belongs to a directory.

    :param path: the name
    :param cause: the error of the server, None for a local directory
    :returns: the error
    """
    error = InvalidPath("the path is a directory; to select its files, end the path with '/'", path=path)
    if cause is not None:
        error.server, error.native_path = cause.server, cause.native_path
    return error
