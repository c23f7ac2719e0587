"""Name the mapped instances of a task after their files."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, ClassVar, Final

from airflow.sdk import BaseOperator

from ._arguments import InvalidArgument
from ._path_arguments import Selection, parse_names, parse_patterns
from .backend.errors import escaped

if TYPE_CHECKING:
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

# In Airflow 3.0, `task` is the task before its arguments are rendered.
MAP_INDEX_TEMPLATE: Final = "{{ ti.task.map_label(ti.map_index) }}"
_MAX_LABEL: Final = 250
"""Characters of a label in Airflow's database."""


class LabelledOperator(BaseOperator):
    """Show the name of the file in place of the map index.

    An instance without a map index has no label. A task that is mapped over another argument than its files keeps the
    number, and so does a task with a ``map_index_template`` of its own.

    :param kwargs: arguments of ``BaseOperator``
    """

    _names: ClassVar[str]
    """Name of the argument that takes names of files."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.map_index_template is None and self.get_closest_mapped_task_group() is not None:
            self.map_index_template = MAP_INDEX_TEMPLATE

    # Airflow before 3.3 ignores a default of `map_index_template` in the signature of `__init__`.
    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Set the arguments that are the same in all mapped instances.

        :param kwargs: the arguments
        :returns: the operator, to be expanded
        """
        partial = super().partial(**kwargs)
        is_mapped_over_files = not {cls._names, "pattern", "from_manifest"} & kwargs.keys()
        if is_mapped_over_files and partial.kwargs.get("map_index_template") is None:
            partial.kwargs["map_index_template"] = MAP_INDEX_TEMPLATE
        return partial

    def map_label(self, map_index: int) -> str:
        """Return the label of a mapped instance.

        Airflow calls this method by a template, also after a failure; it raises nothing.

        :param map_index: the index of the instance
        :returns: at most 250 characters that do not form a Python literal
        """
        try:
            label = _describe(self._labelled_files())
        except InvalidArgument:  # the task itself reports it
            label = ""
        return _shorten(_not_a_literal(escaped(label))) if label else f"#{map_index}"

    def _labelled_files(self) -> Selection:
        """Return the files that name an instance.

        :raises InvalidArgument: if the arguments are wrong, or if reading them would send requests to Airflow
        """
        if (pattern := getattr(self, "pattern", None)) is not None:
            return parse_patterns(pattern)
        if (manifest := getattr(self, "from_manifest", None)) is not None:
            # The manifest itself is not read here.
            return parse_names(manifest.get("manifest") if isinstance(manifest, dict) else manifest, "from_manifest")
        names = getattr(self, self._names)
        if not isinstance(names, str | dict | list | tuple) and hasattr(names, "__iter__"):
            raise InvalidArgument(f"{self._names} is read from Airflow")
        return parse_names(names, self._names)


def _describe(files: Selection) -> str:
    """Name the first file, and count the others.

    A directory or pattern is shown as a whole.
    """
    labels = [name.path if name.is_directory else name.path.rpartition("/")[2] for name in files.names]
    labels += files.patterns
    return labels[0] if len(labels) == 1 else f"{labels[0]} and {len(labels) - 1} more"


def _shorten(text: str) -> str:
    """Cut a text in the middle."""
    if len(text) <= _MAX_LABEL:
        return text
    kept = (_MAX_LABEL - 1) // 2
    return f"{text[:kept]}…{text[-kept:]}"


def _not_a_literal(text: str) -> str:
    """Return a text that native rendering leaves a text."""
    # Airflow fails the task of a label that is rendered to a number or a list.
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return f"./{text}"
