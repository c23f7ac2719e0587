"""What a server makes impossible: the one place where a contract test may be declared to fail on a server.

A declared test is run all the same. It must fail, and in the way that is declared: where it passes, or fails in another
way, the run fails. So no entry outlives the server's or the package's improvement.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Unsupported:
    """Contract tests that one server cannot pass, and why.

    :param reason: for docs/servers.md: what the server does instead
    :param refusal: regular expression that is found in the failure, ``type: message``
    :param tests: names of tests without ``test_``
    """

    reason: str
    refusal: str
    tests: tuple[str, ...]


UNSUPPORTED: Mapping[str, tuple[Unsupported, ...]] = {}


def unsupported(server: str, test: str) -> Unsupported | None:
    """Looks up whether a test is declared to fail on a server.

    :param server: a name of the ``server`` fixture
    :param test: name of a test function
    :returns: the declaration, None where there is none
    """
    name = test.removeprefix("test_")
    return next((entry for entry in UNSUPPORTED.get(server, ()) if name in entry.tests), None)


def check_failure(entry: Unsupported, failure: BaseException | None) -> str | None:
    """Compares what a declared test did with its declaration.

    :param failure: what the test raised, None where it passed
    :returns: what is wrong with the declaration; None where the test failed as declared
    """
    if failure is None:
        return f"declared as unsupported in tests/servers/unsupported.py, but it passes: {entry.reason}"
    text = f"{type(failure).__name__}: {failure}"
    if not re.search(entry.refusal, text, re.DOTALL):
        return f"declared as unsupported, but it fails in another way than {entry.refusal!r}: {text}"
    return None
