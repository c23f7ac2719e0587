"""Walk trees, match patterns, and delete only below the given directory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import (
    BackendUnavailable,
    FolderInfo,
    InvalidPath,
    NotFound,
    PermissionDenied,
    SFTPBackend,
    SFTPBackendError,
)
from airflow_sftp_backend.backend._files.glob import Pattern, find, find_each
from airflow_sftp_backend.backend._files.tree import (
    SessionCall,
    delete_tree,
    folder_info,
    get_file_infos,
    list_children,
    walk,
)
from airflow_sftp_backend.backend._paths import Jail, temp_name
from airflow_sftp_backend.backend._protocol.codec import Attributes, DirEntry
from airflow_sftp_backend.backend._protocol.messages import LStat, OpenDir, ReadDir, Remove, Request
from airflow_sftp_backend.backend._protocol.scheduler import SFTPScheduler
from airflow_sftp_backend.backend._protocol.server_traits import OPENSSH, UNKNOWN, ServerTraits
from airflow_sftp_backend.backend._receive_limits import LimitExceeded, ReceiveLimits
from airflow_sftp_backend.backend.errors import StatusCode, StatusError
from tests.support.memory_server import FAILURES, Failure, MemoryServer
from tests.support.scripted_channel import Packet, ScriptedChannel, connected, status
from tests.support.servers import AsyncsshServer, Packets

T = TypeVar("T")
ROOT = Jail("/").root
AT = Jail("/").resolve
NAMES = st.sampled_from(["a", "b", "ab", "c.csv", temp_name("a", "0" * 12)])
TREES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=4).map("/".join), st.binary(max_size=9) | st.none(), max_size=12
)
SEGMENTS = {
    "a": "a",
    "*": "[^/]*",
    "a*": "a[^/]*",
    "?": "[^/]",
    "[ab]": "[ab]",
    "[!a]*": "[^/a][^/]*",
    "*.csv": r"[^/]*\.csv",
}
PATTERNS = st.lists(st.sampled_from([*SEGMENTS, "**"]), min_size=1, max_size=5)


def server_of(tree: dict[str, bytes | None], **options: Any) -> MemoryServer:
    """Server with these files, directories and their parents."""
    files: dict[str, bytes | None] = {}
    for path in sorted(tree):
        parts = path.split("/")
        above = ["/" + "/".join(parts[:count]) for count in range(1, len(parts))]
        if any(files.get(folder) is not None for folder in above):
            continue
        files |= dict.fromkeys(above)
        files.setdefault("/" + path, tree[path])
    return MemoryServer(files, **options)


def reach(server: SFTPScheduler) -> SessionCall:
    """The server as walks are given it."""

    def call(use: Callable[[SFTPScheduler], T], *, idempotent: bool = False) -> T:
        return use(server)

    return call


def keys_of(server: MemoryServer, *, temps: bool = False) -> list[str]:
    keys = (path[1:] for path in server.content())
    return sorted(key for key in keys if temps or not key.endswith(".part"))


def regex(pattern: list[str]) -> str:
    """Translate a pattern into a regular expression, independently of the package."""
    text = "".join("(?:[^/]+/)*" if segment == "**" else f"{SEGMENTS[segment]}/" for segment in pattern[:-1])
    return text + ("(?:[^/]+/)*[^/]+" if pattern[-1] == "**" else SEGMENTS[pattern[-1]])


# -- looking ----------------------------------------------------------------------------------------------------------


@given(TREES, st.lists(PATTERNS, min_size=1, max_size=3))
def test_find_gives_each_match_once_and_sorted(tree: dict[str, bytes | None], patterns: list[list[str]]) -> None:
    server = server_of(tree)
    found = find(reach(server), ROOT, [Pattern.parse("/".join(pattern)) for pattern in patterns])
    wanted = [key for key in keys_of(server) if any(re.fullmatch(regex(pattern), key) for pattern in patterns)]
    assert [info.path for info in found] == wanted
    assert [info.size for info in found] == [len(server.content()[f"/{key}"]) for key in wanted]
    assert not server.open


@given(TREES, st.lists(st.lists(PATTERNS.map("/".join), max_size=2), max_size=4))
def test_groups_of_patterns_find_together_what_each_finds_alone(
    tree: dict[str, bytes | None], groups: list[list[str]]
) -> None:
    alone = [find(reach(server_of(tree)), ROOT, map(Pattern.parse, group)) for group in groups]
    assert find_each(reach(server_of(tree)), ROOT, groups) == alone


def test_queries_for_any_number_of_paths_fit_in_the_window() -> None:
    most = 0

    def choose(waiting: int) -> int:
        nonlocal most
        most = max(most, waiting)
        return 0

    def nothing(packet: Packet) -> bytes:
        return status(packet, StatusCode.NO_SUCH_FILE)

    scheduler = connected(ScriptedChannel(nothing, order=choose))
    found = get_file_infos(reach(scheduler), [AT(f"{number}") for number in range(20_000)])
    assert {type(outcome) for outcome in found} == {NotFound}
    assert most == 1024


class Denying(MemoryServer):
    """Some folders are not to be listed."""

    denied: tuple[str, ...] = ("/denied",)

    def carry_out(self, request: Request[Any]) -> object:
        """Refuses to list them."""
        if isinstance(request, OpenDir) and request.path in self.denied:
            raise StatusError(StatusCode.PERMISSION_DENIED)
        return super().carry_out(request)


def paths_of(outcome: object) -> list[str] | type[object]:
    return [info.path for info in outcome] if isinstance(outcome, list) else type(outcome)


def test_a_denied_directory_or_bad_pattern_fails_only_its_own_search() -> None:
    files: dict[str, bytes | None] = {"/in": None, "/denied": None} | dict.fromkeys(
        ("/in/a", "/in/b.csv", "/denied/a", "/top"), b""
    )
    server = Denying(files)
    groups = [[f"in/{letter}*"] for letter in "abcdefghij"]
    groups += [["denied/*"], ["**/a"], ["denied/a"], ["denied/no"], ["../x"], ["in/a", "a\0"], ["in/*", "denied/?"], []]
    outcomes = find_each(reach(server), ROOT, groups)
    assert [paths_of(outcome) for outcome in outcomes] == [
        ["in/a"], ["in/b.csv"], *([[]] * 8),
        PermissionDenied, PermissionDenied, ["denied/a"], [], InvalidPath, InvalidPath, PermissionDenied, [],
    ]  # fmt: skip
    listed = [request.path for request in server.requests if isinstance(request, OpenDir)]
    assert sorted(listed) == ["/", "/denied", "/in"]
    alone: list[object] = []
    for group in groups:
        try:
            alone.append([info.path for info in find(reach(Denying(files)), ROOT, map(Pattern.parse, group))])
        except SFTPBackendError as error:
            alone.append(type(error))
    assert [paths_of(outcome) for outcome in outcomes] == alone


def test_invalid_patterns_are_refused_without_a_request() -> None:
    def call(use: Callable[[SFTPScheduler], T], *, idempotent: bool = False) -> T:
        raise AssertionError("a request is sent")

    assert [paths_of(outcome) for outcome in find_each(call, ROOT, [["../x"], ["a\0"]])] == [InvalidPath, InvalidPath]
    assert find_each(call, ROOT, []) == []


def test_an_endless_tree_fails_only_the_searches_that_descend_into_it() -> None:
    outcomes = find_each(reach(Endless({})), ROOT, [["deeper/*"], ["**/x"]])
    assert [paths_of(outcome) for outcome in outcomes] == [[], LimitExceeded]


@given(PATTERNS, st.lists(st.sampled_from(["a", "b", "ab", "c.csv"]), min_size=1, max_size=5).map("/".join))
def test_a_pattern_matches_the_keys_that_find_would_find(pattern: list[str], key: str) -> None:
    assert Pattern.parse("/".join(pattern)).matches(key) == (re.fullmatch(regex(pattern), key) is not None)


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("/in//./a.csv", ("in", "a.csv")),
        ("in/*.csv", ("in", "*.csv")),
        ("a?", ("a?",)),
        ("[ab]", ("[ab]",)),
        ("in[*]/[[]1]", ("in[*]", "[[]1]")),
        ("", ()),
    ],
)
def test_a_pattern_is_read_like_a_path(text: str, segments: tuple[str, ...]) -> None:
    pattern = Pattern.parse(text)
    assert pattern.segments == segments


@pytest.mark.parametrize("text", ["../*", "in/../*", "**/..", "a\0*"])
def test_a_pattern_that_climbs_is_refused(text: str) -> None:
    with pytest.raises(InvalidPath, match="a pattern must not contain") as caught:
        Pattern.parse(text)
    assert caught.value.path == text


@given(TREES, st.none() | st.integers(0, 4))
def test_a_walk_sees_every_entry_once_level_by_level(tree: dict[str, bytes | None], max_depth: int | None) -> None:
    server = server_of(tree)
    seen = [found.path.key for found in walk(reach(server), ROOT, max_depth)]
    assert len(seen) == len(set(seen))
    assert [key.count("/") for key in seen] == sorted(key.count("/") for key in seen)
    wanted = {
        path[1:]
        for path, node in server.files.items()
        if path != "/" and not (node is not None and path.endswith(".part"))
    }
    assert set(seen) == {key for key in wanted if max_depth is None or key.count("/") <= max_depth}


@given(TREES)
def test_the_totals_of_a_directory_are_those_of_its_files(tree: dict[str, bytes | None]) -> None:
    server = server_of(tree)
    sums = folder_info(reach(server), ROOT)
    keys = keys_of(server)
    assert (sums.path, sums.file_count) == ("", len(keys))
    assert sums.total_size == sum(len(server.content()[f"/{key}"]) for key in keys)
    assert (sums.modified_at is None) == (not keys)


@pytest.mark.parametrize(("key", "kind"), [("missing", NotFound), ("file", InvalidPath)])
def test_a_file_has_no_directory_totals_and_no_children(key: str, kind: type[SFTPBackendError]) -> None:
    call = reach(server_of({"file": b"x"}))
    with pytest.raises(kind):
        folder_info(call, AT(key))
    assert list(list_children(call, AT(key))) == []
    assert list(walk(call, AT(key))) == []


def test_the_totals_of_an_empty_directory_are_zero() -> None:
    assert folder_info(reach(server_of({"in": None})), AT("in")) == FolderInfo("in", 0, 0, None)


class Endless(MemoryServer):
    """Every folder holds another."""

    def carry_out(self, request: Request[Any]) -> object:
        """The same answer at any depth."""
        if isinstance(request, OpenDir):
            return self._handle([DirEntry("deeper", Attributes(mode=0o040755))])
        if isinstance(request, LStat):
            return Attributes(mode=0o040755)
        return super().carry_out(request)


@pytest.mark.parametrize(
    "use",
    [
        lambda call: list(walk(call, ROOT)),
        lambda call: find(call, ROOT, [Pattern.parse("**/a")]),
        lambda call: folder_info(call, ROOT),
    ],
)
@pytest.mark.parametrize("traits", [OPENSSH, UNKNOWN], ids=["known", "unknown"])
def test_an_endlessly_deep_tree_ends_the_walk(use: Callable[[SessionCall], object], traits: ServerTraits) -> None:
    with pytest.raises(SFTPBackendError, match="more than 256 deep"):
        use(reach(Endless({}, traits=traits)))


def test_an_endless_listing_fills_no_memory() -> None:
    server = server_of(dict.fromkeys("abcd", b""))
    server.receive_limits = ReceiveLimits(max_entries=3)
    call = reach(server)
    for use in (lambda: list(walk(call, ROOT)), lambda: find(call, ROOT, [Pattern.parse("*")])):
        with pytest.raises(SFTPBackendError, match=r"more than 3 entries \(max_entries\)"):
            use()


def test_a_directory_deleted_during_the_walk_is_skipped() -> None:
    def after(server: MemoryServer) -> None:
        if isinstance(server.requests[-1], ReadDir) and "/b/x" in server.files:
            del server.files["/b/x"]
            del server.files["/b"]

    server = server_of({"a/y": b"", "b/x": b""}, after=after)
    assert [found.path.key for found in walk(reach(server), ROOT)] == ["a", "b", "a/y"]


# -- deleting ---------------------------------------------------------------------------------------------------------


def doomed(**options: Any) -> MemoryServer:
    return server_of(
        {"in/a": b"1", "in/deep/b": b"2", "in/deep/er/c": b"3", "in/empty": None, "out/d": b"4"}, **options
    )


@pytest.mark.parametrize("traits", [OPENSSH, UNKNOWN], ids=["known", "unknown"])
def test_a_tree_is_deleted_completely_and_nothing_else(traits: ServerTraits) -> None:
    server = doomed(traits=traits)
    delete_tree(reach(server), AT("in"), missing_ok=False)
    assert sorted(server.files) == ["/", "/out", "/out/d"]
    assert not server.open


@pytest.mark.parametrize("failure", sorted(set(FAILURES) - {"missing"}))  # what is missing is deleted
@pytest.mark.parametrize("traits", [OPENSSH, UNKNOWN], ids=["known", "unknown"])
def test_a_deletion_that_meets_a_refusal_says_so_and_deletes_what_it_can(
    failure: Failure, traits: ServerTraits
) -> None:
    server = doomed(traits=traits)
    delete_tree(reach(server), AT("in"), missing_ok=False)
    for number in range(1, len(server.requests) + 1):
        world = doomed(fail_at={number}, failure=failure, traits=traits)
        try:
            delete_tree(reach(world), AT("in"), missing_ok=False)
        except SFTPBackendError as error:
            assert isinstance(error, BackendUnavailable) == failure.startswith("lost"), number
            assert error.path is None or error.path.startswith("in"), number
        else:  # only what does not matter went unheard
            assert "/in" not in world.files, number
        assert {"/out", "/out/d"} <= world.files.keys()
        if failure == "denied":
            delete_tree(reach(world), AT("in"), missing_ok=True)  # another call ends it
            assert "/in" not in world.files


def test_a_file_that_cannot_be_deleted_is_named_and_the_others_are_gone() -> None:
    class Keeping(MemoryServer):
        """One file is not to be removed."""

        def carry_out(self, request: Request[Any]) -> object:
            """Refuses its removal."""
            if isinstance(request, Remove) and request.path == "/in/deep/b":
                raise StatusError(StatusCode.PERMISSION_DENIED)
            return super().carry_out(request)

    server = Keeping({path: None if node is None else bytes(node.content) for path, node in doomed().files.items()})
    with pytest.raises(PermissionDenied) as caught:
        delete_tree(reach(server), AT("in"), missing_ok=False)
    assert caught.value.path == "in/deep/b"
    assert sorted(server.files) == ["/", "/in", "/in/deep", "/in/deep/b", "/out", "/out/d"]


@pytest.mark.parametrize(("key", "kind"), [("missing", NotFound), ("out/d", InvalidPath)])
def test_a_file_is_not_deleted_as_a_directory(key: str, kind: type[SFTPBackendError]) -> None:
    server = doomed()
    before = server.content()
    with pytest.raises(kind):
        delete_tree(reach(server), AT(key), missing_ok=False)
    assert server.content() == before
    if kind is NotFound:
        delete_tree(reach(server), AT(key), missing_ok=True)


class _MadeMeanwhilePackets(Packets):
    async def on_request(self, kind: str) -> bool:
        if kind == "stat" and self.server.requests["stat"] == 2:
            (self.server.root / "made").mkdir()
        return True


class _MadeMeanwhile(AsyncsshServer):
    """Makes the directory ``made`` before it answers the second STAT."""

    packets = _MadeMeanwhilePackets


def test_a_directory_that_is_made_while_it_is_listed_is_empty_or_listed(
    make_backend: Callable[..., SFTPBackend],
) -> None:
    with _MadeMeanwhile() as server:
        backend = make_backend(server, base_path=str(server.root))
        assert list(backend.list_files("made")) == []
