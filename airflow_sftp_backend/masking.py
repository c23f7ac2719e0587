"""What of a secret a log may show, told to Airflow's masker before the secret is used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from .killed import undisturbed

if TYPE_CHECKING:
    from airflow.sdk.log import mask_secret
else:
    try:
        from airflow.sdk.log import mask_secret
    except ImportError:  # Airflow 3.0
        from airflow.sdk.execution_time.secrets_masker import mask_secret

_SHORTEST_LINE: Final = 16
"""Characters of a line from which on it is masked by itself."""


def hide(secrets: Iterable[str]) -> None:
    """Has them masked in the logs of this process and of the task, in every form they can take there."""
    if forms := {form for secret in secrets for form in _forms(secret)}:
        with undisturbed():
            mask_secret([*forms])


def _forms(secret: str) -> set[str]:
    """A secret as a log may show it: as it is, trimmed, quoted by JSON or repr; a key also line by line, as it was
    given and as it is repaired, at both line lengths in use (RFC 7468: 64, OpenSSH: 70)."""
    from .backend._keys import repair_pem  # here, because it loads paramiko

    forms = {secret, secret.strip(), repr(secret)[1:-1]}
    forms |= {json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    lines = _lines(secret)
    if (repaired := repair_pem(secret)).startswith("-----BEGIN"):
        lines += _lines(repaired)
        body = "".join(_lines(repaired))
        lines += [body[at : at + 70] for at in range(0, len(body), 70)]
    lines = [line for line in lines if len(line) >= _SHORTEST_LINE]
    # Where one line begins another, Airflow's masker may take the shorter one and leave the rest.
    rests = {line.removeprefix(other) for line in lines for other in lines if line != other and line.startswith(other)}
    return forms | {*lines} | rests


def _lines(text: str) -> list[str]:
    """The lines of a text without a key's frame, also where its line breaks are blanks or a written ``\\n``."""
    return re.sub(r"-{4,5}(?:BEGIN|END)[^-]*-{4,5}|\\+[nr]", "\n", text).split()
