"""Select files by name or pattern in operator arguments."""

from __future__ import annotations

from typing import Any

from airflow_sftp_backend._path_arguments import parse_names, parse_patterns
from airflow_sftp_backend._polling.conditions import FileCondition, condition_paths


class Glob:
    """Patterns, where a test's helper takes names or these."""

    def __init__(self, *patterns: str) -> None:
        self.patterns = patterns


def selection_argument(wanted: Any, names: str = "source") -> dict[str, Any]:
    """Return the argument that selects ``wanted``: names, or a `Glob`."""
    if not isinstance(wanted, Glob):
        return {names: wanted}
    return {"pattern": wanted.patterns[0] if len(wanted.patterns) == 1 else list(wanted.patterns)}


def condition_for(path: str, **arguments: Any) -> FileCondition:
    """Create the condition for a name, or a pattern with an asterisk."""
    wanted = parse_patterns(path) if "*" in path else parse_names(path, "path")
    return FileCondition(**condition_paths(wanted), **arguments)
