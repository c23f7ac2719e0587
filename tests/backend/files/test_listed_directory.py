"""A listed directory keeps the order of the server in little memory."""

from __future__ import annotations

import stat
import tracemalloc
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend.backend._files import listed_directory
from airflow_sftp_backend.backend._files.listed_directory import ListedDirectory
from airflow_sftp_backend.backend._files.tree import list_children, walk_files
from airflow_sftp_backend.backend._paths import Jail, is_temp_name, temp_name
from airflow_sftp_backend.backend._protocol.codec import Attributes, DirEntry
from airflow_sftp_backend.backend._receive_limits import LimitExceeded, ListedNames, ListingTally
from airflow_sftp_backend.backend.models import FileInfo, create_file_info, utc
from tests.support.memory_server import MemoryServer, directory_reply

IN = Jail("/").resolve("in")
TEMPS = [temp_name("a", "1" * 12), temp_name("b", "0" * 12, "backup")]
NAMES = st.sampled_from(["a", "bc", "abc", "xyz", "dé", "\udcffabc", "a\\b", "..", "a/b", "a\nb", "..\\c", "", *TEMPS])
MODES = st.sampled_from([stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755])
ENTRIES = st.lists(
    st.lists(st.builds(lambda name, mode, size: DirEntry(name, Attributes(size, 0, 0, mode, 1, size)), NAMES, MODES,
                       st.integers(0, 9)), max_size=5, unique_by=lambda entry: entry.name), max_size=4,
)  # fmt: skip


def is_safe(name: str) -> bool:
    """Tell whether a listing shows the name."""
    return name not in ("", ".", "..", "a/b", "a\nb", "..\\c")


def listed(batches: list[list[DirEntry]]) -> ListedDirectory:
    """Pass replies to a directory."""
    directory = ListedDirectory(IN, ListingTally("in"))
    for batch in batches:
        directory.add(directory_reply(batch))
    MemoryServer({}).run(directory.examine_others(descends=False))
    return directory


@given(ENTRIES, st.integers(1, 4))
def test_entries_are_those_of_the_replies_in_order(batches: list[list[DirEntry]], block: int) -> None:
    seen: set[str] = set()
    batches = [[entry for entry in batch if not (entry.name in seen or seen.add(entry.name))] for batch in batches]  # type: ignore[func-returns-value]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listed_directory, "_BLOCK_FILES", block)
        directory = listed(batches)
        entries = [entry for batch in batches for entry in batch if is_safe(entry.name)]
        assert [(entry.path, entry.attributes) for entry in directory] == [
            (IN.entry(entry.name), entry.attributes) for entry in entries
        ]
        assert list(directory.file_infos()) == [
            FileInfo(f"in/{entry.name}", entry.name, entry.attributes.size or 0, utc(entry.attributes.mtime), 0o644)
            for entry in entries
            if entry.attributes.is_file and not is_temp_name(entry.name)
        ]


def test_a_directory_listed_twice_repeats_no_file() -> None:
    kinds = {"a": stat.S_IFREG, "D": stat.S_IFDIR}
    names = ["aaa0", "DIR", "aaa1", "DIR2", "aaa2", "DIR", "aaa3"]
    batch = [DirEntry(name, Attributes(1, 0, 0, kinds[name[0]] | 0o644, 1, 1)) for name in names]
    files = [info.name for info in listed([batch]).file_infos()]
    assert files == ["aaa0", "aaa1", "aaa2", "aaa3"]


def test_a_created_file_info_is_like_a_constructed_one() -> None:
    values = ("a/b", "b", 3, utc(7), 0o640)
    info = create_file_info(*values)
    assert info == FileInfo(*values)
    assert hash(info) == hash(FileInfo(*values))
    with pytest.raises(AttributeError):
        info.size = 4  # type: ignore[misc]


def test_a_listing_of_many_files_takes_few_bytes_a_name() -> None:
    directory = ListedDirectory(IN, ListingTally("in"))
    tracemalloc.start()
    try:
        for start in range(0, 50_000, 100):
            directory.add(directory_reply(
                DirEntry(f"orders-2026-{number:07}.csv", Attributes(number, 0, 0, 0o100644, number, number))
                for number in range(start, start + 100)
            ))  # fmt: skip
        assert tracemalloc.get_traced_memory()[0] < 50_000 * 30
    finally:
        tracemalloc.stop()
    assert sum(1 for _ in directory.file_infos()) == 50_000


def test_files_may_be_deleted_and_renamed_while_a_listing_is_taken() -> None:
    server = MemoryServer({"/in": None, **{f"/in/file-{number}": b"" for number in range(300)}})

    def call(use, *, idempotent=False):  # type: ignore[no-untyped-def]
        return use(server)

    taken = []
    for info in walk_files(call, IN):
        taken.append(info.name)
        server.files[f"/in/{info.name}.done"] = server.files.pop(f"/in/{info.name}")
    assert taken == [f"file-{number}" for number in range(300)]
    assert len(list(list_children(call, IN))) == 300


# -- listings without an end ------------------------------------------------------------------------------------------


def batches_of(numbers: Iterator[int], size: int) -> Iterator[list[bytes]]:
    """Yield replies of ``size`` names."""
    while True:
        yield [b"%d" % next(numbers) for _ in range(size)]


def repeated(start: int, length: int) -> Iterator[int]:
    """Count, and from some number on repeat the last ``length`` numbers."""
    return (number if number < start + length else start + (number - start) % length for number in count())


@pytest.mark.parametrize(
    ("start", "length", "size"), [(0, 3, 2), (0, 40_000, 7), (0, 30_000, 100), (50_000, 1, 1), (7_000, 90_000, 100),
                                  (20_000, 100, 100)]
)  # fmt: skip
def test_a_listing_that_repeats_any_part_ends(start: int, length: int, size: int) -> None:
    names, number = ListedNames("in"), 0
    with pytest.raises(LimitExceeded, match="bring no new name"):
        for number, batch in enumerate(batches_of(repeated(start, length), size)):  # noqa: B007 - used below
            names.add(batch)
    assert start + length <= (number + 1) * size <= 4 * (start + length) + 600 * size


def test_a_million_different_names_are_no_repetition() -> None:
    names = ListedNames("in")
    for _, batch in zip(range(10_000), batches_of(count(), 100), strict=False):
        names.add(batch)
