"""Find names that a target may not distinguish. No I/O.

A path is relative to the top of its tree, with ``/`` between its segments.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

# Names that Windows takes for a path (\), a stream (:), a short name (~1) or a device, or whose last dots and blanks it
# drops.
_PECULIAR: Final = re.compile(r"[\\:]|~\d|[. ](/|$)|(^|/)(con|prn|aux|nul|com\d|lpt\d)([./]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NameRules:
    """Describe the spellings that a target takes for one name.

    :ivar ignores_case: upper and lower case are equal
    :ivar ignores_form: Unicode normalization forms are equal
    :ivar drops_ends: dots and blanks at the end of a name have no meaning
    :ivar splits_at_backslash: a backslash separates names, like a slash
    """

    ignores_case: bool = True
    ignores_form: bool = True
    drops_ends: bool = True
    splits_at_backslash: bool = True

    def fold(self, path: str) -> str:
        """Return one spelling for all equal ones.

        :param path: the path
        :returns: the spelling
        """
        if self.splits_at_backslash:
            path = path.replace("\\", "/")
        if self.ignores_form and not path.isascii():
            path = unicodedata.normalize("NFC", path)
        if self.ignores_case:
            path = path.casefold()
            if self.ignores_form and not path.isascii():  # folding the case can undo the normalization
                path = unicodedata.normalize("NFC", path)
        if self.drops_ends and (path[-1:] in (".", " ") or "./" in path or " /" in path):
            path = "/".join(segment.rstrip(". ") for segment in path.split("/"))
        return path


ANY_RULES: Final = NameRules()
"""Rules of a server that may be of any kind."""


def prefixes(path: str) -> Iterator[str]:
    """Yield the parents of a path from the top, and the path.

    :param path: the path
    :returns: the paths
    """
    return accumulate(path.split("/"), "{}/{}".format)


def parents(path: str) -> list[str]:
    """Return the parents of a path from the top.

    :param path: the path
    :returns: the paths
    """
    return [*prefixes(path)][:-1]


def unlisted_prefixes(paths: Iterable[str], listed: Set[str]) -> dict[str, str]:
    """Find paths that may exist although the target does not list them.

    An example is another spelling on a server that ignores case.

    :param paths: the paths to write
    :param listed: all entries of the target
    :returns: for each such path, its shortest prefix to look up
    """
    spellings: set[str] | None = None
    lookups: dict[str, str] = {}
    for path in paths:
        for prefix in prefixes(path):
            if prefix in listed:
                continue
            if spellings is None:  # only a run with new files needs them
                spellings = {ANY_RULES.fold(entry) for entry in listed}
            if _PECULIAR.search(prefix) or ANY_RULES.fold(prefix) in spellings:
                lookups[path] = prefix
                break
    return lookups


def merged_paths(paths: Iterable[str], known: Iterable[str], rules: NameRules) -> dict[str, str]:
    """Find paths that a target takes for other known paths.

    :param paths: the paths to examine
    :param known: all paths that the target has to distinguish, with their parents
    :param rules: the rules of the target
    :returns: for each such path, another spelling of it or of one of its parents
    """
    known = dict.fromkeys(known)
    folds = [rules.fold(path) for path in known]
    if len(set(folds)) == len(folds):  # the usual case
        return {}
    by_fold: defaultdict[str, set[str]] = defaultdict(set)
    for path, fold in zip(known, folds, strict=True):
        by_fold[fold].add(path)
    others = {path: min(group - {path}) for group in by_fold.values() if len(group) > 1 for path in group}
    return {path: others[prefix] for path in paths for prefix in prefixes(path) if prefix in others}


def with_parents(paths: Iterable[str]) -> set[str]:
    """Return paths with all their parents.

    :param paths: the paths
    :returns: the set
    """
    return {prefix for path in paths for prefix in prefixes(path)}
