"""Confine keys and server names to base_path, and recognise temporary names."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import InvalidPath
from airflow_sftp_backend.backend._files.glob import Pattern
from airflow_sftp_backend.backend._paths import (
    Jail,
    check_server_name,
    has_control_character,
    is_temp_name,
    name_digest,
    temp_name,
    temp_or_backup_digest,
)

CHARACTERS = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
SEGMENT = st.text(CHARACTERS, min_size=1, max_size=8).filter(lambda text: text not in (".", ".."))
KEYS = st.lists(SEGMENT, min_size=1, max_size=4).map("/".join)
BASES = st.sampled_from(["/", "/data", "/data/in", "in", "in/deep", ".", ""])
TOKENS = st.text("0123456789abcdef", min_size=12, max_size=12)
NAMES = st.text(CHARACTERS, min_size=1, max_size=300)


@given(BASES, st.text("ab./\\ ", max_size=12))
def test_any_path_stays_inside_or_is_refused(base: str, path: str) -> None:
    jail = Jail(base)
    if ".." in path.split("/"):
        with pytest.raises(InvalidPath) as caught:
            jail.resolve(path)
        assert caught.value.path == path
        return
    remote = jail.resolve(path)
    assert remote.key == "/".join(segment for segment in path.split("/") if segment not in ("", "."))
    inside = posixpath.normpath(posixpath.join("/home", jail.base_path))
    assert posixpath.commonpath([inside, posixpath.normpath(posixpath.join("/home", remote.native))]) == inside
    assert jail.to_key(remote.native) == remote.key


@given(BASES, KEYS)
def test_key_and_native_path_are_inverse(base: str, key: str) -> None:
    jail = Jail(base)
    assert jail.resolve(key).key == key
    assert jail.to_key(jail.resolve(key).native) == key


@given(BASES, KEYS, SEGMENT)
def test_a_child_lies_in_its_parent(base: str, key: str, name: str) -> None:
    jail = Jail(base)
    path = jail.resolve(f"{key}/{name}")
    assert path.parent == jail.resolve(key)
    assert path.name == name
    assert path.parent.entry(name) == path


@pytest.mark.parametrize(
    ("base", "key", "native"),
    [
        ("/", "a/b", "/a/b"),
        ("/data/", "a", "/data/a"),
        ("/data//./in", "/a//b/./", "/data/in/a/b"),
        ("in", "a", "in/a"),
        (".", "a", "a"),
        ("", "a/b", "a/b"),
        ("/data", "", "/data"),
        (".", ".", "."),
        ("/", "/", "/"),
    ],
)
def test_keys_are_relative_to_base_path(base: str, key: str, native: str) -> None:
    assert Jail(base).resolve(key).native == native


@pytest.mark.parametrize("base", ["/", "/data", "in", "."])
def test_the_root_is_its_own_parent(base: str) -> None:
    root = Jail(base).root
    assert root.is_root
    assert root.parent == root
    assert Jail(base).resolve("a").parent == root
    assert root.child("a") == Jail(base).resolve("a")


@pytest.mark.parametrize("key", ["\ud800", "in/\udfff.csv"])
def test_text_that_is_not_unicode_is_refused_as_a_path(key: str) -> None:
    with pytest.raises(InvalidPath, match="half of a character"):
        Jail("/").resolve(key)
    with pytest.raises(InvalidPath, match="half of a character"):
        Pattern.parse(key)


@pytest.mark.parametrize("base", ["..", "/a/../b", "a/.."])
def test_a_base_path_that_climbs_is_refused(base: str) -> None:
    with pytest.raises(ValueError, match="must not contain"):
        Jail(base)


@pytest.mark.parametrize("native", ["/", "/dat", "/data2", "/data/../x", "/data/a\0"])
def test_a_native_path_outside_has_no_key(native: str) -> None:
    with pytest.raises(InvalidPath, match="outside base_path '/data'"):
        Jail("/data").to_key(native)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "../x", "..\\x", "a\\..\\b", "a\nb", "a\0", "\x7f"])
def test_an_unsafe_server_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidPath, match="unsafe name") as caught:
        check_server_name(name, "in")
    assert caught.value.path == "in"


@pytest.mark.parametrize("name", ["a", "...", "..a", "a\\b", "Größe €", "\udcff", " "])
def test_any_other_server_name_is_accepted(name: str) -> None:
    check_server_name(name, "in")


def test_control_characters_are_those_below_space_and_delete() -> None:
    assert [code for code in range(256) if has_control_character(chr(code))] == [*range(32), 127]


@given(NAMES, NAMES, TOKENS)
def test_a_temporary_name_is_recognised_by_its_target_alone(name: str, other: str, token: str) -> None:
    made = temp_name(name, token)
    assert is_temp_name(made)
    assert len(made.encode("utf-8", "surrogateescape")) <= 255
    assert temp_or_backup_digest(made) == name_digest(name)
    if other != name:
        assert temp_or_backup_digest(made) != name_digest(other)


@given(NAMES)
def test_ordinary_file_names_are_not_temporary_names(name: str) -> None:
    assert not is_temp_name(name)
    assert not is_temp_name(f".{name}.part")


def test_a_temporary_file_is_in_the_directory_of_its_target() -> None:
    path = Jail("/data").resolve("in/a.csv")
    temp = path.temp("0123456789ab")
    assert temp.parent == path.parent
    assert temp.name.startswith(".a.csv.")
    assert temp.name.endswith("-0123456789ab.part")
