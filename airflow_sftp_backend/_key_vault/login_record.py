"""Record why a login failed.

The exceptions of the SDKs have the cause only in their texts, which are not parsed.

Importing this module does not import the Azure SDKs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, AccessTokenInfo, TokenRequestOptions
    from azure.core.pipeline import PipelineRequest, PipelineResponse

_DISCOVERY_PATH: Final = "/.well-known/openid-configuration"
"""Path of a tenant's configuration (OpenID Connect Discovery 1.0, section 4)."""


@dataclass(frozen=True)
class LoginRefusal:
    """Error reply of a login service.

    :ivar status: HTTP status
    :ivar error: OAuth 2 error code, such as ``invalid_client`` (RFC 6749 section 5.2); may be blank
    :ivar codes: ``error_codes`` of Microsoft Entra, the numbers of its AADSTS codes
    :ivar is_discovery: True if the request was for the configuration of the tenant
    """

    status: int
    error: str
    codes: tuple[str, ...]
    is_discovery: bool


@dataclass
class LoginRecord:
    """Record of the logins for one fetch of a secret.

    :ivar host: host of the last request
    :ivar vault_tenant: tenant for which the vault requires a token
    :ivar error: exception of the credential; None if the login did not fail
    :ivar refusal: last error reply of the login service
    """

    host: str | None = None
    vault_tenant: str | None = None
    error: Exception | None = None
    refusal: LoginRefusal | None = None


_current: Final[ContextVar[LoginRecord | None]] = ContextVar("login_record", default=None)
"""Record of the fetch that runs in this thread. The SDKs call hooks and credentials in the thread of the request."""


@contextmanager
def recorded_login() -> Iterator[LoginRecord]:
    """Record the logins of this thread in the block."""
    record = LoginRecord()
    token = _current.set(record)
    try:
        yield record
    finally:
        _current.reset(token)


def record_request(request: PipelineRequest[Any]) -> None:
    """Record the host of a request (``raw_request_hook`` of azure-core)."""
    if (record := _current.get()) is not None:
        record.host = urlsplit(request.http_request.url).hostname


def record_login_reply(response: PipelineResponse[Any, Any]) -> None:
    """Record an error reply of a login service (``raw_response_hook`` of azure-core)."""
    record, request, reply = _current.get(), response.http_request, response.http_response
    is_discovery = urlsplit(request.url).path.endswith(_DISCOVERY_PATH)
    # Other GET requests go to the identity service of the machine, whose errors the SDK reports by type.
    if record is None or reply.status_code < 400 or not (request.method == "POST" or is_discovery):
        return
    try:
        content: object = json.loads(reply.text())  # azure-identity 1.19 passes replies without `json`
    except ValueError:
        content = None
    values: Mapping[str, object] = content if isinstance(content, dict) else {}
    error, codes = values.get("error"), values.get("error_codes")
    record.refusal = LoginRefusal(
        status=reply.status_code,
        error=error if isinstance(error, str) else "",
        codes=tuple(str(code) for code in codes if isinstance(code, int)) if isinstance(codes, list) else (),
        is_discovery=is_discovery,
    )


class RecordedCredential:
    """Pass token requests to a credential; record tenant and failure.

    :param credential: the credential
    """

    def __init__(self, credential: Any) -> None:
        self._credential = credential

    def __enter__(self) -> RecordedCredential:
        self._credential.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._credential.__exit__(*exception)

    def close(self) -> None:
        """Close the connections of the credential."""
        self._credential.close()

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """See `azure.core.credentials.TokenCredential.get_token`."""
        with self._record_failure(options.get("tenant_id")):
            token: AccessToken = self._credential.get_token(*scopes, **options)
        return token

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        """See `azure.core.credentials.SupportsTokenInfo.get_token_info`."""
        with self._record_failure((options or {}).get("tenant_id")):
            token: AccessTokenInfo = self._credential.get_token_info(*scopes, options=options)
        return token

    @contextmanager
    def _record_failure(self, tenant: str | None) -> Iterator[None]:
        record = _current.get()
        if record is None:
            yield
            return
        record.vault_tenant = tenant
        earlier_error = record.error
        try:
            yield
        except Exception as error:
            # DefaultAzureCredential tries several RecordedCredentials, and raises one text with all failures: keep the
            # error that the last of them recorded.
            if record.error is earlier_error:
                record.error = error
            raise
        record.error = record.refusal = None
