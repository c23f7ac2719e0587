"""Tell new files from files that were reported."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend._polling.seen_files import SeenFiles

DAY = 24 * 3600.0


def row(path: str, size: int = 1, modified_at: str | None = "2026-01-01T00:00:00+00:00") -> FoundFile:
    return {"path": path, "size": size, "modified_at": modified_at}


class Watch:
    """A watch with given polls, restarted before each of them."""

    def __init__(self, *, changed: bool = False) -> None:
        self.changed = changed
        self.seen = SeenFiles()

    def poll(self, *ready: FoundFile, unready: tuple[str, ...] = (), at: float = 0.0) -> list[str]:
        """The paths reported."""
        present = [one["path"] for one in ready] + list(unready)
        before, seen = len(self.seen.unacknowledged), self.seen
        assert SeenFiles.from_json(json.loads(json.dumps(seen.as_json()))) == seen
        self.seen = seen.updated_with(ready, present, at, changed=self.changed)
        changes = json.loads(json.dumps(self.seen.changes_since(seen)))
        assert seen.apply(changes) == self.seen
        assert SeenFiles().apply(self.seen.changes_since(SeenFiles())) == self.seen
        return [one["path"] for report in self.seen.unacknowledged[before:] for one in report.files]


def test_a_file_is_reported_as_new_once() -> None:
    watch = Watch()
    assert watch.poll(row("a"), row("b")) == ["a", "b"]
    assert watch.poll(row("a"), row("b"), row("c")) == ["c"]
    assert watch.poll(row("a"), row("b"), row("c")) == []


def test_a_limited_batch_has_the_oldest_new_files() -> None:
    files = [row(name, modified_at=f"2026-01-0{day}T00:00:00+00:00") for name, day in {"a": 3, "b": 1, "c": 2}.items()]
    files.append(row("0", modified_at=None))
    seen_files, batches = SeenFiles(), []
    for _ in range(3):
        seen_files = seen_files.updated_with(files, [file["path"] for file in files], 0, changed=False, max_files=2)
        batches = [[file["path"] for file in batch.files] for batch in seen_files.unacknowledged]
    assert batches == [["b", "c"], ["a", "0"]]


@pytest.mark.parametrize("other", [row("a", size=2), row("a", modified_at="2026-01-02T00:00:00+00:00")])
def test_a_changed_file_is_new_only_if_configured(other: FoundFile) -> None:
    for changed, reported in ((False, []), (True, ["a"])):
        watch = Watch(changed=changed)
        watch.poll(row("a"))
        assert watch.poll(other) == reported
        assert watch.poll(other) == []


def test_a_reused_name_is_a_new_file() -> None:
    watch = Watch()
    watch.poll(row("daily.csv"))
    assert watch.poll() == []
    assert watch.poll(row("daily.csv", size=2)) == ["daily.csv"]


def test_a_reused_name_is_new_even_if_first_seen_incomplete() -> None:
    watch = Watch()
    watch.poll(row("daily.csv"))
    watch.poll()
    assert watch.poll(unready=("daily.csv",)) == []
    assert watch.poll(row("daily.csv", size=2)) == ["daily.csv"]


def test_an_unreported_change_is_new_once_it_changes_again() -> None:
    watch = Watch()
    watch.poll(row("a"))
    watch.poll(row("a", size=2))
    watch.poll()
    assert watch.poll(row("a", size=2)) == []
    watch.poll()
    assert watch.poll(row("a", size=3)) == ["a"]


def test_a_briefly_missing_directory_reports_nothing_twice() -> None:
    watch = Watch()
    watch.poll(row("in/a"), row("in/b"), row("other/c"))
    assert watch.poll(row("other/c"), at=100) == []
    assert watch.poll(row("other/c"), at=DAY) == []
    assert watch.poll(row("in/a"), row("in/b"), row("other/c"), at=DAY + 99) == []


def test_a_directory_missing_for_a_day_is_forgotten() -> None:
    watch = Watch()
    watch.poll(row("in/a"))
    watch.poll(at=100)
    watch.poll(at=100 + DAY)
    assert watch.seen == SeenFiles({}, watch.seen.unacknowledged)
    assert watch.poll(row("in/a"), at=100 + DAY) == ["in/a"]


def test_a_deleted_file_is_forgotten_if_others_remain() -> None:
    watch = Watch()
    watch.poll(row("in/a"), row("in/b"))
    assert watch.poll(row("in/b")) == []
    assert watch.poll(row("in/a"), row("in/b")) == ["in/a"]


def test_very_many_new_files_are_split_into_batches() -> None:
    watch = Watch(changed=True)
    files = [row(f"in/{number:04}") for number in range(1200)]
    assert watch.poll(*files) == [one["path"] for one in files]
    assert [len(batch.files) for batch in watch.seen.unacknowledged] == [500, 500, 200]
    others = [row(one["path"], size=2) for one in files]
    assert [len(watch.poll(*others)) for _ in range(2)] == [1200, 0]
    assert [len(batch.files) for batch in watch.seen.unacknowledged] == [500, 500, 200] * 2


def test_files_beyond_the_last_batch_are_left_to_later_polls() -> None:
    files = [row(f"in/{number:05}") for number in range(50_001)]
    paths = [file["path"] for file in files]
    full = SeenFiles().updated_with(files, paths, 0, changed=False)
    assert [len(batch.files) for batch in full.unacknowledged] == [500] * 100
    assert full.updated_with(files, paths, 0, changed=False) == full
    acknowledged = SeenFiles(full.directories, full.unacknowledged[1:])
    (batch,) = acknowledged.updated_with(files, paths, 0, changed=False).unacknowledged[99:]
    assert batch.files == files[-1:]


def test_the_record_of_seen_files_is_small() -> None:
    files = [row(f"inbox/partner-a/orders-2026-{number:06}.csv") for number in range(4000)]
    seen = SeenFiles().updated_with(files, [file["path"] for file in files], 0, changed=False)
    reported = json.dumps(SeenFiles().apply(seen.changes_since(SeenFiles())).changes_since(SeenFiles()))
    assert len(reported) < 100 * 4000
    seen = SeenFiles(seen.directories)
    assert len(json.dumps(seen.changes_since(SeenFiles()))) < 65_535
    assert len(json.dumps(seen.as_json())) < 65_535


_POLLS = st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 3), max_size=3), max_size=12)


@given(polls=_POLLS)
def test_changed_content_is_reported_once_per_change_if_configured(polls: list[dict[str, int]]) -> None:
    watch = Watch(changed=True)
    last: dict[str, int] = {}
    for files in polls:
        reported = watch.poll(*(row(path, size) for path, size in files.items()))
        assert reported == [path for path, size in files.items() if last.get(path) != size]
        last = files or last  # while there is none at all, none is forgotten


@given(polls=_POLLS)
def test_an_unchanged_file_is_never_reported_twice(polls: list[dict[str, int]]) -> None:
    watch = Watch()
    before: set[str] = set()
    ever: set[str] = set()
    for files in polls:
        reported = set(watch.poll(*(row(path, size) for path, size in files.items())))
        assert reported >= files.keys() - ever
        assert not reported & before
        before = set(files)
        ever |= before


def test_every_batch_has_a_unique_name() -> None:
    watch = Watch()
    names = set()
    for path in "abc":
        watch.poll(row(path))
        names.add(watch.seen.unacknowledged[-1].batch_id)
    assert len(names) == 3
