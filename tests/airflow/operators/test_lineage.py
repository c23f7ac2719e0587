"""Operators report each file to asset outlets and OpenLineage."""

from __future__ import annotations

import hashlib
import json
import textwrap
from pathlib import Path
from typing import Any, cast

import pytest
from airflow.providers.common.compat.openlineage.utils.utils import translate_airflow_asset
from airflow.sdk import Asset, AssetAlias, BaseOperator
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem

from airflow_sftp_backend import SFTPBackend
from airflow_sftp_backend.operators import (
    SFTPDeleteOperator,
    SFTPDownloadOperator,
    SFTPMoveOperator,
    SFTPUploadOperator,
)
from airflow_sftp_backend.operators._lineage import FileEvent, update_outlet_events
from tests.support.airflow import prepared_process
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import State, context
from tests.support.airflow.operators import run_in
from tests.support.airflow.supervised_task import messages_to_airflow
from tests.support.airflow.supervised_task import run as run_supervised
from tests.support.airflow.versions import ProvidersManagerTaskRuntime
from tests.support.files import write_files
from tests.support.servers import AsyncsshServer

Names = list[tuple[str, str]]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def uri(server: AsyncsshServer, remote: Path, path: str) -> str:
    """The asset URI of a file."""
    return f"sftp://{server.host}:{server.port}{remote}/{path}"


def events(operator: BaseOperator, try_number: int = 1, state: State | None = None) -> Any:
    """Runs the operator; the events of its outlets."""
    ran = context(try_number, state)
    operator.execute(ran)
    return ran["outlet_events"]


def lineage(operator: Any) -> tuple[Names, Names]:
    """Runs the operator; namespace and name of each dataset read and written."""
    operator.execute(context())
    found = operator.get_openlineage_facets_on_complete(None)
    return [(d.namespace, d.name) for d in found.inputs], [(d.namespace, d.name) for d in found.outputs]


def converted(*uris: str) -> Names:
    """Return the datasets of Airflow's converters for assets with these URIs."""
    found = [translate_airflow_asset(Asset(uri=one), None) for one in uris]
    return [(one.namespace, one.name) for one in found if one is not None]


# -- assets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["size", "sha256"])
def test_the_event_of_a_file_has_its_size_and_digest(
    remote: Path, server: AsyncsshServer, tmp_path: Path, verify: Any
) -> None:
    write_files(tmp_path, {"a.csv": b"abc"})
    outlet = Asset("report", uri=uri(server, remote, "out/a.csv"))
    found = events(
        SFTPUploadOperator(
            task_id="up", source=str(tmp_path / "a.csv"), target="out/a.csv", verify=verify, outlets=[outlet]
        )
    )
    assert found[outlet].extra == {"uri": outlet.uri, "action": "uploaded", "size": 3, "sha256": sha256(b"abc")}


def test_an_outlet_gets_the_events_of_its_own_path_or_all(remote: Path, server: AsyncsshServer, tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"a": b"1", "deep/b": b"22", "deep/c": b"333"})
    of_all, of_folder = Asset("all"), Asset("folder", uri=uri(server, remote, "out/deep"))
    of_none, alias = Asset("none", uri=uri(server, remote, "ou")), AssetAlias("each")
    found = events(
        SFTPUploadOperator(
            task_id="up", source=f"{tmp_path}/in/", target="out/", outlets=[of_all, of_folder, of_none, alias]
        )
    )
    assert (found[of_all].extra["count"], found[of_all].extra["size"]) == (3, 6)
    assert [file["sha256"] for file in found[of_folder].extra["files"]] == [sha256(b"22"), sha256(b"333")]
    assert found[of_none].extra == {}
    made = found[alias].asset_alias_events
    assert [event.dest_asset_key.uri for event in made] == [
        uri(server, remote, f"out/{p}") for p in ("a", "deep/b", "deep/c")
    ]
    assert [event.extra["size"] for event in made] == [1, 2, 3]


def test_the_digest_is_that_of_the_transferred_bytes(remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"a": b"abc"})
    outlet = Asset("here", uri=f"file://{tmp_path}/a")
    found = events(SFTPDownloadOperator(task_id="down", source="a", target=f"{tmp_path}/a", outlets=[outlet]))
    assert found[outlet].extra == {
        "uri": f"file://{tmp_path}/a", "action": "downloaded", "size": 3, "sha256": sha256(b"abc"),
    }  # fmt: skip


def test_objects_have_their_digest_too(remote: Path, server: AsyncsshServer, store: str, tmp_path: Path) -> None:
    write_files(remote, {"a": b"abc"})
    there, back = Asset("there"), Asset("back")
    fetched = events(SFTPDownloadOperator(task_id="down", source="a", target=f"{store}/a", outlets=[there]))
    sent = events(SFTPUploadOperator(task_id="up", source=f"{store}/a", target="b", outlets=[back]))
    assert fetched[there].extra["sha256"] == sent[back].extra["sha256"] == sha256(b"abc")
    assert fetched[there].extra["uri"] == f"{store}/a"


def test_uris_have_no_user_part(remote: Path, server: AsyncsshServer, store: str, connect: Connect) -> None:
    folder = server.fresh()
    connect(server, "partner", base_path=folder.base_path)
    write_files(remote, {"a": b"abc"})
    bucket = store.removeprefix("memory://")
    attach("memory", conn_id="warehouse", fs=MemoryFileSystem())
    there, alias = Asset("there", uri=f"{store}/a"), AssetAlias("each")
    for target, written in (
        (f"memory://warehouse@{bucket}/a", f"{store}/a"),
        ("sftpbackend://partner@/in/b c", f"sftp://{server.host}:{server.port}{folder.path}/in/b%20c"),
    ):
        operator = SFTPDownloadOperator(task_id="down", source="a", target=target, outlets=[there, alias])
        found = events(operator)
        assert [event.dest_asset_key.uri for event in found[alias].asset_alias_events] == [written]
        assert found[there].extra.get("uri") == (written if written == there.uri else None)
        facets = operator.get_openlineage_facets_on_complete(None)
        assert facets is not None
        assert "@" not in repr(facets)
    back = Asset("back")
    found = events(SFTPUploadOperator(task_id="up", source="sftpbackend://partner@/in/b c", target="b", outlets=[back]))
    assert found[back].extra["uri"] == uri(server, remote, "b")


def test_a_retry_reports_the_events_of_the_last_attempt(remote: Path, tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"abc"})
    outlet, state = Asset("out"), State()
    for try_number in (1, 2):
        found = events(
            SFTPUploadOperator(task_id="up", source=f"{tmp_path}/a", target="a", outlets=[outlet]), try_number, state
        )
        assert found[outlet].extra["sha256"] == sha256(b"abc")
        assert found[outlet].extra["action"] == "uploaded"


def test_skipped_and_failed_files_have_no_events(remote: Path, tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"abc"})
    write_files(remote, {"a": b"abc"})
    for options in ({"if_exists": "skip"}, {"dry_run": True}):
        outlet = Asset("out")
        operator = SFTPUploadOperator(
            task_id="up", source=f"{tmp_path}/a", target="a", outlets=[outlet], **cast("Any", options)
        )
        assert events(operator)[outlet].extra == {}
        assert operator.get_openlineage_facets_on_complete(None).outputs == []  # type: ignore[union-attr]


def test_moves_and_deletions_are_reported_with_their_size(remote: Path) -> None:
    write_files(remote, {"a": b"abc", "b": b"d"})
    moved, deleted = Asset("moved"), Asset("deleted")
    assert events(SFTPMoveOperator(task_id="mv", source="a", target="c", outlets=[moved]))[moved].extra["size"] == 3
    assert events(SFTPDeleteOperator(task_id="rm", pattern="*", outlets=[deleted]))[deleted].extra["count"] == 2


@pytest.mark.parametrize(
    "spelled",
    [
        "sftp://{host}:{port}{top}/a%20b",
        "sftp://me@{host}:{port}{top}/a%20b",
        "sftp://{host}:{port}{top}/a b",
        "SFTP://{host}:{port}/{top}//a%20b",
        "sftp://{host}:{port}{top}",
    ],
)
def test_an_outlet_matches_its_file_in_any_spelling(
    remote: Path, server: AsyncsshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str
) -> None:
    write_files(tmp_path, {"a b": b"1"})
    given = spelled.format(host=server.host, port=server.port, top=remote)
    monkeypatch.setattr(ProvidersManagerTaskRuntime, "asset_uri_handlers", {})  # of no provider that spells it anew
    outlet = Asset("file", uri=given)
    found = events(SFTPUploadOperator(task_id="up", source=f"{tmp_path}/a b", target="a b", outlets=[outlet]))
    assert found[outlet].extra["size"] == 1


def test_an_outlet_without_a_port_matches_port_22() -> None:
    file_event = FileEvent("uploaded", None, "sftp://h.example:22/a", {"path": "a", "size": 1, "action": "uploaded"})
    ran = context()
    outlet = Asset("file", uri="sftp://H.example/a")
    update_outlet_events(ran, [outlet], [file_event])
    assert ran["outlet_events"][outlet].extra["size"] == 1


@pytest.mark.parametrize(
    "spelled",
    ["file://{top}/x y", "file://{top}/x%20y", "file:{top}/x y", "file://localhost{top}/x y", "file://{top}//x y"],
)
def test_a_local_outlet_matches_its_file_in_any_spelling(remote: Path, tmp_path: Path, spelled: str) -> None:
    write_files(remote, {"x y": b"1"})
    outlet = Asset("file", uri=spelled.format(top=tmp_path))
    found = events(SFTPDownloadOperator(task_id="down", source="x y", target=f"{tmp_path}/x y", outlets=[outlet]))
    assert found[outlet].extra["size"] == 1


def test_an_outlet_with_another_path_gets_no_event(remote: Path, tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"1"})
    others = [Asset("s3://bucket/a"), Asset("db", uri="postgres://h/db/a"), Asset("file", uri=f"file://{tmp_path}/a")]
    found = events(SFTPUploadOperator(task_id="up", source=f"{tmp_path}/a", target="a", outlets=others))
    assert [found[one].extra for one in others] == [{}, {}, {}]


def test_a_key_with_url_characters_names_its_object(remote: Path, store: str) -> None:
    write_files(remote, {"a#b?c%d é": b"1", "a": b"22"})
    outlet, alias = Asset("file", uri=f"{store}/a%23b%3Fc%25d%20%C3%A9"), AssetAlias("each")
    down = SFTPDownloadOperator(task_id="down", pattern="*", target=f"{store}/", outlets=[outlet, alias])
    found = events(down)
    assert found[outlet].extra["size"] == 1
    uris = {event.dest_asset_key.uri for event in found[alias].asset_alias_events}
    assert uris == {f"{store}/a", f"{store}/a%23b%3Fc%25d %C3%A9"}
    outputs = cast("Any", down.get_openlineage_facets_on_complete(None)).outputs
    assert len({one.name for one in outputs}) == 2


def test_a_file_without_a_valid_asset_uri_is_logged_and_fails_nothing(
    remote: Path, server: AsyncsshServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "/".join(["é" * 120] * 3)
    write_files(tmp_path, {"in/a": b"1", f"in/{long}": b"22"})
    alias = AssetAlias("each")
    up = SFTPUploadOperator(task_id="up", source=f"{tmp_path}/in/", target="/", outlets=[alias])
    found = events(up)
    assert [event.dest_asset_key.uri for event in found[alias].asset_alias_events] == [uri(server, remote, "a")]
    assert "cannot make an asset of" in caplog.text
    outputs = cast("Any", up.get_openlineage_facets_on_complete(None)).outputs
    assert [one.name.partition(f"{remote.name}/")[2] for one in outputs] == ["a", long]


def test_the_digest_is_not_of_a_later_version_of_the_file(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(remote, {"a": b"abc"})
    fetching = SFTPBackend.download_many

    def watched(self: SFTPBackend, *args: Any, **kwargs: Any) -> Any:
        outcomes = fetching(self, *args, **kwargs)
        (tmp_path / "a").write_bytes(b"changed by who takes files as they land")
        return outcomes

    monkeypatch.setattr(SFTPBackend, "download_many", watched)
    outlet = Asset("all")
    found = events(SFTPDownloadOperator(task_id="down", source="a", target=f"{tmp_path}/a", outlets=[outlet]))
    assert found[outlet].extra["sha256"] == sha256(b"abc")


@pytest.mark.parametrize("what", ["upload", "download"])
def test_a_digest_costs_no_request(remote: Path, server: AsyncsshServer, tmp_path: Path, what: str) -> None:
    write_files(remote if what == "download" else tmp_path, {"a": b"abc"})
    kind = SFTPUploadOperator if what == "upload" else SFTPDownloadOperator
    source, target = (f"{tmp_path}/a", "b") if what == "upload" else ("a", f"{tmp_path}/b")
    request_counts = []
    for outlets in ([], [Asset("all")]):
        target += "b"
        before = server.requests.copy()
        (row,) = run_in(kind(task_id="t", source=source, target=target, outlets=outlets), context())
        request_counts.append(server.requests - before)
        del request_counts[-1]["close"]  # which nobody waits for
        assert row.get("sha256") == (sha256(b"abc") if outlets else None)
    assert request_counts[0] == request_counts[1]


# -- OpenLineage ------------------------------------------------------------------------------------------------------


def test_datasets_are_named_as_the_converters_name_the_assets(
    remote: Path, server: AsyncsshServer, tmp_path: Path
) -> None:
    write_files(tmp_path, {"50% of é.csv": b"abc"})
    here, there = f"file://{tmp_path}/50%25 of %C3%A9.csv", uri(server, remote, "50%25%20of%20%C3%A9.csv")
    there_then, back = uri(server, remote, "old/50%25%20of%20%C3%A9.csv"), f"file://{tmp_path}/back"
    up = SFTPUploadOperator(task_id="up", source=f"{tmp_path}/50% of é.csv", target="./")
    assert lineage(up) == (converted(here), converted(there))
    mv = SFTPMoveOperator(task_id="mv", pattern="50%*", target="old/")
    assert lineage(mv) == (converted(there), converted(there_then))
    down = SFTPDownloadOperator(task_id="down", source="old/50% of é.csv", target=f"{tmp_path}/back")
    assert lineage(down) == (converted(there_then), converted(back))
    assert lineage(SFTPDeleteOperator(task_id="rm", pattern="old/*")) == ([], converted(there_then))


def test_objects_are_named_by_bucket_and_key(remote: Path, store: str) -> None:
    write_files(remote, {"a": b"abc"})
    down = SFTPDownloadOperator(task_id="down", source="a", target=f"{store}/deep/a")
    assert lineage(down)[1] == [(store, "deep/a")]


def test_lineage_of_moves_and_deletions_names_their_files(remote: Path, server: AsyncsshServer) -> None:
    write_files(remote, {"a": b"abc"})
    mv, rm = SFTPMoveOperator(task_id="mv", source="a", target="b"), SFTPDeleteOperator(task_id="rm", path="b")
    ((_, before),) = converted(uri(server, remote, "a"))
    for operator, change in ((mv, "RENAME"), (rm, "DROP")):
        operator.execute(context())
        found = cast("Any", operator.get_openlineage_facets_on_complete(None))
        facet = found.outputs[0].facets["lifecycleStateChange"]
        assert facet.lifecycleStateChange.value == change
        previous = facet.previousIdentifier
        assert (previous and previous.name) == (before if change == "RENAME" else None)


def test_lineage_of_very_many_files_names_their_directories(
    remote: Path, server: AsyncsshServer, tmp_path: Path
) -> None:
    write_files(tmp_path / "in", {f"{number % 2}/{number}": b"" for number in range(501)})
    read, written = lineage(SFTPUploadOperator(task_id="up", source=f"{tmp_path}/in/", target="out/"))
    assert sorted(read) == [("file", f"{tmp_path}/in/0"), ("file", f"{tmp_path}/in/1")]
    assert sorted(written) == converted(*(uri(server, remote, f"out/{folder}") for folder in "01"))


def test_a_failed_task_reports_the_lineage_of_its_completed_files(
    remote: Path, server: AsyncsshServer, tmp_path: Path
) -> None:
    write_files(remote, {"a": b"abc"})
    down = SFTPDownloadOperator(task_id="down", source=["a", "missing"], target=f"{tmp_path}/")
    with pytest.raises(Exception, match="1 of 2 files failed"):
        down.execute(context())
    found = cast("Any", down.get_openlineage_facets_on_complete(None))
    assert [(one.namespace, one.name) for one in found.inputs] == converted(uri(server, remote, "a"))


def test_without_the_openlineage_provider_no_lineage_is_reported() -> None:
    code = textwrap.dedent("""
        import sys
        import airflow.sdk
        sys.modules["airflow.providers.openlineage.extractors"] = sys.modules["openlineage"] = None
        from airflow_sftp_backend.operators import SFTPDeleteOperator
        assert SFTPDeleteOperator(task_id="rm", path="a").get_openlineage_facets_on_complete(None) is None
    """)
    done = prepared_process.run(["-c", code], modules=prepared_process.AIRFLOW_ONLY)
    assert done.returncode == 0, done.stderr


DAG = """
from airflow.sdk import DAG, Asset, AssetAlias
from airflow_sftp_backend.operators import (
    SFTPDeleteOperator, SFTPDownloadOperator, SFTPMoveOperator, SFTPUploadOperator
)

with DAG("told"):
    SFTPUploadOperator(
        task_id="up", source="{here}/a", target="a", outlets=[Asset("report", uri="{there}/a"), AssetAlias("each")]
    )
    SFTPDownloadOperator(task_id="down", source="a", target="{here}/back")
    SFTPMoveOperator(task_id="mv", source="a", target="b")
    SFTPDeleteOperator(task_id="rm", path="b")
"""


@pytest.mark.timeout(180)
def test_real_tasks_report_asset_events_and_lineage(
    remote: Path, server: AsyncsshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {"a": b"abc"})
    top = uri(server, remote, "").rstrip("/")
    write_files(tmp_path, {"dags/told.py": DAG.format(here=tmp_path, there=top).encode()})
    written = tmp_path / "lineage.json"
    transport = {"type": "file", "log_file_path": str(written), "append": True}
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__TRANSPORT", json.dumps(transport))
    for task in ("up", "down", "mv", "rm"):
        run_supervised(tmp_path / "dags", "told", task, tmp_path / f"{task}.log")
    complete = {}
    for line in written.read_text().splitlines():
        event = json.loads(line)
        if event["eventType"] == "COMPLETE":
            complete[event["job"]["name"]] = [
                [(dataset["namespace"], dataset["name"]) for dataset in event[end]] for end in ("inputs", "outputs")
            ]
    here, a, b = (f"file://{tmp_path}/{name}" for name in ("a", "back")), f"{top}/a", f"{top}/b"
    source, back = here
    assert complete == {
        "told.up": [converted(source), converted(a)],
        "told.down": [converted(a), converted(back)],
        "told.mv": [converted(a), converted(b)],
        "told.rm": [[], converted(b)],
    }
    success = [
        one
        for one in messages_to_airflow(tmp_path / "up.log")
        if isinstance(one, dict) and one.get("state") == "success"
    ]
    (finished,) = success
    extras = [event["extra"] for event in cast("list[dict[str, Any]]", finished["outlet_events"])]
    assert extras == [{"uri": a, "action": "uploaded", "size": 3, "sha256": sha256(b"abc")}] * 2
