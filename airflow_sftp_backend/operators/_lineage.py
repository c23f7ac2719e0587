"""Report an operator's files to asset events and to OpenLineage.

The module `assets.uri` defines the asset and the dataset of a file on a server. Airflow's own converters define the
dataset of a local file or an object by its URL.
"""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from airflow_sftp_backend._file_rows import CompletedAction, FileResult
from airflow_sftp_backend._path_arguments import URL_SCHEME
from airflow_sftp_backend.assets.uri import SCHEME, dataset, file_uri, sanitize_uri
from airflow_sftp_backend.version_compat import operator_lineage

from ._object_storage import is_url, object_path

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import Dataset, DatasetFacet, OutputDataset, RunFacet
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context
    from openlineage.client.generated.base import OutputDatasetFacet

    from airflow_sftp_backend.backend import BackendConfig, SFTPBackend

    Facets: TypeAlias = OperatorLineage[Dataset, RunFacet]

log = logging.getLogger(__name__)

_MAX_FILES_NAMED = 500
"""Files reported one by one; more files are reported by their directories."""
_UNQUOTED = "".join(map(chr, {*range(32, 127)} - {*b"#?%"}))
"""Characters of a local path that stay unquoted, as in Airflow's own URLs: ASCII except the ends of a URL's path."""


@dataclass(frozen=True, slots=True)
class FileEvent:
    """Describe a file that was written or deleted at ``target``.

    A written file has a ``source``.

    :ivar action: the completed action
    :ivar source: URI of the source, None for a deletion
    :ivar target: URI of the target
    :ivar result: the operator's result for the file
    """

    action: CompletedAction
    source: str | None
    target: str
    result: FileResult


def file_events(config: BackendConfig, results: Iterable[FileResult]) -> Iterator[FileEvent]:
    """Yield an event for each file that was written or deleted.

    Files of earlier attempts are included.

    :param config: configuration of the task's backend
    :param results: the results of the task; skipped and planned files have no events
    :returns: the events
    """
    for result in results:
        remote = file_uri(config, result["path"])
        match result["action"]:
            case "uploaded" | "uploaded by an earlier attempt":
                yield FileEvent("uploaded", _local_uri(result["source"]), remote, result)
            case "downloaded" | "downloaded by an earlier attempt":
                yield FileEvent("downloaded", remote, _local_uri(result["target"]), result)
            case "moved" | "moved by an earlier attempt":
                yield FileEvent("moved", file_uri(config, result["source"]), remote, result)
            case "deleted":
                # A sync to this machine deletes local files.
                yield FileEvent("deleted", None, _local_uri(result["target"]) if "target" in result else remote, result)


def _local_uri(path: str) -> str:
    """Return the URI of a local path or object, without a user."""
    # As in Airflow's own URLs, characters are not quoted, except the ends of a URL's path and non-ASCII characters,
    # because assets must be ASCII.
    prefix, path_part = "file://", os.path.abspath(path)
    if is_url(path):
        scheme, _, after_scheme = path.partition("://")
        if scheme == URL_SCHEME:
            return _server_uri(path)
        host, slash, key = after_scheme.partition("/")
        prefix, path_part = f"{scheme}://{host.rpartition('@')[2]}", slash + key
    return prefix + quote(path_part, _UNQUOTED, errors="surrogateescape")


def _server_uri(url: str) -> str:
    """Return the URI of a file on the server of another connection."""
    path = object_path(url)
    backend: SFTPBackend = getattr(path.fs, "backend")  # noqa: B009 - Airflow's type of the file system lacks it
    return file_uri(backend.config, path.path)


# -- assets -----------------------------------------------------------------------------------------------------------


def update_outlet_events(context: Context, outlets: Sequence[object], events: Sequence[FileEvent]) -> None:
    """Add files, bytes and SHA-256 to the ``extra`` of each outlet's event.

    An outlet with the URI of a file or directory gets the files at or below that URI; an outlet without a location gets
    all files. For an asset alias, each file becomes an asset, unless Airflow rejects the URI, for example because of
    its length.

    :param context: the context of the task
    :param outlets: the outlets of the task
    :param events: the files of the task
    """
    from airflow.sdk import Asset, AssetAlias

    for outlet in outlets:
        outlet_events = context["outlet_events"]
        if isinstance(outlet, AssetAlias):
            for event in events:
                _add_asset(outlet_events[outlet], event)
        elif isinstance(outlet, Asset):
            outlet_events[outlet].extra |= _outlet_extra(
                [event for event in events if _outlet_includes(outlet.uri, event.target)]
            )


def _outlet_includes(uri: str, target: str) -> bool:
    """Tell whether an outlet includes a file.

    An outlet includes the file with its URI, all files below its URI, or, without any location, all files.
    """
    outlet_location, file_location = _location(uri), _location(target)
    if outlet_location is None or file_location is None:
        return outlet_location is None
    directory = outlet_location[1].rstrip("/")
    return outlet_location[0] == file_location[0] and (
        file_location[1].rstrip("/") == directory or file_location[1].startswith(f"{directory}/")
    )


def _location(uri: str) -> tuple[str, str] | None:
    """Return scheme with host, and path, in one spelling.

    The result is None for a URI without a location.
    """
    parts = urlsplit(uri)
    if parts.scheme == SCHEME:
        try:
            parts = sanitize_uri(parts)
        except ValueError:  # an invalid URI equals no file's location
            return uri, ""
    path = unquote(parts.path, errors="surrogateescape")
    if parts.scheme == "file":
        return "file:", posixpath.normpath(f"/{path.lstrip('/')}")
    host = parts.netloc.rpartition("@")[2]
    return (f"{parts.scheme}://{host}", path) if host else None


def _outlet_extra(events: Sequence[FileEvent]) -> dict[str, Any]:
    """Return the extra of an event for its files.

    For one file see `_event_extra`. For several there are number, total bytes, and the first files.
    """
    if len(events) == 1:
        return _event_extra(events[0])
    size = sum(event.result["size"] or 0 for event in events)
    return (
        {"count": len(events), "size": size, "files": [_event_extra(event) for event in events[:_MAX_FILES_NAMED]]}
        if events
        else {}
    )


def _add_asset(alias_events: Any, event: FileEvent) -> None:
    """Add the asset of a file to the events of an alias."""
    from airflow.sdk import Asset

    try:
        asset = Asset(uri=event.target)
    except ValueError as error:
        log.warning("cannot make an asset of %r, which was %s: %s", event.target, event.action, error)
    else:
        alias_events.add(asset, extra=_event_extra(event))


def _event_extra(event: FileEvent) -> dict[str, Any]:
    extra: dict[str, Any] = {"uri": event.target, "action": event.action, "size": event.result["size"]}
    return extra | ({"sha256": event.result["sha256"]} if "sha256" in event.result else {})


# -- OpenLineage ------------------------------------------------------------------------------------------------------


def openlineage_facets(events: Sequence[FileEvent]) -> Facets | None:
    """Return the datasets that were read and written.

    For more than 500 files, return the directories of the files.

    :param events: the files of the task
    :returns: the datasets; None without Airflow's OpenLineage provider
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
    """Replace the events of files by events of their directories."""

    def directory(uri: str) -> str:
        return uri.rpartition("/")[0]

    return [
        FileEvent(
            event.action,
            None if event.source is None else directory(event.source),
            directory(event.target),
            {"path": directory(event.result["path"]), "size": None, "action": event.result["action"]},
        )
        for event in events
    ]


def _dataset_of(uri: str) -> Dataset:
    """Return the dataset of an asset with that URI.

    Airflow's converter for the scheme decides.

    For ``sftp``, Airflow's sftp provider registers its own converter. If installed, that converter applies here too.
    """
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.common.compat.openlineage.utils.utils import translate_airflow_asset
    from airflow.sdk import Asset

    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Dataset(namespace="file", name=parts.path)
    converted: Dataset | None = None
    with suppress(ValueError):  # Airflow rejects the URI
        converted = translate_airflow_asset(Asset(uri=uri), None)
    if converted is not None:
        return converted
    return (
        dataset(uri)
        if parts.scheme == SCHEME
        else Dataset(namespace=f"{parts.scheme}://{parts.netloc}", name=parts.path.lstrip("/"))
    )


def _output_dataset(event: FileEvent) -> OutputDataset:
    """Return the dataset of the target, with its size or lifecycle change."""
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
    if event.action == "deleted":
        dataset_facets["lifecycleStateChange"] = LifecycleStateChangeDatasetFacet(LifecycleStateChange.DROP)
    elif event.result["size"] is not None:
        output_facets["outputStatistics"] = OutputStatisticsOutputDatasetFacet(size=event.result["size"])
    if event.action == "moved" and event.source is not None:
        previous = _dataset_of(event.source)
        dataset_facets["lifecycleStateChange"] = LifecycleStateChangeDatasetFacet(
            LifecycleStateChange.RENAME, PreviousIdentifier(name=previous.name, namespace=previous.namespace)
        )
    return OutputDataset(target.namespace, target.name, output_facets, facets=dataset_facets)
