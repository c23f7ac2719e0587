"""A file on a server as an Asset URI and as an OpenLineage dataset: one spelling of each, whoever writes it down.

The URI is ``sftp://host:port/path``: host in lower case, port always there, no user, the path absolute and
percent-encoded as UTF-8 (RFC 3986 section 3.3). A path that starts at the login folder is spelled ``/~/path``. The
dataset is ``/path`` in the namespace ``file://host:port``, OpenLineage's name for a remote file system.
No name is ever looked up, in DNS or on the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from airflow_sftp_backend.backend import BackendConfig
from airflow_sftp_backend.backend._paths import Jail

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.sdk import Asset
    from pydantic import JsonValue

SCHEME = "sftp"
_LITERAL = "/!$&'()*+,;=:@"
"""What stands in a path as it is, beside letters, digits and ``-._~``."""


def file_uri(config: BackendConfig, key: str) -> str:
    """The URI of the file a backend of that config calls ``key``. Raises InvalidPath."""
    native_path = Jail(config.base_path).resolve(key).native
    path = native_path if native_path.startswith("/") else f"/~/{native_path}"
    return _uri(config.host, config.port, path)


def create_asset(
    *, host: str, path: str, port: int = BackendConfig.port, extra: dict[str, JsonValue] | None = None
) -> Asset:
    """The Asset of a file; ``path`` is the one on the server, not percent-encoded. ValueError for ``..`` in it."""
    from airflow.sdk import Asset

    return Asset(uri=_uri(host, port, path), extra=extra)


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """The one spelling of an ``sftp`` URI. ValueError without a host, with a wrong port, or with ``..`` in the path."""
    if not uri.hostname:
        raise ValueError("an sftp URI names a host: sftp://sftp.example.com/outbox/report.csv")
    port = BackendConfig.port if uri.port is None else uri.port
    path = unquote(uri.path, errors="surrogateescape")
    return urlsplit(_uri(uri.hostname, port, path))._replace(query=uri.query)


def convert_asset_to_openlineage(asset: Asset, lineage_context: object) -> Dataset:  # noqa: ARG001
    """The dataset of an Asset; called by Airflow's OpenLineage provider."""
    return dataset(asset.uri)


def dataset(uri: str) -> Dataset:
    """The OpenLineage dataset of an ``sftp`` URI. Needs the OpenLineage client."""
    from airflow.providers.common.compat.openlineage.facet import Dataset

    parts = sanitize_uri(urlsplit(uri))
    return Dataset(namespace=f"file://{parts.netloc}", name=unquote(parts.path, errors="replace"))


def _uri(host: str, port: int, path: str) -> str:
    hostname = host.strip("[]").lower()
    segments = [segment for segment in path.split("/") if segment not in ("", ".")]
    if ".." in segments:
        raise ValueError(f"the path of an sftp URI must not contain '..': {path!r}")
    netloc = f"[{hostname}]:{port}" if ":" in hostname else f"{hostname}:{port}"
    return urlunsplit((SCHEME, netloc, quote("/" + "/".join(segments), _LITERAL, errors="surrogateescape"), "", ""))
