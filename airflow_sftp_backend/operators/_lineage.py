"""What an operator has done, told to Airflow's assets and to OpenLineage: which file came from where.

A file on a server is the asset and the dataset that `assets` makes of it, a local file and an object those that
Airflow's own converters make of their URL.
"""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from airflow_sftp_backend._file_rows import FileResult
from airflow_sftp_backend.assets.uri import SCHEME, dataset, file_uri, sanitize_uri
from airflow_sftp_backend.version_compat import operator_lineage

from ._object_storage import is_url

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import Dataset, DatasetFacet, OutputDataset, RunFacet
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context
    from openlineage.client.generated.base import OutputDatasetFacet

    from airflow_sftp_backend.backend import BackendConfig

    Facets: TypeAlias = OperatorLineage[Dataset, RunFacet]

log = logging.getLogger(__name__)

_MAX_FILES_NAMED = 500
"""Files that are named one by one; of more, their folders."""
_UNQUOTED = "".join(map(chr, {*range(32, 127)} - {*b"#?%"}))


@dataclass(frozen=True, slots=True)
class FileEvent:
    """A file that was written to ``target`` from ``source``, or deleted at ``target``.

    :param source: URI, None for a deletion.
    :param target: URI.
    :param result: the operator's result.
    """

    kind: Literal["uploaded", "downloaded", "moved", "deleted"]
    source: str | None
    target: str
    result: FileResult


def file_events(config: BackendConfig, results: Iterable[FileResult]) -> Iterator[FileEvent]:
    """Yield an event for each file that this attempt or an earlier one has written or deleted."""
    for result in results:
        remote = file_uri(config, result["path"])
        match result["action"].split()[0]:
            case "uploaded":
                yield FileEvent("uploaded", _local_uri(result["source"]), remote, result)
            case "downloaded":
                yield FileEvent("downloaded", remote, _local_uri(result["target"]), result)
            case "moved":
                yield FileEvent("moved", file_uri(config, result["source"]), remote, result)
            case "deleted":
                yield FileEvent("deleted", None, remote, result)


def _local_uri(path: str) -> str:
    """The URL of a local path or object as Airflow writes it, without percent-encoding; of what would end the path only
    that, and what is not ASCII, which no asset may be."""
    prefix, path_part = "file://", os.path.abspath(path)
    if is_url(path):
        scheme, _, after_scheme = path.partition("://")
        host, slash, key = after_scheme.partition("/")
        prefix, path_part = f"{scheme}://{host}", slash + key
    return prefix + quote(path_part, _UNQUOTED, errors="surrogateescape")


# -- assets -----------------------------------------------------------------------------------------------------------


def update_outlet_events(context: Context, outlets: Sequence[object], events: Sequence[FileEvent]) -> None:
    """Gives the event of each outlet of the task its extra: what files of it there are, their bytes and SHA-256.

    An outlet with the URI of a file or folder is told of what is there; one without a place of all files. Of an asset
    alias, each file becomes an asset of its own, unless Airflow takes no asset of that URI, as of one that is too long.
    """
    from airflow.sdk import Asset, AssetAlias

    for outlet in outlets:
        outlet_events = context["outlet_events"]
        if isinstance(outlet, AssetAlias):
            for event in events:
                try:
                    asset = Asset(uri=event.target)
                except ValueError as error:
                    log.warning("%r is %s, but is made no asset: %s", event.target, event.kind, error)
                else:
                    outlet_events[outlet].add(asset, extra=_event_extra(event))
        elif isinstance(outlet, Asset):
            outlet_events[outlet].extra |= _outlet_extra(
                [event for event in events if _outlet_includes(outlet.uri, event.target)]
            )


def _outlet_includes(uri: str, target: str) -> bool:
    """True if the outlet means that file: by its URI, by one of a folder it is in, or by no URI of a place at all."""
    outlet_location, file_location = _location(uri), _location(target)
    if outlet_location is None or file_location is None:
        return outlet_location is None
    directory = outlet_location[1].rstrip("/")
    return outlet_location[0] == file_location[0] and (
        file_location[1].rstrip("/") == directory or file_location[1].startswith(f"{directory}/")
    )


def _location(uri: str) -> tuple[str, str] | None:
    """Where a URI leads, in one spelling: scheme with host, and path; None if it is of no place."""
    parts = urlsplit(uri)
    if parts.scheme == SCHEME:
        try:
            parts = sanitize_uri(parts)
        except ValueError:  # there is no such place
            return uri, ""
    path = unquote(parts.path, errors="surrogateescape")
    if parts.scheme == "file":
        return "file:", posixpath.normpath(f"/{path.lstrip('/')}")
    return (f"{parts.scheme}://{parts.netloc}", path) if parts.netloc else None


def _outlet_extra(events: Sequence[FileEvent]) -> dict[str, Any]:
    """Of one file what `_event_extra` says; of several their number, bytes in all, and each of the first of them."""
    if len(events) == 1:
        return _event_extra(events[0])
    size = sum(event.result["size"] or 0 for event in events)
    return (
        {"count": len(events), "size": size, "files": [_event_extra(event) for event in events[:_MAX_FILES_NAMED]]}
        if events
        else {}
    )


def _event_extra(event: FileEvent) -> dict[str, Any]:
    extra: dict[str, Any] = {"uri": event.target, "action": event.kind, "size": event.result["size"]}
    return extra | ({"sha256": event.result["sha256"]} if "sha256" in event.result else {})


# -- OpenLineage ------------------------------------------------------------------------------------------------------


def openlineage_facets(events: Sequence[FileEvent]) -> Facets | None:
    """The datasets read and written; None where Airflow's OpenLineage provider is not installed.

    Of more than 500 files the folders that hold them.
    """
    lineage = operator_lineage()
    if lineage is None:
        return None
    inputs: dict[tuple[str, str], Dataset] = {}
    outputs: dict[tuple[str, str], OutputDataset] = {}
    for event in events if len(events) <= _MAX_FILES_NAMED else _directory_events(events):
        if event.source is not None:
            read = _dataset_of(event.source)
            inputs.setdefault((read.namespace, read.name), read)
        written = _output_dataset(event)
        outputs.setdefault((written.namespace, written.name), written)
    return lineage(inputs=list(inputs.values()), outputs=list(outputs.values()))


def _directory_events(events: Sequence[FileEvent]) -> list[FileEvent]:
    """Return the events of files as events of the directories that hold the files."""

    def directory(uri: str) -> str:
        return uri.rpartition("/")[0]

    return [
        FileEvent(
            event.kind,
            None if event.source is None else directory(event.source),
            directory(event.target),
            {"path": directory(event.result["path"]), "size": None, "action": event.result["action"]},
        )
        for event in events
    ]


def _dataset_of(uri: str) -> Dataset:
    """The dataset that Airflow's converter makes of an asset with that URI: for ``sftp`` the one of Airflow's sftp
    provider, where that is installed beside this one."""
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.common.compat.openlineage.utils.utils import translate_airflow_asset
    from airflow.sdk import Asset

    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Dataset(namespace="file", name=parts.path)
    converted: Dataset | None = None
    with suppress(ValueError):  # Airflow takes no asset of that URI
        converted = translate_airflow_asset(Asset(uri=uri), None)
    if converted is not None:
        return converted
    return (
        dataset(uri)
        if parts.scheme == SCHEME
        else Dataset(namespace=f"{parts.scheme}://{parts.netloc}", name=parts.path.lstrip("/"))
    )


def _output_dataset(event: FileEvent) -> OutputDataset:
    """The dataset of the target with its size, and what a move or deletion has made of it."""
    from airflow.providers.common.compat.openlineage.facet import (
        LifecycleStateChange,
        LifecycleStateChangeDatasetFacet,
        OutputDataset,
        OutputStatisticsOutputDatasetFacet,
        PreviousIdentifier,
    )

    target = _dataset_of(event.target)
    dataset_facets: dict[str, DatasetFacet] = {}
    output_facets: dict[str, OutputDatasetFacet] = {}
    if event.kind == "deleted":
        dataset_facets["lifecycleStateChange"] = LifecycleStateChangeDatasetFacet(LifecycleStateChange.DROP)
    elif event.result["size"] is not None:
        output_facets["outputStatistics"] = OutputStatisticsOutputDatasetFacet(size=event.result["size"])
    if event.kind == "moved" and event.source is not None:
        previous = _dataset_of(event.source)
        dataset_facets["lifecycleStateChange"] = LifecycleStateChangeDatasetFacet(
            LifecycleStateChange.RENAME, PreviousIdentifier(name=previous.name, namespace=previous.namespace)
        )
    return OutputDataset(target.namespace, target.name, output_facets, facets=dataset_facets)
