"""Compare samples of a file on the server with expected content."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from airflow_sftp_backend.backend._protocol.codec import ServerLimits
from airflow_sftp_backend.backend._protocol.messages import Read
from airflow_sftp_backend.backend._protocol.scheduler import Operation, request_all
from airflow_sftp_backend.backend.errors import StatusError

SAMPLE_SIZE: Final = ServerLimits().read
"""Bytes of a sample: every server returns as many in a single reply."""
_SAMPLE_COUNT: Final = 32  # samples across the file, and as many at its end
WHOLE_SIZE: Final = 2 * _SAMPLE_COUNT * SAMPLE_SIZE
"""Bytes of a file up to which samples compare the whole content."""


def sample_ranges(size: int) -> list[tuple[int, int]]:
    """Return offsets and lengths of the samples of ``size`` bytes.

    Samples are spread over the file and at its end.

    Up to `WHOLE_SIZE` bytes, the samples are the whole file.
    """
    if size <= WHOLE_SIZE:
        return [(start, min(SAMPLE_SIZE, size - start)) for start in range(0, size, SAMPLE_SIZE)]
    ends = [size - index * SAMPLE_SIZE for index in range(_SAMPLE_COUNT)]
    evenly_spaced = [(size - SAMPLE_SIZE) * index // _SAMPLE_COUNT for index in range(_SAMPLE_COUNT)]
    starts = {max(0, start) for start in [*evenly_spaced, *(end - SAMPLE_SIZE for end in ends)]}
    return [(start, min(SAMPLE_SIZE, size - start)) for start in sorted(starts)]


def samples_match(
    handle: bytes, size: int, expected: Callable[[int, int], bytes | memoryview | None]
) -> Operation[bool]:
    """Compare samples of a file on the server.

    They are samples of the first ``size`` bytes. One round trip.

    :param handle: the handle of the file
    :param size: bytes to sample
    :param expected: returns the expected bytes for an offset and a length
    :returns: True if all samples match
    """
    ranges = sample_ranges(size)
    answers = yield from request_all([Read(handle, start, length) for start, length in ranges])
    return all(
        not isinstance(answer, StatusError) and answer == expected(start, length)
        for (start, length), answer in zip(ranges, answers, strict=True)
    )
