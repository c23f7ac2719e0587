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

from airflow_sftp_backend.assets.uri import SCHEME, dataset, file_uri, sanitize_uri

from ._object_storage import is_url
from ._retry_state import Row

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import Dataset, DatasetFacet, OutputDataset, RunFacet
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context
    from openlineage.client.generated.base import OutputDatasetFacet

    from airflow_sftp_backend.backend import BackendConfig

    Facets: TypeAlias = OperatorLineage[Dataset, RunFacet]

log = logging.getLogger(__name__)

_MOST = 500
"""Files that are named one by one; of more, their folders."""
_AS_IT_IS = "".join(map(chr, {*range(32, 127)} - {*b"#?%"}))


@dataclass(frozen=True, slots=True)
class Deed:
    """A file that was put at ``target``, from ``source``, or taken away from there: URIs; ``row`` is the operator's."""

    kind: Literal["uploaded", "downloaded", "moved", "deleted"]
    source: str | None
    target: str
    row: Row


def deeds(config: BackendConfig, rows: Iterable[Row]) -> Iterator[Deed]:
    """What was done, by this try of the task or an earlier one; not what was left out or would be done."""
    for row in rows:
        there = file_uri(config, row["path"])
        match row["action"].split()[0]:
            case "uploaded":
                yield Deed("uploaded", _local_uri(row["source"]), there, row)
            case "downloaded":
                yield Deed("downloaded", there, _local_uri(row["target"]), row)
            case "moved":
                yield Deed("moved", file_uri(config, row["source"]), there, row)
            case "deleted":
                yield Deed("deleted", None, there, row)


def _local_uri(path: str) -> str:
    """The URL of a local path or object as Airflow writes it, without percent-encoding; of what would end the path only
    that, and what is not ASCII, which no asset may be."""
    place, plain = "file://", os.path.abspath(path)
    if is_url(path):
        scheme, _, rest = path.partition("://")
        host, slash, key = rest.partition("/")
        place, plain = f"{scheme}://{host}", slash + key
    return place + quote(plain, _AS_IT_IS, errors="surrogateescape")


# -- assets -----------------------------------------------------------------------------------------------------------


def tell_assets(context: Context, outlets: Sequence[object], done: Sequence[Deed]) -> None:
    """Gives the event of each outlet of the task its extra: what files of it there are, their bytes and SHA-256.

    An outlet with the URI of a file or folder is told of what is there; one without a place of all files. Of an asset
    alias, each file becomes an asset of its own, unless Airflow takes no asset of that URI, as of one that is too long.
    """
    from airflow.sdk import Asset, AssetAlias

    for outlet in outlets:
        events = context["outlet_events"]
        if isinstance(outlet, AssetAlias):
            for deed in done:
                try:
                    asset = Asset(uri=deed.target)
                except ValueError as error:
                    log.warning("%r is %s, but is made no asset: %s", deed.target, deed.kind, error)
                else:
                    events[outlet].add(asset, extra=_file(deed))
        elif isinstance(outlet, Asset):
            events[outlet].extra |= _extra([deed for deed in done if _is_of(outlet.uri, deed.target)])


def _is_of(uri: str, target: str) -> bool:
    """True if the outlet means that file: by its URI, by one of a folder it is in, or by no URI of a place at all."""
    meant, there = _place(uri), _place(target)
    if meant is None or there is None:
        return meant is None
    folder = meant[1].rstrip("/")
    return meant[0] == there[0] and (there[1].rstrip("/") == folder or there[1].startswith(f"{folder}/"))


def _place(uri: str) -> tuple[str, str] | None:
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


def _extra(done: Sequence[Deed]) -> dict[str, Any]:
    """Of one file what `_file` says; of several their number, bytes in all, and each of the first of them."""
    if len(done) == 1:
        return _file(done[0])
    size = sum(deed.row["size"] or 0 for deed in done)
    return {"count": len(done), "size": size, "files": [_file(deed) for deed in done[:_MOST]]} if done else {}


def _file(deed: Deed) -> dict[str, Any]:
    kept: dict[str, Any] = {name: deed.row[name] for name in ("size", "sha256") if name in deed.row}
    return {"uri": deed.target, "action": deed.kind, **kept}


# -- OpenLineage ------------------------------------------------------------------------------------------------------


def facets(done: Sequence[Deed]) -> Facets | None:
    """The datasets read and written; None where Airflow's OpenLineage provider is not installed.

    Of more than 500 files the folders that hold them.
    """
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
    except ImportError:
        return None
    inputs: dict[tuple[str, str], Dataset] = {}
    outputs: dict[tuple[str, str], OutputDataset] = {}
    for deed in done if len(done) <= _MOST else _folders(done):
        if deed.source is not None:
            read = _dataset(deed.source)
            inputs.setdefault((read.namespace, read.name), read)
        written = _written(deed)
        outputs.setdefault((written.namespace, written.name), written)
    return OperatorLineage(inputs=list(inputs.values()), outputs=list(outputs.values()))


def _folders(done: Sequence[Deed]) -> list[Deed]:
    """What was done as if to the folders of the files."""

    def folder(uri: str) -> str:
        return uri.rpartition("/")[0]

    return [
        Deed(deed.kind, None if deed.source is None else folder(deed.source), folder(deed.target), {"size": None})
        for deed in done
    ]


def _dataset(uri: str) -> Dataset:
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


def _written(deed: Deed) -> OutputDataset:
    """The dataset of the target with its size, and what a move or deletion has made of it."""
    from airflow.providers.common.compat.openlineage.facet import (
        LifecycleStateChange,
        LifecycleStateChangeDatasetFacet,
        OutputDataset,
        OutputStatisticsOutputDatasetFacet,
        PreviousIdentifier,
    )

    there = _dataset(deed.target)
    change: dict[str, DatasetFacet] = {}
    known: dict[str, OutputDatasetFacet] = {}
    if deed.kind == "deleted":
        change["lifecycleStateChange"] = LifecycleStateChangeDatasetFacet(LifecycleStateChange.DROP)
    elif deed.row["size"] is not None:
        known["outputStatistics"] = OutputStatisticsOutputDatasetFacet(size=deed.row["size"])
    if deed.kind == "moved" and deed.source is not None:
        before = _dataset(deed.source)
        change["lifecycleStateChange"] = LifecycleStateChangeDatasetFacet(
            LifecycleStateChange.RENAME, PreviousIdentifier(name=before.name, namespace=before.namespace)
        )
    return OutputDataset(there.namespace, there.name, known, facets=change)
