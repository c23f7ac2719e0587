"""A file has one asset URI and one OpenLineage dataset."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from airflow.sdk import Asset
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import InvalidPath
from airflow_sftp_backend.assets import convert_asset_to_openlineage, create_asset, dataset, file_uri, sanitize_uri
from airflow_sftp_backend.backend import BackendConfig
from tests.support.airflow import prepared_process
from tests.support.airflow.versions import ProvidersManagerTaskRuntime


def uri_of(key: str, **config: Any) -> str:
    """The URI of a key on sftp.example.com."""
    return file_uri(BackendConfig(**{"host": "sftp.example.com", **config}), key)


def sanitized(uri: str) -> str:
    """Return the URI as Airflow normalizes it."""
    return sanitize_uri(urlsplit(uri)).geturl()


@pytest.mark.parametrize(
    ("config", "key", "uri"),
    [
        ({}, "in/a.csv", "sftp://sftp.example.com:22/in/a.csv"),
        ({"port": 2222}, "a.csv", "sftp://sftp.example.com:2222/a.csv"),
        ({"base_path": "/data//in/"}, "/x//./a.csv", "sftp://sftp.example.com:22/data/in/x/a.csv"),
        ({"base_path": "."}, "a.csv", "sftp://sftp.example.com:22/~/a.csv"),
        ({"base_path": "in"}, "a.csv", "sftp://sftp.example.com:22/~/in/a.csv"),
        ({}, "", "sftp://sftp.example.com:22/"),
        ({}, "50% of é?#.csv", "sftp://sftp.example.com:22/50%25%20of%20%C3%A9%3F%23.csv"),
        ({}, "caf\udce9.csv", "sftp://sftp.example.com:22/caf%E9.csv"),
        ({}, "a=b&c,(1)@x:y;z!.csv", "sftp://sftp.example.com:22/a=b&c,(1)@x:y;z!.csv"),
        ({"host": "SFTP.Example.COM"}, "a", "sftp://sftp.example.com:22/a"),
        ({"host": "2001:DB8::1"}, "a", "sftp://[2001:db8::1]:22/a"),
    ],
)
def test_a_file_has_one_uri(config: dict[str, object], key: str, uri: str) -> None:
    assert uri_of(key, **config) == uri
    assert sanitized(uri) == uri


@pytest.mark.parametrize(
    ("written", "uri"),
    [
        ("sftp://sftp.example.com/in/a.csv", "sftp://sftp.example.com:22/in/a.csv"),
        ("sftp://SFTP.example.com:/in/a.csv", "sftp://sftp.example.com:22/in/a.csv"),
        ("sftp://me@sftp.example.com:2222/in//./a.csv/", "sftp://sftp.example.com:2222/in/a.csv"),
        ("sftp://me:pw@[::1]/a", "sftp://[::1]:22/a"),
        ("sftp://h/a%2Eb%20c", "sftp://h:22/a.b%20c"),
        ("sftp://h/50%.csv", "sftp://h:22/50%25.csv"),
        ("sftp://h/é.csv", "sftp://h:22/%C3%A9.csv"),
        ("sftp://h/a?x=1", "sftp://h:22/a?x=1"),
        ("sftp://h", "sftp://h:22/"),
    ],
)
def test_other_spellings_are_normalised(written: str, uri: str) -> None:
    assert sanitized(written) == uri
    assert sanitized(uri) == uri


@pytest.mark.parametrize(
    "wrong", ["sftp:///in/a.csv", "sftp://:22/a", "sftp://h:70000/a", "sftp://h/a/../b", "sftp://h/%2E%2E/b"]
)
def test_a_uri_that_names_no_file_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError):
        sanitized(wrong)


def test_a_key_outside_base_path_has_no_uri() -> None:
    with pytest.raises(InvalidPath):
        uri_of("../a")


names = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=8)
keys = st.lists(names.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map("/".join)


@given(key=keys)
def test_every_key_has_a_unique_and_stable_uri(key: str) -> None:
    uri = uri_of(key, base_path="/data")
    assert sanitized(uri) == uri
    assert uri.isascii()
    assert unquote(urlsplit(uri).path) == f"/data/{key}"


# ---- Airflow's own Asset


def test_airflow_accepts_the_uri_unchanged() -> None:
    uri = uri_of("in/50% of é?.csv", port=2222)
    assert Asset(uri=uri).uri == uri
    assert Asset(uri=uri_of("in/a.csv")).uri == "sftp://sftp.example.com:22/in/a.csv"


def test_airflow_makes_an_asset_of_host_and_path() -> None:
    for path in ("/data/in/a b.csv", "data/in/a b.csv"):
        asset = create_asset(host="SFTP.example.com", path=path, extra={"rows": 3})
        assert asset.uri == "sftp://sftp.example.com:22/data/in/a%20b.csv"
        assert asset.extra == {"rows": 3}
    assert create_asset(host="::1", port=2222, path="/a").uri == "sftp://[::1]:2222/a"


UPSTREAM = "airflow.providers.sftp.assets.sftp"
with_upstream = pytest.mark.skipif(
    find_spec("airflow.providers.sftp") is None, reason="Airflow's sftp provider is not here"
)


def test_this_provider_owns_the_scheme_unless_the_sftp_provider_is_there() -> None:
    handler_module = UPSTREAM if find_spec("airflow.providers.sftp") else "airflow_sftp_backend.assets.uri"
    providers = ProvidersManagerTaskRuntime()  # type: ignore[no-untyped-call]  # Airflow does not annotate it
    assert providers.asset_uri_handlers["sftp"].__module__ == handler_module
    assert providers.asset_factories["sftp"].__module__ == handler_module


@with_upstream
@given(key=keys)
def test_the_sftp_provider_leaves_the_uri_unchanged(key: str) -> None:
    uri = uri_of(key)
    assert import_module(UPSTREAM).sanitize_uri(urlsplit(uri)).geturl() == uri


@with_upstream
def test_the_sftp_provider_gives_a_plain_path_the_same_uri() -> None:
    other = import_module(UPSTREAM)
    assert other.create_asset(host="h", path="in/a.csv").uri == create_asset(host="h", path="in/a.csv").uri
    assert other.sanitize_uri(urlsplit("sftp://h/in/a.csv")).geturl() == sanitized("sftp://h/in/a.csv")


# ---- OpenLineage


def test_the_dataset_is_named_as_openlineage_names_a_remote_file() -> None:
    pytest.importorskip("openlineage.client")
    found = dataset(uri_of("in/50% of é.csv", base_path="/data"))
    assert (found.namespace, found.name) == ("file://sftp.example.com:22", "/data/in/50% of é.csv")
    assert convert_asset_to_openlineage(Asset(uri="sftp://h/a%20b"), None) == dataset("sftp://h:22/a b")


def test_importing_assets_loads_no_openlineage() -> None:
    code = "import sys, airflow_sftp_backend.assets.uri; print('openlineage' in sys.modules)"
    done = prepared_process.run(["-c", code], modules=prepared_process.AIRFLOW_ONLY)
    assert done.stdout.strip() == "False", done.stderr
