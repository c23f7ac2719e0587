"""Check the language of docstrings: ``python scripts/check_prose.py [--worst N]``.

Count pronouns per 100 words in the package. Find docstrings with a wrong first word, and first lines of more than 12
words or without a full stop, in tests and tools too. In the package, find public callables without their fields.
The limits are those that well-kept Python projects reach. The exit status is 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

TOP: Final = Path(__file__).parents[1]
PACKAGE: Final = TOP / "airflow_sftp_backend"
OTHER_SOURCES: Final = ("benchmarks", "demo", "example_dags", "examples", "scripts", "tests")
PRIVATE_MODULES_WITH_PUBLIC_METHODS: Final = {
    "backend/_execution/changes.py",
    "backend/_execution/file_transfers.py",
    "backend/_execution/maintenance.py",
    "backend/_execution/queries.py",
    "operators/_base.py",
}
RELATIVE: Final = {"what", "which", "who", "whose", "whom", "whoever", "whatever"}
VAGUE: Final = {"it", "they", "them", "one", "ones", "this", "that", "those", "these"}
WRONG_START: Final = re.compile(r"(What|Who|Why|Those|How|Where|Whose)\b")
MAX_SUMMARY_WORDS: Final = 12
"""Longest first line of a docstring."""
MAX_RELATIVE: Final = 0.8
MAX_VAGUE: Final = 3.5
"""Pronouns per 100 words of all docstrings."""

Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Report:
    """Measurements of one module."""

    name: str
    words: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def rate(self, pronouns: set[str]) -> float:
        """Return the pronouns per 100 words."""
        return sum(self.words[pronoun] for pronoun in pronouns) * 100 / max(self.words.total(), 1)


def words_of(docstring: str) -> Iterator[str]:
    """Yield the words of a docstring, without field names and code."""
    for word in re.findall(r"[A-Za-z']+", re.sub(r":\w+[^:\n]*:|``[^`]*``", " ", docstring)):
        yield word.lower()


def missing_fields(function: ast.FunctionDef | ast.AsyncFunctionDef, docstring: str) -> Iterator[str]:
    """Yield the fields that the docstring of a public callable lacks.

    :param function: the callable
    :param docstring: its docstring; for ``__init__``, the docstring of the class
    """
    if docstring.startswith("See `"):  # the other docstring has the fields
        return
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    for argument in arguments:
        name = argument.arg
        if name not in {"self", "cls"} and not name.startswith("_") and not re.search(rf":param {name}\b", docstring):
            yield f":param {name}:"
    returns = ast.unparse(function.returns) if function.returns else "None"
    if (
        arguments[1:]
        and function.name != "__init__"
        and returns not in {"None", "Self"}
        and ":returns:" not in docstring
    ):
        yield ":returns:"


def public_functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Yield the public functions and methods of a module with their docstrings."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    scopes: list[ast.Module | ast.ClassDef] = [tree, *classes]
    for scope in scopes:
        for node in scope.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(scope, ast.ClassDef) and node.name == "__init__":
                yield node, ast.get_docstring(scope) or ""
            elif not node.name.startswith("_") and not has_decorator(node, "overload"):
                yield node, ast.get_docstring(node) or ""


def has_decorator(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> bool:
    """Tell whether a function has a decorator of that name."""
    return any(name in ast.unparse(decorator) for decorator in function.decorator_list)


def wrong_summaries(tree: ast.Module) -> Iterator[str]:
    """Yield the place and problem of each wrong first line."""
    for node in ast.walk(tree):
        if not isinstance(node, Documented) or not (docstring := ast.get_docstring(node)):
            continue
        summary = docstring.splitlines()[0]
        if WRONG_START.match(summary):
            yield f"{node_place(node)}: begin with a verb: {summary!r}"
        if len(summary.split()) > MAX_SUMMARY_WORDS:
            yield f"{node_place(node)}: at most {MAX_SUMMARY_WORDS} words in the first line: {summary!r}"
        elif not summary.endswith((".", ":")):
            yield f"{node_place(node)}: end the first line with a full stop: {summary!r}"


def examine(path: Path) -> Report:
    """Measure one module."""
    tree = ast.parse(path.read_text())
    report = Report(path.relative_to(PACKAGE).as_posix())
    for node in ast.walk(tree):
        if isinstance(node, Documented) and (docstring := ast.get_docstring(node)):
            report.words.update(words_of(docstring))
    report.problems.extend(wrong_summaries(tree))
    is_private = any(part.startswith("_") and part != "__init__.py" for part in Path(report.name).parts)
    if not is_private or report.name in PRIVATE_MODULES_WITH_PUBLIC_METHODS:
        for function, docstring in public_functions(tree):
            if missing := [*missing_fields(function, docstring)]:
                report.problems.append(f"{node_place(function)}: missing {', '.join(missing)}")
    return report


def node_place(node: Documented) -> str:
    """Return the line and name of a node."""
    return f"{getattr(node, 'lineno', 1)} {getattr(node, 'name', 'module')}"


def main() -> int:
    """Print measurements and problems; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worst", type=int, default=0, help="list the N modules with most pronouns")
    arguments = parser.parse_args()
    reports = [examine(path) for path in sorted(PACKAGE.rglob("*.py"))]
    total = Report("all", sum((report.words for report in reports), Counter()))
    for report in sorted(reports, key=lambda report: -report.rate(RELATIVE | VAGUE))[: arguments.worst]:
        print(f"{report.rate(RELATIVE):5.1f} {report.rate(VAGUE):5.1f}  {report.name}")
    problems = [f"{report.name}:{problem}" for report in reports for problem in report.problems]
    for path in (path for name in OTHER_SOURCES for path in sorted((TOP / name).rglob("*.py"))):
        problems += [f"{path.relative_to(TOP)}:{problem}" for problem in wrong_summaries(ast.parse(path.read_text()))]
    for pronouns, limit, kind in ((RELATIVE, MAX_RELATIVE, "relative"), (VAGUE, MAX_VAGUE, "vague")):
        print(f"{kind} pronouns per 100 words: {total.rate(pronouns):.1f} (at most {limit})")
        if total.rate(pronouns) > limit:
            problems.append(f"too many {kind} pronouns; --worst 20 lists the modules")
    print(*problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
