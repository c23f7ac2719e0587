"""Measure the CPU time for masking a private key.

The task and Airflow's supervisor are measured. The supervisor compiles its pattern once for each mask, with all masks
before it: "with Extra" is where the key is in the connection itself, whose Extra Airflow masks as a whole.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final
from unittest import mock

from airflow.sdk._shared.secrets_masker import SecretsMasker, reset_secrets_masker
from airflow.sdk.log import mask_secret
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from airflow_sftp_backend import _masking

from .targets import ClientTable, Options, Row

FORMATS: Final = ("TraditionalOpenSSL", "PKCS8", "OpenSSH")


def measure(options: Options) -> Iterator[Row | ClientTable]:
    """Measure all rows.

    :param options: the rounds; the fastest counts, because other programs on the machine take the cache away
    """
    results: dict[str, list[float | None]] = {}
    slowest = 0.0
    for bits in (2048, 4096):
        key = rsa.generate_private_key(65537, bits)
        for name in FORMATS:
            form = getattr(serialization.PrivateFormat, name)
            pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
            masks, here = _hidden(pem)
            there = min(_seconds(partial(_masker().add_mask, [*masks])) for _ in range(options.rounds))
            late = _seconds(partial(_masker(json.dumps({"private_key": pem})).add_mask, [*masks]))
            results[f"RSA {bits}, {name}"] = [len(masks), here, there, late]
            slowest = max(slowest, here, there)
    title = "seconds of CPU for masking a private key"
    yield ClientTable("masking", title, ["masks", "task", "supervisor", "with Extra"], results)
    yield Row("masking of a private key, task or supervisor: CPU", "s", slowest, 1)


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
