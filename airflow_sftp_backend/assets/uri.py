"""Define the asset URI and OpenLineage dataset of a file.

The URI is ``sftp://host:port/path``: host in lower case, port always present, no user, absolute path, percent-encoded
as UTF-8 (RFC 3986 section 3.3). A path relative to the login directory is written ``/~/path``. The dataset is ``/path``
in the namespace ``file://host:port``, OpenLineage's naming of remote file systems. No function looks up a name, in DNS
or on the server.
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
"""Characters of a path that are not percent-encoded, beside letters, digits and ``-._~``."""


def file_uri(config: BackendConfig, key: str) -> str:
    """Return the URI of a file.

    :param config: configuration of the backend
    :param key: path of the file, relative to the base path
    :returns: the URI
    :raises InvalidPath: if the key leads out of the base path
    """
    native_path = Jail(config.base_path).resolve(key).native
    path = native_path if native_path.startswith("/") else f"/~/{native_path}"
    return _uri(config.host, config.port, path)


def create_asset(
    *, host: str, path: str, port: int = BackendConfig.port, extra: dict[str, JsonValue] | None = None
) -> Asset:
    """Create the asset of a file on a server.

    :param host: name or address of the server
    :param path: path on the server, not percent-encoded
    :param port: port of the SSH server
    :param extra: the asset's ``extra``
    :returns: the asset
    :raises ValueError: if the path contains ``..``
    """
    from airflow.sdk import Asset

    return Asset(uri=_uri(host, port, path), extra=extra)


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Normalize an ``sftp`` URI.

    :param uri: the parts of the URI
    :returns: the parts of the normalized URI
    :raises ValueError: for a missing host, a wrong port, or ``..`` in the path
    """
    if not uri.hostname:
        raise ValueError("the sftp URI has no host; expected a URI such as sftp://sftp.example.com/outbox/report.csv")
    port = BackendConfig.port if uri.port is None else uri.port
    path = unquote(uri.path, errors="surrogateescape")
    return urlsplit(_uri(uri.hostname, port, path))._replace(query=uri.query)


def convert_asset_to_openlineage(asset: Asset, lineage_context: object) -> Dataset:  # noqa: ARG001
    """Return the dataset of an asset. Airflow's OpenLineage provider calls this function.

    :param asset: the asset
    :param lineage_context: not used
    :returns: the dataset
    """
    return dataset(asset.uri)


def dataset(uri: str) -> Dataset:
    """Return the OpenLineage dataset of an ``sftp`` URI. Needs the OpenLineage client.

    :param uri: the URI
    :returns: the dataset
    :raises ValueError: as `sanitize_uri`
    """
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
