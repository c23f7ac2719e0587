"""Measure the CPU time for masking a private key.

Run with ``python -m benchmarks.masking``. The task and Airflow's supervisor are measured.

Exit status 0 if an RSA key of 4096 bits takes at most a second in each. The supervisor compiles its pattern once for
each mask, with all masks before it: "with Extra" is where the key is in the connection itself, whose Extra Airflow
masks as a whole.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final
from unittest import mock

from airflow.sdk._shared.secrets_masker import SecretsMasker, reset_secrets_masker
from airflow.sdk.log import mask_secret
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from airflow_sftp_backend import _masking

LIMIT: Final = 1.0
"""Seconds."""
RUNS: Final = 3
"""Of which the fastest counts: other programs on the machine take the cache away."""
FORMATS: Final = ("TraditionalOpenSSL", "PKCS8", "OpenSSH")


def main() -> int:
    """The exit status."""
    met = True
    print(f"{'key':34} {'masks':>6} {'task':>8} {'supervisor':>11} {'with Extra':>11}")
    for bits in (2048, 4096):
        key = rsa.generate_private_key(65537, bits)
        for name in FORMATS:
            form = getattr(serialization.PrivateFormat, name)
            pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
            masks, here = _hidden(pem)
            there = min(_seconds(partial(_masker().add_mask, [*masks])) for _ in range(RUNS))
            late = _seconds(partial(_masker(json.dumps({"private_key": pem})).add_mask, [*masks]))
            print(f"RSA {bits}, {name:24} {len(masks):6} {here:6.2f} s {there:9.2f} s {late:9.2f} s")
            met = met and max(here, there) <= LIMIT
    return 0 if met else 1


def _masker(*known: str) -> SecretsMasker:
    masker = SecretsMasker()  # type: ignore[no-untyped-call]  # its __init__ has no annotations
    for text in known:
        masker.add_mask(text)
    return masker


def _hidden(secret: str) -> tuple[list[str], float]:
    """Return the masks of a secret, and the seconds for them.

    The masks have their order. The seconds are those of a task.
    """
    masks: list[str] = []

    def keeping(batch: Sequence[str]) -> None:
        masks.extend(batch)
        mask_secret([*batch])

    reset_secrets_masker()
    with mock.patch.object(_masking, "mask_secret", keeping):
        return masks, _seconds(lambda: _masking.mask_secrets([secret]))


def _seconds(work: Callable[[], None]) -> float:
    re.purge()  # a pattern that was compiled before costs nothing
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
